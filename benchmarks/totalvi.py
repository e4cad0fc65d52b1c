"""Proteins of cells imputed from their RNA, by totalVI of scvi-tools and here: ``python -m benchmarks.totalvi FILE``.

``FILE`` has arrays ``counts_rna``, ``counts_adt`` (-1 where absent), ``x_rna``, ``x_adt`` (log-normalised counts, NaN
where absent), ``labels`` and ``batch``, as ``pbmc_mosaic.npz`` does. Three quarters of the cells are learned from, with
the assays that they have; of the others that have both assays the proteins are hidden. Here sees log-normalised counts.
totalVI sees counts, and the RNA of the cells to impute too, each batch of which it is told as one of its own without
proteins, read off as the batch that it is; its settings are its defaults. What it imputes is the mean over 25 draws of
log-normalised counts, drawn from its negative binomials, as the logarithm of a mean is too large for proteins of few
counts. Without scvi-tools (the extra ``scvi``) its row is left out.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch

import argparse
import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

import calmrl_prob as cal
from benchmarks.clock import cpu_seconds
from benchmarks.tables import Row, in_own_process, show

SEEDS, DRAWS = (0, 1, 2), 25
Array = NDArray[Any]


class Cells(NamedTuple):
    """A file's arrays, and the rows of them to learn from and to impute."""

    arrays: Mapping[str, Array]
    train: Array
    test: Array

    @classmethod
    def of(cls, path: str, seed: int) -> Cells:
        """Part the cells, classes evenly."""
        with np.load(path, allow_pickle=False) as found:
            arrays = dict(found)
        data = cal.MultimodalData(
            {name: arrays[f"x_{name}"] for name in ("rna", "adt")},
            labels=arrays["labels"],
            covariates={"row": np.arange(len(arrays["labels"]))},
            empty="refuse",
        )
        train, test = data.split(0.75, seed=seed, stratify=True)
        rows = (part.covariates["row"] for part in (train, test.subset(test.complete_rows())))
        return cls(arrays, *(np.asarray(each) for each in rows))

    def has(self, name: str, rows: Array) -> Array:
        """Which of the rows have an assay, (n,) bool."""
        return np.asarray(self.arrays[f"counts_{name}"][rows, 0] >= 0)

    def moments(self, name: str) -> tuple[Array, Array]:
        """Mean and standard deviation of each feature in the training rows."""
        known = self.arrays[f"x_{name}"][self.train[self.has(name, self.train)]].astype(np.float64)
        sd = known.std(0)
        return known.mean(0), np.where(sd > 0, sd, 1.0)  # a rare gene may be constant in the training rows


def default(cells: Cells, seed: int) -> Array:
    """This package, with nothing chosen."""
    scaled = {}
    for name in ("rna", "adt"):
        mean, sd = cells.moments(name)
        scaled[name] = (cells.arrays[f"x_{name}"] - mean) / sd
    train = cal.MultimodalData({name: values[cells.train] for name, values in scaled.items()}, empty="refuse")
    fit = cal.fit(cal.SharedLatentModel(train.dims), train, seed=seed)
    rna = cal.MultimodalData({"rna": scaled["rna"][cells.test]})
    mean, sd = cells.moments("adt")
    imputed: Array = cal.impute(fit, rna, ["adt"]).mean["adt"].numpy() * sd + mean
    return imputed


def totalvi(cells: Cells, seed: int) -> Array:
    """TotalVI of scvi-tools with its defaults."""
    import anndata
    import pandas as pd
    import scvi

    scvi.settings.seed = seed
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    seen = cells.train[cells.has("rna", cells.train)]
    rows, hidden = np.concatenate([seen, cells.test]), np.arange(len(seen), len(seen) + len(cells.test))
    own = cells.arrays["batch"][rows].astype(object)
    told = own.copy()
    told[hidden] = [f"hidden {batch}" for batch in own[hidden]]
    proteins = np.maximum(cells.arrays["counts_adt"][rows], 0)
    proteins[hidden] = 0  # a batch of zeros is one without proteins to it
    cell_names = [f"cell {row}" for row in rows]
    given = anndata.AnnData(
        cells.arrays["counts_rna"][rows].astype(np.float32),
        obs=pd.DataFrame({"batch": pd.Categorical(told)}, index=cell_names),
        obsm={"protein": pd.DataFrame(proteins, index=cell_names)},
    )
    scvi.model.TOTALVI.setup_anndata(given, batch_key="batch", protein_expression_obsm_key="protein")
    model = scvi.model.TOTALVI(given)
    with tempfile.TemporaryDirectory() as folder:
        model.train(accelerator="cpu", enable_progress_bar=False, default_root_dir=folder)

    generator = np.random.default_rng(seed)
    dispersion = model.module.py_r.detach().exp().numpy()
    known = cells.train[cells.has("adt", cells.train)]
    depth = np.median(cells.arrays["counts_adt"][known].sum(1))
    imputed = np.zeros((len(hidden), proteins.shape[1]))
    for batch in np.unique(own[hidden]):
        of_batch = own[hidden] == batch
        for _ in range(DRAWS):
            _, rate = model.get_normalized_expression(
                indices=hidden[of_batch], transform_batch=[batch], include_protein_background=True, return_numpy=True
            )
            counts = generator.poisson(generator.gamma(dispersion, rate / dispersion))
            imputed[of_batch] += np.log1p(counts / counts.sum(1, keepdims=True) * depth) / DRAWS
    return imputed


CONTENDERS: dict[str, Callable[[Cells, int], Array]] = {"totalVI": totalvi, "calmrl-prob, default": default}


def measure(path: str, seed: int, title: str) -> Row:
    """One contender: R^2 of features of unit variance about the training mean; correlation over cells, by protein."""
    cells, found = Cells.of(path, seed), {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seconds = cpu_seconds(lambda: found.update(imputed=CONTENDERS[title](cells, seed)))
    mean, sd = cells.moments("adt")
    truth, imputed = ((x - mean) / sd for x in (cells.arrays["x_adt"][cells.test], found["imputed"]))
    together = [np.corrcoef(*pair)[0, 1] for pair in zip(truth.T, imputed.T, strict=True)]
    r2 = 1 - np.square(truth - imputed).sum() / np.square(truth).sum()
    return {"contender": title, "R^2": float(r2), "correlation": float(np.nanmean(together)), "CPU s": seconds}


def main() -> None:
    """Measure, and print; of one run its row as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.totalvi", description=__doc__)
    parser.add_argument("file", help="such as pbmc_mosaic.npz")
    parser.add_argument("one", nargs="*", help="seed and contender of one run")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.one:
        print(json.dumps(measure(given.file, int(given.one[0]), given.one[1])))
        return
    table: list[Row] = []
    for title in CONTENDERS:
        if title == "totalVI" and importlib.util.find_spec("scvi") is None:
            continue
        rows = [in_own_process("benchmarks.totalvi", given.file, str(seed), title) for seed in SEEDS]
        figures = {key: np.array([row[key] for row in rows], dtype=float) for key in ("R^2", "correlation", "CPU s")}
        table.append({"contender": title} | {k: f"{v.mean():.3f}±{v.std():.3f}" for k, v in figures.items()})
    show(Console(width=120), "Proteins from RNA", table)


if __name__ == "__main__":
    main()
