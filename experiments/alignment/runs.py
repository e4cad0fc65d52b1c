"""Parts that the experiments of alignment share: variants by name, tasks, the loop with its progress bar.

An experiment is a generator of ``(what was done, rows of the results)``. ``collect`` shows how far it is and keeps
``results.csv`` up to date, so that an interrupted run leaves what it has; ``finish`` of ``harness/command.py`` writes
the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from analysis.runs.files import write_table
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, DataError
from experiments.alignment.training import AlignmentTask, Variant, make_task
from experiments.harness.console import progress_bar
from experiments.harness.settings import build
from experiments.harness.split import Split

logger = logging.getLogger(__name__)

Row = dict[str, Any]
#: A column of a table: what was measured, its heading, its digits.
Measure = tuple[str, str, int]


def chosen_variants(cfg: DictConfig) -> dict[str, Variant]:
    """The variants that the option ``only`` names, in its order; all of them if it is null.

    Raises:
        ArgumentError: there is no such variant, or none is named.
    """
    known = list(cfg.variants)
    wanted = known if cfg.only is None else list(cfg.only)
    unknown = [key for key in wanted if key not in known]
    if unknown or not wanted:
        raise ArgumentError(f"only: expected some of {known}, got {wanted}.")
    return {
        key: Variant(**{"temperatures": list(cfg.temperatures), **OmegaConf.to_container(cfg.variants[key])})  # type: ignore[dict-item]
        for key in wanted
    }


def task_of(cfg: DictConfig, split: Split, seed: int) -> AlignmentTask:
    """The task of one seed, with modalities removed as the option ``missingness`` says."""
    mask = build(cfg, "missingness")(split.train, seed=seed)
    return task_from(cfg, split.train, split.test, mask, seed)


def task_from(
    cfg: DictConfig, train: MultimodalData, test: MultimodalData, observed_mask: torch.Tensor, seed: int
) -> AlignmentTask:
    """The task of one seed, of rows and a mask (N, M), True = PRESENT, that were chosen already.

    Raises:
        DataError: no row is left that has some modality.
    """
    gone = [name for name, some in zip(train.names, observed_mask.any(dim=0).tolist(), strict=True) if not some]
    if gone:
        raise DataError(f"missingness: no training row is left that has {', '.join(gone)}; remove less.")
    return make_task(
        train, test, observed_mask, seed=seed, components=cfg.components, validation_share=cfg.validation_share
    )


def lacking(data: MultimodalData, missing: int, seed: int) -> MultimodalData:
    """The same rows without ``missing`` of their modalities, which ones at random.

    Args:
        data: complete rows of M modalities.
        missing: how many each row loses, below M.
        seed: the same seed removes the same cells.

    Example:
        >>> data = MultimodalData({name: torch.ones(5, 2) for name in ("a", "b", "c")})
        >>> lacking(data, 1, seed=0).observed_mask.sum(dim=1).tolist()
        [2, 2, 2, 2, 2]
    """
    if missing == 0:
        return data
    order = torch.rand(data.observed_mask.shape, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
    return data.mask(order >= missing)


def collect(found: Iterable[tuple[str, list[Row]]], total: int, folder: Path, out: Console) -> pd.DataFrame:
    """Go through an experiment, with a progress bar, and write ``results.csv`` after each step.

    Args:
        found: yields what was done, and what was measured of it.
        total: how many steps there are.
        folder: where the file goes.
        out: a quiet one shows no progress bar.

    Returns:
        All rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").unlink(missing_ok=True)  # of an earlier run; it would say that this one is finished
    rows: list[Row] = []
    with progress_bar(out, total) as advance:
        for what, new in found:
            rows += new
            for row in new:
                logger.info("%s: %s", what, row)
            write_table(pd.DataFrame(rows), folder / "results.csv")
            advance(what)
    return pd.DataFrame(rows)


def tabulate(results: pd.DataFrame, by: Sequence[str], measures: Sequence[Measure]) -> pd.DataFrame:
    """The table as text: mean ± standard deviation over seeds.

    Args:
        results: one row for each seed and whatever else.
        by: columns that tell the lines of the table apart; rows where one is NaN make no line.
        measures: columns of numbers.

    Example:
        >>> results = pd.DataFrame({"label": ["A", "A"], "seed": [0, 1], "error": [1.0, 2.0], "other": [1.0, None]})
        >>> tabulate(results, ["label"], [("error", "RMSE", 1), ("other", "x", 2)]).values.tolist()
        [['A', '1.5±0.7', '1.00']]
    """
    table = []
    for key, group in results.groupby(list(by), sort=False):
        cells = dict(zip(by, key, strict=True))
        for name, heading, digits in measures:
            values = group[name].dropna()
            spread = f"±{values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
            cells[heading] = f"{values.mean():.{digits}f}{spread}" if len(values) else "-"
        table.append(cells)
    return pd.DataFrame(table).astype(str).rename(columns={"label": "variant"})


def heading(cfg: DictConfig, data: str, missingness: str | None = None) -> str:
    """Heading of the table: data, mechanism, number of seeds."""
    mechanism = missingness or str(cfg.missingness._target_).rpartition(".")[2]
    return f"{data}, {mechanism}, {len(cfg.seeds)} seed{'s' * (len(cfg.seeds) != 1)}"
