"""The best of a grid of settings by hand, chosen on the TEST rows.

No user can do that: it bounds what choosing among these settings could give.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

import calmrl_prob as cal
from calmrl_prob.errors import CalmrlError
from experiments.comparison.fitting import collected_warnings
from experiments.default_choice.measures import score_model
from experiments.default_choice.references import timed
from experiments.default_choice.removal import Task

logger = logging.getLogger(__name__)

#: What says whose rows of the grid they are.
_TASK = ("dataset", "missing", "seed")


@dataclass(frozen=True)
class Grid:
    """Settings to try, all combinations; automatic relevance determination besides, with the middle K.

    Attributes:
        latent_dims: K.
        pseudo_rows: weights of the prior of the joint covariance; 0 is maximum likelihood.
        pooling: of the variances of that prior.
        noise: "isotropic", "diagonal".
        max_iterations: of each fit.
    """

    latent_dims: Sequence[int]
    pseudo_rows: Sequence[float]
    pooling: Sequence[float]
    noise: Sequence[str]
    max_iterations: int = 300

    def settings(self) -> Iterator[dict[str, Any]]:
        """Each setting: ``latent_dim`` and ``noise`` of the model, and options of ``cal.fit``."""
        for noise in self.noise:
            yield {"latent_dim": self.latent_dims[len(self.latent_dims) // 2], "noise": noise, "loadings_prior": "ard"}
            for latent_dim in self.latent_dims:
                for weight in self.pseudo_rows:
                    for pooling in self.pooling if weight else self.pooling[:1]:  # without pseudo-rows nothing to pool
                        prior = {"pseudo_rows": float(weight), "pseudo_row_pooling": float(pooling)} if weight else {}
                        yield {"latent_dim": latent_dim, "noise": noise, **prior}


@dataclass(frozen=True)
class Oracle:
    """The best of a grid, by what the test rows say.

    Attributes:
        grid: what to try.
        earlier: rows of the ``oracle.csv`` of an earlier run, which are not fitted again; None for none.
    """

    grid: Grid
    earlier: pd.DataFrame | None = None

    def tried(self, task: Task, named: Mapping[str, Any]) -> list[dict[str, Any]]:
        """One row for each setting that can be fitted.

        Args:
            task: rows.
            named: data set, missingness and seed.
        """
        if self.earlier is not None:
            mine = self.earlier
            for column in _TASK:
                mine = mine[mine[column] == named[column]]
            if len(mine):
                return [{str(key): value for key, value in row.items()} for row in mine.to_dict("records")]
        most = min(len(task.train), sum(task.train.dims.values())) - 1
        rows: dict[str, dict[str, Any]] = {}
        for setting in self.grid.settings():
            setting = setting | {"latent_dim": min(setting["latent_dim"], most)}
            text = " ".join(f"{key}={value}" for key, value in setting.items())
            if text not in rows:
                rows[text] = dict(named) | {"setting": text} | self._fitted(task, setting)
        return list(rows.values())

    def _fitted(self, task: Task, setting: Mapping[str, Any]) -> dict[str, Any]:
        options = dict(setting) | {"max_iterations": self.grid.max_iterations}
        model = cal.SharedLatentModel(task.train.dims, options.pop("latent_dim"), noise=options.pop("noise"))
        try:
            with collected_warnings():  # a fit that stops early counts as it is
                _, seconds = timed(lambda: cal.fit(model, task.train, **options))
                return score_model(model, task.test, task.centre).row | {"seconds": seconds}
        except CalmrlError as error:
            logger.info("%s: %s", setting, error)
            return {"note": str(error)}


def best_of(tried: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The best that each measure came to, with the coverage and seconds of the setting of best R^2.

    Each measure is the best by itself: no one setting need reach them all.

    Args:
        tried: rows of :meth:`Oracle.tried`.

    Example:
        >>> tried = [{"setting": "a", "R2": 0.3, "R2 by pair": 0.1, "R@1": 5.0, "coverage 90%": 88.0},
        ...          {"setting": "b", "R2": 0.2, "R2 by pair": 0.2, "R@1": 9.0, "coverage 90%": 91.0}]
        >>> best = best_of(tried)
        >>> best["R2"], best["R@1"], float(best["coverage 90%"]), best["setting"]
        (0.3, 9.0, 88.0, 'R2: a; R@1: b')
    """
    rows = pd.DataFrame(list(tried))
    if "R2" not in rows or rows["R2"].isna().all():
        return {"note": "no setting could be fitted"}
    by_error, by_recall = rows.loc[rows["R2"].idxmax()], rows.loc[rows["R@1"].idxmax()]
    best = {str(key): by_error[key] for key in rows if key not in (*_TASK, "note")}
    best |= {name: float(rows[name].max()) for name in ("R2", "R2 by pair", "R@1")}
    return best | {"setting": f"R2: {by_error['setting']}; R@1: {by_recall['setting']}"}
