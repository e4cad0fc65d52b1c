"""Closed-form EM for the Student-t model of ``student_t.py``.

Given the weights w_n = (nu + D_n) / (nu + delta_n) of the instances, the E-step and the M-step are those of the
Gaussian model with every row weighted by w_n, except that the covariances V_n count once each:

    [W^m, mu^m] = (sum_n w_n x_n [mean_n; 1]^T) (sum_n (w_n [mean_n; 1] [mean_n; 1]^T + [V_n 0; 0 0]))^-1
    psi_d       = (sum_n w_n x_nd^2 - [W, mu]_d . sum_n w_n x_nd [mean_n; 1]) / n_m

Two things make it fast. nu is found on the likelihood itself, not on its expectation, from distances that the E-step
has anyway (ECME). And the scale is expanded along with the latent (PX-EM): all scales are divided by the mean weight,
which for the t distribution alone is the step of Kent, Tyler & Vardi. Neither ever lowers the likelihood.

Sources: Liu & Rubin, ML estimation of the t distribution using EM and its extensions, ECM and ECME (1995); Liu, Rubin &
Wu, Parameter expansion to accelerate EM: the PX-EM algorithm (1998).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from calmrl_prob.errors import ArgumentError
from calmrl_prob.linear_gaussian.acceleration import AndersonGuess
from calmrl_prob.linear_gaussian.blocks import FeatureBlocks, ObservedBlocks
from calmrl_prob.linear_gaussian.convergence import Ascent, Evaluation, ascend
from calmrl_prob.linear_gaussian.degrees_of_freedom import LEAST, MOST, from_distances
from calmrl_prob.linear_gaussian.em import fit_em
from calmrl_prob.linear_gaussian.expectation import Moments, Totals, augment
from calmrl_prob.linear_gaussian.forms import ROW_FORMS, prepare
from calmrl_prob.linear_gaussian.maximization import NoiseModel, maximize
from calmrl_prob.linear_gaussian.parameters import Parameters, Shape
from calmrl_prob.linear_gaussian.posterior import factorize
from calmrl_prob.linear_gaussian.preparation import (
    check_options,
    mean_variance,
    noise_model_for,
    require_same_shape,
)
from calmrl_prob.linear_gaussian.statistics import SufficientStatistics
from calmrl_prob.linear_gaussian.structure import LinearGaussian
from calmrl_prob.linear_gaussian.student_t import StudentTModel, count_features

Point = tuple[Parameters, float]

#: Iterations of the Gaussian fit, and the degrees of freedom, that it starts from by default.
_START_ITERATIONS, _START_FREEDOM = 30, 10.0


@dataclass(frozen=True, repr=False, kw_only=True)
class StudentTEMResult(Ascent):
    """What EM found and how.

    Attributes:
        model: the fitted model.
    """

    model: StudentTModel


@dataclass(frozen=True)
class WeightedMoments:
    """What the M-step needs: moments and totals with every row weighted, and counts of rows that are not."""

    shape: Shape
    totals: Totals
    feature_count: Tensor
    feature_group: Tensor
    latent: Moments
    mean_weight: float


class StudentTStep:
    """The E-step over rows, with the degrees of freedom found on the way.

    Args:
        data: the observed rows.
        latent_dim: K.
        form: "modality", "pattern" or "auto".
        isotropic: whether sums of squares are needed by modality only.
        learn: whether the degrees of freedom are learned.
    """

    def __init__(
        self, data: ObservedBlocks | FeatureBlocks, latent_dim: int, form: str, isotropic: bool, learn: bool
    ) -> None:
        # one latent more: its column of loadings gives x^T Psi^-1 mu on the way there, and sum w x on the way back
        prepared = prepare(data, latent_dim + 1, form, forms=ROW_FORMS)
        self.rowwise, self.shift, self.form = prepared.rows(), prepared.shift, prepared.form
        blocks = prepared.data
        assert not isinstance(blocks, SufficientStatistics)
        self.shape = self.rowwise.shape
        squares = _squares(blocks, isotropic)
        self._pooled = squares.dims != blocks.dims
        self._squares = type(self.rowwise)(squares, 1, self.rowwise.layout)
        self._learn = learn
        features = count_features(blocks)
        layout = self.rowwise.layout
        self._slot = layout.slot
        self._num_features = features.new_zeros(layout.num_slots).index_copy_(0, layout.slot, features)
        self._filled = features.new_zeros(layout.num_slots).index_fill_(0, layout.slot, 1.0)

    def __call__(self, point: Point) -> Evaluation[Point, WeightedMoments]:
        """Weighted moments and evidence, at the degrees of freedom that are best for these parameters."""
        (parameters, freedom), rowwise = point, self.rowwise
        latent_dim = parameters.loadings.shape[1]
        weights = parameters.loadings / parameters.noise_variance[:, None]
        precision, offset = rowwise.group_precisions(weights, parameters)
        scaled = parameters.intercepts / parameters.noise_variance
        natural = rowwise.to_slots(torch.cat([weights, scaled[:, None]], dim=1))
        squares = self._squares.to_slots(self._by_square(1 / parameters.noise_variance)[:, None])[0]
        constants = self._group_constants(parameters, scaled)
        identity = torch.eye(latent_dim, dtype=weights.dtype, device=weights.device).flatten()
        latents = natural.new_zeros(natural.shape[1], latent_dim)
        distance = natural.new_zeros(natural.shape[1])
        half_logdet = torch.zeros_like(distance)
        groups = rowwise.members[0].shape[1]
        first, second = weights.new_zeros(groups, latent_dim), weights.new_zeros(groups, latent_dim**2)
        for bucket, members in zip(rowwise.layout.buckets, rowwise.members, strict=True):
            slots, size = slice(bucket.start, bucket.stop), len(members)
            columns = natural[:, slots].view(latent_dim + 1, size, bucket.capacity)
            h = columns[:-1].permute(1, 2, 0) - (members[:, :-1] @ offset)[:, None]
            inner = torch.addmm(identity, members[:, :-1], precision.reshape(len(precision), -1))
            factor = factorize(inner.view(size, latent_dim, latent_dim))
            covariance = torch.cholesky_inverse(factor)
            z = (h @ covariance) * bucket.filled
            latents[slots] = z.view(-1, latent_dim)
            mean_square, half_noise = (members[:, :-1] @ constants).unbind(1)
            deviation = squares[slots].view(size, -1) - 2 * columns[-1] + mean_square[:, None]
            distance[slots] = (deviation - (h * z).sum(-1)).flatten()
            logdet = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) + half_noise
            half_logdet[slots] = logdet.repeat_interleave(bucket.capacity)
            rows = bucket.filled.sum(1)
            second.addmm_((members * rows).mT, covariance.reshape(size, -1))
        rows_distance = distance[self._slot].clamp(min=0)
        features = self._num_features[self._slot]
        if self._learn:
            freedom = from_distances(rows_distance, features, freedom)
        evidence = _log_density(rows_distance, features, half_logdet[self._slot], freedom)
        scale = (freedom + self._num_features) / (freedom + distance.clamp(min=0)) * self._filled
        weighted = latents * scale[:, None]
        total = weights.new_zeros(groups)
        for bucket, members in zip(rowwise.layout.buckets, rowwise.members, strict=True):
            slots, size = slice(bucket.start, bucket.stop), len(members)
            z, wz = (part[slots].view(size, bucket.capacity, latent_dim) for part in (latents, weighted))
            first.addmm_(members.mT, wz.sum(1))
            second.addmm_(members.mT, (wz.mT @ z).view(size, -1))
            total.addmv_(members.mT, scale[slots].view(size, -1).sum(1))
        cross = rowwise.from_slots(torch.cat([weighted, scale[:, None]], dim=1))
        square = self._by_feature(self._squares.from_slots(scale[:, None])[:, 0])
        moments = WeightedMoments(
            self.shape,
            Totals(rowwise.totals.count, cross[:, -1], square),
            rowwise.feature_count,
            rowwise.feature_group,
            Moments(evidence, cross[:, :-1], augment(first, second, total)),
            float(total[-1]) / len(self._slot),
        )
        return Evaluation((parameters, freedom), moments, evidence, evidence)

    def _group_constants(self, parameters: Parameters, scaled: Tensor) -> Tensor:
        """mu^T Psi^-1 mu and half of logdet Psi, of each group, (G, 2)."""
        terms = torch.stack([parameters.intercepts * scaled, 0.5 * parameters.noise_variance.log()], dim=1)
        groups = int(self.rowwise.feature_group.max()) + 1
        return terms.new_zeros(groups, 2).index_add_(0, self.rowwise.feature_group, terms)

    def _by_square(self, values: Tensor) -> Tensor:
        """From a number for each feature, equal within a modality where squares are pooled, to one for each square."""
        return torch.stack([values[part.start] for part in self.shape.slices]) if self._pooled else values

    def _by_feature(self, sums: Tensor) -> Tensor:
        """From a sum for each square to one for each feature, shared out evenly within a modality where pooled."""
        if not self._pooled:
            return sums
        widths = [part.stop - part.start for part in self.shape.slices]
        return torch.cat([(total / width).expand(width) for total, width in zip(sums, widths, strict=True)])


@torch.no_grad()
def fit_student_t_em(
    data: ObservedBlocks | FeatureBlocks,
    latent_dim: int,
    *,
    noise: str = "isotropic",
    degrees_of_freedom: float | None = None,
    start: StudentTModel | LinearGaussian | None = None,
    prior_mean: Tensor | None = None,
    prior_covariance: Tensor | None = None,
    form: str = "auto",
    max_iterations: int = 500,
    tolerance: float = 1e-6,
    noise_floor: float = 1e-4,
    noise_pseudo_count: float = 0.0,
    anderson_memory: int = 10,
    seed: int = 0,
    callback: Callable[[int, float], None] | None = None,
) -> StudentTEMResult:
    """Fit loadings, intercepts, noise scales and degrees of freedom by maximum likelihood of the Student-t model.

    Args:
        data: the observed rows. Statistics by pattern do not suffice: the weights need the rows.
        latent_dim: K.
        noise: "isotropic" (one scale for each modality) or "diagonal" (one for each feature).
        degrees_of_freedom: nu, if it is to stay as it is; learned by default, between 0.1 and 10^6.
        start: a model to start from; a short Gaussian fit by default.
        prior_mean: the latent's location (K,); zeros by default. It stays as it is, as does the covariance.
        prior_covariance: the latent's scale matrix (K, K); the identity by default.
        form: of the E-step: "modality", "pattern", or "auto" to choose by cost. Both give the same fit.
        max_iterations: E-steps at most.
        tolerance: stop when the gain still to be expected is below this, in nats for each observed value.
        noise_floor: least noise scale as a share of the feature's variance.
        noise_pseudo_count: weight, in observations of each feature, of an inverse-gamma prior whose variance is half
            of the feature's; 0 for none.
        anderson_memory: iterations that Anderson acceleration looks back on; 0 to switch it off.
        seed: for the random block of the default start.
        callback: called after each step with the number of E-steps so far and the evidence, nats.

    Raises:
        ArgumentError: an option is out of range, or the start does not fit the data.
        NumericalError: the data or the start hold values that are not finite.

    Example:
        >>> import torch
        >>> from calmrl_prob.linear_gaussian import LinearGaussian, ObservedBlocks
        >>> lg = LinearGaussian({"x": torch.tensor([[2.0], [1.0], [-1.0]], dtype=torch.float64)},
        ...                     {"x": torch.zeros(3).double()}, {"x": torch.tensor(0.1).double()})
        >>> truth = StudentTModel(lg, torch.tensor(4.0))
        >>> _, _, x = truth.sample(2000, torch.Generator().manual_seed(0))
        >>> result = fit_student_t_em(ObservedBlocks.from_arrays(x, torch.ones(2000, 1, dtype=torch.bool)), 1)
        >>> bool((result.objective.diff() >= 0).all()), 3 < float(result.model.degrees_of_freedom) < 5
        (True, True)
    """
    isotropic, learn = noise == "isotropic", degrees_of_freedom is None
    step = StudentTStep(data, latent_dim, form, isotropic, learn)
    check_options(step.rowwise, latent_dim, noise, max_iterations, tolerance, noise_floor, noise_pseudo_count)
    if degrees_of_freedom is not None and not LEAST <= degrees_of_freedom <= MOST:
        raise ArgumentError(f"degrees_of_freedom: expected {LEAST} to {MOST:.0e}, got {degrees_of_freedom}.")
    variance = mean_variance(step.rowwise)[1]
    noise_model = noise_model_for(variance, step.rowwise, isotropic, noise_floor, noise_pseudo_count)
    if start is None:
        start = fit_em(
            data,
            latent_dim,
            noise=noise,
            max_iterations=_START_ITERATIONS,
            noise_floor=noise_floor,
            noise_pseudo_count=noise_pseudo_count,
            seed=seed,
        ).linear_gaussian
    model = start if isinstance(start, StudentTModel) else StudentTModel(start, torch.tensor(_START_FREEDOM))
    require_same_shape(model.linear_gaussian, step.shape, latent_dim)
    parameters = Parameters.from_linear_gaussian(model.linear_gaussian.to(torch.float64, step.shift.device), step.shift)
    freedom = float(model.degrees_of_freedom) if degrees_of_freedom is None else float(degrees_of_freedom)

    def evaluate(point: Point) -> Evaluation[Point, WeightedMoments]:
        found = step(point)
        log_prior = noise_model.log_prior(point[0].noise_variance, step.shape)
        return replace(found, objective=found.log_likelihood + log_prior)

    last, ascent = ascend(
        (parameters.with_floor(noise_model.floor), freedom),
        evaluate,
        lambda found: (_maximize(found.moments, noise_model), found.point[1]),
        num_values=float(step.rowwise.feature_count.sum()),
        max_iterations=max_iterations,
        tolerance=tolerance,
        form=step.form,
        callback=callback,
        guess=_guess(anderson_memory, noise_model.floor) if anderson_memory else None,
    )
    parameters, freedom = last.point
    fitted = parameters.to_linear_gaussian(step.shape, step.shift, prior_mean, prior_covariance)
    found = StudentTModel(fitted, torch.tensor(freedom, dtype=torch.float64))
    return StudentTEMResult(model=found, **vars(ascent))


def _maximize(moments: WeightedMoments, noise_model: NoiseModel) -> Parameters:
    """The M-step, with latent and scale expanded.

    Expanding the scale divides noise and latent covariance by the mean weight. A prior or floor of the noise would not
    let it raise the objective for certain, so where one is at work only the latent is expanded.
    """
    found = maximize(moments, moments.latent, noise_model, expand=True)
    noise = found.noise_variance / moments.mean_weight
    if noise_model.pseudo_count == 0 and bool((torch.minimum(noise, found.noise_variance) > noise_model.floor).all()):
        return Parameters(found.loadings, found.intercepts, noise)
    # ``maximize`` divides the latent's second moment by the sum of the weights; without expansion it is by their number
    return Parameters(found.loadings * math.sqrt(moments.mean_weight), found.intercepts, found.noise_variance)


def _guess(memory: int, floor: Tensor) -> AndersonGuess[Point]:
    """Anderson's guesses at the parameters; the degrees of freedom are found for each anew."""

    def unflatten(point: Point, vector: Tensor) -> Point:
        return point[0].unflatten(vector).with_floor(floor), point[1]

    return AndersonGuess(memory, lambda point: point[0].flatten(), unflatten)


def _log_density(distance: Tensor, num_features: Tensor, half_logdet: Tensor, freedom: float) -> float:
    """log p(x_n) summed over instances, nats."""
    half = (freedom + num_features) / 2
    constant = torch.lgamma(half) - math.lgamma(freedom / 2) - num_features / 2 * math.log(freedom * math.pi)
    return float((constant - half_logdet - half * torch.log1p(distance / freedom)).sum())


def _squares(blocks: ObservedBlocks | FeatureBlocks, isotropic: bool) -> ObservedBlocks | FeatureBlocks:
    """The squares of the data; their sums over each modality where that is all that is needed."""
    if isinstance(blocks, FeatureBlocks):
        features = copy(blocks)
        features.values = blocks.values.double().square()
        return features
    squared = copy(blocks)
    if isotropic:
        squared.values = {n: v.square().sum(1, keepdim=True, dtype=torch.float64) for n, v in blocks.values.items()}
    else:
        squared.values = {name: values.square() for name, values in blocks.values.items()}
    return squared
