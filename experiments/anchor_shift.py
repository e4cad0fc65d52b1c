"""How far anchors shift where modalities are missing, and what calibration makes of it: ``experiments.anchor_shift``.

    python -m experiments.anchor_shift                   # emoji, 15% of the training rows complete, the rest pairs
    python -m experiments.anchor_shift missingness=mcar seeds=[0]

Encoders are trained on incomplete rows, and on complete ones. A generative model of the representations of the training
rows, its prior chosen on validation rows, completes test rows that one, two ... modalities were taken from. Compared
are the local anchor and the calibrated one, both with the anchor of the complete row. Leaves ``results.csv`` and
``table.md``.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import hydra
import pandas as pd
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import Tensor

from analysis.files import write_table, write_text
from calmrl_prob.alignment.anchors import anchor_shift, leading_vector
from calmrl_prob.alignment.bounds import shift_bounds
from calmrl_prob.alignment.certificate import probability_of_gain
from calmrl_prob.alignment.completion import Completion
from calmrl_prob.alignment.expected_scatter import expected_scatter_anchor
from calmrl_prob.data import MultimodalData
from calmrl_prob.linear_gaussian import LinearGaussian
from experiments.aligned import Settings, Variant, make_task, run_variant
from experiments.data import Split
from experiments.models import markdown
from experiments.refusal import plain_refusals
from experiments.settings import build

logger = logging.getLogger(__name__)

#: Draws that certificates are estimated from, and the probability from which on they say yes.
_DRAWS, _YES = 32, 0.8
#: Rounding, in distance, that bounds may be off by.
_ROUNDING = 1e-4


@hydra.main(config_path="conf", config_name="align", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Make one table."""
    with plain_refusals():
        run(cfg, Path(HydraConfig.get().runtime.output_dir))


def run(cfg: DictConfig, folder: Path, console: Console | None = None) -> pd.DataFrame:
    """Train, measure, print the table, and write the files of the run.

    Args:
        cfg: the composed configuration ``align``.
        folder: where the files go.
        console: to print to; standard output by default.

    Returns:
        One row for each seed, kind of training rows and number of missing modalities.

    Raises:
        CalmrlError: an option has a value that cannot work; the message names it.
    """
    out = console or Console()
    split: Split = build(cfg, "data")
    mechanism = build(cfg, "missingness")
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for seed in cfg.seeds:
        mask = mechanism(split.train, seed=seed)
        task = make_task(
            split.train,
            split.test,
            mask,
            seed=seed,
            components=cfg.components,
            validation_share=cfg.validation_share,
        )
        for complete in (False, True):
            found = run_variant(
                Variant("encoders", complete=complete, temperatures=list(cfg.temperatures)),
                task,
                Settings.of(cfg),
            )
            assert found.alignment is not None
            shown = found.alignment.represent(task.test)
            trained = "complete rows" if complete else "incomplete rows"
            for missing in range(1, len(shown.names)):
                rows.append({"trained on": trained, "seed": seed, **measure(found.ratio_model, shown, missing, seed)})
                logger.info("%s", rows[-1])
        write_table(pd.DataFrame(rows), folder / "results.csv")
    results = pd.DataFrame(rows)
    text = results.drop(columns="seed").groupby(["trained on", "missing"], sort=False).mean().round(3).reset_index()
    write_text(OmegaConf.to_yaml(cfg, resolve=True), folder / "config.yaml")
    write_text(markdown(text.astype(str)), folder / "table.md")
    out.print(text.to_string(index=False))
    out.print(f"Results: {folder / 'results.csv'}", soft_wrap=True, highlight=False)
    return results


@torch.no_grad()
def measure(model: LinearGaussian, data: MultimodalData, missing: int, seed: int) -> dict[str, Any]:
    """Shifts of test rows that lose some modalities.

    Args:
        model: of the representations.
        data: complete representations, (N, D) each.
        missing: how many modalities each row loses, which ones at random.
        seed: of that.

    Returns:
        Mean vector distance to the full anchor of the local anchor, of the calibrated ones (means as they are, and the
        expected scatter), the share of rows that means bring nearer, that share where the certificate says yes, how
        often it does, and the share of rows on which the bounds hold.
    """
    complete = torch.stack([data[name] for name in data.names], dim=1).double()
    mask = _removed(len(complete), len(data.names), missing, seed)
    completion = Completion.from_linear_gaussian(model, complete, mask)
    full = leading_vector(complete).vector
    local = leading_vector(complete, mask).vector
    means = leading_vector(completion.values).vector
    before, after = anchor_shift(full, local), anchor_shift(full, means)
    nearer, sure = after < before, probability_of_gain(completion, num_draws=_DRAWS, seed=seed) >= _YES
    bounds = shift_bounds(complete, mask)
    inside = (bounds.moment_lower <= bounds.shift + _ROUNDING) & (bounds.shift <= bounds.moment_upper + _ROUNDING)
    return {
        "missing": missing,
        "local": float(before.mean()),
        "calibrated": float(after.mean()),
        "expected scatter": float(anchor_shift(full, expected_scatter_anchor(completion).vector).mean()),
        "nearer": float(nearer.double().mean()),
        "nearer where sure": float(nearer[sure].double().mean()) if bool(sure.any()) else float("nan"),
        "sure": float(sure.double().mean()),
        "bounds hold": float(inside.double().mean()),
    }


def _removed(instances: int, modalities: int, missing: int, seed: int) -> Tensor:
    """``missing`` modalities of each instance absent, (N, M) bool."""
    order = torch.rand(instances, modalities, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
    return order >= missing


if __name__ == "__main__":
    main()
