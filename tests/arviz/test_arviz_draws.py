"""What ArviZ gets of fits that drew the parameters: the sampler's chains, its sites, and R-hat as the fit has it."""

from __future__ import annotations

import warnings
from typing import Any

import arviz as az
import numpy as np
import pytest
import torch

import calmrl_prob as cal
from calmrl_prob.errors import ArgumentError, ReliabilityWarning
from tests.cases.collapsed_cases import factor_model
from tests.cases.model_cases import DIMS, random_data

SITES = {f"{kind}_{name}" for kind in ("w", "mu", "sigma") for name in DIMS}


@pytest.fixture(scope="module")
def data() -> cal.MultimodalData:
    return random_data(12)


@pytest.fixture(scope="module")
def sampled(data: cal.MultimodalData) -> cal.FitResult:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReliabilityWarning)  # a dozen draws do not agree
        return cal.fit(factor_model(1), data, "nuts", num_draws=12, num_warmup=4, num_chains=2, max_tree_depth=2)


def test_chains_and_sites_are_the_samplers(sampled: cal.FitResult, data: cal.MultimodalData) -> None:
    idata: Any = cal.to_arviz(sampled, data, names=["text"])
    posterior = idata["posterior"]
    assert dict(posterior.sizes)["chain"] == 2
    assert dict(posterior.sizes)["draw"] == 12
    assert set(posterior.data_vars) >= SITES
    kept = sampled.report.draws
    for site in SITES:
        np.testing.assert_array_equal(posterior[site].values.reshape(24, -1), kept.values[site].reshape(24, -1).numpy())
    np.testing.assert_array_equal(idata["sample_stats"]["lp"].values.ravel(), sampled.objective)
    diverging = idata["sample_stats"]["diverging"].values
    assert diverging.dtype == bool
    assert diverging.sum(1).tolist() == sampled.diagnostics["divergences_by_chain"].tolist()


def test_r_hat_is_that_of_the_fit(sampled: cal.FitResult, data: cal.MultimodalData) -> None:
    posterior = cal.to_arviz(sampled, data, names=())["posterior"]
    found = az.rhat(posterior, var_names=list(sampled.diagnostics["r_hat_by_quantity"]))
    for name, expected in sampled.diagnostics["r_hat_by_quantity"].items():
        np.testing.assert_allclose(found[name].values, expected)
    assert max(float(found[n].max()) for n in found.data_vars) == pytest.approx(sampled.diagnostics["r_hat"])


def test_each_draw_of_z_comes_under_its_own_parameters(sampled: cal.FitResult, data: cal.MultimodalData) -> None:
    """Up to the turn of z: signals lie in the span of that draw's loadings, and communalities follow from them."""
    idata: Any = cal.to_arviz(sampled, data)
    posterior = idata["posterior"]
    for name in DIMS:
        w, mu, sigma = (posterior[f"{kind}_{name}"].values for kind in ("w", "mu", "sigma"))
        centred = posterior[f"signal_{name}"].values - mu[:, :, None]
        along = (centred * w[:, :, None, :, 0]).sum(-1) / (w[..., 0] ** 2).sum(-1)[..., None]
        np.testing.assert_allclose(centred, along[..., None] * w[:, :, None, :, 0], atol=1e-9)
        np.testing.assert_allclose(np.abs(along), np.abs(posterior["z"].values[..., 0]), rtol=1e-6)
        share = (w**2).sum(-1) / ((w**2).sum(-1) + sigma[..., None] ** 2)
        np.testing.assert_allclose(posterior[f"communality_{name}"].values, share, rtol=1e-9)


def test_fewer_draws_are_spread_over_each_chain(sampled: cal.FitResult, data: cal.MultimodalData) -> None:
    few = cal.to_arviz(sampled, data, num_draws=6, names=())["posterior"]
    assert (few.sizes["chain"], few.sizes["draw"]) == (2, 3)
    w = sampled.report.draws.values["w_text"].reshape(2, 12, -1).numpy()
    np.testing.assert_array_equal(few["w_text"].values.reshape(2, 3, -1)[:, [0, 2]], w[:, [0, 11]])
    again = cal.to_arviz(cal.posterior(sampled, data), data, num_draws=6, names=())["posterior"]
    np.testing.assert_array_equal(again["w_text"].values, few["w_text"].values)
    assert cal.to_arviz(sampled, data, num_draws=1000, names=())["posterior"].sizes["draw"] == 12
    with pytest.raises(ArgumentError, match="num_chains: the sampler ran 2 chains, got 4"):
        cal.to_arviz(sampled, data, num_chains=4)
    with pytest.raises(ArgumentError, match="num_draws"):
        cal.to_arviz(sampled, data, num_draws=0)


def test_independent_draws_of_a_guide_are_dealt_to_chains(data: cal.MultimodalData) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReliabilityWarning)  # a guide after so few steps
        result = cal.fit(factor_model(1), data, "svi", num_steps=20, num_draws=100)
    idata: Any = cal.to_arviz(result, data, num_draws=40, names=["text"])
    assert dict(idata["posterior"]["w_text"].sizes) == {"chain": 4, "draw": 10, "w_text_0": 3, "w_text_1": 1}
    assert set(idata["posterior"].data_vars) >= SITES
    w, signal = (idata["posterior"][n].values for n in ("w_text", "signal_text"))
    mu = idata["posterior"]["mu_text"].values
    ratio = (signal - mu[:, :, None]) / w[:, :, None, :, 0]
    np.testing.assert_allclose(ratio, ratio[..., :1].repeat(3, -1), rtol=1e-5)


def test_what_map_found_is_constant(data: cal.MultimodalData) -> None:
    result = cal.fit(factor_model(1), data, "map", num_starts=1, max_iterations=40, tolerance=1e-3)
    for model in (result, result.model):
        idata: Any = cal.to_arviz(model, data, num_draws=8, names=())
        for site in SITES:
            assert torch.equal(torch.from_numpy(idata["constant_data"][site].values), result.model.values[site])
        assert "communality_text" in idata["constant_data"]
