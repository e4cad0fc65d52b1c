"""The estimators against dense conditioning of the joint normal, and what they refuse."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy.stats import multivariate_normal, norm

import calmrl_prob as cal
from calmrl_prob.sklearn import CalibratedImputer, LatentTransformer

Estimator = CalibratedImputer | LatentTransformer
GROUPS = {"text": [1, 4, 6], "image": [0, 2, 3, 5]}


def table(n: int = 80, seed: int = 0, width: int = 7) -> NDArray[np.float64]:
    """Rows of which some lack a modality, some single values; the last lacks all."""
    generator = np.random.default_rng(seed)
    X = generator.normal(size=(n, 2)) @ generator.normal(size=(2, width)) + 0.5 * generator.normal(size=(n, width)) + 3
    X[:20, GROUPS["text"]] = np.nan
    X[20:30, [0, 2]] = np.nan
    X[30:35, 5] = np.nan
    X[-1] = np.nan
    return X


def joint(estimator: Estimator) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean and covariance of a row, and the loadings, in the order of the columns: from the parameters alone."""
    lg = estimator.result_.linear_gaussian()
    width, k = estimator.n_features_in_, lg.latent_dim
    W, mu, psi = np.zeros((width, k)), np.zeros(width), np.zeros(width)
    for name, columns in estimator.modalities_.items():
        W[columns], mu[columns] = lg.loadings[name].numpy(), lg.intercepts[name].numpy()
        psi[columns] = lg.noise_variance[name].numpy()
    return mu, W @ W.T + np.diag(psi), W


def conditional(estimator: Estimator, x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of what a row lacks, given what it has."""
    mu, S, _ = joint(estimator)
    there = ~np.isnan(x)
    gain = S[np.ix_(~there, there)] @ np.linalg.inv(S[np.ix_(there, there)])
    covariance = S[np.ix_(~there, ~there)] - gain @ S[np.ix_(there, ~there)]
    return mu[~there] + gain @ (x[there] - mu[there]), np.sqrt(np.diag(covariance))


@pytest.mark.parametrize("modalities", [GROUPS, None])
def test_missing_values_are_those_of_the_joint_normal_given_the_rest_of_the_row(modalities: object) -> None:
    X = table()
    imputer = CalibratedImputer(modalities, latent_dim=2).fit(X)
    completed, sd, (lower, upper) = imputer.transform(X), imputer.std(X), imputer.interval(X, 0.8)
    missing = np.isnan(X)
    for found in (completed, lower, upper):
        np.testing.assert_array_equal(found[~missing], X[~missing])
    assert (sd[~missing] == 0).all()
    q = norm.ppf(0.9)
    for n in (0, 25, 31, 79):
        mean, spread = conditional(imputer, X[n])
        own = missing[n]
        np.testing.assert_allclose(completed[n, own], mean, rtol=1e-9)
        np.testing.assert_allclose(sd[n, own], spread, rtol=1e-9)
        np.testing.assert_allclose(lower[n, own], mean - q * spread, rtol=1e-8)
        np.testing.assert_allclose(upper[n, own], mean + q * spread, rtol=1e-8)


def test_latents_and_evidence_are_those_of_the_joint_normal() -> None:
    X = table()
    transformer = LatentTransformer(GROUPS, latent_dim=2, with_sd=True).fit(X)
    found, evidence = transformer.transform(X), transformer.score_samples(X)
    mu, S, W = joint(transformer)
    for n in (0, 25, 50, 79):
        there = ~np.isnan(X[n])
        gain = W[there].T @ np.linalg.inv(S[np.ix_(there, there)])
        mean, covariance = gain @ (X[n] - mu)[there], np.eye(2) - gain @ W[there]
        np.testing.assert_allclose(found[n], [*mean, *np.sqrt(np.diag(covariance))], rtol=1e-8, atol=1e-10)
        density = multivariate_normal(mu[there], S[np.ix_(there, there)]).logpdf(X[n, there]) if there.any() else 0.0
        assert evidence[n] == pytest.approx(density, rel=1e-9)
    assert transformer.score(X) == pytest.approx(evidence.mean())


def test_the_score_is_r2_of_hidden_modalities_about_the_means_of_the_fit() -> None:
    X, new = table(), table(seed=0)[:40] + 0.1
    imputer = CalibratedImputer(GROUPS, latent_dim=2).fit(X)
    r2 = []
    for columns in GROUPS.values():
        errors, squares = 0.0, 0.0
        for x in new:
            hidden = x.copy()
            hidden[columns] = np.nan
            if np.isnan(hidden).all() or np.isnan(x[columns]).all():
                continue
            imputed = hidden.copy()
            imputed[np.isnan(hidden)] = conditional(imputer, hidden)[0]
            errors += np.nansum((x - imputed)[columns] ** 2)
            squares += np.nansum((x - np.nanmean(X, axis=0))[columns] ** 2)
        r2.append(1 - errors / squares)
    assert imputer.score(new) == pytest.approx(np.mean(r2))
    assert np.isnan(imputer.score(np.full((2, 7), np.nan)))


def test_what_is_left_open_is_chosen_and_intervals_are_those_of_the_choice() -> None:
    X = table(200)
    imputer = CalibratedImputer(GROUPS, budget=1000.0, options={"folds": 2}).fit(X, groups=np.arange(200) // 2)
    assert imputer.result_.choice.num_folds == 2
    found = imputer.impute(X)
    np.testing.assert_array_equal(imputer.transform(X)[:20, GROUPS["text"]], found.mean["text"][:20].numpy())
    lower, _ = imputer.interval(X, 0.9)
    np.testing.assert_array_equal(lower[:20, GROUPS["text"]], found.interval(0.9)["text"][0][:20].numpy())
    assert found.recalibrated is not None


def test_budget_and_groups_are_not_looked_at_where_nothing_is_chosen() -> None:
    X = table()
    fitted = CalibratedImputer(GROUPS, latent_dim=2, budget=0.1).fit(X, groups=np.zeros(80))
    plain = CalibratedImputer(GROUPS, latent_dim=2).fit(X)
    np.testing.assert_array_equal(fitted.transform(X), plain.transform(X))


def test_a_complete_table_of_one_modality_is_fitted_with_a_strong_prior_and_a_warning() -> None:
    generator = np.random.default_rng(0)
    X = generator.normal(size=(120, 2)) @ generator.normal(size=(2, 8)) + 0.3 * generator.normal(size=(120, 8))
    with pytest.warns(cal.errors.ReliabilityWarning, match="no instance has two modalities"):
        imputer = CalibratedImputer().fit(X[:80])
    np.testing.assert_array_equal(imputer.transform(X), X)
    assert imputer.score(X[80:]) > 0.7  # of 0.92, less what a strong prior takes and 40 rows make uncertain


@pytest.mark.filterwarnings("ignore:the settings were not chosen:calmrl_prob.errors.ReliabilityWarning")
@pytest.mark.filterwarnings("ignore:too few values to tell:calmrl_prob.errors.ReliabilityWarning")
@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_few_rows_are_fitted(n: int) -> None:
    X = np.random.default_rng(0).normal(size=(n, 7))
    hidden = X.copy()
    hidden[0, GROUPS["text"]] = np.nan
    assert np.isfinite(CalibratedImputer(GROUPS).fit(X).transform(hidden)).all()


@pytest.mark.parametrize(
    "estimator", [CalibratedImputer(GROUPS, latent_dim=2), LatentTransformer(GROUPS, latent_dim=2)]
)
def test_float32_stays_and_integers_become_float64(estimator: Estimator) -> None:
    X = np.round(table() * 4)
    assert estimator.fit(X.astype(np.float32)).transform(X.astype(np.float32)).dtype == np.float32
    whole = np.nan_to_num(X).astype(int)
    assert estimator.transform(whole).dtype == np.float64


def test_seeds_are_numbers_or_drawn_from_a_generator_and_none_is_zero() -> None:
    X = table()
    seeds = [
        CalibratedImputer(GROUPS, latent_dim=2, random_state=state).fit(X).result_.seed
        for state in (None, 3, np.int64(4), np.random.RandomState(0))
    ]
    assert seeds == [0, 3, 4, np.random.RandomState(0).randint(2**31 - 1)]


def test_frames_give_names_and_ids_and_imputations_have_them() -> None:
    X = pd.DataFrame(table(), columns=list("abcdefg"), index=[f"row {n}" for n in range(80)])
    groups = {name: [X.columns[k] for k in columns] for name, columns in GROUPS.items()}
    imputer = CalibratedImputer(groups, latent_dim=2).fit(X)
    np.testing.assert_array_equal(imputer.transform(X), CalibratedImputer(GROUPS, latent_dim=2).fit_transform(X.values))
    frame = imputer.impute(X).frame("text", of="completed")
    assert frame.columns.tolist() == ["b", "e", "g"]
    assert frame.index.tolist() == X.index.tolist()
    repeated = X.iloc[[0, 0, 1]]  # as a bootstrap draws them
    assert imputer.impute(repeated).frame("text").index.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="feature names should match"):
        imputer.transform(X[["b", "a", *"cdefg"]])


@pytest.mark.parametrize(
    "estimator", [CalibratedImputer(GROUPS, latent_dim=2), LatentTransformer(GROUPS, latent_dim=2)]
)
def test_fitted_estimators_travel(estimator: Estimator) -> None:
    X = table()
    again = pickle.loads(pickle.dumps(estimator.fit(X)))
    np.testing.assert_array_equal(again.transform(X), estimator.transform(X))


def broken(**changes: Any) -> NDArray[np.float64]:
    X = table()
    for cells, value in changes.values():
        X[cells] = value
    return X


@pytest.mark.parametrize(
    ("X", "settings", "message"),
    [
        (broken(inf=((0, 0), np.inf)), {}, "infinity"),
        (broken(empty=((slice(None), 3), np.nan)), {}, "1 columns have no value in any row, first 3"),
        (np.full((5, 7), np.nan), {}, "7 columns have no value"),
        (table()[:1], {}, "1 sample"),
        (table()[:, :1], {}, "1 feature"),
        (broken(flat=((slice(None), [1, 4, 6]), 2.0)), {}, "modality 'text'"),
        (table(), {"latent_dim": 0}, "latent_dim"),
        (table(), {"noise": "pink"}, "noise"),
        (table(), {"shrinkage": "much"}, "shrinkage"),
        (table(), {"options": {"colour": 1}}, "colour"),
        (table(), {"random_state": -1}, "seed"),
        (table(), {"modalities": {"z": slice(None)}}, "taken by a site"),
        (table()[0], {}, "1D array"),
    ],
)
def test_what_cannot_be_fitted_is_refused_by_a_typed_value_error(
    X: NDArray[np.float64], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        CalibratedImputer(**{"modalities": GROUPS, "latent_dim": 2, **settings}).fit(X)
    assert isinstance(caught.value, cal.CalmrlError)


def test_groups_and_types_are_checked() -> None:
    with pytest.raises(cal.errors.ArgumentError, match="groups: expected one for each of 80 rows"):
        CalibratedImputer(GROUPS).fit(table(), groups=[1, 2])
    with pytest.raises(cal.errors.ArgumentTypeError, match="random_state"):
        CalibratedImputer(GROUPS, random_state=np.random.default_rng(0)).fit(table())  # type: ignore[arg-type]
    with pytest.raises(cal.errors.ArgumentError, match="level"):
        CalibratedImputer(GROUPS, latent_dim=2).fit(table()).interval(table(), 1.0)
