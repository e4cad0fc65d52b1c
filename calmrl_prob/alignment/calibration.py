"""Calibration: what stands in for the modalities that an instance lacks, before an objective aligns it.

Aligning only what is there pulls an instance to its local anchor. With a generative model of the representations

    z_n ~ N(m0, S0),   x_n^m | z_n ~ N(W^m z_n + mu^m, Psi^m),

what is missing is imputed from the exact posterior, and the objective sees observed and imputed side by side (Liu et
al., Calibrated Multimodal Representation Learning with Missing Modalities, arXiv 2511.12034, use the posterior mean).
Means are too sure of themselves: draws, or weights, carry the uncertainty on.

One class a variant; add a line to ``CALIBRATIONS`` and it can be named. The imputations are constants: gradients flow
into the representations that were observed alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from calmrl_prob._support.arguments import real_number, whole_number
from calmrl_prob.alignment.certificate import probability_of_gain
from calmrl_prob.alignment.completion import Completion
from calmrl_prob.alignment.expected_scatter import expected_scatter_anchor
from calmrl_prob.alignment.views import Views, require_matching
from calmrl_prob.errors import ArgumentError
from calmrl_prob.linear_gaussian import LinearGaussian, ObservedBlocks, draw_noise, posterior
from calmrl_prob.linear_gaussian.posterior import Posterior


class Calibration(ABC):
    """A way to complete a batch.

    Args:
        weight: how much an imputed view counts beside an observed one, from 0 to 1.
        unit_norm: scale imputed views to length 1, as encoders whose output is normalised give them. Left as they are,
            means are shorter the less is known, and count less by that.

    Raises:
        ArgumentError: an argument is out of range.
    """

    name: ClassVar[str]
    #: Whether it needs a generative model of the representations.
    needs_model: ClassVar[bool] = True

    def __init__(self, weight: float = 1.0, unit_norm: bool = False) -> None:
        self.weight = real_number("weight", weight, 1.0)
        if not 0 <= self.weight <= 1:
            raise ArgumentError(f"weight: expected a number from 0 to 1, got {weight!r}.")
        self.unit_norm = unit_norm

    def __call__(
        self,
        representations: Tensor,
        observed_mask: Tensor,
        model: LinearGaussian | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Views, ...]:
        """Views for the objective; of several, the mean of the objective counts.

        Args:
            representations: (B, M, D); entries of absent modalities are arbitrary.
            observed_mask: (B, M) bool, True = PRESENT.
            model: of the representations, modalities in the same order; None before it was first fitted, and then the
                observed modalities alone are seen.
            generator: of what is drawn.

        Raises:
            ArgumentError: the shapes do not go together.
        """
        require_matching(representations, observed_mask)
        observed = Views.observed(representations, observed_mask)
        if not self.needs_model or model is None or bool(observed_mask.all()):
            return (observed,)
        with torch.no_grad():
            given = _posterior(model, observed)
            filled = self.fill(model, given, observed, generator)
        return tuple(self.complete(observed, *part) for part in filled)

    @abstractmethod
    def fill(
        self, model: LinearGaussian, given: Posterior, observed: Views, generator: torch.Generator | None
    ) -> list[tuple[Tensor, Tensor]]:
        """Stand-ins (B, M, D) for all modalities, and how much each counts (B, M), of which the missing ones are used.

        Args:
            model: of the representations.
            given: the posterior of the latents.
            observed: the observed modalities.
            generator: of what is drawn.
        """

    def complete(self, observed: Views, filled: Tensor, weight: Tensor) -> Views:
        """Completed views: observed ones as they are, stand-ins where there is none."""
        if self.unit_norm:
            filled = normalize(filled, dim=-1)
        mask = observed.observed_mask
        some = mask.any(dim=1, keepdim=True)  # an instance that has nothing says nothing
        weights = torch.where(mask, observed.weights, (self.weight * weight * some).to(observed.weights.dtype))
        values = torch.where(mask[:, :, None], observed.values, filled.to(observed.values.dtype))
        return Views(values * (weights > 0)[:, :, None], weights, mask)


class NoCalibration(Calibration):
    """The observed modalities alone."""

    name = "none"
    needs_model = False

    def fill(
        self, model: LinearGaussian, given: Posterior, observed: Views, generator: torch.Generator | None
    ) -> list[tuple[Tensor, Tensor]]:
        """Nothing."""
        return []


class MeanFill(Calibration):
    """The same for every instance: the model's mean of the modality, W^m m0 + mu^m."""

    name = "mean"

    def fill(
        self, model: LinearGaussian, given: Posterior, observed: Views, generator: torch.Generator | None
    ) -> list[tuple[Tensor, Tensor]]:
        """E[x^m] of each modality."""
        means = [model.loadings[name] @ model.prior_mean + model.intercepts[name] for name in model.names]
        return [(torch.stack(means).expand_as(observed.values), torch.ones_like(observed.weights))]


class ImputedMean(Calibration):
    """The posterior mean, W^m E[z_n | x_n] + mu^m: the paper's calibration."""

    name = "imputed_mean"

    def fill(
        self, model: LinearGaussian, given: Posterior, observed: Views, generator: torch.Generator | None
    ) -> list[tuple[Tensor, Tensor]]:
        """E[x_n^m | x_n]."""
        return [(_means(model, given.mean), torch.ones_like(observed.weights))]


class ImputedDraw(Calibration):
    """Fresh draws from the posterior predictive: one latent for an instance, through which its modalities go together.

    Args:
        num_draws: S; the objective is averaged over them.
        noise: whether the noise of the modality is drawn too, or the latent alone.
        weight, unit_norm: as for every calibration.
    """

    name = "imputed_draw"

    def __init__(self, weight: float = 1.0, unit_norm: bool = False, num_draws: int = 1, noise: bool = True) -> None:
        super().__init__(weight, unit_norm)
        self.num_draws, self.noise = whole_number("num_draws", num_draws, least=1), noise

    def fill(
        self, model: LinearGaussian, given: Posterior, observed: Views, generator: torch.Generator | None
    ) -> list[tuple[Tensor, Tensor]]:
        """x_n^m ~ p(. | x_n), S times."""
        full, ones = torch.ones_like(observed.weights), []
        scale = torch.stack([model.noise_variance[name].sqrt() for name in model.names])
        for latents in given.sample(self.num_draws, generator):
            filled = _means(model, latents)
            if self.noise and model.noise_factor is None:
                noise = torch.randn(filled.shape, generator=generator, dtype=filled.dtype, device=filled.device)
                filled = filled + scale * noise
            elif self.noise:
                drawn = [draw_noise(model, name, len(filled), generator) for name in model.names]
                filled = filled + torch.stack(drawn, dim=1)
            ones.append((filled, full))
        return ones


class WeightedMean(Calibration):
    """The posterior mean, counting by how much of the modality's variance it predicts.

        weight_nm = 1 - tr Cov[x_n^m | x_n] / tr Cov[x^m]

    which lies between 0 and 1, and is the same for all instances with the same missing pattern.
    """

    name = "weighted_mean"

    def fill(
        self, model: LinearGaussian, given: Posterior, observed: Views, generator: torch.Generator | None
    ) -> list[tuple[Tensor, Tensor]]:
        """E[x_n^m | x_n], and the share of the variance that it explains."""
        return [(_means(model, given.mean), predicted_share(model, given))]


class ConfidentMean(Calibration):
    """The posterior mean where it predicts enough of the modality's variance, and nothing elsewhere.

    Args:
        least: the share of variance from which on it counts, from 0 to 1.
        weight, unit_norm: as for every calibration.
    """

    name = "confident_mean"

    def __init__(self, weight: float = 1.0, unit_norm: bool = False, least: float = 0.3) -> None:
        super().__init__(weight, unit_norm)
        self.least = real_number("least", least, 0.3)
        if not 0 <= self.least <= 1:
            raise ArgumentError(f"least: expected a share from 0 to 1, got {least!r}.")

    def fill(
        self, model: LinearGaussian, given: Posterior, observed: Views, generator: torch.Generator | None
    ) -> list[tuple[Tensor, Tensor]]:
        """E[x_n^m | x_n], counting or not."""
        share = predicted_share(model, given)
        return [(_means(model, given.mean), (share >= self.least).to(share.dtype))]


class CertifiedMean(Calibration):
    """The posterior mean for instances that it probably brings nearer to their anchor, and nothing for the others.

    The probability is the model's own, over draws of what is missing (``certificate.probability_of_gain``): on data
    that are not from the model it promises too much. Corollary 3 of the paper is a bound for the worst case, which
    next to no instance of real data meets.

    Args:
        least: the probability from which on an instance is completed, from 0 to 1.
        num_draws: S, that it is estimated from; they cost more than all the rest of a step.
        weight: as for every calibration.
        unit_norm: the same.
    """

    name = "certified_mean"

    def __init__(self, weight: float = 1.0, unit_norm: bool = False, least: float = 0.8, num_draws: int = 16) -> None:
        super().__init__(weight, unit_norm)
        self.least, self.num_draws = real_number("least", least, 0.8), whole_number("num_draws", num_draws, least=1)
        if not 0 <= self.least <= 1:
            raise ArgumentError(f"least: expected a probability from 0 to 1, got {least!r}.")

    def fill(
        self, model: LinearGaussian, given: Posterior, observed: Views, generator: torch.Generator | None
    ) -> list[tuple[Tensor, Tensor]]:
        """E[x_n^m | x_n], counting for instances that gain."""
        completion = _completion(model, given, observed)
        seed = int(torch.randint(2**31, (), generator=generator, device=given.mean.device))
        gain = probability_of_gain(completion, num_draws=self.num_draws, seed=seed, unit_means=self.unit_norm)
        weight = (gain >= self.least).to(observed.weights.dtype)[:, None].expand_as(observed.weights)
        return [(completion.values, weight)]


class AnchorTarget(Calibration):
    """Nothing is imputed; the generative model says where the instance belongs, from all that it has.

    Objectives that contrast views with anchors take that direction in place of the local anchor.

    Args:
        kind: "sum", of what was observed and the posterior means of the rest: the direction of the anchor's sign
            convention; or "scatter", the leading direction of E[Z Z^T | x_n], which knows how unsure the means are.
        weight: as for every calibration; there is nothing here that it applies to.
        unit_norm: whether means are scaled to length 1 in the sum.

    Raises:
        ArgumentError: there is no such kind.
    """

    name = "anchor"

    def __init__(self, weight: float = 1.0, unit_norm: bool = False, kind: Literal["sum", "scatter"] = "sum") -> None:
        super().__init__(weight, unit_norm)
        if kind not in ("sum", "scatter"):
            raise ArgumentError(f"kind: expected 'sum' or 'scatter', got {kind!r}.")
        self.kind = kind

    def fill(
        self, model: LinearGaussian, given: Posterior, observed: Views, generator: torch.Generator | None
    ) -> list[tuple[Tensor, Tensor]]:
        """The anchor, in the place of every modality."""
        completion = _completion(model, given, observed)
        if self.kind == "scatter":
            anchors = expected_scatter_anchor(completion).vector
        else:
            means = normalize(completion.values, dim=-1) if self.unit_norm else completion.values
            whole = torch.where(observed.observed_mask[:, :, None], observed.values.to(means.dtype), means)
            anchors = normalize(whole.sum(dim=1), dim=-1)
        return [(anchors[:, None, :].expand_as(observed.values), torch.zeros_like(observed.weights))]

    def complete(self, observed: Views, filled: Tensor, weight: Tensor) -> Views:
        """The observed views, and the anchors to contrast them with."""
        anchors = filled[:, 0].to(observed.values.dtype)
        return Views(observed.values, observed.weights, observed.observed_mask, anchors)


#: Name -> class.
CALIBRATIONS: dict[str, type[Calibration]] = {
    kind.name: kind
    for kind in (
        NoCalibration,
        MeanFill,
        ImputedMean,
        ImputedDraw,
        WeightedMean,
        ConfidentMean,
        CertifiedMean,
        AnchorTarget,
    )
}


def predicted_share(model: LinearGaussian, given: Posterior) -> Tensor:
    """1 - tr Cov[x_n^m | x_n] / tr Cov[x^m] of each modality and instance, shape (N, M)."""
    shares = []
    for name in model.names:
        loadings, noise = model.loadings[name], model.noise_variance[name].sum()
        before = ((loadings @ model.prior_covariance) * loadings).sum() + noise
        after = given.feature_variance(loadings).sum(dim=1) + noise
        shares.append((1 - after / before).clamp(0, 1)[given.pattern_index])
    return torch.stack(shares, dim=1)


def _posterior(model: LinearGaussian, views: Views) -> Posterior:
    arrays = {name: views.values[:, m].detach().double() for m, name in enumerate(model.names)}
    return posterior(model, ObservedBlocks.from_arrays(arrays, views.observed_mask))


def _completion(model: LinearGaussian, given: Posterior, observed: Views) -> Completion:
    """The observed values beside the means of the rest."""
    values = torch.where(
        observed.observed_mask[:, :, None], observed.values.to(given.mean.dtype), _means(model, given.mean)
    )
    return Completion(values, observed.observed_mask, model, given)


def _means(model: LinearGaussian, latents: Tensor) -> Tensor:
    """W^m z_n + mu^m of all modalities, (B, M, D)."""
    means = [torch.addmm(model.intercepts[name], latents, model.loadings[name].mT) for name in model.names]
    return torch.stack(means, dim=1)
