"""The linear probe: what it recovers, what it never looks at, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, DataError
from calmrl_prob.evaluation.classification import linear_probe
from calmrl_prob.inference.posterior import PosteriorResult, posterior
from calmrl_prob.linear_gaussian import LinearGaussian

Split = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def make_classes(seed: int, num: int = 240, spread: float = 1.0) -> Split:
    """Three Gaussian classes in five dimensions: train features and labels, test features and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=2 * num)
    centres = 2 * rng.normal(size=(3, 5))
    features = centres[labels] + spread * rng.normal(size=(2 * num, 5))
    names = np.array(["cat", "dog", "owl"])[labels]
    return features[:num], names[:num], features[num:], names[num:]


def test_separable_classes_are_recovered_and_noise_is_not() -> None:
    x, y, x_test, y_test = make_classes(0, spread=0.3)
    found = linear_probe(x, y, x_test, y_test)
    assert found.accuracy > 0.98
    assert 0.25 < found.chance < 0.45
    noise = np.random.default_rng(1)
    blind = linear_probe(noise.normal(size=x.shape), y, noise.normal(size=x_test.shape), y_test)
    standard_error = np.sqrt(found.chance * (1 - found.chance) / len(y_test))
    assert abs(blind.accuracy - 1 / 3) < 6 * standard_error


def test_result_equals_scikit_learn_by_hand() -> None:
    x, y, x_test, y_test = make_classes(2, spread=2.0)
    found = linear_probe(x, y, x_test, y_test, penalties=[0.1])
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(C=0.1, max_iter=1000).fit(scaler.transform(x), y)
    predictions = model.predict(scaler.transform(x_test))
    np.testing.assert_array_equal(found.predictions, predictions)
    assert found.inverse_penalty == 0.1
    assert found.accuracy == pytest.approx((predictions == y_test).mean())
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(y_test, predictions))


def test_same_seed_same_result_and_torch_as_numpy() -> None:
    x, y, x_test, y_test = make_classes(3, spread=2.0)
    codes = np.unique(y, return_inverse=True)[1]
    test_codes = np.unique(y_test, return_inverse=True)[1]
    first = linear_probe(x, codes, x_test, test_codes, seed=4)
    again = linear_probe(torch.tensor(x), torch.tensor(codes), torch.tensor(x_test), torch.tensor(test_codes), seed=4)
    np.testing.assert_array_equal(first.predictions, again.predictions)
    assert first.inverse_penalty == again.inverse_penalty
    assert first.accuracy == again.accuracy


def test_penalty_is_chosen_without_the_test_rows() -> None:
    x, y, x_test, y_test = make_classes(4, spread=3.0)
    honest = linear_probe(x, y, x_test, y_test)
    other = linear_probe(x, y, 100 * x_test[:10], y_test[::-1][:10])
    assert honest.inverse_penalty == other.inverse_penalty


def test_penalty_is_the_best_in_cross_validation() -> None:
    x, y, x_test, y_test = make_classes(5, spread=4.0)
    penalties = [1e-5, 1e-3, 1e-1]
    found = linear_probe(x, y, x_test, y_test, seed=3, penalties=penalties)
    folds = StratifiedKFold(3, shuffle=True, random_state=3)
    models = [make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000)) for C in penalties]
    scores = [cross_val_score(model, x, y, cv=folds).mean() for model in models]
    assert len(set(scores)) == 3
    assert found.inverse_penalty == penalties[int(np.argmax(scores))]


def test_rare_and_unseen_classes_do_not_stop_it() -> None:
    x, y, x_test, y_test = make_classes(6)
    y, y_test = y.astype("<U8"), y_test.astype("<U8")
    y[0], y_test[0] = "unicorn", "dragon"
    found = linear_probe(x, y, x_test, y_test)
    assert found.predictions[0] != "dragon"
    assert found.accuracy > 0.7
    tiny = linear_probe(x[:2], ["a", "b"], x[:2], ["a", "b"])
    assert tiny.inverse_penalty == 1.0


def test_constant_features_are_harmless() -> None:
    x, y, x_test, y_test = make_classes(7)
    padded = np.hstack([x, np.full((len(x), 1), 7.0)])
    padded_test = np.hstack([x_test, np.full((len(x_test), 1), 7.0)])
    assert linear_probe(padded, y, padded_test, y_test).accuracy == linear_probe(x, y, x_test, y_test).accuracy


def test_bad_input_is_named() -> None:
    x, y, x_test, y_test = make_classes(8)
    with pytest.raises(DataError, match="train_labels: expected at least two classes, got only"):
        linear_probe(x, np.full(len(x), "cat"), x_test, y_test)
    with pytest.raises(DataError, match="train_labels: expected one label for each of the 240 rows"):
        linear_probe(x, y[:-1], x_test, y_test)
    with pytest.raises(DataError, match="test_features: expected 5 columns"):
        linear_probe(x, y, x_test[:, :3], y_test)
    with pytest.raises(DataError, match=r"train_features: expected shape \(N, K\)"):
        linear_probe(x[:, 0], y, x_test, y_test)
    with pytest.raises(DataError, match="test_labels: expected one label"):
        linear_probe(x, y, x_test[:0], y_test[:0])
    holed = x.copy()
    holed[3, 1] = np.nan
    with pytest.raises(DataError, match="train_features: expected finite numbers, got NaN or infinity in row 3"):
        linear_probe(holed, y, x_test, y_test)
    with pytest.raises(ArgumentTypeError, match=r"train_features: .*got GaussianPosterior.*mean"):
        linear_probe(_posterior(), y, x_test, y_test)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"penalties": [0.0]}, ArgumentError, r"penalties: expected one or more positive numbers, got \[0\.0\]"),
        ({"penalties": []}, ArgumentError, "penalties"),
        ({"penalties": 1.0}, ArgumentTypeError, "penalties: expected a list of numbers, got 1.0"),
        ({"penalties": ["x"]}, ArgumentTypeError, "penalties: expected a number, got 'x'"),
        ({"folds": 1}, ArgumentError, "folds: expected a whole number of at least 2, got 1"),
        ({"seed": "x"}, ArgumentTypeError, "seed: expected a whole number .*got 'x'"),
        ({"seed": None}, ArgumentTypeError, "seed: expected a whole number .*got None"),
        ({"seed": -1}, ArgumentError, "seed: .*got -1"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        linear_probe(*make_classes(8), **settings)


def test_the_result_shows_itself_in_a_line() -> None:
    shown = repr(linear_probe(*make_classes(9), penalties=[1.0]))
    assert shown.startswith("ProbeResult: accuracy ")
    assert "on 240 test rows (inverse penalty 1)" in shown
    assert len(shown) < 120


def _posterior() -> PosteriorResult:
    one = torch.ones(1, 1)
    lg = LinearGaussian({"x": one}, {"x": one[0]}, {"x": one[0]})
    return posterior(lg, MultimodalData({"x": torch.ones(3, 1)}))
