"""Imputation of the inputs, by a model that was fitted to them once, before any encoder is trained.

The encoders then see every modality of every instance; what was imputed counts with a weight of its own. Draws are made
afresh for each batch, so that over the epochs an encoder meets what the modality could have been, not one guess at it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from calmrl_prob._support.arguments import real_number
from calmrl_prob.errors import ArgumentError
from calmrl_prob.linear_gaussian import LinearGaussian, ObservedBlocks, draw_noise, posterior
from calmrl_prob.training.batches import Batch


class InputImputation:
    """Completes batches of flat inputs, (n_m, D_m) for each modality.

    Args:
        model: of the inputs.
        kind: "draw" from the posterior predictive, or its "mean".
        weight: how much an imputed view counts beside an observed one, from 0 to 1.

    Raises:
        ArgumentError: an argument is out of range.

    Example:
        >>> one = torch.ones(1, 1)
        >>> lg = LinearGaussian({"a": one, "b": one}, {"a": one[0], "b": one[0]}, {"a": one[0], "b": one[0]})
        >>> batch = Batch({"a": torch.tensor([[3.0]]), "b": torch.empty(0, 1)}, torch.tensor([[True, False]]))
        >>> InputImputation(lg, "mean").complete(batch, ["a", "b"]).inputs["b"]
        tensor([[2.]])
    """

    def __init__(self, model: LinearGaussian, kind: Literal["draw", "mean"] = "draw", weight: float = 0.5) -> None:
        self.model, self.kind = model.to(torch.float64), kind
        self.weight = real_number("weight", weight, 0.5)
        if kind not in ("draw", "mean"):
            raise ArgumentError(f"kind: expected 'draw' or 'mean', got {kind!r}.")
        if not 0 <= self.weight <= 1:
            raise ArgumentError(f"weight: expected a number from 0 to 1, got {weight!r}.")

    def weights(self, observed_mask: Tensor) -> Tensor:
        """1 for what was observed, ``weight`` for what was not, (B, M)."""
        return torch.where(observed_mask, 1.0, self.weight)

    @torch.no_grad()
    def complete(self, batch: Batch, names: Sequence[str], generator: torch.Generator | None = None) -> Batch:
        """The batch with every modality of every instance.

        Args:
            batch: the instances.
            names: the modalities, in the order of its mask.
            generator: of the draws.
        """
        mask = batch.observed_mask
        order = [list(names).index(name) for name in self.model.names]
        blocks = ObservedBlocks({name: batch.inputs[name].double() for name in self.model.names}, mask[:, order])
        given = posterior(self.model, blocks)
        latents = given.sample(1, generator)[0] if self.kind == "draw" else given.mean
        inputs = {}
        for m, name in enumerate(names):
            present, values = mask[:, m], batch.inputs[name]
            filled = torch.addmm(self.model.intercepts[name], latents, self.model.loadings[name].mT)
            if self.kind == "draw":
                filled = filled + draw_noise(self.model, name, len(filled), generator)
            whole = filled.to(values.dtype)
            whole[present] = values
            inputs[name] = whole
        return Batch(inputs, torch.ones_like(mask))
