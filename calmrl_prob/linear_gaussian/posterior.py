"""The exact posterior of the latents, and the log marginal likelihood.

With Omega_n the modalities that instance n has, and Psi^m the noise covariance (diagonal, or as ``noise.py`` has it):

    P_n = S0^-1 + sum_{m in Omega_n} W^mT Psi^m^-1 W^m                         (one for each missing pattern)
    h_n = S0^-1 m0 + sum_{m in Omega_n} W^mT Psi^m^-1 (x_n^m - mu^m)
    z_n | x_n ~ N(V_n h_n, V_n),   V_n = P_n^-1
    log p(x_n) = sum_{m in Omega_n} log N(x_n^m; mu^m, Psi^m)
                 + 1/2 (h_n^T V_n h_n - m0^T S0^-1 m0 - logdet P_n - logdet S0)

Source: Bishop, Pattern Recognition and Machine Learning (2006), section 12.2, extended to missing blocks as in Liu et
al., Calibrated Multimodal Representation Learning with Missing Modalities, arXiv 2511.12034.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from calmrl_prob.errors import NumericalError
from calmrl_prob.linear_gaussian.blocks import FeatureBlocks, ObservedBlocks, Patterned
from calmrl_prob.linear_gaussian.grouping import Grouping
from calmrl_prob.linear_gaussian.layout import PatternLayout
from calmrl_prob.linear_gaussian.noise import CorrelatedNoise
from calmrl_prob.linear_gaussian.products import CHUNK_BUDGET, row_chunks
from calmrl_prob.linear_gaussian.structure import LinearGaussian, require_diagonal_noise, solve_noise

#: Nats of an instance's evidence that rounding in the data's type may take; beyond, products run in the model's type.
_LOST_NATS = 3e-3


class Posterior:
    """The posterior N(mean_n, covariance_n) of the latent of each of N instances.

    Attributes:
        linear_gaussian: the model it belongs to.
        patterns: (P, M) bool of modalities, (P, D) of features where single ones may be missing; pattern_index: (N,)
            int64.
        natural_mean: h_n, shape (N, K).
        mean: (N, K), latent units.
        mahalanobis: (x_n - E x_n)^T Cov[x_n]^-1 (x_n - E x_n) of what the instance has, shape (N,).
        log_marginal: log p(x_n), shape (N,), nats.
    """

    def __init__(
        self,
        linear_gaussian: LinearGaussian,
        blocks: Patterned,
        natural_mean: Tensor,
        mean: Tensor,
        mahalanobis: Tensor,
        log_marginal: Tensor,
        group_precision: Tensor,
    ) -> None:
        self.linear_gaussian = linear_gaussian
        self.patterns, self._group_patterns = blocks.patterns, blocks.group_patterns
        self.pattern_index = blocks.pattern_index
        self.natural_mean = natural_mean
        self.mean = mean
        self.mahalanobis = mahalanobis
        self.log_marginal = log_marginal
        self._group_precision = group_precision  # (G + 1, K, K), the prior's last

    def subset(self, rows: slice) -> Posterior:
        """The posterior of some of the instances, with their patterns alone."""
        new = object.__new__(type(self))
        kept, new.pattern_index = self.pattern_index[rows].unique(return_inverse=True)
        new.linear_gaussian, new._group_precision = self.linear_gaussian, self._group_precision
        new.patterns, new._group_patterns = self.patterns[kept], self._group_patterns[kept]
        new.natural_mean, new.mean = self.natural_mean[rows], self.mean[rows]
        new.mahalanobis, new.log_marginal = self.mahalanobis[rows], self.log_marginal[rows]
        return new

    @cached_property
    def pattern_precision(self) -> Tensor:
        """P_n of each pattern, shape (P, K, K)."""
        return self.precision_of(slice(None))

    def precision_of(self, patterns: slice) -> Tensor:
        """P_n of some patterns, shape (p, K, K), not kept."""
        return assemble_precision(self._group_patterns[patterns], self._group_precision)

    @cached_property
    def pattern_covariance(self) -> Tensor:
        """V_n of each pattern, shape (P, K, K)."""
        return torch.cholesky_inverse(factorize(self.pattern_precision))

    @property
    def covariance(self) -> Tensor:
        """V_n of each instance, shape (N, K, K): N K^2 numbers, so prefer ``pattern_covariance``."""
        return self.pattern_covariance[self.pattern_index]

    def feature_variance(self, loadings: Tensor) -> Tensor:
        """diag(W V_n W^T) for each pattern: the variance of W z given the data.

        Args:
            loadings: W, shape (D, K).

        Returns:
            Shape (P, D). The covariances are made and dropped in chunks of patterns.
        """
        weights = loadings.to(self.mean.dtype)
        out = weights.new_empty(len(self.patterns), len(weights))
        step = max(1, CHUNK_BUDGET // max(weights.numel(), weights.shape[1] ** 2))
        for start in range(0, len(self.patterns), step):
            chosen = slice(start, start + step)
            factor = factorize(self.precision_of(chosen))
            whitened = torch.linalg.solve_triangular(factor, weights.mT.expand(len(factor), -1, -1), upper=False)
            out[chosen] = whitened.square().sum(dim=1)
        return out

    def mean_feature_variance(self, loadings: Tensor, patterns: Tensor) -> Tensor:
        """The mean of diag(W V_n W^T) over some instances: one product, where ``feature_variance`` has one a pattern.

        Args:
            loadings: W, shape (D, K).
            patterns: (n,) int64, the pattern of each of them.

        Returns:
            Shape (D,).
        """
        weights, mean = loadings.to(self.mean.dtype), torch.zeros_like(self._group_precision[0])
        kept, counts = patterns.unique(return_counts=True)
        step = max(1, CHUNK_BUDGET // mean.numel())
        for some, count in zip(kept.split(step), counts.split(step), strict=True):
            factor = factorize(assemble_precision(self._group_patterns[some], self._group_precision))
            mean += torch.einsum("p,pij->ij", count.to(mean), torch.cholesky_inverse(factor))
        return ((weights @ mean) * weights).sum(1) / max(len(patterns), 1)

    def sample(self, num_draws: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw latents.

        Returns:
            Shape (S, N, K); draws are independent.
        """
        shape = (num_draws, *self.mean.shape)
        noise = torch.randn(*shape, generator=generator, dtype=self.mean.dtype, device=self.mean.device)
        rows = torch.arange(shape[1], device=self.mean.device).expand(shape[:2])
        return self.mean + self.deviate(noise.flatten(0, 1), rows.flatten()).view(shape)

    def deviate(self, noise: Tensor, rows: Tensor) -> Tensor:
        """Turn standard normal noise into deviations from the mean: e -> L^-T e with P = L L^T, of covariance V.

        Args:
            noise: shape (R, K).
            rows: (R,) int64, the instance that each row of noise is for; any order, any number of times each.

        Returns:
            Shape (R, K).
        """
        wanted = self.pattern_index[rows]
        out = torch.empty_like(noise)
        step = max(1, CHUNK_BUDGET // self.mean.shape[1] ** 2)
        for start in range(0, len(self.patterns), step):
            factor = factorize(self.precision_of(slice(start, start + step)))
            stop = start + len(factor)
            chosen = ((wanted >= start) & (wanted < stop)).nonzero().squeeze(1)
            order = chosen[torch.argsort(wanted[chosen], stable=True)]
            counts = torch.bincount(wanted[order] - start, minlength=len(factor)).tolist()
            for local, members in enumerate(order.split(counts)):
                if len(members):
                    out[members] = torch.linalg.solve_triangular(factor[local].mT, noise[members].mT, upper=True).mT
        return out


@dataclass(frozen=True)
class Projection:
    """All that a posterior needs of the data, whatever the prior of the latent is.

    Attributes:
        natural: sum_{m in Omega_n} W^mT Psi^m^-1 (x_n^m - mu^m), shape (N, K).
        squares: sum_{m in Omega_n} (x_n^m - mu^m)^T Psi^m^-1 (x_n^m - mu^m), shape (N,).
        group_precision: W^mT Psi^m^-1 W^m of each group, shape (G, K, K).
    """

    natural: Tensor
    squares: Tensor
    group_precision: Tensor


def posterior(
    linear_gaussian: LinearGaussian, blocks: ObservedBlocks | FeatureBlocks, projection: Projection | None = None
) -> Posterior:
    """The exact posterior of every instance: one Cholesky factorisation per missing pattern, none per row.

    Args:
        linear_gaussian: the model, in the floating-point type that the K-dimensional algebra is to use.
        blocks: N instances with any modalities missing, even all, or (``FeatureBlocks``) any features; modalities
            as in the model.
        projection: what ``project_data`` returns for these data and for a model that differs in its prior at most; made
            here if not given. Posteriors under many priors can share it, and with it all the large products.

    Returns:
        The posterior, with natural means, means and log marginals of all instances.

    Raises:
        NumericalError: a posterior precision is not positive definite in this floating-point type, or the evidence of
            an instance is not finite.

    Example:
        >>> import torch
        >>> from calmrl_prob.linear_gaussian import LinearGaussian, ObservedBlocks, posterior
        >>> lg = LinearGaussian({"x": torch.ones(1, 1)}, {"x": torch.zeros(1)}, {"x": torch.tensor(1.0)})
        >>> data = ObservedBlocks.from_arrays({"x": torch.tensor([[2.0], [9.0]])}, torch.tensor([[True], [False]]))
        >>> posterior(lg, data).mean.squeeze(1).tolist()  # the second instance lacks x: prior mean
        [1.0, 0.0]
    """
    projection = project_data(linear_gaussian, blocks) if projection is None else projection
    factor = factorize(linear_gaussian.prior_covariance)
    prior_logdet = 2 * factor.diagonal().log().sum()
    prior_natural = torch.cholesky_solve(linear_gaussian.prior_mean[:, None], factor).squeeze(1)
    natural_mean = projection.natural + prior_natural
    group_precision = torch.cat([projection.group_precision, torch.cholesky_inverse(factor)[None]])
    layout = PatternLayout(blocks.pattern_index, blocks.pattern_counts, linear_gaussian.latent_dim)
    padded = natural_mean.new_zeros(layout.num_slots, linear_gaussian.latent_dim).index_copy(
        0, layout.slot, natural_mean
    )
    solved, logdets = [], natural_mean.new_empty(blocks.num_patterns)
    members = blocks.group_patterns
    for bucket in layout.buckets:
        precision = assemble_precision(members[bucket.patterns], group_precision)
        factor = factorize(precision)
        logdets[bucket.patterns] = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        rows = padded[bucket.start : bucket.stop].view(len(bucket.patterns), bucket.capacity, -1)
        solved.append(torch.cholesky_solve(rows.mT, factor).mT.reshape(-1, linear_gaussian.latent_dim))
    mean = torch.cat(solved)[layout.slot] if solved else natural_mean
    constants = _pattern_constants(linear_gaussian, blocks, logdets, prior_logdet)
    mahalanobis = projection.squares + linear_gaussian.prior_mean @ prior_natural - (natural_mean * mean).sum(1)
    log_marginal = constants[blocks.pattern_index] - 0.5 * mahalanobis
    broken = (~log_marginal.isfinite()).nonzero().flatten()
    if len(broken):
        raise NumericalError(
            f"blocks: the evidence of {len(broken)} instances is not finite, first row {int(broken[0])}. Their values "
            "are not finite, or so far from the model's that squares overflow; rescale or remove them."
        )
    return Posterior(
        linear_gaussian,
        blocks,
        natural_mean,
        mean,
        mahalanobis,
        log_marginal,
        group_precision,
    )


def project_data(linear_gaussian: LinearGaussian, blocks: ObservedBlocks | FeatureBlocks) -> Projection:
    """The products of the data with loadings and noise: all that is large in :func:`posterior`."""
    if isinstance(blocks, FeatureBlocks):
        require_diagonal_noise(linear_gaussian, "blocks")
        natural, squares = _project_features(linear_gaussian, blocks)
        return Projection(natural, squares, group_precisions(linear_gaussian, blocks.grouping))
    natural, squares = _project(linear_gaussian, blocks)
    return Projection(natural, squares, torch.stack(_modality_precisions(linear_gaussian)))


def log_marginal(linear_gaussian: LinearGaussian, blocks: ObservedBlocks | FeatureBlocks) -> Tensor:
    """log p(x_n) of what each instance has, shape (N,), in nats; 0 for an instance that has nothing."""
    return posterior(linear_gaussian, blocks).log_marginal


def modality_precisions(linear_gaussian: LinearGaussian) -> Tensor:
    """W^mT Psi^m^-1 W^m for each modality and, last, S0^-1; shape (M + 1, K, K)."""
    prior = torch.cholesky_inverse(factorize(linear_gaussian.prior_covariance))
    return torch.stack([*_modality_precisions(linear_gaussian), prior])


def _modality_precisions(lg: LinearGaussian) -> list[Tensor]:
    return [loadings.mT @ solve_noise(lg, name, loadings) for name, loadings in lg.loadings.items()]


def group_precisions(linear_gaussian: LinearGaussian, grouping: Grouping) -> Tensor:
    """sum_{d in g} w_d w_d^T / psi_d of groups of features, shape (G, K, K)."""
    loadings = torch.cat(list(linear_gaussian.loadings.values()))
    weights = loadings / torch.cat(list(linear_gaussian.noise_variance.values()))[:, None]
    return grouping.products(loadings, weights)


def assemble_precision(patterns: Tensor, group_precision: Tensor) -> Tensor:
    """P of each pattern, shape (P, K, K), from the precisions of its groups: one matrix product."""
    latent_dim = group_precision.shape[-1]
    flat = group_precision.reshape(len(group_precision), -1)
    return torch.addmm(flat[-1], patterns.to(flat.dtype), flat[:-1]).view(-1, latent_dim, latent_dim)


def factorize(matrices: Tensor) -> Tensor:
    """Lower Cholesky factors of (..., K, K) positive-definite matrices.

    Raises:
        NumericalError: one is not positive definite, or not finite.
    """
    factor: Tensor
    factor, failures = torch.linalg.cholesky_ex(matrices)
    require_definite(failures)
    return factor


def require_definite(failures: Tensor) -> None:
    """Refuse factorisations that failed.

    Args:
        failures: what ``torch.linalg.cholesky_ex`` reports: 0 where it went well, and not 0 for NaN either.

    Raises:
        NumericalError: one of them failed.
    """
    if bool(failures.any()):
        raise NumericalError(
            "precision or covariance: expected positive-definite matrices, got one that is not, or is not finite. "
            "Use float64, raise the noise floor, or look for loadings that are not finite."
        )


def _pattern_constants(lg: LinearGaussian, blocks: Patterned, logdets: Tensor, prior_logdet: Tensor) -> Tensor:
    """Constants of log p(x_n) beside the Mahalanobis distance, shape (P,): -1/2 logdet(2 pi Cov[x_n])."""
    per_group = -0.5 * (math.log(2 * math.pi) + torch.cat(list(lg.noise_variance.values())).log())
    if isinstance(blocks, ObservedBlocks):
        by_name = zip(lg.names, per_group.split(list(lg.dims.values())), strict=True)
        per_group = torch.stack([_group_constant(lg, name, part) for name, part in by_name])
    else:
        per_group = blocks.grouping.sums(per_group)
    constants: Tensor = blocks.group_patterns.to(logdets.dtype) @ per_group - 0.5 * (logdets + prior_logdet)
    return constants


def _group_constant(lg: LinearGaussian, name: str, diagonal: Tensor) -> Tensor:
    """-1/2 logdet(2 pi Psi^m), given what it is for each feature where noise is diagonal."""
    correlated = lg.correlated_noise(name)
    if correlated is None:
        return diagonal.sum()
    return -0.5 * (len(diagonal) * math.log(2 * math.pi) + correlated.log_determinant())


def _project(lg: LinearGaussian, blocks: ObservedBlocks) -> tuple[Tensor, Tensor]:
    """sum_m W^T Psi^-1 (x - mu), shape (N, K), and sum_m (x - mu)^T Psi^-1 (x - mu), shape (N,).

    The products run in the data's type on x - c, with c the intercept rounded to that type; the remainder mu - c is
    put right in the model's type. So nothing is lost when the mean is many times the spread.
    """
    natural = lg.prior_mean.new_zeros(blocks.num_instances, lg.latent_dim)
    squares = natural.new_zeros(blocks.num_instances)
    for name, values in blocks.values.items():
        if not len(values) and not torch.is_grad_enabled():  # nothing to add; gradients of 0 are gradients
            continue
        correlated = lg.correlated_noise(name)
        if correlated is not None:
            product, square = _project_correlated(lg, name, correlated, values)
            natural = natural.index_add(0, blocks.rows[name], product)
            squares = squares.index_add(0, blocks.rows[name], square)
            continue
        precision = 1 / lg.noise_variance[name]
        weights = lg.loadings[name] * precision[:, None]
        kind = _accumulation_type(lg.loadings[name], lg.noise_variance[name], values)
        shift = lg.intercepts[name].to(values.dtype)
        rest = lg.intercepts[name] - shift.to(lg.dtype)
        # the last column carries the linear term of the square about the rounded shift
        right = torch.cat([weights, (precision * rest)[:, None]], dim=1).to(kind)
        rest_projected = rest @ weights
        rest_square = (rest.square() * precision).sum()
        spread = precision.to(kind)
        products, norms = [], []
        for chunk in row_chunks(len(values), values.shape[1]):
            centred = (values[chunk] - shift).to(kind)
            products.append((centred @ right).to(natural.dtype))
            norms.append((centred.square() @ spread).to(natural.dtype))
        product, rows = torch.cat(products), blocks.rows[name]
        natural = natural.index_add(0, rows, product[:, :-1] - rest_projected)
        squares = squares.index_add(0, rows, torch.cat(norms) - 2 * product[:, -1] + rest_square)
    return natural, squares


def _accumulation_type(loadings: Tensor, noise_variance: Tensor, values: Tensor) -> torch.dtype:
    """The type that products with the data run in: the model's where, in the data's, rounding would show.

    The evidence is a difference of sums of about sum_d (|w_d|^2 + psi_d) / psi_d, which grow as noise falls.
    """
    if values.dtype.itemsize >= loadings.dtype.itemsize:
        return values.dtype
    sums = (loadings.detach().square().sum(1) / noise_variance.detach()).sum() + len(loadings)
    lost = torch.finfo(values.dtype).eps * float(sums)
    return values.dtype if lost < _LOST_NATS else loadings.dtype


def _project_correlated(lg: LinearGaussian, name: str, noise: CorrelatedNoise, values: Tensor) -> tuple[Tensor, Tensor]:
    """W^T Psi^-1 (x - mu), (n, K), and (x - mu)^T Psi^-1 (x - mu), (n,), of one modality; as :func:`_project`."""
    shift = lg.intercepts[name].to(values.dtype)
    rest = lg.intercepts[name] - shift.to(lg.dtype)
    weights = noise.solve(torch.cat([lg.loadings[name], rest[:, None]], dim=1))
    kind = _accumulation_type(torch.cat([lg.loadings[name], noise.factor], dim=1), noise.specific, values)
    right = weights.to(kind)
    products, norms = [], []
    for chunk in row_chunks(len(values), values.shape[1]):
        centred = (values[chunk] - shift).to(kind)
        products.append((centred @ right).to(lg.dtype))
        norms.append(noise.squares(centred).to(lg.dtype))
    product = torch.cat(products)
    square = torch.cat(norms) - 2 * product[:, -1] + rest @ weights[:, -1]
    return product[:, :-1] - rest @ weights[:, :-1], square


def _project_features(lg: LinearGaussian, blocks: FeatureBlocks) -> tuple[Tensor, Tensor]:
    """The same where single features may be missing; row chunks in the model's type."""
    loadings, intercepts = torch.cat(list(lg.loadings.values())), torch.cat(list(lg.intercepts.values()))
    precision = 1 / torch.cat(list(lg.noise_variance.values()))
    naturals, squares = [], []
    for chunk in row_chunks(blocks.num_instances, len(intercepts)):
        centred = torch.where(blocks.feature_mask[chunk], blocks.values[chunk].to(lg.dtype) - intercepts, 0)
        naturals.append(centred @ (loadings * precision[:, None]))
        squares.append(centred.square() @ precision)
    return torch.cat(naturals), torch.cat(squares)
