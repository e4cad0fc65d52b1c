"""Reconstruction loss: the squared error of decoded inputs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from calmrl_prob.alignment.gather import gather_rows
from calmrl_prob.errors import ArgumentError


class Reconstruction(nn.Module):
    """Mean squared error of what decoders make of the representations, in squared units of the inputs.

        mean over modalities m of  mean over instances n that have m, and features d, of (decoded_nmd - input_nmd)^2

    Modalities that nobody in the batch has are left out; standardise inputs of different units. It looks at decoders
    and inputs, not at views: compute it, and hand it to :class:`Combined` by name. Under ``torch.distributed`` the
    batch is that of all processes.

    Example:
        >>> inputs = {"text": torch.tensor([[1.0, 2.0], [float("nan"), 0.0]])}
        >>> decoded = {"text": torch.tensor([[1.0, 4.0], [5.0, 5.0]])}
        >>> Reconstruction()(decoded, inputs, torch.tensor([[True], [False]])).item()
        2.0
    """

    def forward(
        self, reconstructions: Mapping[str, Tensor], inputs: Mapping[str, Tensor], observed_mask: Tensor
    ) -> Tensor:
        """The loss, a scalar.

        Args:
            reconstructions: (B, ...) for each modality.
            inputs: of the same modalities, in the order of the mask's columns, and shapes; entries of absent modalities
                are arbitrary.
            observed_mask: (B, M) bool, True = PRESENT.

        Raises:
            ArgumentError: names or shapes differ.
        """
        _require_alike(reconstructions, inputs, observed_mask)
        errors, counts = [], []
        for (name, target), present in zip(inputs.items(), observed_mask.T, strict=True):
            decoded = reconstructions[name][:, None].flatten(1)
            decoded = decoded.to(torch.promote_types(decoded.dtype, torch.float32))  # sums overflow in half precision
            difference = torch.where(present[:, None], decoded - target[:, None].flatten(1), 0)
            errors.append(difference.square().sum())
            counts.append((present.sum() * decoded.shape[1]).to(decoded))
        totals = gather_rows(torch.stack([*errors, *counts])[None]).sum(0)
        error, count = totals.chunk(2)
        there = count > 0
        means = error / torch.where(there, count, 1)
        return means.sum() / there.sum().clamp(min=1)


def _require_alike(reconstructions: Mapping[str, Tensor], inputs: Mapping[str, Tensor], observed_mask: Tensor) -> None:
    for name, target in inputs.items():
        if name not in reconstructions or reconstructions[name].shape != target.shape:
            came = tuple(reconstructions[name].shape) if name in reconstructions else "nothing"
            raise ArgumentError(
                f"reconstructions: expected shape {tuple(target.shape)} for modality {name!r}, that of its inputs, got "
                f"{came}; its decoder must give back what its encoder takes."
            )
        expected = (len(target), len(inputs))
        if observed_mask.dtype != torch.bool or observed_mask.shape != expected:
            raise ArgumentError(
                f"observed_mask: expected bool of shape {expected}, True = PRESENT, got {observed_mask.dtype} of shape "
                f"{tuple(observed_mask.shape)}."
            )
