"""Structures of faiss over one shelf for one pattern of queries: neighbours whose order is that of the ratio.

The likelihood ratio is -|y_c - y_q|^2 / 2 but for terms of the query, with y_c = R g_c (see ``pairs.py``): the inner
product [v, 1] . [g_c, b_c] turned into a distance at no cost in dimensions, of which graphs find more in less time, and
in R's rank, which is at most the number of features of the query.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from calmrl_prob._support.extras import optional
from calmrl_prob.errors import FileFormatError
from calmrl_prob.index.measured import Floats
from calmrl_prob.index.shelves import CHUNK, Shelf

Structure = Literal["hnsw", "ivfpq"]
STRUCTURES: tuple[Structure, ...] = ("hnsw", "ivfpq")

#: Links of a node of the graph, and candidates looked at to find them.
_LINKS, _CONSTRUCTION = 32, 80
#: Directions in which candidates of a pattern differ by less than this share of the most are left out.
_RANK_TOLERANCE = 1e-10
#: Cells of an inverted file for n candidates: this many times the root of n; and candidates a cell is learned from.
_CELLS, _PER_CELL = 4, 64


@dataclass(eq=False)
class Neighbours:
    """A structure of faiss over the first candidates of a shelf.

    Attributes:
        forth: R, (r, K): y_c = R g_c.
        back: (r, K): y_q = back v.
        found: the structure.
    """

    forth: Floats
    back: Floats
    found: Any

    def __getstate__(self) -> dict[str, Any]:
        """The structure as bytes: this is what travels."""
        return {**self.__dict__, "found": self.to_bytes()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The same structure from its bytes."""
        self.__dict__.update(Neighbours.from_bytes(state["forth"], state["back"], state["found"]).__dict__)

    def __len__(self) -> int:
        """Number of candidates that it has."""
        return int(self.found.ntotal)

    def extend(self, shelf: Shelf) -> None:
        """Add candidates of the shelf that are new."""
        for part in _moved(shelf, self.forth, len(self)):
            self.found.add(part)

    def search(self, v: Floats, shelf: Shelf, count: int, effort: int) -> NDArray[np.int64]:
        """Places on the shelf of about ``count`` nearest to each query, (n, count); -1 where fewer were found.

        Args:
            v: (n, K), as :meth:`Pair.asked` makes them.
            shelf: the shelf.
            count: how many.
            effort: candidates that a graph keeps in view, or cells of an inverted file that are looked into.
        """
        y = (v @ self.back.T).astype(np.float32)
        places: NDArray[np.int64] = self.found.search(y, count, params=self.settings(shelf, count, effort))[1]
        return places

    def settings(self, shelf: Shelf, count: int, effort: int) -> Any:  # noqa: ANN401 - an object of faiss
        """The parameters of faiss for such a search."""
        lib = faiss_library()
        options = {}
        if not shelf.all_alive:
            options["sel"] = lib.IDSelectorBitmap(np.packbits(shelf.alive, bitorder="little"))
        if isinstance(self.found, lib.IndexHNSWFlat):
            return lib.SearchParametersHNSW(efSearch=max(effort, count), **options)
        return lib.SearchParametersIVF(nprobe=effort, **options)

    def to_bytes(self) -> NDArray[np.uint8]:
        """The structure as faiss writes it."""
        written: NDArray[np.uint8] = faiss_library().serialize_index(self.found)
        return written

    @classmethod
    def from_bytes(cls, forth: Floats, back: Floats, written: NDArray[np.uint8]) -> Neighbours:
        """The structure that :meth:`to_bytes` wrote.

        Raises:
            FileFormatError: it did not.
        """
        lib = faiss_library()
        try:
            found = lib.deserialize_index(written)
        except RuntimeError as error:
            raise FileFormatError(f"a structure of faiss cannot be read ({str(error)[:200]})") from error
        if found.d != len(forth):
            raise FileFormatError(f"a structure of faiss has {found.d} dimensions, expected {len(forth)}")
        return cls(forth, back, found)


def build(shelf: Shelf, spread: Floats, structure: Structure) -> Neighbours:
    """A structure over all candidates of a shelf.

    Args:
        shelf: the candidates.
        spread: R^T R, (K, K).
        structure: "hnsw", a graph of float32 vectors, or "ivfpq", an inverted file of one byte for two numbers.
    """
    lib = faiss_library()
    values, vectors = np.linalg.eigh(spread)
    used = values > _RANK_TOLERANCE * values[-1]
    roots, basis = np.sqrt(values[used]), vectors[:, used].T
    forth, back = roots[:, None] * basis, basis / roots[:, None]
    if structure == "ivfpq" and len(forth) % 2:  # codes are of two numbers each
        forth, back = (np.pad(part, ((0, 1), (0, 0))) for part in (forth, back))
    width = len(forth)
    if structure == "hnsw":
        found = lib.IndexHNSWFlat(width, _LINKS, lib.METRIC_L2)
        found.hnsw.efConstruction = _CONSTRUCTION
    else:
        cells = max(1, min(int(_CELLS * len(shelf) ** 0.5), len(shelf) // _PER_CELL))
        found = lib.IndexIVFPQ(lib.IndexFlatL2(width), width, cells, width // 2, 8, lib.METRIC_L2)
        for learned in (found.cp, found.pq.cp):
            learned.min_points_per_centroid = 1  # else faiss prints what it thinks of few candidates
        every = max(1, len(shelf) // max(cells * _PER_CELL, 2**14))
        found.train(np.concatenate(list(_moved(shelf, forth, 0)))[::every])
    built = Neighbours(forth, back, found)
    built.extend(shelf)
    return built


def _moved(shelf: Shelf, forth: Floats, start: int) -> list[NDArray[np.float32]]:
    """y_c of the candidates from ``start`` on, some at a time."""
    firsts = range(start, len(shelf), CHUNK)
    return [(shelf.numbers(slice(n, n + CHUNK)) @ forth.T).astype(np.float32) for n in firsts]


def faiss_library() -> Any:  # noqa: ANN401 - a module without annotations
    """The module faiss.

    Raises:
        MissingDependencyError: it is not installed.
    """
    return optional("faiss", "faiss", "engine='faiss'")
