"""Simulation-based calibration: whether what claims to be a posterior is the posterior of the model.

Draw parameters and latents from the model, data given them, and L draws from the claimed posterior given the data. The
rank of the truth of any scalar quantity among its L draws,

    rank = #{l : quantity(draw_l) < quantity(truth)},   one of 0, 1 .. L,

is uniform if the posterior is right, on average over data. Heaped at both ends, it claims too much certainty; heaped in
the middle, too little; on a slope, it is biased.

Source: Talts, Betancourt, Simpson, Vehtari & Gelman, Validating Bayesian Inference Algorithms with Simulation-Based
Calibration, arXiv 1804.06788 (2018). Which quantities to rank: Modrak et al., Simulation-based calibration checking for
Bayesian computation: the choice of test quantities shapes sensitivity (2023), who find that functions of both data and
parameters, the log likelihood above all, see errors that parameters alone do not.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyro
import torch
from numpy.typing import ArrayLike, NDArray
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from calmrl_prob._support.arguments import checked_seed, require_kind, whole_number
from calmrl_prob._support.randomness import seeded
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, SchemaError

Data = TypeVar("Data")

#: Replications that a bin is to hold on average, for the chi-square law to describe its count.
_EXPECTED = 15


@dataclass(frozen=True, repr=False)
class SimulationRanks:
    """Ranks of the truth among draws, replication by replication.

    Attributes:
        ranks: a row for each replication, a column for each quantity; whole numbers from 0 to ``num_draws``.
        num_draws: L.
    """

    ranks: pd.DataFrame
    num_draws: int

    @property
    def num_bins(self) -> int:
        """The most bins of equal width that leave an average of 15 replications in each."""
        most = max(2, len(self.ranks) // _EXPECTED)
        return max(bins for bins in range(1, most + 1) if (self.num_draws + 1) % bins == 0)

    def histogram(self, quantity: str) -> NDArray[np.int64]:
        """Replications in each of ``num_bins`` bins of ranks; level if the posterior is right."""
        bins = self.ranks[quantity].to_numpy() * self.num_bins // (self.num_draws + 1)
        return np.bincount(bins, minlength=self.num_bins)

    @property
    def p_values(self) -> dict[str, float]:
        """For each quantity, the probability of a histogram at least as uneven by chance, from the chi-square test."""
        from scipy.stats import chi2

        expected = len(self.ranks) / self.num_bins
        statistics = {name: ((self.histogram(name) - expected) ** 2 / expected).sum() for name in self.ranks}
        return {name: float(chi2.sf(value, self.num_bins - 1)) for name, value in statistics.items()}

    @property
    def p_value(self) -> float:
        """Of all quantities at once: the least p-value times their number, at most 1 (Bonferroni)."""
        return min(1.0, min(self.p_values.values()) * len(self.p_values))

    def __repr__(self) -> str:
        values = ", ".join(f"{name}: {value:.3f}" for name, value in self.p_values.items())
        return f"SimulationRanks({len(self.ranks)} replications, {self.num_draws} draws; p-values {values})"


def simulation_ranks(
    simulate: Callable[[int], tuple[Mapping[str, ArrayLike], Data]],
    draw: Callable[[Data, int, int], Mapping[str, ArrayLike]],
    *,
    num_replications: int = 300,
    num_draws: int = 99,
    seed: int = 0,
) -> SimulationRanks:
    """Rank truths among posterior draws, over many data sets simulated from the model.

    Args:
        simulate: of a seed; returns the true value of each quantity, and data to infer them from. A quantity may depend
            on the data too.
        draw: of data, L and a seed; returns for each of these quantities L draws from the posterior, shape (L,). Draws
            have to be independent: thin the chains of a sampler to as many draws as they are worth.
        num_replications: data sets.
        num_draws: L; L + 1 should have many divisors, as 100 has.
        seed: of everything.

    Raises:
        ArgumentTypeError: ``simulate`` or ``draw`` is no function.
        ArgumentError: a number is below 1, or the quantities or their shapes differ from one call to another.

    Example:
        >>> def simulate(seed):
        ...     generator = np.random.default_rng(seed)
        ...     z = generator.normal()
        ...     return {"z": z}, z + generator.normal()  # z | x ~ N(x / 2, 1 / 2)
        >>> def draw(x, num_draws, seed):
        ...     return {"z": np.random.default_rng(seed).normal(x / 2, 0.5**0.5, num_draws)}
        >>> ranks = simulation_ranks(simulate, draw, num_replications=200)
        >>> ranks.p_value > 0.01
        True
        >>> too_sure = simulation_ranks(simulate, lambda x, n, s: {"z": x / 2 + 0.1 * np.arange(-n, n, 2) / n})
        >>> too_sure.p_value < 1e-6
        True
    """
    for argument, function in {"simulate": simulate, "draw": draw}.items():
        require_kind(argument, function, Callable, "a function")
    num_replications = whole_number("num_replications", num_replications, least=1)
    num_draws = whole_number("num_draws", num_draws, least=1)
    seeds = np.random.SeedSequence(checked_seed(seed)).generate_state(3 * num_replications).reshape(-1, 3).tolist()
    rows: list[dict[str, int]] = []
    for simulation_seed, draw_seed, tie_seed in seeds:
        truth, data = simulate(simulation_seed)
        draws = draw(data, num_draws, draw_seed)
        if set(draws) != set(truth) or (rows and set(truth) != set(rows[0])):
            raise ArgumentError(f"draw: expected the quantities {list(truth)} that were simulated, got {list(draws)}.")
        generator = np.random.default_rng(tie_seed)
        rows.append({name: _rank(name, truth[name], draws[name], num_draws, generator) for name in truth})
    return SimulationRanks(pd.DataFrame(rows), num_draws)


def simulate_model(
    model: Callable[[MultimodalData], object], like: MultimodalData, seed: int
) -> tuple[dict[str, Tensor], MultimodalData]:
    """Draw all sites of a Pyro model, and data that lack what other data lack.

    Args:
        model: a Pyro callable with one observed site for each modality, named as the modality.
        like: gives the number of instances, what each lacks, covariates, labels and whatever else the model reads.
        seed: the global random state is as before afterwards.

    Returns:
        The value of every site that was not observed, and the data.

    Raises:
        SchemaError: a modality is no site of the model.

    Example:
        >>> from calmrl_prob.model import SharedLatentModel
        >>> like = MultimodalData({"image": torch.ones(5, 3), "text": torch.ones(5, 2)})
        >>> values, data = simulate_model(SharedLatentModel(like.dims, latent_dim=2), like, seed=0)
        >>> tuple(values["z"].shape), data.dims
        ((5, 2), {'image': 3, 'text': 2})
    """
    with _seeded_everywhere(checked_seed(seed), like.device), torch.no_grad():
        nodes = poutine.trace(poutine.uncondition(model)).get_trace(like).nodes
    sampled = {name: node for name, node in nodes.items() if node["type"] == "sample" and not site_is_subsample(node)}
    drawn: dict[str, Any] = {name: node["value"] for name, node in sampled.items()}  # tensors, though Pyro says Any
    lacking = [name for name in like.names if name not in drawn]
    if lacking:
        raise SchemaError(f"model: no site is named as modality {lacking[0]!r}; its sites are {list(drawn)}.")
    data = MultimodalData(
        {name: drawn[name].to(like.dtype) for name in like.names},
        observed_mask=like.observed_mask,
        ids=like.ids,
        labels=like.labels,
        covariates=like.covariates,
    )
    return {name: value for name, value in drawn.items() if name not in like.names}, data


@contextmanager
def _seeded_everywhere(seed: int, device: torch.device) -> Iterator[None]:
    """Torch, numpy and Python's own generator at the start of a stream; after, all three as they were."""
    with seeded(seed, device):
        kept = random.getstate(), np.random.get_state()  # noqa: NPY002 - a model may draw from numpy's global one
        pyro.set_rng_seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(kept[0])
            np.random.set_state(kept[1])  # noqa: NPY002


def _rank(name: str, truth: ArrayLike, draws: ArrayLike, num_draws: int, generator: np.random.Generator) -> int:
    """The rank of one truth; ties, as discrete quantities have them, broken at random."""
    value, values = np.asarray(truth, dtype=np.float64), np.asarray(draws, dtype=np.float64)
    if value.shape != () or values.shape != (num_draws,):
        raise ArgumentError(
            f"quantity {name!r}: expected one true value and draws of shape ({num_draws},), got shapes {value.shape} "
            f"and {values.shape}; give each number a name of its own."
        )
    if not (np.isfinite(value) and np.isfinite(values).all()):
        raise ArgumentError(f"quantity {name!r}: expected finite numbers, got some that are not.")
    return int((values < value).sum() + generator.integers(0, (values == value).sum(), endpoint=True))
