"""``calmrl retrieve``: the best candidates of each query."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calmrl_prob.cli.options import Csv, Reading, Running, Telling
from calmrl_prob.cli.telling import tell, tell_json, tell_table

if TYPE_CHECKING:
    import pandas as pd

    from calmrl_prob.data import MultimodalData


def retrieve(
    fit: Annotated[Path, typer.Argument(metavar="FIT", help="What calmrl fit or index wrote.", show_default=False)],
    queries: Annotated[str, typer.Argument(help="A file, folder or glob, as of calmrl describe.", show_default=False)],
    reading: Reading,
    running: Running,
    telling: Telling,
    candidates: Annotated[
        str | None, typer.Argument(help="As of queries; an index has its own.", show_default=False)
    ] = None,
    using: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A modality of queries to use.", show_default="all")
    ] = None,
    among: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A modality of candidates to use.", show_default="all")
    ] = None,
    top: Annotated[int, typer.Option("--top", "-k", min=1, help="Candidates to list for each query.")] = 10,
    csv: Csv = False,
) -> None:
    """List the best candidates of each query by exact log-likelihood ratios."""
    if csv and telling.json:
        raise typer.BadParameter("one of --csv and --json.", param_hint="--csv")
    import calmrl_prob as cal

    searched, asked = cal.load(fit), _side(reading.read([queries]), using)
    metrics = None
    if isinstance(searched, cal.RetrievalIndex):
        if candidates is not None or among is not None:
            raise typer.BadParameter(f"{fit} is an index, which has its own; leave them out.", param_hint="CANDIDATES")
        matches = searched.search(asked, top)
        score, number, table = "likelihood_ratio", len(searched), _table(asked, matches.ids, matches.log_ratios)
    elif candidates is None:
        raise typer.BadParameter("name their file, or search an index of calmrl index.", param_hint="CANDIDATES")
    else:
        shown = _side(reading.read([candidates]), among)
        found = cal.retrieve(searched, asked, shown, top_k=top, seed=running.seed)
        metrics = found.metrics() if found.ranks is not None else None
        score, number, table = (
            found.score,
            len(shown),
            _table(asked, _named(shown, found.top_indices), found.top_scores),
        )
    if telling.json:
        facts = {"score": score, "queries": len(asked), "candidates": number, "metrics": metrics}
        return tell_json(facts | {"found": table})
    tell_table(table, csv)
    if metrics is not None and not csv:
        told = ", ".join(f"{name} {value:.3g}" for name, value in metrics.items())
        tell("", f"The true candidate of each query, by its id: {told}.")
    return None


def _side(data: MultimodalData, names: list[str] | None) -> MultimodalData:
    """Chosen modalities of the instances that have one of them."""
    return data if not names else data.subset(data.rows_with(*names, how="any")).select(names)


def _named(data: MultimodalData, rows: Any) -> Any:  # noqa: ANN401 - arrays
    """Ids of rows, or their numbers where they have none."""
    return rows if data.ids is None else data.ids[rows]


def _table(queries: MultimodalData, ids: Any, scores: Any) -> pd.DataFrame:  # noqa: ANN401 - arrays (n, k)
    """One row for each query and candidate: their ids (numbers of rows where there are none), rank and score."""
    import numpy as np
    import pandas as pd

    asked = _named(queries, np.arange(len(queries)))
    rows, places = np.nonzero(~np.isnan(scores))
    return pd.DataFrame(
        {"query": asked[rows], "rank": places + 1, "candidate": ids[rows, places], "score": scores[rows, places]}
    )
