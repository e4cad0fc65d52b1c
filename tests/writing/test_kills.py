"""Runs over streams that are killed with -9 go on, and end in the same bits; ten moments each by `benchmarks.kills`."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.kills import TASKS, kills, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed") / "data"
    write_data(4000, folder)
    return folder


@pytest.mark.slow  # starts Python five times, which takes seconds
@pytest.mark.parametrize("task", TASKS)
def test_what_was_killed_goes_on_to_the_same_bits(task: str, data: Path, tmp_path: Path) -> None:
    for one in kills(task, data, tmp_path, moments=2, seed=0):
        assert (one.torn, one.same, one.left) == ([], True, [])
