"""Storage of MultimodalData, and what is read off it: modalities, who has them, missing patterns, blocks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from calmrl_prob.data.features import Names, as_names, names_of, reconciled, with_names
from calmrl_prob.data.intake import check_rows
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, SchemaError, UnknownModalityError
from calmrl_prob.linear_gaussian.blocks import FeatureBlocks, ObservedBlocks, find_patterns, linked_groups

#: Properties that are computed once; other data made from these have their own.
_CACHED = ("_patterns", "blocks", "has_partial_rows")


class StoredModalities:
    """The part of :class:`~calmrl_prob.MultimodalData` that looks at what is there; attributes as described there."""

    names: tuple[str, ...]
    observed_mask: Tensor
    ids: np.ndarray | None
    labels: np.ndarray | None
    partition: np.ndarray | None
    covariates: dict[str, np.ndarray]
    attributes: dict[str, str]
    missing: Literal["modalities", "features"]
    feature_names: dict[str, Names | None]
    _values: dict[str, Tensor]
    #: modalities whose absent rows all hold NaN already, so that data[name] needs no copy
    _nan_where_absent: set[str]

    # len() counts instances while [] takes names, so the old sequence protocol would iterate nonsense.
    __iter__: None = None

    def __len__(self) -> int:
        return self.num_instances

    @property
    def num_instances(self) -> int:
        """Number of instances N."""
        return int(self._values[self.names[0]].shape[0])

    @property
    def dims(self) -> dict[str, int]:
        """Number of features D_m of each modality, with their names (:class:`NamedDims`) where some are known."""
        return with_names({name: int(values.shape[1]) for name, values in self._values.items()}, self.feature_names)

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of every modality: torch.float32 or torch.float64."""
        return self._values[self.names[0]].dtype

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self._values[self.names[0]].device

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __getitem__(self, name: str) -> Tensor:
        """The representations of one modality, (N, D_m), NaN in the rows of instances that lack it.

        Raises:
            UnknownModalityError: there is no such modality; a SchemaError and a KeyError.
            ArgumentTypeError: ``name`` is not a string.
        """
        values = self._values[self._known(name)]
        if name not in self._nan_where_absent:
            values = values.masked_fill(~self.observed(name)[:, None], torch.nan)
            # rebound, not changed in place: other data may share the old ones
            self._values = {**self._values, name: values}
            self._nan_where_absent = self._nan_where_absent | {name}
        return values

    def observed(self, name: str) -> Tensor:
        """Mask of the instances that have a modality: (N,) bool, True = PRESENT."""
        return self.observed_mask[:, self.names.index(self._known(name))]

    def rows_with(self, *names: str, how: Literal["any", "all"] = "any") -> Tensor:
        """The instances that have any (or all) of the named modalities: (N,) bool.

        Raises:
            ArgumentError: no modality is named, or ``how`` is not one of its options.
            SchemaError: there is no such modality.

        Example:
            >>> from calmrl_prob import MultimodalData
            >>> x = torch.tensor([[1.0], [torch.nan], [2.0]])
            >>> data = MultimodalData({"image": x, "text": torch.ones(3, 1)})
            >>> data.subset(data.rows_with("image")).num_instances
            2
        """
        if how not in ("any", "all"):
            raise ArgumentError(f"how: expected 'any' or 'all', got {how!r}.")
        if not names:
            raise ArgumentError(f"names: expected one or more modalities of {list(self.names)}, got none; name them.")
        columns = torch.stack([self.observed(name) for name in names], dim=1)
        return columns.any(dim=1) if how == "any" else columns.all(dim=1)

    def complete_rows(self) -> Tensor:
        """The instances that have every modality: (N,) bool."""
        return self.observed_mask.all(dim=1)

    @cached_property
    def _patterns(self) -> tuple[Tensor, Tensor, Tensor]:
        return find_patterns(self.observed_mask)

    @property
    def patterns(self) -> Tensor:
        """The P distinct rows of ``observed_mask``: (P, M) bool."""
        return self._patterns[0]

    @property
    def pattern_index(self) -> Tensor:
        """The pattern of each instance: (N,) int64, ``patterns[pattern_index] == observed_mask``."""
        return self._patterns[1]

    @cached_property
    def has_partial_rows(self) -> bool:
        """Whether some present row lacks single features (only with ``missing="features"``)."""
        if self.missing == "modalities":
            return False
        return any(bool((check_rows(self._values[name]).partial & self.observed(name)).any()) for name in self.names)

    def feature_mask(self, name: str) -> Tensor:
        """Mask of the features of a modality that each instance has: (N, D_m) bool, True = PRESENT.

        Example:
            >>> from calmrl_prob import MultimodalData
            >>> x = torch.tensor([[1.0, torch.nan], [3.0, 4.0]])
            >>> MultimodalData({"image": x}, missing="features").feature_mask("image").tolist()
            [[True, False], [True, True]]
        """
        values, observed = self._values[self._known(name)], self.observed(name)[:, None]
        return observed.expand(values.shape) if self.missing == "modalities" else ~values.isnan() & observed

    @cached_property
    def blocks(self) -> ObservedBlocks | FeatureBlocks:
        """Blocks of what is present, as the exact engine takes them.

        By modality, the fast case, unless some row lacks single features; then by feature.
        """
        if self.has_partial_rows:
            mask = torch.cat([self.feature_mask(name) for name in self.names], dim=1)
            return FeatureBlocks(self.dims, torch.cat([self.filled(name) for name in self.names], dim=1), mask)
        blocks = ObservedBlocks.from_arrays(self._values, self.observed_mask)
        blocks.feature_names = self.feature_names  # so that statistics of other columns are not added
        return blocks

    def filled(self, name: str, value: float = 0.0) -> Tensor:
        """A modality with every absent entry replaced by a finite value: (N, D_m).

        This is what a masked Pyro site needs: masking NaN gives NaN gradients, masking a finite value gives none.

        Example:
            >>> from calmrl_prob import MultimodalData
            >>> x = torch.tensor([[1.0, 2.0], [torch.nan, torch.nan]])
            >>> data = MultimodalData({"image": x, "text": torch.ones(2, 1)})
            >>> data.filled("image").tolist()
            [[1.0, 2.0], [0.0, 0.0]]
        """
        present = self.feature_mask(name)
        values = self._values[name]
        return values if bool(present.all()) else values.masked_fill(~present, value)

    def modality_groups(self) -> list[tuple[str, ...]]:
        """Groups of modalities that are linked by instances which have two of them.

        Modalities are vertices; two are joined where some instance has both; the groups are the connected components.
        Nothing in the data says how the modalities of different groups go together.

        Example:
            >>> from calmrl_prob import MultimodalData
            >>> x = torch.ones(4, 1)
            >>> mask = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1], [0, 0, 1]]).bool()
            >>> MultimodalData({"image": x, "text": x, "audio": x}, observed_mask=mask).modality_groups()
            [('image', 'text'), ('audio',)]
        """
        return linked_groups(self.names, self.patterns)

    def in_order_of(self, dims: Mapping[str, int], argument: str = "data", source: str = "the model") -> Self:
        """These data with features in the order in which ``dims`` (another's ``dims``) name them; no others are added.

        Where one of the two has no names for a modality, its columns stay as they are.

        Args:
            dims: the widths, and names, of each modality.
            argument: how messages call these data.
            source: how they call what ``dims`` are of.

        Raises:
            SchemaError: the names of a modality are others.

        Example:
            >>> import pandas as pd
            >>> from calmrl_prob import MultimodalData
            >>> frame = pd.DataFrame({"u": [1.0], "v": [2.0]})
            >>> data = MultimodalData({"x": frame[["v", "u"]]})
            >>> data.in_order_of(MultimodalData({"x": frame}).dims)["x"].tolist()
            [[1.0, 2.0]]
        """
        wanted = names_of(dims)
        values, names = {}, {}
        for name in self.names:
            want = wanted.get(name)
            if want is None or len(want) != self._values[name].shape[1]:  # another width is refused for it
                continue
            order, names[name] = reconciled(name, self.feature_names[name], want, argument, source)
            if order is not None:
                values[name] = self._values[name][:, order]
        names = {name: found for name, found in names.items() if found is not self.feature_names[name]}
        if not names:
            return self
        kept = () if values else _CACHED  # blocks and patterns are those of the same columns
        new = self._derive(_values={**self._values, **values}, feature_names={**self.feature_names, **names})
        new.__dict__.update({key: self.__dict__[key] for key in kept if key in self.__dict__})
        return new

    def renamed(self, feature_names: Mapping[str, Names | None]) -> Self:
        """These data with names of the features of some modalities, D_m each, columns staying as they are.

        Raises:
            SchemaError: there is no such modality, or it has another number of features.

        Example:
            >>> from calmrl_prob import MultimodalData
            >>> MultimodalData({"x": torch.ones(1, 2)}).renamed({"x": ("u", "v")}).feature_names
            {'x': ('u', 'v')}
        """
        for name, names in feature_names.items():
            width = self._values[self._known(name)].shape[1]
            if names is not None and len(names) != width:
                raise SchemaError(f"feature_names: modality {name!r} has {width} features, got {len(names)} names.")
        given = {name: None if names is None else as_names(names) for name, names in feature_names.items()}
        return self._derive(feature_names={**self.feature_names, **given})

    def _derive(self, **changes: Any) -> Self:
        new = object.__new__(type(self))
        new.__dict__.update({k: v for k, v in self.__dict__.items() if k not in _CACHED})
        new.__dict__.update(changes)
        return new

    def _known(self, name: object) -> str:
        if not isinstance(name, str):
            raise ArgumentTypeError(f"name: expected a modality's name, got {name!r}; for rows use subset.")
        if name not in self._values:
            raise UnknownModalityError(f"name: no modality is called {name!r}; the modalities are {list(self.names)}.")
        return name
