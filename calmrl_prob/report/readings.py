"""Diagnostics in plain words: what a figure says, and what is to be done about it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

#: Shares of cells that count as what was promised whatever the standard error: nobody acts on less.
_CLOSE = 0.01
_FITTING = "as wide as they should be"
#: R^2 below which imputing is hardly better than the mean, and from which on it tells much.
_LITTLE, _MUCH = 0.1, 0.5


def coverage_reading(
    what: str, level: float, coverage: float, error: float = 0.0, recalibrated: float | None = None
) -> str:
    """Reading of the coverage of intervals.

    Args:
        what: whose intervals, such as a modality.
        level: that they are to cover, a share.
        coverage: that they do cover, a share.
        error: standard error of it, told beside it; two of them are allowed for.
        recalibrated: share covered after recalibration, where there is one.

    Example:
        >>> coverage_reading("audio", 0.9, 0.84, 0.005, 0.9)
        'The 90% intervals of audio cover 84.0% (give or take 0.5%): too narrow; recalibrated they cover 90.0%.'
        >>> coverage_reading("text", 0.9, 0.905)
        'The 90% intervals of text cover 90.5%: as wide as they should be.'
    """
    verdict = coverage_verdict(level, coverage, error)
    text = f"The {100 * level:g}% intervals of {what} cover {100 * coverage:.1f}%{give_or_take(error)}: {verdict}"
    if recalibrated is None or math.isnan(recalibrated):
        return f"{text}."
    after = coverage_verdict(level, recalibrated, error)
    still = "" if not after.startswith("too") else f", still {after}" if after == verdict else f", then {after}"
    return f"{text}; recalibrated they cover {100 * recalibrated:.1f}%{still}."


def coverage_verdict(level: float, coverage: float, error: float = 0.0) -> str:
    """Verdict on intervals by the share that they cover, allowing for two standard errors and for what nobody acts on.

    Where two standard errors are more than that, a share within them tells nothing for the intervals, nor against them.

    Example:
        >>> coverage_verdict(0.9, 0.905), coverage_verdict(0.9, 0.84, 0.01), coverage_verdict(0.9, 0.86, 0.03)
        ('as wide as they should be', 'too narrow', 'not told apart from 90%')
    """
    gap = coverage - level
    if abs(gap) <= max(_CLOSE, 2 * error):
        return _FITTING if 2 * error <= _CLOSE else f"not told apart from {100 * level:g}%"
    return "too wide" if gap > 0 else "too narrow"


def give_or_take(error: float) -> str:
    """A standard error of a share as it stands behind the share; nothing where it is not known.

    Example:
        >>> give_or_take(0.0276), give_or_take(0.003), give_or_take(0.0)
        (' (give or take 3%)', ' (give or take 0.3%)', '')
    """
    percent = 100 * error
    return f" (give or take {percent:{'.0f' if percent >= 1 else '.1g'}}%)" if percent > 0 else ""


def share_error(share: float, count: int) -> float:
    """Standard error of a share of so many instances; two of each kind are added, else none or all would have no error.

    Example:
        >>> round(share_error(0.86, 158), 3), round(share_error(1.0, 20), 3)
        (0.028, 0.056)
    """
    total = count + 4
    share = (share * count + 2) / total
    return math.sqrt(share * (1 - share) / total)


def r2_reading(r2: float) -> str:
    """Reading of an R^2 of imputing a modality.

    Example:
        >>> r2_reading(0.62)
        'R^2 0.62 (0 = its mean, 1 = exact), the others tell much of it'
        >>> r2_reading(-0.1)
        'R^2 -0.10 (0 = its mean, 1 = exact), no better than its mean: do not use its imputed values'
    """
    if math.isnan(r2):
        return "R^2 unknown, as it was never held out"
    told = "the others tell much of it" if r2 >= _MUCH else "the others tell something of it"
    if r2 < _LITTLE:
        told = "the others tell hardly anything of it"
    if r2 <= 0:
        told = "no better than its mean: do not use its imputed values"
    return f"R^2 {r2:.2f} (0 = its mean, 1 = exact), {told}"


def validation_readings(summary: pd.DataFrame, level: float) -> list[str]:
    """One sentence for each modality that was hidden and imputed: R^2, and coverage of the intervals.

    Args:
        summary: what ``MaskedValidation.summary`` returns, by modality.
        level: of the intervals.

    Example:
        >>> import pandas as pd
        >>> row = {"modality": "text", "R2": 0.62, "coverage": 0.84, "coverage_se": 0.01, "num_instances": 80}
        >>> print(*validation_readings(pd.DataFrame([row]), 0.9))
        text, hidden in 80 instances: R^2 0.62 (0 = its mean, 1 = exact), the others tell much of it. The...
    """
    return [
        f"{row['modality']}, hidden in {row['num_instances']:,} instances: {r2_reading(float(row['R2']))}. "
        + coverage_reading(str(row["modality"]), level, float(row["coverage"]), _known(float(row["coverage_se"])))
        for row in summary.to_dict("records")
    ]


def _known(error: float) -> float:
    return 0.0 if math.isnan(error) else error
