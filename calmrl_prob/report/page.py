"""HTML pages: sections with text, tables that sort and figures, all in one file.

A page loads nothing: pictures are ``data:`` addresses, style and script are inline, and its content security policy has
the browser refuse everything else. Without the script it reads the same, and its tables keep their order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from calmrl_prob.report.pictures import data_uri, png

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Table:
    """A table of text, which sorts by the number that a cell starts with, or else by the alphabet.

    Attributes:
        headings, rows: all text.
        best: for a heading the row that is to stand out.
        caption: what it shows as a whole.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    best: Mapping[str, int] = field(default_factory=dict)
    caption: str = ""

    @property
    def worded(self) -> set[str]:
        """Headings, but the first, of columns that hold words: these are set as text, not lined up as numbers are.

        Example:
            >>> Table(["K", "prior", "score"], [["8", "ARD", "0.2"], ["9", "none", "-"]]).worded
            {'prior'}
        """
        columns = zip(self.headings, zip(*self.rows, strict=True), strict=False)
        words = {name for name, cells in columns if any(cell[:1].isalpha() for cell in cells)}
        return words - {*self.headings[:1]}

    @classmethod
    def of(cls, frame: pd.DataFrame, best: Mapping[str, int] | None = None, caption: str = "") -> Table:
        """From a frame of text or numbers; what is lacking is a dash.

        Example:
            >>> import pandas as pd
            >>> Table.of(pd.DataFrame({"a": [0.25, float("nan")], "b": ["x", None]})).rows
            [['0.25', 'x'], ['-', '-']]
        """
        rows = [[_cell(value) for value in row] for row in frame.itertuples(index=False, name=None)]
        return cls([str(name) for name in frame.columns], rows, dict(best or {}), caption)


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        source: a ``data:`` address.
        alternative: what it shows, for those who cannot see it.
        caption: what stands under it.
    """

    source: str
    alternative: str
    caption: str = ""

    @classmethod
    def of(cls, figure: Figure, alternative: str, caption: str = "") -> Picture:
        """From a matplotlib figure."""
        return cls(data_uri(png(figure)), alternative, caption)

    @classmethod
    def read(cls, path: Path, caption: str = "") -> Picture:
        """From a PNG file."""
        return cls(data_uri(path.read_bytes()), caption or path.stem.replace("_", " "), caption)


@dataclass(frozen=True)
class Section:
    """A part of a page, shown in this order.

    Attributes:
        heading: over it; none for what comes first.
        warnings: what a reader must not miss.
        readings: what the figures say, in plain words.
        tables, pictures: shown after it.
        meanings: of the columns of the tables: heading, meaning.
        notes: small print.
        code: text to be shown as it is: a configuration, a command.
        folded: only the heading is shown until it is asked for.
    """

    heading: str = ""
    warnings: Sequence[str] = ()
    readings: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    meanings: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    code: str = ""
    folded: bool = False


def render(title: str, sections: Sequence[Section], lead: str = "") -> str:
    """The page as HTML, with an index if it has many sections.

    Example:
        >>> "<h1>1 &lt; 2</h1>" in render("1 < 2", [Section(readings=["It is."])])
        True
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("calmrl_prob.report"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("page.html.j2").render(title=title, lead=lead, sections=sections)


def _cell(value: object) -> str:
    import pandas as pd

    if isinstance(value, float):
        return "-" if value != value else f"{value:.4g}"
    return "-" if value is None or value is pd.NA else str(value)
