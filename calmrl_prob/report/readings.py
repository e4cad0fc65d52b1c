"""Diagnostics in plain words: what a figure says, and what is to be done about it."""

from __future__ import annotations

#: Shares of cells that count as what was promised whatever the standard error: nobody acts on less.
_CLOSE = 0.01
_FITTING = "as wide as they should be"


def coverage_reading(
    what: str, level: float, coverage: float, error: float = 0.0, recalibrated: float | None = None
) -> str:
    """Reading of the coverage of intervals.

    Args:
        what: whose intervals, such as a modality.
        level: that they are to cover, a share.
        coverage: that they do cover, a share.
        error: standard error of it; two of them are allowed for.
        recalibrated: share covered after recalibration, where there is one.

    Example:
        >>> coverage_reading("audio", 0.9, 0.84, 0.005, 0.9)
        'The 90% intervals of audio cover 84.0%: too narrow; recalibrated they cover 90.0%.'
        >>> coverage_reading("text", 0.9, 0.905)
        'The 90% intervals of text cover 90.5%: as wide as they should be.'
    """
    verdict = coverage_verdict(level, coverage, error)
    text = f"The {100 * level:g}% intervals of {what} cover {100 * coverage:.1f}%: {verdict}"
    if recalibrated is None or recalibrated != recalibrated:
        return f"{text}."
    after = coverage_verdict(level, recalibrated, error)
    still = "" if after == _FITTING else f", still {after}" if after == verdict else f", then {after}"
    return f"{text}; recalibrated they cover {100 * recalibrated:.1f}%{still}."


def coverage_verdict(level: float, coverage: float, error: float = 0.0) -> str:
    """Verdict on intervals by the share that they cover, allowing for two standard errors and for what nobody acts on.

    Example:
        >>> coverage_verdict(0.9, 0.905), coverage_verdict(0.9, 0.84, 0.01)
        ('as wide as they should be', 'too narrow')
    """
    gap = coverage - level
    if abs(gap) <= max(_CLOSE, 2 * error):
        return _FITTING
    return "too wide" if gap > 0 else "too narrow"
