"""The runs of ``experiments.medicine``, and their table."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, CalmrlWarning
from experiments.assays.cohorts import Cohort, Hidden, hide
from experiments.assays.contenders import CONTENDERS
from experiments.assays.scores import Readers, score
from experiments.default_choice.references import timed

logger = logging.getLogger(__name__)

_MEASURES = {"R2": 3, "coverage": 1, "accuracy": 1, "latent": 1}
_OF_COUNTS = {"R2": 3, "coverage": 1, "score": 3}


@dataclass(frozen=True)
class Job:
    """One cohort, read, under one missingness and seed."""

    cohort: str
    missing: str
    seed: int
    hidden: Hidden


@dataclass(frozen=True)
class Plan:
    """What is to be run.

    Attributes:
        cohorts: by name, with their rows.
        contenders: names of :data:`~experiments.assays.contenders.CONTENDERS`.
        seeds: each parts and hides other rows.
    """

    cohorts: dict[str, tuple[Cohort, MultimodalData]]
    contenders: list[str]
    seeds: list[int]

    def __post_init__(self) -> None:
        limited = {label for cohort, _ in self.cohorts.values() for label in cohort.most_seeds}
        unknown = sorted((limited | set(self.contenders)) - set(CONTENDERS))
        if unknown:
            raise ArgumentError(f"contenders: expected some of {list(CONTENDERS)}, got {unknown[0]!r}.")

    @property
    def steps(self) -> int:
        """Number of fits, at most."""
        ways = sum(len(cohort.missing) for cohort, _ in self.cohorts.values())
        return ways * len(self.seeds) * len(self.contenders)

    def run(self, advance: Callable[[str], None]) -> Iterator[tuple[list[dict[str, Any]], Job, dict[str, Any]]]:
        """Run it, seed by seed: rows of results, the job, and this package's fits by contender."""
        for name, (cohort, data) in self.cohorts.items():
            for how in cohort.missing:
                for number, seed in enumerate(self.seeds):
                    job = Job(name, how, seed, hide(name, cohort, data, how, seed))
                    yield self._rows(job, number, advance)

    def _rows(
        self, job: Job, number: int, advance: Callable[[str], None]
    ) -> tuple[list[dict[str, Any]], Job, dict[str, Any]]:
        readers = Readers.of(job.hidden.task.train, job.seed)
        rows: list[dict[str, Any]] = []
        fits: dict[str, Any] = {}
        for label in self.contenders:
            contender = CONTENDERS[label]
            if not self._left_out(label, job, number):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", CalmrlWarning)  # of rows that are few: what is measured tells
                    fitted, seconds = timed(lambda c=contender: c.fit(job.hidden, job.seed))
                    scored = score(fitted, job.hidden, readers)
                beside = {"cohort": job.cohort, "missing": job.missing, "seed": job.seed, "contender": label}
                rows += [{**beside, **one, "seconds": seconds} for one in scored]
                fits[label] = fitted.fit
                logger.info("%s, %s, seed %d, %s: %.2f s", job.cohort, job.missing, job.seed, label, seconds)
            advance(f"{job.cohort}, {job.missing}: {label}")
        return rows, job, fits

    def _left_out(self, label: str, job: Job, number: int) -> bool:
        contender = CONTENDERS[label]
        if contender.lacking() or (contender.batches and job.hidden.batch is None):
            return True
        most = self.cohorts[job.cohort][0].most_seeds.get(label)
        return most is not None and number >= most


def summarized(results: pd.DataFrame) -> pd.DataFrame:
    """One row for each cohort, missingness and contender, as text: means over seeds, ± their standard deviation.

    Args:
        results: rows of :meth:`Plan.run`.
    """
    out = []
    for (cohort, how, contender), group in results.groupby(["cohort", "missing", "contender"], sort=False):
        row = {"cohort": cohort, "missing": how, "contender": contender, "seeds": str(group["seed"].nunique())}
        for assay, own in group.groupby("assay", sort=False):
            row |= {f"{measure} {assay}": _cell(own[measure], digits) for measure, digits in _MEASURES.items()}
        row["seconds"] = _cell(group.groupby("seed")["seconds"].first(), 2)
        out.append(row)
    return pd.DataFrame(out).fillna("")


def count_table(results: pd.DataFrame) -> pd.DataFrame:
    """One row for each family, as text.

    Args:
        results: rows of :func:`~experiments.assays.counts.compare_counts`.
    """
    out = []
    for family, group in results.groupby("family", sort=False):
        row = {"family": family, "seeds": str(group["seed"].nunique())}
        for assay, own in group.groupby("assay", sort=False):
            row |= {f"{measure} {assay}": _cell(own[measure], digits) for measure, digits in _OF_COUNTS.items()}
        out.append({**row, "seconds": _cell(group.groupby("seed")["seconds"].first(), 1)})
    return pd.DataFrame(out)


def _cell(values: pd.Series, digits: int) -> str:
    known = pd.to_numeric(values).dropna()
    if not len(known):
        return ""
    spread = f"±{known.std(ddof=1):.{digits}f}" if len(known) > 1 else ""
    return f"{known.mean():.{digits}f}{spread}"


def tables(results: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The table of each cohort, without the columns of others' assays."""
    whole = summarized(results)
    out = {}
    for cohort, group in whole.groupby("cohort", sort=False):
        text = group.drop(columns="cohort")
        out[str(cohort)] = text.loc[:, (text != "").any(axis=0)].reset_index(drop=True)
    return out


def paired(results: pd.DataFrame, one: str, other: str) -> pd.DataFrame:
    """One contender less another seed by seed, as text: mean ± standard deviation, and the seeds above 0."""
    keys = ["cohort", "missing", "assay", "seed"]
    both = results[results["contender"] == one].merge(
        results[results["contender"] == other], on=keys, suffixes=("", " of other")
    )
    out = []
    for (cohort, how, assay), group in both.groupby(keys[:3], sort=False):
        row = {"cohort": cohort, "missing": how, "assay": assay}
        for measure, digits in _MEASURES.items():
            gap = (group[measure] - group[f"{measure} of other"]).astype(float)
            row[measure] = f"{_cell(gap, digits)} ({int((gap > 0).sum())} of {len(gap)})"
        out.append(row)
    return pd.DataFrame(out)
