"""Diagnostics in plain words: what a figure says, and what is to be done about it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from calmrl_prob.report.readings import coverage_reading, coverage_verdict


def modality_readings(table: pd.DataFrame) -> list[str]:
    """One sentence for each modality, of the shares covered over seeds.

    Args:
        table: modality, level, coverage, seed, and recalibrated where it was done; shares in [0, 1].
    """
    lines = []
    for (name, level), rows in table.groupby(["modality", "level"], sort=False):
        recalibrated = float(rows["recalibrated"].mean()) if "recalibrated" in rows else None
        lines.append(coverage_reading(str(name), float(level), *_mean_and_error(rows["coverage"]), recalibrated))
    return lines


def recalibration_readings(results: pd.DataFrame, level: float) -> list[str]:
    """One sentence for each kind of fit and modality: intervals as fitted, and recalibrated by one method.

    Args:
        results: of ``experiments.recalibration``: fit, method, modality, seed and coverage, a share in [0, 1].
        level: that the intervals are to cover, a share.
    """
    lines = []
    for (kind, name), rows in results.groupby(["fit", "modality"], sort=False):
        means = rows.groupby("method", sort=False)["coverage"].mean()
        after = next(
            (method for method in ("conformal", "cv", *means.index) if method in means and method != "none"), None
        )
        if "none" in means:
            own = _mean_and_error(rows.loc[rows["method"] == "none", "coverage"])
            text = coverage_reading(str(name), level, *own, None if after is None else float(means[after]))
            lines.append(f"{kind}. {text}" + f" (Recalibrated by: {after}.)" * (after is not None))
    return lines


def variant_readings(results: pd.DataFrame, level: float) -> list[str]:
    """Readings of the variants: which state their uncertainty as it is, and which too small or too large.

    Args:
        results: label, seed and coverage (percent).
        level: that the intervals are to cover, a share.
    """
    found: dict[str, list[str]] = {}
    for label, rows in results.dropna(subset=["coverage"]).groupby("label", sort=False):
        share, error = _mean_and_error(rows["coverage"] / 100)
        found.setdefault(coverage_verdict(level, share, error), []).append(f"{label} ({100 * share:.1f}%)")
    return [
        f"The {100 * level:g}% intervals are {verdict}, over all modalities, of: {', '.join(labels)}."
        for verdict, labels in found.items()
    ]


def certificate_readings(certificates: pd.DataFrame, threshold: float = 0.5, most: int = 20) -> list[str]:
    """Readings of the certificates: the instances that should not be imputed.

    Args:
        certificates: id, probability (that calibration brings the anchor nearer), and nearer (whether it did) where
            the truth is known; rows with nothing missing left out.
        threshold: probabilities below it advise against imputing.
        most: names at most so many.

    Example:
        >>> certificate_readings(pd.DataFrame({"id": ["a", "b"], "probability": [0.2, 0.9]}))[0]
        'Of 2 instances with something missing, 1 should not be imputed (probability of gain below 0.5): a.'
    """
    if not len(certificates):
        return ["No instance has anything missing, so that there is nothing to certify."]
    refused = certificates[certificates["probability"] < threshold].sort_values("probability", kind="stable")
    count = f"Of {len(certificates)} instances with something missing, {len(refused) or 'none'} should not be imputed "
    named = ", ".join(str(name) for name in refused["id"].head(most))
    more = f" and {len(refused) - most} more, the lowest first" if len(refused) > most else ""
    lines = [f"{count}(probability of gain below {threshold:g}){f': {named}{more}' if len(refused) else ''}."]
    if "nearer" in certificates:
        accepted = certificates[certificates["probability"] >= threshold]
        for which, rows in (("that should be imputed", accepted), ("that should not", refused)):
            if len(rows):
                lines.append(
                    f"Of those {which}, imputing brought {100 * rows['nearer'].mean():.0f}% nearer to the anchor of "
                    f"the complete instance; they were promised {100 * rows['probability'].mean():.0f}%."
                )
    return lines


def spread_reading(seeds: Sequence[int]) -> str:
    """Reading of the spread over so many seeds."""
    if len(seeds) == 1:
        return f"One seed ({seeds[0]}): nothing is known of the spread, so that no difference can be told from chance."
    return f"Mean ± standard deviation over {len(seeds)} seeds."


def _mean_and_error(values: pd.Series) -> tuple[float, float]:
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
    return float(values.mean()), error
