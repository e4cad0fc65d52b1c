"""One contract for every plot, and a picture of each; what each shows is tested in test_plots_meaning.py.

To draw the pictures anew: ``PYTHONPATH=. python tests/plots/test_plots.py``, and look at them before they are
committed.
"""

from __future__ import annotations

import builtins
import inspect
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.testing.compare import compare_images
from matplotlib.testing.decorators import remove_ticks_and_titles
from matplotlib.text import Text

from calmrl_prob import plots
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, CalmrlError, MissingDependencyError
from tests.cases.plot_cases import cases, function

BASELINES = Path(__file__).parent / "baselines"
#: Root mean squared difference of grey values (0 to 255) up to which pictures are the same: anti-aliasing differs
#: between FreeType and Agg releases, a line that moved by its own width does not.
TOLERANCE = 4.0

every_plot = pytest.mark.parametrize("name", plots.__all__)


@pytest.fixture(scope="module")
def calls() -> dict[str, Any]:
    return cases()


def drawn(call: Any, name: str) -> Axes:  # noqa: ANN401
    axes = Figure(figsize=(3.2, 2.4), dpi=100).add_axes((0.1, 0.1, 0.85, 0.85))
    return function(name)(*call[0], ax=axes, **call[1])


def save(axes: Axes, path: Path) -> None:
    """Without text: fonts and where their glyphs are hinted to differ between machines."""
    figure = axes.figure
    remove_ticks_and_titles(figure)
    for panel in figure.axes:
        panel.set(xlabel="", ylabel="")
        if (legend := panel.get_legend()) is not None:
            legend.remove()
    for text in figure.findobj(Text):
        text.set_text("")
    figure.savefig(path, metadata={"Software": None})


def test_every_plot_has_a_case(calls: dict[str, Any]) -> None:
    assert sorted(calls) == sorted(plots.__all__)


@every_plot
def test_it_draws_on_the_axes_given_and_returns_them(name: str, calls: dict[str, Any]) -> None:
    axes = Figure().subplots()
    assert function(name)(*calls[name][0], ax=axes, **calls[name][1]) is axes
    assert axes.has_data()
    assert not pyplot.get_fignums()


@every_plot
def test_it_makes_axes_that_pyplot_knows_and_shows_nothing(
    name: str, calls: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pyplot, "show", lambda *_, **__: pytest.fail("shown"))
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: pytest.fail("saved"))
    axes = function(name)(*calls[name][0], **calls[name][1])
    assert axes.figure.number in pyplot.get_fignums()


@every_plot
def test_it_says_what_it_shows(name: str, calls: dict[str, Any]) -> None:
    axes = drawn(calls[name], name)
    assert axes.get_title()
    assert axes.get_xlabel()
    assert axes.get_ylabel()
    labelled = [text.get_text() for text in axes.get_legend().get_texts()] if axes.get_legend() else []
    assert all(labelled)
    maps_and_tables = {
        "variance_explained",
        "value_of_information",
        "retrieval_gallery",
    }  # a colour bar, and frames that the axis explains
    assert bool(labelled) == (name not in maps_and_tables)
    axes.figure.draw_without_rendering()  # no warning: nothing is missing from the fonts, nothing is infinite


@every_plot
def test_settings_and_arguments_stay_as_they_were(name: str, calls: dict[str, Any]) -> None:
    before = dict(mpl.rcParams)
    arrays = [part.copy() for part in calls[name][0] if isinstance(part, np.ndarray)]
    drawn(calls[name], name)
    assert dict(mpl.rcParams) == before
    for was, part in zip(arrays, (p for p in calls[name][0] if isinstance(p, np.ndarray)), strict=True):
        np.testing.assert_array_equal(was, part)


@every_plot
def test_what_are_no_axes_is_refused(name: str, calls: dict[str, Any]) -> None:
    positional, named = calls[name]
    with pytest.raises(ArgumentTypeError, match="ax: expected matplotlib axes, got ndarray; pass one of those"):
        function(name)(*positional, ax=Figure().subplots(1, 2), **named)
    with pytest.raises(ArgumentError, match="projection 'polar'"):
        function(name)(*positional, ax=Figure().subplots(subplot_kw={"projection": "polar"}), **named)
    assert not pyplot.get_fignums()


@every_plot
@pytest.mark.parametrize("wrong", [None, "text", object()])
def test_what_cannot_be_drawn_is_refused_by_name_and_leaves_no_figure(
    name: str, wrong: object, calls: dict[str, Any]
) -> None:
    positional, named = calls[name]
    first = next(iter(inspect.signature(function(name)).parameters))
    with pytest.raises(CalmrlError, match=rf"^{first}\b"):
        function(name)(wrong, *positional[1:], **named)
    assert not pyplot.get_fignums()


@every_plot
def test_without_matplotlib_it_says_what_to_install(
    name: str, calls: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(module: str, *rest: object, **named: object) -> object:
        if module.split(".")[0] == "matplotlib":
            raise ImportError(module)
        return real(module, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"pip install 'calmrl-prob\[plots\]'"):
        function(name)(*calls[name][0], **calls[name][1])


@every_plot
def test_it_looks_as_it_did(name: str, calls: dict[str, Any], tmp_path: Path) -> None:
    save(drawn(calls[name], name), tmp_path / f"{name}.png")
    different = compare_images(str(BASELINES / f"{name}.png"), str(tmp_path / f"{name}.png"), TOLERANCE)
    assert different is None, different


def test_pictures_tell_a_moved_line_and_stay_small(tmp_path: Path) -> None:
    moved = dict(cases())
    curves = {label: curve.assign(coverage=0.9 * curve["coverage"]) for label, curve in moved["coverage"][0][0].items()}
    save(drawn(((curves,), {}), "coverage"), tmp_path / "coverage.png")
    assert compare_images(str(BASELINES / "coverage.png"), str(tmp_path / "coverage.png"), TOLERANCE) is not None
    files = list(BASELINES.glob("*.png"))
    assert sorted(file.stem for file in files) == sorted(plots.__all__)
    assert sum(file.stat().st_size for file in files) < 300_000


if __name__ == "__main__":
    for key, case in cases().items():
        save(drawn(case, key), BASELINES / f"{key}.png")
