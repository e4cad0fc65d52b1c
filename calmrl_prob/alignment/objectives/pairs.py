"""InfoNCE between pairs of modalities: all of them, or each with an anchor modality."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import combinations

from torch import Tensor

from calmrl_prob._support.arguments import chosen_names, whole_number
from calmrl_prob.alignment.objectives.contrast import contrast, weighted_mean
from calmrl_prob.alignment.objectives.objective import Objective
from calmrl_prob.alignment.objectives.temperature import Temperature
from calmrl_prob.alignment.views import Views
from calmrl_prob.errors import ArgumentError


class _PairContrast(Objective):
    """Symmetric InfoNCE over the pairs of modalities that a subclass names."""

    def __init__(self, temperature: float = 0.07, *, learnable: bool = False) -> None:
        super().__init__()
        self.temperature = Temperature(temperature, learnable=learnable)

    @abstractmethod
    def pairs(self, modalities: int) -> list[tuple[int, int]]:
        """Pairs of modalities that are contrasted, each once."""

    def loss(self, views: Views) -> Tensor:
        """The loss of a batch that is all in this process."""
        pairs = self.pairs(views.shape[1])
        if not pairs:
            return views.values.sum() * 0
        left, right = zip(*pairs, strict=True)
        values, weights = views.values.transpose(0, 1), views.weights.T
        logits = values[left, :] @ values[right, :].mT * self.temperature()
        both = weights[left, :] * weights[right, :]
        return weighted_mean(contrast(logits, both, weights[right, :]), contrast(logits.mT, both, weights[left, :]))


class Pairwise(_PairContrast):
    """InfoNCE between every two modalities, both ways.

    For each ordered pair i != j of modalities and each instance a that has both,

        -log( exp(<x_a^i, x_a^j> / tau) / sum_b c_b exp(<x_a^i, x_b^j> / tau) ),    c_b = w_b^j for b != a, c_a = 1

    and of these terms the mean weighted by w_a^i w_a^j. In nats. The loss of Radford et al., Learning transferable
    visual models from natural language supervision (2021), for every pair as in Tian et al., Contrastive multiview
    coding (2020).

    Args:
        temperature: tau, above 0.
        learnable: learn the temperature.

    Raises:
        ArgumentError: the temperature is not above 0.

    Example:
        >>> import torch
        >>> x = torch.eye(4)[:, None, :].expand(4, 2, 4)
        >>> Pairwise(0.1)(Views.observed(x, torch.ones(4, 2).bool())).item() < 1e-3
        True
    """

    name = "pairwise"

    def pairs(self, modalities: int) -> list[tuple[int, int]]:
        """Every two."""
        return list(combinations(range(modalities), 2))


class Anchored(_PairContrast):
    """InfoNCE between each modality and one that all are aligned to, both ways.

    The terms of :class:`Pairwise` in which i or j is the anchor modality. In nats. The objective of Girdhar et al.,
    ImageBind: one embedding space to bind them all (2023).

    Args:
        anchor: the anchor modality: its place among the M, or its name where ``names`` are given.
        temperature: tau, above 0.
        names: the names of the modalities, in the order of the views.
        learnable: learn the temperature.

    Raises:
        SchemaError: no modality has that name.
        ArgumentError: a name without ``names``, or no such place; the temperature is not above 0.

    Example:
        >>> Anchored("text", names=["image", "text"]).anchor
        1
    """

    name = "anchored"

    def __init__(
        self,
        anchor: int | str = 0,
        temperature: float = 0.07,
        *,
        names: Sequence[str] | None = None,
        learnable: bool = False,
    ) -> None:
        super().__init__(temperature, learnable=learnable)
        if isinstance(anchor, str):
            if names is None:
                raise ArgumentError(
                    f"names: the anchor modality {anchor!r} is given by name, so pass the names of all modalities in "
                    "the order of the views, or its place instead."
                )
            known = list(names)
            anchor = known.index(chosen_names([anchor], known, "anchor")[0])
        self.anchor = whole_number("anchor", anchor)

    def pairs(self, modalities: int) -> list[tuple[int, int]]:
        """Each with the anchor."""
        if self.anchor >= modalities:
            raise ArgumentError(
                f"anchor: there are {modalities} modalities, counted from 0, so none is in place {self.anchor}; use a "
                "smaller one."
            )
        return [(self.anchor, other) for other in range(modalities) if other != self.anchor]

    def extra_repr(self) -> str:
        """Settings that a print of the module shows."""
        return f"anchor={self.anchor}"
