"""Few rows: models against ridge regression, every setting cross-validated: ``python -m experiments.small_data``.

Each seed takes other training rows, removes modalities from them, lets every contender choose its settings by
cross-validation within them, and measures all on the same test rows. Prints the table, and the differences to the
contender ``reference`` seed by seed; writes ``results.csv`` and ``config.yaml`` to the run's folder.

    python -m experiments.small_data                               # 300 rows of emoji, half of their modalities missing
    python -m experiments.small_data data=npz data.source.path=my.npz rows=null test_share=0.3 missingness=none
    python -m experiments.small_data --config-name non_gaussian    # heavy tails and mixtures, on all rows of emoji
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import hydra
import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from analysis.runs.files import write_table, write_text
from analysis.statistics.tables import METRICS, best_rows, formatted, summarize
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError
from experiments.comparison.fitting import Retriever
from experiments.comparison.measures import modality_scale
from experiments.few_rows.contenders import Contender, Folds
from experiments.few_rows.predictors import measure
from experiments.harness.command import run_in_folder, say_where
from experiments.harness.console import print_table
from experiments.harness.settings import build, check_small_data, flatten
from experiments.harness.split import Split

logger = logging.getLogger(__name__)


@hydra.main(config_path="conf", config_name="small_data", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Run one comparison."""
    run_in_folder(run, cfg)


def run(cfg: DictConfig, folder: Path, console: Console | None = None) -> pd.DataFrame:
    """Compare, print both tables, and write the files of the run.

    Returns:
        One row for each contender and seed: the metrics, the settings chosen, seconds to choose and fit.
    """
    check_small_data(cfg)
    out = console or Console()
    split: Split = build(cfg, "data")
    retriever: Retriever = build(cfg, "scoring")
    contenders: dict[str, Contender] = {key: build(cfg, f"contender.{key}") for key in cfg.contender}
    scale, settings = modality_scale(split.train), flatten(cfg)
    rows = []
    for seed in cfg.seeds:
        train, test = take(split, cfg.rows, cfg.test_share, seed)
        incomplete = train.mask(build(cfg, "missingness")(train, seed=seed))
        folds = Folds.of(incomplete, cfg.folds, seed)
        for key, contender in contenders.items():
            started = time.perf_counter()
            winner = contender.choose(incomplete, folds, seed)
            seconds = time.perf_counter() - started
            found = measure(winner.fitted, test, scale, cfg.interval_level, retriever.score)
            named = {"variant": key, "label": contender.label, "seed": seed}
            facts = {"seconds": seconds, "chosen": winner.setting, "num_train": len(train), "num_test": len(test)}
            rows.append(named | found | facts | settings)
            logger.info("seed %d, %s: %s; tried %s", seed, contender.label, winner.setting, dict(winner.tried))
    results = pd.DataFrame(rows)
    folder.mkdir(parents=True, exist_ok=True)
    write_table(results, folder / "results.csv")
    write_text(OmegaConf.to_yaml(cfg, resolve=True), folder / "config.yaml")
    share = 100 * float(1 - incomplete.observed_mask.double().mean())
    title = f"{split.name}: {len(train)} training rows, {share:.0f}% of their modalities missing, {len(test)} test rows"
    summary = summarize(results)
    print_table(out, formatted(summary), title, left=["variant"], best=best_rows(summary))
    if cfg.reference in contenders and len(cfg.seeds) > 1:
        against = (
            f"Difference to {contenders[cfg.reference].label}: mean and standard error over {len(cfg.seeds)} seeds"
        )
        print_table(out, differences(results, cfg.reference), against, left=["variant"])
    say_where(out, folder)
    return results


def take(split: Split, rows: int | None, test_share: float | None, seed: int) -> tuple[MultimodalData, MultimodalData]:
    """Training and test rows of one seed.

    Args:
        split: the data.
        rows: how many training rows to keep; all if None.
        test_share: share of the complete training rows to test on instead of the data's own test rows; the other
            complete ones train.
        seed: decides both.

    Raises:
        ArgumentError: fewer training rows than were asked for.
    """
    train, test = split.train, split.test
    if test_share is not None:
        train, test = train.subset(train.complete_rows()).split(1.0 - test_share, seed=seed)
    if rows is not None:
        if rows > len(train):
            raise ArgumentError(f"rows: expected at most {len(train)}, the training rows of {split.name}, got {rows}.")
        train = train.subset(np.sort(np.random.default_rng(seed).choice(len(train), rows, replace=False)))
    return train, test


def differences(results: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Each contender less the reference, seed by seed: text, mean and standard error of the mean.

    Example:
        >>> results = pd.DataFrame({"variant": ["a", "b"] * 2, "label": ["A", "B"] * 2, "seed": [0, 0, 1, 1],
        ...                         "NLL": [1.0, 1.5, 2.0, 2.7]})
        >>> differences(results, "a").values.tolist()
        [['B', '+0.600±0.100']]
    """
    present = [name for name in ("R@1", "R@10", "RMSE", "NLL") if name in results]
    base = results[results["variant"] == reference].set_index("seed")[present]
    table = []
    for key, group in results.groupby("variant", sort=False):
        if key == reference:
            continue
        gap = group.set_index("seed")[present] - base
        error = gap.std(ddof=1) / np.sqrt(len(gap))
        cells = {METRICS[n][0]: f"{gap[n].mean():+.{d}f}±{error[n]:.{d}f}" for n in present for d in [METRICS[n][1]]}
        table.append({"variant": group["label"].iloc[0], **cells})
    return pd.DataFrame(table)


if __name__ == "__main__":
    main()
