"""The part that both estimators share: a table to multimodal data, the fit, and posteriors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from calmrl_prob._support.arguments import checked_seed, described
from calmrl_prob.data import MultimodalData
from calmrl_prob.data.entries import entries
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, DataError, SchemaError
from calmrl_prob.linear_gaussian import NoiseForm
from calmrl_prob.model import SharedLatentModel
from calmrl_prob.selection.fit import fit
from calmrl_prob.sklearn.columns import grouped_columns, levels

#: Values of a table, (N, D), NaN where missing.
Values = NDArray[np.floating[Any]]
#: Which of its rows, (N,).
Rows = NDArray[np.bool_]
#: Columns of modalities, as users give them.
Modalities = Mapping[str, Any] | Sequence[tuple[str, Any]] | None
#: What seeds of a fit that are drawn lie below.
_SEEDS = 2**31 - 1


class TableModel(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no annotations
    """A ``SharedLatentModel`` of a table (N, D) whose columns are grouped into modalities; NaN is a missing value.

    Args, attributes and errors are those of the estimators: :class:`calmrl_prob.sklearn.CalibratedImputer`,
    :class:`calmrl_prob.sklearn.LatentTransformer`.
    """

    def __init__(
        self,
        modalities: Modalities = None,
        *,
        latent_dim: int | None = None,
        noise: NoiseForm | Literal["auto"] = "auto",
        shrinkage: Literal["auto", "held-out"] | None = "auto",
        budget: float | None = None,
        options: Mapping[str, Any] | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.modalities = modalities
        self.latent_dim = latent_dim
        self.noise = noise
        self.shrinkage = shrinkage
        self.budget = budget
        self.options = options
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: object = None, groups: Sequence[object] | None = None) -> Self:
        """Fit the model to a table.

        Args:
            X: (N, D), NaN where a value is missing. Rows without any value tell nothing, and are left out.
            y: not looked at.
            groups: (N,) whatever rows share that must not tell of each other, such as the subject that they come from:
                where settings are chosen, rows of a group are held out together.

        Returns:
            The estimator itself.

        Raises:
            DataError: fewer than 2 rows or 2 columns, infinities, a column without any value, a modality that is
                constant, or anything else that ``calmrl_prob.fit`` refuses.
            ArgumentError, ArgumentTypeError, SchemaError: parameters that cannot work, ``modalities`` above all.

        Warns:
            ReliabilityWarning, IdentifiabilityWarning, ConvergenceWarning: as ``calmrl_prob.fit`` does.
        """
        del y
        values = self._checked(X, reset=True)
        self.modalities_ = grouped_columns(self.modalities, X, self._labels(), values.shape[1])
        there = ~np.isnan(values)
        if not there.any(axis=0).all():
            empty = np.flatnonzero(~there.any(axis=0)).tolist()
            shown = empty if (labels := self._labels()) is None else [labels[column] for column in empty]
            raise DataError(f"X: {len(empty)} columns have no value in any row, first {shown[0]!r}; leave them out.")
        self.mean_ = np.asarray(np.nanmean(values, axis=0, dtype=np.float64))
        rows = np.asarray(there.any(axis=1))
        seed = self._seed()
        how: dict[str, Any] = {"seed": seed, "shrinkage": self.shrinkage}
        if self.latent_dim is None or self.shrinkage == "held-out":  # else nothing is held out, and nothing chosen
            how |= {"budget": self.budget, "groups": _of_rows(groups, rows)}
        data = self._data(X, values, rows)
        model = SharedLatentModel(data.dims, self.latent_dim, self.noise, seed=seed)
        self.result_ = fit(model, data, **{**how, **(self.options or {})})
        return self

    def _seed(self) -> int:
        """The seed of the fit: 0 for None, the same at every fit; drawn from a generator."""
        if self.random_state is None or isinstance(self.random_state, int | np.integer):
            return checked_seed(self.random_state or 0)
        if not isinstance(self.random_state, np.random.RandomState):
            raise ArgumentTypeError(
                f"random_state: expected a whole number, a numpy.random.RandomState or None, got "
                f"{described(self.random_state)}."
            )
        return int(self.random_state.randint(_SEEDS))

    def _labels(self) -> Sequence[Any] | None:
        """Names of the columns that the estimator was fitted to; None where they had none."""
        names: Any = self._levels if self._levels is not None else getattr(self, "feature_names_in_", None)
        return None if names is None else list(names)

    def _checked(self, X: Any, *, reset: bool = False) -> Values:  # noqa: ANN401 - any table
        """The values of a table, float32 or float64, that has the columns fitted to (or sets them, by ``reset``)."""
        if not reset:
            check_is_fitted(self)
        found = levels(X)
        if reset:
            self._levels = found
        elif found is not None and self._levels is not None and found != self._levels:
            raise SchemaError(
                f"X: expected the columns that the estimator was fitted to, in their order, {self._levels[:3]} ..., "
                f"got {found[:3]} ...; choose them by name, X[columns]."
            )
        if found is not None:
            X = X.set_axis(range(len(found)), axis=1)  # scikit-learn knows names that are text alone
        values: Values = _typed(
            lambda: validate_data(
                self,
                X,
                reset=reset,
                dtype=[np.float64, np.float32],
                ensure_all_finite="allow-nan",
                ensure_min_samples=2 if reset else 1,
                ensure_min_features=2 if reset else 1,
            )
        )
        return values

    def _data(self, X: object, values: Values, rows: Rows | None = None) -> MultimodalData:
        """The table as multimodal data; rows without any value have no modality there."""
        rows = np.ones(len(values), dtype=bool) if rows is None else rows
        values, labels = values[rows], self._labels()  # a copy
        empty = np.isnan(values).all(axis=1)
        if empty.any():
            values[empty] = 0
        parts: dict[str, Any] = {name: values[:, columns] for name, columns in self.modalities_.items()}
        if labels is not None:
            import pandas as pd

            index = _index(X, rows)
            parts = {
                name: pd.DataFrame(part, columns=pd.Index([labels[k] for k in self.modalities_[name]]), index=index)
                for name, part in parts.items()
            }
        data = MultimodalData(parts, missing="features")
        if empty.any():  # refused of data that are to tell something, but a table may have them
            there = data.observed_mask.new_tensor(~empty)
            data = data._derive(observed_mask=data.observed_mask & there[:, None], _nan_where_absent=set())
        return data

    def __sklearn_tags__(self) -> Any:  # noqa: ANN401 - scikit-learn's Tags
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _typed(check: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever is checked
    """The return of one of scikit-learn's checks, whose errors become the library's own besides."""
    try:
        return check()
    except ValueError as error:
        raise DataError(f"X: {error}") from error
    except TypeError as error:
        raise ArgumentTypeError(f"X: {error}") from error


def _of_rows(groups: Any, rows: Rows) -> Any:  # noqa: ANN401 - any sequence
    """The groups of some rows; None of none.

    Raises:
        ArgumentError: they are not one for each row.
    """
    if groups is None:
        return None
    listed = entries(groups)
    if listed.shape != rows.shape:
        raise ArgumentError(f"groups: expected one for each of {len(rows)} rows, got the shape {listed.shape}.")
    return listed[rows]


def _index(X: Any, rows: Rows) -> Any:  # noqa: ANN401 - a pandas Index
    """The labels of the rows of a pandas frame, where each has one of its own; None else."""
    index: Any = getattr(X, "index", None)
    if not hasattr(index, "is_unique") or not index.is_unique or index.hasnans:
        return None
    return index[rows]
