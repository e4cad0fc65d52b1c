"""The table of a comparison: mean and spread over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

#: Columns of the table: heading, digits after the point, and whether higher is better (None: neither).
METRICS: dict[str, tuple[str, int, bool | None]] = {
    "R@1": ("R@1 %", 1, True),
    "R@10": ("R@10 %", 1, True),
    "RMSE": ("RMSE", 3, False),
    "NLL": ("NLL", 3, False),
    "NLL joint": ("joint NLL", 3, False),
    "coverage": ("coverage %", 1, None),
    "probe": ("probe %", 1, True),
    "seconds": ("fit s", 2, None),
}


def summarize(results: pd.DataFrame, by: Sequence[str] = ("variant",)) -> pd.DataFrame:
    """Mean and standard deviation over the seeds.

    Args:
        results: one row for each variant and seed, as ``results.parquet`` holds them.
        by: what to keep apart; add settings such as "missingness.rate" for results gathered from many runs.

    Returns:
        One row for each group, in the order of ``results``: label, seeds (their number), and for each metric two
        columns, ``<metric>`` the mean and ``<metric> sd`` the standard deviation (n - 1; NaN for one seed).

    Example:
        >>> results = pd.DataFrame({"variant": ["a", "a"], "label": ["A", "A"], "seed": [0, 1], "R@1": [10.0, 14.0]})
        >>> summarize(results)[["seeds", "R@1", "R@1 sd"]].round(2).values.tolist()
        [[2.0, 12.0, 2.83]]
    """
    present = [name for name in METRICS if name in results]
    groups = results.groupby(list(by), sort=False, dropna=False)
    table = groups.agg(label=("label", "first"), seeds=("seed", "nunique"))
    if "K" in results:
        table["K"] = groups["K"].first()
    if "noise_pseudo_count" in results:
        table["noise_pseudo_count"] = groups["noise_pseudo_count"].first()
    for name in present:
        table[name] = groups[name].mean()
        table[f"{name} sd"] = groups[name].std(ddof=1)
    return table.reset_index()


def formatted(summary: pd.DataFrame) -> pd.DataFrame:
    """The table as text: "17.1±0.4", headings as readers see them; what is lacking is a dash.

    Example:
        >>> formatted(pd.DataFrame({"label": ["A"], "R@1": [12.04], "R@1 sd": [2.83]})).values.tolist()
        [['A', '12.0±2.8']]
    """
    text = pd.DataFrame({"variant": summary["label"]})
    if "K" in summary:
        text["K"] = [_number(k) for k in summary["K"].astype(float)]
    if "noise_pseudo_count" in summary:
        text["noise prior"] = [_number(weight) for weight in summary["noise_pseudo_count"].astype(float)]
    for name, (heading, digits, _) in METRICS.items():
        if name in summary:
            text[heading] = [
                _cell(mean, sd, digits) for mean, sd in zip(summary[name], summary[f"{name} sd"], strict=True)
            ]
    return text


def best_rows(summary: pd.DataFrame, without: Sequence[str] = ("oracle",)) -> dict[str, int]:
    """For each heading with a better end, the row that is best there, the oracle aside."""
    rows = ~summary["variant"].isin(without)
    best = {}
    for name, (heading, _, higher) in METRICS.items():
        if name in summary and higher is not None and summary.loc[rows, name].notna().any():
            column = summary.loc[rows, name]
            best[heading] = int(column.idxmax() if higher else column.idxmin())
    return best


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:g}"


def _cell(mean: float, sd: float, digits: int) -> str:
    if np.isnan(mean):
        return "-"
    return f"{mean:.{digits}f}" if np.isnan(sd) else f"{mean:.{digits}f}±{sd:.{digits}f}"
