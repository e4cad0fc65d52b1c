"""Options that commands share, each a field of a group, and the decorator that spreads groups over a command line."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from fnmatch import fnmatchcase
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints, overload

import typer

from calmrl_prob.cli.telling import guarded

if TYPE_CHECKING:
    from calmrl_prob.data import MultimodalData
    from calmrl_prob.data.stream import MultimodalStream

_READING = "How to read"
#: Characters that make a name of columns a pattern.
_WILD = "*?["

Data = Annotated[
    list[str],
    typer.Argument(
        metavar="DATA",
        help="A file, folder or glob: .parquet, .npz, .npy, .csv, .tsv, .h5mu, .h5ad, .zarr; or several as NAME=FILE, "
        "one for each modality.",
        show_default=False,
    ),
]
Fit = Annotated[Path, typer.Argument(metavar="FIT", help="What calmrl fit wrote.", show_default=False)]
Level = Annotated[float, typer.Option(help="Probability that the intervals are to hold.")]
Csv = Annotated[bool, typer.Option("--csv", help="Comma-separated values on standard output, all rows.")]
Stream = Annotated[bool, typer.Option("--stream", help="Take the data in chunks, for what does not fit in memory.")]


def refuse_inputs(output: str | Path | None, *inputs: str | Path | None, option: str = "--output") -> None:
    """Refuse to write over what the command reads: a slip of the shell's history must not cost anyone their data.

    Args:
        output: where the command is to write; None where it does not.
        inputs: what it reads: files, folders and globs, also as NAME=FILE; None where an option was not given.
        option: that names the output.

    Raises:
        BadParameter: the output is one of the inputs, or a file that is read in a folder of them.
    """
    if output is None or not os.path.exists(output):
        return
    from calmrl_prob.reading.formats import files_read

    for given in map(str, filter(None, inputs)):
        for path in filter(None, (given, given.partition("=")[2])):
            found = [Path(path), *files_read(path)]
            if any(file.exists() and file.samefile(output) for file in found):
                raise typer.BadParameter(f"{output} is read here, and would be lost; name another.", param_hint=option)


@dataclass(frozen=True)
class Reading:
    """Options of how to read, those of ``cal.read``."""

    modalities: Annotated[
        list[str] | None,
        typer.Option(
            "--modalities",
            "-m",
            metavar="NAME[=WHERE]",
            help="A modality, given once for each: its name alone; NAME=COLUMN,COLUMN or NAME='gene-*' of a table; "
            "NAME=ASSAY/layers/counts of .h5mu.",
            rich_help_panel=_READING,
            show_default="all",
        ),
    ] = None
    ids: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]COLUMN",
            help="Column, or file, of identifiers; of several files NAME=COLUMN, given once for each.",
            rich_help_panel=_READING,
            show_default=False,
        ),
    ] = None
    labels: Annotated[
        str | None, typer.Option(help="Column of labels.", rich_help_panel=_READING, show_default=False)
    ] = None
    sep: Annotated[
        str | None,
        typer.Option(
            help="Between modality and feature in names of columns: ':' for rna:GATA1.",
            rich_help_panel=_READING,
            show_default=False,
        ),
    ] = None
    join: Annotated[
        Literal["outer", "inner"],
        typer.Option(help="Instances that any file has, or that all have.", rich_help_panel=_READING),
    ] = "outer"
    empty: Annotated[
        Literal["refuse", "drop"],
        typer.Option(help="What to do with instances that have no modality at all.", rich_help_panel=_READING),
    ] = "refuse"

    @overload
    def read(self, given: Sequence[str], stream: Literal[False] = False) -> MultimodalData: ...
    @overload
    def read(self, given: Sequence[str], stream: bool) -> MultimodalData | MultimodalStream: ...
    def read(self, given: Sequence[str], stream: bool = False) -> MultimodalData | MultimodalStream:
        """Read what the arguments DATA name; as a stream if asked for."""
        import calmrl_prob as cal

        where = origin_of(given)
        known = where if isinstance(where, Mapping) else ()
        settings: dict[str, Any] = vars(self) | {
            "modalities": modalities_of(self.modalities or []),
            "ids": ids_of(self.ids or [], known),
        }
        return cal.read(where, stream=True, **settings) if stream else cal.read(where, **settings)


@dataclass(frozen=True)
class Running:
    """Options of what takes time."""

    seed: Annotated[int, typer.Option(help="Of everything drawn.")] = 0
    progress: Annotated[
        bool | None,
        typer.Option(
            "--progress/--no-progress",
            help="Show progress on standard error.",
            show_default="on a terminal, where it takes long",
        ),
    ] = None

    @property
    def shown(self) -> bool:
        """Whether progress is shown, where a command shows it on any terminal."""
        return sys.stderr.isatty() if self.progress is None else self.progress


@dataclass(frozen=True)
class Telling:
    """Options of how a result is told."""

    json: Annotated[bool, typer.Option("--json", help="The result as JSON on standard output, and nothing else.")] = (
        False
    )
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False


def load_fit(path: Path) -> Any:  # noqa: ANN401 - a fit, or a model
    """The fit that FIT names.

    Raises:
        FileFormatError: it is a file of something else, such as an index.
    """
    import calmrl_prob as cal
    from calmrl_prob.errors import FileFormatError

    found = cal.load(path)
    if isinstance(found, cal.RetrievalIndex):
        raise FileFormatError(f"FIT: {path} is an index; give the file that calmrl fit wrote.")
    return found


def modalities_of(given: Sequence[str]) -> list[str] | dict[str, Any] | None:
    """Modalities that ``--modalities`` asked for, as ``cal.read`` takes it.

    Raises:
        typer.BadParameter: a name is empty or stands twice.

    Example:
        >>> modalities_of(["rna", "protein"]), modalities_of(["rna=GATA1,TAL1", "protein=protein/layers/clr"])
        (['rna', 'protein'], {'rna': ['GATA1', 'TAL1'], 'protein': 'protein/layers/clr'})
        >>> modalities_of(["rna=gene-*"])["rna"]("gene-7")
        True
    """
    found: dict[str, Any] = {}
    for entry in given:
        name, told, where = entry.partition("=")
        if not name or name in found or (told and not where):
            raise typer.BadParameter(
                f"expected each name once, as NAME or NAME=WHERE, got {entry!r}.", param_hint="--modalities"
            )
        found[name] = _where(where) if told else name
    if not found:
        return None
    return found if any("=" in entry for entry in given) else list(found)


def ids_of(given: Sequence[str], names: Collection[str]) -> str | dict[str, str] | None:
    """Columns of identifiers that ``--ids`` named, as ``cal.read`` takes them.

    Args:
        given: COLUMN, for one file or all; or NAME=COLUMN for each of several.
        names: of several files; none of one, whose column may have "=" in its name.

    Raises:
        typer.BadParameter: several without names, or a name twice.

    Example:
        >>> ids_of(["item"], []), ids_of(["image=photo_id", "text=doc"], ["image", "text"])
        ('item', {'image': 'photo_id', 'text': 'doc'})
    """
    if len(given) < 2 and not (names and all("=" in entry for entry in given)):
        return given[0] if given else None
    found: dict[str, str] = {}
    for entry in given:
        name, _, column = entry.partition("=")
        if not name or not column or name in found or not names:
            raise typer.BadParameter(
                f"expected COLUMN once, or NAME=COLUMN once for each of several files, got {entry!r}.",
                param_hint="--ids",
            )
        found[name] = column
    return found


def _where(text: str) -> str | list[str] | Callable[[object], bool]:
    parts = text.split(",")
    if any(sign in text for sign in _WILD):
        return partial(_matches, parts)
    return parts if len(parts) > 1 else text


def _matches(patterns: Sequence[str], column: object) -> bool:
    return any(fnmatchcase(str(column), pattern) for pattern in patterns)


def origin_of(given: Sequence[str]) -> str | Mapping[str, str]:
    """Origin that the arguments DATA name, as ``cal.read`` takes it: one path, or paths by modality.

    Raises:
        typer.BadParameter: several without names, or a name twice.

    Example:
        >>> origin_of(["omics.h5mu"]), origin_of(["rna=rna.csv", "protein=protein.parquet"])
        ('omics.h5mu', {'rna': 'rna.csv', 'protein': 'protein.parquet'})
    """
    named = [("", entry) if Path(entry).exists() else entry.rpartition("=")[::2] for entry in given]
    if len(named) == 1 and not named[0][0]:
        return given[0]
    names = [name for name, _ in named]
    if not all(names) or len(set(names)) < len(names):
        raise typer.BadParameter(
            "of several files name each, once, as in rna=rna.csv protein=protein.parquet; of files of one kind give "
            "their folder, or a glob in quotes.",
            param_hint="DATA",
        )
    return {name: os.path.expanduser(path) for name, path in named}


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A command whose groups of options stand one by one on the command line, and whose errors are told in a line.

    Example:
        >>> def look(data: Data, telling: Telling) -> None:
        ...     print(data, telling.json)
        >>> list(inspect.signature(command(look)).parameters)
        ['data', 'json', 'debug']
        >>> command(look)(data=["a.csv"], json=True, debug=False)
        ['a.csv'] True
    """
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {}
    spread: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(function).parameters.items():
        if is_dataclass(hints[name]):
            groups[name] = kind = hints[name]
            own = get_type_hints(kind, include_extras=True)
            spread += [_keyword(field.name, field.default, own[field.name]) for field in fields(kind)]
        else:
            spread.append(_keyword(name, parameter.default, hints[name]))

    @wraps(function)
    def run(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
        telling = next((value for value in given.values() if isinstance(value, Telling)), Telling())
        with guarded(telling.debug):
            function(**given)

    run.__signature__ = inspect.Signature(spread)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in spread}
    return run


def _keyword(name: str, default: object, annotation: object) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
