"""Versions of installed packages, for what is written to files."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def installed_version(distribution: str, otherwise: str = "unknown") -> str:
    """The version of an installed distribution, or another string for one that runs from a checkout, not installed.

    Example:
        >>> installed_version("no-such-distribution")
        'unknown'
    """
    try:
        return version(distribution)
    except PackageNotFoundError:
        return otherwise
