"""Simulation-based calibration: that it accepts what is right, rejects what is wrong, and accepts this library."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pyro
import pytest
import torch

from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, SchemaError
from calmrl_prob.evaluation.simulation import SimulationRanks, simulate_model, simulation_ranks
from calmrl_prob.inference import posterior
from calmrl_prob.linear_gaussian import LinearGaussianMixture, ObservedBlocks, mixture_posterior
from tests.cases.mixture_cases import random_mixture
from tests.cases.model_cases import random_data, random_model, random_prior


def simulate_normal(seed: int) -> tuple[dict[str, float], float]:
    generator = np.random.default_rng(seed)
    z = generator.normal()
    return {"z": z, "sign": float(z > 0)}, z + generator.normal()


def draw_normal(shift: float, scale: float) -> Callable[[float, int, int], dict[str, np.ndarray]]:
    def draw(x: float, num_draws: int, seed: int) -> dict[str, np.ndarray]:
        z = x / 2 + shift + scale * 0.5**0.5 * np.random.default_rng(seed).normal(size=num_draws)
        return {"z": z, "sign": (z > 0).astype(float)}

    return draw


def test_right_posteriors_are_accepted_and_wrong_ones_rejected() -> None:
    assert simulation_ranks(simulate_normal, draw_normal(0, 1)).p_value > 0.01
    sloped = simulation_ranks(simulate_normal, draw_normal(0.4, 1))
    assert sloped.p_value < 1e-4
    assert sloped.histogram("z")[:5].sum() > sloped.histogram("z")[-5:].sum()
    sure, doubting = (simulation_ranks(simulate_normal, draw_normal(0, scale)) for scale in (0.6, 1.6))
    assert max(sure.p_value, doubting.p_value) < 1e-4
    ends, middle = [0, 1, 18, 19], [8, 9, 10, 11]
    assert sure.histogram("z")[ends].sum() > 2 * sure.histogram("z")[middle].sum()
    assert 2 * doubting.histogram("z")[ends].sum() < doubting.histogram("z")[middle].sum()


def test_p_values_of_right_posteriors_are_spread_evenly() -> None:
    """Of 200 p-values about 10% are below 0.1; a rank has the mean and variance of a uniform one."""
    generator = np.random.default_rng(0)
    ranks = SimulationRanks(pd.DataFrame(generator.integers(0, 100, (300, 200))), num_draws=99)
    below = sum(value < 0.1 for value in ranks.p_values.values())
    assert abs(below - 20) < 6 * (200 * 0.1 * 0.9) ** 0.5
    assert ranks.num_bins == 20
    found = simulation_ranks(simulate_normal, draw_normal(0, 1), num_replications=400, seed=5).ranks
    for name in ("z", "sign"):  # ties too are broken evenly
        assert abs(found[name].mean() - 49.5) < 6 * (100**2 / 12 / 400) ** 0.5


def test_the_same_seed_gives_the_same_ranks() -> None:
    one, other, third = (
        simulation_ranks(simulate_normal, draw_normal(0, 1), num_replications=20, seed=seed) for seed in (3, 3, 4)
    )
    assert one.ranks.equals(other.ranks)
    assert not one.ranks.equals(third.ranks)


def test_simulated_data_lack_what_the_others_lack_and_nothing_global_changes() -> None:
    like, model = random_data(7), random_model()
    pyro.set_rng_seed(0)
    before = torch.random.get_rng_state()
    latents, data = simulate_model(model, like, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert list(latents) == ["z"]
    assert torch.equal(data.observed_mask, like.observed_mask)
    assert not torch.equal(data["image"].nan_to_num(), like["image"].nan_to_num())
    again, _ = simulate_model(model, like, seed=1)
    assert torch.equal(again["z"], latents["z"])


def test_errors() -> None:
    with pytest.raises(ArgumentError, match=r"draw: expected the quantities \['z', 'sign'\]"):
        simulation_ranks(simulate_normal, lambda x, n, s: {"z": np.zeros(n)})
    with pytest.raises(ArgumentError, match=r"quantity 'z': expected one true value and draws of shape \(99,\)"):
        simulation_ranks(simulate_normal, lambda x, n, s: {"z": np.zeros(3), "sign": np.zeros(n)})
    with pytest.raises(ArgumentError, match="quantity 'z': expected finite"):
        simulation_ranks(simulate_normal, lambda x, n, s: {"z": np.full(n, np.nan), "sign": np.zeros(n)})
    with pytest.raises(ArgumentError, match="num_draws: expected a whole number of at least 1"):
        simulation_ranks(simulate_normal, draw_normal(0, 1), num_draws=0)
    with pytest.raises(SchemaError, match="no site is named as modality 'smell'"):
        simulate_model(lambda data: None, MultimodalData({"smell": torch.ones(2, 2)}), 0)


@pytest.mark.slow
def test_the_exact_posterior_is_calibrated() -> None:
    """300 data sets of 6 instances that lack modalities; seed fixed in advance."""
    model, like = random_model("diagonal", random_prior(2)), random_data(6)

    def quantities(z: torch.Tensor, data: MultimodalData) -> dict[str, torch.Tensor]:
        joint = torch.distributions.Normal(z @ lg.loadings["text"].mT + lg.intercepts["text"], 1.0)
        values = data.filled("text") * data.observed("text")[:, None]
        return {
            "first": z[..., 0, 0],
            "last": z[..., -1, 1],
            "length": z.square().sum((-1, -2)),
            "fit": (joint.log_prob(values) * data.observed("text")[:, None]).sum((-1, -2)),
        }

    lg = model.linear_gaussian().detach()

    def simulate(seed: int) -> tuple[dict[str, torch.Tensor], MultimodalData]:
        latents, data = simulate_model(model, like, seed)
        return quantities(latents["z"], data), data

    def draw(data: MultimodalData, num_draws: int, seed: int) -> dict[str, torch.Tensor]:
        return quantities(posterior(model, data).sample(num_draws, seed), data)

    assert simulation_ranks(simulate, draw, num_replications=300, seed=20260101).p_value > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_the_mixture_posterior_is_calibrated(shared: bool) -> None:
    mixture: LinearGaussianMixture = random_mixture({"a": 2, "b": 1}, 2, 3, seed=4, shared=shared)
    mask = torch.tensor([[True, False], [True, True], [False, True], [False, False]])

    def quantities(z: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            "first": z[..., 0, 0],
            "last": z[..., -1, 1],
            "product": z[..., 1, 0] * z[..., 1, 1],
            "component": labels[..., 2],
            "length": z.square().sum((-1, -2)),
        }

    def simulate(seed: int) -> tuple[dict[str, torch.Tensor], ObservedBlocks]:
        labels, latents, features = mixture.sample(4, torch.Generator().manual_seed(seed))
        return quantities(latents, labels), ObservedBlocks.from_arrays(features, mask)

    def draw(blocks: ObservedBlocks, num_draws: int, seed: int) -> dict[str, torch.Tensor]:
        given, generator = mixture_posterior(mixture, blocks), torch.Generator().manual_seed(seed)
        labels = given.sample_components(num_draws, generator)
        return quantities(given.sample_given(labels, generator), labels)

    assert simulation_ranks(simulate, draw, num_replications=300, seed=20260102).p_value > 0.01
