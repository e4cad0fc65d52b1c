"""``calmrl impute``: missing modalities of data, with intervals, into a file."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from calmrl_prob.cli.options import Data, Fit, Level, Reading, Running, Stream, Telling, load_fit, refuse_inputs
from calmrl_prob.cli.telling import tell, tell_json

_OUTPUT = "Where to write: .h5mu, .parquet, .zarr or .npz; with --stream a folder, or its URL."


def impute(
    fit: Fit,
    data: Data,
    output: Annotated[str, typer.Option("--output", "-o", metavar="OUT", help=_OUTPUT)],
    reading: Reading,
    running: Running,
    telling: Telling,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A modality to impute, given once for each.", show_default="all"),
    ] = None,
    level: Level = 0.9,
    into: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="An .h5mu file: OUT is a copy of it with what was imputed.", show_default=False
        ),
    ] = None,
    stream: Stream = False,
) -> None:
    """Impute what is missing: completed values, means, standard deviations and the ends of intervals."""
    if into is not None and stream:
        raise typer.BadParameter("it is of data in memory; leave --stream out.", param_hint="--into")
    # a file that it is written into keeps all that it has
    refuse_inputs(output, fit, *(data if into is None or str(output) != str(into) else ()))
    import calmrl_prob as cal
    from calmrl_prob.data import MultimodalData

    model = load_fit(fit)
    found = reading.read(data, stream)
    options: dict[str, Any] = {"seed": running.seed}
    if not isinstance(found, MultimodalData):
        folder = cal.impute(model, found, only, out=output, level=level, progress=running.progress, **options)
        files = len(list(folder.glob("part-*.parquet")))
        if telling.json:
            return tell_json({"output": folder, "files": files})
        return tell(f"Wrote {files} {'file' if files == 1 else 'files'} to {folder}.")
    imputed = cal.impute(model, found, only, **options)
    cal.write(imputed, output, level=level, into=into)
    lacking = {name: int((~imputed.data.feature_mask(name)).any(1).sum()) for name in imputed.names}
    if telling.json:
        return tell_json({"output": output, "instances": len(found), "imputed": lacking, "level": level})
    for name, count in lacking.items():
        tell(f"{name}: imputed for {count:,} of {len(found):,} instances, with {100 * level:g}% intervals.")
    tell(f"Wrote {output}.")
    return None
