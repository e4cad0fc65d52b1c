"""Contents to be written, of data, streams and imputations alike: schema, and chunks of rows made one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from calmrl_prob._support.arguments import described
from calmrl_prob.data import MultimodalData
from calmrl_prob.data.features import Names
from calmrl_prob.data.stream import MultimodalStream
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, DataError
from calmrl_prob.imputation import Imputation

#: Numbers of all modalities in a chunk, for each quantity.
_NUMBERS = 2**22
#: Quantities of an imputation; the first is the data where observed and the mean where not.
QUANTITIES = ("completed", "mean", "sd", "lower", "upper", "imputed")


@dataclass(frozen=True)
class Chunk:
    """Some rows.

    Attributes:
        start: number of the first one.
        columns: ids, labels, partition and covariates, (n, ...) each.
        values: of each modality its quantities, (n, D_m) each.
        latents: "latent" and "latent_sd", (n, K) each; empty of data.
    """

    start: int
    columns: dict[str, NDArray[Any]]
    values: dict[str, dict[str, NDArray[Any]]]
    latents: dict[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def stop(self) -> int:
        """Number of the row behind the last one."""
        return self.start + len(next(iter(next(iter(self.values.values())).values())))


@dataclass(frozen=True)
class Contents:
    """Data, a stream or an imputation, to be written.

    Attributes:
        dims: D_m of each modality.
        feature_names: of each, None where they are not known.
        quantities: of each modality; ("x",) of data.
        num_rows: N; None if it is not known.
        facts: about the whole, such as the level of the intervals.
        chunks: makes the chunks, in order.
    """

    dims: Mapping[str, int]
    feature_names: Mapping[str, Names | None]
    quantities: tuple[str, ...]
    num_rows: int | None
    facts: Mapping[str, str | float]
    chunks: Callable[[], Iterator[Chunk]]

    @property
    def known_rows(self) -> int:
        """N, of what can only be written where it is known before.

        Raises:
            ArgumentError: it is not.
        """
        if self.num_rows is None:
            raise ArgumentError(
                "what: how many rows the stream has is not known, which this format has to; write .parquet, or go "
                "through the stream once before."
            )
        return self.num_rows


def contents_of(what: object, level: float) -> Contents:
    """The contents of data, of a stream, or of an imputation.

    Raises:
        ArgumentTypeError: it is none of these.

    Example:
        >>> contents_of(MultimodalData({"x": torch.ones(2, 3)}), 0.9).quantities
        ('x',)
    """
    if isinstance(what, Imputation):
        dims = {name: what.posterior.dims[name] for name in what.names}
        size = max(1, _NUMBERS // sum(dims.values()))
        facts: dict[str, str | float] = {"level": level, "route": what.posterior.route}
        names = {name: what.data.feature_names.get(name) for name in what.names}
        return Contents(dims, names, QUANTITIES, len(what.data), facts, lambda: _imputed(what, size, level))
    if isinstance(what, MultimodalData):
        size = max(1, _NUMBERS // sum(what.dims.values()))
        return Contents(what.dims, what.feature_names, ("x",), len(what), {}, lambda: _data(_cut(what, size)))
    if isinstance(what, MultimodalStream):
        return Contents(what.dims, what.feature_names, ("x",), what.num_rows, {}, lambda: _data(iter(what)))
    raise ArgumentTypeError(
        f"what: expected an imputation, MultimodalData or a stream of them, got {described(what)}; pass what "
        "cal.impute or cal.read returned."
    )


def names_of_all(contents: Contents) -> list[str]:
    """Names by which ``cal.read`` knows modalities, their quantities and the latents.

    Example:
        >>> names_of_all(contents_of(MultimodalData({"x": torch.ones(2, 3)}), 0.9))
        ['x']
    """
    if contents.quantities == ("x",):
        return list(contents.dims)
    quantities = [f"{name}.{quantity}" for name in contents.dims for quantity in contents.quantities]
    return [*contents.dims, *quantities, "latent", "latent_sd"]


def require_apart(names: Iterable[str], where: str) -> None:
    """Refuse a name that would stand twice.

    Raises:
        ArgumentError: a modality is called as a covariate, the latents, or a quantity of another is.

    Example:
        >>> require_apart(["protein", "protein.sd", "labels"], "parquet")
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ArgumentError(
                f"what: {name!r} would stand twice in {where}, where modalities lie beside latents and what else is "
                "known of the instances; give the modality, or the covariate, another name."
            )
        seen.add(name)


def require_no_paths(names: Iterable[str], ending: str) -> None:
    """Refuse modalities whose names are paths inside a file.

    Raises:
        ArgumentError: one is.

    Example:
        >>> require_no_paths(["protein", "protein.2"], ".zarr")
    """
    for name in names:
        if "/" in name or "\0" in name or name.startswith("."):
            raise ArgumentError(
                f"what: a modality cannot be called {name!r} in {ending}, where '/' and a '.' at the beginning are of "
                "paths; give it another name, or write .parquet."
            )


def _cut(data: MultimodalData, size: int) -> Iterator[MultimodalData]:
    return (data.subset(slice(start, start + size)) for start in range(0, len(data), size))


def _data(parts: Iterator[MultimodalData]) -> Iterator[Chunk]:
    start = 0
    for data in parts:
        yield Chunk(start, _columns(data), {name: {"x": data[name].numpy(force=True)} for name in data.names})
        start += len(data)


def _imputed(imputation: Imputation, size: int, level: float) -> Iterator[Chunk]:
    """Rows of an imputation: what is computed of a part is let go with it."""
    for rows, part in imputation.parts(size):
        ends = part.interval(level)
        values = {}
        for name in part.names:
            lower, upper = ends[name]
            found = {
                "completed": part.completed[name],
                "mean": part.mean[name],
                "sd": part.variance[name].sqrt(),
                "lower": lower,
                "upper": upper,
                "imputed": ~part.data.feature_mask(name),
            }
            values[name] = {key: value.numpy(force=True) for key, value in found.items()}
        mean, covariance = part.posterior.mean, part.posterior.covariance
        sd = torch.diagonal(covariance, dim1=-2, dim2=-1).sqrt()
        latents = {"latent": mean.numpy(force=True), "latent_sd": sd.numpy(force=True)}
        yield Chunk(rows.start, _columns(part.data), values, latents)


def _columns(data: MultimodalData) -> dict[str, NDArray[Any]]:
    known = {"ids": data.ids, "labels": data.labels, "partition": data.partition, **data.covariates}
    return {name: np.asarray(column) for name, column in known.items() if column is not None}


def columns_of(parts: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Columns of all chunks, one after another.

    Raises:
        DataError: one of the chunks lacks some.

    Example:
        >>> columns_of([{"ids": np.array(["a"])}, {"ids": np.array(["b"])}])["ids"].tolist()
        ['a', 'b']
    """
    if any(part.keys() != parts[0].keys() for part in parts):
        raise DataError(
            f"what: its chunks have different columns, {[list(part) for part in parts[:2]]}; give all the same."
        )
    return {name: _end_to_end([part[name] for part in parts]) for name in parts[0]}


def _end_to_end(columns: list[NDArray[Any]]) -> NDArray[Any]:
    mixed = len({column.dtype.kind for column in columns}) > 1  # numpy would make texts of numbers
    return np.concatenate([column.astype(object) if mixed else column for column in columns])


def one_dimensional(name: str, column: NDArray[Any]) -> NDArray[Any]:
    """A column, if it has one entry for each row.

    Raises:
        DataError: it has more.

    Example:
        >>> one_dimensional("age", np.array([30, 40])).tolist()
        [30, 40]
    """
    if column.ndim != 1:
        raise DataError(
            f"covariates[{name!r}]: it has shape {column.shape}, and tables hold one entry for each instance; write "
            ".npz, or make each of its columns a covariate."
        )
    return column
