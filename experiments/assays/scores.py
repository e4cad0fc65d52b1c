"""What is measured of imputed assays: squared errors, intervals, and the classes that are read off them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from calmrl_prob.data import MultimodalData
from experiments.assays.cohorts import Hidden
from experiments.assays.contenders import Fitted, Places
from experiments.comparison.imputers import Array, has, values
from experiments.default_choice.measures import explained_share

#: Inverse penalties of the classifier, of which cross-validation on training rows takes one.
_PENALTIES = (1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class Readers:
    """Classifiers of training rows: for each assay one of measured rows of it, the same for all contenders.

    Attributes:
        train: rows, with classes.
        by_assay: classifiers.
    """

    train: MultimodalData
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
        return cls(train, found)

    def accuracy(self, name: str, assay: Array, labels: Any) -> float:  # noqa: ANN401 - an array of classes
        """Share in percent of rows whose class is read off an assay (n, D)."""
        return 100.0 * float(np.mean(self.by_assay[name].predict(assay) == np.asarray(labels)))

    def of_places(self, places: Places | None) -> Callable[[MultimodalData], float | None]:
        """The same share from rows, their classes read off a contender's latents; None where it has none.

        Args:
            places: latents of rows; the classifier is trained on those of the training rows.
        """
        from sklearn.linear_model import LogisticRegression

        if places is None:
            return lambda rows: None
        reader = LogisticRegression(max_iter=2000).fit(places(self.train), np.asarray(self.train.labels))
        return lambda rows: 100.0 * float(np.mean(reader.predict(places(rows)) == np.asarray(rows.labels)))


def score(fitted: Fitted, hidden: Hidden, readers: Readers) -> list[dict[str, Any]]:
    """One row for each assay: imputed from all others, of test rows that have them.

    Returns:
        assay; R2; coverage, percent, of 90% intervals (None without); accuracy, percent, of classes read off the
        imputed assay; latent, the same off the latents given the other assays (None without); measured, the same off
        the measured assay; rows.
    """
    out, by_places = [], readers.of_places(fitted.places)
    for name, rows in hidden.tested.items():
        others = rows.select([n for n in rows.names if n != name])
        found = fitted.impute(others, name)
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
                "latent": by_places(others),
                "measured": readers.accuracy(name, truth, rows.labels),
                "rows": len(rows),
            }
        )
    return out
