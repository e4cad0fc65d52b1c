"""``calmrl index``: candidates prepared once, in a file that ``calmrl retrieve`` searches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from calmrl_prob.cli.options import Data, Fit, Reading, Running, Stream, Telling, load_fit, refuse_inputs
from calmrl_prob.cli.telling import tell, tell_json


def index(
    fit: Fit,
    candidates: Data,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write the index.")],
    reading: Reading,
    running: Running,
    telling: Telling,
    queries: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A modality that queries will have, given once for each.",
            show_default="those that no candidate has",
        ),
    ] = None,
    engine: Annotated[
        Literal["exact", "faiss"], typer.Option(help="Score all candidates, or find them by a structure of faiss.")
    ] = "exact",
    structure: Annotated[
        Literal["hnsw", "ivfpq"], typer.Option(help="Of faiss: a graph, or an inverted file of codes.")
    ] = "hnsw",
    stream: Stream = False,
) -> None:
    """Prepare candidates for searches; with --stream a build that was killed goes on where it stood."""
    import calmrl_prob as cal
    from calmrl_prob._support.files import place_to_write

    refuse_inputs(output, fit, *candidates)
    place_to_write(output)  # before all the work
    found = reading.read(candidates, stream)
    options: dict[str, Any] = {"out": output, "progress": running.shown} if stream else {}
    built = cal.RetrievalIndex.build(
        load_fit(fit), found, engine, queries=queries, structure=structure, seed=running.seed, **options
    )
    if not stream:
        built.save(output)
    recall = {" + ".join(names): share for names, share in built.recall.items()}
    if telling.json:
        return tell_json({"output": output, "candidates": len(built), "engine": engine, "recall": recall})
    tell(f"{built}.", f"Wrote {output}.")
    return None
