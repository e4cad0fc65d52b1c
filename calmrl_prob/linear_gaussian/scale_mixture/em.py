"""EM for Gaussian scale mixtures: Student-t prior, Student-t noise of modalities, or both, with missing modalities.

Given the expected scales every M-step is that of the Gaussian model with rows weighted by them, factor by factor; for
the modality m, with z~ = [z; 1],

    [W^m, mu^m] = (sum_n x_n E[u_nm z~_n]^T) (sum_n E[u_nm z~_n z~_n^T])^-1
    psi         = (sum_n E[u_nm] x_n^2 - [W, mu] . sum_n x_n E[u_nm z~_n]) / n_m
    nu_m        : 1 + log(nu/2) - digamma(nu/2) + mean_n (E[log u_nm] - E[u_nm]) = 0

The E-step is exact, by quadrature, where an instance has one scale: then this is EM on the evidence. Where it has
several, the E-step is that of coordinate updates, and what never falls is the evidence lower bound. Either way scales
are expanded (PX-EM): noise is divided by the mean scale of its modality, the latent's covariance by that of the prior.

Sources: Liu & Rubin, ML estimation of the t distribution using EM and its extensions, ECM and ECME (1995); Tipping &
Lawrence, Variational inference for Student-t models (2005); Qi & Jaakkola, Parameter expanded variational Bayesian
methods (2006).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from calmrl_prob.errors import ArgumentError
from calmrl_prob.linear_gaussian.blocks import FeatureBlocks, ObservedBlocks
from calmrl_prob.linear_gaussian.em.acceleration import AndersonGuess
from calmrl_prob.linear_gaussian.em.convergence import Evaluation, ascend
from calmrl_prob.linear_gaussian.em.em import EMResult, gaussian_start
from calmrl_prob.linear_gaussian.em.expectation import Moments, Totals
from calmrl_prob.linear_gaussian.em.maximization import maximize
from calmrl_prob.linear_gaussian.em.parameters import Parameters, Shape
from calmrl_prob.linear_gaussian.em.preparation import (
    mean_variance,
    noise_model_for,
    require_same_shape,
    require_usable,
)
from calmrl_prob.linear_gaussian.em.rowwise import ModalityStep
from calmrl_prob.linear_gaussian.grouping import Grouping
from calmrl_prob.linear_gaussian.scale_mixture.degrees_of_freedom import MOST, START_FREEDOM, from_expected_scales
from calmrl_prob.linear_gaussian.scale_mixture.expectation import PRIOR, ScaleMoments, scale_moments
from calmrl_prob.linear_gaussian.scale_mixture.model import ScaleMixture
from calmrl_prob.linear_gaussian.scale_mixture.options import ScaleEMOptions
from calmrl_prob.linear_gaussian.structure import LinearGaussian

#: Sweeps of coordinate updates in one E-step.
_SWEEPS = 2


@dataclass(frozen=True)
class Point:
    """Parameters, degrees of freedom of each Student-t factor, and the expected scales that updates start from."""

    parameters: Parameters
    freedom: dict[str, float]
    scales: list[Tensor] | None

    def flatten(self) -> Tensor:
        """One vector in which convex steps are legal."""
        freedom = torch.tensor(list(self.freedom.values()), dtype=torch.float64)
        return torch.cat([self.parameters.flatten(), freedom.log().to(self.parameters.intercepts.device)])

    def unflatten(self, vector: Tensor, floor: Tensor, least: float) -> Point:
        """The inverse, within limits; degrees of freedom that are not learned stay as they are."""
        first, second = vector.split([len(vector) - len(self.freedom), len(self.freedom)])
        guessed = dict(zip(self.freedom, second.exp().clamp(least, MOST).tolist(), strict=True))
        freedom = guessed if least else self.freedom
        return Point(self.parameters.unflatten(first).with_floor(floor), freedom, self.scales)


class ScaleStep:
    """The E-step, and what the M-step reads of the data.

    Args:
        blocks: the observed rows about a shift.
        latent_dim: K.
    """

    def __init__(self, blocks: ObservedBlocks, latent_dim: int) -> None:
        self._blocks = blocks
        self.rows = ModalityStep(blocks, latent_dim)
        self.shape = self.rows.shape

    def __call__(self, point: Point) -> Evaluation[Point, ScaleMoments]:
        """Moments, and the evidence or its bound."""
        shift = torch.zeros_like(point.parameters.intercepts)
        model = _model(point.parameters.to_linear_gaussian(self.shape, shift), point.freedom)
        found = scale_moments(model, self._blocks, point.scales, _SWEEPS)
        scales = found.scales if len(point.freedom) > 1 else None
        return Evaluation(replace(point, scales=scales), found, found.evidence, found.evidence)

    def summary(self, moments: ScaleMoments) -> tuple[WeightedTotals, Moments]:
        """The moments as the M-step takes them."""
        totals = Totals(self.rows.totals.count, moments.total, moments.square)
        latent = torch.cat([moments.latent[name] for name in (*self.shape.dims, PRIOR)])
        summary = WeightedTotals(self.shape, totals, self.rows.feature_count, self.rows.grouping)
        return summary, Moments(moments.evidence, moments.cross, latent)


@dataclass(frozen=True)
class WeightedTotals:
    """Totals in which rows are weighted by scales; counts in which they are not."""

    shape: Shape
    totals: Totals
    feature_count: Tensor
    grouping: Grouping


@torch.no_grad()
def fit_scale_em(
    data: ObservedBlocks,
    latent_dim: int,
    options: ScaleEMOptions | None = None,
    *,
    student_t: tuple[str, ...],
    prior: bool = False,
    start: ScaleMixture | LinearGaussian | None = None,
    prior_mean: Tensor | None = None,
    prior_covariance: Tensor | None = None,
    callback: Callable[[int, float], None] | None = None,
    **settings: Any,
) -> EMResult[ScaleMixture]:
    """Fit loadings, intercepts, noise scales and degrees of freedom of a model with Student-t prior or noise.

    Args:
        data: the observed rows, whole modalities.
        latent_dim: K.
        options: the form of the noise, degrees of freedom, when to stop ...: :class:`ScaleEMOptions`; its defaults if
            not given.
        student_t: the modalities whose noise is Student-t, each with one scale for each instance; () for none.
        prior: whether the prior of the latent is Student-t.
        start: a model to start from; a short Gaussian fit by default.
        prior_mean: the latent's location (K,); zeros by default. It stays as it is, as does the covariance.
        prior_covariance: the latent's scale matrix (K, K); the identity by default.
        callback: called after each step with the number of E-steps so far and the evidence or bound, nats.
        **settings: fields of the options by name, such as ``noise="diagonal"``, in place of those in ``options``.

    Returns:
        The ``ScaleMixture`` and the trace, whose ``log_likelihood`` is the evidence where instances have one scale, and
        its lower bound where they have several.

    Raises:
        ArgumentError: there is no such option, one is out of range, nothing is Student-t, or single features are
            missing.
        NumericalError: the data or the start hold values that are not finite.

    Example:
        >>> import torch
        >>> from calmrl_prob.linear_gaussian import LinearGaussian, ObservedBlocks
        >>> generator = torch.Generator().manual_seed(0)
        >>> z = torch.randn(800, 1, generator=generator, dtype=torch.float64)
        >>> x = {name: z + 0.3 * torch.randn(800, 3, generator=generator, dtype=torch.float64) for name in "ab"}
        >>> x["b"][:40] = 9 * torch.randn(40, 3, generator=generator, dtype=torch.float64)  # spoilt
        >>> blocks = ObservedBlocks.from_arrays(x, torch.ones(800, 2, dtype=torch.bool))
        >>> result = fit_scale_em(blocks, 1, student_t=("a", "b"))
        >>> bool((result.objective.diff() >= 0).all())
        True
        >>> nu = result.structure.degrees_of_freedom
        >>> bool(nu["b"] < 3 < nu["a"])
        True
    """
    options = ScaleEMOptions.of(options, settings, "fit_scale_em")
    _check(data, student_t, prior)
    scaled = (*((PRIOR,) if prior else ()), *(name for name in data.dims if name in student_t))
    blocks, shift = data.centred()
    fit = _Fit(ScaleStep(blocks, latent_dim), latent_dim, options)
    if start is None:
        start = gaussian_start(data, latent_dim, options, options.seed)
    last, trace = ascend(
        fit.start(start, shift, scaled),
        fit.evaluate,
        fit.improve,
        num_values=float(fit.step.rows.feature_count.sum()),
        max_iterations=options.max_iterations,
        tolerance=options.tolerance,
        form="quadrature" if len(scaled) == 1 else "coordinate updates",
        callback=callback,
        guess=AndersonGuess(options.anderson_memory, Point.flatten, fit.unflatten) if options.anderson_memory else None,
    )
    fitted = last.point.parameters.to_linear_gaussian(fit.step.shape, shift, prior_mean, prior_covariance)
    return EMResult(structure=_model(fitted, last.point.freedom), trace=trace)


class _Fit:
    """E-steps and M-steps of one fit.

    Args:
        step: the E-step.
        latent_dim: K.
        options: of the fit.
    """

    def __init__(self, step: ScaleStep, latent_dim: int, options: ScaleEMOptions) -> None:
        self.step, self._latent_dim, self._options = step, latent_dim, options
        require_usable(step.rows, latent_dim)
        variance = mean_variance(step.rows)[1]
        self._noise = noise_model_for(
            variance, step.rows, options.isotropic, options.noise_floor, options.noise_pseudo_count
        )

    def start(self, given: ScaleMixture | LinearGaussian, shift: Tensor, scaled: tuple[str, ...]) -> Point:
        """A model as EM works on it, about the shift, with the factors in ``scaled`` Student-t."""
        first = given.linear_gaussian if isinstance(given, ScaleMixture) else given
        require_same_shape(first, self.step.shape, self._latent_dim)
        fixed = self._options.degrees_of_freedom
        freedom = dict.fromkeys(scaled, START_FREEDOM if fixed is None else fixed)
        if isinstance(given, ScaleMixture) and fixed is None:
            known = dict(given.degrees_of_freedom)
            known |= {PRIOR: given.prior_degrees_of_freedom[0][1]} if given.prior_degrees_of_freedom else {}
            freedom |= {name: float(known[name].detach()) for name in scaled if name in known and known[name].ndim == 0}
        freedom = {name: max(value, self._options.least) for name, value in freedom.items()}
        parameters = Parameters.from_linear_gaussian(first.to(torch.float64, shift.device), shift)
        return Point(parameters.with_floor(self._noise.floor), freedom, None)

    def evaluate(self, point: Point) -> Evaluation[Point, ScaleMoments]:
        """The E-step."""
        found = self.step(point)
        log_prior = self._noise.log_prior(point.parameters.noise_variance)
        return replace(found, objective=found.log_likelihood + log_prior)

    def unflatten(self, point: Point, vector: Tensor) -> Point:
        """A guess as a point, within limits."""
        return point.unflatten(vector, self._noise.floor, self._options.least)

    def improve(self, found: Evaluation[Point, ScaleMoments]) -> Point:
        """The M-step, with scales expanded where no prior or floor of the noise is at work."""
        moments, point, least = found.moments, found.point, self._options.least
        parameters = maximize(*self.step.summary(moments), self._noise, expand=True)
        freedom = dict(point.freedom)
        if least:  # otherwise they stay as they are
            freedom = {n: from_expected_scales(float(moments.log_less_mean[n]), nu, least) for n, nu in freedom.items()}
        noise, scales = parameters.noise_variance.clone(), list(point.scales or ())
        for place, name in enumerate(freedom):
            mean = float(moments.mean_scale(name))
            if name != PRIOR:
                part = self.step.shape.slices[list(self.step.shape.dims).index(name)]
                floor = self._noise.floor[part]
                if self._noise.pseudo_count or not bool((noise[part] * min(1.0, 1 / mean) > floor).all()):
                    continue
                noise[part] = noise[part] / mean
            if scales:  # of the prior the M-step has divided the latent's covariance already
                scales[place] = scales[place] / mean
        return Point(Parameters(parameters.loadings, parameters.intercepts, noise), freedom, scales or None)


def _check(data: ObservedBlocks, student_t: tuple[str, ...], prior: bool) -> None:
    if isinstance(data, FeatureBlocks):
        raise ArgumentError("data: expected whole modalities, got single missing features; see fit_student_t_em.")
    if not (student_t or prior) or any(name not in data.dims for name in student_t):
        raise ArgumentError(
            f"student_t: expected some of {list(data.dims)}, or prior=True, got {list(student_t)} and prior={prior}."
        )


def _model(linear_gaussian: LinearGaussian, freedom: dict[str, float]) -> ScaleMixture:
    like = linear_gaussian.prior_mean
    nu = {name: like.new_tensor(value) for name, value in freedom.items()}
    block = slice(0, linear_gaussian.latent_dim)
    prior = [(block, nu.pop(PRIOR))] if PRIOR in nu else []
    return ScaleMixture(linear_gaussian, nu, prior)
