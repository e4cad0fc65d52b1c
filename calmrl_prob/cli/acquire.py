"""``calmrl acquire``: what to observe next."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from calmrl_prob.cli.options import Csv, Data, Fit, Reading, Running, Telling, load_fit
from calmrl_prob.cli.telling import tell, tell_json, tell_table


def acquire(
    fit: Fit,
    data: Data,
    reading: Reading,
    running: Running,
    telling: Telling,
    target: Annotated[str | None, typer.Option(help="The modality to learn about.", show_default="the latents")] = None,
    by: Annotated[
        Literal["gain", "trace_drop", "pattern"],
        typer.Option(help="Rank cells by nats, by squared error of the target, or take means by missing pattern."),
    ] = "gain",
    top: Annotated[
        int | None, typer.Option("--top", "-k", min=1, help="Rows to list.", show_default="20; all with --csv, --json")
    ] = None,
    csv: Csv = False,
) -> None:
    """Rank the modalities that instances lack by what observing them is expected to tell."""
    if csv and telling.json:
        raise typer.BadParameter("one of --csv and --json.", param_hint="--csv")
    import calmrl_prob as cal

    found = cal.value_of_information(load_fit(fit), reading.read(data), target, seed=running.seed)
    table = found.by_pattern if by == "pattern" else found.ranking(by=by)
    shown = table.head(top or (len(table) if csv or telling.json else 20))
    if telling.json:
        return tell_json({"target": target, "cells": len(table), "ranking": shown})
    if table.empty and not csv:
        return tell("Nothing is missing that was asked about, so that there is nothing to acquire.")
    tell_table(shown, csv)
    return None
