"""Moving pictures and signals, raw, through encoders trained in the alternating loop: ``python -m experiments.video``.

    python -m experiments.video data_root=/path/to/files                     # moving emoji and a watch
    python -m experiments.video data_root=/path/to/files quick=true          # one seed, two epochs
    python -m experiments.video data_root=/path/to/files sets=[wristwatch]

Emoji: a still, eight frames (through ``VideoEncoder``), name and tags; stills have no frames, which is no chance.
Watch: accelerometer and gyroscope, raw signals through a ``WaveformEncoder`` for each axis, a share of the cells gone
in training. Encoders learn without labels; epochs are chosen on validation rows of families or subjects of their own.
Then retrieval between modalities, and classes by ``cal.classify`` from representations, with all modalities and with
each one missing at test. Leaves ``results.csv``, ``table.md``, ``config.yaml`` and the log.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import hydra
import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

import calmrl_prob as cal
from calmrl_prob.alignment.objectives import OBJECTIVES
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError
from calmrl_prob.evaluation import score_probabilities
from calmrl_prob.evaluation.retrieval.representations import cosine_recall
from calmrl_prob.training import Alignment, align
from experiments.alignment.runs import Row, collect, tabulate
from experiments.classification.raw import SETS, RawRows
from experiments.comparison.fitting import collected_warnings
from experiments.harness.command import finish, run_in_folder

CAPTION = (
    "Test rows, mean ± standard deviation over seeds, in %. R@1: mean over ordered pairs of modalities, by cosine. "
    "Accuracy: of cal.classify on the representations; log score in nats."
)


@hydra.main(config_path="conf", config_name="video", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Make one table."""
    run_in_folder(run, cfg)


def run(cfg: DictConfig, folder: Path, console: Console | None = None) -> pd.DataFrame:
    """Train, retrieve, classify, print the table, and write the files of the run.

    Returns:
        One row for each data set, seed, variant and modality that test rows lack.
    """
    out = console or Console()
    unknown = [name for name in cfg.sets if name not in SETS]
    if unknown or not cfg.sets:
        raise ArgumentError(f"sets: expected some of {list(SETS)}, got {list(cfg.sets)}.")
    if cfg.data_root is None:
        raise ArgumentError("data_root: the files are not part of the repository; give their folder.")
    if cfg.quick:
        small = {"seeds": [cfg.seeds[0]], "training": {"max_epochs": 2}}
        cfg = OmegaConf.merge(cfg, small)  # type: ignore[assignment]
    steps = len(cfg.sets) * len(cfg.seeds) * len(cfg.calibrations)
    results = collect(_rows(cfg), steps, folder, out)
    measures = [("R@1", "R@1", 1), ("accuracy", "accuracy", 1), ("log_score", "log score", 3), ("seconds", "s", 0)]
    text = tabulate(results, ["set", "label", "lacks"], measures)
    finish(cfg, text, f"Raw inputs: {', '.join(cfg.sets)}", CAPTION, folder, out)
    return results


def _rows(cfg: DictConfig) -> Iterator[tuple[str, list[Row]]]:
    for name in cfg.sets:
        train, test, encoders = SETS[name](Path(cfg.data_root))
        for seed in cfg.seeds:
            thin = train.thinned(cfg.missing[name], seed)
            inside = held_in(thin.groups, cfg.validation_share, seed)
            for key, label in cfg.calibrations.items():
                begun = time.process_time()
                with torch.random.fork_rng(devices=[]), collected_warnings():
                    torch.manual_seed(seed)
                    found = align(
                        thin.subset(np.flatnonzero(inside)),
                        encoders(cfg.width),
                        OBJECTIVES[cfg.objective](temperature=cfg.temperature),
                        str(key),
                        validation=thin.subset(np.flatnonzero(~inside)),
                        latent_dim=cfg.latent_dim,
                        seed=seed,
                        **OmegaConf.to_container(cfg.training),  # type: ignore[arg-type]
                    )
                    rows = measured(found, thin, test, seed)
                facts = {"set": name, "seed": seed, "label": label, "seconds": time.process_time() - begun}
                yield f"{name}, {label}, seed {seed}", [{**facts, **row} for row in rows]


def held_in(groups: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Rows that train, (N,) bool: all but those of a share of the groups.

    Example:
        >>> held_in(np.array(["a", "a", "b"]), 0.5, seed=0).sum() in (1, 2)
        True
    """
    names = np.unique(groups)
    chosen = np.random.default_rng(seed).permutation(names)[: max(1, round(share * len(names)))]
    return ~np.isin(groups, chosen)


def measured(found: Alignment, train: RawRows, test: RawRows, seed: int) -> list[Row]:
    """Retrieval of the test rows, and classes of those with all modalities and without each."""
    shown = represented(found, train)
    fit = cal.fit(cal.SharedLatentModel(shown.dims), shown, seed=seed, progress=False, groups=train.groups)
    classifier = cal.classify(fit, shown, seed=seed, groups=train.groups)
    recall = 100 * float(cosine_recall(represented(found, test))["R@1"].mean())
    rows: list[Row] = []
    for lacks in ("nothing", *train.inputs):
        part = test if lacks == "nothing" else test.without(lacks)
        stated = classifier.probabilities(represented(found, part))
        value = score_probabilities(stated, part.labels, classifier.classes, num_draws=2)["value"]
        facts = {"accuracy": 100 * value["accuracy"], "log_score": value["log_score"]}
        rows.append({"lacks": lacks, "R@1": recall if lacks == "nothing" else np.nan, **facts})
    return rows


def represented(found: Alignment, rows: RawRows) -> MultimodalData:
    """The representations of some rows, with their labels."""
    shown = found.represent(rows)
    return MultimodalData(
        {name: shown[name] for name in shown.names}, observed_mask=shown.observed_mask, labels=rows.labels
    )


if __name__ == "__main__":
    main()
