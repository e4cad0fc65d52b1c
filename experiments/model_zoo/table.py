"""Fits every model to every data set for every seed, and measures them on the same test rows.

K, and the weight of the noise prior where the model has one, are chosen on a validation part of the training rows, as
in ``experiments.compare``, but by the density of held-out values. A model that fails is a row that says why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError
from calmrl_prob.evaluation import mean_over_pairs
from experiments.comparison.fitted_variant import FittedVariant, without
from experiments.comparison.fitting import ModelFitter, Retriever, collected_warnings
from experiments.comparison.imputers import predictable
from experiments.comparison.measures import impute_all, measure_imputations, modality_scale
from experiments.comparison.variants import Choice, ModelInFocus, Task
from experiments.harness.settings import build, check_models
from experiments.harness.split import Split

Advance = Callable[[str], None]

logger = logging.getLogger(__name__)

#: What is measured, with the digits to show and whether the largest over the seeds is the worst (None: neither end).
MEASURES: dict[str, tuple[str, int, bool | None]] = {
    "NLL": ("NLL", 3, True),
    "NLL joint": ("joint NLL", 3, True),
    "RMSE": ("RMSE", 3, True),
    "R@1": ("R@1 %", 1, False),
    "coverage": ("coverage %", 1, None),
    "seconds": ("fit s", 1, None),
}


@dataclass(frozen=True)
class Rows:
    """The rows of one data set that all models are measured on, and the tasks that they learn from, one a seed."""

    split: Split
    tasks: Mapping[int, Task]
    scale: Mapping[str, float]


class ModelTable:
    """One table of models, from its configuration.

    Args:
        cfg: the composed configuration ``models``.

    Raises:
        CalmrlError: an option has a value that cannot work; the message names it.
    """

    def __init__(self, cfg: DictConfig) -> None:
        check_models(cfg)
        self.cfg, self.seeds = cfg, list(cfg.seeds)
        self.retriever: Retriever = build(cfg, "scoring")
        self.mechanism = build(cfg, "missingness")
        datasets, models = (
            _chosen(cfg, what, only) for what, only in (("datasets", "only_data"), ("models", "only_models"))
        )
        self.splits: dict[str, Split] = {key: build(cfg, f"datasets.{key}") for key in datasets}
        fitters: dict[str, ModelFitter] = {key: build(cfg, f"models.{key}") for key in models}
        self.models = {key: ModelInFocus(fitter, select_by=cfg.select_by) for key, fitter in fitters.items()}

    @property
    def steps(self) -> int:
        """Number of times that ``run`` reports progress."""
        return len(self.splits) * len(self.models) * (1 + len(self.seeds))

    def run(self, advance: Advance = lambda what: None) -> Iterator[pd.DataFrame]:
        """Choose, fit and measure everything.

        Args:
            advance: is called ``steps`` times, with what was done.

        Yields:
            After each model the table so far, one row for each data set, model and seed: the measures, the settings
            chosen, how the posterior was computed (route), what was done, and a note: why a model is left out, or what
            it warned of.
        """
        rows: list[dict[str, Any]] = []
        for dataset, split in self.splits.items():
            prepared = self._prepare(split)
            for key, model in self.models.items():
                named = {"dataset": dataset, "variant": key, "label": model.label}
                choice = self._choose(model, prepared)
                advance(f"{dataset}, {model.label}: settings chosen")
                for seed, task in prepared.tasks.items():
                    found = choice if isinstance(choice, dict) else self._measure(model, choice, task, prepared)
                    rows.append(named | {"seed": seed} | found)
                    advance(f"{dataset}, {model.label}, seed {seed}: {found['note'] or 'fitted'}"[:80])
                yield pd.DataFrame(rows)

    def _prepare(self, split: Split) -> Rows:
        tasks = {}
        for seed in self.seeds:
            try:
                incomplete = split.train.mask(self.mechanism(split.train, seed=seed))
            except ArgumentError as error:
                raise ArgumentError(f"missingness.{error}") from error
            parts = incomplete.split_indices(1.0 - self.cfg.validation_share, seed=seed)
            tasks[seed] = Task(incomplete, split.train, *parts, self.retriever, seed)
        return Rows(split, tasks, modality_scale(split.train))

    def _choose(self, model: ModelInFocus, prepared: Rows) -> Choice | dict[str, Any]:
        """The settings of a model; or, as what its rows hold, why there are none."""
        try:
            with collected_warnings():  # a fit that is only a trial may fall short
                choice = model.choose(list(prepared.tasks.values()))
        except Exception as error:  # a user's model may raise anything, and the others are still to be compared
            logger.exception("%s, %s: left out", prepared.split.name, model.label)
            return {"note": _reason(error)}
        logger.info("%s, %s: %s", prepared.split.name, model.label, choice)
        return choice

    def _measure(self, model: ModelInFocus, choice: Choice, task: Task, prepared: Rows) -> dict[str, Any]:
        test = prepared.split.test
        try:
            with collected_warnings() as messages:
                calibrated = model.calibrate(task, choice)
                imputations = impute_all(calibrated, test, self.cfg.interval_level)
                found = measure_imputations(imputations, test, prepared.scale, self.cfg.interval_level)
                joint, route = joint_nll(calibrated, test, prepared.scale)
                recall = mean_over_pairs(calibrated.recall(test))
        except Exception as error:  # as above
            logger.exception("%s, %s, seed %d: failed", prepared.split.name, model.label, task.seed)
            return {"note": _reason(error)}
        fitted = calibrated.model
        tried, weights = model.model.feasible(task.incomplete), model.model.weights(test.dims)
        return {
            **found,
            "NLL joint": joint,
            "R@1": 100 * recall["R@1"],
            "R@10": 100 * recall["R@10"],
            "seconds": calibrated.seconds,
            "route": route,
            "K": choice.setting.latent_dim,
            "noise_pseudo_count": float(choice.setting.noise_pseudo_count),
            "done": _done(tried, weights, fitted.method, fitted.stop_reason, len(fitted.trace) - 1),
            "note": " ".join([*choice.warnings, *fitted.warnings, *messages]),
        }


def joint_nll(calibrated: FittedVariant, data: MultimodalData, scale: Mapping[str, float]) -> tuple[float, str]:
    """Negative log density of a hidden modality given the others, all its features together; and the route.

        -(log p(x_n) - log p(x_n without m)) / D_m,     nats for each value in standard deviations

    Args:
        calibrated: a fitted model.
        data: the rows; those that have a modality and another count for it.
        scale: for each modality its standard deviation.

    Returns:
        The mean over modalities; NaN where evidence is not exact, for a difference of estimates says little.
    """
    whole = calibrated.posterior(data)
    if not whole.route.startswith("exact"):
        return float("nan"), whole.route
    units, found = calibrated.model.units, []
    evidence = whole.log_marginal.double().cpu().numpy()
    for name in data.names:
        rows = predictable(data, name)
        if rows.any():
            rest = calibrated.posterior(without(data.subset(rows), name)).log_marginal.double().cpu().numpy()
            gain = float(np.mean(evidence[rows] - rest)) / data.dims[name]
            found.append(-gain + np.log(units.scale[name]) - np.log(scale[name]))
    return float(np.mean(found)), whole.route


def tabulate(results: pd.DataFrame) -> pd.DataFrame:
    """The table as text, best NLL first and failures last: mean ± standard deviation over seeds (the worst of them).

    Args:
        results: rows of one data set, as ``ModelTable.run`` yields them.

    Example:
        >>> common = {"variant": "a", "label": "A", "route": "exact", "K": 2, "done": "", "note": ""}
        >>> rows = [common | {"seed": seed, "NLL": nll} for seed, nll in enumerate((1.0, 2.0))]
        >>> tabulate(pd.DataFrame(rows))[["model", "NLL"]].values.tolist()
        [['A', '1.500±0.707 (2.000)']]
    """
    table = []
    for _, group in results.groupby("variant", sort=False):
        fitted = group[group["NLL"].notna()] if "NLL" in group else group.iloc[:0]
        row: dict[str, Any] = {"model": group["label"].iloc[0], "order": np.inf}
        if len(fitted):
            row |= {"order": fitted["NLL"].mean(), "route": fitted["route"].iloc[0], "K": f"{fitted['K'].iloc[0]:g}"}
            row |= {
                heading: _cell(fitted[name], digits, largest)
                for name, (heading, digits, largest) in MEASURES.items()
                if name in fitted
            }
            row["what was done"] = fitted["done"].iloc[0]
        failed = len(group) - len(fitted)
        if failed:
            row["what was done"] = (
                f"{failed} of {len(group)} failed: {group['note'][group.index.difference(fitted.index)].iloc[0]}"
            )
        table.append(row)
    return pd.DataFrame(table).sort_values("order", kind="stable").drop(columns="order").fillna("-")


def _cell(values: pd.Series, digits: int, largest: bool | None) -> str:
    if values.isna().any():
        return "-"
    spread = f"±{values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    if largest is None or len(values) < 2:
        return f"{values.mean():.{digits}f}{spread}"
    return f"{values.mean():.{digits}f}{spread} ({values.max() if largest else values.min():.{digits}f})"


def _done(latent_dims: list[int], weights: list[float], method: str, stop_reason: str, steps: int) -> str:
    grid = f"K = {latent_dims[0]}" if len(latent_dims) == 1 else f"K of {', '.join(map(str, latent_dims))}"
    prior = f"; noise prior of {', '.join(f'{w:g}' for w in weights)}" if len(weights) > 1 else ""
    return f"{grid}{prior}; {method}: {steps} steps, {stop_reason}"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _chosen(cfg: DictConfig, what: str, only: str) -> list[str]:
    known, wanted = list(cfg[what]), cfg[only]
    if wanted is None:
        return known
    unknown = [key for key in wanted if key not in known]
    if unknown or not len(wanted):
        raise ArgumentError(f"{only}: expected some of {known}, got {list(wanted)}.")
    return list(wanted)
