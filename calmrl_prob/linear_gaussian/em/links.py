"""Several starts of a fit where few rows link some modalities with the rest.

Rows that have one modality alone tell nothing of how its latents are turned against those of another: turning its
loadings by an orthogonal matrix leaves their likelihood as it is. Only rows that have both tell, and where these are
few the likelihood has a maximum of its own for each way that they can nearly be explained, reflections above all. So
from where the first fit ended others start that differ in the turn: the best one between the latents as the two sides
see them on the linking rows (Schonemann, A generalized solution of the orthogonal Procrustes problem, 1966), and random
ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian.blocks import FeatureBlocks, ObservedBlocks, linked_groups
from calmrl_prob.linear_gaussian.em.statistics import SufficientStatistics
from calmrl_prob.linear_gaussian.posterior import factorize, posterior
from calmrl_prob.linear_gaussian.structure import LinearGaussian, solve_noise

Data = ObservedBlocks | FeatureBlocks | SufficientStatistics

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
        rows: for each side but the first, how many rows have something of it and something of the others.
    """

    sides: tuple[tuple[str, ...], ...]
    rows: tuple[int, ...]

    @classmethod
    def of(cls, data: Data, latent_dim: int) -> FewLinks | None:
        """The sides; None where enough rows link all modalities, or where none links some of them."""
        names, (mask, weight) = tuple(data.dims), _presence(data)
        present = mask.double()
        both, count = present.mT @ (present * weight[:, None]), weight @ present
        enough = torch.minimum(_FEW_SHARE * torch.minimum(count, count[:, None]), torch.tensor(_FEW_ROWS * latent_dim))
        pairs = (both >= enough).nonzero().tolist()
        patterns = torch.zeros(len(pairs), len(count), dtype=torch.bool)
        for number, pair in enumerate(pairs):
            patterns[number, pair] = True
        sides = linked_groups(names, patterns)
        if len(sides) == 1 or len(linked_groups(names, mask.unique(dim=0))) > 1:
            return None
        of_side = [mask[:, [names.index(name) for name in side]].any(1) for side in sides]
        order = sorted(range(len(sides)), key=lambda s: -float(weight @ of_side[s].double()))
        rows = []
        for s in order[1:]:
            others = torch.stack([of_side[t] for t in order if t != s]).any(0)
            rows.append(int(weight @ (of_side[s] & others).double()))
        return cls(tuple(sides[s] for s in order), tuple(rows))

    def starts(self, fitted: LinearGaussian, data: Data, seed: int) -> list[LinearGaussian]:
        """Models to start from, that differ from a fitted one in how each side but the first is turned."""
        generator = torch.Generator().manual_seed(seed)
        found = [self._turned(fitted, [_procrustes(fitted, data, side) for side in self.sides[1:]])]
        for _ in range(_RANDOM_TURNS):
            noise = [torch.randn(*[fitted.latent_dim] * 2, generator=generator, dtype=torch.float64) for _ in self.rows]
            found.append(self._turned(fitted, [torch.linalg.qr(each).Q.to(fitted.device) for each in noise]))
        return found

    def _turned(self, fitted: LinearGaussian, turns: Sequence[Tensor]) -> LinearGaussian:
        loadings = dict(fitted.loadings)
        for side, turn in zip(self.sides[1:], turns, strict=True):
            loadings |= {name: fitted.loadings[name] @ turn for name in side}
        return replace(fitted, loadings=loadings)

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
                        f"{rows} rows link {_listed(side)} with {_listed(others)}, and fits that differ by "
                        f"{highest - objective:.1f} nats differ by {apart:.0%} in the covariances between them"
                    )
                    break
        return said


def _presence(data: Data) -> tuple[Tensor, Tensor]:
    """The modalities that rows have, (R, M) bool, and how many rows each entry stands for, (R,) float64."""
    if isinstance(data, SufficientStatistics):
        mask = torch.tensor(list(data.scatters), dtype=torch.bool).view(-1, len(data.dims))
        return mask, torch.stack([scatter[-1, -1].cpu() for scatter in data.scatters.values()])
    if isinstance(data, FeatureBlocks):
        parts = data.feature_mask.split(list(data.dims.values()), dim=1)
        mask = torch.stack([part.any(1) for part in parts], dim=1)
    else:
        mask = data.observed_mask
    return mask, torch.ones(len(mask), dtype=torch.float64, device=mask.device)


def _procrustes(fitted: LinearGaussian, data: Data, side: Sequence[str]) -> Tensor:
    """The turn R that maximises sum z_own^T R z_other over the linking rows: W R then sees what the others see."""
    if isinstance(data, SufficientStatistics):
        crossed = _crossed_statistics(fitted, data, side)
    else:
        crossed = _crossed_rows(fitted, data, side)
    left, _, right = torch.linalg.svd(crossed)
    turn: Tensor = left @ right
    return turn


def _crossed_rows(fitted: LinearGaussian, data: ObservedBlocks | FeatureBlocks, side: Sequence[str]) -> Tensor:
    """Sum over the linking rows of z_own z_other^T, posterior means by one side and by the others, (K, K)."""
    mask, names = _presence(data)[0], tuple(data.dims)
    own = torch.tensor([name in side for name in names], device=mask.device)
    rows = (mask[:, own].any(1) & mask[:, ~own].any(1)).nonzero().squeeze(1)
    return _latents(fitted, data, rows, own).mT @ _latents(fitted, data, rows, ~own)


def _latents(fitted: LinearGaussian, data: ObservedBlocks | FeatureBlocks, rows: Tensor, used: Tensor) -> Tensor:
    """Posterior means of the latents of some rows, (n, K), by some of the modalities that they have, (M,) bool."""
    if isinstance(data, FeatureBlocks):
        widths = torch.tensor(list(data.dims.values()), device=used.device)
        shown = data.feature_mask[rows] & used.repeat_interleave(widths)
        return posterior(fitted, FeatureBlocks(data.dims, data.values[rows], shown)).mean
    mask = data.observed_mask & used
    values = {}
    for m, name in enumerate(data.names):
        keep = mask[rows, m]
        values[name] = data.values[name][torch.searchsorted(data.rows[name], rows[keep])]
    return posterior(fitted, ObservedBlocks(values, mask[rows])).mean


def _crossed_statistics(fitted: LinearGaussian, data: SufficientStatistics, side: Sequence[str]) -> Tensor:
    """The same from scatters: means are linear in [x; 1], of a standard normal prior."""
    shift = dict(zip(data.dims, data.shift.split(list(data.dims.values())), strict=True))
    weights = {name: solve_noise(fitted, name, fitted.loadings[name]) for name in fitted.names}
    crossed = fitted.prior_covariance.new_zeros(fitted.latent_dim, fitted.latent_dim)
    for present, scatter in data.scatters.items():
        here = [name for name, there in zip(data.dims, present, strict=True) if there]
        gains = []
        for used in ([name for name in here if name in side], [name for name in here if name not in side]):
            precision = torch.eye(fitted.latent_dim).to(crossed) + sum(weights[n].mT @ fitted.loadings[n] for n in used)
            offset = sum(((fitted.intercepts[n] - shift[n])[None] @ weights[n] for n in used), crossed[:1] * 0)
            parts = [weights[n] if n in used else weights[n] * 0 for n in here]
            gains.append(torch.cat([*parts, -offset]) @ torch.cholesky_inverse(factorize(precision)))
        crossed += gains[0].mT @ scatter @ gains[1]  # zero where one side is absent
    return crossed


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
