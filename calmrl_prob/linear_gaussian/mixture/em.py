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

import torch
from torch import Tensor

from calmrl_prob.errors import ArgumentError
from calmrl_prob.linear_gaussian.blocks import FeatureBlocks, ObservedBlocks, split_patterns
from calmrl_prob.linear_gaussian.em.acceleration import AndersonGuess
from calmrl_prob.linear_gaussian.em.convergence import Ascent, Evaluation, ascend
from calmrl_prob.linear_gaussian.em.forms import ROW_FORMS, prepare
from calmrl_prob.linear_gaussian.em.maximization import maximize
from calmrl_prob.linear_gaussian.em.parameters import Parameters
from calmrl_prob.linear_gaussian.em.preparation import (
    check_options,
    mean_variance,
    noise_model_for,
    require_same_shape,
)
from calmrl_prob.linear_gaussian.mixture.expectation import Components, MixtureMoments, MixtureStep
from calmrl_prob.linear_gaussian.mixture.maximization import ComponentModel, components_of_labels, standardize
from calmrl_prob.linear_gaussian.mixture.model import LinearGaussianMixture
from calmrl_prob.linear_gaussian.posterior import posterior
from calmrl_prob.linear_gaussian.structure import LinearGaussian

Point = tuple[Parameters, Components]


@dataclass(frozen=True, repr=False, kw_only=True)
class MixtureEMResult(Ascent):
    """What EM found and how.

    Attributes:
        mixture: the fitted model; where groups are known, their models, weighted by their shares of the instances.
    """

    mixture: LinearGaussianMixture


@torch.no_grad()
def fit_mixture_em(
    data: ObservedBlocks | FeatureBlocks,
    start: LinearGaussianMixture,
    *,
    noise: str = "isotropic",
    known_components: Tensor | None = None,
    covariance: str = "full",
    weight_pseudo_count: float = 1.0,
    covariance_pseudo_count: float | None = None,
    form: str = "auto",
    max_iterations: int = 500,
    tolerance: float = 1e-5,
    noise_floor: float = 1e-4,
    noise_pseudo_count: float = 0.0,
    anderson_memory: int = 10,
    callback: Callable[[int, float], None] | None = None,
) -> MixtureEMResult:
    """Fit loadings, intercepts, noise and a prior of C Gaussians, all in closed-form steps.

    Args:
        data: the observed rows. Statistics by pattern do not suffice: the responsibilities need the rows.
        start: where to start from, such as :func:`split_by_labels` makes it. EM finds a local optimum near it.
        noise: "isotropic" (one variance for each modality) or "diagonal" (one for each feature).
        known_components: (N,) int64, the component of each instance, where it is known: a group prior. Learned by
            default: a mixture.
        covariance: "full" (one for each component) or "tied" (one for all).
        weight_pseudo_count: a, pseudo-instances in each component; 0 for maximum likelihood.
        covariance_pseudo_count: nu, pseudo-instances by which the covariance of each component is drawn to what all
            have in common; K by default, 0 for maximum likelihood.
        form: of the E-step: "modality", "pattern", or "auto" to choose by cost. Both give the same fit.
        max_iterations: E-steps at most.
        tolerance: stop when the gain still to be expected is below this, in nats for each observed value.
        noise_floor: least noise variance as a share of the feature's variance.
        noise_pseudo_count: weight, in observations of each feature, of an inverse-gamma prior whose variance is half
            of the feature's; 0 for none.
        anderson_memory: iterations that Anderson acceleration looks back on; 0 to switch it off.
        callback: called after each step with the number of E-steps so far and the evidence, nats.

    Returns:
        The model, its prior as a whole of mean 0 and covariance I, and the trace of evidence and objective. The
        evidence of known groups is log p(x | groups).

    Raises:
        ArgumentError: an option is out of range, the start does not fit the data, or its components do not share
            loadings, intercepts and noise.
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
    latent_dim, count = start.latent_dim, start.num_components
    nu = float(latent_dim) if covariance_pseudo_count is None else covariance_pseudo_count
    model = ComponentModel(weight_pseudo_count, nu, covariance == "tied", known_components is not None)
    _check(data, start, covariance, known_components, weight_pseudo_count, nu)
    if known_components is None:
        prepared = prepare(data, latent_dim, form, forms=ROW_FORMS)
        rowwise = prepared.rows()
        step = MixtureStep.of_mixture(rowwise, count, data.num_patterns)
    else:
        split, component_of = split_patterns(data, known_components)
        prepared = prepare(split, latent_dim, form, forms=ROW_FORMS)
        rowwise = prepared.rows()
        step = MixtureStep(rowwise, component_of[None])
    check_options(rowwise, latent_dim, noise, max_iterations, tolerance, noise_floor, noise_pseudo_count)
    variance = mean_variance(rowwise)[1]
    noise_model = noise_model_for(variance, rowwise, noise == "isotropic", noise_floor, noise_pseudo_count)
    require_same_shape(start.components[0], rowwise.shape, latent_dim)
    known_shares = None
    if known_components is not None:
        known_shares = torch.bincount(known_components, minlength=count).double() / len(known_components)

    def standardized(parameters: Parameters, components: Components) -> Point:
        shares = components.log_weights.exp() if known_shares is None else known_shares
        return standardize(parameters.with_floor(noise_model.floor), components, shares)

    def evaluate(point: Point) -> Evaluation[Point, MixtureMoments]:
        moments = step(*point)
        log_prior = noise_model.log_prior(point[0].noise_variance) + model.log_prior(point[1])
        evidence = moments.likelihood.log_likelihood
        return Evaluation(point, moments, evidence, evidence + log_prior)

    def improve(found: Evaluation[Point, MixtureMoments]) -> Point:
        parameters = maximize(rowwise, found.moments.likelihood, noise_model, expand=False)
        return standardized(parameters, model.maximize(found.moments.components, found.point[1]))

    def unflatten(point: Point, vector: Tensor) -> Point:
        first, second = vector.split([len(point[0].flatten()), len(point[1].flatten())])
        components = point[1].unflatten(second)
        if known_shares is None:
            components = replace(components, log_weights=components.log_weights.log_softmax(0))
        return standardized(point[0].unflatten(first), components)

    guess = AndersonGuess(anderson_memory, lambda point: torch.cat([part.flatten() for part in point]), unflatten)
    parameters, components = _start(start, prepared.shift, known_components is not None)
    last, ascent = ascend(
        standardized(parameters, model.admit(components)),
        evaluate,
        improve,
        num_values=float(rowwise.feature_count.sum()),
        max_iterations=max_iterations,
        tolerance=tolerance,
        form=prepared.form,
        callback=callback,
        guess=guess if anderson_memory else None,
    )
    parameters, components = last.point
    fitted = parameters.to_linear_gaussian(rowwise.shape, prepared.shift)
    log_weights = components.log_weights if known_shares is None else known_shares.log()
    mixture = LinearGaussianMixture.from_prior(fitted, log_weights, components.means, components.covariances)
    return MixtureEMResult(mixture=mixture, **vars(ascent))


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


def _start(start: LinearGaussianMixture, shift: Tensor, known: bool) -> Point:
    """The start as EM works on it, in float64, with the data about the shift."""
    wide = start.to(torch.float64, shift.device)
    first = wide.components[0]
    unmoved = LinearGaussian(first.loadings, first.intercepts, first.noise_variance)
    log_weights = torch.zeros_like(wide.log_weights) if known else wide.log_weights
    return Parameters.from_linear_gaussian(unmoved, shift), Components(log_weights, wide.means, wide.covariances)


def _check(
    data: ObservedBlocks | FeatureBlocks,
    start: LinearGaussianMixture,
    covariance: str,
    known_components: Tensor | None,
    weight_pseudo_count: float,
    covariance_pseudo_count: float,
) -> None:
    if covariance not in ("full", "tied"):
        raise ArgumentError(f"covariance: expected 'full' or 'tied', got {covariance!r}.")
    if not start.shares_likelihood:
        raise ArgumentError(
            "start: expected components that share loadings, intercepts and noise, got some that do not; make one with "
            "LinearGaussianMixture.from_prior or split_by_labels."
        )
    counts = {"weight_pseudo_count": weight_pseudo_count, "covariance_pseudo_count": covariance_pseudo_count}
    for argument, value in counts.items():
        if not value >= 0:
            raise ArgumentError(f"{argument}: expected at least 0, got {value}.")
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
