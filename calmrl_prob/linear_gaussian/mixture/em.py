"""Closed-form EM under a mixture of Gaussians, or under one Gaussian for each known group of instances.

    z_n ~ sum_c pi_c N(m_c, S_c)    or    z_n ~ N(m_g(n), S_g(n))
    x_n^m | z_n ~ N(W^m z_n + mu^m, Psi^m)

E-step: ``mixture_expectation.py``; M-step: ``maximization.py`` for W, mu and Psi, ``mixture_maximization.py`` for the
prior. Since means and covariances of all components are free, every M-step already moves over all affine maps of z, as
parameter-expanded EM does for a single Gaussian, which is the case C = 1.

Sources: McLachlan & Peel, Finite Mixture Models (2000), section 8, for mixtures of factor analysers with common
loadings (Baek, McLachlan & Flack, Mixtures of factor analyzers with common factor loadings, 2010); missing blocks as in
Liu et al., arXiv 2511.12034 (2025).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from calmrl_prob.errors import ArgumentError
from calmrl_prob.linear_gaussian.blocks import FeatureBlocks, ObservedBlocks, split_patterns
from calmrl_prob.linear_gaussian.em.acceleration import AndersonGuess
from calmrl_prob.linear_gaussian.em.convergence import Evaluation, ascend
from calmrl_prob.linear_gaussian.em.em import EMResult
from calmrl_prob.linear_gaussian.em.forms import ROW_FORMS, prepare
from calmrl_prob.linear_gaussian.em.maximization import maximize
from calmrl_prob.linear_gaussian.em.options import CommonOptions
from calmrl_prob.linear_gaussian.em.parameters import Parameters
from calmrl_prob.linear_gaussian.em.preparation import (
    mean_variance,
    noise_model_for,
    require_same_shape,
    require_usable,
)
from calmrl_prob.linear_gaussian.mixture.expectation import LatentComponents, MixtureMoments, MixtureStep
from calmrl_prob.linear_gaussian.mixture.maximization import ComponentModel, components_of_labels, standardize
from calmrl_prob.linear_gaussian.mixture.model import LinearGaussianMixture
from calmrl_prob.linear_gaussian.posterior import posterior
from calmrl_prob.linear_gaussian.structure import LinearGaussian

Point = tuple[Parameters, LatentComponents]


@dataclass(frozen=True, kw_only=True)
class MixtureEMOptions(CommonOptions):
    """Options of :func:`fit_mixture_em`, besides those that EM has for every family.

    Attributes:
        form: of the E-step: "modality", "pattern", or "auto" to choose by cost. Both give the same fit.
        covariance: "full" (one for each component) or "tied" (one for all).
        weight_pseudo_count: a, pseudo-instances in each component; 0 for maximum likelihood.
        covariance_pseudo_count: nu, pseudo-instances by which the covariance of each component is drawn to what all
            have in common; K by default, 0 for maximum likelihood.

    Raises:
        ArgumentError: one is out of range.
    """

    form: str = "auto"
    covariance: str = "full"
    weight_pseudo_count: float = 1.0
    covariance_pseudo_count: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.covariance not in ("full", "tied"):
            raise ArgumentError(f"covariance: expected 'full' or 'tied', got {self.covariance!r}.")
        self._require_at_least(weight_pseudo_count=0)
        if self.covariance_pseudo_count is not None:
            self._require_at_least(covariance_pseudo_count=0)

    def prior(self, latent_dim: int, known: bool) -> ComponentModel:
        """Prior of the components, known or learned, where the latent has K dimensions."""
        nu = float(latent_dim) if self.covariance_pseudo_count is None else self.covariance_pseudo_count
        return ComponentModel(self.weight_pseudo_count, nu, self.covariance == "tied", known)


@torch.no_grad()
def fit_mixture_em(
    data: ObservedBlocks | FeatureBlocks,
    start: LinearGaussianMixture,
    options: MixtureEMOptions | None = None,
    *,
    known_components: Tensor | None = None,
    callback: Callable[[int, float], None] | None = None,
    **settings: Any,
) -> EMResult[LinearGaussianMixture]:
    """Fit loadings, intercepts, noise and a prior of C Gaussians, all in closed-form steps.

    Args:
        data: the observed rows. Statistics by pattern do not suffice: the responsibilities need the rows.
        start: where to start from, such as :func:`split_by_labels` makes it. EM finds a local optimum near it.
        options: the form of noise and covariances, priors, when to stop ...: :class:`MixtureEMOptions`; its defaults
            if not given.
        known_components: (N,) int64, the component of each instance, where it is known: a group prior. Learned by
            default: a mixture.
        callback: called after each step with the number of E-steps so far and the evidence, nats.
        **settings: fields of the options by name, such as ``noise="diagonal"``, in place of those in ``options``.

    Returns:
        The ``LinearGaussianMixture``, its prior as a whole of mean 0 and covariance I, and the trace. Where groups are
        known, it holds their models, weighted by their shares of the instances; the evidence is log p(x | groups).

    Raises:
        ArgumentError: there is no such option, one is out of range, the start does not fit the data, or its components
            do not share loadings, intercepts and noise.
        NumericalError: the data or the start hold values that are not finite, or a covariance collapsed (with
            ``covariance_pseudo_count=0``).

    Example:
        >>> import torch
        >>> from calmrl_prob.linear_gaussian import ObservedBlocks, fit_em
        >>> generator = torch.Generator().manual_seed(0)
        >>> labels = torch.arange(400) % 2
        >>> z = 0.3 * torch.randn(400, 1, generator=generator).double() + torch.tensor([[-1.0], [1.0]])[labels]
        >>> x = z @ torch.tensor([[2.0, 1.0, -1.0]]).double() + 0.1 * torch.randn(400, 3, generator=generator).double()
        >>> data = ObservedBlocks.from_arrays({"x": x}, torch.ones(400, 1, dtype=torch.bool))
        >>> single = fit_em(data, latent_dim=1)
        >>> result = fit_mixture_em(data, split_by_labels(single.linear_gaussian, data, labels, 2))
        >>> bool((result.objective.diff() >= 0).all())
        True
        >>> bool(result.log_likelihood[-1] > single.log_likelihood[-1] + 100)  # two clusters, not one
        True
    """
    options = MixtureEMOptions.of(options, settings, "fit_mixture_em")
    _check(data, start, known_components)
    fit = _Fit(data, start, options, known_components)
    last, trace = ascend(
        fit.start(start),
        fit.evaluate,
        fit.improve,
        num_values=float(fit.rowwise.feature_count.sum()),
        max_iterations=options.max_iterations,
        tolerance=options.tolerance,
        form=fit.prepared.form,
        callback=callback,
        guess=AndersonGuess(options.anderson_memory, fit.flatten, fit.unflatten) if options.anderson_memory else None,
    )
    return EMResult(structure=fit.mixture(last.point), trace=trace)


class _Fit:
    """E-steps and M-steps of one fit.

    Args:
        data: the observed rows.
        start: the components' number and the layout.
        options: of the fit.
        known_components: (N,), the component of each instance, where it is known.
    """

    def __init__(
        self,
        data: ObservedBlocks | FeatureBlocks,
        start: LinearGaussianMixture,
        options: MixtureEMOptions,
        known_components: Tensor | None,
    ) -> None:
        count = start.num_components
        self._known = known_components is not None
        self._prior = options.prior(start.latent_dim, self._known)
        self._shares: Tensor | None = None
        if known_components is None:
            self.prepared = prepare(data, start.latent_dim, options.form, forms=ROW_FORMS)
            self.rowwise = self.prepared.rows()
            self._step = MixtureStep.of_mixture(self.rowwise, count, data.num_patterns)
        else:
            split, component_of = split_patterns(data, known_components)
            self.prepared = prepare(split, start.latent_dim, options.form, forms=ROW_FORMS)
            self.rowwise = self.prepared.rows()
            self._step = MixtureStep(self.rowwise, component_of[None])
            self._shares = torch.bincount(known_components, minlength=count).double() / len(known_components)
        require_usable(self.rowwise, start.latent_dim)
        require_same_shape(start.components[0], self.rowwise.shape, start.latent_dim)
        self._noise = noise_model_for(
            mean_variance(self.rowwise)[1],
            self.rowwise,
            options.isotropic,
            options.noise_floor,
            options.noise_pseudo_count,
        )

    def start(self, given: LinearGaussianMixture) -> Point:
        """A mixture as EM works on it, in float64, with the data about the shift."""
        wide = given.to(torch.float64, self.prepared.shift.device)
        first = wide.components[0]
        unmoved = LinearGaussian(first.loadings, first.intercepts, first.noise_variance)
        log_weights = torch.zeros_like(wide.log_weights) if self._known else wide.log_weights
        components = self._prior.admit(LatentComponents(log_weights, wide.means, wide.covariances))
        return self._standardized(Parameters.from_linear_gaussian(unmoved, self.prepared.shift), components)

    def evaluate(self, point: Point) -> Evaluation[Point, MixtureMoments]:
        """The E-step."""
        moments = self._step(*point)
        log_prior = self._noise.log_prior(point[0].noise_variance) + self._prior.log_prior(point[1])
        evidence = moments.likelihood.log_likelihood
        return Evaluation(point, moments, evidence, evidence + log_prior)

    def improve(self, found: Evaluation[Point, MixtureMoments]) -> Point:
        """The M-step."""
        parameters = maximize(self.rowwise, found.moments.likelihood, self._noise, expand=False)
        return self._standardized(parameters, self._prior.maximize(found.moments.components, found.point[1]))

    def mixture(self, point: Point) -> LinearGaussianMixture:
        """The model at a point, in the units of the data."""
        parameters, components = point
        fitted = parameters.to_linear_gaussian(self.rowwise.shape, self.prepared.shift)
        log_weights = components.log_weights if self._shares is None else self._shares.log()
        return LinearGaussianMixture.from_prior(fitted, log_weights, components.means, components.covariances)

    def flatten(self, point: Point) -> Tensor:
        """One vector in which convex steps are legal."""
        return torch.cat([part.flatten() for part in point])

    def unflatten(self, point: Point, vector: Tensor) -> Point:
        """The inverse, within limits."""
        first, second = vector.split([len(point[0].flatten()), len(point[1].flatten())])
        components = point[1].unflatten(second)
        if not self._known:
            components = replace(components, log_weights=components.log_weights.log_softmax(0))
        return self._standardized(point[0].unflatten(first), components)

    def _standardized(self, parameters: Parameters, components: LatentComponents) -> Point:
        shares = components.log_weights.exp() if self._shares is None else self._shares
        return standardize(parameters.with_floor(self._noise.floor), components, shares)


@torch.no_grad()
def split_by_labels(
    linear_gaussian: LinearGaussian,
    data: ObservedBlocks | FeatureBlocks,
    labels: Tensor,
    num_components: int,
    *,
    covariance_pseudo_count: float | None = None,
) -> LinearGaussianMixture:
    """Split the prior of a fitted model by labels of the instances: a start for :func:`fit_mixture_em`.

    Each component takes mean and covariance from the posteriors of its instances.

    Args:
        linear_gaussian: a model with a single Gaussian prior.
        data: the observed rows.
        labels: (N,) int64, the component of each instance, from 0 to C - 1; known groups, or clusters of the posterior
            means.
        num_components: C.
        covariance_pseudo_count: as in :func:`fit_mixture_em`.

    Raises:
        ArgumentError: the labels do not fit.
    """
    _check_labels("labels", labels, data.num_instances, num_components)
    nu = float(linear_gaussian.latent_dim) if covariance_pseudo_count is None else covariance_pseudo_count
    wide = linear_gaussian.to(torch.float64)
    components = components_of_labels(posterior(wide, data), labels, num_components, ComponentModel(1.0, nu))
    return LinearGaussianMixture.from_prior(wide, components.log_weights, components.means, components.covariances)


def _check(data: ObservedBlocks | FeatureBlocks, start: LinearGaussianMixture, known_components: Tensor | None) -> None:
    if not start.shares_likelihood:
        raise ArgumentError(
            "start: expected components that share loadings, intercepts and noise, got some that do not; make one with "
            "LinearGaussianMixture.from_prior or split_by_labels."
        )
    if known_components is not None:
        _check_labels("known_components", known_components, data.num_instances, start.num_components)


def _check_labels(argument: str, labels: Tensor, num_instances: int, num_components: int) -> None:
    if labels.shape != (num_instances,) or labels.dtype != torch.int64:
        raise ArgumentError(
            f"{argument}: expected an int64 tensor of shape ({num_instances},), got {labels.dtype} of shape "
            f"{tuple(labels.shape)}."
        )
    if not bool(((labels >= 0) & (labels < num_components)).all()):
        raise ArgumentError(
            f"{argument}: expected numbers from 0 to {num_components - 1}, got {int(labels.min())} to "
            f"{int(labels.max())}."
        )
