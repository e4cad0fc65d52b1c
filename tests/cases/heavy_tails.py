"""Models whose posteriors are heavy-tailed or bent, so that weighted draws cannot be relied on for some rows."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

import calmrl_prob as cal


def heavy_data(rows: int) -> cal.MultimodalData:
    """Two modalities of normal data, which fit the models below badly in some rows."""
    return cal.datasets.make_synthetic(rows, {"a": 12, "b": 6}, latent_dim=2, seed=0).complete


def _loadings(width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(width)
    return torch.randn(width, 2, generator=generator).double()


def student_t(data: cal.MultimodalData) -> None:
    """Student-t noise of two degrees of freedom, with a scale for each feature."""
    with pyro.plate("instances", len(data)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
        for name, width in data.dims.items():
            features = dist.StudentT(torch.tensor(2.0).double(), z @ _loadings(width).T, 0.5).to_event(1)
            pyro.sample(name, features.mask(data.observed(name)), obs=data.filled(name))


def tanh(data: cal.MultimodalData) -> None:
    """Means that saturate: the posterior has flat arms."""
    with pyro.plate("instances", len(data)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
        for name, width in data.dims.items():
            features = dist.Normal(torch.tanh(3 * z @ _loadings(width).T), 0.3).to_event(1)
            pyro.sample(name, features.mask(data.observed(name)), obs=data.filled(name))
