"""The application: one command a file, registered here.

Loads typer alone, so that help comes at once; whatever a command needs it imports when it runs.
"""

from __future__ import annotations

from typing import Annotated

import typer

from calmrl_prob.cli.acquire import acquire
from calmrl_prob.cli.describe import describe
from calmrl_prob.cli.fit import fit
from calmrl_prob.cli.impute import impute
from calmrl_prob.cli.index import index
from calmrl_prob.cli.new_model import new_model
from calmrl_prob.cli.options import command
from calmrl_prob.cli.report import report
from calmrl_prob.cli.retrieve import retrieve
from calmrl_prob.cli.telling import tell
from calmrl_prob.cli.validate import validate

#: The commands, in the order of the help.
COMMANDS = (describe, fit, impute, validate, report, acquire, index, retrieve, new_model)

app = typer.Typer(
    name="calmrl",
    help="Multimodal data with missing modalities: fit them, impute with intervals, search, validate, report.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for one in COMMANDS:
    app.command()(command(one))


def _version(asked: bool) -> None:
    if asked:
        import calmrl_prob

        tell(f"calmrl-prob {calmrl_prob.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and end.")
    ] = False,
) -> None:
    """Start the application; what it does is done by its commands."""
    del version
