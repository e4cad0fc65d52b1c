"""The fixtures that several test files share, and what every run of the tests needs; shared cases are in cases/."""

from __future__ import annotations

import os
import sys

import pytest
import torch

os.environ.setdefault("MPLBACKEND", "Agg")  # no test needs a screen


class FiguresAreClosed:
    """A plugin, so that doctests outside this folder leave no figure open either: many at once are warned about."""

    def pytest_runtest_teardown(self) -> None:
        if pyplot := sys.modules.get("matplotlib.pyplot"):
            pyplot.close("all")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(FiguresAreClosed())


DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Every device of this machine in turn."""
    return str(request.param)
