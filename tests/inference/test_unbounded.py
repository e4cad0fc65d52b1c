"""Scales that run to zero with what they scale: found where they do, and nothing else taken for it."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import calmrl_prob as cal
from calmrl_prob.errors import NumericalError, ReliabilityWarning
from calmrl_prob.inference.parameters.unbounded import runaway_sites
from calmrl_prob.priors.loadings import ARDLoadings
from tests.cases.collapsed_cases import factor_model, normal, observe
from tests.cases.model_cases import random_data

ONE = torch.tensor(1.0, dtype=torch.float64)
Scale = Callable[[], dist.TorchDistribution]


def hierarchical(prior: Scale, *, centred: bool = True) -> Callable[[cal.MultimodalData], None]:
    """Loadings whose common scale has a prior of its own."""

    def model(data: cal.MultimodalData) -> None:
        tau = pyro.sample("tau", prior())
        loadings, means, noise = {}, {}, {}
        for name, width in data.dims.items():
            scale = tau if centred else ONE
            drawn = pyro.sample(f"w_{name}", dist.Normal(torch.zeros(width, 2).double(), scale).to_event(2))
            loadings[name] = drawn if centred else tau * drawn
            means[name] = pyro.sample(f"mu_{name}", normal(width))
            noise[name] = pyro.sample(f"sigma_{name}", dist.HalfCauchy(ONE))
        with pyro.plate("instances", len(data)):
            observe(pyro.sample("z", normal(2)), loadings, data, means, noise)

    return model


def half_normal() -> dist.TorchDistribution:
    return dist.HalfNormal(ONE)


def collapsed_at(model: Callable[[cal.MultimodalData], None], data: cal.MultimodalData, size: float) -> tuple[str, ...]:
    """What is said of a point where scale and loadings are about as large as given."""
    collapsed = cal.marginalize(model, data)
    values = collapsed.values(torch.zeros(collapsed.dim, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)

    def small(value: Tensor) -> Tensor:
        return size * torch.randn(value.shape, generator=generator, dtype=torch.float64)

    values = {n: small(v) if n.startswith("w_") else v for n, v in values.items()} | {"tau": size * ONE}
    return runaway_sites(collapsed, collapsed.pack(values))


def signal_data() -> cal.MultimodalData:
    return cal.datasets.make_synthetic(60, {"image": 6, "text": 5}, latent_dim=2, missing_rate=0.2, seed=0).data


def test_a_mode_of_sensible_size_is_kept_without_a_word() -> None:
    data = signal_data()
    result = cal.fit(hierarchical(half_normal), data, "map", num_starts=1)
    assert result.converged
    assert result.diagnostics["runaway_by_start"] == [()]
    assert 0.1 < float(result.model.values["tau"]) < 3


def test_what_ran_away_is_named_with_the_remedy_and_has_not_converged() -> None:
    noise = random_data(30)
    with pytest.warns(ReliabilityWarning, match="site 'tau': the joint density has no bound.*non-centred") as caught:
        result = cal.fit(hierarchical(half_normal), noise, "map", num_starts=1)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert not result.converged
    assert "no bound" in result.stop_reason
    assert result.diagnostics["runaway_by_start"] == [("tau",)]


@pytest.mark.slow
def test_laplace_refuses_what_is_no_mode() -> None:
    with pytest.raises(NumericalError, match=r"Laplace's method needs a mode\. site 'tau'"):
        cal.fit(hierarchical(half_normal), random_data(30), "svi", guide="laplace")


def test_a_mode_is_preferred_to_what_ran_away(monkeypatch: pytest.MonkeyPatch) -> None:
    data, model = signal_data(), hierarchical(half_normal)
    collapsed = cal.marginalize(model, data)
    start = collapsed.draw(1)
    values = collapsed.values(start)
    tiny = collapsed.pack({n: 1e-30 * v if n.startswith("w_") or n == "tau" else v for n, v in values.items()})
    monkeypatch.setattr("calmrl_prob.inference.parameters.map.starting_points", lambda *_: iter((start, tiny)))
    with pytest.warns(ReliabilityWarning, match="site 'tau'.*the mode kept is a local one"):
        result = cal.fit(model, data, "map")
    assert result.diagnostics["runaway_by_start"] == [(), ("tau",)]
    near, far = result.diagnostics["log_joint_by_start"]
    assert far > near  # higher, and yet no mode
    assert result.objective[-1] == near
    assert result.converged
    assert float(result.model.values["tau"]) > 0.1


def test_the_prior_and_the_coordinates_decide() -> None:
    data = signal_data()
    assert collapsed_at(hierarchical(half_normal), data, 1e-6) == ("tau",)
    assert collapsed_at(hierarchical(lambda: dist.HalfCauchy(ONE)), data, 1e-6) == ("tau",)
    assert collapsed_at(hierarchical(half_normal), data, 1.0) == ()
    assert collapsed_at(hierarchical(lambda: dist.InverseGamma(ONE, ONE)), data, 1e-3) == ()
    assert collapsed_at(hierarchical(half_normal, centred=False), data, 1e-6) == ()


def test_latents_that_ard_switches_off_have_a_bound() -> None:
    def model(data: cal.MultimodalData) -> None:
        loadings = ARDLoadings().sample_all(data.dims, 3)
        means = {name: pyro.sample(f"mu_{name}", normal(width)) for name, width in data.dims.items()}
        noise = {name: pyro.sample(f"sigma_{name}", dist.LogNormal(0 * ONE, ONE)) for name in data.dims}
        with pyro.plate("instances", len(data)):
            observe(pyro.sample("z", normal(3)), loadings, data, means, noise)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = cal.fit(model, signal_data(), "map")
    assert float(result.model.values["loadings_image_precision"].max()) > 100  # one is off
    assert result.diagnostics["runaway_by_start"] == [(), ()]


def test_priors_without_a_scale_in_common_have_nothing_to_run_away() -> None:
    collapsed = cal.marginalize(factor_model(), random_data(20))
    assert runaway_sites(collapsed, collapsed.draw(0)) == ()
