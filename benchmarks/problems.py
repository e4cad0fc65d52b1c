"""The problems that are measured: data from known parameters, whole modalities missing at random."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from calmrl_prob.datasets import make_synthetic
from calmrl_prob.datasets.synthetic import SyntheticData


@dataclass(frozen=True)
class Problem:
    """Its shape, and the CPU seconds that a fit may take."""

    name: str
    num_instances: int
    widths: tuple[int, ...]
    latent_dim: int
    target_seconds: float
    missing_rate: float = 0.3

    @cache  # noqa: B019  # a handful of problems, each made once and kept
    def make(self, seed: int = 0) -> SyntheticData:
        """The data and the model that made them, float64."""
        dims = {f"m{i}": width for i, width in enumerate(self.widths)}
        return make_synthetic(self.num_instances, dims, self.latent_dim, missing_rate=self.missing_rate, seed=seed)


PROBLEMS = {
    problem.name: problem
    for problem in (
        Problem("small", 2_000, (64,) * 4, 16, 0.3),
        Problem("uci", 1_600, (216, 76, 64, 6, 240, 47), 20, 1.0),
        Problem("medium", 50_000, (256,) * 4, 32, 2.5),
    )
}
