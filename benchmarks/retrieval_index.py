"""An index: a query against 17,337 candidates by the exact engine, and against a million by faiss.

The candidates show one modality of a model with latents of falling variance, as embeddings have them; the queries
another. Beside the exact engine stands ``cal.retrieve`` for the same query; beside the index over a million the bare
search of the same structure of faiss, with the query's vector made beforehand: what the index adds is to make it, and
to rank what was found exactly. Without arguments both are measured; arguments are "exact", or the size of the large
index and its structure.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import torch

import calmrl_prob as cal
from benchmarks.clock import cpu_seconds, paired, peak_megabytes
from benchmarks.tables import Row

FEATURES = 128
QUERIES = 500


def problem(num_candidates: int, latent_dim: int) -> tuple[cal.LinearGaussian, cal.MultimodalData, np.ndarray]:
    """A model, candidates, and queries that show the first of them."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.arange(1, latent_dim + 1.0) ** -0.75
    width = max(FEATURES, latent_dim)
    loadings = {n: torch.linalg.qr(torch.randn(width, latent_dim, generator=generator))[0] * spread for n in "qc"}
    zero = {name: torch.zeros(width) for name in loadings}
    lg = cal.LinearGaussian(loadings, zero, {name: torch.tensor(2e-3) for name in loadings})
    parts, queries = [], np.empty((0, width), np.float32)
    for start in range(0, num_candidates, 50_000):  # what is drawn of the other modality is let go
        drawn = lg.sample(min(50_000, num_candidates - start), generator).features
        parts.append(drawn["c"])
        queries = drawn["q"][:QUERIES].numpy() if not start else queries
    return lg, cal.MultimodalData({"c": torch.cat(parts)}), queries


def exact(num_candidates: int = 17_337, latent_dim: int = 192) -> Row:
    """Milliseconds of a single query, and of ``cal.retrieve`` for it."""
    lg, candidates, queries = problem(num_candidates, latent_dim)
    build = cpu_seconds(lambda: cal.RetrievalIndex.build(lg, candidates))
    index = cal.RetrievalIndex.build(lg, candidates)
    turn = iter(np.tile(np.arange(QUERIES), 1000))
    found = paired(
        {
            "index": lambda: index.search({"q": queries[next(turn)]}),
            "retrieve": lambda: cal.retrieve(lg, cal.MultimodalData({"q": queries[:1]}), candidates),
        },
        rounds=5,
    )
    return {
        "candidates": num_candidates,
        "K": latent_dim,
        "build_cpu_s": build,
        "query_ms": 1e3 * found["index"],
        "retrieve_ms": 1e3 * found["retrieve"],
    }


def large(num_candidates: int = 1_000_000, latent_dim: int = 128, structure: str = "hnsw") -> Row:
    """Build, milliseconds of a query against those of faiss alone, and how often the ten best are the right ones."""
    lg, candidates, queries = problem(num_candidates, latent_dim)
    start = time.perf_counter(), time.process_time()
    index = cal.RetrievalIndex.build(lg, candidates, "faiss", structure=structure, least_recall=0.9995)
    wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
    del candidates
    found, right = (index.search({"q": queries}, exact=exact).ids for exact in (False, True))
    equal = (np.sort(found, axis=1) == np.sort(right, axis=1)).all(axis=1)
    (approximate,) = index._approximate.values()
    neighbours, shelf, (asked,) = approximate.parts[0], index._held.shelves[0], index._asked.values()
    natural = index._instrument.natural_mean({"q": queries.astype(np.float64)})
    v, _ = asked.pair(0, shelf).asked(natural, index._scale)
    bare = [neighbours.search(v[n : n + 1], shelf, 10, approximate.effort)[0] for n in range(QUERIES)]
    shares = [len(np.intersect1d(one, other)) / 10 for one, other in zip(bare, right, strict=True)]
    turns = iter(np.tile(np.arange(QUERIES), 1000)), iter(np.tile(np.arange(QUERIES), 1000))
    y = (v @ neighbours.back.T).astype(np.float32)
    settings = neighbours.settings(shelf, 10, approximate.effort)

    def bare_search() -> None:
        n = next(turns[1])
        neighbours.found.search(y[n : n + 1], 10, params=settings)

    medians = paired({"index": lambda: index.search({"q": queries[next(turns[0])]}), "faiss": bare_search}, rounds=9)
    scan = cpu_seconds(lambda: index.search({"q": queries[0]}, exact=True), 5)
    return {
        "candidates": num_candidates,
        "K": latent_dim,
        "structure": structure,
        "build_wall_s": wall,
        "build_cpu_s": cpu,
        "effort": approximate.effort,
        "query_ms": 1e3 * medians["index"],
        "bare_ms": 1e3 * medians["faiss"],
        "ratio": medians["index"] / medians["faiss"],
        "recall": float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, right, strict=True)])),
        "bare_recall": float(np.mean(shares)),
        "ten_best_equal": float(equal.mean()),
        "scan_ms": 1e3 * scan,
        "peak_mb": peak_megabytes(),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    asked = sys.argv[1:]
    if asked in ([], ["exact"]):
        print(json.dumps(exact()))  # its output is its result
    if asked != ["exact"]:
        print(json.dumps(large(*map(int, asked[:1]), structure=(asked[1:] or ["hnsw"])[0])))
