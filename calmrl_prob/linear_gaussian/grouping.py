"""Groups of features that are always missing together: what costs K^2 or more is done once for each of them.

Where modalities are missing as wholes, each is a group. Where single features may be missing, features of one modality
that the same instances have share one: all of a modality that lacks no single feature, each by itself where features go
missing one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor


class Grouping:
    """The group of each of D features: G groups, numbered in the order of their first features.

    Args:
        feature_group: (D,) int64.

    Attributes:
        feature_group: as given.
        sizes: (G,) int64, how many features each has.
        first: (G,) int64, the first feature of each.

    Example:
        >>> mask = torch.tensor([[True, True, True, False], [True, True, False, True]])
        >>> Grouping.of_columns({"a": 2, "b": 2}, mask).feature_group.tolist()
        [0, 0, 1, 2]
    """

    def __init__(self, feature_group: Tensor) -> None:
        self.feature_group = feature_group
        self.sizes = torch.bincount(feature_group)
        places = torch.arange(len(feature_group), device=feature_group.device)
        self.first = torch.full_like(self.sizes, len(feature_group)).scatter_reduce(0, feature_group, places, "amin")
        # groups of several features one by one, then all those of a single one together
        several = (self.sizes > 1).nonzero().flatten()
        single = (self.sizes == 1).nonzero().flatten()
        self._several, self._single = several.tolist(), single
        by_group = torch.argsort(feature_group, stable=True).split(self.sizes.tolist())
        self._parts: list[slice | Tensor] = [_as_slice(by_group[group]) for group in self._several]
        self._singles = self.first[single]
        self._group_order = _order([several, single])
        self._feature_order = _order([*(by_group[group] for group in self._several), self._singles])

    @classmethod
    def of_widths(cls, dims: Mapping[str, int], device: torch.device | None = None) -> Grouping:
        """Modalities that are missing as wholes."""
        widths = torch.tensor(list(dims.values()), device=device)
        return cls(torch.repeat_interleave(torch.arange(len(widths), device=device), widths))

    @classmethod
    def of_columns(cls, dims: Mapping[str, int], feature_mask: Tensor) -> Grouping:
        """Features of one modality with the same column of a mask.

        Args:
            dims: number of features of each modality.
            feature_mask: (N, D) bool.
        """
        modality = cls.of_widths(dims, feature_mask.device).feature_group
        column = torch.unique(feature_mask.mT.contiguous(), dim=0, return_inverse=True)[1]
        _, group = torch.unique(column * len(dims) + modality, return_inverse=True)
        places = torch.arange(len(group), device=group.device)
        first = torch.full_like(places, len(group)).scatter_reduce(0, group, places, "amin")[: int(group.max()) + 1]
        rank = torch.empty_like(first)
        rank[torch.argsort(first)] = torch.arange(len(first), device=first.device)
        return cls(rank[group])

    def __len__(self) -> int:
        return len(self.sizes)

    @cached_property
    def by_feature(self) -> bool:
        """Whether every feature is a group of its own."""
        return not self._several

    def sums(self, values: Tensor) -> Tensor:
        """The sum of each group's values, from (D,) to (G,)."""
        several = [values[part].sum() for part in self._parts]
        found = [torch.stack(several)] if several else []
        if len(self._singles):
            found.append(values[self._singles])
        return _ordered(found, self._group_order)

    def products(self, left: Tensor, right: Tensor) -> Tensor:
        """sum_{d in g} left_d right_d^T, shape (G, J, L), from (D, J) and (D, L)."""
        several = [left[part].mT @ right[part] for part in self._parts]
        found = [torch.stack(several)] if several else []
        if len(self._singles):
            one, other = (values if self.by_feature else values[self._singles] for values in (left, right))
            found.append(one[:, :, None] * other[:, None, :])
        return _ordered(found, self._group_order)

    def solve(self, factor: Tensor, right: Tensor) -> Tensor:
        """(L_g L_g^T)^-1 b_d of each feature, shape (D, J), from lower factors (G, J, J) and b (D, J)."""
        several = zip(self._several, self._parts, strict=True)
        found = [torch.cholesky_solve(right[part].mT, factor[group]).mT for group, part in several]
        if len(self._singles):
            rows, own = self._of_singles(right, factor)
            found.append(torch.cholesky_solve(rows[:, :, None], own).squeeze(2))
        return _ordered(found, self._feature_order)

    def times(self, values: Tensor, matrices: Tensor) -> Tensor:
        """v_d M_g of each feature, shape (D, L), from rows (D, J) and matrices (G, J, L)."""
        several = zip(self._several, self._parts, strict=True)
        found = [values[part] @ matrices[group] for group, part in several]
        if len(self._singles):
            rows, own = self._of_singles(values, matrices)
            found.append(torch.bmm(rows[:, None], own).squeeze(1))
        return _ordered(found, self._feature_order)

    def _of_singles(self, values: Tensor, matrices: Tensor) -> tuple[Tensor, Tensor]:
        if self.by_feature:
            return values, matrices
        return values[self._singles], matrices[self._single]


def _as_slice(features: Tensor) -> slice | Tensor:
    """The same places, as a slice where they stand side by side: then nothing is gathered."""
    start, stop = int(features[0]), int(features[-1]) + 1
    return slice(start, stop) if stop - start == len(features) else features


def _order(places: Sequence[Tensor]) -> Tensor | None:
    """Order that brings values which come as ``places`` does into their own; None if it is that already."""
    given = torch.cat(list(places))
    order = torch.argsort(given)
    return None if bool((given[1:] > given[:-1]).all()) else order


def _ordered(parts: Sequence[Tensor], order: Tensor | None) -> Tensor:
    whole = parts[0] if len(parts) == 1 else torch.cat(list(parts))
    return whole if order is None else whole[order]
