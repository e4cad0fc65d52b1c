"""Completions of random models, and oracles of them, that the tests of the alignment of incomplete instances share."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from calmrl_prob.alignment.completion import Completion
from calmrl_prob.linear_gaussian import LinearGaussian
from tests.cases.linear_gaussian_cases import random_mask, random_model

NAMES = ("image", "text", "audio")


def make_completion(
    width: int = 6, latents: int = 2, noise: str = "isotropic", seed: int = 0, rows: int = 40, scale: float = 1.0
) -> Completion:
    """Instances of a random model; some complete, some with nothing."""
    model = random_model(dict.fromkeys(NAMES, width), latents, seed, noise=noise)
    _, features = model.sample(rows, torch.Generator().manual_seed(seed))
    x = scale * torch.stack(list(features.values()), dim=1)
    mask = random_mask(rows, len(NAMES), 0.5, seed, empty=True)
    mask[0], mask[1] = True, False
    return Completion.from_linear_gaussian(model, torch.where(mask[:, :, None], x, math.nan), mask)


def dense_predictive(completion: Completion, row: int) -> tuple[Tensor, Tensor]:
    """Mean (M D,) and covariance (M D, M D) of all modalities of a row given those that are present, by Schur's way."""
    mean, covariance = completion.linear_gaussian.joint()
    width = completion.values.shape[2]
    seen = completion.observed_mask[row].repeat_interleave(width)
    x = completion.values[row].flatten().double()
    gain = torch.linalg.solve(covariance[seen][:, seen], covariance[seen])
    mean = mean + (x[seen] - mean[seen]) @ gain
    return mean, covariance - covariance[:, seen] @ gain


def close_model(width: int = 5, noise: float = 0.05, seed: int = 0) -> LinearGaussian:
    """Modalities that all but share a direction: the setting of an aligned space."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    common = normal(width, 3)
    return LinearGaussian(
        {name: common + 0.5 * normal(width, 3) for name in NAMES},
        {name: 0.3 * normal(width) for name in NAMES},
        {name: torch.tensor(noise, dtype=torch.float64) for name in NAMES},
    )


def complete_and_completed(lg: LinearGaussian, rows: int, seed: int = 0) -> tuple[Tensor, Completion]:
    """Complete instances of a model, and what remains known of them when modalities are missing."""
    truth = torch.stack(list(lg.sample(rows, torch.Generator().manual_seed(seed)).features.values()), dim=1)
    mask = random_mask(rows, len(NAMES), 0.4, seed)
    return truth, Completion.from_linear_gaussian(lg, torch.where(mask[:, :, None], truth, math.nan), mask)


def svd_anchors(views: np.ndarray) -> np.ndarray:
    """The leading left singular vectors (S, D) of instances (S, m, D), pointing with the sums."""
    vectors = np.linalg.svd(views.swapaxes(1, 2), full_matrices=False)[0][:, :, 0]
    return vectors * np.sign((vectors * views.sum(1)).sum(1, keepdims=True))
