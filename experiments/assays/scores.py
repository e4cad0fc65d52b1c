"""What is measured of imputed assays: squared errors, intervals, and the classes that are read off them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from calmrl_prob.data import MultimodalData
from experiments.assays.cohorts import Hidden
from experiments.assays.contenders import Impute
from experiments.comparison.imputers import Array, has, values
from experiments.default_choice.measures import explained_share

#: Inverse penalties of the classifier, of which cross-validation on training rows takes one.
_PENALTIES = (1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class Readers:
    """For each assay a classifier that was trained on measured rows of it, the same for all contenders."""

    by_assay: Mapping[str, Any]

    @classmethod
    def of(cls, train: MultimodalData, seed: int) -> Readers:
        """Logistic regression on the training rows that have the assay.

        Args:
            train: rows, with classes.
            seed: of the folds.
        """
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV, StratifiedKFold

        found = {}
        for name in train.names:
            rows = has(train, name)
            folds = StratifiedKFold(3, shuffle=True, random_state=seed)
            search = GridSearchCV(LogisticRegression(max_iter=300), {"C": list(_PENALTIES)}, cv=folds)
            found[name] = search.fit(values(train, name)[rows], np.asarray(train.labels)[rows])
        return cls(found)

    def accuracy(self, name: str, assay: Array, labels: Any) -> float:  # noqa: ANN401 - an array of classes
        """Share in percent of rows whose class is read off an assay (n, D)."""
        return 100.0 * float(np.mean(self.by_assay[name].predict(assay) == np.asarray(labels)))


def score(impute: Impute, hidden: Hidden, readers: Readers) -> list[dict[str, Any]]:
    """One row for each assay: imputed from all others, of test rows that have them.

    Returns:
        assay; R2; coverage, percent, of 90% intervals (None without); accuracy, percent, of classes read off the
        imputed assay; measured, the same off the measured one; rows.
    """
    out = []
    for name, rows in hidden.tested.items():
        found = impute(rows.select([n for n in rows.names if n != name]), name)
        truth = values(rows, name)
        held = None
        if found.low is not None and found.high is not None:
            held = 100.0 * float(np.mean((found.low <= truth) & (truth <= found.high)))
        out.append(
            {
                "assay": name,
                "R2": explained_share(truth, found.mean, hidden.task.centre[name]),
                "coverage": held,
                "accuracy": readers.accuracy(name, found.mean, rows.labels),
                "measured": readers.accuracy(name, truth, rows.labels),
                "rows": len(rows),
            }
        )
    return out
