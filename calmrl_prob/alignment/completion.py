"""Completion of incomplete instances by the generative model: means of what is missing, and draws."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from calmrl_prob._support.arguments import real_number
from calmrl_prob.alignment.anchors import Anchors, leading_vector
from calmrl_prob.alignment.views import require_matching
from calmrl_prob.errors import ArgumentError, SchemaError
from calmrl_prob.linear_gaussian import LinearGaussian, ObservedBlocks, Posterior, draw_noise, posterior


@dataclass(frozen=True, eq=False)
class Completion:
    """All M modalities of B instances: the representation x^m where it is present, a Gaussian where it is missing.

        z | x ~ N(E z, V),   x^m | z ~ N(W^m z + mu^m, Psi^m),   so that missing modalities of an instance go together

    Attributes:
        values: (B, M, D), the representation where present, W^m E z + mu^m where missing, in the representations' type.
        observed_mask: (B, M) bool, True = PRESENT.
        linear_gaussian: the model; its modalities are in the order of the second dimension.
        posterior: of the latents given what is present; V once for each missing pattern.
    """

    values: Tensor
    observed_mask: Tensor
    linear_gaussian: LinearGaussian
    posterior: Posterior

    @classmethod
    def from_linear_gaussian(
        cls, linear_gaussian: LinearGaussian, representations: Tensor, observed_mask: Tensor
    ) -> Completion:
        """Condition the model on what is present.

        Gradients flow into the representations that are present and into the parameters; ``linear_gaussian.detach()``
        keeps them out of these.

        Args:
            linear_gaussian: a model of M modalities of D features each.
            representations: (B, M, D), modalities in the model's order; entries of absent ones are arbitrary.
            observed_mask: (B, M) bool, True = PRESENT. Instances may have nothing: the prior's means stand in.

        Raises:
            ArgumentError: shapes or types do not go together.
            SchemaError: the model has other modalities or widths.
            NumericalError: what is present is not finite.

        Example:
            >>> lg = LinearGaussian(
            ...     {"image": torch.ones(1, 1), "text": torch.ones(1, 1)},
            ...     {"image": torch.zeros(1), "text": torch.zeros(1)},
            ...     {"image": torch.tensor(1.0), "text": torch.tensor(1.0)},
            ... )
            >>> x = torch.tensor([[[2.0], [float("nan")]]])
            >>> Completion.from_linear_gaussian(lg, x, torch.tensor([[True, False]])).values.flatten().tolist()
            [2.0, 1.0]
        """
        require_matching(representations, observed_mask)
        modalities, width = representations.shape[1:]
        if list(linear_gaussian.dims.values()) != [width] * modalities:
            raise SchemaError(
                f"linear_gaussian: expected {modalities} modalities of {width} features each, as representations has, "
                f"got {linear_gaussian.dims}; fit the model to the same representations."
            )
        arrays = {name: representations[:, m] for m, name in enumerate(linear_gaussian.names)}
        given = posterior(linear_gaussian, ObservedBlocks.from_arrays(arrays, observed_mask))
        means = torch.stack([_location(linear_gaussian, name, given.mean) for name in linear_gaussian.names], dim=1)
        values = torch.where(observed_mask[:, :, None], representations, means.to(representations.dtype))
        return cls(values, observed_mask, linear_gaussian, given)

    @property
    def patterns(self) -> Tensor:
        """The distinct missing patterns, (P, M) bool, True = PRESENT."""
        return self.posterior.patterns

    def pattern_rows(self) -> tuple[Tensor, ...]:
        """For each pattern the row numbers of its instances."""
        index = self.posterior.pattern_index
        counts = torch.bincount(index, minlength=len(self.patterns)).tolist()
        rows: tuple[Tensor, ...] = torch.argsort(index, stable=True).split(counts)
        return rows

    def anchors(self, weight: float = 1.0) -> Anchors:
        """The calibrated anchors: of what is present beside the means of what is missing.

        Args:
            weight: of a missing modality, beside 1 of one that is present. A weight w is as if means were w^1/2 long:
                below 1 they are trusted less than the model trusts them.

        Raises:
            ArgumentError: the weight is negative.
        """
        if not real_number("weight", weight, 1.0) >= 0:
            raise ArgumentError(f"weight: expected a number of at least 0, got {weight!r}.")
        weights = torch.where(self.observed_mask, 1.0, float(weight)).to(self.values.dtype)
        return leading_vector(self.values, weights=weights)

    def draws(self, num_draws: int, generator: torch.Generator | None = None) -> Iterator[Tensor]:
        """Joint draws of the missing modalities beside the observed ones, one after the other.

        Args:
            num_draws: S, how many.
            generator: source of randomness; torch's global one if not given.

        Yields:
            S tensors (B, M, D), as ``values`` with draws in place of means.
        """
        for latents in self.posterior.sample(num_draws, generator):
            drawn = self.values.clone()
            for m, name in enumerate(self.linear_gaussian.names):
                rows = (~self.observed_mask[:, m]).nonzero().squeeze(1)
                drawn[rows, m] = self.draw_given(name, latents[rows], generator).to(drawn.dtype)
            yield drawn

    def draw_given(self, name: str, latents: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A draw of x^m given latents (n, K), shape (n, D)."""
        location = _location(self.linear_gaussian, name, latents)
        return location + draw_noise(self.linear_gaussian, name, len(location), generator)


def _location(lg: LinearGaussian, name: str, latents: Tensor) -> Tensor:
    """W^m z + mu^m for latents (n, K), shape (n, D)."""
    return latents @ lg.loadings[name].mT + lg.intercepts[name]
