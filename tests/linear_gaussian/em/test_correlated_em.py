"""EM with noise that is correlated within modalities: closed forms, forms of the E-step, laws, and what it is for."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from calmrl_prob.errors import ArgumentError
from calmrl_prob.linear_gaussian import (
    EMOptions,
    FeatureBlocks,
    LinearGaussian,
    ObservedBlocks,
    fit_em,
    fit_mixture_em,
    fit_student_t_em,
    log_marginal,
    posterior,
)
from calmrl_prob.linear_gaussian.em import scatter as scatter_module
from calmrl_prob.linear_gaussian.em.correlated import full_noise
from calmrl_prob.linear_gaussian.em.forms import prepare
from tests.cases.em_cases import DIMS
from tests.cases.linear_gaussian_cases import assert_close, random_blocks, random_mask, random_model, stacked

NOISES = ["full", "low_rank"]
FORMS = ("modality", "pattern", "statistics")


def private_structure(num_rows: int, widths: dict[str, int], seed: int = 0) -> dict[str, Tensor]:
    """8 latents that all modalities share and 8 of each modality's own, which have twice the variance."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    shared, out = normal(num_rows, 8), {}
    for name, width in widths.items():
        own = normal(num_rows, 8) @ normal(8, width) / 2
        out[name] = shared @ normal(8, width) / math.sqrt(8) + own + normal(num_rows, width)
    return out


def held_out(model: LinearGaussian, truth: dict[str, Tensor]) -> list[tuple[float, float]]:
    """For each modality R^2 of imputing it from the others, and how many of 90% intervals hold the truth."""
    found = []
    for m, name in enumerate(truth):
        mask = torch.ones(len(truth[name]), len(truth), dtype=torch.bool)
        mask[:, m] = False
        post = posterior(model, ObservedBlocks.from_arrays(truth, mask))
        error = truth[name] - post.mean @ model.loadings[name].mT - model.intercepts[name]
        variance = post.feature_variance(model.loadings[name])[post.pattern_index] + model.noise_variance[name]
        total = (truth[name] - truth[name].mean(0)).square().sum()
        covered = (error.abs() < 1.6449 * variance.sqrt()).double().mean()
        found.append((float(1 - error.square().sum() / total), float(covered)))
    return found


def test_noise_of_their_own_does_not_pass_for_a_link() -> None:
    """What design 2.10 measured: isotropic noise imputes worse than the mean here, correlated noise well."""
    widths = {"a": 100, "b": 80, "c": 40}
    arrays = private_structure(8000, widths)
    train = {name: values[:6000] for name, values in arrays.items()}
    test = {name: values[6000:] for name, values in arrays.items()}
    blocks = ObservedBlocks.from_arrays(train, random_mask(6000, 3, rate=0.45))
    isotropic = held_out(fit_em(blocks, 16).linear_gaussian, test)
    assert isotropic[0][0] < 0  # -0.8 here
    assert isotropic[0][1] < 0.8  # 64%
    best = held_out(fit_em(blocks, 32).linear_gaussian, test)  # all the latents that there are
    for noise in NOISES:
        found = held_out(fit_em(blocks, 8, noise=noise).linear_gaussian, test)
        for (share, covered), (of_all, _) in zip(found, best, strict=True):
            # 0.03 above that of four times the latents, which is 0.2; 2,000 rows know R^2 to 0.01
            assert share > of_all
            assert share > 0.15
            assert 0.88 < covered < 0.92  # 80,000 cells and more, in 2,000 correlated rows: 90% +- 0.4


def canonical(blocks: ObservedBlocks) -> tuple[Tensor, Tensor]:
    """Squared canonical correlations of two complete modalities, and their joint covariance."""
    rows, _ = stacked(blocks)
    covariance = torch.cov(rows.mT, correction=0)
    first = blocks.dims["a"]
    one, other = (torch.linalg.cholesky(part) for part in (covariance[:first, :first], covariance[first:, first:]))
    cross = torch.linalg.solve_triangular(one, covariance[:first, first:], upper=False)
    cross = torch.linalg.solve_triangular(other, cross.mT, upper=False)
    return torch.linalg.svdvals(cross).square(), covariance


@pytest.mark.parametrize("form", FORMS)
def test_complete_data_of_two_modalities_is_canonical_correlation_analysis(form: str) -> None:
    """The maximum is known in closed form (Bach & Jordan, 2005): only canonical correlations beyond K are lost."""
    model = random_model({"a": 7, "b": 6}, 2, noise="full", prior="standard")
    blocks = random_blocks(model, 300, rate=0.0)
    squared, covariance = canonical(blocks)
    log_determinant = torch.linalg.slogdet(covariance).logabsdet - (1 - squared[2:]).log().sum()
    expected = -0.5 * 300 * (13 * math.log(2 * math.pi) + float(log_determinant) + 13)
    result = fit_em(blocks, 2, noise="full", form=form, tolerance=1e-10)
    assert float(result.log_likelihood[-1]) == pytest.approx(expected, abs=1e-3)
    _, fitted = result.linear_gaussian.joint()
    assert_close(fitted[:7, :7], covariance[:7, :7], 1e-3)  # within modalities nothing is lost
    assert_close(fitted[7:, 7:], covariance[7:, 7:], 1e-3)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"expand": False, "anderson_memory": 0, "max_iterations": 150},  # one path for all forms, and a long one
    {"pseudo_rows": 20.0},
    {"pseudo_rows": 20.0, "pseudo_row_pooling": 0.0, "noise_pseudo_count": 3.0},
    {"loadings_prior": "ard"},
    {"loadings_prior": "normal", "loadings_precision": 5.0},
]


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_forms_agree_and_the_objective_never_falls(noise: str, options: dict[str, Any]) -> None:
    """One step is the same in all forms; a fit ends in the same place, and its evidence is the posterior's own."""
    blocks = random_blocks(random_model(DIMS, 3, 1, noise="low_rank"), 200, rate=0.4, seed=1)
    start = fit_em(blocks, 3, noise=noise, max_iterations=2).linear_gaussian
    firsts, lasts = [], []
    for form in FORMS:
        settings = {"noise": noise, "form": form, "tolerance": 1e-8, **options}
        firsts.append(fit_em(blocks, 3, start=start, **{**settings, "max_iterations": 1}).linear_gaussian)
        result = fit_em(blocks, 3, start=start, **settings)
        assert bool((result.objective.diff() >= 0).all())
        evidence = float(log_marginal(result.linear_gaussian, blocks).sum())
        assert evidence == pytest.approx(float(result.log_likelihood[-1]), rel=1e-10)
        lasts.append(float(result.objective[-1]))
    for other in firsts[1:]:
        for one, same in zip(firsts[0].joint(), other.joint(), strict=True):
            assert_close(same, one, 1e-9)
    # 2,700 values, so that 1e-8 a value is 3e-5 in all; rounding has Anderson's guesses take other paths to the summit
    assert max(lasts) - min(lasts) < 0.02


@pytest.mark.parametrize("noise", NOISES)
def test_gradient_ascent_finds_no_more(noise: str) -> None:
    blocks = random_blocks(random_model({"a": 6, "b": 5, "c": 6}, 2, noise=noise), 150, rate=0.3)
    found = fit_em(blocks, 2, noise=noise, tolerance=1e-11).linear_gaussian
    names = list(found.dims)
    parts = [
        *(found.loadings[n] for n in names),
        *(found.intercepts[n] for n in names),
        *((found.noise_variance[n] - found.noise_factor[n].square().sum(1)).log() for n in names),
        *(found.noise_factor[n] for n in names),
    ]

    def evidence(values: list[Tensor]) -> Tensor:
        groups = [dict(zip(names, values[i : i + 3], strict=True)) for i in (0, 3, 6, 9)]
        loadings, intercepts, logs, factors = groups
        # below e^-14 a feature's own variance is lost beside its factors': a line search may ask for that
        variance = {n: logs[n].clamp(min=-14).exp() + factors[n].square().sum(1) for n in names}
        return log_marginal(LinearGaussian(loadings, intercepts, variance, None, None, factors), blocks).sum()

    values = [part.clone(memory_format=torch.contiguous_format).requires_grad_() for part in parts]
    before = float(evidence(values).detach())
    optimiser = torch.optim.LBFGS(values, max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = -evidence(values)
        loss.backward()
        return loss

    optimiser.step(closure)
    # the floor of the noise, 1e-4 of each feature's variance, is no limit to this ascent, and hardly one here
    assert float(evidence(values).detach()) - before < 0.05


@pytest.mark.parametrize("noise", NOISES)
def test_units_of_a_feature_do_not_matter(noise: str) -> None:
    blocks = random_blocks(random_model(DIMS, 2, 3, noise=noise), 300, rate=0.3)
    unit = torch.logspace(-4, 4, DIMS["a"], dtype=torch.float64)
    scaled = ObservedBlocks({**blocks.values, "a": blocks.values["a"] * unit}, blocks.observed_mask)
    settings = {"noise": noise, "form": "statistics", "max_iterations": 200, "anderson_memory": 0}
    one, other = (fit_em(data, 2, **settings) for data in (blocks, scaled))
    change = float(len(blocks.values["a"]) * unit.log().sum())  # 0: each unit goes with its inverse
    # the start and every step are the same in all units: rounding alone is left, 1e-10 and 1e-12 here
    assert float(other.log_likelihood[-1]) == pytest.approx(float(one.log_likelihood[-1]) - change, abs=1e-5)
    back = other.linear_gaussian.noise_variance["a"] / unit.square()
    assert_close(back, one.linear_gaussian.noise_variance["a"], 1e-7)


def test_a_full_covariance_is_no_lower_than_its_floor() -> None:
    """Eigenvalues in units of the floor are raised to 1, the others stay: the constrained maximum of the likelihood."""
    root = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    floor = torch.tensor([1e-3, 1e-2, 1e-1, 1.0, 0.5]).double()
    low = root @ root.mT  # of rank 3
    found = full_noise(low, floor)
    assert torch.equal(found.specific, floor)
    unit = floor.sqrt()
    values = torch.linalg.eigvalsh(found.covariance() / unit[:, None] / unit)
    expected = torch.linalg.eigvalsh(low / unit[:, None] / unit).clamp(min=1)
    assert_close(values, expected)
    high = low + 2 * torch.diag(floor)
    assert_close(full_noise(high, floor).covariance(), high)


def test_wide_modalities_stay_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Low-rank noise of 5,000 features and 40 rows makes no matrix of 5,000 x 5,000."""
    arrays = private_structure(40, {"wide": 5000, "narrow": 30})
    blocks = ObservedBlocks.from_arrays(arrays, torch.ones(40, 2).bool())

    def refuse(self: object) -> Tensor:
        raise AssertionError(f"{self} was made")

    monkeypatch.setattr(scatter_module.Scatter, "dense", refuse)
    result = fit_em(blocks, 2, noise="low_rank", noise_rank=3, max_iterations=5)
    scatters = prepare(blocks, 2).scatters(dense=False)
    assert [isinstance(scatter, scatter_module._Matrix) for scatter in scatters] == [False, True]
    assert result.linear_gaussian.noise_factor["wide"].shape == (5000, 3)
    assert bool((result.objective.diff() >= 0).all())


def test_pseudo_rows_make_full_noise_of_few_rows_possible() -> None:
    """Complete rows and K large enough leave the covariance free: its maximum is known (``pseudo_rows.py``)."""
    blocks = random_blocks(random_model({"a": 9, "b": 8}, 3), 12, rate=0.0)
    with pytest.raises(ArgumentError, match=r"noise: 'full' .* 'b' has 6 rows and 8 features.*low_rank.*pseudo_rows=4"):
        fit_em(random_blocks(random_model({"b": 8}, 3), 6, rate=0.0), 2, noise="full")
    found = fit_em(blocks, 8, noise="full", pseudo_rows=30.0, pseudo_row_pooling=0.0, tolerance=1e-10)
    rows, _ = stacked(blocks)
    covariance = torch.cov(rows.mT, correction=0)
    expected = (12 * covariance + 30 * covariance.diagonal().diag()) / 42
    _, fitted = found.linear_gaussian.joint()
    assert_close(fitted, expected, 1e-3)


@pytest.mark.parametrize("noise", NOISES)
def test_hard_data_are_fitted_all_the_same(noise: str) -> None:
    """Few rows, as many latents as features, equal features, single precision far from zero, narrow modalities."""
    few = random_blocks(random_model(DIMS, 3), 8, rate=0.4)
    equal = random_blocks(random_model(DIMS, 3), 60, rate=0.3)
    equal.values["a"][:, 1] = equal.values["a"][:, 0]
    far = random_blocks(random_model(DIMS, 3), 200, rate=0.3)
    far.values = {name: (values + 1e3).float() for name, values in far.values.items()}
    narrow = random_blocks(random_model({"a": 1, "b": 2, "c": 1}, 1), 50, rate=0.2)
    cases: list[tuple[ObservedBlocks, int, dict[str, Any]]] = [
        (few, 3, {"pseudo_rows": 5.0}),
        (few, 22, {"pseudo_rows": 10.0}),
        (equal, 3, {}),
        (far, 3, {}),
        (narrow, 1, {}),
        (random_blocks(random_model({"x": 8}, 2), 100, rate=0.0), 2, {}),
    ]
    for blocks, latent_dim, options in cases:
        for form in FORMS:
            found = fit_em(blocks, latent_dim, noise=noise, form=form, max_iterations=40, **options)
            assert bool((found.objective.diff() >= 0).all())
            evidence = float(log_marginal(found.linear_gaussian, blocks).sum())
            # float32 data enter products in their own type: 6e-8 of a sum of squares of a few times the evidence
            assert evidence == pytest.approx(float(found.log_likelihood[-1]), rel=1e-8 if blocks is not far else 1e-5)


def test_starts_of_other_forms_are_taken() -> None:
    blocks = random_blocks(random_model(DIMS, 2, noise="low_rank"), 200, rate=0.3)
    fits = {noise: fit_em(blocks, 2, noise=noise) for noise in ("diagonal", "full", "low_rank")}
    for noise in fits:
        for start in fits.values():
            again = fit_em(blocks, 2, noise=noise, start=start.linear_gaussian, max_iterations=20)
            assert bool((again.objective.diff() >= 0).all())
        same = fit_em(blocks, 2, noise=noise, start=fits[noise].linear_gaussian, max_iterations=0)
        assert float(same.log_likelihood[0]) == pytest.approx(float(fits[noise].log_likelihood[-1]), rel=1e-10)
    low = fit_em(blocks, 2, noise="low_rank", noise_rank={"a": 1, "b": 0, "c": 2}).linear_gaussian
    assert [low.noise_factor[name].shape[1] for name in DIMS] == [1, 0, 2]
    assert low.correlated_noise("b") is None


def test_what_is_refused() -> None:
    blocks = random_blocks(random_model(DIMS, 2), 60, rate=0.3)
    rows, present = stacked(blocks)
    with pytest.raises(ArgumentError, match=r"noise: where single features are missing, .*noise='diagonal'"):
        fit_em(FeatureBlocks(DIMS, rows, present), 2, noise="full")
    with pytest.raises(ArgumentError, match="noise_rank: it belongs to noise='low_rank'"):
        EMOptions(noise="full", noise_rank=3)
    with pytest.raises(ArgumentError, match="noise_rank: of modality 'b' expected a whole number from 0 to 6"):
        fit_em(blocks, 2, noise="low_rank", noise_rank=7)
    with pytest.raises(ArgumentError, match="noise_rank: expected a rank for each of"):
        fit_em(blocks, 2, noise="low_rank", noise_rank={"a": 1})
    with pytest.raises(ArgumentError, match="support: expected noise 'isotropic' or 'diagonal' beside it, got 'full'"):
        fit_em(blocks, 2, noise="full", support=torch.ones(3, 2).bool())
    start = fit_em(blocks, 2, noise="diagonal").linear_gaussian
    with pytest.raises(ArgumentError, match="noise: of this family expected 'isotropic' or 'diagonal', got 'full'"):
        fit_student_t_em(blocks, 2, noise="full")
    with pytest.raises(ArgumentError, match="noise: of this family"):
        fit_mixture_em(blocks, start, noise="low_rank")
