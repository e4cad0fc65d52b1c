"""Retrieval against the share of modalities that the training rows lack: ``python -m experiments.align_missing``.

    python -m experiments.align_missing                              # emoji, nothing missing to 90%
    python -m experiments.align_missing shares=[0,0.5] only=[observed,started] seeds=[0]

Modalities are removed completely at random, whatever the option ``missingness`` says; rows that lose all are left out,
so that any share can be reached. Test rows are complete. Leaves ``results.csv``, ``table.md`` and two figures.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import hydra
import pandas as pd
import torch
from omegaconf import DictConfig
from rich.console import Console

from analysis.figures.comparison import recall_by_share
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, DataError
from experiments.alignment.runs import Row, chosen_variants, collect, heading, tabulate, task_from
from experiments.alignment.training import AlignmentTask, Settings, Variant, run_variant
from experiments.harness.command import finish, run_in_folder
from experiments.harness.settings import build
from experiments.harness.split import Split

logger = logging.getLogger(__name__)

CAPTION = (
    "R@1 on complete test rows, in %, mean ± standard deviation over seeds, against the share of cells (a modality of "
    "a row) that the training rows lack. Rows that lost everything are left out. Where a line of the table is "
    "lacking, too few rows were left to train on."
)


@hydra.main(config_path="conf", config_name="align_missing", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Make one table and one figure."""
    run_in_folder(run, cfg)


def run(cfg: DictConfig, folder: Path, console: Console | None = None) -> pd.DataFrame:
    """Train at each share, print the table, and write the files of the run.

    Returns:
        One row for each share, seed and variant.
    """
    out = console or Console()
    split: Split = build(cfg, "data")
    shares = list(cfg.shares)
    if not shares or not all(0 <= share < 1 for share in shares):
        raise ArgumentError(f"shares: expected numbers from 0 to 1, without 1, got {shares}.")
    variants = chosen_variants(cfg)
    steps = len(variants) * len(shares) * len(cfg.seeds)
    results = collect(_rows(cfg, split, variants, shares), steps, folder, out)
    measures = [
        ("R@1 cosine", "R@1 %, cosine", 1),
        ("R@1 ratio", "R@1 %, likelihood ratio", 1),
        ("rows", "training rows", 0),
        ("seconds", "s", 0),
    ]
    text = tabulate(results, ["label", "share"], measures)
    figures = {
        f"recall_{score}": recall_by_share(averaged(results, f"R@1 {score}"), f"{split.name}: {name}")
        for score, name in (("cosine", "retrieval by cosine"), ("ratio", "retrieval by likelihood ratio"))
    }
    finish(cfg, text, heading(cfg, split.name, "completely at random"), CAPTION, folder, out, figures)
    return results


def _rows(
    cfg: DictConfig, split: Split, variants: Mapping[str, Variant], shares: list[float]
) -> Iterator[tuple[str, list[Row]]]:
    settings = Settings.of(cfg)
    for seed in cfg.seeds:
        for share in shares:
            train, mask = removed(split.train, share, seed)
            task: AlignmentTask | None = None
            for key, variant in variants.items():
                what, rows = f"{variant.label}, {100 * share:.0f}% missing, seed {seed}", []
                try:
                    task = task or task_from(cfg, train, split.test, mask, seed)
                    found = run_variant(variant, task, settings).row
                    named = {"variant": key, "label": variant.label, "seed": seed, "share": share, "rows": len(train)}
                    rows.append(named | found)
                except DataError as error:  # no validation row has two modalities, say
                    logger.warning("left out: %s: %s", what, error)
                yield what, rows


def removed(data: MultimodalData, share: float, seed: int) -> tuple[MultimodalData, torch.Tensor]:
    """Rows and mask after a share of all cells is removed, any as likely, without the rows that lost all.

    Args:
        data: complete rows.
        share: of the cells, exact up to rounding to one of them.
        seed: the same seed removes the same cells; at a larger share these and more.

    Returns:
        n rows, complete as they were, and their mask (n, M), True = PRESENT.

    Example:
        >>> data = MultimodalData({name: torch.ones(50, 2) for name in ("a", "b")})
        >>> rows, mask = removed(data, 0.6, seed=0)
        >>> int(mask.sum()), bool(mask.any(dim=1).all())
        (40, True)
    """
    order = torch.randperm(data.observed_mask.numel(), generator=torch.Generator().manual_seed(seed))
    mask = (order >= round(share * len(order))).view_as(data.observed_mask)
    left = mask.any(dim=1)
    return data.subset(left), mask[left]


def averaged(results: pd.DataFrame, score: str) -> pd.DataFrame:
    """R@1 by variant and share, mean over seeds, as the figure takes it; variants without that score are left out."""
    mean = results.groupby(["variant", "label", "share"], sort=False)[score].mean().dropna()
    return mean.rename("R@1").reset_index()


if __name__ == "__main__":
    main()
