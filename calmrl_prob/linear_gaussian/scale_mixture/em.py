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

import torch
from torch import Tensor

from calmrl_prob.errors import ArgumentError
from calmrl_prob.linear_gaussian.blocks import FeatureBlocks, ObservedBlocks
from calmrl_prob.linear_gaussian.em.acceleration import AndersonGuess
from calmrl_prob.linear_gaussian.em.convergence import Ascent, Evaluation, ascend
from calmrl_prob.linear_gaussian.em.em import gaussian_start
from calmrl_prob.linear_gaussian.em.expectation import Moments, Totals
from calmrl_prob.linear_gaussian.em.maximization import NoiseModel, maximize
from calmrl_prob.linear_gaussian.em.parameters import Parameters, Shape
from calmrl_prob.linear_gaussian.em.preparation import check_options, mean_variance, noise_model_for, require_same_shape
from calmrl_prob.linear_gaussian.em.rowwise import ByModality
from calmrl_prob.linear_gaussian.scale_mixture.degrees_of_freedom import (
    LEAST,
    MOST,
    START_FREEDOM,
    from_expected_scales,
)
from calmrl_prob.linear_gaussian.scale_mixture.expectation import PRIOR, ScaleMoments, scale_moments
from calmrl_prob.linear_gaussian.scale_mixture.model import ScaleMixture
from calmrl_prob.linear_gaussian.structure import LinearGaussian

#: Sweeps of coordinate updates in one E-step.
_SWEEPS = 2


@dataclass(frozen=True, repr=False, kw_only=True)
class ScaleEMResult(Ascent):
    """What EM found and how.

    ``log_likelihood`` is the evidence where instances have one scale, and its lower bound where they have several.

    Attributes:
        model: the fitted model.
    """

    model: ScaleMixture


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
        self.rows = ByModality(blocks, latent_dim)
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
        summary = WeightedTotals(self.shape, totals, self.rows.feature_count, self.rows.feature_group)
        return summary, Moments(moments.evidence, moments.cross, latent)


@dataclass(frozen=True)
class WeightedTotals:
    """Totals in which rows are weighted by scales; counts in which they are not."""

    shape: Shape
    totals: Totals
    feature_count: Tensor
    feature_group: Tensor


@torch.no_grad()
def fit_scale_em(
    data: ObservedBlocks,
    latent_dim: int,
    *,
    student_t: tuple[str, ...],
    prior: bool = False,
    noise: str = "isotropic",
    degrees_of_freedom: float | None = None,
    least_degrees_of_freedom: float = LEAST,
    start: ScaleMixture | LinearGaussian | None = None,
    prior_mean: Tensor | None = None,
    prior_covariance: Tensor | None = None,
    max_iterations: int = 500,
    tolerance: float = 1e-5,
    noise_floor: float = 1e-4,
    noise_pseudo_count: float = 0.0,
    anderson_memory: int = 10,
    seed: int = 0,
    callback: Callable[[int, float], None] | None = None,
) -> ScaleEMResult:
    """Fit loadings, intercepts, noise scales and degrees of freedom of a model with Student-t prior or noise.

    Args:
        data: the observed rows, whole modalities.
        latent_dim: K.
        student_t: the modalities whose noise is Student-t, each with one scale for each instance; () for none.
        prior: whether the prior of the latent is Student-t.
        noise: "isotropic" (one scale for each modality) or "diagonal" (one for each feature).
        degrees_of_freedom: of all of them, if they are to stay as they are; learned by default.
        least_degrees_of_freedom: that are allowed where they are learned; above 2 every variance is finite.
        start: a model to start from; a short Gaussian fit by default.
        prior_mean: the latent's location (K,); zeros by default. It stays as it is, as does the covariance.
        prior_covariance: the latent's scale matrix (K, K); the identity by default.
        max_iterations: E-steps at most.
        tolerance: stop when the gain still to be expected is below this, in nats for each observed value.
        noise_floor: least noise scale as a share of the feature's variance.
        noise_pseudo_count: weight, in observations of each feature, of an inverse-gamma prior whose variance is half
            of the feature's; 0 for none.
        anderson_memory: iterations that Anderson acceleration looks back on; 0 to switch it off.
        seed: for the random block of the default start.
        callback: called after each step with the number of E-steps so far and the evidence or bound, nats.

    Raises:
        ArgumentError: an option is out of range, nothing is Student-t, or single features are missing.
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
        >>> nu = result.model.degrees_of_freedom
        >>> bool(nu["b"] < 3 < nu["a"])
        True
    """
    scaled = (*((PRIOR,) if prior else ()), *(name for name in getattr(data, "dims", {}) if name in student_t))
    if isinstance(data, FeatureBlocks):
        raise ArgumentError("data: expected whole modalities, got single missing features; see fit_student_t_em.")
    unknown = [name for name in student_t if name not in data.dims]
    if unknown or not scaled:
        raise ArgumentError(
            f"student_t: expected some of {list(data.dims)}, or prior=True, got {list(student_t)} and prior={prior}."
        )
    limits = {"degrees_of_freedom": degrees_of_freedom, "least_degrees_of_freedom": least_degrees_of_freedom}
    for argument, value in limits.items():
        if value is not None and not LEAST <= value <= MOST:
            raise ArgumentError(f"{argument}: expected {LEAST} to {MOST:.0e}, got {value}.")
    least = 0.0 if degrees_of_freedom is not None else least_degrees_of_freedom
    blocks, shift = data.centred()
    step = ScaleStep(blocks, latent_dim)
    check_options(step.rows, latent_dim, noise, max_iterations, tolerance, noise_floor, noise_pseudo_count)
    isotropic = noise == "isotropic"
    noise_model = noise_model_for(mean_variance(step.rows)[1], step.rows, isotropic, noise_floor, noise_pseudo_count)
    if start is None:
        start = gaussian_start(data, latent_dim, noise, noise_floor, noise_pseudo_count, seed)
    first = start.linear_gaussian if isinstance(start, ScaleMixture) else start
    require_same_shape(first, step.shape, latent_dim)
    freedom = dict.fromkeys(scaled, START_FREEDOM if degrees_of_freedom is None else degrees_of_freedom)
    if isinstance(start, ScaleMixture) and degrees_of_freedom is None:
        known = dict(start.degrees_of_freedom)
        known |= {PRIOR: start.prior_degrees_of_freedom[0][1]} if start.prior_degrees_of_freedom else {}
        freedom |= {name: float(known[name].detach()) for name in scaled if name in known and known[name].ndim == 0}
    freedom = {name: max(value, least) for name, value in freedom.items()}
    parameters = Parameters.from_linear_gaussian(first.to(torch.float64, shift.device), shift)

    def evaluate(point: Point) -> Evaluation[Point, ScaleMoments]:
        found = step(point)
        log_prior = noise_model.log_prior(point.parameters.noise_variance)
        return replace(found, objective=found.log_likelihood + log_prior)

    guess = AndersonGuess(
        anderson_memory, Point.flatten, lambda point, vector: point.unflatten(vector, noise_model.floor, least)
    )
    last, ascent = ascend(
        Point(parameters.with_floor(noise_model.floor), freedom, None),
        evaluate,
        lambda found: _improve(step, found, noise_model, least),
        num_values=float(step.rows.feature_count.sum()),
        max_iterations=max_iterations,
        tolerance=tolerance,
        form="quadrature" if len(scaled) == 1 else "coordinate updates",
        callback=callback,
        guess=guess if anderson_memory else None,
    )
    fitted = last.point.parameters.to_linear_gaussian(step.shape, shift, prior_mean, prior_covariance)
    return ScaleEMResult(model=_model(fitted, last.point.freedom), **vars(ascent))


def _improve(step: ScaleStep, found: Evaluation[Point, ScaleMoments], noise_model: NoiseModel, least: float) -> Point:
    """The M-step, with scales expanded where no prior or floor of the noise is at work."""
    moments, point = found.moments, found.point
    parameters = maximize(*step.summary(moments), noise_model, expand=True)
    freedom = dict(point.freedom)
    if least:  # otherwise they stay as they are
        freedom = {n: from_expected_scales(float(moments.log_less_mean[n]), nu, least) for n, nu in freedom.items()}
    noise, scales = parameters.noise_variance.clone(), list(point.scales or ())
    for place, name in enumerate(freedom):
        mean = float(moments.mean_scale(name))
        if name != PRIOR:
            part = step.shape.slices[list(step.shape.dims).index(name)]
            floor = noise_model.floor[part]
            if noise_model.pseudo_count or not bool((noise[part] * min(1.0, 1 / mean) > floor).all()):
                continue
            noise[part] = noise[part] / mean
        if scales:  # of the prior the M-step has divided the latent's covariance already
            scales[place] = scales[place] / mean
    return Point(Parameters(parameters.loadings, parameters.intercepts, noise), freedom, scales or None)


def _model(linear_gaussian: LinearGaussian, freedom: dict[str, float]) -> ScaleMixture:
    like = linear_gaussian.prior_mean
    nu = {name: like.new_tensor(value) for name, value in freedom.items()}
    block = slice(0, linear_gaussian.latent_dim)
    prior = [(block, nu.pop(PRIOR))] if PRIOR in nu else []
    return ScaleMixture(linear_gaussian, nu, prior)
