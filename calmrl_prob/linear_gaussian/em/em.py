"""Closed-form EM for the linear-Gaussian model with missing modalities.

Each iteration is an E-step (``expectation.py``), an M-step (``maximization.py``) and, where it pays, Anderson's guess
at the next point, taken only where it raises the evidence. So the trace of the evidence never falls (Liu et al.,
arXiv 2511.12034, Corollary 4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from calmrl_prob.errors import ArgumentError, NumericalError
from calmrl_prob.linear_gaussian.blocks import FeatureBlocks, ObservedBlocks
from calmrl_prob.linear_gaussian.em.acceleration import AndersonGuess
from calmrl_prob.linear_gaussian.em.convergence import Evaluation, Trace, Traced, ascend
from calmrl_prob.linear_gaussian.em.correlated import CorrelatedNoiseModel, full_noise
from calmrl_prob.linear_gaussian.em.correlated_start import CorrelatedStart, with_noises
from calmrl_prob.linear_gaussian.em.expectation import ExpectationStep, Moments
from calmrl_prob.linear_gaussian.em.forms import Prepared, prepare
from calmrl_prob.linear_gaussian.em.maximization import maximize
from calmrl_prob.linear_gaussian.em.noise_model import NoiseModel
from calmrl_prob.linear_gaussian.em.options import CommonOptions, EMOptions
from calmrl_prob.linear_gaussian.em.parameters import Parameters, Shape
from calmrl_prob.linear_gaussian.em.penalties import ARDPenalty, LoadingsPenalty, NormalPenalty
from calmrl_prob.linear_gaussian.em.preparation import (
    feature_scale,
    require_rows_for_full_noise,
    require_same_shape,
    require_usable,
)
from calmrl_prob.linear_gaussian.em.pseudo_rows import PseudoRows, WithPseudoRows
from calmrl_prob.linear_gaussian.em.revival import revived
from calmrl_prob.linear_gaussian.em.spectral import spectral_start, supported_start
from calmrl_prob.linear_gaussian.em.statistics import SufficientStatistics
from calmrl_prob.linear_gaussian.em.support import Support
from calmrl_prob.linear_gaussian.structure import LinearGaussian

#: Iterations of a fit that another one starts from.
_START_ITERATIONS = 30
#: Rounds of turning latents, at most, before the first step of a prior that cares; each step has one more.
_START_ROUNDS = 30
#: Times, at most, that latents which died on the way are set on what is left over.
_REVIVALS = 3
#: Nats of an instance's evidence that rounding of float32 may take; a fit that ends beyond is done in float64.
_LOST_NATS = 0.03

Structure = TypeVar("Structure")


@dataclass(frozen=True, repr=False, kw_only=True)
class EMResult(Traced, Generic[Structure]):
    """Model that EM found, and the trace of the fit, whose attributes can be read off the result itself.

    Attributes:
        structure: the fitted model: a ``LinearGaussian``, or of another family what its ``fit_*em`` says.
        trace: the course of the fit.
        loadings_precision: for each modality alpha_mk, shape (K,), under a prior of the loadings: N(0, 1 / alpha_mk)
            is what it amounts to for w_dk / s_d. Under "ard" large where the modality does without the latent.
    """

    structure: Structure
    trace: Trace
    loadings_precision: Mapping[str, Tensor] | None = None

    @property
    def linear_gaussian(self: EMResult[LinearGaussian]) -> LinearGaussian:
        """The fitted model, where it has one Gaussian prior and Gaussian noise."""
        return self.structure


@torch.no_grad()
def fit_em(
    data: ObservedBlocks | FeatureBlocks | SufficientStatistics,
    latent_dim: int,
    options: EMOptions | None = None,
    *,
    start: LinearGaussian | None = None,
    prior_mean: Tensor | None = None,
    prior_covariance: Tensor | None = None,
    support: Tensor | None = None,
    callback: Callable[[int, float], None] | None = None,
    **settings: Any,
) -> EMResult[LinearGaussian]:
    """Fit loadings, intercepts and noise variances by maximum likelihood, or with priors on noise and loadings.

    Args:
        data: the observed rows, or their sufficient statistics.
        latent_dim: K, at most the total number of features.
        options: the form of the noise, priors, when to stop ...: :class:`EMOptions`; its defaults if not given.
        start: a model to start from; a spectral start from the data by default.
        prior_mean: the latent's prior mean (K,); zeros by default. It stays as it is, as does the covariance.
        prior_covariance: the latent's prior covariance (K, K); the identity by default.
        support: (M, K) bool, True = the modality may load on the latent: columns of ones are shared latents, columns
            with a single one private ones. All may load on all by default. For a standard normal latent.
        callback: called after each step with the number of E-steps so far and the evidence, nats.
        **settings: fields of the options by name, such as ``noise="diagonal"``, in place of those in ``options``.

    Raises:
        ArgumentError: there is no such option, or one is out of range.
        NumericalError: the data or the start hold values that are not finite.

    Example:
        >>> import torch
        >>> from calmrl_prob.linear_gaussian import LinearGaussian, ObservedBlocks, fit_em
        >>> truth = LinearGaussian({"x": torch.tensor([[2.0], [1.0], [-1.0]], dtype=torch.float64)},
        ...                        {"x": torch.zeros(3).double()}, {"x": torch.tensor(0.1).double()})
        >>> _, x = truth.sample(500, torch.Generator().manual_seed(0))
        >>> result = fit_em(ObservedBlocks.from_arrays(x, torch.ones(500, 1, dtype=torch.bool)), latent_dim=1)
        >>> result.converged, bool((result.log_likelihood.diff() >= 0).all())
        (True, True)
        >>> round(float(result.linear_gaussian.noise_variance["x"][0]), 1)
        0.1
    """
    options = EMOptions.of(options, settings, "fit_em")
    prepared = prepare(data, latent_dim, options.form)
    require_usable(prepared.step, latent_dim)
    served = None if support is None else Support.of(support, prepared.step.shape, latent_dim)
    if served is not None and (options.loadings_prior == "ard" or prior_covariance is not None):
        other = "loadings_prior='ard'" if options.loadings_prior == "ard" else "prior_covariance"
        raise ArgumentError(f"support: it fixes the axes of the latent, which {other} would turn; leave one out.")
    if served is not None and options.correlated:
        raise ArgumentError(
            f"support: expected noise 'isotropic' or 'diagonal' beside it, got {options.noise!r}, which carries what "
            "private latents would; leave one out."
        )
    fit = _Fit(prepared, latent_dim, options, served)
    wide = not isinstance(data, ObservedBlocks | FeatureBlocks) or data.dtype == torch.float64
    found = fit.ascend(start, callback, may_fail=not wide)
    if found is None:
        del fit, prepared  # the data in float32, before there is a copy in float64
        return fit_em(
            data.double(),  # type: ignore[union-attr]  # statistics are in float64
            latent_dim,
            options,
            start=start,
            prior_mean=prior_mean,
            prior_covariance=prior_covariance,
            support=support,
            callback=callback,
        )
    last, trace = found
    shape, precision = prepared.step.shape, None if fit.prior is None else fit.prior.precision(last.point.loadings)
    return EMResult(
        structure=last.point.to_linear_gaussian(shape, prepared.shift, prior_mean, prior_covariance),
        trace=trace,
        loadings_precision=None if precision is None else dict(zip(shape.dims, precision, strict=True)),
    )


def gaussian_start(
    data: ObservedBlocks | FeatureBlocks, latent_dim: int, options: CommonOptions, seed: int
) -> LinearGaussian:
    """A short fit, where those of models with heavier tails start from, with their options of the noise."""
    return fit_em(
        data,
        latent_dim,
        noise=options.noise,
        max_iterations=_START_ITERATIONS,
        noise_floor=options.noise_floor,
        noise_pseudo_count=options.noise_pseudo_count,
        seed=seed,
    ).linear_gaussian


class _Fit:
    """E-steps, M-steps and guesses of one fit, under the priors that its options ask for.

    Args:
        prepared: the data.
        latent_dim: K.
        options: of the fit.
        support: which latents serve which modality; all serve all if None.
    """

    def __init__(self, prepared: Prepared, latent_dim: int, options: EMOptions, support: Support | None) -> None:
        self._form = prepared.form
        self._latent_dim, self._options, self._support, self._shift = latent_dim, options, support, prepared.shift
        self._covariance = prepared.covariance()
        step, variance = prepared.step, self._covariance.variance
        own, pooled = (feature_scale(variance, step, isotropic) for isotropic in (False, True))
        scale = pooled if options.isotropic else own
        if options.correlated:
            scale = torch.where(variance > 0, variance, own)  # no feature's floor depends on another's units
        settings = (options.isotropic, options.noise_floor * scale, options.noise_pseudo_count, 0.5 * scale)
        self._noise = NoiseModel(*settings)
        if options.correlated:
            self._noise = CorrelatedNoiseModel(*settings, options.noise_ranks(step.shape.dims, latent_dim))
            scatters = prepared.scatters(dense=options.noise == "full")
            step.totals = replace(step.totals, scatters=scatters)
            if options.noise == "full":
                require_rows_for_full_noise(step, options)
        self.prior = _loadings_prior(options, step.shape, scale, latent_dim)
        self._step: ExpectationStep = step
        if options.pseudo_rows > 0:
            variance = torch.lerp(own, pooled, options.pseudo_row_pooling)
            self._step = WithPseudoRows(step, PseudoRows(options.pseudo_rows, self._covariance.mean, variance))
        floor = self._noise.floor  # a guess that held on to the fit would keep the data in memory
        self.guess = AndersonGuess(
            options.anderson_memory, Parameters.flatten, lambda point, vector: point.unflatten(vector).with_floor(floor)
        )

    def start(self, given: LinearGaussian | None) -> Parameters:
        """The parameters of a model, or a spectral start; within floors, and turned as the prior prefers."""
        shape = self._step.shape
        generator = torch.Generator().manual_seed(self._options.seed)
        if given is not None:
            require_same_shape(given, shape, self._latent_dim)
            found = Parameters.from_linear_gaussian(given.to(torch.float64, self._shift.device), self._shift)
            found = self._with_form(found, generator)
            if self._support is not None:
                self._support.require_zeros(found.loadings, shape)
        elif isinstance(self._noise, CorrelatedNoiseModel):
            found = self._correlated_start(generator)(self._latent_dim)
        elif self._support is not None:
            found = supported_start(self._covariance, shape, self._support, self._noise, generator)
        else:
            found = spectral_start(self._covariance, shape, self._latent_dim, self._noise, generator)
        found = found.with_floor(self._noise.floor)
        return found if self.prior is None else self.prior.turned(found, most_rounds=_START_ROUNDS)

    def ascend(
        self, given: LinearGaussian | None, callback: Callable[[int, float], None] | None, *, may_fail: bool
    ) -> tuple[Evaluation[Parameters, Moments], Trace] | None:
        """The fit from a model or a spectral start, and from where latents that died on the way are revived.

        Args:
            given: the model.
            callback: told of every step.
            may_fail: return None where rounding in the type of the data hides the way or the evidence.
        """
        try:
            last, trace = self._climb(self.start(given), self._options.max_iterations, callback)
            for _ in range(_REVIVALS):
                left = self._options.max_iterations - trace.num_iterations
                again = self._revived(last) if left > 0 else None
                if again is None:
                    break
                last, further = self._climb(again, left, callback)
                trace = trace.then(further)
        except NumericalError:
            if may_fail:
                return None
            raise
        lost = not trace.converged and trace.stop_reason == "rounding"
        return None if may_fail and (lost or _rounding_at(last.point) > _LOST_NATS) else (last, trace)

    def _climb(
        self, start: Parameters, max_iterations: int, callback: Callable[[int, float], None] | None
    ) -> tuple[Evaluation[Parameters, Moments], Trace]:
        """Steps and guesses from a start until little is still to be gained."""
        self.guess.reset()
        return ascend(
            start,
            self.evaluate,
            self.improve,
            num_values=float(self._step.feature_count.sum()),
            max_iterations=max_iterations,
            tolerance=self._options.tolerance,
            form=self._form,
            callback=callback,
            guess=self.guess if self._options.anderson_memory else None,
        )

    def _revived(self, last: Evaluation[Parameters, Moments]) -> Parameters | None:
        """A start from the last point with latents that died set on what is left over; None if that is no better."""
        if self.prior is not None or self._support is not None or isinstance(self._noise, CorrelatedNoiseModel):
            return None
        generator = torch.Generator().manual_seed(self._options.seed)
        found = revived(last.point, self._covariance, self._step.shape, self._noise, generator)
        if found is None:
            return None
        num_values = float(self._step.feature_count.sum())
        gain = self.evaluate(found).objective - last.objective
        return found if gain > self._options.tolerance * num_values else None

    def _correlated_start(self, generator: torch.Generator) -> CorrelatedStart:
        totals = self._step.totals
        assert isinstance(self._noise, CorrelatedNoiseModel)
        assert totals.scatters is not None
        return CorrelatedStart(
            self._covariance, totals.scatters, totals.count, totals.total, self._step.shape, self._noise, generator
        )

    def _with_form(self, found: Parameters, generator: torch.Generator) -> Parameters:
        """A start whose noise has the form that is to be fitted."""
        if not isinstance(self._noise, CorrelatedNoiseModel):
            if found.noise_factor is None:
                return found
            return Parameters(found.loadings, found.intercepts, torch.cat([part.variance for part in found.noises]))
        ranks = self._noise.ranks
        if ranks is None and found.noise_factor is not None:
            floors = self._noise.floor.split(list(self._step.shape.dims.values()))
            parts = zip(found.noises, floors, strict=True)
            return with_noises(found, tuple(full_noise(noise.covariance(), floor) for noise, floor in parts))
        if ranks is not None and ranks == tuple(part.shape[1] for part in found.noise_factor or ()):
            return found
        return with_noises(found, self._correlated_start(generator).noise_beside(found.loadings))

    def evaluate(self, point: Parameters) -> Evaluation[Parameters, Moments]:
        """The E-step."""
        moments = self._step(point)
        objective = moments.log_likelihood + moments.log_prior + self._noise.log_prior_at(point)
        if self.prior is not None:
            objective += self.prior.log_density(point.loadings)
        return Evaluation(point, moments, moments.log_likelihood, objective)

    def improve(self, found: Evaluation[Parameters, Moments]) -> Parameters:
        """The M-step."""
        image = maximize(
            self._step,
            found.moments,
            self._noise,
            expand=self._options.expand,
            loadings_prior=self.prior,
            current=found.point,
            support=self._support,
        )
        turned = image if self.prior is None else self.prior.turned(image, most_rounds=1)
        if turned is not image:
            self.guess.reset()  # the past was about other axes
        return turned


def _rounding_at(point: Parameters) -> float:
    """Nats of an instance's evidence, about, that products with data in float32 lose to rounding."""
    sums = (point.loadings.square().sum(1) / point.noise_variance).sum() + len(point.noise_variance)
    return torch.finfo(torch.float32).eps * float(sums)


def _loadings_prior(options: EMOptions, shape: Shape, scale: Tensor, latent_dim: int) -> LoadingsPenalty | None:
    if options.loadings_prior == "normal":
        precision = latent_dim if options.loadings_precision is None else options.loadings_precision
        return NormalPenalty(shape, scale, float(precision))
    return ARDPenalty(shape, scale) if options.loadings_prior == "ard" else None
