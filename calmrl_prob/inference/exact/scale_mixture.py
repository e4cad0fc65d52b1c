"""The scale-mixture route: Student-t priors and likelihoods, which are Gaussian given scales of their own.

With one scale for each instance the scale is integrated out, by quadrature whose error is far below that of anything
else; with several, they are drawn, and the draws weighted, with the latents integrated out exactly given each draw.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from calmrl_prob._support.arguments import checked_seed, whole_number
from calmrl_prob._support.warnings import warn_unreliable
from calmrl_prob.conjugacy import ConjugateForm
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError
from calmrl_prob.linear_gaussian import (
    FeatureBlocks,
    LinearGaussian,
    ObservedBlocks,
    ScaleMixture,
    ScalePosterior,
    has_one_scale,
    scale_draws,
    scale_posterior,
)
from calmrl_prob.linear_gaussian.scale_mixture.shared_scale import sample_gamma
from calmrl_prob.posteriors.importance import MIN_DRAWS, ImportanceWeights, importance_weights
from calmrl_prob.posteriors.instances import InstanceModel
from calmrl_prob.posteriors.posterior import Draw, PosteriorResult
from calmrl_prob.posteriors.predictive import MixturePredictive, Predictive
from calmrl_prob.posteriors.sampled import SampledPosterior, weight_report
from calmrl_prob.posteriors.scale_mixture import NODES, ScaleMixturePredictive
from calmrl_prob.programs.bound import BoundModel


class ScaleMixtureResult(PosteriorResult):
    """The posterior of N instances with one scale each: a mixture of Gaussians over the nodes of a quadrature.

    Args:
        model: one factor of it is Student-t.
        blocks: the instances.

    Attributes:
        exact: what the engine computed.
    """

    route, how = "scale mixture", "by quadrature"

    def __init__(self, model: ScaleMixture, blocks: ObservedBlocks | FeatureBlocks) -> None:
        self.exact = scale_posterior(model, blocks)
        self.dims = model.linear_gaussian.dims
        self._model, self._blocks = model, blocks

    @property
    def scale_mixture(self) -> ScaleMixture:
        """The model that it is the posterior of."""
        return self._model

    def components(self, budget: int) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """The mixture of Gaussians over the nodes of a coarse quadrature: see ``ScalePosterior.components``."""
        return self._coarse.components(budget)

    @property
    def mean(self) -> Tensor:
        """E[z_n | x_n], shape (N, K), in units of the prior."""
        return self.exact.mean

    @cached_property
    def covariance(self) -> Tensor:
        """Cov[z_n | x_n], shape (N, K, K)."""
        return self.exact.covariance

    @property
    def log_marginal(self) -> Tensor:
        """log p(x_n) of what each instance has, shape (N,), nats."""
        return self.exact.log_marginal

    @property
    def weights(self) -> Tensor:
        """E[u_n | x_n], shape (N,): far below 1 for an outlier."""
        return self.exact.expected_scale

    @cached_property
    def _coarse(self) -> ScalePosterior:
        return scale_posterior(self._model, self._blocks, NODES)

    def predictive(self, name: str, dtype: torch.dtype | None = None) -> Predictive:
        """A mixture of normals; of a modality that is Student-t itself, for a fresh scale of its noise."""
        kind = self.mean.dtype if dtype is None else dtype
        return ScaleMixturePredictive(self._coarse, name, kind)

    def log_density(self, latents: Tensor) -> Tensor:
        """log p(z_n | x_n) at ``latents`` (N, K), nats, shape (N,)."""
        return self.exact.log_density(latents)

    def draws(self, num_draws: int, generator: torch.Generator, names: Sequence[str] = ()) -> Iterator[Draw]:
        """Joint draws: latents, and for the noise of a Student-t modality a scale afresh."""
        lg = self._model.linear_gaussian
        for latents in self.exact.sample(num_draws, generator):
            location, noise = {}, {}
            for name in names:
                location[name] = torch.addmm(lg.intercepts[name], latents, lg.loadings[name].mT)
                noise[name] = lg.noise_variance[name]
                if name in self._model.degrees_of_freedom:
                    scale = sample_gamma(self._model.degrees_of_freedom[name].expand(len(latents)), generator)
                    noise[name] = noise[name] / scale[:, None]
            yield Draw(latents, location, noise)


class SampledScaleMixture(SampledPosterior):
    """Weighted draws of the latents where an instance has several scales; Student-t noise gets a scale afresh.

    Args:
        model: as the engine takes it.
        instances: the same as densities of instances.
        data: the N instances.
        latents: (S, N, K), draws, in the order of the sites.
        weights: of the draws.
    """

    def __init__(
        self,
        model: ScaleMixture,
        instances: InstanceModel,
        data: MultimodalData,
        latents: Tensor,
        weights: ImportanceWeights,
    ) -> None:
        report = weight_report(weights)
        super().__init__(instances, data, latents, weights.log_weights, weights.log_evidence, "scale mixture", report)
        self._scale_mixture = model

    @property
    def scale_mixture(self) -> ScaleMixture:
        """The model that it is the posterior of."""
        return self._scale_mixture

    def _fresh_noise(self, name: str, num_draws: int, generator: torch.Generator) -> Tensor:
        """Noise variances (S, D_m), divided by fresh draws of the one scale, or of each feature's."""
        noise = self._scale_mixture.linear_gaussian.noise_variance[name]
        freedom = self._scale_mixture.degrees_of_freedom[name].expand(num_draws, len(noise))
        tied = self._scale_mixture.degrees_of_freedom[name].ndim == 0
        return noise / sample_gamma(freedom[:, :1] if tied else freedom, generator)

    def predictive(self, name: str, dtype: torch.dtype | None = None) -> Predictive:
        """The mixture over draws of the latents and, where the noise is Student-t, of a fresh scale for each."""
        plain = super().predictive(name, dtype)
        if not self._is_t(name) or not isinstance(plain, MixturePredictive):
            return plain
        generator = torch.Generator(device=plain.location.device).manual_seed(0)
        noise = self._fresh_noise(name, len(plain.location), generator).to(plain.location)
        return MixturePredictive(
            plain.log_weight,
            plain.location,
            torch.zeros_like(plain.location[:1, :1, :1]).expand_as(plain.location),
            noise,
        )

    def draws(self, num_draws: int, generator: torch.Generator, names: Sequence[str] = ()) -> Iterator[Draw]:
        """Draws with equal weights, resampled from the weighted ones."""
        for draw in super().draws(num_draws, generator, names):
            scaled = {name: self._fresh_noise(name, len(draw.latents), generator) for name in names if self._is_t(name)}
            yield Draw(draw.latents, draw.location, {**draw.noise_variance, **scaled})

    def _is_t(self, name: str) -> bool:
        return name in self._scale_mixture.degrees_of_freedom


def scale_mixture_of(form: ConjugateForm) -> ScaleMixture | None:
    """A discovered form as the engine takes it; None where it is beyond it, and another route has to serve.

    That is where the form varies by instance, is a mixture besides, or has noise that is correlated between features.
    """
    structure = form.structures[0]
    if not form.is_plain or not isinstance(structure, LinearGaussian):
        return None
    try:
        return as_scale_mixture(structure, form.latents, form.degrees_of_freedom)
    except ArgumentError:  # latents of different scales that depend on each other
        return None


def as_scale_mixture(
    structure: LinearGaussian, latents: Mapping[str, slice], degrees_of_freedom: Mapping[str, Tensor]
) -> ScaleMixture:
    """A Gaussian structure, and degrees of freedom of some of its sites, as one model.

    Args:
        structure: given that all scales are 1.
        latents: for each latent site its columns in z.
        degrees_of_freedom: of sites that are Student-t: latents or modalities.

    Raises:
        ArgumentError: latents of different scales are correlated.
    """
    own = {name: freedom.to(structure.prior_mean) for name, freedom in degrees_of_freedom.items()}
    modalities = {name: freedom for name, freedom in own.items() if name in structure.dims}
    return ScaleMixture(
        structure, modalities, [(latents[name], freedom) for name, freedom in own.items() if name in latents]
    )


def scale_mixture_posterior(
    model: ScaleMixture,
    program: BoundModel | None,
    latents: Mapping[str, slice] | None,
    data: MultimodalData,
    *,
    seed: int = 0,
    num_draws: int = 200,
    **options: Any,
) -> PosteriorResult:
    """The posterior of a model some of whose factors are Student-t.

    Args:
        model: its form.
        program: the same as a Pyro program, for instances with several scales; None if there is none.
        latents: for each latent site of the program its columns in z; None if they stand as its sites do.
        data: N instances.
        seed: of the draws, where there are several scales.
        num_draws: S of those; at least 100.
        **options: none.

    Returns:
        By quadrature where an instance has one scale; weighted draws elsewhere, with ``k_hat`` (N,), ``max_k_hat``,
        ``effective_draws`` (N,) and ``log_marginal_error`` (N,) among their diagnostics.

    Raises:
        ArgumentError: an option is unknown or out of range, or an instance has several scales and there is no program.

    Warns:
        ReliabilityWarning: Pareto k-hat is above 0.7 for some instances, and their weights are far from equal.
    """
    if options:
        raise ArgumentError(f"options: the scale-mixture route has num_draws alone, got {sorted(options)}.")
    num_draws = whole_number("num_draws", num_draws, least=MIN_DRAWS)
    blocks = data.conform(model.dims).blocks
    if has_one_scale(model, blocks):
        return ScaleMixtureResult(model, blocks)
    if program is None:
        raise ArgumentError(
            "model: an instance has several scales, which are drawn and weighted by the model as a Pyro program; pass "
            "the model that this ScaleMixture is the form of."
        )
    instances = InstanceModel(program, data)
    generator = torch.Generator(device=data.device).manual_seed(checked_seed(seed))
    draws, log_ratio = scale_draws(model, blocks, num_draws, generator)
    weights = importance_weights(log_ratio)
    # k-hat is of the shape of the tail, whatever its size: of weights that are nearly equal it says nothing
    matters = weights.effective_draws < num_draws / 2
    suspected = replace(weights, k_hat=torch.where(matters, weights.k_hat, -torch.inf))
    # the shape of a tail does not depend on how many draws show it
    warn_unreliable(suspected.problems("more draws seldom help; use method 'nuts'"))
    if latents is not None:
        columns = torch.cat([torch.arange(model.latent_dim)[latents[block.site.name]] for block in instances.blocks])
        draws = draws[..., columns.to(draws.device)]
    return SampledScaleMixture(model, instances, instances.conform(data), draws, weights)
