"""Held-out masking and its tables, against dense normal distributions, quadrature, brute force and plain loops."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import multivariate_normal, norm
from scipy.stats import t as student

import calmrl_prob as cal
from calmrl_prob import MultimodalData, masked_validation
from calmrl_prob.data.missingness import mcar
from calmrl_prob.datasets import make_synthetic
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, DataError, ReliabilityWarning
from calmrl_prob.evaluation.imputation.held_out import energy_score
from calmrl_prob.evaluation.imputation.masked_validation import MaskedValidation
from calmrl_prob.evaluation.imputation.masking import hidings
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.posteriors.predictive import MixturePredictive, NormalPredictive
from calmrl_prob.recalibration import Recalibration
from tests.cases.linear_gaussian_cases import random_mask, random_model

Scheme = str | Callable[..., torch.Tensor]
DIMS = {"a": 4, "b": 3, "c": 2}


def drawn(
    seed: int, num_instances: int = 40, rate: float = 0.3, noise: str = "diagonal"
) -> tuple[LinearGaussian, MultimodalData]:
    model = random_model(DIMS, 2, seed, noise=noise)
    _, arrays = model.sample(num_instances, torch.Generator().manual_seed(seed))
    return model, MultimodalData(arrays, observed_mask=random_mask(num_instances, 3, rate, seed))


@pytest.fixture(scope="module")
def well_specified() -> MaskedValidation:
    made = make_synthetic(1500, {"image": 6, "text": 4, "audio": 3}, latent_dim=2, seed=3)
    return masked_validation(made.truth, made.complete, num_draws=0)


# ---- schemes -------------------------------------------------------------------------------------------------------


def test_patterns_hides_every_cell_in_every_way() -> None:
    _, data = drawn(0)
    groups, hidden = hidings(data, "patterns", 1, 0)
    present = data.observed_mask.numpy()
    others = present.sum(1, keepdims=True) - 1
    np.testing.assert_array_equal(hidden, present * (2**others - 1))
    for group in groups:
        assert group.modality not in group.seen
        assert present[np.ix_(group.rows, [data.names.index(n) for n in (*group.seen, group.modality)])].all()
    assert len({(g.modality, g.seen) for g in groups}) == len(groups) == 9


def test_each_hides_every_cell_once_and_shows_all_the_others() -> None:
    _, data = drawn(1)
    groups, hidden = hidings(data, "each", 1, 0)
    present = data.observed_mask.numpy()
    np.testing.assert_array_equal(hidden, present & (present.sum(1, keepdims=True) > 1))
    for group in groups:
        assert ((present[group.rows].sum(1) - 1) == len(group.seen)).all()


@pytest.mark.parametrize("scheme", ["random", lambda data, seed: mcar(data, rate=0.3, seed=seed)])
def test_schemes_that_draw_repeat_by_their_seed_and_never_show_what_is_hidden(scheme: Scheme) -> None:
    _, data = drawn(2)
    groups, hidden = hidings(data, scheme, 4, 5)
    again, _ = hidings(data, scheme, 4, 5)
    other, _ = hidings(data, scheme, 4, 6)
    assert all((g.rows == h.rows).all() for g, h in zip(groups, again, strict=True))
    assert [g.rows.tolist() for g in groups] != [g.rows.tolist() for g in other]
    assert hidden.max() > 1  # several draws
    assert sum(len(g.rows) for g in groups) == hidden.sum()
    assert all(g.modality not in g.seen for g in groups)


def test_random_shows_one_to_all_but_one_modalities() -> None:
    data = MultimodalData({name: torch.ones(3000, 1) for name in "abcd"})
    groups, _ = hidings(data, "random", 1, 0)
    shown = np.zeros(3000, dtype=int)
    for group in groups:
        shown[group.rows] = len(group.seen)
    counts = np.bincount(shown, minlength=5)
    assert counts[0] == counts[4] == 0
    np.testing.assert_allclose(counts[1:4], 1000, atol=6 * (3000 * 2 / 9) ** 0.5)


# ---- joint figures against dense conditioning -----------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["diagonal", "full", "low_rank"])
@pytest.mark.parametrize("seed", range(3))
def test_joint_density_and_mahalanobis_equal_dense_conditioning(seed: int, noise: str) -> None:
    model, data = drawn(seed, noise=noise)
    mean, covariance = model.joint(list(DIMS))
    start = dict(zip(DIMS, np.cumsum([0, *DIMS.values()]), strict=False))
    place = {name: np.arange(start[name], start[name] + width) for name, width in DIMS.items()}
    m, S = mean.numpy(), covariance.numpy()
    for part in masked_validation(model, data, num_draws=0).parts:
        own, seen = place[part.modality], np.concatenate([place[name] for name in part.seen])
        x = np.concatenate([data[name].numpy()[part.rows] for name in part.seen], axis=1)
        gain = S[np.ix_(own, seen)] @ np.linalg.inv(S[np.ix_(seen, seen)])
        conditional = S[np.ix_(own, own)] - gain @ S[np.ix_(seen, own)]
        deviation = data[part.modality].numpy()[part.rows] - m[own] - (x - m[seen]) @ gain.T
        np.testing.assert_allclose(part.error, deviation, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(part.variance[0], np.diag(conditional), rtol=1e-8)
        expected = np.einsum("nd,de,ne->n", deviation, np.linalg.inv(conditional), deviation)
        np.testing.assert_allclose(part.mahalanobis, expected, rtol=1e-7)
        density = multivariate_normal(cov=conditional).logpdf(deviation)
        np.testing.assert_allclose(part.joint_log_density, density, rtol=1e-7, atol=1e-7)


def test_joint_density_of_correlated_features_is_not_the_sum_of_theirs() -> None:
    model, data = drawn(0)
    found = masked_validation(model, data, num_draws=0)
    alone = np.concatenate([part.predictive.log_density(part.truth).sum(1).numpy() for part in found.parts])
    joint = np.concatenate([part.joint_log_density for part in found.parts])
    assert np.abs(alone - joint).max() > 0.1


def test_energy_score_equals_all_pairs_of_many_draws() -> None:
    model, data = drawn(4, num_instances=6, rate=0.0)
    part = masked_validation(model, data, "each", num_draws=5000, names=["a"]).parts[0]
    mean, covariance = model.joint(list(DIMS))
    own, seen = slice(0, 4), slice(4, 9)
    m, S = mean.numpy(), covariance.numpy()
    gain = S[own, seen] @ np.linalg.inv(S[seen, seen])
    conditional = S[own, own] - gain @ S[seen, own]
    rng = np.random.default_rng(0)
    for row in range(6):
        x = np.concatenate([data["b"][row], data["c"][row]])
        location = m[own] + gain @ (x - m[seen])
        first, second = (rng.multivariate_normal(location, conditional, 5000) for _ in range(2))
        terms = np.linalg.norm(first - data["a"].numpy()[row], axis=1) - 0.5 * np.linalg.norm(first - second, axis=1)
        error = terms.std() * (2 / 5000) ** 0.5
        assert abs(terms.mean() - part.energy[row]) < 6 * error


def test_energy_score_of_one_feature_is_the_crps() -> None:
    draws = torch.randn(4000, 1, 1, generator=torch.Generator().manual_seed(0)).double()
    truth = torch.tensor([[0.7]]).double()
    crps = NormalPredictive(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1)).crps(truth)
    assert energy_score(iter(draws), truth)[0] == pytest.approx(float(crps), abs=6 * 1.2 / 4000**0.5)


# ---- predictives ----------------------------------------------------------------------------------------------------


def test_crps_and_cdf_of_mixtures_and_normals_equal_integrals() -> None:
    weight = torch.tensor([[0.3], [0.7]]).double()
    location = torch.tensor([[[-1.0, 0.0]], [[2.0, 0.5]]]).double()
    mixture = MixturePredictive(
        weight.log(), location, torch.zeros(2, 1, 2).double(), torch.tensor([[0.5, 1.0], [2.0, 0.1]]).double()
    )
    truth = torch.tensor([[0.4, -2.0]]).double()
    for feature in range(2):
        scale = torch.tensor([[0.5, 1.0], [2.0, 0.1]]).double()[:, feature].sqrt().numpy()

        def cdf(x: float, feature: int = feature, scale: np.ndarray = scale) -> float:
            return float(weight[:, 0].numpy() @ norm.cdf(x, location[:, 0, feature].numpy(), scale))

        x = float(truth[0, feature])
        exact = (
            quad(lambda u: cdf(u) ** 2, -30, x, limit=200)[0] + quad(lambda u: (1 - cdf(u)) ** 2, x, 30, limit=200)[0]
        )
        assert float(mixture.crps(truth)[0, feature]) == pytest.approx(exact, rel=2e-3)
        assert float(mixture.cdf(truth)[0, feature]) == pytest.approx(cdf(x), abs=1e-12)
    one = NormalPredictive(torch.zeros(1, 1).double(), torch.ones(1, 1).double(), torch.ones(1).double())
    single = MixturePredictive(
        torch.zeros(1, 1).double(),
        torch.zeros(1, 1, 1).double(),
        torch.ones(1, 1, 1).double(),
        torch.ones(1, 1).double(),
    )
    for value in (-3.0, 0.1, 1.5):
        x = torch.tensor([[value]]).double()
        assert float(single.crps(x)) == pytest.approx(float(one.crps(x)), rel=1e-3)


# ---- tables ---------------------------------------------------------------------------------------------------------


def test_coverage_is_nominal_for_every_pattern_and_pit_uniform_on_data_from_the_model(
    well_specified: MaskedValidation,
) -> None:
    table = well_specified.coverage([0.5, 0.8, 0.9, 0.95], by=("modality", "pattern"))
    assert len(table) == 9 * 4
    assert (((table["coverage"] - table["level"]).abs() / table["coverage_se"]) < 6).all()
    assert (well_specified.pit(by=("modality", "pattern"))["z"].abs() < 6).all()
    joint = well_specified.mahalanobis()
    assert (((joint["distance"] - 1).abs() / joint["distance_se"]) < 6).all()
    assert (joint["p_value"] > 1e-6).all()
    summary = well_specified.summary()
    assert (((summary["z_square"] - 1).abs() / summary["z_square_se"]) < 6).all()


def test_student_t_noise_is_shown_as_failing() -> None:
    """Noise of 3 degrees of freedom and of the variance that the model states: right in size, wrong in shape."""
    made = make_synthetic(1500, {"image": 6, "text": 4, "audio": 3}, latent_dim=2, seed=3)
    rng = np.random.default_rng(0)
    arrays = {}
    for name, loadings in made.truth.loadings.items():
        noise = student.rvs(3, size=(1500, len(loadings)), random_state=rng) * (0.5 / 3) ** 0.5
        arrays[name] = made.latents @ loadings.T + made.truth.intercepts[name] + torch.from_numpy(noise)
    found = masked_validation(made.truth, MultimodalData(arrays), num_draws=0)
    table = found.coverage([0.5, 0.8, 0.9, 0.95], by=("modality", "pattern"))
    off = ((table["coverage"] - table["level"]) / table["coverage_se"]).groupby(table["level"])
    assert off.min()[0.5] > 6  # too wide in the middle, every pattern
    assert off.min()[0.8] > 6
    assert (found.pit()["z"].abs() > 6).any()
    assert (found.mahalanobis()["p_value"] < 1e-6).all()


def test_figures_and_their_standard_errors_equal_plain_loops() -> None:
    model, data = drawn(5)
    found = masked_validation(model, data, num_draws=4)
    by_instance: dict[str, dict[int, list[np.ndarray]]] = {}
    for part in found.parts:
        for i, row in enumerate(part.rows):
            by_instance.setdefault(part.modality, {}).setdefault(int(row), []).append(part.error[i] ** 2)
    summary = found.summary().set_index("modality")
    for name, rows in by_instance.items():
        means = [np.mean(errors) for errors in rows.values()]
        assert summary.loc[name, "rmse"] == pytest.approx(np.mean(means) ** 0.5)
        se = np.std(means, ddof=1) / len(means) ** 0.5
        assert summary.loc[name, "rmse_se"] == pytest.approx(se / 2 / np.mean(means) ** 0.5)
        assert summary.loc[name, "num_cells"] == sum(map(len, rows.values()))
        features = found.summary(("modality", "feature")).set_index(["modality", "feature"])
        for d in range(DIMS[name]):
            means = [np.mean([error[d] for error in errors]) for errors in rows.values()]
            assert features.loc[(name, d), "rmse"] == pytest.approx(np.mean(means) ** 0.5)
    instances = found.summary(("modality", "instance")).set_index(["modality", "instance"])
    assert instances.loc[("a", 3), "rmse"] == pytest.approx(np.mean(by_instance["a"][3]) ** 0.5)
    assert not [name for name in instances if name.endswith("_se")]


def test_r2_is_one_less_squared_error_over_squared_distance_from_the_mean_of_the_rows_validated() -> None:
    model, data = drawn(5)
    found = masked_validation(model, data, num_draws=0)
    errors, distances = {}, {}
    for name in DIMS:
        hidden = {int(row) for part in found.parts if part.modality == name for row in part.rows}
        centre = data[name][sorted(hidden)].numpy().mean(axis=0)
        for row in hidden:
            parts = [(p, list(p.rows).index(row)) for p in found.parts if p.modality == name and row in p.rows]
            errors.setdefault(name, []).append(np.mean([p.error[i] ** 2 for p, i in parts], axis=0))
            distances.setdefault(name, []).append((data[name][row].numpy() - centre) ** 2)
    table = found.summary().set_index("modality")
    features = found.summary(("modality", "feature")).set_index(["modality", "feature"])
    for name in DIMS:
        assert table.loc[name, "sd"] == pytest.approx(np.mean(distances[name]) ** 0.5)
        assert table.loc[name, "R2"] == pytest.approx(1 - np.mean(errors[name]) / np.mean(distances[name]))
        error, distance = np.mean(errors[name], axis=0), np.mean(distances[name], axis=0)
        for d in range(DIMS[name]):
            assert features.loc[(name, d), "sd"] == pytest.approx(distance[d] ** 0.5)
            assert features.loc[(name, d), "R2"] == pytest.approx(1 - error[d] / distance[d])
    assert list(table.columns[2:7]) == ["rmse", "rmse_se", "sd", "R2", "R2_se"]
    assert not {"sd", "R2"} & set(found.summary(("modality", "instance")))


def test_r2_tells_the_truth_from_the_mean_whatever_the_units() -> None:
    model, data = drawn(7, num_instances=400, rate=0.0)
    scales = {"a": 1e3, "b": 1.0, "c": 1e-3}
    other = LinearGaussian(
        {name: scales[name] * model.loadings[name] for name in DIMS},
        {name: scales[name] * model.intercepts[name] for name in DIMS},
        {name: scales[name] ** 2 * model.noise_variance[name] for name in DIMS},
        model.prior_mean,
        model.prior_covariance,
    )
    scaled = MultimodalData({name: scales[name] * data[name] for name in DIMS})
    one, two = (masked_validation(m, d, "each", num_draws=0).summary() for m, d in ((model, data), (other, scaled)))
    np.testing.assert_allclose(one["R2"], two["R2"], rtol=1e-8)
    np.testing.assert_allclose(one["R2_se"], two["R2_se"], rtol=1e-8)
    np.testing.assert_allclose(two["sd"] / one["sd"], list(scales.values()), rtol=1e-8)
    assert (one["R2"] > 10 * one["R2_se"]).all()
    means = {n: model.intercepts[n] + model.loadings[n] @ model.prior_mean for n in DIMS}
    blind = LinearGaussian({n: 0 * model.loadings[n] for n in DIMS}, means, model.noise_variance)
    none = masked_validation(blind, data, "each", num_draws=0).summary()
    assert (none["R2"] <= 0).all()  # the true mean explains no more than the mean of the rows, which is nearest
    assert (none["R2"] > -0.1).all()  # and is near it: 1 / 400 is expected, 400 rows


def test_r2_has_the_standard_error_that_other_rows_show() -> None:
    model, _ = drawn(8)
    found = []
    for seed in range(60):
        _, arrays = model.sample(100, torch.Generator().manual_seed(seed))
        found.append(masked_validation(model, MultimodalData(arrays), "each", num_draws=0).summary())
    spread = np.std([table["R2"] for table in found], axis=0, ddof=1)
    stated = np.mean([table["R2_se"] for table in found], axis=0)
    assert (np.abs(np.log(spread / stated)) < 0.5).all()  # a standard deviation of 60 is known to 9%


def test_what_never_varies_has_no_r2() -> None:
    model, data = drawn(9, rate=0.0)
    data = MultimodalData({name: torch.ones_like(data[name]) if name == "c" else data[name] for name in DIMS})
    table = masked_validation(model, data, num_draws=0).summary().set_index("modality")
    assert table.loc["c", "sd"] == 0
    assert np.isnan(table.loc["c", ["R2", "R2_se"]].astype(float)).all()


def test_a_coverage_is_the_share_within_scipys_interval() -> None:
    model, data = drawn(6)
    found = masked_validation(model, data, "each", num_draws=0)
    inside = {}
    for part in found.parts:
        low, high = norm.interval(0.8, part.mean, part.variance**0.5)
        truth = part.truth.numpy()
        for row, share in zip(part.rows, ((low <= truth) & (truth <= high)).mean(1), strict=True):
            inside.setdefault(part.modality, []).append(share)
            assert row < 40
    table = found.coverage([0.8]).set_index("modality")
    for name, shares in inside.items():
        assert table.loc[name, "coverage"] == pytest.approx(np.mean(shares))
        assert table.loc[name, "coverage_se"] == pytest.approx(np.std(shares, ddof=1) / len(shares) ** 0.5)


def test_parts_of_the_variance_sum_to_it(well_specified: MaskedValidation) -> None:
    table = well_specified.summary(("modality", "pattern"))
    parts = table["latent_variance"] + table["noise_variance"] + table["parameter_variance"]
    np.testing.assert_allclose(parts, table["variance"], rtol=1e-12)
    assert (table["parameter_variance"] == 0).all()
    one = table[(table["modality"] == "image") & (table["pattern"] == "text")]["latent_variance"].item()
    both = table[(table["modality"] == "image") & (table["pattern"] == "text+audio")]["latent_variance"].item()
    assert both < one


def test_errors_follow_their_predicted_standard_deviations() -> None:
    model = random_model({"a": 6, "b": 5}, 2, 1)  # features of very different noise
    _, arrays = model.sample(3000, torch.Generator().manual_seed(0))
    table = masked_validation(model, MultimodalData(arrays), num_draws=0).error_by_sd(bins=4)
    assert (((table["rmse"] - table["predicted_sd"]).abs() / table["rmse_se"]) < 6).all()
    for _, rows in table.groupby("modality"):
        assert rows["rmse"].is_monotonic_increasing
        assert rows["rmse"].iloc[-1] > 1.2 * rows["rmse"].iloc[0]


def test_risk_coverage_and_its_area_equal_loops() -> None:
    model, data = drawn(7)
    found = masked_validation(model, data, num_draws=0, names=["a"])
    variance = np.concatenate([part.variance.mean(1) for part in found.parts])
    error = np.concatenate([(part.error**2).mean(1) for part in found.parts])
    sort = np.concatenate([np.full((variance == v).sum(), error[variance == v].mean()) for v in np.unique(variance)])
    risks = [sort[: k + 1].mean() for k in range(len(sort))]
    area = found.risk_coverage_area().iloc[0]
    assert area["area"] == pytest.approx(np.mean(risks))
    assert area["area_best"] <= area["area"]
    assert area["area_random"] == pytest.approx(error.mean())
    curve = found.risk_coverage(points=2)
    assert curve["risk"].tolist() == pytest.approx([risks[round(len(sort) / 2) - 1], risks[-1]])
    assert (curve["best"] <= curve["risk"] + 1e-12).all()


def test_standard_error_of_the_area_is_that_over_data_sets() -> None:
    model = random_model(DIMS, 2, 3)
    areas, errors = [], []
    for seed in range(60):
        _, arrays = model.sample(150, torch.Generator().manual_seed(seed))
        area = masked_validation(model, MultimodalData(arrays), num_draws=0, names=["a"]).risk_coverage_area().iloc[0]
        areas.append(area["area"])
        errors.append(area["area_se"])
    assert np.mean(errors) == pytest.approx(np.std(areas, ddof=1), rel=6 / (2 * 59) ** 0.5)


# ---- folds ----------------------------------------------------------------------------------------------------------


def test_folds_impute_each_instance_by_a_model_fitted_without_it() -> None:
    data = make_synthetic(60, {"a": 4, "b": 3}, latent_dim=2, missing_rate=0.2, seed=0).data
    model = cal.SharedLatentModel(data.dims, 2)
    cal.fit(model, data)
    before = model.state_dict()["loadings/a"].clone()
    found = masked_validation(model, data, folds=3, num_draws=0, seed=4)
    assert found.refitted
    assert len(found.models) == 3
    assert np.bincount(found.fold).tolist() == [20, 20, 20]
    assert torch.equal(model.state_dict()["loadings/a"], before)
    part = found.parts[0]
    own = cal.SharedLatentModel(data.dims, 2)
    cal.fit(own, data.subset(found.fold != part.fold))
    assert (found.fold[part.rows] == part.fold).all()
    again = cal.impute(own, data.subset(part.rows).select(part.seen), names=[part.modality]).mean[part.modality]
    np.testing.assert_allclose(part.mean, again.numpy(), rtol=1e-6, atol=1e-8)
    assert "refitted in 3 folds" in repr(found)


def test_a_fit_is_repeated_with_its_own_options() -> None:
    data = make_synthetic(40, {"a": 6, "b": 5}, latent_dim=2, seed=0).complete
    model = cal.SharedLatentModel(data.dims, 4)
    result = cal.fit(model, data, pseudo_rows=30, tolerance=1e-3)
    found = masked_validation(result, data, folds=2, num_draws=0)
    plain = masked_validation(model, data, folds=2, num_draws=0, pseudo_rows=30, tolerance=1e-3)
    pd.testing.assert_frame_equal(found.summary(), plain.summary())
    assert not found.summary().equals(masked_validation(model, data, folds=2, num_draws=0, tolerance=1e-3).summary())


def test_folds_fit_pyro_callables() -> None:
    data = make_synthetic(40, {"a": 4, "b": 3}, latent_dim=1, seed=0).complete

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
            for name in data.names:
                weights = pyro.param(f"w_{name}", lambda n=name: torch.ones(data.dims[n], 1).double())  # type: ignore[misc]
                noise = pyro.param(f"s_{name}", torch.ones(()).double(), constraint=dist.constraints.positive)
                features = dist.Normal(z @ weights.T, noise).to_event(1)
                pyro.sample(name, features.mask(data.observed(name)), obs=data.filled(name))

    found = masked_validation(model, data, folds=2, num_draws=0, tolerance=1e-3)
    assert (found.summary()["coverage"] > 0.6).all()
    assert {result.num_instances for result in found.models} == {20}
    assert found.models[0].model is not found.models[1].model


def test_training_rows_look_better_than_they_are_without_folds() -> None:
    data = make_synthetic(60, {"a": 20, "b": 20}, latent_dim=2, seed=1).complete
    model = cal.SharedLatentModel(data.dims, 12)
    with pytest.warns(ReliabilityWarning, match="maximum likelihood of 12 latents claims too much"):
        cal.fit(model, data, max_iterations=100, tolerance=1e-3)
    with pytest.warns(ReliabilityWarning, match="about 100% of these 60 instances are among those"):
        inside = masked_validation(model, data, num_draws=0).summary()["rmse"]
    outside = masked_validation(model, data, folds=5, num_draws=0, tolerance=1e-3).summary()["rmse"]
    assert (outside > 1.05 * inside).all()


def test_refit_is_the_users() -> None:
    model, data = drawn(8)
    seen: list[int] = []

    def refit(rows: MultimodalData, number: int) -> LinearGaussian:
        seen.append(len(rows))
        return model

    found = masked_validation(model, data, folds=4, refit=refit, num_draws=0)
    assert seen == [30] * 4
    whole = masked_validation(model, data, num_draws=0)
    pd.testing.assert_frame_equal(
        found.summary(("modality", "pattern")).sort_values(["modality", "pattern"], ignore_index=True),
        whole.summary(("modality", "pattern")).sort_values(["modality", "pattern"], ignore_index=True),
    )


# ---- bad input ------------------------------------------------------------------------------------------------------


def test_bad_input_is_refused_by_name() -> None:
    model, data = drawn(9)
    with pytest.raises(ArgumentError, match="scheme"):
        masked_validation(model, data, "all")
    with pytest.raises(ArgumentTypeError, match="scheme"):
        masked_validation(model, data, 3)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="scheme"):
        masked_validation(model, data, lambda data, seed: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(ArgumentTypeError, match="data"):
        masked_validation(model, {"a": 1})  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="folds"):
        masked_validation(model, data, folds=41)
    with pytest.raises(ArgumentError, match="folds"):
        masked_validation(model, data, tolerance=1e-3)
    with pytest.raises(ArgumentError, match="num_draws"):
        masked_validation(model, data, num_draws=1)
    alone = MultimodalData(
        {"a": torch.ones(3, 4), "b": torch.ones(3, 3)}, observed_mask=[[True, False]] * 2 + [[False, True]]
    )
    with pytest.raises(ArgumentError, match="no instance has two modalities"):
        masked_validation(model, alone)
    apart = MultimodalData(
        {"a": torch.ones(3, 4), "b": torch.ones(3, 3), "c": torch.ones(3, 2)},
        observed_mask=[[True, True, False]] * 2 + [[False, False, True]],
    )
    with pytest.raises(DataError, match=r"modality 'c'.*names="):
        masked_validation(model, apart)
    found = masked_validation(model, data, num_draws=0)
    for by in (("feature",), ("row",), ("modality", "modality")):
        with pytest.raises(ArgumentError, match="by"):
            found.summary(by)
    with pytest.raises(ArgumentError, match="level"):
        found.coverage([1.0])
    with pytest.raises(ArgumentError, match="by"):
        found.mahalanobis(by=("pattern",))


def test_levels_bins_and_keys_that_make_no_table_are_refused(well_specified: MaskedValidation) -> None:
    pd.testing.assert_frame_equal(well_specified.coverage(0.9), well_specified.coverage([0.9]))
    with pytest.raises(ArgumentError, match="levels: expected at least one"):
        well_specified.coverage([])
    with pytest.raises(ArgumentTypeError, match="level: expected a number"):
        well_specified.coverage("high")  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match=r"by: expected some of \['modality'"):
        well_specified.summary(3)  # type: ignore[arg-type]
    for table in (well_specified.pit, well_specified.error_by_sd):
        with pytest.raises(ArgumentError, match="bins: expected a whole number of at least 1"):
            table(bins=0)


def test_the_class_of_recalibrations_is_none() -> None:
    model, data = drawn(0)
    with pytest.raises(
        ArgumentTypeError, match=r"recalibrated: expected True, False or .* the class Recalibration itself"
    ):
        cal.impute(model, data, recalibrated=Recalibration)  # type: ignore[arg-type]
