"""The gate of Pyro models: a rule that one route holds a model to, all do, for sites of any family."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import calmrl_prob as cal
from calmrl_prob.errors import ArgumentError, ModelError, ReliabilityWarning
from calmrl_prob.posteriors.instances import InstanceModel

N, D = 20, 3


def _data(*, features: bool = False) -> cal.MultimodalData:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(N, D, generator=generator, dtype=torch.float64)
    counts = torch.poisson(torch.full((N, D), 2.0).double(), generator=generator) + 1
    if features:
        counts[1, 0] = torch.nan
    counts[::2] = torch.nan
    return cal.MultimodalData({"image": image, "counts": counts}, missing="features" if features else "modalities")


Counts = Callable[[Tensor, cal.MultimodalData], None]


def _program(counts: Counts) -> Callable[[cal.MultimodalData], None]:
    def model(data: cal.MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
            x = dist.Normal(torch.tanh(z).expand(-1, D), 1.0).to_event(1)
            pyro.sample("image", x.mask(data.observed("image")), obs=data.filled("image"))
            counts(z, data)

    return model


def _rate(z: Tensor) -> Tensor:
    return (0.1 * z).exp().expand(-1, D)


FAMILIES = {
    "normal": lambda z: dist.Normal(_rate(z), 1.0),
    "poisson": lambda z: dist.Poisson(_rate(z)),
    "log_normal": lambda z: dist.LogNormal(_rate(z), 1.0),
    "student_t": lambda z: dist.StudentT(5.0, _rate(z), 1.0),
    "negative_binomial": lambda z: dist.NegativeBinomial(_rate(z), torch.full_like(_rate(z), 0.5)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_by_row_pass_and_forgotten_ones_do_not(family: str) -> None:
    def masked(z: Tensor, data: cal.MultimodalData) -> None:
        site = FAMILIES[family](z).to_event(1).mask(data.observed("counts"))
        pyro.sample("counts", site, obs=data.filled("counts", 1.0))

    def forgotten(z: Tensor, data: cal.MultimodalData) -> None:
        pyro.sample("counts", FAMILIES[family](z).to_event(1), obs=data.filled("counts", 1.0))

    InstanceModel(_program(masked), _data())
    with pytest.raises(ModelError, match=r"site 'counts': it is not masked where the modality is missing \(row 0"):
        InstanceModel(_program(forgotten), _data())


@pytest.mark.parametrize("family", FAMILIES)
def test_single_missing_features_need_a_mask_by_feature(family: str) -> None:
    def by_feature(z: Tensor, data: cal.MultimodalData) -> None:
        site = FAMILIES[family](z).mask(data.feature_mask("counts")).to_event(1)
        pyro.sample("counts", site, obs=data.filled("counts", 1.0))

    def by_row(z: Tensor, data: cal.MultimodalData) -> None:
        site = FAMILIES[family](z).to_event(1).mask(data.observed("counts"))
        pyro.sample("counts", site, obs=data.filled("counts", 1.0))

    InstanceModel(_program(by_feature), _data(features=True))
    with pytest.raises(ModelError, match=r"counts features that are missing \(row 1, say\); use \.mask\(data\.feature"):
        InstanceModel(_program(by_row), _data(features=True))


def test_masks_by_a_handler_count() -> None:
    def handled(z: Tensor, data: cal.MultimodalData) -> None:
        with pyro.poutine.mask(mask=data.observed("counts")):
            pyro.sample("counts", dist.Poisson(_rate(z)).to_event(1), obs=data.filled("counts"))

    InstanceModel(_program(handled), _data())


def _nan_under_a_mask(z: Tensor, data: cal.MultimodalData) -> None:
    pyro.sample("counts", dist.Normal(_rate(z), 1.0).to_event(1).mask(data.observed("counts")), obs=data["counts"])


def _transformed(z: Tensor, data: cal.MultimodalData) -> None:
    site = dist.Normal(_rate(z), 1.0).to_event(1).mask(data.observed("counts"))
    pyro.sample("counts", site, obs=data.filled("counts", 1.0).log())


def _by_chance(z: Tensor, data: cal.MultimodalData) -> None:
    site = dist.Poisson(_rate(z) * torch.rand(()).double()).to_event(1).mask(data.observed("counts"))
    pyro.sample("counts", site, obs=data.filled("counts"))


def _by_company(z: Tensor, data: cal.MultimodalData) -> None:
    site = dist.Poisson(_rate(z) * len(data)).to_event(1).mask(data.observed("counts"))
    pyro.sample("counts", site, obs=data.filled("counts"))


def _coupled(z: Tensor, data: cal.MultimodalData) -> None:
    site = dist.Poisson(_rate(z[:1] + z)).to_event(1).mask(data.observed("counts"))
    pyro.sample("counts", site, obs=data.filled("counts"))


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        (_nan_under_a_mask, r"observes NaN where .* pass obs=data\.filled\('counts'\)"),
        (_transformed, "observes other values than the data have"),
        (_by_chance, "differs from call to call"),
        (_by_company, "depends on which other instances"),
        (_coupled, "site 'counts': it depends on"),
    ],
)
@pytest.mark.parametrize("method", ["svi", "nuts"])
def test_approximate_routes_refuse_what_the_exact_ones_do(counts: Counts, said: str, method: str) -> None:
    with pytest.raises(ModelError, match=said):
        cal.posterior(_program(counts), _data(), method=method)


def test_fits_refuse_it_too() -> None:
    def forgotten(z: Tensor, data: cal.MultimodalData) -> None:
        pyro.sample("counts", dist.Poisson(_rate(z)).to_event(1), obs=data.filled("counts"))

    for method in ("auto", "svi"):
        with pytest.raises(ModelError, match="not masked where the modality is missing"):
            cal.fit(_program(forgotten), _data(), method=method)


def _masked(z: Tensor, data: cal.MultimodalData) -> None:
    site = dist.Normal(_rate(z), 1.0).to_event(1).mask(data.observed("counts"))
    pyro.sample("counts", site, obs=data.filled("counts"))


@pytest.mark.parametrize("method", ["svi", "nuts", "auto"])
def test_unknown_options_are_refused_by_every_route(method: str) -> None:
    with pytest.raises(ArgumentError, match="nonsense"):
        cal.posterior(_program(_masked), _data(), method=method, nonsense=1)


@pytest.mark.parametrize("method", ["auto", "svi"])
def test_fits_and_posteriors_leave_inference_mode(method: str) -> None:
    def model(data: cal.MultimodalData) -> None:
        w = pyro.param("w", lambda: torch.ones(D).double())
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z * w, 1.0).to_event(1), obs=data.filled("x"))

    settings = {"tolerance": 1e-2} if method == "auto" else {"max_iterations": 100, "tolerance": 0.1}
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    outside = cal.fit(model, cal.MultimodalData({"x": x}), method=method, **settings)
    with torch.inference_mode():
        data = cal.MultimodalData({"x": x}).subset(range(N))
        inside = cal.fit(model, data, method=method, **settings)
        imputed = cal.impute(inside, data).mean["x"]
    assert torch.equal(inside.model.parameter_values()["w"], outside.model.parameter_values()["w"])
    assert torch.equal(imputed, cal.impute(outside, data).mean["x"])
    assert not any(parameter.is_inference() for parameter in inside.model.parameters())


def test_a_model_made_in_inference_mode_is_refused() -> None:
    with torch.inference_mode():
        model = cal.SharedLatentModel({"x": D}, latent_dim=1)
    with pytest.raises(ArgumentError, match="made under"):
        cal.fit(model, cal.MultimodalData({"x": torch.randn(N, D, generator=torch.Generator().manual_seed(0))}))


def test_options_of_a_posterior_that_was_given_are_refused() -> None:
    data = cal.MultimodalData({"x": torch.randn(N, D, generator=torch.Generator().manual_seed(0))})
    model = cal.SharedLatentModel(data.dims, latent_dim=1)
    cal.fit(model, data)
    with pytest.raises(ArgumentError, match="nonsense"):
        cal.impute(cal.posterior(model, data), data, nonsense=1)


@pytest.mark.parametrize(
    ("family", "wrong"),
    [("Poisson", 1.5), ("Bernoulli", 2.0), ("Binomial", 2.5), ("Geometric", 0.5)],
)
def test_values_that_a_distribution_cannot_take_are_told_wherever_they_stand(family: str, wrong: float) -> None:
    def counts(z: Tensor, data: cal.MultimodalData) -> None:
        logits = z.expand(-1, D)
        site = {
            "Poisson": lambda: dist.Poisson(logits.exp()),
            "Bernoulli": lambda: dist.Bernoulli(logits=logits),
            "Binomial": lambda: dist.Binomial(9, logits=logits),
            "Geometric": lambda: dist.Geometric(logits=logits),
        }[family]()
        pyro.sample("counts", site.to_event(1).mask(data.observed("counts")), obs=data.filled("counts"))

    values = torch.ones(N, D, dtype=torch.float64)
    values[::2] = torch.nan
    InstanceModel(_program(counts), cal.MultimodalData({"image": _data()["image"], "counts": values}))
    values[17, 1] = wrong
    data = cal.MultimodalData({"image": _data()["image"], "counts": values})
    with pytest.warns(ReliabilityWarning, match=rf"'counts'.*, {family}, cannot take the value {wrong:g} of row 17, f"):
        InstanceModel(_program(counts), data)


def test_values_without_a_density_are_named() -> None:
    def counts(z: Tensor, data: cal.MultimodalData) -> None:
        site = dist.Poisson(z.exp().expand(-1, D)).to_event(1).mask(data.observed("counts"))
        pyro.sample("counts", site, obs=data.filled("counts"))

    data = cal.MultimodalData({"image": _data()["image"], "counts": torch.full((N, D), -3.0).double()})
    with (
        pytest.warns(ReliabilityWarning, match="cannot take the value -3 of row 0"),
        pytest.raises(ModelError, match=r"infinite, for its distribution, Poisson, cannot take -3\. Look for"),
    ):
        cal.posterior(_program(counts), data, method="svi", max_iterations=1)
