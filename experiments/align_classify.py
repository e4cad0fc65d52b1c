"""Classification of rows with missing modalities, by encoders aligned in several ways: ``experiments.align_classify``.

    python -m experiments.align_classify                          # leaves, 15% of the rows complete, the rest pairs
    python -m experiments.align_classify missingness=mcar seeds=[0]
    python -m experiments.align_classify data=emoji

Encoders are trained without labels on incomplete rows. A row's representations are pooled to one vector, from which a
logistic regression learns the classes of the training rows, as incomplete as they are; test rows lose none, one, two
modalities. Beside them stand what one can do without encoders: the raw features with the mean for what is missing, or
with what the model of the inputs imputes, and the latent of that model. Leaves ``results.csv`` and ``table.md``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import hydra
import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor

from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, DataError
from calmrl_prob.evaluation import ProbeResult, linear_probe
from experiments.alignment.fusion import fused_inputs, fused_representations
from experiments.alignment.runs import Row, chosen_variants, collect, heading, lacking, tabulate, task_of
from experiments.alignment.training import AlignedVariant, Settings, Variant, run_variant
from experiments.harness.command import finish, run_in_folder
from experiments.harness.settings import build
from experiments.harness.split import Split

CAPTION = (
    "Accuracy of a logistic regression on test rows, in %, mean ± standard deviation over seeds. It learns from the "
    "training rows with the modalities that they have; its penalty is chosen by cross-validation within them."
)


@hydra.main(config_path="conf", config_name="align_classify", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Make one table."""
    run_in_folder(run, cfg)


def run(cfg: DictConfig, folder: Path, console: Console | None = None) -> pd.DataFrame:
    """Train, classify, print the table, and write the files of the run.

    Returns:
        One row for each seed, variant, way to pool and number of missing modalities.
    """
    out = console or Console()
    split: Split = build(cfg, "data")
    if split.train.labels is None:
        raise DataError(f"data: expected rows with labels, but {split.name} has none; try data=leaves.")
    numbers = list(cfg.missing)
    if not numbers or not all(0 <= number < len(split.train.names) for number in numbers):
        raise ArgumentError(f"missing: expected whole numbers from 0 to {len(split.train.names) - 1}, got {numbers}.")
    variants = chosen_variants(cfg)
    results = collect(_rows(cfg, split, variants, numbers), len(variants) * len(cfg.seeds), folder, out)
    keys = ["label", "pooled", "seed", "seconds"]
    wide = results.pivot_table(index=keys, columns="missing", values="accuracy", sort=False).reset_index()
    measures = [(number, f"{number} missing", 1) for number in numbers]
    text = tabulate(wide, ["label", "pooled"], [*measures, ("seconds", "s", 0)])
    chance = f" Always naming the commonest class gives {results['chance'].mean():.1f}."
    finish(cfg, text, heading(cfg, split.name), CAPTION + chance, folder, out)
    return results


def _rows(
    cfg: DictConfig, split: Split, variants: Mapping[str, Variant], numbers: Sequence[int]
) -> Iterator[tuple[str, list[Row]]]:
    settings = Settings.of(cfg)
    for seed in cfg.seeds:
        task = task_of(cfg, split, seed)
        tests = [lacking(task.test, number, seed) for number in numbers]
        for key, variant in variants.items():
            found = run_variant(variant, task, settings)
            rows = []
            for pool, probe in classify(found, task.rows(variant.complete), tests, list(cfg.penalties), seed).items():
                right = (probe.predictions == np.concatenate([test.labels for test in tests])).reshape(len(tests), -1)
                named = {"variant": key, "label": variant.label, "pooled": pool, "seed": seed}
                facts = {"chance": 100 * probe.chance, "seconds": found.row["seconds"]}
                for number, accuracy in zip(numbers, 100 * right.mean(axis=1), strict=True):
                    rows.append({**named, "missing": number, "accuracy": float(accuracy), **facts})
            yield f"{variant.label}, seed {seed}", rows


def classify(
    found: AlignedVariant,
    train: Sequence[MultimodalData],
    test: Sequence[MultimodalData],
    penalties: Sequence[float],
    seed: int,
) -> dict[str, ProbeResult]:
    """Learn the classes of training rows from their pooled vectors, and name those of test rows.

    Args:
        found: encoders and the model of what they give; or the model of the inputs alone.
        train: parts to learn from, with labels.
        test: parts to classify, one after the other.
        penalties: of the logistic regression, to choose from.
        seed: of the folds that choose.

    Returns:
        For each way to pool what the probe found, over all the parts of ``test`` together.
    """

    def vectors(parts: Sequence[MultimodalData]) -> dict[str, Tensor]:
        pools = [
            fused_inputs(part, found.ratio_model)
            if found.alignment is None
            else fused_representations(found.alignment.represent(part), found.ratio_model)
            for part in parts
        ]
        return {name: torch.cat([pool[name] for pool in pools]) for name in pools[0]}

    learned, shown = vectors(train), vectors(test)
    y_train, y_test = (np.concatenate([part.labels for part in parts]) for parts in (train, test))
    return {name: linear_probe(learned[name], y_train, shown[name], y_test, seed, penalties) for name in learned}


if __name__ == "__main__":
    main()
