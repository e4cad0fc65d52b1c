"""Dask clusters: the one that a user has, or one on this machine for the time of a call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from calmrl_prob._support.arguments import described
from calmrl_prob._support.extras import optional
from calmrl_prob.errors import ArgumentTypeError, CalmrlError, DistributedError


@contextmanager
def connected(client: object) -> Iterator[Any]:
    """The client given, or one of a cluster on this machine that ends with the call.

    Raises:
        MissingDependencyError: dask.distributed is not installed.
        ArgumentTypeError: ``client`` is no client.
        DistributedError: it is not connected, or there are no workers.
    """
    distributed = _distributed()
    if client is None:
        with distributed.LocalCluster(dashboard_address=":0") as cluster, distributed.Client(cluster) as own:
            yield own
        return
    if not isinstance(client, distributed.Client):
        raise ArgumentTypeError(f"client: expected a dask.distributed.Client, got {described(client)}; pass one.")
    if client.status != "running":
        raise DistributedError(f"client: it is {client.status}, not connected to a scheduler; make a new one.")
    if not client.nthreads():
        raise DistributedError("client: the cluster has no workers; start some, and wait for them.")
    yield client


@contextmanager
def failures_told() -> Iterator[None]:
    """Errors of the library as they are; whatever else happens on a cluster as the one typed error.

    Raises:
        DistributedError: a worker or the scheduler was lost for good, or a worker cannot do what it was asked to.
    """
    try:
        yield
    except (CalmrlError, OSError):
        raise
    except Exception as error:
        raise DistributedError(
            f"engine: the cluster failed ({type(error).__name__}: {error}); see the workers' logs, and that each sees "
            "the same files and has the same packages. What was written stays, and is not done again."
        ) from error


def completed(futures: Sequence[Any], *, with_results: bool = False) -> Iterator[Any]:
    """Futures as they end, each with its result if asked for."""
    found: Iterator[Any] = _distributed().as_completed(futures, with_results=with_results)
    return found


def _distributed() -> Any:  # noqa: ANN401 - a module
    return optional("dask.distributed", "dask", "engine='dask'")
