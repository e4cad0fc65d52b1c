"""Rows of three classes of the latent, and the model that they are of."""

from __future__ import annotations

import numpy as np
import torch

import calmrl_prob as cal
from calmrl_prob.data import MultimodalData
from calmrl_prob.linear_gaussian import LinearGaussian

DIMS = {"a": 5, "b": 4}


def drawn(count: int = 240, seed: int = 0) -> tuple[MultimodalData, LinearGaussian]:
    """Three classes of the latent, a third of the cells missing, and the model that they are of."""
    of_model, generator = torch.Generator().manual_seed(7), torch.Generator().manual_seed(seed)
    means = 1.5 * torch.randn(3, 3, generator=of_model)
    loadings = {name: torch.randn(width, 3, generator=of_model) for name, width in DIMS.items()}
    labels = torch.randint(3, (count,), generator=generator)
    z = means[labels] + 0.6 * torch.randn(count, 3, generator=generator)
    x = {n: z @ w.mT + 0.7 * torch.randn(count, len(w), generator=generator) for n, w in loadings.items()}
    data = MultimodalData(x, labels=np.array(["u", "v", "w"])[labels.numpy()])
    zeros = {name: torch.zeros(width) for name, width in DIMS.items()}
    lg = LinearGaussian(loadings, zeros, {name: torch.tensor(0.49) for name in DIMS}, None, 2.5 * torch.eye(3))
    return data.mask(cal.missingness.mcar(data, rate=0.33, seed=seed)), lg


def in_batches(count: int = 240, seed: int = 0) -> tuple[MultimodalData, MultimodalData]:
    """The rows of :func:`drawn`, and the same with each batch shifted by far more than classes differ."""
    data, _ = drawn(count, seed)
    batch = np.arange(count) % 3
    shift = {n: 6 * torch.randn(3, w, generator=torch.Generator().manual_seed(w)) for n, w in DIMS.items()}
    moved = {name: data[name] + shift[name][torch.as_tensor(batch)] for name in data.names}
    site = np.array(["s0", "s1", "s2"])[batch]
    return data, MultimodalData(moved, labels=data.labels, covariates={"site": site})


def named(permuted: bool = False) -> MultimodalData:
    """Rows and features with names, and those of one modality in another order."""
    import pandas as pd

    data, _ = drawn()
    ids = [f"row-{n}" for n in range(len(data))]
    frames = {n: pd.DataFrame(data.filled(n).numpy(), index=ids).add_prefix(n) for n in data.names}
    if permuted:
        frames = {"b": frames["b"].iloc[:, ::-1], "a": frames["a"]}
    there = {name: data.observed(name).numpy() for name in frames}
    return MultimodalData(frames, observed_mask=there, labels=data.labels)
