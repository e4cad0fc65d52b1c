"""One setting at a time about the default: ``python -m experiments.align_ablation``.

    python -m experiments.align_ablation              # emoji: K, temperature, EM period, share of complete rows
    python -m experiments.align_ablation '+factors.depth={option: encoder.hidden, values: [[],[64]], only: [observed]}'

Every factor is an option of the configuration, by name, with the values to try and the variants it is tried on; all
else stays as it is. Leaves ``results.csv``, ``table.md`` and ``ablation.png``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import pandas as pd
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.console import Console

from analysis.figures.alignment import ablation
from calmrl_prob.errors import ArgumentError
from experiments.alignment.runs import Row, chosen_variants, collect, heading, tabulate, task_of
from experiments.alignment.training import AlignmentTask, Settings, run_variant
from experiments.harness.command import finish, run_in_folder
from experiments.harness.settings import build
from experiments.harness.split import Split

CAPTION = (
    "R@1 on complete test rows, in %, mean ± standard deviation over seeds; one setting at a time differs from the "
    "default, which is marked *. The EM period tells only on variants whose calibration needs a model of the "
    "representations, K on those and on what the model of the inputs is part of (and on the likelihood ratio of all)."
)


@hydra.main(config_path="conf", config_name="align_ablation", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Make one table and one figure."""
    run_in_folder(run, cfg)


def run(cfg: DictConfig, folder: Path, console: Console | None = None) -> pd.DataFrame:
    """Train with each value of each factor, print the table, and write the files of the run.

    Returns:
        One row for each factor, value, seed and variant.
    """
    out = console or Console()
    split: Split = build(cfg, "data")
    if not cfg.factors:
        raise ArgumentError("factors: expected at least one, such as 'factors.depth.option=encoder.hidden'.")
    for factor in cfg.factors.values():
        for value in factor["values"]:
            chosen_variants(changed(cfg, factor, value))  # refused now, not after an hour
    steps = sum(len(factor["values"]) * len(factor.only) for factor in cfg.factors.values()) * len(cfg.seeds)
    results = collect(_rows(cfg, split), steps, folder, out)
    measures = [
        ("R@1 cosine", "R@1 %, cosine", 1),
        ("R@1 ratio", "R@1 %, likelihood ratio", 1),
        ("EM share", "EM's share of the time", 2),
        ("seconds", "s", 0),
    ]
    text = tabulate(results, ["factor", "value", "label"], measures)
    finish(cfg, text, heading(cfg, split.name), CAPTION, folder, out, {"ablation": ablation(results, split.name)})
    return results


def _rows(cfg: DictConfig, split: Split) -> Iterator[tuple[str, list[Row]]]:
    for seed in cfg.seeds:
        tasks: dict[str, AlignmentTask] = {}
        found: dict[str, Row] = {}
        for factor, options in cfg.factors.items():
            default = OmegaConf.select(cfg, options.option)
            for value in options["values"]:
                one = changed(cfg, options, value)
                removal = OmegaConf.to_yaml(one.missingness)
                task = tasks.setdefault(removal, task_of(one, split, seed))
                for key, variant in chosen_variants(one).items():
                    # the default is a value of every factor: it is trained once
                    same = f"{variant}, {Settings.of(one)}, {removal}"
                    if same not in found:
                        found[same] = run_variant(variant, task, Settings.of(one)).row
                    named = {
                        "factor": str(factor).replace("_", " "),
                        "value": setting_text(value) + "*" * (value == default),
                    }
                    row = {**named, "variant": key, "label": variant.label, "seed": seed, **found[same]}
                    yield f"{factor} {setting_text(value)}, {variant.label}, seed {seed}", [row]


def changed(cfg: DictConfig, factor: DictConfig, value: object) -> DictConfig:
    """The configuration with one option of another value, and the variants that the factor is tried on.

    Raises:
        ArgumentError: there is no such option.
    """
    if OmegaConf.select(cfg, factor.option) is None:
        raise ArgumentError(f"factors: the configuration has no option {factor.option!r}.")
    one = cfg.copy()
    OmegaConf.update(one, factor.option, value, merge=False)
    OmegaConf.update(one, "only", factor.only)
    return one


def setting_text(value: Any) -> str:  # noqa: ANN401 - whatever a configuration holds
    """A value as tables have it; a list of one is that one.

    Example:
        >>> setting_text([0.1]), setting_text(5)
        ('0.1', '5')
    """
    if isinstance(value, list | ListConfig):
        return ", ".join(map(str, value)) or "none"
    return str(value)


if __name__ == "__main__":
    main()
