"""The choice: what was tried, how it scored, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from calmrl_prob.selection.search import Search, Tried
from calmrl_prob.selection.settings import Setting

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class Choice:
    """The settings that a fit chose by held-out imputations; ``cal.plots.choice`` draws it.

    Attributes:
        setting: what was chosen.
        table: one row for each setting tried, in order: ``latent_dim``, ``noise``, ``family`` (of the latents),
            ``prior``, ``pseudo_rows``, ``pooling``, ``ard``; ``score`` (higher is better, ``selection/scores.py``) with
            ``error`` (standard error over folds; NaN of one), ``behind`` (the chosen one's score less this one's) and
            ``behind_error``; ``r2`` and ``log_score`` (mean over modalities), ``calibration`` (mean squared
            standardised error: 1 where variances stated are right); ``r2/<modality>``;
            ``seconds`` (CPU); ``reason`` of trying it; ``chosen``.
        criterion: "imputation" or "retrieval".
        scale: "none", "modality" or "feature": what units the fit worked in.
        num_folds: of the rows, that settings were scored on: fewer than they were dealt to where rows are many.
        not_tried: what was asked for and not tried, as the budget left no time or the data do not admit it, in words;
            empty if nothing.
        fallback: why nothing could be scored, in words; empty if it could.
    """

    setting: Setting
    table: pd.DataFrame
    criterion: str
    scale: str
    num_folds: int
    not_tried: str = ""
    fallback: str = ""

    @property
    def latent_dim(self) -> int:
        """K."""
        return self.setting.latent_dim

    @property
    def noise(self) -> str:
        """The form of the noise."""
        return self.setting.noise

    @property
    def family(self) -> str:
        """The family of the prior of the latents: "normal", "student_t" or "mixture"."""
        return self.setting.family

    @property
    def options(self) -> dict[str, Any]:
        """The options of ``cal.fit`` that were chosen."""
        return self.setting.options()

    @property
    def r2(self) -> dict[str, float]:
        """For each modality the held-out R^2 of imputing it, at the chosen setting; 0 = its mean.

        Of a model with batches 0 is the mean of a batch, as shifts are taken off before: not to be compared with that
        of a model without.
        """
        if self.table.empty:
            return {}
        row = self.table[self.table["chosen"]].iloc[0]
        return {key[3:]: float(value) for key, value in row.items() if str(key).startswith("r2/")}

    def __repr__(self) -> str:
        """One line: what was chosen, and how it does."""
        if self.fallback:
            return f"Choice({self.setting}; not by held-out imputations: {self.fallback})"
        row = self.table[self.table["chosen"]].iloc[0]
        left = f"; {self.not_tried}" if self.not_tried else ""
        error = f" +/- {row['error']:.3f}" if np.isfinite(row["error"]) else ""
        return (
            f"Choice({self.setting}; of {len(self.table)} settings in {self.num_folds} fold{'s'[: self.num_folds - 1]} "
            f"by {self.criterion}: held-out R^2 {row['r2']:.3f}, score {row['score']:.3f}{error}{left})"
        )


def choice_of(search: Search, best: Tried, criterion: str, scale: str, not_tried: str = "") -> Choice:
    """The result of a search, and the setting taken."""
    import pandas as pd

    rows = [_row(tried, best, search) for tried in search.tried.values()]
    return Choice(best.setting, pd.DataFrame(rows), criterion, scale, len(search.folds), not_tried)


def no_choice(setting: Setting, criterion: str, scale: str, fallback: str) -> Choice:
    """The stand-in where nothing can be scored, with the reason."""
    import pandas as pd

    return Choice(setting, pd.DataFrame(), criterion, scale, 0, fallback=fallback)


def _row(tried: Tried, best: Tried, search: Search) -> dict[str, Any]:
    setting, score = tried.setting, tried.score
    values = np.array([search.value_of_fold(fold) for fold in tried.folds])
    behind = np.array([search.value_of_fold(fold) for fold in best.folds])
    known = np.isfinite(behind)  # a fold may hold nothing to compare
    values, behind = values[known], behind[known] - values[known]
    return {
        "latent_dim": setting.latent_dim,
        "noise": setting.noise,
        "family": setting.family,
        "prior": setting.prior,
        "pseudo_rows": setting.pseudo_rows,
        "pooling": setting.pooling,
        "ard": setting.ard,
        "score": search.value(tried),
        "error": _error(values),
        "behind": _mean(behind),
        "behind_error": _error(behind),
        "r2": _mean(score.r2.values()),
        "log_score": _mean(score.log_score.values()),
        "calibration": _mean(score.calibration.values()),
        **{f"r2/{name}": value for name, value in score.r2.items()},
        "seconds": tried.seconds,
        "reason": tried.reason,
        "chosen": tried is best,
    }


def _mean(values: Any) -> float:  # noqa: ANN401 - any collection of numbers
    return float(np.mean(list(values))) if len(values) else float("nan")


def _error(values: np.ndarray) -> float:
    """Standard error of a mean; NaN of fewer than two, and of settings that could not be fitted."""
    return (
        float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 and np.isfinite(values).all() else np.nan
    )
