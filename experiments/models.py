"""Every model in ``models/`` on the bundled data sets, in one table: ``python -m experiments.models``.

    python -m experiments.models                                    # all models, emoji and leaves, three seeds
    python -m experiments.models only_data=[emoji] seeds=[0,1,2]
    python -m experiments.models only_models=[calmrl,mixture] models.mixture.latent_dims=[64]
    python -m experiments.models only_models=[mine] +model@models.mine=isotropic models.mine.file=path/to/mine.py

Removes modalities from the training rows, lets every model choose its settings on validation rows of these, and
measures all on the same test rows. Leaves in the run's folder ``results.csv`` and ``results.parquet`` (one row for each
data set, model and seed), ``table.md``, ``config.yaml`` and the log.
"""

from __future__ import annotations

from pathlib import Path

import hydra
import pandas as pd
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from analysis.runs.files import write_table, write_text
from experiments.harness.refusal import plain_refusals
from experiments.model_zoo.table import ModelTable, tabulate

CAPTION = (
    "Mean ± sd over the seeds (the worst of them). NLL, nats for each missing value in standard deviations of its "
    "modality: each feature of each modality of each test row, given the row's other modalities; joint NLL: all "
    "features of a modality together, where evidence is exact. RMSE in the same units. R@1 over all ordered pairs of "
    "modalities. K, and the noise prior where there is one, were chosen on validation rows of the training rows."
)


@hydra.main(config_path="conf", config_name="models", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Make one table."""
    with plain_refusals():
        run(cfg, Path(HydraConfig.get().runtime.output_dir))


def run(cfg: DictConfig, folder: Path, console: Console | None = None) -> pd.DataFrame:
    """Fit, measure, print the tables, and write the files of the run.

    Args:
        cfg: the composed configuration ``models``.
        folder: where the files go.
        console: to print to; standard output by default.

    Returns:
        What ``results.parquet`` holds.

    Raises:
        CalmrlError: an option has a value that cannot work; the message names it.
    """
    out = console or Console()
    table = ModelTable(cfg)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    folder.mkdir(parents=True, exist_ok=True)
    results = pd.DataFrame()
    with Progress(*columns, console=Console(stderr=True, quiet=out.quiet)) as progress:
        bar = progress.add_task("", total=table.steps)
        for results in table.run(lambda what: progress.update(bar, advance=1, description=escape(what))):
            for name in ("results.csv", "results.parquet"):  # a run that is interrupted leaves what it has
                write_table(results, folder / name)
    write_text(OmegaConf.to_yaml(cfg, resolve=True), folder / "config.yaml")
    pages = []
    for dataset, part in results.groupby("dataset", sort=False):
        split, text = table.splits[str(dataset)], tabulate(part)
        title = f"{split.name}: {len(split.train)} training and {len(split.test)} test rows, {len(table.seeds)} seeds"
        pages.append(f"## {title}\n\n{markdown(text)}")
        _print(out, text, title)
    out.print(CAPTION, highlight=False)
    write_text("\n".join([*pages, CAPTION, ""]), folder / "table.md")
    out.print(f"Results: {folder / 'results.csv'}", soft_wrap=True, highlight=False)
    return results


def markdown(text: pd.DataFrame) -> str:
    """A table of text in Markdown.

    Example:
        >>> print(markdown(pd.DataFrame({"a": ["x"], "b": ["y"]})), end="")
        | a | b |
        | --- | --- |
        | x | y |
    """
    lines = [list(text.columns), ["---"] * len(text.columns), *text.to_numpy().tolist()]
    return "".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |\n" for line in lines)


def _print(out: Console, text: pd.DataFrame, title: str) -> None:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for heading in text.columns:
        words = heading in ("model", "route", "what was done")
        table.add_column(heading, justify="left" if words else "right", no_wrap=not words)
    for cells in text.to_numpy():
        table.add_row(*(escape(str(cell)) for cell in cells))
    out.width = max(out.width, 200)  # a narrower terminal wraps the lines, which loses less than cells cut short
    out.print(table)


if __name__ == "__main__":
    main()
