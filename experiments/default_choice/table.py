"""Fits and measures every method on every data set, missingness and seed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

from experiments.comparison.fitting import collected_warnings
from experiments.default_choice.default_fit import CRITERIA
from experiments.default_choice.mofa import mofa_is_there
from experiments.default_choice.options import Options
from experiments.default_choice.oracle import best_of
from experiments.default_choice.references import (
    Measured,
    measure_default,
    measure_mean,
    measure_mofa,
    measure_plain,
    measure_ridge,
)
from experiments.default_choice.removal import Task, make_task

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
        options: what is to be measured.
        data_root: folder of the files of data sets.
    """

    def __init__(self, options: Options, data_root: str | None) -> None:
        self.options, self.data_root = options, data_root
        self.methods = [*_MEASURES, *(["oracle"] if options.oracle is not None else [])]

    @property
    def steps(self) -> int:
        """Number of times that ``run`` reports progress."""
        options = self.options
        return len(options.datasets) * len(options.missing) * len(options.seeds) * len(self.methods)

    def run(self, advance: Callable[[str], None] = lambda what: None) -> Iterator[Found]:
        """Fit and measure everything.

        Args:
            advance: is called ``steps`` times, with what was done.

        Yields:
            All rows so far, after each method.
        """
        found = Found()
        for name, dataset in self.options.datasets.items():
            data = dataset.read(self.data_root)
            for how, seed in product(self.options.missing, self.options.seeds):
                task = make_task(dataset.split(name, data, seed), how, seed, dataset.scale, dataset.components)
                named = {"dataset": name, "missing": how, "seed": seed}
                for method in self.methods:
                    self._measure(found, named, method, task, assays=dataset.assays)
                    advance(f"{name}, {how}, seed {seed}: {LABELS[method]}")
                    yield found

    def _measure(self, found: Found, named: dict[str, Any], method: str, task: Task, *, assays: bool) -> None:
        facts = {"num_train": len(task.train), "num_test": len(task.test)}
        row = named | {"variant": method, "label": LABELS[method]} | facts
        if method == "mofa" and not (assays and mofa_is_there()):
            row["note"] = "mofapy2 is not installed" if assays else "left out: no assays"
        elif method == "oracle" and self.options.oracle is not None:
            if named["seed"] in self.options.oracle_seeds:
                tried = self.options.oracle.tried(task, named)
                found.grid += tried
                row |= best_of(tried)
            else:
                row["note"] = "not sought for this seed"
        else:
            row |= self._fitted(found, named, method, task)
        logger.info("%s", row)
        found.results.append(row)

    @staticmethod
    def _fitted(found: Found, named: dict[str, Any], method: str, task: Task) -> dict[str, Any]:
        try:
            with collected_warnings() as messages:
                measured = _MEASURES[method](task)
        except Exception as error:  # one fit that fails must not cost the others; the table says what failed
            logger.exception("%s, %s: failed", named, method)
            return {"note": f"{type(error).__name__}: {' '.join(str(error).split())}"}
        found.modalities += [named | {"variant": method} | part for part in measured.scores.modality_rows]
        return measured.row | {"note": " ".join(messages)}
