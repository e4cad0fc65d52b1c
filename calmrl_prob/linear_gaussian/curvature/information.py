"""The observed information: minus second derivatives of the log evidence, in closed form from sufficient statistics.

With features in units of their noise (Psi = I) and, for a pattern of n rows, S the inverse of W W^T + I, C the scatter
of its rows about mu, s their sum about mu,

    M = S C S,   U = S W,   Y = M W,   G = W^T S W,   H = W^T M W,   r = S s,   q = W^T r

    (w_dk, w_el)        S_de (H - n G)_kl + M_de G_kl + U_ek Y_dl + Y_ek U_dl - n U_ek U_dl + (n S - M)_de [k = l]
    (w_dk, mu_e)        S_de q_k + U_ek r_d
    (mu_d, mu_e)        n S_de
    (w_dk, log psi_e)   S_de Y_ek + M_de U_ek - n S_de U_ek
    (mu_d, log psi_e)   S_de r_e
    (log psi_d, log psi_e)   S_de M_de - n S_de^2 / 2 + (n S - M)_dd / 2 [d = e]

summed over patterns. Where M is n S, its expectation, these are the expected information; the observed one is right for
values missing at random too, the expected one only where they are missing completely at random. The cost does not
depend on the number of rows; the matrix has D (K + 1) + noise variances rows.

Source: the derivatives are those of the multivariate normal (Magnus & Neudecker, Matrix Differential Calculus, 1988);
for observed against expected information see Kenward & Molenberghs, Likelihood based frequentist inference when data
are missing at random (1998).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian.em.parameters import Parameters, Shape
from calmrl_prob.linear_gaussian.em.statistics import SufficientStatistics, pattern_features
from calmrl_prob.linear_gaussian.posterior import factorize

#: Numbers that the parts of the matrix that are made at once may hold.
_CHUNK_BUDGET = 2**23


@dataclass(frozen=True)
class Coordinates:
    """Coordinates of the parameters in the vector that the information is about, and their units.

    The vector is [W / sqrt(psi), row by row; mu / sqrt(psi); log psi] with psi held at its value in the units.

    Attributes:
        shape: the stacked layout.
        latent_dim: K.
        isotropic: one noise variance for each modality, or one for each feature.
        unit: (D,) sqrt(psi) at the point that the information was taken at.
    """

    shape: Shape
    latent_dim: int
    isotropic: bool
    unit: Tensor

    @property
    def sizes(self) -> list[int]:
        """Numbers of loadings, intercepts and noise variances."""
        total = self.shape.total
        return [total * self.latent_dim, total, len(self.shape.dims) if self.isotropic else total]

    def moved(self, parameters: Parameters, step: Tensor) -> Parameters:
        """The parameters after a step (n,)."""
        loadings, intercepts, noise = step.split(self.sizes)
        spread = noise[self.shape.feature_modality] if self.isotropic else noise
        return Parameters(
            parameters.loadings + self.unit[:, None] * loadings.view(-1, self.latent_dim),
            parameters.intercepts + self.unit * intercepts,
            parameters.noise_variance * spread.exp(),
        )

    def rotations(self, parameters: Parameters) -> Tensor:
        """An orthonormal basis (n, K (K - 1) / 2) of the steps that turn the latent and change no density."""
        loadings = parameters.loadings / self.unit[:, None]
        first, second = torch.triu_indices(self.latent_dim, self.latent_dim, offset=1)
        turns = loadings.new_zeros(*loadings.shape, len(first))
        pairs = torch.arange(len(first))
        turns[:, first, pairs] = loadings[:, second]
        turns[:, second, pairs] -= loadings[:, first]
        basis, _ = torch.linalg.qr(turns.flatten(0, 1))
        rest = basis.new_zeros(sum(self.sizes[1:]), basis.shape[1])
        return torch.cat([basis, rest])


def observed_information(
    statistics: SufficientStatistics, parameters: Parameters, *, isotropic: bool
) -> tuple[Tensor, Coordinates]:
    """Minus the Hessian of the log evidence, (n, n), nats, and the coordinates that it is in.

    Args:
        statistics: of the data.
        parameters: where; intercepts about the shift of the statistics.
        isotropic: whether there is one noise variance for each modality.

    Example:
        >>> from calmrl_prob.linear_gaussian import ObservedBlocks
        >>> blocks = ObservedBlocks.from_arrays({"x": torch.randn(50, 2).double()}, torch.ones(50, 1).bool())
        >>> at = Parameters(torch.ones(2, 1).double(), torch.zeros(2).double(), torch.ones(2).double())
        >>> information, _ = observed_information(SufficientStatistics.from_blocks(blocks), at, isotropic=True)
        >>> tuple(information.shape)  # 2 loadings, 2 intercepts, 1 noise variance
        (5, 5)
    """
    shape = Shape.of(statistics.dims, parameters.loadings.device)
    unit = parameters.noise_variance.sqrt()
    latent_dim = parameters.loadings.shape[1]
    where = Coordinates(shape, latent_dim, isotropic, unit)
    terms = _Terms.of(statistics, shape, parameters, unit)
    sizes = where.sizes
    information = unit.new_empty(sum(sizes), sum(sizes))
    first, second = sizes[0], sizes[0] + sizes[1]
    _loadings_block(terms, information[:first, :first])

    def for_noise(block: Tensor) -> Tensor:
        """Columns of log psi by feature, as the model has them."""
        if not isotropic:
            return block
        return torch.stack([block[..., part].sum(-1) for part in shape.slices], dim=-1)

    count, precision, scatter = terms.count[:, None, None], terms.precision, terms.scatter
    weighted, moved = terms.weighted, terms.moved
    cross = torch.einsum("pde,pk->dke", precision, terms.mean_latent)
    cross += torch.einsum("pek,pd->dke", weighted, terms.mean)
    information[:first, first:second] = cross.flatten(0, 1)
    information[first:second, first:second] = (count * precision).sum(0)
    cross = torch.einsum("pde,pek->dke", precision, moved - count * weighted)
    cross += torch.einsum("pde,pek->dke", scatter, weighted)
    information[:first, second:] = for_noise(cross.flatten(0, 1))
    information[first:second, second:] = for_noise((precision * terms.mean[:, None, :]).sum(0))
    noise = (precision * scatter - 0.5 * count * precision.square()).sum(0)
    noise += 0.5 * torch.diag((count * precision - scatter).diagonal(dim1=1, dim2=2).sum(0))
    information[second:, second:] = for_noise(for_noise(noise).mT).mT
    information[first:, :first] = information[:first, first:].mT
    information[second:, first:second] = information[first:second, second:].mT
    return information, where


@dataclass(frozen=True)
class _Terms:
    """For each pattern what the formulas are made of, zero where a feature is missing; features in units of noise.

    ``precision`` S, ``scatter`` M (P, D, D); ``weighted`` U, ``moved`` Y (P, D, K); ``inner`` G, ``spread`` H
    (P, K, K); ``mean`` r (P, D); ``mean_latent`` q (P, K); ``count`` n (P,).
    """

    count: Tensor
    precision: Tensor
    scatter: Tensor
    weighted: Tensor
    moved: Tensor
    inner: Tensor
    spread: Tensor
    mean: Tensor
    mean_latent: Tensor

    @classmethod
    def of(cls, statistics: SufficientStatistics, shape: Shape, parameters: Parameters, unit: Tensor) -> _Terms:
        total, latent_dim = parameters.loadings.shape
        patterns = len(statistics.scatters)
        precision = unit.new_zeros(patterns, total, total)
        scatter = torch.zeros_like(precision)
        mean = unit.new_zeros(patterns, total)
        count = unit.new_empty(patterns)
        weighted = unit.new_zeros(patterns, total, latent_dim)
        identity = torch.eye(latent_dim, dtype=unit.dtype, device=unit.device)
        for p, (present, augmented) in enumerate(statistics.scatters.items()):
            here = pattern_features(shape, present)
            loadings, intercepts = parameters.loadings[here] / unit[here, None], parameters.intercepts[here]
            count[p] = augmented[-1, -1]
            # about mu, in units of the noise
            outer = torch.outer(intercepts, augmented[:-1, -1])
            about = augmented[:-1, :-1] - outer - outer.mT + count[p] * torch.outer(intercepts, intercepts)
            about = about / (unit[here, None] * unit[here])
            totals = (augmented[:-1, -1] - count[p] * intercepts) / unit[here]
            covariance = torch.cholesky_inverse(factorize(identity + loadings.mT @ loadings))
            weighted[p, here] = loadings @ covariance
            inverse = torch.eye(len(here), dtype=unit.dtype, device=unit.device) - weighted[p, here] @ loadings.mT
            precision[p, here[:, None], here] = inverse
            scatter[p, here[:, None], here] = inverse @ about @ inverse
            mean[p, here] = inverse @ totals
        loadings = parameters.loadings / unit[:, None]
        moved = scatter @ loadings
        return cls(
            count,
            precision,
            scatter,
            weighted,
            moved,
            loadings.mT @ weighted,
            loadings.mT @ moved,
            mean,
            mean @ loadings,
        )


def _loadings_block(terms: _Terms, out: Tensor) -> None:
    """The block of the loadings, written into (D K, D K), some features at a time."""
    total, latent_dim = terms.weighted.shape[1:]
    count = terms.count[:, None, None]
    # over d, e and k, l: a sum of outer products over the patterns
    by_feature = torch.cat([terms.precision, terms.scatter, (count * terms.precision - terms.scatter).sum(0)[None]])
    identity = torch.eye(latent_dim, dtype=out.dtype, device=out.device)
    by_latent = torch.cat([terms.spread - count * terms.inner, terms.inner, identity[None]]).flatten(1)
    # over d, l and e, k: another
    rows = torch.cat([terms.weighted, terms.moved])
    columns = torch.cat([terms.moved - count * terms.weighted, terms.weighted]).flatten(1)
    view = out.view(total, latent_dim, total, latent_dim)
    step = max(1, _CHUNK_BUDGET // (total * latent_dim**2))
    for start in range(0, total, step):
        part = slice(start, start + step)
        straight = by_feature[:, part].flatten(1).mT @ by_latent  # (d e, k l)
        view[part] = straight.view(-1, total, latent_dim, latent_dim).permute(0, 2, 1, 3)
        crossed = rows[:, part].flatten(1).mT @ columns  # (d l, e k)
        view[part] += crossed.view(-1, latent_dim, total, latent_dim).permute(0, 3, 2, 1)
