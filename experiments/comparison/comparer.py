"""Fits every variant for every seed, and measures them on the same test rows."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
from omegaconf import DictConfig

from calmrl_prob.data import MultimodalData
from calmrl_prob.data.missingness import mcar
from calmrl_prob.errors import ArgumentError, DataError
from experiments.comparison.fitted_variant import FittedVariant, recall_at_1
from experiments.comparison.fitting import Retriever
from experiments.comparison.measures import (
    EvaluationRows,
    coverage_table,
    impute_all,
    interval_table,
    measure,
    modality_coverage,
    modality_scale,
)
from experiments.comparison.recalibrated_coverage import recalibrated_coverage
from experiments.comparison.variants import Choice, Task, Variant
from experiments.harness.settings import build, check, flatten
from experiments.harness.split import Split

Advance = Callable[[str], None]

logger = logging.getLogger(__name__)

#: The variant that is there only if ``model.file`` names a model.
MODEL = "model"
#: Decides which modalities of the test rows are removed for the linear probe and idata.nc: the same for all runs.
TEST_SEED = 12345


@dataclass(frozen=True)
class Comparison:
    """All that a run found, as tidy tables.

    Attributes:
        results: one row for each variant and seed: the metrics, and the settings of the run.
        coverage: nominal and actual coverage: variant, seed, level, coverage, width.
        evidence: the trace of each final fit: variant, seed, iteration, log_likelihood, objective (nats per row).
        pairs: recall for each ordered pair of modalities: variant, seed, query, candidate, R@1, R@10.
        intervals: imputed and true values of some test rows by the variant in focus.
        modalities: coverage of each modality at the level of the table: variant, seed, modality, level, coverage; of
            the variant in focus, if it imputes by its model alone, also ``recalibrated``, that of conformal intervals.
        shares: R@1 against the share of missing cells: variant, share, R@1; empty if not asked for.
        focus: the fitted variant of ``report.focus``; None if it is not among the variants.
        masked_test: test rows with modalities removed, for it.
        warnings: what a reader of the table must know.
    """

    results: pd.DataFrame
    coverage: pd.DataFrame
    evidence: pd.DataFrame
    pairs: pd.DataFrame
    intervals: pd.DataFrame
    modalities: pd.DataFrame
    shares: pd.DataFrame
    focus: FittedVariant | None
    masked_test: MultimodalData
    warnings: tuple[str, ...] = ()


class Comparer:
    """One comparison, from its configuration.

    Args:
        cfg: the composed configuration ``compare``.

    Raises:
        CalmrlError: an option has a value that cannot work; the message names it.
    """

    def __init__(self, cfg: DictConfig) -> None:
        check(cfg)
        self.cfg = cfg
        self.split: Split = build(cfg, "data")
        self.retriever: Retriever = build(cfg, "scoring")
        self.mechanism = build(cfg, "missingness")
        in_file = cfg.model.get("file") is not None
        keys = [
            key for key in cfg.calibration if in_file or key != MODEL
        ]  # without a file it would be one of the others
        self.variants: dict[str, Variant] = {key: build(cfg, f"calibration.{key}") for key in keys}
        #: The variant of the interval figure and of idata.nc: that of ``report.focus``, or the model in the file.
        self.focus: str | None = cfg.report.focus
        if self.focus == "auto":
            self.focus = MODEL if in_file else "calmrl"
        self.masked_test = self._remove(self.split.test, TEST_SEED)
        self.seeds: list[int] = list(cfg.seeds)
        self.share_variants = [key for key in cfg.report.share_variants if key in self.variants]

    @property
    def steps(self) -> int:
        """Number of times that ``run`` reports progress."""
        fits = len(self.variants) * (1 + len(self.seeds))
        return fits + len(self.cfg.report.shares) * len(self.share_variants)

    def run(self, advance: Advance = lambda what: None) -> Comparison:
        """Choose, fit and measure everything.

        Args:
            advance: is called ``steps`` times, with what was done.

        Raises:
            DataError: no variant could be fitted.
        """
        tasks = {seed: self._task(self._remove(self.split.train, seed), seed) for seed in self.seeds}
        choices, notes = self._choose(tasks, advance)
        if not choices:
            raise DataError("; ".join(notes.values()))
        tables: dict[str, list[pd.DataFrame]] = {"coverage": [], "evidence": [], "pairs": [], "modalities": []}
        rows: list[dict[str, Any]] = []
        settings = flatten(self.cfg)
        focus, intervals = None, pd.DataFrame()
        first: dict[str, FittedVariant] = {}
        for seed, task in tasks.items():
            evaluation = self._evaluation_rows(task)
            for key, variant in self.variants.items():
                named = {"variant": key, "label": variant.label, "seed": seed}
                if key not in choices:
                    rows.append(named | {"note": notes[key]} | settings)
                    advance(f"{variant.label}: left out")
                    continue
                calibrated = variant.calibrate(task, choices[key])
                imputations = impute_all(calibrated, evaluation.test, evaluation.level)
                pairs = calibrated.recall(evaluation.test)
                facts = {
                    "K": calibrated.setting.latent_dim,
                    "noise_pseudo_count": float(calibrated.setting.noise_pseudo_count),
                    "scoring_used": calibrated.scoring,
                    "method": calibrated.model.method,
                    "stop_reason": calibrated.model.stop_reason,
                    "observed_share": float(task.incomplete.observed_mask.double().mean()),
                    "note": "",
                }
                rows.append(named | measure(calibrated, evaluation, imputations, pairs) | facts | settings)
                tables["evidence"].append(calibrated.model.trace.assign(**named))
                tables["coverage"].append(coverage_table(evaluation, imputations).assign(**named))
                tables["pairs"].append(pairs.assign(**named))
                by_modality = modality_coverage(imputations, evaluation.test, evaluation.level).assign(**named)
                if key == self.focus and calibrated.imputer is None and not calibrated.model.posterior_options:
                    after = recalibrated_coverage(variant, choices[key], task, evaluation.test, evaluation.level)
                    by_modality["recalibrated"] = by_modality["modality"].map(after).astype(float)
                tables["modalities"].append(by_modality)
                first.setdefault(key, calibrated)
                if key == self.focus and focus is None:
                    focus = calibrated
                    intervals = interval_table(evaluation, imputations, self.cfg.report.interval_rows)
                advance(f"{variant.label}, seed {seed}: fitted")
        return Comparison(
            pd.DataFrame(rows),
            **{name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()},
            intervals=intervals,
            shares=self._shares(first, choices, advance),
            focus=focus,
            masked_test=self.masked_test,
            warnings=self._warnings(choices),
        )

    def _choose(self, tasks: dict[int, Task], advance: Advance) -> tuple[dict[str, Choice], dict[str, str]]:
        """The settings of each variant, from validation rows; and of those that cannot be fitted, why."""
        choices, notes = {}, {}
        for key, variant in self.variants.items():
            try:
                choices[key] = variant.choose(list(tasks.values()))
                logger.info("%s: %s", variant.label, choices[key])
            except DataError as error:  # no complete row, say: the other variants can still be compared
                notes[key] = str(error)
                logger.warning("left out: %s", error)
            advance(f"{variant.label}: settings chosen")
        return choices, notes

    def _warnings(self, choices: dict[str, Choice]) -> tuple[str, ...]:
        found: dict[str, list[str]] = {}
        for key, choice in choices.items():
            for warning in choice.warnings:
                found.setdefault(warning, []).append(self.variants[key].label)
        focus = self.focus
        unknown = [
            f"report.focus: {focus!r} is not among the variants compared ({', '.join(self.variants)}), so there are no "
            "interval figure, no recall by pair of modalities and no idata.nc."
        ] if focus is not None and focus not in self.variants else []  # fmt: skip
        return (*(f"{', '.join(labels)}: {warning}" for warning, labels in found.items()), *unknown)

    def _shares(self, first: dict[str, FittedVariant], choices: dict[str, Choice], advance: Advance) -> pd.DataFrame:
        """R@1 against the share of missing cells, at the first seed and the settings chosen for the table."""
        rows = []
        mechanism = self.mechanism if "rate" in self.cfg.missingness else mcar
        train, seed = self.split.train, self.seeds[0]
        for share in self.cfg.report.shares:
            try:
                task = self._task(train.mask(mechanism(train, rate=share, seed=seed)), seed)
            except ArgumentError as error:  # so large a share would leave rows with nothing
                logger.warning("report.shares: %s left out; %s", share, error)
                for _ in self.share_variants:
                    advance(f"{100 * share:.0f}% missing: left out")
                continue
            for key in self.share_variants:
                variant = self.variants[key]
                advance(f"{variant.label}, {100 * share:.0f}% missing")
                if key not in choices:
                    continue
                try:
                    calibrated = variant.calibrate_again(task, choices[key], first[key])
                except DataError as error:
                    logger.warning("left out at %.0f%% missing: %s", 100 * share, error)
                    continue
                recall = 100 * recall_at_1(calibrated.recall(self.split.test))
                rows.append({"variant": key, "label": variant.label, "share": share, "R@1": recall})
        return pd.DataFrame(rows, columns=["variant", "label", "share", "R@1"])

    def _remove(self, data: MultimodalData, seed: int) -> MultimodalData:
        try:
            return data.mask(self.mechanism(data, seed=seed))
        except ArgumentError as error:
            raise ArgumentError(f"missingness.{error}") from error

    def _task(self, incomplete: MultimodalData, seed: int) -> Task:
        fit_rows, validation_rows = incomplete.split_indices(1.0 - self.cfg.validation_share, seed=seed)
        return Task(incomplete, self.split.train, fit_rows, validation_rows, self.retriever, seed)

    def _evaluation_rows(self, task: Task) -> EvaluationRows:
        return EvaluationRows(
            train=task.incomplete,
            test=self.split.test,
            masked_test=self.masked_test,
            scale=modality_scale(self.split.train),
            level=self.cfg.interval_level,
            seed=task.seed,
        )
