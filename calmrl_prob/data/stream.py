"""MultimodalStream: data that come in chunks, as often as asked for, of which only the schema is held."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import torch

from calmrl_prob._support.arguments import brief, described, whole_number
from calmrl_prob.data.features import Names, names_of, with_names
from calmrl_prob.data.multimodal import MultimodalData
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, DataError, SchemaError

#: Numbers in a chunk where its size is not given.
_NUMBERS = 2**23

Load = Callable[[], MultimodalData]
#: Chunks of about so many rows each, by token, each had when called: always the same for the same size.
Plan = Callable[[int], Iterable[tuple[str, Load]]]


class MultimodalStream:
    """Data in chunks of :class:`~calmrl_prob.MultimodalData`, of one schema, again and again in the same order.

    Nothing is held but the schema: a chunk is read when it is asked for, brought to the modalities, the order of
    features and the type of the schema, and let go. ``cal.read(path, stream=True)`` makes one of files,
    :meth:`from_chunks` of a function. It can be sent to other processes where its ``plan`` can.

    Args:
        dims: the number of features D_m of each modality, with their names where they are known.
        plan: ``plan(size)`` gives chunks of about ``size`` rows as (token, function of nothing), in their order.
        dtype: of the chunks: torch.float32 or torch.float64; that of each chunk if None.
        num_rows: N over all chunks; None if it is not known.
        state: what the rows depend on, such as names, sizes and times of files; for ``fingerprint``.

    Attributes:
        names: the M modalities.
        dims, dtype, num_rows: the same.
        feature_names: of each modality the D_m names of its columns, None where it came without.
        fingerprint: a digest of schema and ``state`` (of a function what its first chunk looks like), by which a
            fit that goes on from a file knows its stream.

    Example:
        >>> from calmrl_prob import MultimodalData
        >>> parts = [MultimodalData({"x": torch.ones(3, 2)}), MultimodalData({"x": torch.zeros(2, 2)})]
        >>> stream = MultimodalStream.from_chunks(lambda: parts)
        >>> [len(chunk) for chunk in stream], [len(chunk) for chunk in stream.chunks(2)]
        ([3, 2], [2, 1, 2])
        >>> [token for token, _ in stream.items(2, after="chunk 0, rows 0 to 2")]
        ['chunk 0, rows 2 to 3', 'chunk 1']
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        plan: Plan,
        *,
        dtype: torch.dtype | None = None,
        num_rows: int | None = None,
        state: Iterable[Any] = (),
    ) -> None:
        self.names = tuple(dims)
        self.dims = with_names(dict(dims), names_of(dims))
        self.dtype, self.num_rows = dtype, num_rows
        self._plan, self._rows_seen = plan, num_rows
        described_by = [*self.dims.items(), sorted(map(str, self.feature_names.items())), str(dtype), num_rows, *state]
        self.fingerprint = hashlib.sha256(repr(described_by).encode()).hexdigest()

    @property
    def feature_names(self) -> dict[str, Names | None]:
        """Names of the features of each modality, None where they are not known."""
        return {name: names_of(self.dims).get(name) for name in self.names}

    @classmethod
    def from_chunks(cls, factory: Callable[[], Iterable[Any]], schema: Mapping[str, int] | None = None) -> Self:
        """A stream of what a function gives, called anew for every pass.

        Args:
            factory: returns chunks in the same order each time: MultimodalData, or mappings of names to arrays.
            schema: ``dims`` of the data, where not every chunk has all modalities; those of the first chunk by default.

        Raises:
            ArgumentTypeError: ``factory`` cannot be called, gives something else, or the same iterator each time.
            DataError: there is no chunk.
        """
        if not callable(factory):
            raise ArgumentTypeError(
                f"factory: expected a function that returns chunks anew each time, got {described(factory)}; "
                "pass lambda: (read(k) for k in range(10)), say."
            )
        given = factory()
        if isinstance(given, Iterator) and factory() is given:
            raise ArgumentTypeError(
                "factory: expected chunks anew each time, got the same iterator twice, which is read once; make it "
                "inside the function, as in lambda: (read(k) for k in range(10))."
            )
        first = next(iter(_FromFactory(lambda: given)(2**62)), None)
        if first is None:
            raise DataError("factory: it gives no chunks; give at least one.")
        chunk = first[1]()
        return cls(chunk.dims if schema is None else schema, _FromFactory(factory), state=_look_of(chunk))

    def __iter__(self) -> Iterator[MultimodalData]:
        return self.chunks()

    def chunks(self, size: int | None = None) -> Iterator[MultimodalData]:
        """The chunks of one pass.

        Args:
            size: rows of a chunk, at most; by default about 8 million numbers.
        """
        return (chunk for _, chunk in self.items(size))

    def items(self, size: int | None = None, after: str | None = None) -> Iterator[tuple[str, MultimodalData]]:
        """The chunks of one pass with their tokens, which name files, row groups and rows, and are the same each time.

        Args:
            size: rows of a chunk, at most; by default about 8 million numbers.
            after: the token of a chunk of a pass of the same size: the pass goes on behind it, reading nothing before.

        Raises:
            ArgumentError: there is no chunk ``after``, or ``size`` is below 1.
            SchemaError: a chunk has other modalities or features; names it.
            DataError: it breaks a rule of MultimodalData, or another number of rows came than in the pass before.
        """
        return self._pass(self._chunk_rows(size), after)

    def parts(self, size: int | None = None) -> Iterator[tuple[str, Load]]:
        """The tokens of a pass with functions that read the chunks, here or in another process; nothing is read."""
        return ((token, partial(self._conformed, token, load)) for token, load in self._plan(self._chunk_rows(size)))

    def _chunk_rows(self, size: int | None) -> int:
        return max(1, _NUMBERS // sum(self.dims.values())) if size is None else whole_number("size", size, least=1)

    def _pass(self, size: int, after: str | None) -> Iterator[tuple[str, MultimodalData]]:
        found, seen = after is None, 0
        for token, load in self._plan(size):
            if not found:
                found = token == after
                continue
            chunk = self._conformed(token, load)
            seen += len(chunk)
            yield token, chunk
        if not found:
            raise ArgumentError(
                f"after: no chunk of {size} rows is called {after!r}; the size is another, or the data have changed."
            )
        if after is None:
            self.require_same(seen)

    def require_same(self, seen: int) -> None:
        """Note the rows of a whole pass.

        Raises:
            DataError: another had another number.
        """
        if self._rows_seen not in (None, seen):
            raise DataError(f"stream: this pass had {seen} rows, the one before {self._rows_seen}; it has changed.")
        self._rows_seen = seen

    def _conformed(self, token: str, load: Callable[[], MultimodalData]) -> MultimodalData:
        """A chunk in the schema."""
        try:
            data = load()
            if isinstance(self._plan, _FromFactory) and not set(data.names) <= set(self.names):
                raise SchemaError(
                    f"it has the modalities {list(data.names)}, the stream {list(self.names)}, which are those of the "
                    "first chunk unless schema= says otherwise; pass from_chunks schema= with the widths of all of "
                    "them, or leave others out with select."
                )
            data = data.conform(self.dims).renamed(names_of(self.dims))
        except (DataError, ArgumentTypeError) as error:
            kind = SchemaError if isinstance(error, SchemaError) else DataError
            raise kind(f"{token}: {error}") from error
        return data if self.dtype in (None, data.dtype) else data.to(self.dtype)

    def __repr__(self) -> str:
        count = "an unknown number of" if self.num_rows is None else f"{self.num_rows:,}"
        widths = ", ".join(f"{name}: {width}" for name, width in self.dims.items())
        return f"MultimodalStream of {count} instances ({widths})"


def require_data(value: object, argument: str = "data") -> None:
    """Refuse what is no data in memory.

    Raises:
        ArgumentTypeError: naming ``argument``.
    """
    if isinstance(value, MultimodalStream):
        raise ArgumentTypeError(
            f"{argument}: expected MultimodalData, got a stream, which cal.fit, cal.impute, cal.write, "
            "RetrievalIndex.build and align take; pass data that fit in memory, such as one of its chunks."
        )
    if not isinstance(value, MultimodalData):
        raise ArgumentTypeError(
            f"{argument}: expected MultimodalData, got {described(value)}; wrap it in MultimodalData."
        )


def _look_of(chunk: MultimodalData) -> list[object]:
    """Rows, ids and missing pattern, by which streams are told apart; not values, which may be computed anew."""
    ids = b"" if chunk.ids is None or chunk.ids.dtype.kind == "O" else np.ascontiguousarray(chunk.ids).tobytes()
    seen = hashlib.sha256(ids + chunk.observed_mask.cpu().numpy().tobytes()).hexdigest()
    return [len(chunk), chunk.names, seen]


def _length(chunk: Any) -> int:  # noqa: ANN401 - whatever the user's function gives
    """Rows of a chunk; 1 of what is none, which is refused when it is read."""
    if isinstance(chunk, Mapping):
        chunk = next(iter(chunk.values()), ())
    return len(chunk) if hasattr(chunk, "__len__") else 1


@dataclass(frozen=True)
class _FromFactory:
    """Chunks as a function gives them, those larger than asked for in parts."""

    factory: Callable[[], Iterable[Any]]

    def __call__(self, size: int) -> Iterator[tuple[str, Callable[[], MultimodalData]]]:
        given = self.factory()
        if not isinstance(given, Iterable):
            raise ArgumentTypeError(
                f"factory: expected a function that returns chunks, such as a list or a generator of them, got "
                f"{described(given)} from it; return [chunk, ...]."
            )
        for number, chunk in enumerate(given):
            name, length = f"chunk {number}", _length(chunk)
            for start in range(0, length, size):
                stop = min(start + size, length)
                whole = stop - start == length
                yield (
                    (name, _Given(name, chunk))
                    if whole
                    else (
                        f"{name}, rows {start} to {stop}",
                        _Given(name, chunk, slice(start, stop)),
                    )
                )


@dataclass(frozen=True)
class _Given:
    """A chunk that is there, or a part of it, as data in which single features may be missing."""

    name: str
    chunk: Any
    rows: slice | None = None

    def __call__(self) -> MultimodalData:
        data = self.chunk
        if isinstance(data, Mapping):
            data = MultimodalData(data, missing="features")
        if not isinstance(data, MultimodalData):
            raise ArgumentTypeError(
                f"factory: expected MultimodalData or mappings of names to arrays, got {brief(data)} as {self.name}."
            )
        return data if self.rows is None else data.subset(self.rows)
