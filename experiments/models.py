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
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from analysis.runs.files import write_table, write_text
from experiments.harness.command import run_in_folder, say_where
from experiments.harness.console import print_table, progress_bar
from experiments.harness.markdown import markdown
from experiments.model_zoo.table import ModelTable, tabulate

CAPTION = (
    "Mean ± sd over the seeds (the worst of them). NLL, nats for each missing value in standard deviations of its "
    "modality: each feature of each modality of each test row, given the row's other modalities; joint NLL: all "
    "features of a modality together, where evidence is exact. RMSE in the same units. R@1 over all ordered pairs of "
    "modalities. K, and the noise prior where there is one, were chosen on validation rows of the training rows."
)


#: Columns of the table that hold words.
_WORDS = ("model", "route", "what was done")


@hydra.main(config_path="conf", config_name="models", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Make one table."""
    run_in_folder(run, cfg)


def run(cfg: DictConfig, folder: Path, console: Console | None = None) -> pd.DataFrame:
    """Fit, measure, print the tables, and write the files of the run."""
    out = console or Console()
    table = ModelTable(cfg)
    folder.mkdir(parents=True, exist_ok=True)
    results = pd.DataFrame()
    with progress_bar(out, table.steps) as advance:
        for results in table.run(advance):
            for name in ("results.csv", "results.parquet"):  # a run that is interrupted leaves what it has
                write_table(results, folder / name)
    write_text(OmegaConf.to_yaml(cfg, resolve=True), folder / "config.yaml")
    pages = []
    for dataset, part in results.groupby("dataset", sort=False):
        split, text = table.splits[str(dataset)], tabulate(part)
        title = f"{split.name}: {len(split.train)} training and {len(split.test)} test rows, {len(table.seeds)} seeds"
        pages.append(f"## {title}\n\n{markdown(text)}")
        print_table(out, text, title, left=_WORDS, wrapped=_WORDS)
    out.print(CAPTION, highlight=False)
    write_text("\n".join([*pages, CAPTION, ""]), folder / "table.md")
    say_where(out, folder)
    return results


if __name__ == "__main__":
    main()
