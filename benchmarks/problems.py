"""The problems that are measured: data from known parameters, whole modalities missing at random."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch

from calmrl_prob.data import MultimodalData
from calmrl_prob.data.missingness import mcar
from calmrl_prob.datasets import make_synthetic
from calmrl_prob.linear_gaussian import LinearGaussian


class SyntheticProblem(NamedTuple):
    """Data, and the model that they were drawn from."""

    data: MultimodalData
    truth: LinearGaussian


@dataclass(frozen=True)
class Problem:
    """Its shape, and the CPU seconds that a fit may take.

    Attributes:
        decay: how many times weaker the last latent is than the first. Latents of one strength are quick to find; real
            data have strong and weak ones, and EM needs many more steps for the weak.
    """

    name: str
    num_instances: int
    widths: tuple[int, ...]
    latent_dim: int
    target_seconds: float
    missing_rate: float = 0.3
    decay: float = 1.0

    @cache  # noqa: B019  # a handful of problems, each made once and kept
    def make(self, seed: int = 0) -> SyntheticProblem:
        """The data and the model that made them, float64."""
        dims = {f"m{i}": width for i, width in enumerate(self.widths)}
        drawn = make_synthetic(2, dims, self.latent_dim, seed=seed).truth
        strength = 3 * torch.logspace(0, -1, self.latent_dim, base=self.decay, dtype=torch.float64)
        scale = strength if self.decay > 1 else torch.ones_like(strength)
        truth = LinearGaussian(
            {name: loadings * scale for name, loadings in drawn.loadings.items()},
            drawn.intercepts,
            drawn.noise_variance,
        )
        _, features = truth.sample(self.num_instances, torch.Generator().manual_seed(seed + 1))
        complete = MultimodalData(features)
        return SyntheticProblem(complete.mask(mcar(complete, self.missing_rate, seed=seed)), truth)


_SIX_VIEWS = (216, 76, 64, 6, 240, 47)

PROBLEMS = {
    problem.name: problem
    for problem in (
        Problem("small", 2_000, (64,) * 4, 16, 0.3),
        Problem("uci", 1_600, _SIX_VIEWS, 20, 1.0),
        Problem("uci, weak latents", 1_600, _SIX_VIEWS, 20, 1.0, decay=30.0),
        Problem("medium", 50_000, (256,) * 4, 32, 2.5),
    )
}
