"""Fits and measures every method on every data set, missingness and seed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pandas as pd
from omegaconf import DictConfig

from experiments.comparison.fitting import collected_warnings
from experiments.default_choice.default_fit import CRITERIA
from experiments.default_choice.mofa import mofa_is_there
from experiments.default_choice.oracle import Oracle
from experiments.default_choice.references import (
    Measured,
    measure_default,
    measure_mean,
    measure_mofa,
    measure_plain,
    measure_ridge,
)
from experiments.default_choice.removal import Task, make_task
from experiments.default_choice.sources import DataSet

logger = logging.getLogger(__name__)

#: Methods but for the oracle, with what tables call them. The default comes once for each criterion.
LABELS = {
    "default": "default",
    "default_retrieval": "default, for retrieval",
    "plain": "plain, K 32",
    "ridge": "ridge per pair",
    "mean": "mean",
    "mofa": "mofapy2",
    "oracle": "best of a hand grid (chosen on TEST rows)",
}
_MEASURES: dict[str, Callable[[Task], Measured]] = {
    "default": partial(measure_default, criterion=CRITERIA[0]),
    "default_retrieval": partial(measure_default, criterion=CRITERIA[1]),
    "plain": measure_plain,
    "ridge": measure_ridge,
    "mean": measure_mean,
    "mofa": measure_mofa,
}


@dataclass
class Found:
    """What was measured so far; each list becomes a table, a row an entry.

    Attributes:
        results: one for each data set, missingness, seed and method.
        modalities: the same by modality.
        grid: one for each setting that the oracle tried.
    """

    results: list[dict[str, Any]] = field(default_factory=list)
    modalities: list[dict[str, Any]] = field(default_factory=list)
    grid: list[dict[str, Any]] = field(default_factory=list)


class DefaultsTable:
    """The table, not measured yet.

    Args:
        datasets: by name; those that are to be measured, and are there.
        data_root: folder of their files.
        missingness: see :func:`~experiments.default_choice.removal.remove`.
        seeds: each removes other modalities.
        oracle: None to leave it out.
    """

    def __init__(
        self,
        datasets: Mapping[str, DataSet],
        data_root: str | None,
        missingness: Sequence[str],
        seeds: Sequence[int],
        oracle: Oracle | None = None,
    ) -> None:
        self.datasets, self.data_root = datasets, data_root
        self.missingness, self.seeds, self.oracle = missingness, seeds, oracle

    @property
    def steps(self) -> int:
        """Number of times that ``run`` reports progress."""
        tasks = len(self.missingness) * len(self.seeds)
        return tasks * sum(len(self._methods(dataset)) + (self.oracle is not None) for dataset in self.datasets.values())

    def run(self, advance: Callable[[str], None] = lambda what: None) -> Iterator[Found]:
        """Fit and measure everything.

        Args:
            advance: is called ``steps`` times, with what was done.

        Yields:
            All rows so far, after each method.
        """
        found = Found()
        for name, dataset in self.datasets.items():
            data = dataset.read(self.data_root)
            for how in self.missingness:
                for seed in self.seeds:
                    task = make_task(dataset.split(name, data, seed), how, seed, dataset.scale, dataset.components)
                    named = {"dataset": name, "missing": how, "seed": seed}
                    for method in self._methods(dataset):
                        self._measure(found, named, method, task)
                        advance(f"{name}, {how}, seed {seed}: {LABELS[method]}")
                        yield found
                    if self.oracle is not None:
                        rows, tried = self.oracle.best(task, named)
                        found.results += [self._named(named, "oracle", task) | row for row in rows]
                        found.grid += tried
                        advance(f"{name}, {how}, seed {seed}: {LABELS['oracle']}")
                        yield found

    def _methods(self, dataset: DataSet) -> list[str]:
        return [name for name in _MEASURES if name != "mofa" or (dataset.assays and mofa_is_there())]

    def _measure(self, found: Found, named: dict[str, Any], method: str, task: Task) -> None:
        row = self._named(named, method, task)
        try:
            with collected_warnings() as messages:
                measured = _MEASURES[method](task)
        except Exception as error:  # one fit that fails must not cost the others; the table says what failed
            logger.exception("%s: failed", row)
            found.results.append(row | {"note": f"{type(error).__name__}: {' '.join(str(error).split())}"})
            return
        row |= measured.row | {"note": " ".join(messages)}
        logger.info("%s", row)
        found.results.append(row)
        found.modalities += [named | {"variant": method} | part for part in measured.scores.modality_rows]

    @staticmethod
    def _named(named: dict[str, Any], method: str, task: Task) -> dict[str, Any]:
        facts = {"num_train": len(task.train), "num_test": len(task.test)}
        return named | {"variant": method, "label": LABELS[method]} | facts
