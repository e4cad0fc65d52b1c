"""``calmrl validate``: modalities hidden and imputed, and what that was worth."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from calmrl_prob.cli.options import Data, Fit, Level, Reading, Running, Telling, load_fit
from calmrl_prob.cli.telling import tell, tell_json, tell_table

_COLUMNS = ["modality", "num_instances", "R2", "R2_se", "rmse", "sd", "coverage", "coverage_se", "width"]


def validate(
    fit: Fit,
    data: Data,
    reading: Reading,
    running: Running,
    telling: Telling,
    scheme: Annotated[
        Literal["patterns", "each", "random"],
        typer.Option(help="Hide each cell given every set of the others, given all others, or at random."),
    ] = "patterns",
    folds: Annotated[
        int | None,
        typer.Option(
            help="For the rows of the fit: choose and fit anew without each of so many parts.", show_default=False
        ),
    ] = None,
    level: Level = 0.9,
) -> None:
    """Hide modalities of rows that the fit has not seen, impute them, and tell R^2 and coverage of each."""
    import calmrl_prob as cal
    from calmrl_prob.inference.seen import share_of_seen
    from calmrl_prob.report.readings import validation_readings

    model, found = load_fit(fit), reading.read(data)
    options: dict[str, Any] = {"seed": running.seed, "progress": running.shown, "num_draws": 0}
    if folds is not None:
        options |= {"folds": folds, "refit": lambda rows, _: _fitted_anew(model, rows, running.seed)}
    checked = cal.masked_validation(model, found, scheme, **options)
    summary = checked.summary(level=level)[_COLUMNS]
    seen = share_of_seen(model, found)
    if telling.json:
        facts = {"instances": len(found), "scheme": scheme, "folds": folds, "level": level, "share_of_seen": seen}
        return tell_json(facts | {"modalities": summary})
    tell(*validation_readings(summary, level))
    if folds is None and seen is None:
        tell("The fit does not tell which rows it saw: this holds if it has not seen these.")
    tell("")
    tell_table(summary)
    return None


def _fitted_anew(model: Any, rows: Any, seed: int) -> Any:  # noqa: ANN401 - a fit or a model, data, a fit
    """A fit to some of the rows: with settings chosen again where they had been chosen."""
    import calmrl_prob as cal
    from calmrl_prob.report.chosen import Fitted

    fitted = Fitted.of(model)
    if fitted.intervals is not None:
        return cal.fit(cal.SharedLatentModel(rows.dims), rows, seed=seed)
    return cal.fit(cal.SharedLatentModel(rows.dims, fitted.model.latent_dim, fitted.model.noise), rows, seed=seed)
