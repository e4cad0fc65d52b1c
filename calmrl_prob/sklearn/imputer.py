"""CalibratedImputer: missing values of a table from the other values of the row, with their uncertainty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import OneToOneFeatureMixin
from torch import Tensor

from calmrl_prob.data.entries import entries
from calmrl_prob.imputation import Imputation, checked_level, impute
from calmrl_prob.sklearn.base import Rows, TableModel, Values

#: Where a table is one modality, parts in which its columns are hidden to score it.
_PARTS = 3


class CalibratedImputer(OneToOneFeatureMixin, TableModel):  # type: ignore[misc]  # scikit-learn has no annotations
    """Missing values of a table replaced by their posterior means under a ``SharedLatentModel``, and their intervals.

    A scikit-learn transformer: NaN is a missing value, single ones and those of a whole modality alike. Fitting is
    ``calmrl_prob.fit``, which chooses what is left open by held-out imputations; where nothing can be held out, as in a
    table of one modality without any missing value, it takes a strong prior and warns.

    Args:
        modalities: which columns belong together: a mapping of names to columns, each as in a ``ColumnTransformer`` (a
            name, a position, a list or slice of these, booleans, ``make_column_selector`` or another function of the
            table). None for the first level of a pandas MultiIndex of columns; one modality, "X", where there is none.
        latent_dim, noise: of the ``SharedLatentModel``; None and "auto" are chosen by the fit.
        shrinkage, budget: of ``calmrl_prob.fit``. The budget, in seconds, is of the choice, and is not looked at where
            nothing is to be chosen.
        options: further options of ``calmrl_prob.fit``, such as ``{"pseudo_rows": 100.0}`` or ``{"folds": 5}``.
        random_state: of folds and fits, a whole number, or a generator that one is drawn from. None is 0: the same rows
            give the same fit.

    Attributes:
        result_: what ``calmrl_prob.fit`` returned: ``result_.choice`` tells what was chosen, ``result_.model`` is the
            model, and ``cal.impute``, ``cal.save`` and the others take it.
        modalities_: of each modality the numbers of its columns.
        mean_: (D,) mean of the values of each column.
        n_features_in_, feature_names_in_: as scikit-learn has them.

    Example:
        >>> import numpy as np
        >>> generator = np.random.default_rng(0)
        >>> X = generator.normal(size=(200, 2)) @ generator.normal(size=(2, 9)) + 0.1 * generator.normal(size=(200, 9))
        >>> X[:60, 5:] = np.nan
        >>> imputer = CalibratedImputer({"image": slice(0, 5), "text": slice(5, 9)}).fit(X)
        >>> completed = imputer.transform(X)
        >>> bool(np.isfinite(completed).all()), bool((completed[60:] == X[60:]).all()), imputer.score(X) > 0.9
        (True, True, True)
        >>> lower, upper = imputer.interval(X, level=0.9)
        >>> bool((lower[:60, 5:] < completed[:60, 5:]).all()), bool((lower[60:] == upper[60:]).all())
        (True, True)
    """

    def transform(self, X: ArrayLike) -> Values:
        """The table with posterior means where values are missing, (N, D), in the type that it came in.

        A row without any value gets the means of the model.

        Raises:
            DataError: other columns than those fitted to, or infinities.
        """
        values = self._checked(X)
        rows = np.asarray(np.isnan(values).any(axis=1))
        return self._filled(values, rows, self._imputed(values, rows).mean) if rows.any() else values.copy()

    def impute(self, X: ArrayLike) -> Imputation:
        """The imputation of all rows, as ``calmrl_prob.impute`` gives it: means, variances by part, intervals, draws.

        It goes by modality, and knows the ids (a pandas index without repetitions) and the names of the features.
        """
        return impute(self.result_, self._data(X, self._checked(X)))

    def std(self, X: ArrayLike) -> Values:
        """Standard deviations of the missing values, (N, D), in units of the columns; 0 where a value is there."""
        values = self._checked(X)
        rows = np.asarray(np.isnan(values).any(axis=1))
        known = np.where(np.isnan(values), values, 0)
        return self._filled(known, rows, self._imputed(values, rows).variance) ** 0.5 if rows.any() else known

    def interval(self, X: ArrayLike, level: float = 0.9) -> tuple[Values, Values]:
        """Central predictive intervals of the missing values: lower and upper ends, (N, D) each.

        Where a value is there, both ends are that value.

        Args:
            X: (N, D).
            level: probability that an interval is to hold, between 0 and 1.

        Raises:
            ArgumentError: ``level`` is not strictly between 0 and 1.
        """
        values, level = self._checked(X), checked_level(level)
        rows = np.asarray(np.isnan(values).any(axis=1))
        if not rows.any():
            return values.copy(), values.copy()
        ends = self._imputed(values, rows).interval(level)
        lower, upper = ({name: pair[end] for name, pair in ends.items()} for end in (0, 1))
        return self._filled(values, rows, lower), self._filled(values, rows, upper)

    def score(self, X: ArrayLike, y: object = None) -> float:
        """Coefficient of determination R^2 of values that are there, hidden and imputed from the rest of their row.

        Each modality is hidden in turn; where there is but one, a third of its columns at a time. About the means of
        the table fitted to, over rows and columns, and then the mean over what was hidden:

            R^2 = 1 - sum (x - imputed)^2 / sum (x - mean)^2

        1 is perfect, 0 what the mean of each column reaches. NaN where nothing can be hidden.
        """
        del y
        values = self._checked(X)
        parts = [*self.modalities_.values()]
        if len(parts) == 1:
            parts = [parts[0][k::_PARTS] for k in range(min(_PARTS, len(parts[0])))]
        found = [self._explained(values, columns) for columns in parts]
        return float(np.mean(known)) if (known := [r2 for r2 in found if np.isfinite(r2)]) else float("nan")

    def _explained(self, values: Values, columns: NDArray[np.intp]) -> float:
        """The R^2 of some columns, hidden, of the rows that have some of them and others."""
        hidden = values.copy()
        hidden[:, columns] = np.nan
        there, others = ~np.isnan(values[:, columns]), ~np.isnan(hidden)
        rows = np.asarray(there.any(axis=1) & others.any(axis=1))
        if not rows.any():
            return float("nan")
        truth = values[rows][:, columns]
        imputed = self._filled(hidden, rows, self._imputed(hidden, rows).mean)[rows][:, columns]
        error, spread = (float(np.nansum(np.square(truth - guess))) for guess in (imputed, self.mean_[columns]))
        return 1 - error / spread if spread > 0 else float("nan")

    def _imputed(self, values: Values, rows: Rows) -> Imputation:
        """The imputation of some rows; those that are whole need none."""
        return impute(self.result_, self._data(None, values, rows))

    def _filled(self, values: Values, rows: Rows, table: Mapping[str, Tensor]) -> Values:
        """A table with what is in another, of some rows by modality, where values are missing."""
        out = values.copy()
        for name, columns in self.modalities_.items():
            cells = np.ix_(rows, columns)
            missing = np.isnan(out[cells])
            if missing.any():
                out[cells] = np.where(missing, table[name].numpy(force=True), out[cells])
        return out

    def get_feature_names_out(self, input_features: ArrayLike | None = None) -> NDArray[Any]:
        """The names of the columns as they came; tuples of a MultiIndex, which a frame of the output has again."""
        found = getattr(self, "_levels", None)
        names: NDArray[Any] = super().get_feature_names_out(input_features) if found is None else entries(found)
        return names
