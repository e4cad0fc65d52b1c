"""Reports in a headless Chromium: nothing is fetched, nothing goes wrong, tables sort, and it fits narrow screens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.compare import compare_runs, write_comparison
from analysis.report import build_report
from analysis.runs.files import write_table, write_text
from calmrl_prob import SharedLatentModel, datasets, fit
from calmrl_prob.report.own_data import write_report
from tests.cases.browser import Tab, browser, find_browser

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason="no Chromium on the path, and CHROMIUM names none"),
]


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    program = find_browser()
    assert program is not None
    with browser(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report of `make demo` on few seeds, of an interrupted run of many columns, of own data, and a comparison."""
    from hydra import compose, initialize_config_dir
    from rich.console import Console

    from experiments.compare import run

    demo, cut = tmp_path_factory.mktemp("demo"), tmp_path_factory.mktemp("cut")
    conf = Path(__file__).resolve().parents[2] / "experiments" / "conf"
    with initialize_config_dir(str(conf), version_base="1.3"):
        cfg = compose("compare", ["data=emoji", "seeds=[0,1]", "calibration=[mean,ridge,calmrl]", "report.shares=[]"])
    run(cfg, demo, console=Console(quiet=True))
    generator = np.random.default_rng(0)
    rows = [
        {"variant": key, "label": f"a variant whose label is rather long, number {key}", "seed": seed}
        | {"R@1 cosine": generator.normal(10 * key, 1), "R@1 ratio": generator.normal(9, 1)}
        | {f"some other measure {k}": generator.normal() for k in range(9)}
        for key in range(12)
        for seed in range(3)
    ]
    write_table(pd.DataFrame(rows), cut / "results.csv")
    write_text("seeds: [0, 1, 2, 3]\n", cut / "config.yaml")
    own = datasets.make_synthetic(120, {"image": 5, "text": 4, "sound": 3}, latent_dim=2, missing_rate=0.3, seed=0).data
    fitted = fit(SharedLatentModel(own.dims), own, seed=0)
    return {
        "own data": write_report(fitted, own, tmp_path_factory.mktemp("own") / "report.html"),
        "demo": build_report(demo),
        "interrupted": build_report(cut),
        "comparison": write_comparison(compare_runs([cut]), cut, ["cut"]),
    }


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("page", ["demo", "interrupted", "comparison", "own data"])
def test_a_page_opens_from_disk_alone_and_fits(tab: Tab, pages: dict[str, Path], page: str, width: int) -> None:
    tab.open(pages[page], width)
    fetched = [event["request"]["url"] for event in tab.of("Network.requestWillBeSent")]
    assert [url for url in fetched if not url.startswith("data:")] == [pages[page].resolve().as_uri()]
    assert tab.of("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled") == []
    tab.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    smallest = (
        "Math.min(...[...document.querySelectorAll('p, td, li')].map((e) => parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert tab.evaluate(smallest) >= 12
    cut_off = (
        "[...document.querySelectorAll('td')].filter((cell) => cell.getBoundingClientRect().right > innerWidth).length"
    )
    assert width > 1000 or tab.evaluate(cut_off) == 0


def test_a_click_on_a_heading_sorts_and_another_turns_the_order(tab: Tab, pages: dict[str, Path]) -> None:
    tab.open(pages["demo"], 1280)
    column = "[...document.querySelector('table').tBodies[0].rows].map((row) => parseFloat(row.cells[3].textContent))"
    click = "document.querySelector('table').tHead.rows[0].cells[3].querySelector('button').click()"
    before = tab.evaluate(column)
    tab.evaluate(click)
    assert tab.evaluate(column) == sorted(before)
    tab.evaluate(click)
    assert tab.evaluate(column) == sorted(before, reverse=True)
    names = "[...document.querySelector('table').tBodies[0].rows].map((row) => row.cells[0].textContent)"
    tab.evaluate(click.replace("cells[3]", "cells[0]"))
    assert tab.evaluate(names) == sorted(tab.evaluate(names), key=str.lower)
    assert tab.of("Runtime.exceptionThrown") == []


def test_a_page_is_dark_where_the_reader_wants_it(tab: Tab, pages: dict[str, Path]) -> None:
    shown = {}
    for scheme in ("light", "dark"):
        tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        tab.open(pages["own data"], 400)
        colours = tab.evaluate("['color', 'backgroundColor'].map((key) => getComputedStyle(document.body)[key])")
        shown[scheme] = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours]
    tab.call("Emulation.setEmulatedMedia", features=[])
    assert shown["light"][0] < 200 < 600 < shown["light"][1]
    assert shown["dark"][1] < 200 < 600 < shown["dark"][0]


def test_the_test_sees_requests_and_errors_where_there_are_some(tab: Tab, tmp_path: Path) -> None:
    write_text("<img src='nowhere.png'><script>throw new Error('boom')</script>", tmp_path / "bad.html")
    tab.open(tmp_path / "bad.html", 400)
    assert len(tab.of("Network.requestWillBeSent")) == 2
    assert len(tab.of("Runtime.exceptionThrown")) == 1
