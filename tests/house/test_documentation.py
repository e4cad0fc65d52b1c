"""Runs the code of README.md and docs/, as a reader would: from top to bottom, in one session per page.

A ``text`` block that follows a ``python`` block is what it prints, as ``printed.py`` compares it: words to the letter,
figures within what the page says of them, and ``...`` stands for anything. A ``console`` block is a session in a shell:
lines that begin with ``$ calmrl`` are run, and what stands below each is what it prints.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from calmrl_prob.cli.main import app
from tests.cases.printed import agrees

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
FENCED = re.compile(
    r"^```(?P<kind>python|console)\n(?P<code>.*?)^```$(?:\n+```text\n(?P<printed>.*?)^```$)?",
    re.DOTALL | re.MULTILINE,
)


@dataclass
class Page:
    """A page's blocks, each run once, and the names that they have left behind so far."""

    path: Path
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "documentation"})
    printed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.text = self.path.read_text(encoding="utf-8")
        self.blocks = list(FENCED.finditer(self.text))

    def line(self, number: int) -> int:
        return self.text.count("\n", 0, self.blocks[number].start("code")) + 1

    def run_through(self, number: int) -> str:
        """Run the blocks up to this one that have not run yet; what this one printed."""
        while len(self.printed) <= number:
            following = len(self.printed)
            block = self.blocks[following]
            run = self.run_code if block["kind"] == "python" else in_a_shell
            self.printed.append(run(block["code"], self.line(following)))
        return self.printed[number]

    def run_code(self, code: str, line: int) -> str:
        # Blank lines in front give a traceback the page's own line numbers.
        padded = "\n" * (line - 1) + code
        with contextlib.redirect_stdout(io.StringIO()) as stream:
            exec(compile(padded, str(self.path), "exec"), self.names)
        return stream.getvalue()


def in_a_shell(session: str, line: int) -> str:
    """The transcript of a session: each command of it, and what it printed."""
    transcript = ""
    for command in re.findall(r"^\$ (.*)$", session, re.MULTILINE):
        program, *arguments = shlex.split(command)
        assert program == "calmrl", f"line {line}: {command} is no command that is run here"
        done = CliRunner().invoke(app, arguments)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        transcript += f"$ {command}\n{done.output}"
    return transcript


BLOCKS = [
    pytest.param(page, number, id=f"{page.path.relative_to(ROOT)}:{page.line(number)}")
    for page in (Page(path) for path in PAGES)
    for number in range(len(page.blocks))
]


@pytest.fixture(scope="module")
def reader_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reader")


@pytest.mark.parametrize(("page", "number"), BLOCKS)
def test_code_runs_and_prints_what_the_page_says(
    page: Page, number: int, reader_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(reader_folder)
    got = page.run_through(number)
    block = page.blocks[number]
    want = block["printed"] if block["kind"] == "python" else block["code"]
    if want is not None:
        assert agrees(want, got, whitespace=False), f"printed:\n{got}\nbut the page says:\n{want}"


def test_readme_shows_code() -> None:
    assert FENCED.search(README.read_text(encoding="utf-8"))


def test_what_the_readme_installs_writes_its_files() -> None:
    text = README.read_text(encoding="utf-8")
    installed = re.search(r"pip install '?\.(?:\[([a-z,]+)\])?", text)
    assert installed
    assert ".parquet" not in text or "arrow" in (installed[1] or "").split(",")


def test_every_fence_of_code_is_found() -> None:
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        assert len(FENCED.findall(text)) == len(re.findall(r"^\s*```\s*(?:python|console)", text, re.MULTILINE)), path
