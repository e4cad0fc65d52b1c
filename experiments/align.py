"""Calibrated alignment of encoders, by many variants on equal terms: ``python -m experiments.align``.

    python -m experiments.align                              # emoji, 15% of the rows complete, the rest pairs
    python -m experiments.align missingness=mcar             # half of all modalities removed
    python -m experiments.align missingness=hub              # pairs with the first modality, none complete
    python -m experiments.align data=npz data.source.path=multi30k_lsa.npz only=[observed,started] seeds=[0]

Leaves in the run's folder ``results.csv`` (one row for each variant and seed), ``table.md``, ``config.yaml`` and
the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import hydra
import numpy as np
import pandas as pd
from omegaconf import DictConfig
from rich.console import Console

from analysis.runs.files import write_table
from experiments.alignment.runs import Row, chosen_variants, collect, heading, tabulate, task_of
from experiments.alignment.training import Settings, Variant, run_variant
from experiments.harness.command import finish, run_in_folder
from experiments.harness.settings import build
from experiments.harness.split import Split

#: Columns of the table: what is measured, its heading, its digits.
MEASURES = (
    ("R@1 cosine", "R@1 %, cosine", 1),
    ("R@1 ratio", "R@1 %, likelihood ratio", 1),
    ("gap", "gap closed %", 0),
    ("seconds", "s", 0),
)
CAPTION = (
    "R@1 on complete test rows, in %, mean ± standard deviation over seeds. Gap closed: by likelihood ratio, of the "
    "way from observed only by cosine (0) to complete data by cosine (100)."
)
#: Whose cosine the gap is counted from, and to.
_FROM, _TO = "observed", "oracle"


@hydra.main(config_path="conf", config_name="align", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Make one table."""
    run_in_folder(run, cfg)


def run(cfg: DictConfig, folder: Path, console: Console | None = None) -> pd.DataFrame:
    """Train and measure every variant for every seed, print the table, and write the files of the run."""
    split: Split = build(cfg, "data")
    settings = Settings.of(cfg)

    def prepare(seed: int) -> Callable[[Variant], Row]:
        task = task_of(cfg, split, seed)
        return lambda variant: run_variant(variant, task, settings).row

    return compare(cfg, split.name, prepare, folder, console)


def compare(
    cfg: DictConfig,
    name: str,
    prepare: Callable[[int], Callable[[Variant], Row]],
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
    variants = chosen_variants(cfg)
    steps = len(variants) * len(cfg.seeds)
    results = with_gap(collect(_rows(cfg, variants, prepare), steps, folder, out))
    write_table(results, folder / "results.csv")
    finish(cfg, tabulate(results, ["label"], MEASURES), heading(cfg, name), CAPTION, folder, out)
    return results


def _rows(
    cfg: DictConfig, variants: Mapping[str, Variant], prepare: Callable[[int], Callable[[Variant], Row]]
) -> Iterator[tuple[str, list[Row]]]:
    for seed in cfg.seeds:
        measure = prepare(seed)
        for key, variant in variants.items():
            named = {"variant": key, "label": variant.label, "seed": seed}
            yield f"{variant.label}, seed {seed}", [named | measure(variant)]


def with_gap(results: pd.DataFrame) -> pd.DataFrame:
    """The share of the gap that a variant closes by likelihood ratio, seed by seed, in percent.

    From what one would do without calibration (observed only, cold encoders, cosine) to the same on complete data. One
    score for all, named beforehand: the better of two on the test rows would be a choice made on them. What scoring
    alone is worth is what observed only has above 0.

    Example:
        >>> rows = [("observed", 10.0), ("oracle", 20.0), ("mine", 17.0)]
        >>> frame = [{"variant": v, "seed": 0, "R@1 cosine": r, "R@1 ratio": r} for v, r in rows]
        >>> with_gap(pd.DataFrame(frame))["gap"].tolist()
        [0.0, 100.0, 70.0]
    """
    reached = results["R@1 ratio"]
    cosine = results.set_index(["variant", "seed"])["R@1 cosine"]
    if not {_FROM, _TO} <= set(results["variant"]):
        return results.assign(gap=np.nan)
    low, high = cosine[_FROM].reindex(results["seed"]).to_numpy(), cosine[_TO].reindex(results["seed"]).to_numpy()
    gap = np.where(high == low, np.nan, high - low)  # nothing to close
    return results.assign(gap=100 * (reached.to_numpy() - low) / gap)


if __name__ == "__main__":
    main()
