"""For every plot one small call, the same each time, that the contract and the pictures are tested on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch

import calmrl_prob as cal
from calmrl_prob import plots
from calmrl_prob.alignment.anchors import leading_vector
from calmrl_prob.evaluation import Retrieval, coverage_curve, factor_weights
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.selection import Choice
from calmrl_prob.selection.latent_dim import LatentDimChoice
from calmrl_prob.selection.settings import Setting

#: What functions of plots are called with, besides axes.
Case = tuple[tuple[Any, ...], dict[str, Any]]


def model() -> LinearGaussian:
    """Two latents, written out, so that pictures depend on no random generator."""
    loadings = {"image": [[2.0, 0.0], [1.0, 0.5]], "text": [[0.5, 1.5]], "audio": [[0.0, 0.3]]}
    return LinearGaussian(
        {name: torch.tensor(rows).double() for name, rows in loadings.items()},
        {name: torch.zeros(len(rows)).double() for name, rows in loadings.items()},
        {name: torch.ones(len(rows)).double() for name, rows in loadings.items()},
    )


def data() -> cal.MultimodalData:
    """Twelve instances of it, some modalities missing."""
    grid = torch.linspace(-2, 2, 12, dtype=torch.float64)
    z = torch.stack([grid, grid.cos()], dim=1)
    lg = model()
    mask = torch.ones(12, 3, dtype=torch.bool)
    mask[4:, 1], mask[9:, 2] = False, False
    arrays = {name: z @ loadings.mT for name, loadings in lg.loadings.items()}
    return cal.MultimodalData(arrays, observed_mask=mask, labels=["a", "b"] * 6)


def retrieval() -> Retrieval:
    """Three queries among four candidates."""
    top = np.array([[0, 2, 3], [2, 1, 0], [3, 0, 1]])
    return Retrieval("likelihood_ratio", 4, top, np.zeros((3, 3)), ranks=np.array([1, 2, 4]))


def choice() -> LatentDimChoice:
    """As if K = 2 had been chosen."""
    curve = pd.DataFrame({"latent_dim": [1, 2, 4], "evidence": [-5.0, -3.0, -2.9], "behind_error": [0.4, 0.2, 0.0]})
    return LatentDimChoice(2, 4, curve, 3, 4)


def tried(criterion: str = "imputation") -> Choice:
    """As if a fit had chosen K = 8 with 100 pseudo-rows, of three weights at K 4, two at K 8, and two without any."""
    settings = [
        *(Setting(4, pseudo_rows=weight) for weight in (1000.0, 100.0, 10.0)),
        *(Setting(8, pseudo_rows=weight) for weight in (100.0, 300.0)),
        Setting(4, "diagonal", pseudo_rows=100.0),
        Setting(2, ard=True),
        Setting(4),
    ]
    scores = [0.1, 0.3, 0.2, 0.35, 0.3, 0.25, 0.22, -0.1]
    rows = [
        {
            "latent_dim": setting.latent_dim, "noise": setting.noise, "family": setting.family, "prior": setting.prior,
            "pseudo_rows": setting.pseudo_rows, "pooling": setting.pooling, "ard": setting.ard,
            "score": score, "error": 0.05, "behind": 0.35 - score, "behind_error": 0.0 if score == 0.35 else 0.02,
            "r2": score, "r2/image": score + 0.1, "r2/text": score - 0.4, "chosen": score == 0.35,
        }
        for setting, score in zip(settings, scores, strict=True)
    ]  # fmt: skip
    return Choice(settings[3], pd.DataFrame(rows), criterion, "none", 3)


def cells() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth, mean and variance of 60 cells whose errors grow with their deviations, though not as much."""
    sd = np.linspace(0.5, 2, 60)
    return np.sin(np.arange(60.0)) * sd**0.8, np.zeros(60), sd**2


def anchors() -> Case:
    """Three instances of three modalities, one of which is missing."""
    turn = torch.tensor([[0.0, 0.5, 1.5], [0.2, 0.1, 2.5], [0.0, 1.0, -0.5]]).double()
    x = torch.stack([turn.cos(), turn.sin(), 0.2 * turn], dim=2)
    mask = torch.tensor([[True, True, False]]).expand(3, 3)
    return (x, mask), {"calibrated": leading_vector(x + 0.3).vector, "names": ["one", "two", "three"]}


def cases() -> dict[str, Case]:
    """The name of each plot, and what it is called with."""
    truth, mean, variance = cells()
    reach = 0.4 * variance[:20] ** 0.5
    tight, wide = coverage_curve(truth, mean, variance / 4), coverage_curve(truth, mean, variance)
    names = ["cat", "dog", "fox", "hen"]
    return {
        "anchor_shift_circle": anchors(),
        "choice": ((tried(),), {}),
        "coverage": (({"tight": tight, "wide": wide},), {}),
        "error_against_sd": (cells(), {"bins": 5, "unit": "V"}),
        "evidence_trace": (({"one": [-5.0, -3.0, -2.5, -2.4], "two": [[-6.0, -4.0], [-6.0, -3.5]]},), {}),
        "imputed_against_true": ((truth[:20], truth[:20] / 2, truth[:20] / 2 - reach, truth[:20] / 2 + reach), {}),
        "latent_dim_choice": ((choice(),), {}),
        "latent_space": ((cal.posterior(model(), data()),), {"labels": data().labels}),
        "missingness_map": ((data(),), {}),
        "pit": ((np.linspace(0, 1, 50) ** 1.5,), {"bins": 10}),
        "prior_against_posterior": ((cal.posterior(model(), data()),), {"latent": 1}),
        "retrieval_gallery": (
            (retrieval(), names),
            {"query_names": ["miaow", "woof", "yelp"], "targets": [0, 1, 2], "pictures": ["\u2654", np.eye(8), "", ""]},
        ),
        "risk_coverage": ((np.abs(truth), {"stated": variance, "none": np.ones(60)}), {}),
        "top_weights": ((weights(), "image"), {"most": 4}),
        "value_of_information": ((cal.value_of_information(model(), data()),), {}),
        "variance_explained": ((model(),), {}),
    }


def weights() -> pd.DataFrame:
    """What the latents of the model do to its features, with intervals of a fixed width."""
    table = factor_weights(model(), rotate=False)
    return table.assign(lower=table["weight"] - 0.1, upper=table["weight"] + 0.05)


def function(name: str) -> Callable[..., Any]:
    """A plot by its name."""
    found: Callable[..., Any] = getattr(plots, name)
    return found
