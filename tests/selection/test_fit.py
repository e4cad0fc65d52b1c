"""The fit of a model that leaves its settings open: what it chooses, states, and refuses."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch

import calmrl_prob as cal
from calmrl_prob.errors import ArgumentError, ModelError, ReliabilityWarning, SchemaError
from calmrl_prob.linear_gaussian import SufficientStatistics
from calmrl_prob.selection import ChoiceOptions, FoldedStatistics, chosen_fit
from tests.cases.selection_cases import DIMS, private


@pytest.fixture(scope="module")
def data() -> cal.MultimodalData:
    return private()


@pytest.fixture(scope="module")
def fit(data: cal.MultimodalData) -> cal.FitResult:
    return cal.fit(cal.SharedLatentModel(DIMS), data)


def explained(model: Any, test: cal.MultimodalData) -> dict[str, float]:  # noqa: ANN401 - whatever impute takes
    found = {}
    for name in DIMS:
        imputed = cal.impute(model, test.select([other for other in DIMS if other != name]), names=[name])
        truth = test[name]
        found[name] = 1 - float((truth - imputed.mean[name]).square().sum() / (truth - truth.mean(0)).square().sum())
    return found


def test_imputations_are_better_than_the_mean_where_plain_likelihood_is_worse(fit: cal.FitResult) -> None:
    test = private(1000, seed=1, missing=0.0)
    plain = cal.fit(cal.SharedLatentModel(DIMS, 6), private(), shrinkage=None)
    chosen, likelihood = explained(fit, test), explained(plain, test)
    assert min(chosen.values()) > 0.1
    assert np.mean(list(chosen.values())) > np.mean(list(likelihood.values())) + 0.1


@pytest.mark.parametrize(("level", "room"), [(0.5, 0.08), (0.9, 0.045), (0.95, 0.035)])
def test_intervals_hold(fit: cal.FitResult, level: float, room: float) -> None:
    """Three standard errors of a quantile learned from 100 held-out rows of a pattern, 4 numbers in each to tell."""
    test = private(1000, seed=1, missing=0.0)
    for name in DIMS:
        others = [other for other in DIMS if other != name]
        for seen in (others, others[:1], others[1:]):
            low, high = cal.impute(fit, test.select(seen), names=[name]).interval(level)[name]
            held = float(((low <= test[name]) & (test[name] <= high)).double().mean())
            assert abs(held - level) < room


def test_the_table_says_what_was_tried_and_why(fit: cal.FitResult) -> None:
    table = fit.choice.table
    assert int(table["chosen"].sum()) == 1
    chosen = table[table["chosen"]].iloc[0]
    assert chosen["score"] > table["score"].max() - 2e-3  # of as good ones the smaller
    assert chosen["behind"] == 0
    assert (table["reason"].str.len() > 0).all()
    assert fit.choice.r2.keys() == DIMS.keys()
    assert f"K {fit.choice.latent_dim}" in repr(fit.choice)
    assert repr(fit.choice) in repr(fit)
    assert "\n" not in repr(fit.choice)
    assert fit.model.latent_dim == fit.choice.latent_dim


def test_a_choice_at_an_edge_goes_beyond_it() -> None:
    """Noise alone: the more shrinkage the better, far beyond the ladder."""
    generator = np.random.default_rng(0)
    noise = cal.MultimodalData({name: generator.normal(size=(90, width)) for name, width in DIMS.items()})
    with pytest.warns(ReliabilityWarning, match="no better than by their means"):
        found = cal.fit(cal.SharedLatentModel(DIMS), noise)
    table = found.choice.table
    assert table["pseudo_rows"].max() > 10 * 60 or bool(table[table["chosen"]]["ard"].iloc[0])


def test_the_same_seed_chooses_the_same(data: cal.MultimodalData, fit: cal.FitResult) -> None:
    again = cal.fit(cal.SharedLatentModel(DIMS), data)
    drop = ["seconds"]
    assert again.choice.table.drop(columns=drop).equals(fit.choice.table.drop(columns=drop))
    assert torch.equal(again.linear_gaussian().loadings["a"], fit.linear_gaussian().loadings["a"])


def test_statistics_choose_as_rows_do(data: cal.MultimodalData, fit: cal.FitResult) -> None:
    found = cal.fit(cal.SharedLatentModel(DIMS), FoldedStatistics.of(data))
    assert found.choice.setting == fit.choice.setting
    for key in ("score", "r2", "log_score"):  # fits of the search stop early, from starts that differ a little
        np.testing.assert_allclose(found.choice.table[key], fit.choice.table[key], rtol=0, atol=0.01)
    assert found.intervals.slopes == fit.intervals.slopes
    for name in DIMS:
        one, other = found.intervals.scales[name][None].factor, fit.intervals.scales[name][None].factor
        torch.testing.assert_close(one.mean(), other.mean(), rtol=0.05, atol=0.0)  # variances pooled over patterns
    imputed = cal.impute(found, data.subset(data.rows_with("a")).select(["a"]), names=["b"])
    assert imputed.interval(0.9)["b"][0].isfinite().all()


def test_statistics_of_all_rows_together_cannot_be_held_out(data: cal.MultimodalData) -> None:
    statistics = SufficientStatistics.from_blocks(data.blocks)
    with pytest.raises(ArgumentError, match="FoldedStatistics"):
        cal.fit(cal.SharedLatentModel(DIMS), statistics)
    with pytest.raises(ArgumentError, match="retrieval"):
        cal.fit(cal.SharedLatentModel(DIMS), FoldedStatistics.of(data), criterion="retrieval")
    with pytest.raises(SchemaError, match="in this order"):
        cal.fit(cal.SharedLatentModel({"a": 20}), FoldedStatistics.of(data))


def test_a_given_model_is_fitted_as_it_stands(data: cal.MultimodalData) -> None:
    from calmrl_prob.inference import fit as plain_fit

    one, other = cal.SharedLatentModel(DIMS, 3), cal.SharedLatentModel(DIMS, 3)
    found, plain = cal.fit(one, data), plain_fit(other, data)
    assert found.choice is None
    assert found.intervals is None
    assert one.noise == "isotropic"
    assert torch.equal(one.linear_gaussian().loadings["a"], other.linear_gaussian().loadings["a"])
    np.testing.assert_array_equal(found.log_likelihood, plain.log_likelihood)
    assert cal.impute(one, data).recalibrated is None


def test_what_is_given_is_not_chosen(data: cal.MultimodalData) -> None:
    shrunk = cal.fit(cal.SharedLatentModel(DIMS, 5), data, shrinkage="held-out")
    assert set(shrunk.choice.table["latent_dim"]) == {5}
    assert set(shrunk.choice.table["noise"]) == {"isotropic"}
    fixed = cal.fit(cal.SharedLatentModel(DIMS), data, pseudo_rows=50.0)
    assert set(fixed.choice.table["pseudo_rows"]) == {50.0}
    with pytest.warns(ReliabilityWarning, match="no better than by their means"):  # as likelihood does with few rows
        none = cal.fit(cal.SharedLatentModel(DIMS, noise="isotropic"), data.subset(slice(0, 60)), shrinkage=None)
    assert set(none.choice.table["pseudo_rows"]) == {0.0}
    diagonal = cal.fit(cal.SharedLatentModel(DIMS, noise="diagonal"), data.subset(slice(0, 150)))
    assert set(diagonal.choice.table["noise"]) == {"diagonal"}


def test_retrieval_as_criterion(data: cal.MultimodalData) -> None:
    found = cal.fit(cal.SharedLatentModel(DIMS), data, criterion="retrieval")
    assert found.choice.criterion == "retrieval"
    assert found.choice.table["score"].between(0, 1).all()


def test_a_budget_ends_the_search_and_says_so(data: cal.MultimodalData) -> None:
    with pytest.warns(ReliabilityWarning, match="budget"):
        none = cal.fit(cal.SharedLatentModel(DIMS), data, budget=1e-9)
    assert none.choice.fallback
    assert none.intervals is None
    assert explained(none, private(300, seed=2, missing=0.0))["a"] > 0


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"budget": -1.0}, "budget"),
        ({"criterion": "evidence"}, "criterion"),
        ({"scale": "log"}, "scale"),
        ({"folds": 1}, "folds"),
        ({"shrinkage": "yes"}, "shrinkage"),
        ({"method": "svi"}, "method"),
        ({"groups": [1, 2]}, "groups"),
        ({"groups": "person"}, r"groups: data has no covariate 'person'; it has \[\]"),
        ({"groups": lambda data: [1, 2]}, "groups: expected one for each"),
        ({"tolerence": 1e-3}, "options: .* did you mean 'tolerance'"),
        ({"batch": "donor"}, r"options: .* SharedLatentModel\(data\.dims, batch=\.\.\.\)"),
        ({"criteron": "retrieval"}, "options: .* did you mean 'criterion'"),
    ],
)
def test_options_that_do_not_serve_are_named(data: cal.MultimodalData, asked: dict[str, Any], named: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{named}"):
        cal.fit(cal.SharedLatentModel(DIMS), data, **asked)


def test_options_of_a_choice_where_nothing_is_open_are_refused(data: cal.MultimodalData) -> None:
    with pytest.raises(ArgumentError, match="nothing is open"):
        cal.fit(cal.SharedLatentModel(DIMS, 3), data, criterion="retrieval")
    with pytest.raises(ArgumentError, match="nothing is open"):
        cal.fit(cal.SharedLatentModel(DIMS, 3), data, choice=ChoiceOptions())


def test_an_open_model_has_no_parameters_until_it_is_fitted(data: cal.MultimodalData) -> None:
    model = cal.SharedLatentModel(DIMS)
    assert not model.settled
    for call in (model.linear_gaussian, lambda: model(3), lambda: cal.impute(model, data)):
        with pytest.raises(ModelError, match=r"cal\.fit"):
            call()
    cal.fit(model, data.subset(slice(0, 100)))
    assert model.settled
    latent_dim = model.latent_dim
    cal.fit(model, data.subset(slice(0, 12)))  # chosen anew
    assert model.latent_dim <= 11 or latent_dim <= 11


def no_pairs() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    values = {name: generator.normal(size=(40, width)) for name, width in DIMS.items()}
    for k, name in enumerate(DIMS):
        values[name][np.arange(40) % 3 != k] = np.nan
    return values


@pytest.mark.filterwarnings("ignore::calmrl_prob.errors.IdentifiabilityWarning")  # part of these data
@pytest.mark.parametrize("case", ["no pairs", "one modality", "five rows"])
def test_where_nothing_can_be_held_out_the_fit_says_so(case: str) -> None:
    values = no_pairs()
    if case == "one modality":
        values = {"a": np.random.default_rng(0).normal(size=(40, 20))}
    if case == "five rows":
        values = {name: np.random.default_rng(1).normal(size=(5, width)) for name, width in DIMS.items()}
    data = cal.MultimodalData(values)
    with pytest.warns(ReliabilityWarning, match="not chosen by held-out imputations"):
        found = cal.fit(cal.SharedLatentModel(data.dims), data)
    assert found.choice.fallback
    assert "not by held-out" in repr(found.choice)
    assert all(value.isfinite().all() for value in cal.impute(found, data).mean.values())


def test_rows_that_are_all_complete_and_constant_features() -> None:
    complete = private(200, missing=0.0)
    values = {name: complete[name].clone() for name in DIMS}
    values["b"][:, 3] = 7.0
    found = cal.fit(cal.SharedLatentModel(DIMS), cal.MultimodalData(values))
    imputed = cal.impute(found, cal.MultimodalData({"a": values["a"]}), names=["b"])
    torch.testing.assert_close(imputed.mean["b"][:, 3], torch.full((200,), 7.0).double(), rtol=0, atol=0.3)
    assert found.choice.r2["a"] > 0


def test_a_feature_in_other_units_changes_nothing(data: cal.MultimodalData) -> None:
    factor = torch.ones(20, dtype=torch.float64)
    factor[[2, 7]] = torch.tensor([1e6, 1e-3], dtype=torch.float64)
    scaled = cal.MultimodalData({"a": data["a"] * factor, "b": data["b"], "c": data["c"]})
    one = cal.fit(cal.SharedLatentModel(DIMS), data, scale="feature")
    other = cal.fit(cal.SharedLatentModel(DIMS), scaled)  # found out by itself
    assert other.choice.scale == "feature"
    assert other.choice.setting == one.choice.setting
    a, b = (cal.impute(found, data.subset(data.rows_with("b")).select(["b"]), names=["a"]) for found in (one, other))
    torch.testing.assert_close(a.mean["a"] * factor, b.mean["a"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(a.interval(0.9)["a"][1] * factor, b.interval(0.9)["a"][1], rtol=1e-4, atol=1e-4)


def test_single_features_may_be_missing(data: cal.MultimodalData) -> None:
    values = {name: data[name].clone() for name in DIMS}
    values["a"][torch.rand(values["a"].shape, generator=torch.Generator().manual_seed(0)) < 0.02] = torch.nan
    holed = cal.MultimodalData({**values}, missing="features")
    found = cal.fit(cal.SharedLatentModel(DIMS), holed)
    assert found.choice.r2["b"] > 0.1


def test_choice_and_intervals_can_be_copied_and_pickled(fit: cal.FitResult, data: cal.MultimodalData) -> None:
    seen = data.subset(data.rows_with("a")).select(["a"])
    expected = cal.impute(fit, seen, names=["b"]).interval(0.9)["b"][1]
    for copied in (copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))):
        other = cal.impute(fit.model, seen, names=["b"], recalibrated=copied(fit.intervals)).interval(0.9)["b"][1]
        torch.testing.assert_close(other, expected)
        assert repr(copied(fit.choice)) == repr(fit.choice)


def test_plain_likelihood_with_many_latents_for_the_rows_is_warned_of(data: cal.MultimodalData) -> None:
    with pytest.warns(ReliabilityWarning, match=r"\(K \+ 1\) / rows = "):
        cal.fit(cal.SharedLatentModel(DIMS, 12), data.subset(slice(0, 80)))


def test_intervals_are_used_by_default_and_not_for_other_parameters(
    fit: cal.FitResult, data: cal.MultimodalData
) -> None:
    seen = data.subset(data.rows_with("a")).select(["a"])
    assert cal.impute(fit, seen).recalibrated is not None
    assert cal.impute(fit.model, seen).recalibrated is not None
    assert cal.impute(fit, seen, recalibrated=False).recalibrated is None
    changed = copy.deepcopy(fit.model)
    with torch.no_grad():
        next(changed.parameters()).mul_(1.5)
    assert cal.impute(changed, seen).recalibrated is None
    with pytest.raises(ArgumentError, match="other parameters"):
        cal.impute(changed, seen, recalibrated=fit.intervals)


def test_refits_in_folds_keep_what_was_chosen(fit: cal.FitResult, data: cal.MultimodalData) -> None:
    found = cal.masked_validation(fit, data, "each", folds=2, num_draws=0)
    assert all(other.model.latent_dim == fit.choice.latent_dim for other in found.models)


def test_constant_features_are_the_same_from_statistics() -> None:
    complete = private(300)
    values = {name: complete[name].clone() for name in DIMS}
    values["b"][complete.observed("b"), 3] = 1e3 / 3
    data = cal.MultimodalData(values)
    found = cal.fit(cal.SharedLatentModel(DIMS), FoldedStatistics.of(data))
    assert found.choice.setting == cal.fit(cal.SharedLatentModel(DIMS), data).choice.setting
    assert found.choice.noise == "isotropic"


def test_folds_that_have_nothing_to_compare_are_left_out_of_the_score() -> None:
    """Of three sites, each a fold, one has a single modality."""
    complete = private(90, missing=0.0)
    mask = torch.ones(90, 3, dtype=torch.bool)
    mask[:30, 1:] = False
    data = cal.MultimodalData({name: complete[name] for name in DIMS}, observed_mask=mask)
    found = cal.fit(cal.SharedLatentModel(DIMS), data, groups=np.arange(90) // 30, budget=20.0)
    assert np.isfinite(found.choice.table["score"]).all()
    assert found.choice.setting.ard or found.choice.setting.pseudo_rows > 1


def test_groups_are_rows_or_a_covariate_or_a_function_of_the_data() -> None:
    sites = np.arange(90) // 9
    complete = private(90, missing=0.0)
    data = cal.MultimodalData({name: complete[name] for name in DIMS}, covariates={"site": sites})
    options: dict[str, Any] = {"latent_dim": 2, "noise": "isotropic"}
    tables = [
        cal.fit(cal.SharedLatentModel(DIMS, **options), data, shrinkage="held-out", groups=groups).choice.table
        for groups in (sites, "site", lambda rows: rows.covariates["site"], None)
    ]
    scores = [table["score"].tolist() for table in tables]
    assert scores[0] == scores[1] == scores[2] != scores[3]


@pytest.mark.filterwarnings("ignore::calmrl_prob.errors.ReliabilityWarning")  # two rows of a modality tell little
@pytest.mark.parametrize("seed", [0, 1])
def test_a_modality_of_two_instances_does_not_break_the_choice(seed: int) -> None:
    complete = private(60, missing=0.0)
    mask = torch.ones(60, 3, dtype=torch.bool)
    mask[2:, 2] = False
    data = cal.MultimodalData({name: complete[name] for name in DIMS}, observed_mask=mask)
    found = cal.fit(cal.SharedLatentModel(DIMS), data, seed=seed, budget=20.0)
    assert all(value.isfinite().all() for value in cal.impute(found, data).mean.values())


@pytest.mark.parametrize("spread", [1e-7, 1e-11])
def test_columns_that_hardly_vary_do_not_break_the_choice(spread: float) -> None:
    complete = private(60, missing=0.0)
    values = {name: complete[name].clone() for name in DIMS}
    values["a"][:, 0] = 3 + spread * values["a"][:, 0]
    found = cal.fit(cal.SharedLatentModel(DIMS), cal.MultimodalData(values), budget=20.0)
    assert found.choice.r2["b"] > 0


def test_evidence_is_in_the_units_of_the_data(data: cal.MultimodalData) -> None:
    found = cal.fit(cal.SharedLatentModel(DIMS, 6), data, scale="feature", shrinkage="held-out")
    evidence = float(found.posterior(data).log_marginal.sum())
    assert found.log_likelihood[-1] == pytest.approx(evidence, rel=1e-9)


def test_single_features_are_imputed_from_the_rest_of_their_modality() -> None:
    """Two modalities that share nothing, one of which has two latents of its own: only its own features tell."""
    generator = np.random.default_rng(0)
    own = generator.normal(size=(160, 2)) @ generator.normal(size=(2, 8)) + 0.1 * generator.normal(size=(160, 8))
    hidden = generator.random(own.shape) < 0.2
    shown = np.where(hidden, np.nan, own)
    data = cal.MultimodalData({"a": generator.normal(size=(160, 6)), "b": shown}, missing="features")
    with pytest.warns(ReliabilityWarning):
        found = cal.fit(cal.SharedLatentModel(data.dims), data)
    imputed = cal.impute(found, data, names=["b"]).mean["b"].numpy()
    explained_share = 1 - np.square(own - imputed)[hidden].sum() / np.square(own - own.mean(0))[hidden].sum()
    assert explained_share > 0.8


def test_a_single_modality_with_missing_features_is_chosen_for() -> None:
    """Eight features of two latents: what the rest of a row tells of a feature is held out and compared."""
    generator = np.random.default_rng(1)
    whole = generator.normal(size=(160, 2)) @ generator.normal(size=(2, 8)) + 0.1 * generator.normal(size=(160, 8))
    hidden = generator.random(whole.shape) < 0.2
    data = cal.MultimodalData({"b": np.where(hidden, np.nan, whole)}, missing="features", empty="drop")
    found = cal.fit(cal.SharedLatentModel(data.dims), data)
    assert not found.choice.fallback
    imputed = cal.impute(found, data).mean["b"].numpy()
    assert 1 - np.square(whole - imputed)[hidden].sum() / np.square(whole - whole.mean(0))[hidden].sum() > 0.9


def test_a_prior_of_the_latent_changes_no_score(data: cal.MultimodalData) -> None:
    options = {"prior_mean": torch.full((5,), 2.0).double(), "prior_covariance": 3 * torch.eye(5).double()}
    one = cal.fit(cal.SharedLatentModel(DIMS, 5), data, shrinkage="held-out")
    other = cal.fit(cal.SharedLatentModel(DIMS, 5), data, shrinkage="held-out", **options)
    np.testing.assert_array_equal(one.choice.table["score"], other.choice.table["score"])
    seen = data.subset(data.rows_with("a")).select(["a"])
    means = [cal.impute(found, seen, names=["b"]).mean["b"] for found in (one, other)]
    torch.testing.assert_close(*means, rtol=1e-6, atol=1e-6)


def test_where_few_rows_link_the_modalities_the_best_of_several_fits_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[cal.FitResult] = []

    def recorded(*arguments: Any, **options: Any) -> cal.FitResult:
        made.append(settled(*arguments, **options))
        return made[-1]

    settled = chosen_fit.fit_settled
    monkeypatch.setattr(chosen_fit, "fit_settled", recorded)
    complete = private(240, missing=0.0).select(["a", "b"])
    mask = torch.ones(240, 2, dtype=torch.bool)
    mask[30:135, 1], mask[135:, 0] = False, False
    cal_data = cal.MultimodalData({name: complete[name] for name in ("a", "b")}, observed_mask=mask)
    found = cal.fit(cal.SharedLatentModel(cal_data.dims, noise="isotropic"), cal_data)
    ends = [float(one.objective[-1]) for one in made]
    assert len(ends) == 1 + found.choice.num_folds  # from the data, and from the fit of each fold
    assert max(ends) > min(ends)
    assert found.objective[-1] == max(ends)
