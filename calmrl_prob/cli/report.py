"""``calmrl report``: one HTML page on own data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from calmrl_prob.cli.options import Data, Fit, Level, Reading, Running, Telling, load_fit, refuse_inputs
from calmrl_prob.cli.telling import tell, tell_json


def report(
    fit: Fit,
    data: Data,
    reading: Reading,
    running: Running,
    telling: Telling,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write the page.")] = Path(
        "report.html"
    ),
    held_out: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Rows that the fit has not seen, to check coverage on.", show_default=False),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="The modality to learn about by acquiring others.", show_default="the latents")
    ] = None,
    level: Level = 0.9,
) -> None:
    """Write one page: what was chosen and why, what it is worth, what is missing, latents, what to acquire next."""
    from calmrl_prob._support.files import place_to_write
    from calmrl_prob.report.own_data import ReportOptions, write_report

    refuse_inputs(output, fit, *data, held_out)
    place_to_write(output)  # before all the work
    found = reading.read(data)
    others = None if held_out is None else reading.read([held_out])
    options = ReportOptions(", ".join(data), others, level, target, running.seed)
    path = write_report(load_fit(fit), found, output, options)
    return tell_json({"output": path, "bytes": path.stat().st_size}) if telling.json else tell(f"Wrote {path}.")
