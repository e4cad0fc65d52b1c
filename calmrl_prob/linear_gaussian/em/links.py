"""Several starts of a fit where few rows link some modalities with the rest.

Rows that have one modality alone tell nothing of how its latents are turned against those of another: turning its
loadings by an orthogonal matrix leaves their likelihood as it is. Only rows that have both tell, and where these are
few the likelihood has a maximum of its own for each way that they can nearly be explained, reflections above all. So
from where the first fit ended others start that differ in the turn: the best one between the latents as the two sides
see them on the linking rows (Schonemann, A generalized solution of the orthogonal Procrustes problem, 1966), and random
ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian.blocks import ObservedBlocks, linked_groups
from calmrl_prob.linear_gaussian.posterior import posterior
from calmrl_prob.linear_gaussian.structure import LinearGaussian

#: Share of the rows of the lesser of two modalities, and rows for each latent, below which few rows link them.
_FEW_SHARE, _FEW_ROWS = 0.25, 40
#: Random turns that are started from, besides the one by Procrustes.
_RANDOM_TURNS = 3
#: Nats behind the best within which another end is as likely, and relative difference of what the two say of how sides
#: go together, from which on they are different places.
_AS_LIKELY, _DIFFERENT = 5.0, 0.5


@dataclass(frozen=True)
class FewLinks:
    """Sides of the modalities that few rows link.

    Attributes:
        sides: groups of modalities that many rows link; the first has the most rows.
        rows: for each side but the first, the rows that have something of it and something of the others, (n,) int64.
    """

    sides: tuple[tuple[str, ...], ...]
    rows: tuple[Tensor, ...]

    @classmethod
    def of(cls, blocks: ObservedBlocks, latent_dim: int) -> FewLinks | None:
        """The sides; None where enough rows link all modalities, or where none links some of them."""
        mask = blocks.observed_mask
        present = mask.double()
        both, count = present.mT @ present, present.sum(0)
        enough = torch.minimum(_FEW_SHARE * torch.minimum(count, count[:, None]), torch.tensor(_FEW_ROWS * latent_dim))
        pairs = (both >= enough).nonzero().tolist()
        patterns = torch.zeros(len(pairs), len(count), dtype=torch.bool)
        for number, pair in enumerate(pairs):
            patterns[number, pair] = True
        sides = linked_groups(blocks.names, patterns)
        if len(sides) == 1 or len(linked_groups(blocks.names, blocks.patterns)) > 1:
            return None
        of_side = [mask[:, [blocks.names.index(name) for name in side]].any(1) for side in sides]
        order = sorted(range(len(sides)), key=lambda s: -int(of_side[s].sum()))
        rows = []
        for s in order[1:]:
            others = torch.stack([of_side[t] for t in order if t != s]).any(0)
            rows.append((of_side[s] & others).nonzero().squeeze(1))
        return cls(tuple(sides[s] for s in order), tuple(rows))

    def starts(self, fitted: LinearGaussian, blocks: ObservedBlocks, seed: int) -> list[LinearGaussian]:
        """Models to start from, that differ from a fitted one in how each side but the first is turned."""
        generator = torch.Generator().manual_seed(seed)
        found = [self._turned(fitted, [self._procrustes(fitted, blocks, s) for s in range(len(self.rows))])]
        for _ in range(_RANDOM_TURNS):
            noise = [torch.randn(*[fitted.latent_dim] * 2, generator=generator, dtype=torch.float64) for _ in self.rows]
            found.append(self._turned(fitted, [torch.linalg.qr(each).Q.to(fitted.device) for each in noise]))
        return found

    def _turned(self, fitted: LinearGaussian, turns: Sequence[Tensor]) -> LinearGaussian:
        loadings = dict(fitted.loadings)
        for side, turn in zip(self.sides[1:], turns, strict=True):
            loadings |= {name: fitted.loadings[name] @ turn for name in side}
        return replace(fitted, loadings=loadings)

    def _procrustes(self, fitted: LinearGaussian, blocks: ObservedBlocks, number: int) -> Tensor:
        """The turn R that maximises sum z_own^T R z_other over the linking rows: W R then sees what the others see."""
        side, rows = self.sides[number + 1], self.rows[number]
        here = {name: name in side for name in blocks.names}
        own = _latents(fitted, blocks, rows, here)
        other = _latents(fitted, blocks, rows, {name: not there for name, there in here.items()})
        left, _, right = torch.linalg.svd(own.mT @ other)
        turn: Tensor = left @ right
        return turn

    def undecided(self, ends: Sequence[tuple[LinearGaussian, float]]) -> list[str]:
        """In words, how other ends say otherwise how sides go together and are about as likely; empty if none do.

        Args:
            ends: models and their objectives, nats, the best first.
        """
        best, highest = ends[0]
        said = []
        for side, rows in zip(self.sides[1:], self.rows, strict=True):
            others = [name for name in best.names if name not in side]
            known = _cross(best, side, others)
            for lg, objective in ends[1:]:
                apart = float((_cross(lg, side, others) - known).norm() / known.norm())
                if highest - objective < _AS_LIKELY and apart > _DIFFERENT:
                    said.append(
                        f"{len(rows)} rows link {_listed(side)} with {_listed(others)}, and fits that differ by "
                        f"{highest - objective:.1f} nats differ by {apart:.0%} in the covariances between them"
                    )
                    break
        return said


def _latents(fitted: LinearGaussian, blocks: ObservedBlocks, rows: Tensor, used: Mapping[str, bool]) -> Tensor:
    """Posterior means of the latents of some rows, (n, K), by some of the modalities that they have."""
    mask = blocks.observed_mask & torch.tensor([used[name] for name in blocks.names], device=blocks.device)
    values = {}
    for m, name in enumerate(blocks.names):
        keep = mask[rows, m]
        values[name] = blocks.values[name][torch.searchsorted(blocks.rows[name], rows[keep])]
    return posterior(fitted, ObservedBlocks(values, mask[rows])).mean


def _cross(lg: LinearGaussian, side: Sequence[str], others: Sequence[str]) -> Tensor:
    """Covariances between the features of two groups of modalities, each feature in units of its spread."""
    rows, columns = (
        torch.cat(
            [lg.loadings[n] / (lg.loadings[n].square().sum(1) + lg.noise_variance[n]).sqrt()[:, None] for n in names]
        )
        for names in (side, others)
    )
    return rows @ columns.mT


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(map(repr, names[:-1])), repr(names[-1])] if len(names) > 1 else [repr(names[0])])
