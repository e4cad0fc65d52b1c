"""``cal.classify``: probabilities against the whole mixture, labels of some rows only, refusals, scores."""

from __future__ import annotations

import dataclasses
import pickle
import warnings

import numpy as np
import pytest
import torch

import calmrl_prob as cal
from calmrl_prob.classification import Classifier
from calmrl_prob.classification.classifier import tempered
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, CalmrlWarning, DataError, SchemaError
from calmrl_prob.evaluation import score_probabilities
from calmrl_prob.linear_gaussian import mixture_posterior
from calmrl_prob.programs.bound import BoundModel
from tests.cases.class_cases import DIMS, drawn, in_batches, named


@pytest.fixture(scope="module")
def learned() -> tuple[MultimodalData, Classifier]:
    data, lg = drawn()
    return data, cal.classify(lg, data, folds=3)


def test_probabilities_are_the_responsibilities_of_the_whole_mixture(
    learned: tuple[MultimodalData, Classifier],
) -> None:
    data, found = learned
    mixture = found.mixture()
    exact = mixture_posterior(mixture, data.conform(mixture.dims).blocks)
    ratios = exact.log_responsibilities - found.components.log_weights
    expected = tempered(ratios, found.components.log_weights, found.temperatures(data.observed_mask), found.floor).exp()
    np.testing.assert_allclose(found.probabilities(data), expected.numpy(), atol=1e-5)
    assert found.posterior(data).responsibilities.shape == (240, 3)
    assert len(found.pattern_temperatures) == 3  # both modalities, or either
    unknown = torch.zeros(1, 2, dtype=torch.bool)
    assert float(found.temperatures(unknown)) == found.temperature


def test_it_knows_classes_of_rows_that_it_never_saw(learned: tuple[MultimodalData, Classifier]) -> None:
    _, found = learned
    fresh, _ = drawn(2000, seed=1)
    stated = found.probabilities(fresh)
    scored = score_probabilities(stated, fresh.labels, found.classes)
    assert scored.loc["accuracy", "value"] > 0.75, scored  # 0.33 by chance
    assert scored.loc["ece", "lower"] <= 0.03
    one = fresh.subset(fresh.rows_with("b")).select(["b"])
    assert (found.predict(one) == one.labels).mean() > 0.6


def test_rows_without_labels_count_as_a_mixture_and_help_where_labels_are_few() -> None:
    data, lg = drawn()
    labels = data.labels.astype(object)
    labels[np.random.default_rng(0).random(240) > 0.06] = None
    alone = cal.classify(lg, data, labels, folds=2, unlabelled=False)
    both = cal.classify(lg, data, labels, folds=2, unlabelled=True)
    fresh, _ = drawn(1000, seed=1)
    scores = [score_probabilities(c.probabilities(fresh), fresh.labels, c.classes) for c in (alone, both)]
    assert scores[1].loc["log_score", "value"] > scores[0].loc["log_score", "value"]
    assert both.setting.unlabelled
    numbers = np.where(
        [label is None for label in labels], np.nan, [{"u": 0.0, "v": 1.0, "w": 2.0}.get(x, 9) for x in labels]
    )
    again = cal.classify(lg, data, numbers, folds=2, unlabelled=True)
    np.testing.assert_allclose(again.probabilities(fresh), both.probabilities(fresh))


def test_folds_are_fitted_again_with_the_settings_of_the_choice() -> None:
    data, _ = drawn(150)
    fit = cal.fit(cal.SharedLatentModel(data.dims, latent_dim=3), data, seed=0, shrinkage="held-out")
    groups = np.arange(150) // 5
    again = cal.classify(fit, data, folds=3, groups=groups, refit=True)
    seen = cal.classify(fit, data, folds=3, groups=groups, refit=False)
    assert not again.table["log_score"].equals(seen.table["log_score"])
    assert again.table["chosen"].sum() == 1
    moved = pickle.loads(pickle.dumps(again))
    np.testing.assert_array_equal(moved.probabilities(data), again.probabilities(data))
    assert "3 classes" in repr(again)


def test_a_class_of_a_single_row_is_told_and_worked_with() -> None:
    data, lg = drawn()
    labels = data.labels.astype(object)
    labels[0] = "lone"
    with pytest.warns(CalmrlWarning, match="'lone' has a single labelled instance"):
        found = cal.classify(lg, data, labels, folds=3)
    assert found.classes.tolist() == ["lone", "u", "v", "w"]
    assert np.isfinite(found.probabilities(data)).all()
    scored = score_probabilities(found.probabilities(data), np.full(240, "never seen"), found.classes)
    assert scored.loc["accuracy", "value"] == 0


def test_two_labelled_rows_of_two_classes_and_one_more_are_enough() -> None:
    data, lg = drawn()
    labels = np.full(240, None, dtype=object)
    labels[:3] = ["u", "u", "v"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalmrlWarning)
        assert cal.classify(lg, data, labels).probabilities(data).shape == (240, 2)


@pytest.mark.parametrize(
    ("labels", "options", "error", "message"),
    [
        (np.full(240, None), {}, DataError, "at least two classes"),
        (["u"] * 240, {}, DataError, "at least two classes"),
        (["u"] * 3, {}, DataError, "one for each of the 240"),
        ([*"uv", *[None] * 238], {}, DataError, "two instances or more"),
        (None, {"folds": 1}, ArgumentError, "folds"),
        (None, {"refit": True}, ArgumentError, "settings of the model are not known"),
        (None, {"unlabelled": "some"}, ArgumentError, "unlabelled"),
        (None, {"refit": 1.5}, ArgumentTypeError, "refit"),
        (None, {"groups": "subject"}, ArgumentError, "no covariate 'subject'"),
        (None, {"groups": [0] * 240}, ArgumentError, "groups"),
        (None, {"nonsense": 1}, ArgumentError, "no option 'nonsense'"),
    ],
)
def test_what_cannot_work_is_refused(labels: object, options: dict[str, object], error: type, message: str) -> None:
    data, lg = drawn()
    with pytest.raises(error, match=message):
        cal.classify(lg, data, labels, **options)


def test_no_labels_and_no_data_are_refused() -> None:
    data, lg = drawn()
    with pytest.raises(DataError, match="the data have none"):
        cal.classify(lg, MultimodalData({name: data[name] for name in data.names}))
    with pytest.raises(ArgumentTypeError, match="wrap it"):
        cal.classify(lg, {"a": 1})


# ---- scores --------------------------------------------------------------------------------------------------------


def test_calibration_error_of_calibrated_probabilities_is_about_nothing_and_of_bold_ones_is_not() -> None:
    generator = np.random.default_rng(0)
    stated = generator.dirichlet([0.5, 0.5, 0.5], size=3000)
    labels = np.array([generator.choice(3, p=row) for row in stated])
    good = score_probabilities(stated, labels, range(3)).loc["ece"]
    bold = stated**3 / (stated**3).sum(1, keepdims=True)
    bad = score_probabilities(bold, labels, range(3)).loc["ece"]
    assert good["value"] < 0.02  # three standard errors of 3,000 rows are 0.027
    assert bad["lower"] > 0.05
    assert bad["lower"] <= bad["value"] <= bad["upper"]


def test_chance_is_taken_out_of_the_calibration_error_of_few_rows() -> None:
    generator = np.random.default_rng(1)
    values = []
    for _ in range(200):
        confidence = generator.uniform(0.5, 0.95, size=200)
        wrong = (generator.random(200) > confidence).astype(float)
        order = np.array_split(np.argsort(confidence), 10)
        plain = np.mean([abs(1 - wrong[part].mean() - confidence[part].mean()) for part in order])
        stated = np.stack([confidence, 1 - confidence], axis=1)
        values.append((plain, score_probabilities(stated, wrong, [0.0, 1.0], num_draws=2).loc["ece", "value"]))
    plain, corrected = np.mean(values, axis=0)
    assert corrected < 0.8 * plain


@pytest.mark.parametrize(
    ("probabilities", "options", "error"),
    [
        ([[0.5, 0.5]], {}, DataError),
        ([[0.5, 0.6], [0.5, 0.5]], {}, DataError),
        ([[0.5, 0.5], [0.5, 0.5]], {"level": 1.0}, ArgumentError),
        ([[0.5, 0.5], [0.5, 0.5]], {"bins": 0}, ArgumentError),
    ],
)
def test_scores_refuse(probabilities: list[list[float]], options: dict[str, float], error: type) -> None:
    with pytest.raises(error):
        score_probabilities(probabilities, ["a", "b"], ["a", "b"], **options)


def test_a_stream_is_refused_with_what_takes_one() -> None:
    data, lg = drawn(30)
    stream = cal.MultimodalStream.from_chunks(lambda: [data])
    with pytest.raises(ArgumentTypeError, match=r"data: expected MultimodalData, got a stream, which cal\.fit"):
        cal.classify(lg, stream)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="queries: expected MultimodalData, got a stream, which"):
        cal.retrieve(lg, stream, stream)  # type: ignore[arg-type]


def test_a_fitted_pyro_model_is_refused_with_what_serves() -> None:
    data, _ = drawn(30)
    with pytest.raises(ArgumentTypeError, match=r"got a fitted Pyro model; .* cal\.discover\(fit\.model, data\)"):
        cal.classify(BoundModel(lambda rows: None), data)


def test_a_model_with_batches_has_them_taken_off() -> None:
    _, moved = in_batches()
    fit = cal.fit(cal.SharedLatentModel(DIMS, latent_dim=3, batch="site"), moved)
    found = cal.classify(fit, moved, folds=3)
    model = fit.model
    assert isinstance(model, cal.SharedLatentModel)
    assert model.batch is not None
    by_hand = cal.classify(model.linear_gaussian(), model.batch.adjusted(moved), folds=3)
    _, new = in_batches(1500, seed=1)
    np.testing.assert_allclose(
        found.probabilities(new), by_hand.probabilities(model.batch.adjusted(new)), rtol=1e-6, atol=1e-9
    )
    assert (found.predict(new) == new.labels).mean() > 0.75
    assert found.posterior(new).mean.shape == (1500, 3)
    with pytest.raises(DataError, match="'site', by which batches"):
        found.probabilities(MultimodalData({name: new[name] for name in new.names}))


def test_instances_of_no_known_batch_have_the_variance_between_batches_as_noise() -> None:
    _, moved = in_batches()
    fit = cal.fit(cal.SharedLatentModel(DIMS, latent_dim=3, batch="site"), moved)
    found = cal.classify(fit, moved, folds=3)
    assert found.batch is not None
    site = np.array([None, "s1"] * 120, dtype=object)
    new = MultimodalData({name: moved[name] for name in moved.names}, covariates={"site": site})
    structure = found.batch.moves.structure(found.linear_gaussian, 3)
    unknown = Classifier(**(vars(found) | {"linear_gaussian": structure, "batch": None}))
    rows = np.arange(0, 240, 2)
    stated = found.probabilities(new)
    np.testing.assert_allclose(stated[rows], unknown.probabilities(moved.subset(rows)), atol=1e-9)
    assert (-(stated * np.log(stated)).sum(1))[rows].mean() > (-(stated * np.log(stated)).sum(1))[rows + 1].mean()
    with pytest.raises(DataError, match="120 of 240 instances, first row 0, have a modality of which"):
        found.posterior(new)
    with pytest.raises(DataError, match="120 of 240 instances, first row 0, have a modality of which"):
        cal.classify(fit, new, moved.labels)


@pytest.mark.parametrize("model_has_names", [True, False])
def test_names_of_features_and_of_rows_decide(model_has_names: bool) -> None:
    import pandas as pd

    lg, data = drawn()[1], named()
    model = dataclasses.replace(lg, feature_names=data.feature_names) if model_has_names else lg
    found = cal.classify(model, data, folds=2)
    stated = found.probabilities(data)
    np.testing.assert_allclose(found.probabilities(named(permuted=True)), stated, atol=1e-6)
    np.testing.assert_allclose(found.posterior(named(permuted=True)).mean, found.posterior(data).mean, atol=1e-6)
    if model_has_names:
        again = cal.classify(model, named(permuted=True), folds=2)
        np.testing.assert_allclose(again.probabilities(data), stated, atol=1e-6)
    other = MultimodalData({"a": pd.DataFrame(np.zeros((1, 5))).add_prefix("other")})
    with pytest.raises(SchemaError, match="other0"):
        found.probabilities(other)
    labels = pd.Series(data.labels, index=data.ids)
    turned = cal.classify(model, data, labels.iloc[::-1], folds=2)
    np.testing.assert_array_equal(turned.probabilities(data), stated)
    with pytest.raises(DataError, match="labels: its labels"):
        cal.classify(model, data, labels.set_axis([f"other-{n}" for n in range(len(labels))]))
    groups = pd.Series(np.arange(len(data)) // 4, index=data.ids)
    both = [cal.classify(model, data, folds=2, groups=given) for given in (groups, groups.sample(frac=1.0))]
    assert both[0].table.equals(both[1].table)


@pytest.mark.parametrize("wrong", [None, {"a": np.zeros((1, 5))}])
def test_what_is_no_data_is_refused(learned: tuple[MultimodalData, Classifier], wrong: object) -> None:
    for ask in (learned[1].probabilities, learned[1].predict, learned[1].posterior):
        with pytest.raises(ArgumentTypeError, match="data: expected MultimodalData"):
            ask(wrong)  # type: ignore[arg-type]
    data, lg = drawn()
    with pytest.raises(DataError, match="labels: expected text"):
        cal.classify(lg, data, [{"class": 1}] * len(data))
    with pytest.raises(ArgumentError, match="groups: expected one for each of 240"):
        cal.classify(lg, data, groups=3)
