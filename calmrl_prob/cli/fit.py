"""``calmrl fit``: a model fitted to data, with the settings chosen that were left open."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from calmrl_prob.cli.options import Data, Reading, Running, Stream, Telling, refuse_inputs
from calmrl_prob.cli.telling import tell, tell_json

_CHOICE = "What to choose"
#: Level of the intervals that are told about.
_LEVEL = 0.9


@dataclass(frozen=True)
class Choosing:
    """Options of the choice; what is given is not chosen."""

    latent_dim: Annotated[
        int | None, typer.Option(help="Number of latents K.", rich_help_panel=_CHOICE, show_default="chosen")
    ] = None
    noise: Annotated[
        Literal["isotropic", "diagonal", "full", "low_rank"] | None,
        typer.Option(help="Form of the noise.", rich_help_panel=_CHOICE, show_default="chosen"),
    ] = None
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Column that tells batches apart, whose shifts are fitted too.",
            rich_help_panel=_CHOICE,
            show_default=False,
        ),
    ] = None
    criterion: Annotated[
        Literal["imputation", "retrieval"] | None,
        typer.Option(help="What held-out instances are scored by.", rich_help_panel=_CHOICE, show_default="imputation"),
    ] = None
    budget: Annotated[
        float | None,
        typer.Option(help="Seconds that the choice may take.", rich_help_panel=_CHOICE, show_default="any"),
    ] = None

    def options(self) -> dict[str, Any]:
        """Those of ``cal.fit`` that were given."""
        given = {"criterion": self.criterion, "budget": self.budget}
        return {name: value for name, value in given.items() if value is not None}


def fit(
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write the fit.")],
    reading: Reading,
    choosing: Choosing,
    running: Running,
    telling: Telling,
    stream: Stream = False,
    state: Annotated[
        Path | None,
        typer.Option(help="With --stream: a file by which a pass that was killed goes on.", show_default=False),
    ] = None,
) -> None:
    """Fit a model, choosing what is left open by how well held-out modalities are imputed."""
    if state is not None and not stream:
        raise typer.BadParameter("it is of a pass over a stream; pass --stream too.", param_hint="--state")
    import calmrl_prob as cal
    from calmrl_prob._support.files import place_to_write
    from calmrl_prob.report.chosen import Fitted

    refuse_inputs(output, *data, state)
    refuse_inputs(state, *data, option="--state")
    place_to_write(output)  # before all the work
    found = reading.read(data, stream)
    model = cal.SharedLatentModel(found.dims, choosing.latent_dim, choosing.noise or "auto", batch=choosing.batch)
    options = choosing.options() | ({} if state is None else {"state": state})
    result = cal.fit(model, found, seed=running.seed, progress=running.progress, **options)
    cal.save(result, output)
    fitted = Fitted.of(result)
    if telling.json:
        course = {"converged": result.converged, "iterations": result.num_iterations, "seconds": result.seconds}
        return tell_json({"output": output, "instances": result.num_instances, **fitted.facts(_LEVEL), **course})
    ended = "converged" if result.converged else f"did NOT converge ({result.stop_reason})"
    tell(f"Fitted to {result.num_instances:,} instances in {result.seconds:.1f} s; {ended}.")
    tell(*(fitted.why() if result.choice is not None else [f"As given: {fitted.settings}."]))
    tell(*fitted.worth(_LEVEL), f"Wrote {output}.")
    return None
