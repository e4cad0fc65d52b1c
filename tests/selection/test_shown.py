"""Progress of a choice: a bar where one is asked for, and by default where it takes long on a terminal."""

from __future__ import annotations

import sys

import pytest

import calmrl_prob as cal
from calmrl_prob.selection import shown as module
from calmrl_prob.selection.shown import shown


@pytest.mark.parametrize(("terminal", "least", "bar"), [(True, 1, True), (True, 10**9, False), (False, 1, False)])
def test_by_default_it_is_shown_where_it_takes_long_on_a_terminal(
    terminal: bool, least: int, bar: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = cal.datasets.make_synthetic(30, {"a": 3, "b": 2}, latent_dim=1, seed=0).data
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setattr(module, "_LONG", least)
    with shown(None, "choosing", 3, data) as callback:
        assert (callback is not None) is bar


def test_a_bar_that_is_asked_for_names_what_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    data = cal.datasets.make_synthetic(60, {"a": 3, "b": 3}, latent_dim=1, seed=0).data
    cal.choose_latent_dim(data, [1, 2], folds=2, progress=True)
    assert "choosing K" in capsys.readouterr().err
    cal.choose_shrinkage(cal.SharedLatentModel(data.dims, 1), data, {"pseudo_rows": [5]}, folds=2, progress=True)
    assert "shrinkage" in capsys.readouterr().err
    cal.choose_latent_dim(data, [1, 2], folds=2)
    assert capsys.readouterr().err == ""
