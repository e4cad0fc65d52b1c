"""One pass over a stream, in this process or by the workers of a Dask cluster."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from calmrl_prob._support.progress import Callback, progress_bar
from calmrl_prob.data.features import names_of, with_names
from calmrl_prob.data.stream import MultimodalStream
from calmrl_prob.linear_gaussian import SufficientStatistics
from calmrl_prob.selection.folds import FoldedStatistics
from calmrl_prob.selection.gathering import Gathered, GatherOptions, Groups

#: Rows from which on a bar is shown by default.
_LONG = 50_000


def gather(
    stream: MultimodalStream,
    num_folds: int,
    seed: int,
    options: GatherOptions,
    groups: Groups = None,
    progress: bool | None = None,
    like: object = None,
) -> FoldedStatistics | SufficientStatistics:
    """Statistics of a stream by fold, in one pass.

    Args:
        stream: of rows that have whole modalities or lack them.
        num_folds: 1 for statistics of all rows together.
        seed: of dealing rows to folds.
        options: how to pass over it.
        groups: what rows must share a fold by: the name of a covariate, or a function of a chunk; None for their ids.
        like: a model, in the order of whose modalities statistics are to be.
        progress: show a bar on standard error; None for where rows are many, or not counted, and it is a terminal.

    Returns:
        FoldedStatistics with samples of the rows; SufficientStatistics for one fold.

    Raises:
        DataError: there are no rows, or rows without a modality or that lack single features; the chunk is named.
        SchemaError: a chunk has other modalities.
        ArgumentError: the patterns are so many that their statistics do not fit; or the state is of another stream.
        FileFormatError: the state is damaged.

    Example:
        >>> from calmrl_prob.datasets import make_synthetic
        >>> data = make_synthetic(90, {"image": 4, "text": 3}, latent_dim=2, seed=0).data
        >>> stream = MultimodalStream.from_chunks(lambda: [data.subset(range(50)), data.subset(range(50, 90))])
        >>> gather(stream, 3, 0, GatherOptions()).num_instances
        90
    """
    dims = getattr(like, "dims", stream.dims)
    same = set(dims) == set(stream.dims)
    order = {name: stream.dims[name] for name in dims} if same else stream.dims
    empty = Gathered(with_names(order, names_of(stream.dims)), num_folds, seed, groups)
    with _shown(progress, stream) as advance:
        if options.engine == "dask":
            from calmrl_prob.selection.dask_pass import gather_by_dask

            return gather_by_dask(stream, empty, options, advance).statistics()
        return _gather_here(stream, empty, options, advance).statistics()


def _gather_here(
    stream: MultimodalStream, empty: Gathered, options: GatherOptions, advance: Callback | None
) -> Gathered:
    about = {
        "stream": stream.fingerprint,
        "chunk_rows": options.chunk_rows,
        "folds": len(empty.folds),
        "seed": empty.seed,
        "groups": empty.groups if isinstance(empty.groups, str) else empty.groups is not None,
    }
    state = None
    if options.state is not None:
        from calmrl_prob.selection.gathered_state import StateFile

        state = StateFile(options.state, about)
    gathered = empty if state is None else state.load(empty)
    saved = time.monotonic()
    for token, chunk in stream.items(options.chunk_rows, after=gathered.token):
        gathered.add(token, chunk)
        if advance is not None:
            advance(gathered.num_rows, float("nan"))
        if state is not None and time.monotonic() - saved >= options.save_seconds:
            state.save(gathered)
            saved = time.monotonic()
    if state is not None:
        state.save(gathered)  # the fit that follows may be killed too, and removes it when it is through
    return gathered


@contextmanager
def _shown(progress: bool | None, stream: MultimodalStream) -> Iterator[Callback | None]:
    if progress is None:
        progress = (stream.num_rows is None or stream.num_rows >= _LONG) and sys.stderr.isatty()
    if not progress:
        yield None
        return
    with progress_bar("reading rows", stream.num_rows) as callback:
        yield callback
