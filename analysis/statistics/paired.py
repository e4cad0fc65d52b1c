"""Paired tests of variants over seeds: what can be told apart, and how little that is with few of them.

Variants were measured on the same seeds (the same removed modalities and validation rows), so that their differences
seed by seed vary less than they do. Of d_1 .. d_n, one for each seed:

    standard error   s / sqrt(n), s with n - 1
    interval         mean -/+ t_(n-1) s / sqrt(n), not adjusted for their number
    t_p              paired t test, two-sided: supposes that the d vary normally, which few of them cannot show
    wilcoxon_p       signed ranks over all 2^n sign changes, so never below 2 / 2^n: 0.25 for three seeds, 0.06 for five
    ..._holm         adjusted for the number of variants compared with the reference

Seeds share the test rows: what is told is about other seeds, not about other data.

Source: Holm, A simple sequentially rejective multiple test procedure (1979); Wilcoxon, Individual comparisons by
ranking methods (1945); Demsar, Statistical comparisons of classifiers over multiple data sets (2006).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from calmrl_prob.errors import ArgumentError

#: So many pairs at most have all their 2^n sign changes gone through.
_EXACT = 16


def paired_differences(
    results: pd.DataFrame,
    metric: str,
    reference: str,
    *,
    variant: str = "variant",
    blocks: Sequence[str] = ("seed",),
    level: float = 0.95,
) -> pd.DataFrame:
    """Each variant less the reference, over the blocks that have both.

    Args:
        results: one row for each variant and block; label names variants in words, if it is there.
        metric: the column to compare.
        reference: the variant that the others are compared with.
        variant: the column that holds it.
        blocks: columns that pairs agree in: the seed, and the run where there are several.
        level: of the intervals, and 1 - level of what is called told apart.

    Returns:
        One row for each other variant: variant, label, pairs (n), mean, reference_mean (both over the pairs),
        difference, standard_error, lower, upper, t_p, t_p_holm, wilcoxon_p, wilcoxon_p_holm, wilcoxon_least (what
        n pairs can give at best) and verdict: "higher", "lower", "not told apart", "one pair", "no pair" or
        "the same everywhere". NaN where nothing can be said.

    Raises:
        ArgumentError: the reference or the metric is not in the results, or rows of a variant share a block.

    Example:
        >>> results = pd.DataFrame({"variant": ["a", "b"] * 3, "seed": [0, 0, 1, 1, 2, 2],
        ...                         "R@1": [10.0, 12.0, 11.0, 13.1, 10.0, 11.9]})
        >>> found = paired_differences(results, "R@1", "a").iloc[0]
        >>> print(found["verdict"], f"{found['difference']:.2f}", found["pairs"], found["wilcoxon_p"])
        higher 2.00 3 0.25
    """
    if not 0 < level < 1:
        raise ArgumentError(f"level: expected a number between 0 and 1, got {level!r}.")
    names = list(dict.fromkeys(results[variant]))
    if reference not in names:
        raise ArgumentError(f"reference: expected one of {names}, got {reference!r}.")
    if metric not in results:
        raise ArgumentError(f"metric: expected a column of the results, {list(results.columns)}, got {metric!r}.")
    keys = list(blocks)
    if results.duplicated([variant, *keys]).any():
        raise ArgumentError(f"blocks: expected columns that tell the rows of a variant apart, got {keys}.")
    values = results.set_index([*keys, variant])[metric].unstack(variant)
    labels = dict(zip(results[variant], results["label" if "label" in results else variant], strict=True))
    rows = []
    for name in names:
        if name == reference:
            continue
        both = values[[name, reference]].dropna()
        rows.append(
            {"variant": name, "label": str(labels[name]), "pairs": len(both)}
            | {"mean": both[name].mean(), "reference_mean": both[reference].mean()}
            | _of_pairs((both[name] - both[reference]).to_numpy(float), level)
        )
    table = pd.DataFrame(rows)
    if not len(table):
        raise ArgumentError(f"results: expected a variant besides the reference {reference!r}, got none.")
    for test in ("t_p", "wilcoxon_p"):
        table.insert(table.columns.get_loc(test) + 1, f"{test}_holm", holm(table[test].to_numpy()))
    table["verdict"] = [_verdict(row, level) for _, row in table.iterrows()]
    return table


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's adjusted p values, in the order given; NaN stays, and does not count.

    Example:
        >>> holm(np.array([0.01, 0.04, np.nan, 0.03])).tolist()
        [0.03, 0.06, nan, 0.06]
    """
    adjusted = np.full(len(p_values), np.nan)
    known = np.flatnonzero(~np.isnan(p_values))
    order = known[np.argsort(p_values[known], kind="stable")]
    steps = p_values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def signed_rank_p(differences: np.ndarray) -> float:
    """Wilcoxon's signed-rank test, two-sided, with mid-ranks; zeros do not count. NaN if nothing is left.

    Example:
        >>> signed_rank_p(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
        0.0625
    """
    kept = differences[differences != 0]
    if not len(kept):
        return float("nan")
    if len(kept) > _EXACT:
        return float(stats.wilcoxon(kept, method="approx").pvalue)
    ranks = stats.rankdata(np.abs(kept))
    signs = 1 - 2 * ((np.arange(2 ** len(kept))[:, None] >> np.arange(len(kept))) & 1)
    sums = np.abs(signs @ ranks)
    return float((sums >= abs(np.sign(kept) @ ranks) - 1e-9).mean())


def _of_pairs(differences: np.ndarray, level: float) -> dict[str, float]:
    n = len(differences)
    mean = differences.mean() if n else np.nan
    error = differences.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
    # Rounding aside, the same difference everywhere: no test has anything to go by.
    spread = error > 1e-12 * max(1.0, abs(mean))
    reach = stats.t.ppf((1 + level) / 2, n - 1) * error if n > 1 else np.nan
    return {
        "difference": float(mean),
        "standard_error": float(error),
        "lower": float(mean - reach),
        "upper": float(mean + reach),
        "t_p": float(2 * stats.t.sf(abs(mean) / error, n - 1)) if spread else np.nan,
        "wilcoxon_p": signed_rank_p(differences) if n > 1 else np.nan,
        "wilcoxon_least": 2.0 / 2**n if n > 1 else np.nan,
    }


def _verdict(row: pd.Series, level: float) -> str:
    if row["pairs"] < 2:
        return "one pair" if row["pairs"] else "no pair"
    if np.isnan(row["t_p"]):
        return "the same everywhere"
    if row["t_p_holm"] < 1 - level:
        return "higher" if row["difference"] > 0 else "lower"
    return "not told apart"
