"""One pass over a stream by the workers of a Dask cluster: statistics of partitions, added up as a tree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from calmrl_prob._support.progress import Callback
from calmrl_prob.data.stream import Load, MultimodalStream
from calmrl_prob.errors import ArgumentError, CalmrlError, DataError, MissingDependencyError
from calmrl_prob.selection.gathering import Gathered, GatherOptions, shift_of

#: Partitions for each thread of the cluster: enough that the last of them is not waited for long.
_PARTS = 4


def gather_by_dask(
    stream: MultimodalStream, empty: Gathered, options: GatherOptions, advance: Callback | None
) -> Gathered:
    """What is gathered of a stream, each partition by the worker that is free; a lost worker's are done again.

    Args:
        stream: whose chunks can be read from every worker.
        empty: nothing yet.
        options: of the pass.
        advance: told of the rows so far.

    Raises:
        MissingDependencyError: dask.distributed is not installed.
        ArgumentError: ``client`` is none, or there is no worker.
        DataError: a chunk breaks a rule; it is named.
    """
    parts = list(stream.parts(options.chunk_rows))
    if not parts:
        raise DataError("data: the stream has no rows; give at least one chunk.")
    with _connected(options.client) as client:
        from dask.distributed import as_completed

        threads = sum(client.nthreads().values())
        if threads == 0:
            raise ArgumentError("client: the cluster has no workers; start some, and wait for them.")
        base = empty.about(shift_of(parts[0][1]()))
        size = -(-len(parts) // (_PARTS * threads))
        futures = [
            client.submit(_gathered, base, parts[start : start + size], pure=False)
            for start in range(0, len(parts), size)
        ]
        counted = 0
        for future in as_completed(futures) if advance is not None else ():
            if future.status == "finished":
                counted += client.submit(_num_rows, future).result()
                advance(counted, float("nan"))
        while len(futures) > 1:
            pairs = [futures[i : i + 2] for i in range(0, len(futures), 2)]
            futures = [client.submit(Gathered.merge, *pair) if len(pair) == 2 else pair[0] for pair in pairs]
        try:
            found: Gathered = futures[0].result()
        except CalmrlError:
            raise
        except Exception as error:
            raise DataError(
                f"data: a worker failed ({type(error).__name__}: {error}); see its log, and that it reads the files."
            ) from error
    return found


def _gathered(base: Gathered, parts: Sequence[tuple[str, Load]]) -> Gathered:
    """What is gathered of some chunks."""
    found = base.about(base.folds[0].to_tensors()["shift"])
    for token, load in parts:
        found.add(token, load())
    return found


def _num_rows(gathered: Gathered) -> int:
    return gathered.num_rows


@contextmanager
def _connected(client: Any) -> Iterator[Any]:  # noqa: ANN401 - of an optional dependency
    """The client, or one of a cluster on this machine that ends with the pass."""
    try:
        from dask.distributed import Client, LocalCluster
    except ImportError as error:
        raise MissingDependencyError(
            "engine: 'dask' needs dask.distributed; pip install calmrl-prob[dask]."
        ) from error
    if client is not None:
        if not isinstance(client, Client):
            raise ArgumentError(f"client: expected a dask.distributed.Client, got {type(client).__name__}.")
        yield client
        return
    with LocalCluster(dashboard_address=None) as cluster, Client(cluster) as own:
        yield own
