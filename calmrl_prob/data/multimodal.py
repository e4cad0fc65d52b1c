"""MultimodalData: several representations of the same instances, many of which lack some."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from calmrl_prob._support.arguments import brief, chosen_names, usable_device
from calmrl_prob.data import display, schema
from calmrl_prob.data.entries import check_distinct, grouped
from calmrl_prob.data.features import feature_names, names_of, with_names
from calmrl_prob.data.intake import (
    as_column,
    as_matrix,
    as_observed_mask,
    check_rows,
    named_arrays,
)
from calmrl_prob.data.row_labels import (
    RowLabels,
    counts_rows,
    is_flags,
    require_no_contradiction,
    row_index,
    shared_index,
)
from calmrl_prob.data.rows import Rows, Sizes, as_rows, split_rows
from calmrl_prob.data.rules import (
    describe_row,
    join_columns,
    refuse_bad_rows,
    refuse_empty,
    refuse_overflow,
    same_kind,
)
from calmrl_prob.data.stored import StoredModalities
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, DataError

logger = logging.getLogger(__name__)


class MultimodalData(StoredModalities):
    """N instances with up to M representations ("modalities") each.

    Read-only: methods return new objects, which share memory with this one and with the arrays given wherever no value
    has to change. The arrays given are never modified, so do not modify them, or what ``data[name]`` returns, either.

    Args:
        arrays: a mapping of names to (N, D_m) arrays, or (name, array) pairs: numpy, torch or pandas. A row that is
            NaN throughout is a missing modality. All modalities are brought to the widest floating-point type given;
            float16 counts as float32, integers and booleans as float64. Labels decide, where there are some (pandas,
            polars, xarray, AnnData): the index of rows becomes ``ids``, and rows in another order are put right; names
            of columns are kept as ``feature_names``.
        observed_mask: (N, M) bool, True = PRESENT, or a mapping of names to (N,) bool. A modality is absent from an
            instance where this is False or the row is NaN; what stands in absent rows is never read. This and the
            columns below, given as labelled Series or frames, are brought into the order of the rows.
        ids: (N,) distinct identifiers, of any kind that can be looked up by.
        labels: (N,) classes or targets.
        covariates: a mapping of names to arrays (N, ...): anything else known of each instance, texts included.
        partition: (N,) names of the parts that the instances belong to, such as "train" and "test".
        attributes: facts about the whole: name, source, licence.
        missing: "modalities" (the default; fast) refuses rows of which some features are NaN. "features" accepts them,
            and they are handled exactly, but slower.
        empty: "refuse" or "drop" instances that have no modality at all.

    Attributes:
        names: the M modalities, in the order given.
        observed_mask: (N, M) bool tensor, True = PRESENT.
        ids, labels, partition: numpy arrays (N,) or None; covariates: dict of numpy arrays (N, ...). Missing entries
            among objects are None.
        feature_names: of each modality the D_m names of its columns, None where it came without.
        missing: "modalities" or "features".

    Raises:
        DataError: the data break a rule; the message names modality and row.
        ArgumentTypeError: something is not an array of numbers (or of booleans, for ``observed_mask``).
        ArgumentError: ``missing`` or ``empty`` is not one of its options.

    Example:
        >>> import numpy as np
        >>> text = np.array([[1.0, 2.0], [np.nan, np.nan], [3.0, 4.0]])
        >>> data = MultimodalData({"image": np.ones((3, 4)), "text": text}, labels=["a", "b", "a"])
        >>> data
        MultimodalData: 3 instances, 2 modalities, 2 missing patterns, float64
          image  4 features  100.0% observed
          text   2 features   66.7% observed
          labels: 2 distinct
        >>> data.observed_mask.tolist()
        [[True, True], [True, False], [True, True]]
        >>> data.subset(data.labels == "a")["text"].tolist()
        [[1.0, 2.0], [3.0, 4.0]]
    """

    def __init__(
        self,
        arrays: Mapping[str, Any] | Iterable[tuple[str, Any]],
        *,
        observed_mask: object = None,
        ids: object = None,
        labels: object = None,
        covariates: Mapping[str, Any] | None = None,
        partition: object = None,
        attributes: Mapping[str, str] | None = None,
        missing: Literal["modalities", "features"] = "modalities",
        empty: Literal["refuse", "drop"] = "refuse",
    ) -> None:
        _require_options(missing, empty, covariates=covariates, attributes=attributes)
        given = named_arrays(arrays)
        self.names = tuple(given)
        self.missing = missing
        index, orders = shared_index(given)  # before the row counts: frames of unequal length are to be reindexed
        values = {name: as_matrix(name, array) for name, array in given.items()}
        self.feature_names = {name: feature_names(array, values[name].shape[1]) for name, array in given.items()}
        self._values = same_kind({n: value[orders[n]] if n in orders else value for n, value in values.items()})
        n, device = self.num_instances, self.device
        self.ids, rows = _identified(ids, index, n)
        self.labels = None if labels is None else as_column("labels", rows.arranged("labels", labels), n)
        self.partition = None if partition is None else as_column("partition", rows.arranged("partition", partition), n)
        self.covariates = {}
        for name, column in (covariates or {}).items():
            argument = f"covariates[{name!r}]"
            self.covariates[name] = as_column(argument, rows.arranged(argument, column), n, one_dimensional=False)
        self.attributes = dict(attributes or {})

        if observed_mask is None:
            self.observed_mask = torch.ones(n, len(self.names), dtype=torch.bool, device=device)
        else:
            # cloned: the user may change theirs later, and NaN rows are entered below
            self.observed_mask = as_observed_mask(observed_mask, self.names, rows, device).clone()
        self._enter_absent_rows()
        self._settle_empty_instances(empty)

    def _enter_absent_rows(self) -> None:
        """Enter rows that are NaN throughout into ``observed_mask``, and refuse values that cannot be."""
        self._nan_where_absent = set()
        for m, (name, values) in enumerate(self._values.items()):
            found = check_rows(values)
            present = self.observed_mask[:, m] & ~found.absent
            partial_allowed = self.missing == "features"
            refuse_bad_rows(name, values, found, present, partial_allowed=partial_allowed, ids=self.ids)
            self.observed_mask[:, m] = present
            if bool((found.absent | present).all()):
                self._nan_where_absent.add(name)

    def _settle_empty_instances(self, empty: str) -> None:
        """Refuse instances that have no modality, or leave them out."""
        n = self.num_instances
        nothing = (~self.observed_mask.any(dim=1)).nonzero().squeeze(1)
        if len(nothing) == n or (len(nothing) and empty == "refuse"):
            first = describe_row(int(nothing[0]), self.ids)
            remedy = "pass empty='drop' to leave them out" if len(nothing) < n else "give at least one that has some"
            raise DataError(
                f"arrays: {len(nothing)} of {n} instances have no modality at all, first {first}; {remedy}."
            )
        if len(nothing):
            logger.info("left out %d of %d instances that have no modality at all", len(nothing), n)
            self.__dict__.update(self.subset(self.observed_mask.any(dim=1)).__dict__)

    @property
    def _rows(self) -> RowLabels:
        return RowLabels(self.num_instances, ids=self.ids)

    # ---- other data from this -----------------------------------------------------------------------------------

    def subset(self, rows: Rows) -> Self:
        """The chosen instances, in the order chosen.

        Args:
            rows: a slice, (n,) row numbers (negative ones count from the end; one may come twice), or (N,) bool.

        Raises:
            ArgumentError: a row number is out of range, the booleans are not N, or no instance is chosen.
            ArgumentTypeError: ``rows`` is none of these.

        Example:
            >>> data = MultimodalData({"image": torch.arange(4.0)[:, None]}, ids=["a", "b", "c", "d"])
            >>> data.subset([2, 0]).ids.tolist(), data.subset(slice(1, None)).ids.tolist()
            (['c', 'a'], ['b', 'c', 'd'])
        """
        chosen = as_rows(self._rows.arranged("rows", rows) if is_flags(rows) else rows, self.num_instances)
        moved = chosen.to(self.device) if isinstance(chosen, Tensor) else chosen
        counted = chosen.numpy() if isinstance(chosen, Tensor) else chosen
        return self._derive(
            _values={name: values[moved] for name, values in self._values.items()},
            observed_mask=self.observed_mask[moved],
            ids=None if self.ids is None else self.ids[counted],
            labels=None if self.labels is None else self.labels[counted],
            partition=None if self.partition is None else self.partition[counted],
            covariates={name: column[counted] for name, column in self.covariates.items()},
        )

    def select(self, names: Sequence[str]) -> Self:
        """The chosen modalities, in the order chosen.

        Raises:
            SchemaError: there is no such modality.
            ArgumentError: no modality is named, or one twice.
            ArgumentTypeError: ``names`` is not a sequence of strings.
            DataError: an instance would be left with nothing.

        Example:
            >>> data = MultimodalData({"image": torch.ones(2, 3), "text": torch.ones(2, 4)})
            >>> data.select(["text"]).dims
            {'text': 4}
        """
        chosen = chosen_names([names] if isinstance(names, str) else names, self.names)
        columns = [self.names.index(name) for name in chosen]
        mask = self.observed_mask[:, columns]
        wanted = ", ".join(map(repr, chosen))
        refuse_empty(mask, self.ids, f"select({chosen})", f"first take data.subset(data.rows_with({wanted}))")
        return self._derive(
            names=tuple(chosen),
            _values={name: self._values[name] for name in chosen},
            observed_mask=mask,
            feature_names={name: self.feature_names[name] for name in chosen},
        )

    def mask(self, observed_mask: object) -> Self:
        """Hide modalities: a cell stays present only where it is present here and True in ``observed_mask``.

        No value is copied, and the hidden ones can be had from the data that they were hidden in. A modality may lose
        all its rows here.

        Args:
            observed_mask: (N, M) bool, True = PRESENT, or a mapping of names to (N,) bool.

        Raises:
            DataError: the shape is wrong, or an instance would be left with nothing.
            ArgumentTypeError: the entries are not booleans.

        Example:
            >>> data = MultimodalData({"image": torch.ones(2, 3), "text": torch.ones(2, 4)})
            >>> data.mask({"text": [True, False]}).observed_mask.tolist()
            [[True, True], [True, False]]
        """
        asked = as_observed_mask(observed_mask, self.names, self._rows, self.device)
        mask = self.observed_mask & asked
        refuse_empty(mask, self.ids, "observed_mask", "leave each instance one modality, or take a subset first")
        changed = (mask != self.observed_mask).any(dim=0).tolist()
        kept = {name for m, name in enumerate(self.names) if not changed[m]}
        return self._derive(observed_mask=mask, _nan_where_absent=self._nan_where_absent & kept)

    def split(self, sizes: Sizes, *, seed: int = 0, stratify: object = None) -> tuple[Self, ...]:
        """Split the instances at random.

        Args:
            sizes: the fraction of the first of two parts, the number of its instances, or fractions (summing to 1) or
                numbers (summing to N) of any number of parts.
            seed: the same seed gives the same split.
            stratify: (N,) classes, or True for ``labels``: every part gets about the same share of each class.

        Returns:
            The parts, each with its instances in their original order.

        Raises:
            ArgumentError: the sizes do not fit, or leave a part without instances; or the seed is negative.
            ArgumentTypeError: the sizes are not numbers, or the seed is no whole number.

        Example:
            >>> data = MultimodalData({"image": torch.arange(10.0)[:, None]})
            >>> train, test = data.split(0.8, seed=0)
            >>> len(train), len(test)
            (8, 2)
        """
        return tuple(self.subset(rows) for rows in self.split_indices(sizes, seed=seed, stratify=stratify))

    def split_indices(self, sizes: Sizes, *, seed: int = 0, stratify: object = None) -> tuple[np.ndarray, ...]:
        """The row numbers of the parts that :meth:`split` returns."""
        if stratify is True and self.labels is None:
            raise ArgumentError("stratify: the data have no labels; pass an (N,) array of classes instead.")
        classes = self.labels if stratify is True else stratify
        if classes is None or classes is False:
            return split_rows(self.num_instances, sizes, seed)
        classes = as_column("stratify", self._rows.arranged("stratify", classes), self.num_instances)
        return split_rows(self.num_instances, sizes, seed, classes)

    @property
    def train(self) -> Self:
        """The instances whose ``partition`` is "train"."""
        return self.part("train")

    @property
    def test(self) -> Self:
        """The instances whose ``partition`` is "test"."""
        return self.part("test")

    def part(self, name: str) -> Self:
        """The instances that ``partition`` calls ``name``.

        Raises:
            DataError: the data have no partition, or none of that name.

        Example:
            >>> data = MultimodalData({"image": torch.ones(3, 2)}, partition=["train", "test", "train"])
            >>> len(data.part("train")), len(data.test)
            (2, 1)
        """
        if self.partition is None:
            raise DataError("partition: these data come without a split; use data.split(0.8, seed=0).")
        rows = self.partition == name
        if not rows.any():
            raise DataError(f"partition: no part is called {name!r}; there are {grouped(self.partition)[0].tolist()}.")
        return self.subset(rows)

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Self:
        """The same data in another floating-point type (torch.float32 or torch.float64) or on another device.

        Raises:
            ArgumentTypeError: ``dtype`` is neither of the two.
            ArgumentError: torch cannot use the device.
            DataError: a present value is too large for ``dtype``.

        Example:
            >>> MultimodalData({"image": torch.ones(2, 3)}).to(torch.float64).dtype
            torch.float64
        """
        if dtype not in (None, torch.float32, torch.float64):
            raise ArgumentTypeError(f"dtype: expected torch.float32 or torch.float64, got {dtype!r}.")
        usable_device(device)
        moved = {name: values.to(device=device, dtype=dtype) for name, values in self._values.items()}
        observed_mask = self.observed_mask.to(device=device)
        if dtype is not None and dtype.itemsize < self.dtype.itemsize:
            for m, (name, values) in enumerate(moved.items()):
                refuse_overflow(name, values, check_rows(values).infinite & observed_mask[:, m], self.ids)
        return self._derive(_values=moved, observed_mask=observed_mask)

    @classmethod
    def concat(cls, parts: Sequence[MultimodalData]) -> MultimodalData:
        """The instances of several data one after another.

        Modalities that a part does not have are missing in its instances; their order is that in which the parts first
        have them. Covariates must be the same; ids, labels and partitions must be had by all parts or by none. The
        widest floating-point type wins.

        Raises:
            ArgumentError: there are no parts.
            ArgumentTypeError: ``parts`` is not a sequence of MultimodalData.
            SchemaError: a modality has another width, or other features, in another part.
            DataError: ids repeat; or some parts have ids, labels, partition or a covariate that others lack.

        Example:
            >>> data = MultimodalData({"image": torch.arange(4.0)[:, None]})
            >>> MultimodalData.concat([data.subset([3]), data.subset([0])])["image"].tolist()
            [[3.0], [0.0]]
        """
        if isinstance(parts, MultimodalData) or not isinstance(parts, Iterable):
            kind = "a single MultimodalData" if isinstance(parts, MultimodalData) else brief(parts)
            raise ArgumentTypeError(f"parts: expected a list of MultimodalData, got {kind}; pass [first, second, ...].")
        parts = list(parts)
        if not parts:
            raise ArgumentError("parts: expected at least one MultimodalData, got none.")
        for i, part in enumerate(parts):
            if not isinstance(part, MultimodalData):
                raise ArgumentTypeError(f"parts[{i}]: expected MultimodalData, got {brief(part)}; wrap it in that.")
        dims: dict[str, int] = {}
        for i, part in enumerate(parts):
            known = {name: width for name, width in part.dims.items() if name not in dims}
            dims = with_names({**dims, **known}, names_of(dims), part.feature_names)
            schema.require_widths(part, dims, f"parts[{i}]", "the parts before")
            if part.device != parts[0].device:
                raise DataError(
                    f"parts: expected one device, got {parts[0].device}, {part.device}; use .to(device=...)."
                )
        parts = [
            part.in_order_of(dims, f"parts[{i}]", "the parts before").conform(dims) for i, part in enumerate(parts)
        ]
        first = parts[0]
        dtype = max((part.dtype for part in parts), key=lambda kind: kind.itemsize)
        ids = join_columns("ids", [part.ids for part in parts])
        check_distinct(ids)
        return first._derive(
            _values={name: torch.cat([part._values[name].to(dtype) for part in parts]) for name in first.names},
            observed_mask=torch.cat([torch.stack([p.observed(n) for n in first.names], dim=1) for p in parts]),
            _nan_where_absent={n for n in first.names if all(n in part._nan_where_absent for part in parts)},
            feature_names=names_of(dims) or first.feature_names,
            missing="features" if any(part.missing == "features" for part in parts) else "modalities",
            ids=ids,
            labels=join_columns("labels", [part.labels for part in parts]),
            partition=join_columns("partition", [part.partition for part in parts]),
            covariates={
                key: join_columns(f"covariates[{key!r}]", [part.covariates.get(key) for part in parts])
                for key in dict.fromkeys(key for part in parts for key in part.covariates)
            },
            attributes={k: v for k, v in first.attributes.items() if all(p.attributes.get(k) == v for p in parts)},
        )

    # ---- fitting to a model -------------------------------------------------------------------------------------

    def require_schema(self, dims: Mapping[str, int]) -> None:
        """Check that these data have the modalities that a model expects, in any order.

        Args:
            dims: the number of features D_m of each modality of the model.

        Raises:
            SchemaError: a modality is missing or unknown, or has another width; the message lists them.

        Example:
            >>> MultimodalData({"image": torch.ones(2, 3)}).require_schema({"image": 3})
        """
        schema.require_schema(self, dims)

    def conform(self, dims: Mapping[str, int]) -> Self:
        """These data with the modalities of a model, in its order; those that no instance here has are wholly absent.

        Args:
            dims: the number of features D_m of each modality of the model.

        Raises:
            SchemaError: these data have a modality that ``dims`` lacks, or one of another width.

        Example:
            >>> data = MultimodalData({"text": torch.ones(2, 3)}).conform({"image": 5, "text": 3})
            >>> data.dims, data.observed_mask.tolist()
            ({'image': 5, 'text': 3}, [[False, True], [False, True]])
        """
        schema.require_widths(self, dims)
        if names_of(dims) and (ordered := self.in_order_of(dims)) is not self:
            return ordered.conform(dims)
        if tuple(dims) == self.names:
            return self
        # one NaN seen from every place of the array: absent modalities take no memory
        nan = torch.full((1, 1), torch.nan, dtype=self.dtype, device=self.device)
        nowhere = torch.zeros(len(self), dtype=torch.bool, device=self.device)
        return self._derive(
            names=tuple(dims),
            _values={n: self._values[n] if n in self else nan.expand(len(self), d) for n, d in dims.items()},
            observed_mask=torch.stack([self.observed(n) if n in self else nowhere for n in dims], dim=1),
            _nan_where_absent=self._nan_where_absent | {n for n in dims if n not in self},
            feature_names={n: self.feature_names[n] if n in self else names_of(dims).get(n) for n in dims},
        )

    # ---- display ------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        return display.text(self)

    def _repr_html_(self) -> str:
        return display.html(self)


def _identified(ids: object, index: Any, num_instances: int) -> tuple[np.ndarray | None, RowLabels]:  # noqa: ANN401
    """The identifiers of N rows whose modalities have a pandas Index or none; and what else may be labelled by."""
    found = None if index is None or counts_rows(index) else as_column("ids", index, num_instances)
    if ids is not None:
        arranged = RowLabels(num_instances, index).arranged("ids", ids) if index is not None else ids
        found = as_column("ids", arranged, num_instances)
        require_no_contradiction(found, index)
        index = row_index(ids) if index is None else index
    check_distinct(found)
    return found, RowLabels(num_instances, index, found)


def _require_options(missing: str, empty: str, **mappings: object) -> None:
    """Refuse options that there are not, and what should be a mapping and is none."""
    if missing not in ("modalities", "features"):
        raise ArgumentError(f"missing: expected 'modalities' or 'features', got {missing!r}.")
    if empty not in ("refuse", "drop"):
        raise ArgumentError(f"empty: expected 'refuse' or 'drop', got {empty!r}.")
    for argument, value in mappings.items():
        if not (value is None or isinstance(value, Mapping)):
            raise ArgumentTypeError(f"{argument}: expected a mapping of names, got {brief(value)}; pass a dict.")
