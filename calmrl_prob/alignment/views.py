"""Views of a batch: a value for each modality of each instance, and how much it counts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from calmrl_prob.errors import ArgumentError


@dataclass(frozen=True)
class Views:
    """M representations of each of B instances, of one width D.

    Attributes:
        values: (B, M, D), finite everywhere, 0 where the weight is 0.
        weights: (B, M), between 0 and 1: 0 for a modality that is absent, 1 for one that was observed; what was imputed
            counts as much as the calibration says.
        observed_mask: (B, M) bool, True = PRESENT in the data.
        anchors: (B, D), where the generative model says each instance belongs; None to take it from the values.

    Example:
        >>> x = torch.tensor([[[1.0, 0.0], [float("nan"), 0.0]]], requires_grad=True)
        >>> views = Views.observed(x, torch.tensor([[True, False]]))
        >>> views.values.tolist(), views.weights.tolist()
        ([[[1.0, 0.0], [0.0, 0.0]]], [[1.0, 0.0]])
    """

    values: Tensor
    weights: Tensor
    observed_mask: Tensor
    anchors: Tensor | None = None

    @classmethod
    def observed(cls, representations: Tensor, observed_mask: Tensor) -> Views:
        """The observed modalities alone: no calibration.

        Args:
            representations: (B, M, D); entries of absent modalities are arbitrary.
            observed_mask: (B, M) bool, True = PRESENT.

        Raises:
            ArgumentError: the shapes do not go together.
        """
        require_matching(representations, observed_mask)
        values = torch.where(observed_mask[:, :, None], representations, 0)
        return cls(values, observed_mask.to(representations.dtype), observed_mask)

    @property
    def shape(self) -> tuple[int, int, int]:
        """B, M and D."""
        instances, modalities, width = self.values.shape
        return instances, modalities, width


def require_matching(representations: Tensor, observed_mask: Tensor) -> None:
    """Raise unless these are (B, M, D) numbers and (B, M) bool.

    Raises:
        ArgumentError: they are not; the message says what came.
    """
    if representations.ndim != 3 or not representations.is_floating_point():
        raise ArgumentError(
            f"representations: expected floating-point numbers of shape (B, M, D), got {representations.dtype} of "
            f"shape {tuple(representations.shape)}; stack one (B, D) tensor for each modality along dim=1."
        )
    if observed_mask.dtype != torch.bool or observed_mask.shape != representations.shape[:2]:
        raise ArgumentError(
            f"observed_mask: expected bool of shape {tuple(representations.shape[:2])}, True = PRESENT, got "
            f"{observed_mask.dtype} of shape {tuple(observed_mask.shape)}."
        )
