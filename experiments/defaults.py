"""What a user gets who chooses nothing, against references, on many data sets: ``python -m experiments.defaults``.

    python -m experiments.defaults data_root=/path/to/files            # all sets; files that are not there are skipped
    python -m experiments.defaults sets=[emoji_small,leaves] seeds=1 oracle=false
    python -m experiments.defaults oracle=outputs/2026-01-31/12-00-00/defaults/oracle.csv      # not searched again
    python -m experiments.defaults '+datasets.mine={file: mine.npz, scale: feature}' sets=[mine] data_root=.

Training rows lose modalities, every method learns from what is left, and all are measured on the same complete test
rows: R^2 of imputing each modality, R@1, and the coverage of intervals. Settings are chosen on training rows alone, but
for those of the "best of a hand grid", which says how much choosing better could give. Leaves in the run's folder
``results.csv`` (a row for each data set, missingness, seed and method), ``modalities.csv``, ``oracle.csv`` (every
setting of the hand grid), ``verdicts.csv``, ``table.md``, ``config.yaml``, ``report.html`` and the log.
"""

from __future__ import annotations

import logging
from pathlib import Path

import hydra
import pandas as pd
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape

from analysis.report import build_report
from analysis.runs.files import write_table, write_text
from analysis.statistics.defaults import MODALITIES, VERDICTS, formatted_defaults, summarize_defaults, verdicts
from experiments.default_choice.options import Options
from experiments.default_choice.table import DefaultsTable, Found
from experiments.harness.command import run_in_folder
from experiments.harness.console import print_table, progress_bar
from experiments.harness.markdown import markdown

logger = logging.getLogger(__name__)

CAPTION = (
    "Means over the seeds ± their standard deviation. R2: of imputing each modality from all others, mean over "
    "modalities, 0 for the mean of the training rows; by pair: from one other alone. R@1 in percent, by the default "
    "for retrieval. Coverage in percent, of the modality where it is lowest and highest. CPU seconds of the default's "
    "fit, and of one fit with the settings it chose. The oracle is the best of a hand grid, chosen on the test rows."
)


@hydra.main(config_path="conf", config_name="defaults", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Make one table."""
    run_in_folder(run, cfg)


def run(cfg: DictConfig, folder: Path, console: Console | None = None) -> pd.DataFrame:
    """Fit, measure, print the tables, and write the files of the run.

    Returns:
        One row for each data set, missingness, seed and method.
    """
    options, out = Options.of(cfg), console or Console()
    for name, why in options.absent.items():
        out.print(f"[bold]left out:[/bold] {escape(f'{name}: {why}')}", soft_wrap=True, highlight=False)
        logger.info("%s left out: %s", name, why)
    table = DefaultsTable(options, cfg.data_root)
    write_text(_as_measured(cfg, options), folder / "config.yaml")
    found = Found()
    with progress_bar(out, table.steps) as advance:
        for found in table.run(advance):
            _write(found, folder)  # a run that is interrupted leaves what it has
    results, modalities = pd.DataFrame(found.results), pd.DataFrame(found.modalities)
    shown = formatted_defaults(summarize_defaults(results, modalities))
    judged = verdicts(results, modalities)
    write_table(judged, folder / VERDICTS)
    said = f"Defaults: {', '.join(options.datasets)}; seeds {', '.join(map(str, options.seeds))}"
    left_out = "".join(f"\nLeft out: {name}: {why}.\n" for name, why in options.absent.items())
    pages = [f"## {said}\n\n{markdown(shown)}", f"{CAPTION}\n{left_out}", f"## Must reach\n\n{markdown(judged)}"]
    write_text("\n".join(pages), folder / "table.md")
    print_table(out, shown, said)
    out.print(CAPTION, highlight=False)
    print_table(out, judged, "Must reach", left=list(judged), wrapped=["found"])
    out.print(f"Report: {build_report(folder)}", soft_wrap=True, highlight=False)
    return results


def _write(found: Found, folder: Path) -> None:
    write_table(pd.DataFrame(found.results), folder / "results.csv")
    write_table(pd.DataFrame(found.modalities), folder / MODALITIES)
    if found.grid:
        write_table(pd.DataFrame(found.grid), folder / "oracle.csv")


def _as_measured(cfg: DictConfig, options: Options) -> str:
    """The configuration with the seeds one by one, and of the data sets those that are measured."""
    content = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(content, dict)
    datasets = {name: entry for name, entry in content["datasets"].items() if name in options.datasets}
    return OmegaConf.to_yaml(OmegaConf.create(content | {"datasets": datasets, "seeds": options.seeds}))


if __name__ == "__main__":
    main()
