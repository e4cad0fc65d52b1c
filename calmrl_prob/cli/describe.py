"""``calmrl describe``: schema and missing patterns of data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from calmrl_prob.cli.options import Data, Reading, Stream, Telling, refuse_inputs
from calmrl_prob.cli.telling import tell, tell_json, tell_table

_PICTURE = typer.Option("--png", metavar="FILE", help="Draw the missingness map into a file.", show_default=False)


def describe(
    data: Data, reading: Reading, telling: Telling, png: Annotated[Path | None, _PICTURE] = None, stream: Stream = False
) -> None:
    """Tell what data hold: modalities, ids, labels, and what is missing together."""
    if png is not None and stream:
        raise typer.BadParameter("the picture is of rows in memory; leave out --stream.", param_hint="--png")
    refuse_inputs(png, *data, option="--png")
    from calmrl_prob.data import MultimodalData
    from calmrl_prob.report.missing import Described

    found = reading.read(data, stream)
    described = Described.of(found)
    if png is not None and isinstance(found, MultimodalData):
        _draw(found, png)
    if telling.json:
        return tell_json(described.facts())
    count = len(described.dims)
    tell(f"{described.num_instances:,} instances, {count} modalit{'y' if count == 1 else 'ies'}, {described.dtype}", "")
    tell_table(described.schema())
    if described.columns:
        tell("", f"Besides: {', '.join(described.columns)}")
    if described.labels:
        tell(f"Labels: {', '.join(f'{name} {n:,}' for name, n in list(described.labels.items())[:10])}")
    tell("", "Missingness map: instances by what they have (## there, .. missing)", described.map(), "")
    tell(*described.readings())
    if png is not None:
        tell(f"Wrote {png}.")
    return None


def _draw(data: object, path: Path) -> None:
    from calmrl_prob import plots
    from calmrl_prob._support.files import write_atomically
    from calmrl_prob.data import MultimodalData
    from calmrl_prob.report.pictures import drawn, png

    assert isinstance(data, MultimodalData)
    figure = drawn(lambda ax: plots.missingness_map(data, ax), (2.6 + 1.1 * len(data.names), 3.8))
    with write_atomically(path) as temporary:
        temporary.write_bytes(png(figure))
