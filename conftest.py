"""Doctests of all rooms are compared as ``tests/cases/printed.py`` says, whichever of them pytest is asked for."""

from __future__ import annotations

import _pytest.doctest
import pytest

from tests.cases.printed import PrintedChecker


def pytest_configure(config: pytest.Config) -> None:
    """Replace what pytest compares doctests with; it has no public way, and ``printed.py`` has a doctest to tell."""
    _pytest.doctest.CHECKER_CLASS = PrintedChecker
