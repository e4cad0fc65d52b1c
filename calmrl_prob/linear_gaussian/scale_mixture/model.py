"""Gaussian scale mixtures: Student-t priors and likelihoods, each with random scales of its own.

A Student-t is a Gaussian whose covariance is divided by a scale that is itself random. For each factor f of the model
that is one, the prior of the latent (or of some latents) or the likelihood of a modality, with nu_f degrees of freedom,

    u_nf ~ Gamma(nu_f / 2, nu_f / 2)                                   mean 1
    z_n | u ~ N(m0, S0 / u_n0),     x_n^m | z_n, u ~ N(W^m z_n + mu^m, Psi^m / u_nm)

and there is one scale for the whole factor (multivariate t) or one for each of its features (independent t). Given the
scales the model is linear-Gaussian with a precision of its own for each instance, quadratic in z and linear in u:

    P_n(u) = sum_f u_nf A_f,    h_n(u) = sum_f u_nf g_nf            A_f = W^T Psi^-1 W,  g_nf = W^T Psi^-1 (x - mu)
    log p(x_n | u) = 1/2 sum_f (D_f log u_nf - u_nf s_nf) + 1/2 (h^T P^-1 h - logdet P) + const

which is what this file computes, chunk of instances by chunk. On it stand the coordinate updates of
``scale_updates.py``, the quadrature of ``scale_quadrature.py``, and EM (``scale_em.py``).

Sources: Andrews & Mallows, Scale mixtures of normal distributions (1974); Tipping & Lawrence, Variational inference for
Student-t models: robust Bayesian interpolation and generalised component analysis (2005).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from calmrl_prob._support.frozen import FrozenMapping
from calmrl_prob.errors import ArgumentError
from calmrl_prob.linear_gaussian.blocks import FeatureBlocks, ObservedBlocks
from calmrl_prob.linear_gaussian.posterior import factorize
from calmrl_prob.linear_gaussian.scale_mixture.factors import Entries, Factor, Whole, observed_part
from calmrl_prob.linear_gaussian.scale_mixture.shared_scale import sample_gamma
from calmrl_prob.linear_gaussian.structure import AboutGaussian, LinearGaussian, Sample, require_diagonal_noise

#: Numbers that the (n, K, K) arrays of a chunk of n instances may hold.
_CHUNK_BUDGET = 2**21


@dataclass(frozen=True, eq=False, repr=False)
class ScaleMixture(AboutGaussian):
    """A linear-Gaussian model of which some factors are Student-t.

    Args:
        linear_gaussian: the model given that all scales are 1. Where a factor is Student-t, its covariance there is a
            scale matrix: nu / (nu - 2) times as large is the variance, if nu > 2.
        degrees_of_freedom: for modalities whose noise is Student-t nu: shape () for one scale for all features of an
            instance, (D_m,) for one for each feature.
        prior_degrees_of_freedom: blocks of latents whose prior is Student-t, and their nu: shape () for one scale of
            the block, or one for each latent of it.

    Raises:
        ArgumentError: an unknown modality, a shape that does not fit, nu that is not positive, or blocks of latents
            that are correlated with others.

    Example:
        >>> import torch
        >>> lg = LinearGaussian({"x": torch.ones(2, 1)}, {"x": torch.zeros(2)}, {"x": torch.tensor(0.5)})
        >>> ScaleMixture(lg, {"x": torch.tensor(4.0)})
        ScaleMixture(Student-t: x; LinearGaussian(x: 2; latent_dim=1, dtype=torch.float32))
    """

    linear_gaussian: LinearGaussian
    degrees_of_freedom: Mapping[str, Tensor] = field(default_factory=dict)
    prior_degrees_of_freedom: Sequence[tuple[slice, Tensor]] = ()

    def __post_init__(self) -> None:
        """Check that the degrees of freedom fit the model."""
        lg = self.linear_gaussian
        require_diagonal_noise(lg, "linear_gaussian")
        for name, freedom in self.degrees_of_freedom.items():
            if name not in lg.dims:
                raise ArgumentError(f"degrees_of_freedom: no modality is called {name!r}; there are {list(lg.names)}.")
            _check_freedom(f"degrees_of_freedom[{name!r}]", freedom, lg.dims[name])
        covariance = lg.prior_covariance
        for block, freedom in self.prior_degrees_of_freedom:
            inside = torch.zeros(lg.latent_dim, dtype=torch.bool, device=covariance.device)
            inside[block] = True
            _check_freedom("prior_degrees_of_freedom", freedom, int(inside.sum()))
            within = covariance[inside][:, inside]
            mixed = freedom.ndim == 1 and bool((within - torch.diag(within.diagonal())).any())
            if mixed or bool(covariance[inside][:, ~inside].any()):
                raise ArgumentError(
                    "prior_degrees_of_freedom: latents that have different scales have to be uncorrelated in the prior."
                )
        order = {name: self.degrees_of_freedom[name] for name in lg.names if name in self.degrees_of_freedom}
        object.__setattr__(self, "degrees_of_freedom", FrozenMapping(order))
        object.__setattr__(self, "prior_degrees_of_freedom", tuple(self.prior_degrees_of_freedom))

    def map(self, function: Callable[[Tensor], Tensor]) -> ScaleMixture:
        """A copy with ``function`` applied to every parameter tensor."""
        return ScaleMixture(
            self.linear_gaussian.map(function),
            {name: function(freedom) for name, freedom in self.degrees_of_freedom.items()},
            [(block, function(freedom)) for block, freedom in self.prior_degrees_of_freedom],
        )

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> ScaleMixture:
        """A copy in another floating-point type, on another device, or both."""
        return self.map(lambda value: value.to(dtype=dtype, device=device))

    def detach(self) -> ScaleMixture:
        """A copy cut off from the autograd graph."""
        return self.map(lambda value: value.detach())

    def select(self, names: Sequence[str]) -> ScaleMixture:
        """The model of some of its modalities.

        Raises:
            SchemaError: a name is not a modality of the model.
        """
        freedom = {name: self.degrees_of_freedom[name] for name in names if name in self.degrees_of_freedom}
        return ScaleMixture(self.linear_gaussian.select(names), freedom, self.prior_degrees_of_freedom)

    def sample(self, num_instances: int, generator: torch.Generator | None = None) -> Sample:
        """N instances drawn: scales, latents, all modalities.

        Args:
            num_instances: N, how many.
            generator: source of randomness; torch's global one if not given.
        """
        lg = self.linear_gaussian
        latents, features = lg.sample(num_instances, generator)
        wide = latents.clone()
        for block, freedom in self.prior_degrees_of_freedom:
            root = _scale_roots(freedom, num_instances, generator)
            wide[:, block] = lg.prior_mean[block] + (latents - lg.prior_mean)[:, block] * root
        found = {}
        for name, loadings in lg.loadings.items():
            noise = features[name] - latents @ loadings.mT - lg.intercepts[name]
            if name in self.degrees_of_freedom:
                noise = noise * _scale_roots(self.degrees_of_freedom[name], num_instances, generator)
            found[name] = wide @ loadings.mT + lg.intercepts[name] + noise
        return Sample(wide, found)

    def about(self, shift: Tensor) -> ScaleMixture:
        """The model of the data less ``shift``, (D,) stacked over modalities."""
        lg = self.linear_gaussian
        parts = dict(zip(lg.names, shift.split(list(lg.dims.values())), strict=True))
        intercepts = {name: intercept - parts[name] for name, intercept in lg.intercepts.items()}
        moved = LinearGaussian(lg.loadings, intercepts, lg.noise_variance, lg.prior_mean, lg.prior_covariance)
        return ScaleMixture(moved, self.degrees_of_freedom, self.prior_degrees_of_freedom)

    def __repr__(self) -> str:
        """One line: which factors are Student-t, and the Gaussian model."""
        sites = ["prior"] * bool(self.prior_degrees_of_freedom) + list(self.degrees_of_freedom)
        return f"ScaleMixture(Student-t: {', '.join(sites)}; {self.linear_gaussian})"

    def chunks(self, blocks: ObservedBlocks | FeatureBlocks) -> Iterator[Chunk]:
        """The instances in chunks whose per-instance K x K algebra fits into memory."""
        step = max(16, _CHUNK_BUDGET // self.linear_gaussian.latent_dim**2)
        for start in range(0, blocks.num_instances, step):
            yield Chunk(self, blocks, start, min(start + step, blocks.num_instances))


def _scale_roots(freedom: Tensor, num_instances: int, generator: torch.Generator | None) -> Tensor:
    """u^-1/2 of fresh scales u ~ Gamma(nu / 2, nu / 2), (N, 1) for one scale of the factor or (N, D)."""
    return sample_gamma(freedom.reshape(1, -1).expand(num_instances, -1), generator).rsqrt()


def _check_freedom(argument: str, freedom: Tensor, width: int) -> None:
    if freedom.shape not in ((), (width,)):
        raise ArgumentError(f"{argument}: expected shape () or ({width},), got {tuple(freedom.shape)}.")
    if not bool(((freedom > 0) & (freedom < torch.inf)).all()):  # NaN too
        raise ArgumentError(f"{argument}: expected positive finite numbers, got {freedom.tolist()}.")


class Chunk:
    """The factors of the instances from ``start`` to ``stop``, those that are Gaussian already put together.

    Attributes:
        rows: where the instances stand.
        factors: those with scales: latents first, then modalities in order.
        names: for each of them its modality; None for latents.
        base: precision (n, K, K), natural mean (n, K) and squares (n,) of all Gaussian factors together.
        constant: what log p(x_n | u) holds besides, (n,).
    """

    def __init__(self, model: ScaleMixture, blocks: ObservedBlocks | FeatureBlocks, start: int, stop: int) -> None:
        self.rows = slice(start, stop)
        self.size = stop - start
        self._lg = lg = model.linear_gaussian
        self.factors: list[Factor] = []
        self.names: list[str | None] = []
        half_logdet = factorize(lg.prior_covariance).diagonal().log().sum()
        self.constant = -half_logdet.expand(self.size)
        fixed: list[Factor] = []
        for block, freedom in [*model.prior_degrees_of_freedom, *self._gaussian_latents(model)]:
            self._add(self._prior(block, freedom), None, fixed)
        for name in lg.names:
            factor = self._likelihood(name, blocks, model.degrees_of_freedom.get(name))
            self._add(factor, name, fixed)
            density = -0.5 * (math.log(2 * math.pi) + lg.noise_variance[name].log())
            if isinstance(factor, Whole):
                self.constant = self.constant + (factor.count > 0) * density.sum()
            else:
                self.constant = self.constant + factor.mask @ density
        one = self.constant.new_ones(())
        self.base: list[Tensor] = [
            self.constant.new_zeros(self.size, lg.latent_dim, lg.latent_dim),
            self.constant.new_zeros(self.size, lg.latent_dim),
            torch.zeros_like(self.constant),
        ]
        for factor in fixed:
            unit = one.expand(factor.count.shape)
            for total, part in zip(self.base, (factor.precision(unit), *factor.weighted(unit)), strict=True):
                total += part

    def _add(self, factor: Factor, name: str | None, fixed: list[Factor]) -> None:
        if factor.freedom is None:
            fixed.append(factor)
        else:
            self.factors.append(factor)
            self.names.append(name)

    def _gaussian_latents(self, model: ScaleMixture) -> list[tuple[slice | Tensor, Tensor | None]]:
        rest = torch.ones(self._lg.latent_dim, dtype=torch.bool, device=self._lg.device)
        for block, _ in model.prior_degrees_of_freedom:
            rest[block] = False
        return [(rest.nonzero().squeeze(1), None)] if bool(rest.any()) else []

    def _prior(self, block: slice | Tensor, freedom: Tensor | None) -> Factor:
        """The prior of some latents as a likelihood of its mean: m0 = z + noise."""
        lg = self._lg
        places = torch.arange(lg.latent_dim, device=lg.device)[block]
        loadings = torch.eye(lg.latent_dim, dtype=lg.dtype, device=lg.device)[places]
        mean, covariance = lg.prior_mean[places], lg.prior_covariance[places][:, places]
        if freedom is not None and freedom.ndim:
            rows = mean.expand(self.size, -1)
            return Entries(freedom, loadings, covariance.diagonal(), rows, torch.ones_like(rows), tied=False)
        weights = torch.cholesky_solve(loadings, factorize(covariance))
        natural = mean @ weights
        everyone = mean.new_full((self.size,), len(places))
        squares = (natural[places] @ mean).expand(self.size)
        return Whole(freedom, loadings.mT @ weights, natural.expand(self.size, -1), squares, everyone)

    def _likelihood(self, name: str, blocks: ObservedBlocks | FeatureBlocks, freedom: Tensor | None) -> Factor:
        lg = self._lg
        loadings, noise = lg.loadings[name], lg.noise_variance[name]
        whole = isinstance(blocks, ObservedBlocks) and (freedom is None or freedom.ndim == 0)
        rows, values, mask = observed_part(blocks, name, self.rows)
        centred = torch.where(mask, values.to(lg.dtype) - lg.intercepts[name], 0)
        place = rows - self.rows.start
        if not whole:
            full, present = (x.new_zeros(self.size, len(noise)) for x in (centred, centred))
            full = full.index_copy(0, place, centred)
            present = present.index_copy(0, place, mask.to(lg.dtype))
            return Entries(freedom, loadings, noise, full, present, tied=freedom is None or freedom.ndim == 0)
        weights = loadings / noise[:, None]
        natural = centred.new_zeros(self.size, lg.latent_dim).index_copy(0, place, centred @ weights)
        squares = centred.new_zeros(self.size).index_copy(0, place, centred.square() @ (1 / noise))
        count = centred.new_zeros(self.size).index_fill(0, place, float(len(noise)))
        return Whole(freedom, loadings.mT @ weights, natural, squares, count)

    def given(self, scales: Sequence[Tensor]) -> Given:
        """The Gaussian model given scales, one tensor for each factor in the shape of its ``count``."""
        precision, natural, squares = (part.clone() for part in self.base)
        for factor, scale in zip(self.factors, scales, strict=True):
            precision += factor.precision(scale)
            terms = factor.weighted(scale)
            natural += terms[0]
            squares += terms[1]
        factor_ = factorize(precision)
        mean = torch.cholesky_solve(natural[:, :, None], factor_).squeeze(2)
        half_logdet = factor_.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        evidence = self.constant - 0.5 * (squares - (natural * mean).sum(1)) - half_logdet
        return Given(mean, factor_, evidence)

    def half_counts(self, log_scales: Sequence[Tensor]) -> Tensor:
        """1/2 sum_f D_f log u_f, (n,): what scales add to the log evidence beside ``Given.evidence``."""
        total = torch.zeros_like(self.constant)
        for factor, log_scale in zip(self.factors, log_scales, strict=True):
            total = total + (0.5 * factor.count * log_scale).reshape(self.size, -1).sum(1)
        return total


@dataclass(frozen=True)
class Given:
    """The posterior of a chunk given scales.

    Attributes:
        mean: (n, K).
        factor: lower Cholesky factors of the precisions, (n, K, K).
        evidence: log p(x_n | u) less 1/2 sum_f D_f log u_f, (n,).
    """

    mean: Tensor
    factor: Tensor
    evidence: Tensor

    @property
    def covariance(self) -> Tensor:
        """(n, K, K)."""
        return torch.cholesky_inverse(self.factor)
