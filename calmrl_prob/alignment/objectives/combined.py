"""Several objectives at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from calmrl_prob._support.arguments import described, real_number
from calmrl_prob.alignment.objectives.objective import Objective, in_full_precision, prepared
from calmrl_prob.alignment.views import Views
from calmrl_prob.errors import ArgumentError, ArgumentTypeError


class Combined(Objective):
    """A weighted sum of losses that have names.

        loss = sum over names of weight * part

    A name in ``weights`` that no objective bears is that of a loss computed elsewhere, such as a reconstruction's, and
    given at each call. The paper's total is {"pmrl": 1.0, "matching": 0.1}.

    Args:
        parts: objectives by name.
        weights: for each of them, and for each loss that is given.

    Raises:
        ArgumentTypeError: a part is no objective, or a weight no number.
        ArgumentError: an objective has no weight, or there are none at all.

    Example:
        >>> import torch
        >>> from calmrl_prob.alignment.objectives import Matching, Pairwise
        >>> loss = Combined({"pairwise": Pairwise(), "matching": Matching()}, {"pairwise": 1.0, "matching": 0.1})
        >>> views = Views.observed(torch.randn(4, 2, 8), torch.ones(4, 2).bool())
        >>> parts = loss.parts(views)  # to be logged
        >>> bool(loss.total(parts) == loss(views))
        True
    """

    name = "combined"

    def __init__(self, parts: Mapping[str, Objective], weights: Mapping[str, float]) -> None:
        super().__init__()
        for name, part in parts.items():
            if not isinstance(part, Objective):
                raise ArgumentTypeError(f"parts: expected an objective as {name!r}, got {described(part)}; make one.")
        if missing := sorted(set(parts) - set(weights)):
            raise ArgumentError(f"weights: none is given for {missing}; add them, or leave the parts out.")
        if not weights:
            raise ArgumentError("weights: expected one for each loss, got none; name at least one loss.")
        self.objectives = nn.ModuleDict(parts)
        self.weights = {name: real_number(f"weights[{name!r}]", weight, 0.1) for name, weight in weights.items()}

    def forward(self, views: Views, **given: Tensor) -> Tensor:
        """The weighted sum, of the views and of the losses given by name."""
        return self.total(self.parts(views, **given))

    def parts(self, views: Views, **given: Tensor) -> dict[str, Tensor]:
        """Each loss by its name, before its weight.

        Args:
            views: B instances, M modalities, width D.
            given: the losses that were computed elsewhere, scalars.

        Raises:
            ArgumentError: one that has a weight is not given, or one that is given has none.
        """
        expected = sorted(set(self.weights) - set(self.objectives))
        if sorted(given) != expected:
            raise ArgumentError(
                f"losses given by name: expected {expected}, those in weights that are no objectives, got "
                f"{sorted(given)}; pass each as a keyword."
            )
        with in_full_precision(views):
            return {**self._parts(prepared(views)), **given}  # gathered once for all

    def total(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of parts that are there already."""
        terms = [weight * parts[name] for name, weight in self.weights.items()]
        return sum(terms[1:], start=terms[0])

    def loss(self, views: Views) -> Tensor:
        """The loss of a batch that is all in this process."""
        return self.total(self._parts(views))

    def _parts(self, views: Views) -> dict[str, Tensor]:
        return {name: cast(Objective, part).loss(views) for name, part in self.objectives.items()}

    def extra_repr(self) -> str:
        """Settings that a print of the module shows."""
        return f"weights={self.weights}"
