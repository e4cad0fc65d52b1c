"""``calmrl retrieve``: the best candidates of each query."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from calmrl_prob.cli.options import Csv, Fit, Reading, Running, Telling, load_fit
from calmrl_prob.cli.telling import tell, tell_json, tell_table

if TYPE_CHECKING:
    import pandas as pd

    from calmrl_prob.data import MultimodalData

_Side = Annotated[str, typer.Argument(help="A file, folder or glob, as of calmrl describe.", show_default=False)]


def retrieve(
    fit: Fit,
    queries: _Side,
    candidates: _Side,
    reading: Reading,
    running: Running,
    telling: Telling,
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

    asked, shown = (_side(reading.read([path]), names) for path, names in ((queries, using), (candidates, among)))
    found = cal.retrieve(load_fit(fit), asked, shown, top_k=top, seed=running.seed)
    table = _listed(found, asked, shown)
    if telling.json:
        metrics = found.metrics() if found.ranks is not None else None
        facts = {"score": found.score, "queries": len(asked), "candidates": len(shown), "metrics": metrics}
        return tell_json(facts | {"found": table})
    tell_table(table, csv)
    if found.ranks is not None and not csv:
        told = ", ".join(f"{name} {value:.3g}" for name, value in found.metrics().items())
        tell("", f"The true candidate of each query, by its id: {told}.")
    return None


def _side(data: MultimodalData, names: list[str] | None) -> MultimodalData:
    """Chosen modalities of the instances that have one of them."""
    return data if not names else data.subset(data.rows_with(*names, how="any")).select(names)


def _listed(found: Any, queries: MultimodalData, candidates: MultimodalData) -> pd.DataFrame:  # noqa: ANN401
    """One row for each query and candidate: their ids (numbers of rows where there are none), rank and score."""
    import numpy as np
    import pandas as pd

    asked, shown = (np.arange(len(side)) if side.ids is None else side.ids for side in (queries, candidates))
    rows, places = np.nonzero(found.top_indices >= 0)
    return pd.DataFrame(
        {
            "query": asked[rows],
            "rank": places + 1,
            "candidate": shown[found.top_indices[rows, places]],
            "score": found.top_scores[rows, places],
        }
    )
