"""The documentation site: every public name has a place in it; in Chromium its pages are whole and fetch nothing."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import calmrl_prob as cal
from docs.make_reference import PACKAGES, definition, public_names, reference_pages
from tests.cases.browser import Tab, browser, find_browser
from tests.cases.contrast import FAINT
from tests.house.imports import ROOT, module_name

PAGES = ["index", "start", "method", "errors", "demo", "compared", "reference/index", "reference/calmrl_prob"]

in_chromium = [
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason="no Chromium on the path, and CHROMIUM names none"),
    pytest.mark.skipif(importlib.util.find_spec("material") is None, reason="the extra 'docs' is not installed"),
]


def test_every_package_with_public_names_is_in_the_reference() -> None:
    sources = (ROOT / "calmrl_prob").rglob("*.py")
    assert set(PACKAGES) == {module_name(path) for path in sources if "\n__all__ = " in path.read_text("utf-8")}


def test_every_public_name_has_a_place_in_the_reference_and_only_one() -> None:
    pages = dict(reference_pages())
    for name in public_names(cal):
        place = definition(cal, name)
        assert sum(f"::: {place}\n" in text for text in pages.values()) == 1, name
        assert f"#{place})" in pages["reference/index.md"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the site, built strictly but for the outputs of notebooks, which test_notebooks.py runs."""
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "CALMRL_DOCS_NOTEBOOKS": "0", "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 30e6

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    program = find_browser()
    assert program is not None
    with browser(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def wait_until(tab: Tab, expression: str, seconds: float = 30.0) -> None:
    """Wait for what a page does by itself after it was loaded."""
    until = time.monotonic() + seconds
    while not tab.evaluate(expression):
        assert time.monotonic() < until, expression
        time.sleep(0.1)


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("page", PAGES)
class TestAPage:
    pytestmark = in_chromium

    def test_fetches_nothing_from_elsewhere_has_no_error_and_fits(
        self, tab: Tab, site: str, page: str, width: int
    ) -> None:
        tab.open(f"{site}/{page}.html", width)
        wait_until(tab, "document.readyState === 'complete'")
        fetched = [event["request"]["url"] for event in tab.of("Network.requestWillBeSent")]
        assert [url for url in fetched if not url.startswith((f"{site}/", "data:", "blob:"))] == []
        assert tab.of("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled") == []
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")


class TestTheSite:
    pytestmark = in_chromium

    def test_search_by_the_keyboard_finds_coverage(self, tab: Tab, site: str) -> None:
        tab.open(f"{site}/index.html", 1280)
        wait_until(tab, "document.readyState === 'complete'")
        key = {"key": "f", "code": "KeyF", "windowsVirtualKeyCode": 70}
        wait_until(tab, "!!document.querySelector('.md-search__input')")
        time.sleep(1.0)  # until the page listens for keys
        tab.call("Input.dispatchKeyEvent", type="keyDown", **key)
        tab.call("Input.dispatchKeyEvent", type="keyUp", **key)
        wait_until(tab, "document.activeElement.className.includes('md-search__input')")
        for letter in "coverage":  # with keys that come up again, which the theme listens for
            tab.call("Input.dispatchKeyEvent", type="keyDown", key=letter, text=letter)
            tab.call("Input.dispatchKeyEvent", type="keyUp", key=letter)
        wait_until(tab, "document.querySelectorAll('.md-search-result__item').length > 3")
        found = tab.evaluate("[...document.querySelectorAll('.md-search-result__link')].map((link) => link.href)")
        assert any("uncertainty.html" in link or "coverage" in link for link in found), found
        assert tab.of("Log.entryAdded", "Runtime.exceptionThrown") == []

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_pages_are_dark_where_one_wants_it_and_can_be_read(self, site: str, tmp_path: Path, scheme: str) -> None:
        program = find_browser()
        assert program is not None
        with browser(program, tmp_path) as fresh:
            fresh.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            fresh.open(f"{site}/method.html", 400)
            wait_until(fresh, "document.readyState === 'complete'")
            colour = fresh.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3)")
            faint = {}
            for page in ("index", "start", "errors", "compared", "reference/calmrl_prob"):
                fresh.open(f"{site}/{page}.html", 1280)
                wait_until(fresh, "document.readyState === 'complete'")
                faint[page] = fresh.evaluate(FAINT)
        assert (sum(map(int, colour)) < 200) == (scheme == "dark")
        assert not any(faint.values()), faint

    def test_formulas_are_set_with_the_font_that_is_shipped(self, tab: Tab, site: str) -> None:
        tab.open(f"{site}/method.html", 1280)
        wait_until(tab, "[...document.fonts].some((font) => font.status === 'loaded')")
        assert tab.evaluate("document.querySelectorAll('math').length") >= 15
