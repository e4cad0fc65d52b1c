"""EM with latents that serve chosen modalities, and with a prior of the joint covariance."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from torch import Tensor

import calmrl_prob as cal
from calmrl_prob.errors import ArgumentError, ArgumentTypeError
from calmrl_prob.linear_gaussian import (
    Evidence,
    LinearGaussian,
    ObservedBlocks,
    fit_em,
    log_evidence,
    posterior,
)
from calmrl_prob.linear_gaussian.em.maximization import maximize
from calmrl_prob.linear_gaussian.em.noise_model import NoiseModel
from calmrl_prob.linear_gaussian.em.parameters import Parameters
from calmrl_prob.linear_gaussian.em.pseudo_rows import PseudoRows, WithPseudoRows
from calmrl_prob.linear_gaussian.em.support import Support
from calmrl_prob.posteriors.gaussian import GaussianPosterior
from tests.cases.em_cases import DIMS, all_forms, laws, relative
from tests.cases.linear_gaussian_cases import random_blocks, random_mask, random_model

SHARED, PRIVATE = 2, 1


def inter_battery() -> Tensor:
    """Two latents for all of three modalities, and one for each alone."""
    support = torch.zeros(3, SHARED + 3 * PRIVATE, dtype=torch.bool)
    support[:, :SHARED] = True
    support[torch.arange(3), SHARED + torch.arange(3)] = True
    return support


def supported_model(seed: int, noise: float = 1.0) -> LinearGaussian:
    generator = torch.Generator().manual_seed(seed)
    support = inter_battery()

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return LinearGaussian(
        {name: normal(width, support.shape[1]) * support[m] for m, (name, width) in enumerate(DIMS.items())},
        {name: normal(width) for name, width in DIMS.items()},
        {name: torch.tensor(noise).double() for name in DIMS},
    )


# ---- support -------------------------------------------------------------------------------------------------------


@laws
@given(
    noise=st.sampled_from(["isotropic", "diagonal"]),
    expand=st.booleans(),
    prior=st.sampled_from([None, "normal"]),
    pseudo_rows=st.sampled_from([0.0, 7.5]),
    seed=st.integers(0, 1000),
)
def test_zeros_stay_and_the_objective_never_falls(
    noise: str, expand: bool, prior: str | None, pseudo_rows: float, seed: int
) -> None:
    blocks = random_blocks(supported_model(seed), 60, rate=0.4, seed=seed)
    result = fit_em(
        blocks, 5, noise=noise, expand=expand, loadings_prior=prior, pseudo_rows=pseudo_rows,
        support=inter_battery(), max_iterations=25,
    )  # fmt: skip
    loadings = torch.stack([part.abs().amax(0) for part in result.linear_gaussian.loadings.values()])
    assert torch.equal(loadings > 0, inter_battery())
    gains = result.objective.diff()
    assert bool((gains >= -1e-10 * result.objective[:-1].abs()).all())
    torch.testing.assert_close(result.log_likelihood[-1], log_evidence(result.linear_gaussian, blocks))


@pytest.mark.parametrize("noise", ["isotropic", "diagonal"])
def test_a_supported_fit_is_a_maximum_of_the_evidence_on_its_support(noise: str) -> None:
    blocks = random_blocks(supported_model(3), 300, rate=0.3)
    result = fit_em(blocks, 5, noise=noise, support=inter_battery(), tolerance=1e-14, max_iterations=5000)
    loadings = {name: part.clone().requires_grad_() for name, part in result.linear_gaussian.loadings.items()}
    lg = LinearGaussian(loadings, result.linear_gaussian.intercepts, result.linear_gaussian.noise_variance)
    gradients = torch.autograd.grad(Evidence(blocks, 5)(lg), list(loadings.values()))
    for served, gradient in zip(inter_battery(), gradients, strict=True):
        assert float(gradient[:, served].abs().max()) < 2e-2
        assert float(gradient[:, ~served].abs().max()) > 1  # the zeros are a constraint, and it holds


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_start_leads_where_the_truth_leads(seed: int) -> None:
    truth = supported_model(seed)
    blocks = random_blocks(truth, 500, rate=0.3, seed=seed)
    ours = fit_em(blocks, 5, support=inter_battery())
    from_truth = fit_em(blocks, 5, support=inter_battery(), start=truth)
    assert float(ours.log_likelihood[-1]) > float(from_truth.log_likelihood[-1]) - 0.1
    assert float(fit_em(blocks, 5).log_likelihood[-1]) > float(ours.log_likelihood[-1])  # fewer zeros fit more


def test_support_of_all_by_all_changes_nothing() -> None:
    blocks = random_blocks(random_model(DIMS, 3, seed=0, prior="standard"), 100, rate=0.3)
    plain, full = fit_em(blocks, 3), fit_em(blocks, 3, support=torch.ones(3, 3, dtype=torch.bool))
    torch.testing.assert_close(full.log_likelihood[-1], plain.log_likelihood[-1], rtol=1e-9, atol=0)


def test_all_forms_take_the_same_supported_step() -> None:
    model, rows = supported_model(1), 80
    unlimited = NoiseModel(False, torch.zeros(22).double(), 0.0, torch.ones(22).double())
    nexts = []
    for step, shift in all_forms(random_blocks(model, rows, rate=0.4), 5).values():
        added = WithPseudoRows(step, PseudoRows(5.5, 0.3 - shift, torch.linspace(0.5, 2, 22, dtype=torch.float64)))
        moments = added(Parameters.from_linear_gaussian(model, shift))
        support = Support.of(inter_battery(), step.shape, 5)
        following = maximize(added, moments, unlimited, expand=True, support=support)
        nexts.append((moments.log_prior, following.to_linear_gaussian(step.shape, shift)))
    for log_prior, other in nexts[1:]:
        assert log_prior == pytest.approx(nexts[0][0], rel=1e-12)
        for name in DIMS:
            assert relative(other.loadings[name], nexts[0][1].loadings[name]) < 1e-11
            assert relative(other.intercepts[name], nexts[0][1].intercepts[name]) < 1e-11
            assert relative(other.noise_variance[name], nexts[0][1].noise_variance[name]) < 1e-11


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"support": torch.ones(3, 5)}, ArgumentTypeError, "booleans"),
        ({"support": [[True] * 5] * 3}, ArgumentTypeError, "list"),
        ({"support": torch.ones(3, 4, dtype=torch.bool)}, ArgumentError, r"\(3, 5\)"),
        ({"support": torch.tensor([[True] * 4 + [False]] * 3)}, ArgumentError, "latent 4 serves no modality"),
        ({"support": torch.tensor([[True] * 5] * 2 + [[False] * 5])}, ArgumentError, "no latent serves modality 'c'"),
        ({"support": inter_battery(), "loadings_prior": "ard"}, ArgumentError, "ard"),
        ({"support": inter_battery(), "prior_covariance": torch.eye(5).double()}, ArgumentError, "prior_covariance"),
        ({"support": inter_battery(), "start": random_model(DIMS, 5, 0, prior="standard")}, ArgumentError, "'a' loads"),
        ({"pseudo_rows": -1.0}, ArgumentError, "pseudo_rows"),
        ({"pseudo_row_pooling": 1.5}, ArgumentError, "pseudo_row_pooling"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, object], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        fit_em(random_blocks(supported_model(0), 30, rate=0.2), 5, **options)  # type: ignore[arg-type]


# ---- pseudo-rows ---------------------------------------------------------------------------------------------------


def appended(blocks: ObservedBlocks, mean: Tensor, variance: Tensor) -> ObservedBlocks:
    """The data with 2 D complete rows of that mean and of those variances, uncorrelated: m +/- sqrt(D t_d) e_d."""
    width = len(mean)
    spread = torch.diag((width * variance).sqrt())
    rows = torch.cat([mean + spread, mean - spread]).split(list(blocks.dims.values()), dim=1)
    number = blocks.num_instances
    arrays = {}
    for (name, values), added in zip(blocks.values.items(), rows, strict=True):
        arrays[name] = torch.full((number + 2 * width, values.shape[1]), float("nan"), dtype=torch.float64)
        arrays[name][blocks.rows[name]] = values
        arrays[name][number:] = added
    present = torch.stack([~array[:, 0].isnan() for array in arrays.values()], dim=1)
    return ObservedBlocks.from_arrays({name: array.nan_to_num() for name, array in arrays.items()}, present)


@pytest.mark.parametrize("noise", ["isotropic", "diagonal"])
def test_pseudo_rows_are_rows(noise: str) -> None:
    """2 D of them, appended to the data, give the same evidence, objective and step."""
    model = random_model(DIMS, 3, seed=4, prior="standard")
    blocks = random_blocks(model, 50, rate=0.4)
    mean, variance = torch.linspace(-1, 1, 22, dtype=torch.float64), torch.linspace(0.5, 2, 22, dtype=torch.float64)
    unlimited = NoiseModel(noise == "isotropic", torch.zeros(22).double(), 0.0, torch.ones(22).double())
    step, shift = all_forms(blocks, 3)["modality"]
    added = WithPseudoRows(step, PseudoRows(44.0, mean - shift, variance))
    moments = added(Parameters.from_linear_gaussian(model, shift))
    longer = appended(blocks, mean, variance)
    theirs, their_shift = all_forms(longer, 3)["modality"]
    expected = theirs(Parameters.from_linear_gaussian(model, their_shift))
    assert moments.log_likelihood + moments.log_prior == pytest.approx(float(log_evidence(model, longer)), rel=1e-12)
    ours = maximize(added, moments, unlimited, expand=True).to_linear_gaussian(step.shape, shift)
    other = maximize(theirs, expected, unlimited, expand=True).to_linear_gaussian(step.shape, their_shift)
    for name in DIMS:
        assert relative(ours.loadings[name], other.loadings[name]) < 1e-11
        assert relative(ours.intercepts[name], other.intercepts[name]) < 1e-11
        assert relative(ours.noise_variance[name], other.noise_variance[name]) < 1e-11


def test_with_complete_rows_and_every_latent_prediction_is_ridge_regression() -> None:
    """Against scikit-learn: one modality from another, and from both others at once."""
    generator = torch.Generator().manual_seed(0)
    data = {name: torch.randn(40, 4, generator=generator, dtype=torch.float64) for name in ("a", "b", "c")}
    data["b"] = 0.5 * data["b"] + data["a"] + 3.0
    data["c"] = 2.0 * data["c"] - data["b"] @ torch.randn(4, 4, generator=generator, dtype=torch.float64)
    blocks = ObservedBlocks.from_arrays(data, torch.ones(40, 3, dtype=torch.bool))
    result = fit_em(blocks, 12, pseudo_rows=25.0, tolerance=1e-15, max_iterations=20_000)
    centred = {name: rows - rows.mean(0) for name, rows in data.items()}
    unit = {name: float(rows.square().mean().sqrt()) for name, rows in centred.items()}
    covariance = torch.cat(list(centred.values()), dim=1)
    variance = torch.cat([torch.full((4,), unit[name] ** 2, dtype=torch.float64) for name in data])
    expected = (covariance.mT @ covariance + 25.0 * torch.diag(variance)) / 65.0
    torch.testing.assert_close(result.linear_gaussian.joint()[1], expected, rtol=1e-4, atol=1e-4)
    for sources in (["a"], ["a", "c"]):
        scaled = torch.cat([centred[name] / unit[name] for name in sources], dim=1).numpy()
        ridge = Ridge(alpha=25.0).fit(scaled, data["b"].numpy()).predict(scaled)
        given = ObservedBlocks.from_arrays(data, torch.tensor([[name in sources for name in data]]).expand(40, -1))
        ours = GaussianPosterior(posterior(result.linear_gaussian, given)).predictive("b").mean
        torch.testing.assert_close(ours, torch.from_numpy(ridge), rtol=1e-3, atol=1e-3)


def test_without_pseudo_rows_nothing_changes_and_with_many_the_correlation_goes() -> None:
    blocks = random_blocks(random_model(DIMS, 3, seed=2, prior="standard"), 100, rate=0.3)
    plain, none = fit_em(blocks, 3), fit_em(blocks, 3, pseudo_rows=0.0, pseudo_row_pooling=0.2)
    assert torch.equal(plain.log_likelihood, none.log_likelihood)
    many = fit_em(blocks, 3, pseudo_rows=1e6, noise="diagonal", pseudo_row_pooling=0.0)
    covariance = many.linear_gaussian.joint()[1]
    scale = covariance.diagonal().sqrt()
    correlation = covariance / scale / scale[:, None] - torch.eye(22)
    assert float(correlation.abs().max()) < 1e-2
    own = torch.cat([rows.var(0, correction=0) for rows in blocks.values.values()])
    torch.testing.assert_close(covariance.diagonal(), own, rtol=1e-2, atol=0)


def test_options_reach_the_fit_of_a_model() -> None:
    lg = supported_model(0)
    _, rows = lg.sample(200, torch.Generator().manual_seed(0))
    present = random_mask(200, 3, 0.3, seed=0)
    data = cal.MultimodalData({name: part.numpy() for name, part in rows.items()}, observed_mask=present.numpy())
    model = cal.SharedLatentModel(data.dims, latent_dim=5)
    found = cal.fit(model, data, support=inter_battery(), pseudo_rows=20)
    assert found.converged
    assert bool((model.linear_gaussian().loadings["a"][:, ~inter_battery()[0]] == 0).all())
