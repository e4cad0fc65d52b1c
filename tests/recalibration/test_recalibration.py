"""Recalibration: conformal quantiles against plain counting, coverage that is promised, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import t as student

import calmrl_prob as cal
from calmrl_prob import MultimodalData, masked_validation, recalibrate
from calmrl_prob.datasets import make_synthetic
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, DataError, ReliabilityWarning
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.posteriors.rescaled import Rescaled
from calmrl_prob.recalibration.conformal import upper_end
from calmrl_prob.recalibration.scores import SortedScores, needed_instances

DIMS = {"a": 5, "b": 4, "c": 3}


def heavy(seed: int, num_instances: int) -> tuple[LinearGaussian, MultimodalData]:
    """A model whose noise is three times too small for the data, which are Student-t besides."""
    made = make_synthetic(num_instances, DIMS, latent_dim=2, seed=seed)
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, loadings in made.truth.loadings.items():
        noise = student.rvs(3, size=(num_instances, len(loadings)), random_state=rng) * (0.5 / 3) ** 0.5
        arrays[name] = made.latents @ loadings.T + made.truth.intercepts[name] + torch.from_numpy(noise)
    lg = made.truth
    wrong = LinearGaussian(lg.loadings, lg.intercepts, {name: v / 9 for name, v in lg.noise_variance.items()})
    return wrong, MultimodalData(arrays)


# ---- quantiles -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_feature", [True, False])
def test_quantiles_equal_counting(by_feature: bool) -> None:
    rng = np.random.default_rng(0)
    scores, instances = rng.random((40, 3)), rng.integers(0, 15, 40)
    count = len(np.unique(instances))
    found = SortedScores.of(torch.from_numpy(scores), instances, by_feature, count)
    for level in (0.3, 0.5, 0.8, 0.93):
        lists = [scores[:, [d]] for d in range(3)] if by_feature else [scores]
        for number, values in enumerate(lists):
            for candidate in np.sort(values, axis=None):
                reached = np.mean([(values[instances == i] <= candidate).mean() for i in np.unique(instances)]) * count
                if reached >= level * (count + 1) - 1e-9:
                    break
            assert float(found.quantile(level)[number]) == candidate
    assert bool(found.quantile(0.99).isinf().all())  # 15 instances reach up to 15 / 16


def test_the_quantile_of_single_scores_is_the_split_conformal_one() -> None:
    scores = np.random.default_rng(1).random(99)
    found = SortedScores.of(torch.from_numpy(scores)[:, None], np.arange(99), True, 99)
    assert float(found.quantile(0.9)) == np.sort(scores)[90 - 1]  # ceil(0.9 * 100)-th least
    assert float(found.quantile(0.99)) == scores.max()
    assert (needed_instances(0.99), needed_instances(0.9), needed_instances(0.5)) == (99, 9, 1)


def test_ends_over_folds_are_the_order_statistics_of_the_jackknife_plus() -> None:
    rng = np.random.default_rng(2)
    folds = [rng.random(n) for n in (7, 6, 6)]
    scores = [SortedScores.of(torch.from_numpy(f)[:, None], np.arange(len(f)), True, 19) for f in folds]
    centre, scale = rng.normal(size=(3, 5, 1)), rng.random((3, 5, 1)) + 0.5
    for sign, level in ((1, 0.8), (-1, 0.8), (1, 0.5)):
        found = upper_end(scores, [sign * torch.from_numpy(c) for c in centre], list(torch.from_numpy(scale)), level)
        for n in range(5):
            values = np.concatenate(
                [sign * c[n, 0] + s[n, 0] * f for c, s, f in zip(centre, scale, folds, strict=True)]
            )
            k = int(np.ceil(level * 20 - 1e-9))
            assert float(found[n, 0]) == pytest.approx(np.sort(values)[k - 1], abs=1e-7)


# ---- what it promises ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["conformal", "scale"])
def test_intervals_of_a_wrong_model_are_put_right(method: str) -> None:
    model, data = heavy(0, 3000)
    held_out, new = data.split([1500, 1500], seed=0)
    before = masked_validation(model, new, num_draws=0).coverage([0.9])
    found = recalibrate(model, held_out, method)  # type: ignore[arg-type]
    after = masked_validation(model, new, num_draws=0, recalibrated=found).coverage([0.9], ("modality", "pattern"))
    assert (before["coverage"] < 0.75).all()
    off = (after["coverage"] - 0.9).abs() / after["coverage_se"]
    if method == "conformal":
        # the calibration rows' own sampling error besides, of about the same size
        assert (off < 6 * 2**0.5).all()
    else:
        assert (after["coverage"] > 0.9).all()  # a normal's 90% of the right variance holds more of a Student-t's
        squares = masked_validation(model, new, num_draws=0, recalibrated=found).summary()
        assert ((squares["z_square"] - 1).abs() < 6 * 2**0.5 * squares["z_square_se"]).all()


@pytest.mark.slow
def test_the_guarantee_holds_on_average_over_few_calibration_rows() -> None:
    """Coverage from q to q + 1 / (n + 1), over many draws of n = 19 calibration rows of a wrong model."""
    model, data = heavy(3, 60 * 20)
    inside = []
    for k in range(60):
        own = data.subset(slice(20 * k, 20 * k + 20))
        found = recalibrate(model, own.subset(slice(0, 19)), min_rows=10)
        new = own.subset([19])
        lower, upper = cal.impute(model, new.select(["a", "c"]), names=["b"], recalibrated=found).interval(0.9)["b"]
        inside.append(float(((lower <= new["b"]) & (new["b"] <= upper)).double().mean()))
    error = np.std(inside) / len(inside) ** 0.5
    assert 0.9 - 6 * error < np.mean(inside) < 0.95 + 6 * error


def test_each_pattern_is_put_right_apart() -> None:
    """A model whose variances are right for one pattern only."""
    made = make_synthetic(4000, DIMS, latent_dim=2, seed=1)
    lg = made.truth
    wrong = LinearGaussian(
        lg.loadings, lg.intercepts, {n: v / (9 if n == "a" else 1) for n, v in lg.noise_variance.items()}
    )
    held_out, new = made.complete.split([2000, 2000], seed=0)
    raw = masked_validation(wrong, new, names=["b"], num_draws=0).coverage([0.9], ("modality", "pattern"))
    assert raw["coverage"].max() - raw["coverage"].min() > 0.02
    found = recalibrate(wrong, held_out, names=["b"])
    assert set(found.groups["b"]) == {None, "a", "c", "a+c"}
    after = masked_validation(wrong, new, names=["b"], num_draws=0, recalibrated=found)
    table = after.coverage([0.9], ("modality", "pattern"))
    assert ((table["coverage"] - 0.9).abs() < 6 * 2**0.5 * table["coverage_se"]).all()
    pooled = recalibrate(wrong, held_out, names=["b"], min_rows=10_000)
    assert set(pooled.groups["b"]) == {None}


@pytest.mark.parametrize("method", ["cv", "cv+"])
def test_rows_of_the_fit_serve_by_cross_validation(method: str) -> None:
    made = make_synthetic(260, {"a": 12, "b": 10}, latent_dim=2, seed=2)
    train, new = made.complete.split([60, 200], seed=0)
    model = cal.SharedLatentModel(train.dims, 8)
    cal.fit(model, train, tolerance=1e-3)
    before = masked_validation(model, new, num_draws=0).coverage([0.9])
    found = recalibrate(model, train, method, folds=5, tolerance=1e-3)  # type: ignore[arg-type]
    after = masked_validation(model, new, num_draws=0, recalibrated=found).coverage([0.9])
    assert (before["coverage"] < 0.86).all()
    assert (after["coverage"] > 0.9 - 6 * after["coverage_se"]).all()
    assert (after["coverage"] < 0.99).all()
    kind = cal.impute(model, new.select(["a"]), names=["b"], recalibrated=found).predictive["b"]
    assert len(kind._folds) == (5 if method == "cv+" else 1)  # type: ignore[attr-defined]


def test_intervals_of_norms_hold_what_they_promise() -> None:
    model, data = heavy(4, 3000)
    held_out, new = data.split([1500, 1500], seed=0)
    found = recalibrate(model, held_out)
    imputed = cal.impute(model, new.select(["a"]), names=["b", "c"], recalibrated=found)
    for level in (0.5, 0.9):
        for name in ("b", "c"):
            lower, upper = imputed.norm_interval(level)[name]
            norm = new[name].norm(dim=1)
            inside = ((lower <= norm) & (norm <= upper)).double().mean()
            assert float(inside) == pytest.approx(level, abs=6 * (2 * level * (1 - level) / 1500) ** 0.5)
            assert bool((lower >= 0).all())


# ---- what else is recalibrated -------------------------------------------------------------------------------------


def test_means_stay_and_variances_draws_and_densities_agree() -> None:
    model, data = heavy(5, 600)
    found = recalibrate(model, data.subset(slice(0, 300)), "scale")
    new = data.subset(slice(300, 340)).select(["a", "b"])
    raw, put_right = cal.impute(model, new, names=["c"]), cal.impute(model, new, names=["c"], recalibrated=found)
    assert torch.equal(raw.mean["c"], put_right.mean["c"])
    factor = found.groups["c"]["a+b"].factor
    torch.testing.assert_close(put_right.variance["c"], raw.variance["c"] * factor)
    torch.testing.assert_close(put_right.latent_variance["c"] + put_right.noise_variance["c"], put_right.variance["c"])
    draws = put_right.sample(4000, seed=0)["c"]
    torch.testing.assert_close(draws.var(0), put_right.variance["c"], rtol=6 * (2 / 4000) ** 0.5, atol=0)
    correlation = torch.corrcoef(draws[:, 0].T) - torch.corrcoef(raw.sample(4000, seed=0)["c"][:, 0].T)
    assert float(correlation.abs().max()) < 1e-6  # drawn out feature by feature: what goes together stays so
    assert isinstance(put_right.predictive["c"], Rescaled)
    assert "recalibrated" in repr(put_right)


def test_the_joint_density_of_rescaled_imputations_is_that_of_their_draws() -> None:
    """Against a dense normal: covariance diag(sqrt f) C diag(sqrt f)."""
    model, data = heavy(6, 400)
    found = recalibrate(model, data.subset(slice(0, 300)), "scale")
    new = data.subset(slice(300, 400))
    part = masked_validation(model, new, "each", names=["b"], recalibrated=found, num_draws=0).parts[0]
    mean, covariance = model.joint(["a", "c", "b"])
    seen, own = slice(0, 8), slice(8, 12)
    gain = covariance[own, seen] @ torch.linalg.inv(covariance[seen, seen])
    root = found.groups["b"]["a+c"].factor.sqrt()
    conditional = (covariance[own, own] - gain @ covariance[seen, own]) * root[:, None] * root
    location = mean[own] + (torch.cat([new["a"], new["c"]], dim=1) - mean[seen]) @ gain.T
    dense = torch.distributions.MultivariateNormal(location, conditional)
    np.testing.assert_allclose(part.joint_log_density, dense.log_prob(new["b"]).numpy(), rtol=1e-8)
    deviation = new["b"] - location
    distance = (deviation @ torch.linalg.inv(conditional) * deviation).sum(1)
    np.testing.assert_allclose(part.mahalanobis, distance.numpy(), rtol=1e-7)


@pytest.mark.parametrize("method", ["conformal", "cv+"])
def test_conformal_distribution_functions_say_which_interval_holds_the_value(method: str) -> None:
    model, data = heavy(7, 400)
    options = {"folds": 3, "refit": lambda rows, number: model} if method == "cv+" else {}
    found = recalibrate(model, data.subset(slice(0, 300)), method, **options)  # type: ignore[arg-type]
    new = data.subset(slice(300, 400))
    predictive = cal.impute(model, new.select(["a"]), names=["b"], recalibrated=found).predictive["b"]
    level = 2 * (predictive.cdf(new["b"]) - 0.5).abs()
    for q in (0.31, 0.602, 0.9):
        low, high = predictive.quantile((1 - q) / 2), predictive.quantile((1 + q) / 2)
        inside = (low <= new["b"]) & (new["b"] <= high)
        assert torch.equal(inside, level < q)
    assert bool(predictive.crps(new["b"]).isfinite().all())


def test_true_stands_for_what_is_attached_to_the_model() -> None:
    made = make_synthetic(300, DIMS, latent_dim=2, seed=0)
    train, held_out = made.complete.split([200, 100], seed=0)
    model = cal.SharedLatentModel(train.dims, 2)
    result = cal.fit(model, train)
    with pytest.raises(ArgumentError, match="attach=True"):
        cal.impute(model, held_out, recalibrated=True)
    found = recalibrate(model, held_out, attach=True)
    for given in (model, result):
        assert cal.impute(given, held_out, recalibrated=True).recalibrated is found
    assert cal.impute(model, held_out).recalibrated is None
    cal.fit(model, train.subset(slice(0, 100)))
    with pytest.raises(ArgumentError, match="other parameters"):
        cal.impute(model, held_out, recalibrated=True)
    with pytest.raises(ArgumentError, match="attach"):
        recalibrate(made.truth, held_out, attach=True)


def test_incomplete_calibration_rows_and_new_patterns_have_a_group() -> None:
    made = make_synthetic(400, DIMS, latent_dim=2, missing_rate=0.4, seed=0)
    found = recalibrate(made.truth, made.data.subset(slice(0, 200)))
    imputed = cal.impute(made.truth, made.data.subset(slice(200, 400)), recalibrated=found)
    for name in DIMS:
        lower, upper = imputed.interval(0.9)[name]
        assert bool((lower < upper).all())
    table = found.table()
    assert table[table["pattern"].isna()]["modality"].tolist() == list(DIMS)
    assert (table["half_width_0.9"] > table["half_width_0.5"]).all()
    assert "n + 1" in found.guarantee


# ---- bad input -----------------------------------------------------------------------------------------------------


def test_too_few_rows_for_a_level_say_how_many_are_needed() -> None:
    model, data = heavy(8, 200)
    found = recalibrate(model, data.subset(slice(0, 30)), min_rows=20)
    imputed = cal.impute(model, data.subset(slice(100, 110)).select(["a"]), names=["b"], recalibrated=found)
    imputed.interval(0.95)["b"]
    with pytest.raises(ArgumentError, match=r"0.99 needs at least 99 .* 'b' \(seen from a\) has 30.*at most 0.968"):
        imputed.interval(0.99)["b"]
    with pytest.raises(ArgumentError, match="needs at least 99"):
        imputed.norm_interval(0.99)["b"]


def test_a_modality_that_was_never_observed_is_named() -> None:
    model, data = heavy(9, 100)
    found = recalibrate(model, data.select(["a", "b"]))
    with pytest.raises(DataError, match="modality 'c' was never hidden"):
        cal.impute(model, data.select(["a"]), recalibrated=found).interval(0.9)["c"]
    with pytest.raises((DataError, cal.CalmrlError), match="'c'"):
        recalibrate(model, data.select(["a", "b"]), names=["a", "c"])


def test_bad_input_is_refused_by_name() -> None:
    model, data = heavy(10, 100)
    plain = masked_validation(model, data, num_draws=0)
    folded = masked_validation(model, data, folds=2, refit=lambda rows, number: model, num_draws=0)
    found = recalibrate(model, plain)
    again = masked_validation(model, data, num_draws=0, recalibrated=found)
    other, _ = heavy(11, 10)
    for arguments, options, message in (
        ((model, plain, "mapie"), {}, "method"),
        ((model, plain, "cv+"), {}, "folds=5"),
        ((model, folded, "conformal"), {}, "folds"),
        ((model, again), {}, "recalibrated already"),
        ((other, plain), {}, "other parameters"),
        ((model, plain), {"seed": 1}, "masked_validation"),
        ((model, plain), {"min_rows": 0}, "min_rows"),
    ):
        with pytest.raises(ArgumentError, match=message):
            recalibrate(*arguments, **options)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="calibration"):
        recalibrate(model, None)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="recalibrated"):
        cal.impute(model, data, recalibrated="scale")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="other parameters"):
        cal.impute(other, data, recalibrated=found)
    with pytest.raises(ArgumentError, match="conformal"):
        cal.impute(model, data, recalibrated=recalibrate(model, plain, "scale")).norm_interval(0.9)["a"]
    with pytest.raises(ArgumentError, match="recalibrated="):
        cal.impute(model, data).norm_interval(0.9)


def test_small_patterns_that_err_much_more_are_told_of() -> None:
    made = make_synthetic(140, DIMS, latent_dim=2, seed=4)
    arrays = {name: made.complete[name].clone() for name in DIMS}
    arrays["a"][100:] += 5 * torch.randn(40, DIMS["a"], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.ones(140, 3, dtype=torch.bool)
    mask[:100, 2] = False  # only the 40 last rows show a beside both others
    data = MultimodalData(arrays, observed_mask=mask)
    told = r"min_rows=50 .* a from b\+c \(\d.\d times, 40 instances\).* a lower min_rows"
    with pytest.warns(ReliabilityWarning, match=told):
        few = recalibrate(made.truth, data)
    assert "b+c" not in few.groups["a"]
    own = recalibrate(made.truth, data, min_rows=40)  # warnings are errors here
    assert "b+c" in own.groups["a"]
    even = MultimodalData({name: made.complete[name] for name in DIMS}, observed_mask=mask)
    recalibrate(made.truth, even)


def test_a_fit_and_draws_about_it_are_not_recalibrated_by_each_other() -> None:
    made = make_synthetic(160, DIMS, latent_dim=2, seed=5)
    train, held_out = made.complete.split([100, 60], seed=0)
    fit = cal.fit(cal.SharedLatentModel(DIMS, latent_dim=2), train)
    draws = cal.parameter_draws(fit, train, num_draws=4, seed=0)
    for one, other in ((fit, draws), (draws, fit), (draws, cal.parameter_draws(fit, train, num_draws=4, seed=1))):
        found = recalibrate(one, held_out)
        cal.impute(one, held_out.select(["a"]), recalibrated=found)
        with pytest.raises(ArgumentError, match="other parameters, or draws of them"):
            cal.impute(other, held_out.select(["a"]), recalibrated=found)


@pytest.mark.parametrize(("count", "told"), [(1, "a \\(1, at most 50%\\)"), (3, "c \\(3, at most 75%\\)"), (9, None)])
def test_instances_that_no_usual_interval_can_be_made_of_are_told(count: int, told: str | None) -> None:
    wrong, data = heavy(0, count)
    if told is None:
        cal.impute(wrong, data, recalibrated=recalibrate(wrong, data)).interval(0.9)
        return
    with pytest.warns(ReliabilityWarning, match=f"90% intervals take 9 calibration instances.*{told}"):
        recalibration = recalibrate(wrong, data)
    with pytest.raises(ArgumentError, match="needs at least 9 calibration instances"):
        cal.impute(wrong, data, recalibrated=recalibration).interval(0.9)["a"]
