"""Calibrated alignment of encoders, by many variants on equal terms: ``python -m experiments.align``.

    python -m experiments.align                              # emoji, 15% of the rows complete, the rest pairs
    python -m experiments.align missingness=mcar             # half of all modalities removed
    python -m experiments.align missingness=hub              # pairs with the first modality, none complete
    python -m experiments.align data=npz data.source.path=multi30k_lsa.npz only=[observed,started] seeds=[0]

Leaves in the run's folder ``results.csv`` (one row for each variant and seed), ``table.md``, ``config.yaml`` and
the log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pandas as pd
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from analysis.files import write_table, write_text
from calmrl_prob.errors import ArgumentError
from experiments.aligned import Settings, Variant, make_task, run_variant
from experiments.data import Split
from experiments.models import markdown
from experiments.refusal import plain_refusals
from experiments.settings import build

logger = logging.getLogger(__name__)

#: Columns of the table: what is measured, its heading, its digits.
MEASURES = (
    ("R@1 cosine", "R@1 %, cosine", 1),
    ("R@1 ratio", "R@1 %, likelihood ratio", 1),
    ("gap", "gap closed %", 0),
    ("seconds", "s", 0),
)
#: Whose cosine the gap is counted from, and to.
_FROM, _TO = "observed", "oracle"


@hydra.main(config_path="conf", config_name="align", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Make one table."""
    with plain_refusals():
        run(cfg, Path(HydraConfig.get().runtime.output_dir))


def run(cfg: DictConfig, folder: Path, console: Console | None = None) -> pd.DataFrame:
    """Train and measure every variant for every seed, print the table, and write the files of the run.

    Args:
        cfg: the composed configuration ``align``.
        folder: where the files go.
        console: to print to; standard output by default.

    Returns:
        What ``results.csv`` holds.

    Raises:
        CalmrlError: an option has a value that cannot work; the message names it.
    """
    split: Split = build(cfg, "data")
    mechanism = build(cfg, "missingness")
    settings = Settings.of(cfg)

    def prepare(seed: int) -> Callable[[Variant], dict[str, Any]]:
        task = make_task(
            split.train,
            split.test,
            mechanism(split.train, seed=seed),
            seed=seed,
            components=cfg.components,
            validation_share=cfg.validation_share,
        )
        return lambda variant: run_variant(variant, task, settings).row

    return compare(cfg, split.name, prepare, folder, console)


def compare(
    cfg: DictConfig,
    name: str,
    prepare: Callable[[int], Callable[[Variant], dict[str, Any]]],
    folder: Path,
    console: Console | None = None,
) -> pd.DataFrame:
    """Measure every variant that is wanted, for every seed.

    Args:
        cfg: with ``seeds``, ``only``, ``variants``, ``temperatures`` and ``missingness``.
        name: of the data, in the title.
        prepare: from a seed to what measures a variant, giving the measures of its row.
        folder: where the files go.
        console: to print to; standard output by default.

    Returns:
        What ``results.csv`` holds.

    Raises:
        CalmrlError: an option has a value that cannot work; the message names it.
    """
    out = console or Console()
    variants = _variants(cfg)
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True, quiet=out.quiet)) as progress:
        bar = progress.add_task("", total=len(variants) * len(cfg.seeds))
        for seed in cfg.seeds:
            measure = prepare(seed)
            for key, variant in variants.items():
                row = measure(variant)
                rows.append({"variant": key, "label": variant.label, "seed": seed, **row})
                logger.info("%s, seed %d: %s", key, seed, row)
                write_table(pd.DataFrame(rows), folder / "results.csv")  # an interrupted run leaves what it has
                progress.update(bar, advance=1, description=escape(f"{variant.label}, seed {seed}"))
    results = with_gap(pd.DataFrame(rows))
    write_table(results, folder / "results.csv")
    write_text(OmegaConf.to_yaml(cfg, resolve=True), folder / "config.yaml")
    text = tabulate(results)
    title = f"{name}, {cfg.missingness._target_.rpartition('.')[2]}, {len(cfg.seeds)} seeds"
    write_text(f"## {title}\n\n{markdown(text)}", folder / "table.md")
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for place, heading in enumerate(text.columns):
        table.add_column(heading, justify="left" if place == 0 else "right", no_wrap=True)
    for cells in text.to_numpy():
        table.add_row(*(escape(str(cell)) for cell in cells))
    out.width = max(out.width, 140)
    out.print(table)
    out.print(f"Results: {folder / 'results.csv'}", soft_wrap=True, highlight=False)
    return results


def with_gap(results: pd.DataFrame) -> pd.DataFrame:
    """The share of the gap that a variant closes by likelihood ratio, seed by seed, in percent.

    From what one would do without calibration (observed only, cold encoders, cosine) to the same on complete data. One
    score for all, named beforehand: the better of two on the test rows would be a choice made on them.

    Example:
        >>> rows = [("observed", 10.0), ("oracle", 20.0), ("mine", 17.0)]
        >>> frame = [{"variant": v, "seed": 0, "R@1 cosine": r, "R@1 ratio": r} for v, r in rows]
        >>> with_gap(pd.DataFrame(frame))["gap"].tolist()
        [0.0, 100.0, 70.0]
    """
    reached = results["R@1 ratio"].where(~results["variant"].isin([_FROM, _TO]), results["R@1 cosine"])
    cosine = results.set_index(["variant", "seed"])["R@1 cosine"]
    if not {_FROM, _TO} <= set(results["variant"]):
        return results.assign(gap=np.nan)
    low, high = cosine[_FROM].reindex(results["seed"]).to_numpy(), cosine[_TO].reindex(results["seed"]).to_numpy()
    gap = np.where(high == low, np.nan, high - low)  # nothing to close
    return results.assign(gap=100 * (reached.to_numpy() - low) / gap)


def tabulate(results: pd.DataFrame) -> pd.DataFrame:
    """The table as text: mean ± standard deviation over seeds.

    Example:
        >>> row = {"variant": "a", "label": "A", "R@1 cosine": 10.0, "R@1 ratio": 12.0, "gap": 50.0, "seconds": 1.0}
        >>> tabulate(pd.DataFrame([row | {"seed": 0}, row | {"seed": 1}])).iloc[0].tolist()
        ['A', '10.0±0.0', '12.0±0.0', '50±0', '1±0']
    """
    table = []
    for _, group in results.groupby("variant", sort=False):
        cells = {"variant": group["label"].iloc[0]}
        for name, heading, digits in MEASURES:
            values = group[name].dropna()
            spread = f"±{values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
            cells[heading] = f"{values.mean():.{digits}f}{spread}" if len(values) else "-"
        table.append(cells)
    return pd.DataFrame(table)


def _variants(cfg: DictConfig) -> dict[str, Variant]:
    known = list(cfg.variants)
    wanted = known if cfg.only is None else list(cfg.only)
    unknown = [key for key in wanted if key not in known]
    if unknown or not wanted:
        raise ArgumentError(f"only: expected some of {known}, got {wanted}.")
    return {
        key: Variant(**{"temperatures": list(cfg.temperatures), **OmegaConf.to_container(cfg.variants[key])})  # type: ignore[dict-item]
        for key in wanted
    }


if __name__ == "__main__":
    main()
