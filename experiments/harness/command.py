"""The form that the commands of ``experiments`` have in common: from a configuration to the files of a run."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
from hydra.core.hydra_config import HydraConfig
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from analysis.runs.files import write_bytes, write_text
from calmrl_prob.report.pictures import png
from experiments.harness.console import print_table
from experiments.harness.markdown import markdown
from experiments.harness.refusal import plain_refusals


class Run(Protocol):
    """An experiment: it prints its table, and writes the files of the run."""

    def __call__(self, cfg: DictConfig, folder: Path, console: Console | None = None) -> Any:  # noqa: ANN401
        """Do it.

        Args:
            cfg: the composed configuration, of the same name as the experiment.
            folder: where the files go.
            console: to print to; standard output by default.

        Returns:
            What ``results.csv`` holds.

        Raises:
            CalmrlError: an option has a value that cannot work; the message names it.
        """


def run_in_folder(run: Run, cfg: DictConfig) -> None:
    """Run an experiment in the folder that Hydra made for it; what it refuses is said in one line."""
    with plain_refusals():
        run(cfg, Path(HydraConfig.get().runtime.output_dir))


def finish(
    cfg: DictConfig,
    text: pd.DataFrame,
    title: str,
    caption: str,
    folder: Path,
    out: Console,
    figures: dict[str, Figure] | None = None,
    left: Collection[str] | None = None,
) -> None:
    """Write figures, configuration and table, and print the table.

    ``table.md`` comes last: a folder that has it holds a finished run.

    Args:
        cfg: what was run.
        text: the table, all cells text.
        title: stands over it.
        caption: under it: what was measured, and how; empty for none.
        folder: where ``config.yaml``, ``table.md`` and NAME.png go.
        out: to print to.
        figures: by name.
        left: columns aligned on the left; by default those that do not hold numbers.
    """
    for name, figure in (figures or {}).items():
        write_bytes(png(figure), folder / f"{name}.png")
    write_text(OmegaConf.to_yaml(cfg, resolve=True), folder / "config.yaml")
    write_text(f"## {title}\n\n{markdown(text)}" + f"\n{caption}\n" * bool(caption), folder / "table.md")
    print_table(out, text, title, left=left)
    if caption:
        out.print(caption, highlight=False)
    say_where(out, folder)


def say_where(out: Console, folder: Path) -> None:
    """Print where the results lie."""
    out.print(f"Results: {folder / 'results.csv'}", soft_wrap=True, highlight=False)
