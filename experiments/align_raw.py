"""Alignment of raw inputs, by small encoders trained end to end: ``python -m experiments.align_raw``.

    python -m experiments.align_raw                          # 15% of the scenes complete, the rest pairs
    python -m experiments.align_raw missingness=mcar         # half of all modalities removed
    python -m experiments.align_raw only=[observed,oracle] seeds=[0] data.num_instances=4000

Scenes are images, tones and captions (``calmrl_prob/datasets/scenes.py``). Temperature and epoch are chosen on
validation rows, a part of the training rows with their modalities missing as everywhere in training. Leaves in the
run's folder ``results.csv``, ``table.md``, ``config.yaml`` and the log.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import pandas as pd
import torch
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor, nn

from calmrl_prob.alignment.calibration import CALIBRATIONS
from calmrl_prob.alignment.objectives import OBJECTIVES
from calmrl_prob.data import MultimodalData
from calmrl_prob.datasets import Scenes
from calmrl_prob.errors import ArgumentError
from calmrl_prob.training import Alignment, align
from experiments.align import compare
from experiments.alignment.training import AlignmentTask, Settings, Variant, alignment_row, make_task, run_variant
from experiments.harness.command import run_in_folder
from experiments.harness.settings import build


@hydra.main(config_path="conf", config_name="align_raw", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Make one table."""
    run_in_folder(run, cfg)


def run(cfg: DictConfig, folder: Path, console: Console | None = None) -> pd.DataFrame:
    """Train and measure every variant for every seed, print the table, and write the files of the run."""
    scenes: Scenes = build(cfg, "data")
    mechanism = build(cfg, "missingness")
    settings = Settings.of(cfg)
    if not 1 < cfg.num_test < len(scenes):
        raise ArgumentError(f"num_test: expected from 2 to {len(scenes) - 1}, got {cfg.num_test}.")
    train, test = scenes.subset(range(cfg.num_test, len(scenes))), scenes.subset(range(cfg.num_test))
    features = train.features(), test.features()

    def prepare(seed: int) -> Callable[[Variant], dict[str, Any]]:
        mask = mechanism(features[0], seed=seed)
        task = RawTask.of(train, test, features, mask, seed, cfg)
        return lambda variant: _measured(variant, task, settings, cfg)

    return compare(cfg, "scenes", prepare, folder, console)


@dataclass(frozen=True)
class RawTask:
    """Data that a variant learns from, for one seed.

    Attributes:
        fit, validation: parts of the training scenes, as they are after removal.
        complete_fit, complete_validation: the same before it; for the oracle alone.
        test: complete scenes.
        features: the same scenes as flat features, for the model without encoders.
    """

    fit: Scenes
    validation: Scenes
    complete_fit: Scenes
    complete_validation: Scenes
    test: Scenes
    features: AlignmentTask

    @classmethod
    def of(
        cls,
        train: Scenes,
        test: Scenes,
        features: tuple[MultimodalData, MultimodalData],
        observed_mask: Tensor,
        seed: int,
        cfg: DictConfig,
    ) -> RawTask:
        """Remove modalities and set validation rows aside, the same for scenes and features."""
        share = cfg.validation_share
        task = make_task(*features, observed_mask, seed=seed, components=cfg.components, validation_share=share)
        fit, validation = features[0].split_indices(1.0 - share, seed=seed)
        incomplete = train.mask(observed_mask)
        parts = (data.subset(rows) for data in (incomplete, train) for rows in (fit, validation))
        return cls(*parts, test, task)


def _measured(variant: Variant, task: RawTask, settings: Settings, cfg: DictConfig) -> dict[str, Any]:
    if variant.start == "none":
        return run_variant(variant, task.features, settings).row
    started = time.perf_counter()
    complete = variant.complete
    fit = task.complete_fit if complete else task.fit
    validation = task.complete_validation if complete else task.validation
    tried = []
    for temperature in variant.temperatures:
        found = _train(variant, fit, validation, temperature, settings, cfg, task.features.seed)
        tried.append((found.history["validation_recall"].max(), temperature, found))
    _, temperature, alignment = max(tried, key=lambda item: item[0])
    seconds = time.perf_counter() - started
    shown = tuple(alignment.represent(part) for part in (fit, validation, task.test))
    row, _ = alignment_row(alignment, shown, settings, task.features.seed)
    return {**row, "temperature": temperature, "seconds": seconds}


def _train(
    variant: Variant,
    fit: Scenes,
    validation: Scenes,
    temperature: float,
    settings: Settings,
    cfg: DictConfig,
    seed: int,
) -> Alignment:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoders = nn.ModuleDict({name: build(cfg, f"encoders.{name}") for name in fit.names})
    return align(
        fit,
        encoders,
        OBJECTIVES[variant.objective](temperature=temperature, **variant.objective_options),
        CALIBRATIONS[variant.calibration](**variant.calibration_options),
        validation=validation,
        latent_dim=settings.latent_dim,
        seed=seed,
        **{**settings.training, **variant.training},
    )


if __name__ == "__main__":
    main()
