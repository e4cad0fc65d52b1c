"""One pass over a stream by the workers of a Dask cluster: statistics of partitions, added up as a tree."""

from __future__ import annotations

from collections.abc import Sequence

from calmrl_prob._support.dask import completed, connected, failures_told
from calmrl_prob._support.progress import Callback
from calmrl_prob.data.stream import Load, MultimodalStream
from calmrl_prob.errors import DataError
from calmrl_prob.selection.gathering import Gathered, GatherOptions, shift_of

#: Partitions for each thread of the cluster: enough that the last of them is not waited for long.
_PARTS = 4


def gather_by_dask(
    stream: MultimodalStream, empty: Gathered, options: GatherOptions, advance: Callback | None
) -> Gathered:
    """Statistics of a stream, each partition by the worker that is free; a lost worker's are done again.

    Args:
        stream: whose chunks can be read from every worker.
        empty: nothing yet.
        options: of the pass.
        advance: told of the rows so far.

    Raises:
        MissingDependencyError: dask.distributed is not installed.
        ArgumentTypeError: ``client`` is none.
        DistributedError: the cluster has no workers, or fails.
        DataError: there are no chunks, or one breaks a rule; it is named.
    """
    parts = list(stream.parts(options.chunk_rows))
    if not parts:
        raise DataError("data: the stream has no rows; give at least one chunk.")
    with connected(options.client) as client, failures_told():
        base = empty.about(shift_of(parts[0][1]().conform(empty.dims)))
        size = -(-len(parts) // (_PARTS * sum(client.nthreads().values())))
        futures = [
            client.submit(_gathered, base, parts[start : start + size], pure=False)
            for start in range(0, len(parts), size)
        ]
        if advance is not None:
            counts = client.map(_num_rows, futures, pure=False)
            counted = 0
            for _, count in completed(counts, with_results=True):
                counted += count
                advance(counted, float("nan"))
        while len(futures) > 1:
            pairs = [futures[i : i + 2] for i in range(0, len(futures), 2)]
            futures = [client.submit(Gathered.merge, *pair) if len(pair) == 2 else pair[0] for pair in pairs]
        found: Gathered = futures[0].result()
    return found


def _gathered(base: Gathered, parts: Sequence[tuple[str, Load]]) -> Gathered:
    """Statistics of some chunks."""
    found = base.about(base.folds[0].to_tensors()["shift"])
    for token, load in parts:
        found.add(token, load())
    return found


def _num_rows(gathered: Gathered) -> int:
    return gathered.num_rows
