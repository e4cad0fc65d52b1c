"""The estimators within scikit-learn: its own checks, pipelines, searches, containers, processes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from calmrl_prob.sklearn import CalibratedImputer, LatentTransformer

Estimator = CalibratedImputer | LatentTransformer
GROUPS = {"image": slice(0, 4), "text": slice(4, 7)}
#: Checks that do not apply, with the reason: none; docs/sklearn.md says what is skipped, and what the tags declare.
DOES_NOT_APPLY: dict[str, str] = {}


def rows(n: int = 90) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    generator = np.random.default_rng(0)
    z = generator.normal(size=(n, 2))
    X = z @ generator.normal(size=(2, 7)) + 0.3 * generator.normal(size=(n, 7))
    X[: n // 3, 4:] = np.nan
    order = generator.permutation(n)
    return X[order], (z[:, 0] > 0).astype(int)[order]


@pytest.mark.filterwarnings("ignore::calmrl_prob.errors.CalmrlWarning")  # of tables too small to choose by
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks(
    [CalibratedImputer(), LatentTransformer(latent_dim=1, with_sd=True)],
    expected_failed_checks=lambda _: DOES_NOT_APPLY,
)
def test_scikit_learns_own_checks(estimator: Estimator, check: Callable[[Estimator], None]) -> None:
    check(estimator)


@pytest.mark.parametrize("transformer", [CalibratedImputer, LatentTransformer])
def test_pipelines_are_cloned_searched_and_cross_validated(transformer: type[Estimator]) -> None:
    X, y = rows()
    pipeline = make_pipeline(StandardScaler(), transformer(GROUPS, latent_dim=1), LogisticRegression())
    step = transformer.__name__.lower()
    search = GridSearchCV(pipeline, {f"{step}__latent_dim": [1, 2], f"{step}__noise": ["isotropic"]}, cv=2).fit(X, y)
    assert search.best_estimator_[1].result_.model.latent_dim == search.best_params_[f"{step}__latent_dim"]
    assert cross_val_score(clone(search.best_estimator_), X, y, cv=3).mean() > 0.8
    assert not hasattr(clone(search.best_estimator_)[1], "result_")


def test_an_imputer_is_searched_by_its_own_score() -> None:
    X, _ = rows()
    search = GridSearchCV(CalibratedImputer(GROUPS), {"latent_dim": [1, 2]}, cv=KFold(2)).fit(X)
    assert search.best_params_ == {"latent_dim": 2}
    assert 0 < search.best_score_ < 1


def test_output_in_pandas_has_the_names_and_index_of_the_input() -> None:
    X = pd.DataFrame(rows()[0], columns=[f"c{k}" for k in range(7)]).add_prefix("a ").iloc[::-1]
    imputed = CalibratedImputer(GROUPS, latent_dim=2).set_output(transform="pandas").fit_transform(X)
    assert imputed.columns.tolist() == X.columns.tolist()
    assert imputed.index.equals(X.index)
    assert not imputed.isna().any(axis=None)
    latents = LatentTransformer(GROUPS, latent_dim=2).set_output(transform="pandas").fit_transform(X)
    assert latents.columns.tolist() == ["latent0", "latent1"]
    assert latents.index.equals(X.index)


def test_a_multiindex_of_columns_groups_them_and_comes_back() -> None:
    X = pd.DataFrame(
        rows()[0], columns=pd.MultiIndex.from_tuples([("image", k) for k in range(4)] + [("text", k) for k in range(3)])
    )
    imputer = CalibratedImputer(latent_dim=2).set_output(transform="pandas").fit(X)
    assert {name: columns.tolist() for name, columns in imputer.modalities_.items()} == {
        "image": [0, 1, 2, 3],
        "text": [4, 5, 6],
    }
    assert imputer.transform(X).columns.equals(X.columns)
    assert imputer.impute(X).frame("text").columns.tolist() == [("text", 0), ("text", 1), ("text", 2)]
    with pytest.raises(ValueError, match="expected the columns that the estimator was fitted to"):
        imputer.transform(X[X.columns[::-1]])


def test_polars_goes_in_and_comes_out() -> None:
    polars = pytest.importorskip("polars")
    X = rows()[0]
    frame = polars.DataFrame(X, schema=list("abcdefg"))
    imputer = CalibratedImputer({"image": list("abcd"), "text": list("efg")}, latent_dim=2).set_output(
        transform="polars"
    )
    found = imputer.fit_transform(frame)
    assert isinstance(found, polars.DataFrame)
    assert found.columns == frame.columns
    np.testing.assert_array_equal(found.to_numpy(), CalibratedImputer(GROUPS, latent_dim=2).fit_transform(X))


def test_columns_of_another_kind_go_past_by_a_column_transformer() -> None:
    X = pd.DataFrame(rows()[0], columns=list("abcdefg")).assign(city="Bern")
    imputer = CalibratedImputer({"image": list("abcd"), "text": list("efg")}, latent_dim=2)
    whole = ColumnTransformer(
        [("imputed", imputer, list("abcdefg"))], remainder="passthrough", verbose_feature_names_out=False
    )
    found = whole.set_output(transform="pandas").fit_transform(X)
    assert found.columns.tolist() == [*"abcdefg", "city"]


def test_threads_give_what_one_thread_gives() -> None:
    from joblib import parallel_backend

    X, y = rows()
    pipeline = make_pipeline(LatentTransformer(GROUPS, latent_dim=2), LogisticRegression())
    with parallel_backend("threading"):
        found = cross_val_score(pipeline, X, y, cv=3, n_jobs=2)
    np.testing.assert_array_equal(found, cross_val_score(pipeline, X, y, cv=3))


@pytest.mark.slow  # each process imports everything
def test_processes_give_what_one_process_gives() -> None:
    X, y = rows()
    pipeline = make_pipeline(CalibratedImputer(GROUPS, latent_dim=2), LogisticRegression())
    np.testing.assert_array_equal(
        cross_val_score(pipeline, X, y, cv=3, n_jobs=2), cross_val_score(pipeline, X, y, cv=3)
    )
