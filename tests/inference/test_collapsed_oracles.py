"""Collapsed NUTS against what shares none of its algebra: NUTS over parameters and latents, and simulated truths."""

from __future__ import annotations

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import calmrl_prob as cal
from calmrl_prob.arviz.adapter import chain_diagnostics
from calmrl_prob.errors import ReliabilityWarning
from calmrl_prob.evaluation.simulation import SimulationRanks, simulate_model, simulation_ranks
from calmrl_prob.inference.exact.discovered import structure_posterior
from calmrl_prob.inference.optimisers.chains import run_chains
from calmrl_prob.inference.parameters.collapsed import CollapsedModel
from tests.cases.collapsed_cases import factor_model
from tests.cases.model_cases import random_data


def quantities(draws: dict[str, Tensor], dims: dict[str, int]) -> dict[str, Tensor]:
    """What no rotation of the latent changes, of draws (C, S, ...): W W^T, intercepts, noise scales."""
    loadings = torch.cat([draws[f"w_{name}"] for name in dims], dim=2)
    gram = loadings @ loadings.mT
    first, second = torch.triu_indices(gram.shape[-1], gram.shape[-1])
    return {
        "gram": gram[..., first, second],
        "intercepts": torch.cat([draws[f"mu_{name}"] for name in dims], dim=2),
        "log_sigma": torch.stack([draws[f"sigma_{name}"].log() for name in dims], dim=2),
    }


@pytest.mark.slow
@pytest.mark.parametrize("latent_dim", [1, 2])
def test_collapsed_nuts_agrees_with_nuts_over_parameters_and_latents(latent_dim: int) -> None:
    """Means and variances of every quantity within 6 standard errors of the two samplers together."""
    dims = {"a": 3, "b": 3}
    data = random_data(15, seed=2, dims=dims)
    model = factor_model(latent_dim)
    lengths = {"num_draws": 250, "num_warmup": 200, "num_chains": 2}
    with warnings.catch_warnings():
        # R-hat of so few draws exceeds 1.01 by chance; what is off by more than chance is looked for below
        warnings.simplefilter("ignore", ReliabilityWarning)
        collapsed = cal.fit(model, data, "nuts", **lengths, seed=1).report
    chains, count = collapsed.theta.shape[:2]
    ours = {name: value.reshape(chains, count, *value.shape[1:]) for name, value in collapsed.draws.values.items()}
    theirs = run_chains(model, data, **lengths, seed=2).draws
    assert theirs["z"].shape == (2, 250, 15, latent_dim)
    one, other = quantities(ours, dims), quantities(dict(theirs), dims)
    for name, values in one.items():
        centre = other[name].mean((0, 1))
        for power in (1, 2):
            left, right = (values - centre) ** power, (other[name] - centre) ** power
            error = torch.zeros(left.shape[2:], dtype=torch.float64)
            for draws in (left, right):
                size = torch.as_tensor(chain_diagnostics({"x": draws.numpy()})["ess_bulk"]["x"])
                assert float(size.min()) > 50
                error = error + draws.flatten(0, 1).var(0) / size
            gap = (left.mean((0, 1)) - right.mean((0, 1))).abs()
            assert bool((gap < 6 * error.sqrt()).all()), name


# ---- simulation-based calibration -----------------------------------------------------------------------------------

#: Fixed before the test was first run.
SEED, REPLICATIONS, RANKED = 20260, 300, 9
#: Draws to adapt and settle in, and how far apart the draws that are ranked are: three apart, their autocorrelation is
#: up to 0.4, at which ranks heap at both ends whatever the sampler; five apart, little is left of it.
WARMUP, THINNING = 60, 5


def tiny(data: cal.MultimodalData) -> None:
    """One latent, loadings and a noise scale unknown: as small as a model with something in every part can be."""
    loadings = pyro.sample("loadings", dist.Normal(torch.zeros(2, 1).double(), 1.0).to_event(2))
    sigma = pyro.sample("sigma", dist.LogNormal(torch.tensor(-0.5).double(), 0.5))
    with pyro.plate("instances", len(data)):
        z = pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
        for name, part in zip(("a", "b"), loadings.split(1), strict=True):
            x = dist.Normal(z @ part.mT, sigma).to_event(1)
            pyro.sample(name, x.mask(data.observed(name)), obs=data.filled(name))


def tiny_like() -> cal.MultimodalData:
    """Eight instances, of which two lack each modality."""
    arrays = {name: torch.zeros(8, 1, dtype=torch.float64) for name in ("a", "b")}
    arrays["a"][:2], arrays["b"][2:4] = torch.nan, torch.nan
    return cal.MultimodalData(arrays)


def ranked(loadings: Tensor, sigma: Tensor, z: Tensor, evidence: Tensor) -> dict[str, Tensor]:
    """Loadings (..., 2, 1) and latents (..., 8, 1): their signs are free together, so products are looked at."""
    return {
        "strength of a": loadings[..., 0, 0].square(),
        "a times b": loadings[..., 0, 0] * loadings[..., 1, 0],
        "sigma": sigma,
        "signal of an instance without a": loadings[..., 0, 0] * z[..., 0, 0],
        "evidence": evidence,
    }


def calibrate(num_replications: int) -> SimulationRanks:
    """Ranks of the truth among draws of collapsed NUTS and of the latents recovered from them."""
    like = tiny_like()
    first = cal.marginalize(tiny, like)

    def on(data: cal.MultimodalData) -> CollapsedModel:
        return CollapsedModel(first.bound, first.form, data, None)  # the form is the same for all of them

    def simulate(seed: int) -> tuple[dict[str, Tensor], cal.MultimodalData]:
        values, data = simulate_model(tiny, like, seed)
        model = on(data)
        terms = model.terms(model.pack({name: values[name] for name in model.sites}))
        return ranked(values["loadings"], values["sigma"], values["z"], terms.evidence), data

    def draw(data: cal.MultimodalData, num_draws: int, seed: int) -> dict[str, Tensor]:
        model = on(data)
        start = torch.tensor([[0.5, 0.5, -0.5]], dtype=torch.float64)
        chains = run_chains(
            potential=lambda at: -model.log_joint(at["theta"]),
            initial={"theta": start},
            num_draws=(num_draws - 1) * THINNING + 1,
            num_warmup=WARMUP,
            num_chains=1,
            seed=seed,
            max_tree_depth=2,
        )
        theta = chains.draws["theta"][0, ::THINNING]
        values = model.values(theta)
        structures = [model.structures(point)[0] for point in theta]
        latents = [structure_posterior(lg, data).sample(1, seed=s)[0] for s, lg in enumerate(structures)]
        evidence = torch.stack([model.terms(point).evidence for point in theta])
        return ranked(values["loadings"], values["sigma"], torch.stack(latents), evidence)

    with torch.no_grad():
        return simulation_ranks(simulate, draw, num_replications=num_replications, num_draws=RANKED, seed=SEED)


@pytest.mark.slow
def test_collapsed_nuts_is_calibrated() -> None:
    """Simulation-based calibration: ranks are uniform for parameters, latents and the evidence."""
    ranks = calibrate(REPLICATIONS)
    assert ranks.p_value > 0.01, repr(ranks)
