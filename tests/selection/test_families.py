"""Families of latents beyond the normal one: a mixture is found where there is one, and refusals are said."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import calmrl_prob as cal
from calmrl_prob.errors import ArgumentError
from calmrl_prob.linear_gaussian import fit_em
from calmrl_prob.priors import MixturePrior
from calmrl_prob.selection import FoldedStatistics
from calmrl_prob.selection.families import sums_of_predictives
from calmrl_prob.selection.folds import RowFold
from calmrl_prob.selection.scores import score_fold
from tests.cases.selection_cases import incomplete

DIMS = {"a": 6, "b": 5, "c": 4}
ALL = ("normal", "student_t", "mixture")


def clustered(number: int = 300, seed: int = 0, missing: float = 0.3, clusters: bool = True) -> cal.MultimodalData:
    """Three tight clusters of two latents under noise that hides which: the best imputation is far from linear."""
    generator, weights = np.random.default_rng(seed), np.random.default_rng(7)
    centres = np.array([[-4, 0], [4, 0], [0, 5]])[generator.integers(3, size=number)]
    latents = centres + 0.3 * generator.normal(size=(number, 2)) if clusters else 3 * generator.normal(size=(number, 2))
    values = {
        name: latents @ weights.normal(size=(2, width)) + 4 * generator.normal(size=(number, width))
        for name, width in DIMS.items()
    }
    return incomplete(values, missing, generator)


@pytest.fixture(scope="module")
def data() -> cal.MultimodalData:
    return clustered()


@pytest.fixture(scope="module")
def normal(data: cal.MultimodalData) -> cal.FitResult:
    return cal.fit(cal.SharedLatentModel(DIMS), data)


@pytest.fixture(scope="module")
def fit(data: cal.MultimodalData) -> cal.FitResult:
    return cal.fit(cal.SharedLatentModel(DIMS), data, families=ALL)


def test_a_mixture_is_taken_where_there_is_one(fit: cal.FitResult) -> None:
    table = fit.choice.table
    assert fit.choice.family == "mixture"
    assert isinstance(fit.model.prior, MixturePrior)
    assert fit.model.prior.num_components == fit.choice.setting.num_components
    assert fit.method == "mixture em"
    assert set(table["family"]) == set(ALL)
    assert table[table["chosen"]]["family"].tolist() == ["mixture"]
    assert fit.choice.not_tried == ""
    assert f"mixture of {fit.choice.setting.num_components} normals" in repr(fit.choice)


def test_it_imputes_new_rows_better_and_its_intervals_hold(fit: cal.FitResult, normal: cal.FitResult) -> None:
    test = clustered(2000, seed=1, missing=0.0)
    for name in DIMS:
        seen = test.select([other for other in DIMS if other != name])
        truth, spread = test[name], (test[name] - test[name].mean(0)).square().sum()
        one, other = (cal.impute(found, seen, names=[name]) for found in (fit, normal))
        better = float(((truth - other.mean[name]).square().sum() - (truth - one.mean[name]).square().sum()) / spread)
        assert better > 0.01  # 0.04 to 0.08 of R^2
        low, high = one.interval(0.9)[name]
        # of 70 to 150 held-out rows of this pattern: three standard errors of their 90% quantile
        assert abs(float(((low <= truth) & (truth <= high)).double().mean()) - 0.9) < 0.08


def test_what_the_default_chooses_stays(fit: cal.FitResult, normal: cal.FitResult) -> None:
    tried = fit.choice.table[fit.choice.table["family"] == "normal"]
    drop = ["seconds", "chosen", "behind", "behind_error"]
    assert tried.drop(columns=drop).equals(normal.choice.table.drop(columns=drop))
    assert normal.choice.family == "normal"
    assert set(normal.choice.table["family"]) == {"normal"}


def test_normal_latents_keep_the_normal_prior() -> None:
    data = clustered(200, clusters=False)
    one, other = (
        cal.fit(cal.SharedLatentModel(DIMS, 2), data, shrinkage="held-out", families=kinds)
        for kinds in (("normal", "mixture"), ALL[:1])
    )
    assert one.choice.setting == other.choice.setting
    assert torch.equal(one.linear_gaussian().loadings["a"], other.linear_gaussian().loadings["a"])


def test_units_of_the_features_do_not_matter(data: cal.MultimodalData) -> None:
    factor = torch.tensor([1e6, 1, 1, 1, 1, 1e-3], dtype=torch.float64)
    scaled = cal.MultimodalData({"a": data["a"] * factor, "b": data["b"], "c": data["c"]})
    kinds = ("normal", "mixture")
    asked = {"families": kinds, "shrinkage": "held-out"}
    one = cal.fit(cal.SharedLatentModel(DIMS, 2, "diagonal"), data, scale="feature", **asked)  # type: ignore[arg-type]
    other = cal.fit(cal.SharedLatentModel(DIMS, 2, "diagonal"), scaled, **asked)  # type: ignore[arg-type]
    assert other.choice.scale == "feature"
    assert other.choice.setting == one.choice.setting
    assert other.choice.family == "mixture"
    seen = data.subset(data.rows_with("b")).select(["b"])
    a, b = (cal.impute(found, seen, names=["a"]).mean["a"] for found in (one, other))
    torch.testing.assert_close(b / factor, a, rtol=1e-4, atol=1e-4)


def test_of_a_normal_model_the_log_score_is_that_of_its_squared_errors() -> None:
    train, held_out = clustered(200), clustered(100, seed=3)
    fold = RowFold(train, held_out)
    lg = fit_em(fold.train, 2).linear_gaussian
    plain, density = score_fold(fold.sums(lg), fold), score_fold(sums_of_predictives(fold, lg), fold)  # type: ignore[arg-type]
    for key in ("r2", "log_score", "calibration"):
        for name in DIMS:
            assert getattr(density, key)[name] == pytest.approx(getattr(plain, key)[name], abs=1e-9)
    assert density.value == pytest.approx(plain.value, abs=1e-9)


def test_what_cannot_be_offered_is_said(data: cal.MultimodalData) -> None:
    model = cal.SharedLatentModel(DIMS)
    small = data.subset(slice(0, 120))
    statistics = cal.fit(model, FoldedStatistics.of(small), families=ALL)
    assert statistics.choice.not_tried == "student_t, mixture: they need rows, and there are statistics alone"
    values = {name: small[name].clone() for name in DIMS}
    values["a"][small.observed("a").nonzero()[0, 0], 0] = torch.nan
    features = cal.MultimodalData(values, missing="features", empty="drop")
    partial = cal.fit(model, features, families=("normal", "mixture"))
    assert "mixture: they need whole modalities" in partial.choice.not_tried
    given = cal.fit(model, small, families=ALL, pseudo_rows=20.0)
    assert "no pseudo_rows" in given.choice.not_tried
    ranked = cal.fit(model, small, families=ALL, criterion="retrieval")
    assert "retrieval" in ranked.choice.not_tried
    for found in (statistics, partial, given, ranked):
        assert set(found.choice.table["family"]) == {"normal"}


def test_a_budget_keeps_what_was_tried(data: cal.MultimodalData, monkeypatch: pytest.MonkeyPatch) -> None:
    from calmrl_prob.selection import families

    begun = families._try

    def spent_after_the_first(search, setting, reason, trains):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
        found = begun(search, setting, reason, trains)
        search.deadline = 0.0
        return found

    monkeypatch.setattr(families, "_try", spent_after_the_first)
    found = cal.fit(cal.SharedLatentModel(DIMS, 2), data, families=ALL, shrinkage="held-out")
    assert "the budget was spent before all of mixture of 2, mixture of 3, mixture of 4 were" in found.choice.not_tried
    assert set(found.choice.table["family"]) == {"normal", "student_t"}


@pytest.mark.parametrize("families", [("mixture",), ("normal", "cauchy"), "mixture", ()])
def test_families_that_are_none_are_refused(data: cal.MultimodalData, families: object) -> None:
    with pytest.raises(ArgumentError, match=r"^families: expected some of"):
        cal.fit(cal.SharedLatentModel(DIMS), data, families=families)


def test_a_student_t_that_wins_is_the_models_prior() -> None:
    """Rows of very different size, all latents alike: the scale of a row is in what the others tell."""
    generator, weights = np.random.default_rng(5), np.random.default_rng(7)
    scale = generator.gamma(1.5, 1 / 1.5, size=(400, 1)) ** -0.5
    latents = scale * generator.normal(size=(400, 2))
    values = {
        name: latents @ weights.normal(size=(2, width)) + 1.5 * generator.normal(size=(400, width))
        for name, width in DIMS.items()
    }
    found = cal.fit(cal.SharedLatentModel(DIMS, 2), cal.MultimodalData(values), families=ALL[:2], shrinkage="held-out")
    table = found.choice.table
    gained = [table[table["family"] == family]["score"].max() for family in ALL[:2]]
    assert gained[1] > gained[0] + 0.002  # 0.0056
    assert found.model.prior.name == "student_t"
    assert found.method == "scale em"
    assert set(table["latent_dim"]) == {2}
