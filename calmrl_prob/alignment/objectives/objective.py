"""Base class of alignment objectives: a scalar of the views of a batch, to be made small."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from calmrl_prob._support.arguments import described
from calmrl_prob.alignment.gather import gather_views
from calmrl_prob.alignment.views import Views, require_matching
from calmrl_prob.errors import ArgumentError, ArgumentTypeError


class Objective(nn.Module, ABC):
    """A loss of B instances with M views each, the lower the better they are aligned.

    What every objective keeps to: a view of weight 0 changes neither value nor gradient, whatever it holds; one that is
    imputed counts by its weight; where there is nothing to contrast, the loss is 0 with gradient 0. Values in half
    precision are computed in single. Under ``torch.distributed`` the batch is that of all processes together, and every
    process returns its whole loss.
    """

    #: The key in ``OBJECTIVES``.
    name: ClassVar[str]

    def forward(self, views: Views) -> Tensor:
        """The loss, a scalar in nats unless the class says otherwise.

        Args:
            views: B instances, M modalities, width D.

        Raises:
            ArgumentTypeError: these are not ``Views``.
            ArgumentError: its tensors do not go together.
        """
        with in_full_precision(views):
            return self.loss(prepared(views))

    @abstractmethod
    def loss(self, views: Views) -> Tensor:
        """The loss of a batch that is all in this process, and safe: finite values, 0 where the weight is 0."""


def in_full_precision(views: Views) -> torch.autocast:
    """A context without mixed precision, on the device of the views.

    Raises:
        ArgumentTypeError: these are not ``Views``.
    """
    if not isinstance(views, Views):
        raise ArgumentTypeError(
            f"views: expected Views, got {described(views)}; make some with Views.observed(representations, "
            "observed_mask)."
        )
    return torch.autocast(views.values.device.type, enabled=False)


def prepared(views: Views) -> Views:
    """The views of all processes, checked, safe, in single precision at least.

    Raises:
        ArgumentError: the tensors do not go together.
    """
    _check(views)
    present = views.weights > 0
    anchors = None if views.anchors is None else torch.where(present.any(1, keepdim=True), views.anchors, 0)
    dtype = views.values.dtype if views.values.dtype == torch.float64 else torch.float32
    return gather_views(
        Views(
            torch.where(present[:, :, None], views.values, 0).to(dtype),
            views.weights.to(dtype),
            views.observed_mask,
            None if anchors is None else anchors.to(dtype),
        )
    )


def _check(views: Views) -> None:
    require_matching(views.values, views.observed_mask)
    instances, modalities, width = views.shape
    if views.weights.shape != (instances, modalities):
        raise ArgumentError(
            f"views.weights: expected shape {(instances, modalities)}, one for each view of views.values, got "
            f"{tuple(views.weights.shape)}."
        )
    if views.anchors is not None and views.anchors.shape != (instances, width):
        raise ArgumentError(
            f"views.anchors: expected shape {(instances, width)}, one for each instance, got "
            f"{tuple(views.anchors.shape)}; use None where there are none."
        )
