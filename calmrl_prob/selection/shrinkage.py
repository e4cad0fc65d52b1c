"""Choice of the shrinkage of noise and covariance, by rows that were held out of the fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from calmrl_prob._support.arguments import brief, checked_seed, whole_number
from calmrl_prob._support.frozen import FrozenMapping
from calmrl_prob._support.progress import Callback
from calmrl_prob.data import MultimodalData
from calmrl_prob.data.stream import require_data
from calmrl_prob.errors import ArgumentError, ArgumentTypeError
from calmrl_prob.inference.copies import copy_to_fit
from calmrl_prob.inference.fit import fit
from calmrl_prob.inference.posterior import posterior
from calmrl_prob.linear_gaussian import SufficientStatistics
from calmrl_prob.model import SharedLatentModel
from calmrl_prob.priors import NormalPrior
from calmrl_prob.selection.folds import Fold, StatisticsFold, deal, make_folds
from calmrl_prob.selection.predicted import predicted_rows
from calmrl_prob.selection.shown import shown

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]

#: What is tried by default, for ``SharedLatentModel`` by EM: from nothing to strong.
GRID: Mapping[str, Sequence[float]] = FrozenMapping(
    {"pseudo_rows": (0, 25, 50, 100, 200, 400, 800), "noise_floor": (1e-4, 0.03, 0.1, 0.3)}
)


@dataclass(frozen=True, eq=False, repr=False)
class ShrinkageChoice:
    """The chosen options, and how well each setting tried did. Made by :func:`choose_shrinkage`.

    Attributes:
        options: the chosen options of ``cal.fit``, by name; those that were fixed included.
        curve: one row for each setting tried: the options, ``evidence`` (mean over held-out rows, nats), ``error`` (its
            standard error over rows), ``behind`` (the best's less this one's) and ``behind_error`` (the standard error
            of that, row by row).
    """

    options: Mapping[str, Any]
    curve: pd.DataFrame

    def __repr__(self) -> str:
        return f"ShrinkageChoice({', '.join(f'{name}={value:g}' for name, value in self.options.items())})"


def choose_shrinkage(
    model: Any,  # noqa: ANN401 - whatever cal.fit takes
    data: MultimodalData,
    grid: Mapping[str, Sequence[float]] | None = None,
    *,
    criterion: Literal["imputation", "evidence"] = "imputation",
    folds: int = 5,
    seed: int = 0,
    progress: bool | None = None,
    **fixed: Any,
) -> ShrinkageChoice:
    """Choose options of a fit that keep its noise from collapsing, by how likely it finds held-out rows.

    Maximum likelihood explains training rows too well, and the intervals that it states for others are too narrow; a
    floor or a prior of the noise, or a prior of the covariance (``pseudo_rows``), mends that at its root, which no
    recalibration of a finished fit can. The options are varied one after another, from the middle of their ranges, each
    setting being fitted to all folds but one, and scored on that one's rows. Folds are dealt as by ``calmrl_prob.fit``,
    which chooses the prior of a ``SharedLatentModel`` by squared error too.

    Args:
        model: what ``cal.fit`` takes; copies of it are fitted, and it stays as it is.
        data: N training rows, modalities missing or not.
        grid: for each option of ``cal.fit`` the values to choose from, in rising order; ``pseudo_rows`` (0 to 800) and
            ``noise_floor`` (1e-4 to 0.3) by default.
        criterion: "imputation", the log density of a feature of a modality given the row's other modalities, mean over
            features and modalities: what intervals of imputations come from. Or "evidence", log p(x_n) of whole rows,
            in which how features of one modality go together outweighs what modalities tell of each other.
        folds: how many.
        seed: of the folds and the fits.
        progress: show a progress bar on standard error; by default where it takes more than a few seconds and standard
            error is a terminal.
        **fixed: options of ``cal.fit`` that stay, such as ``tolerance``.

    Raises:
        ArgumentError: an option without values, an unknown criterion, or too many folds.
        ArgumentTypeError: ``data`` or ``grid`` is of another type.

    Example:
        >>> from calmrl_prob.datasets import make_synthetic
        >>> from calmrl_prob.model import SharedLatentModel
        >>> data = make_synthetic(60, {"image": 10, "text": 8}, latent_dim=2, seed=0).complete
        >>> model = SharedLatentModel(data.dims, latent_dim=6)
        >>> found = choose_shrinkage(model, data, {"pseudo_rows": [0, 20, 40]}, tolerance=1e-3)
        >>> found.options["pseudo_rows"] > 0
        True
    """
    require_data(data)
    if criterion not in _CRITERIA:
        raise ArgumentError(f"criterion: expected one of {list(_CRITERIA)}, got {criterion!r}.")
    grid = _checked_grid(grid)
    folds, seed = whole_number("folds", folds, least=2), checked_seed(seed)
    if folds > len(data):
        raise ArgumentError(f"folds: {folds} are too many for {len(data)} instances; use {max(2, len(data) // 2)}.")
    total = 1 + sum(len(values) for values in grid.values())
    with shown(progress, "shrinkage", total, data) as callback:
        parts = _parts(model, data, folds, seed, fixed)
        scores = _Scores(model, len(data), parts, _CRITERIA[criterion], {"seed": seed, **fixed}, callback)
        setting: dict[str, Any] = {name: values[len(values) // 2] for name, values in grid.items()}
        scores.mean(setting)
        for name, values in grid.items():
            setting = max(({**setting, name: value} for value in values), key=scores.mean)
    return ShrinkageChoice(FrozenMapping({**fixed, **setting}), scores.curve(setting))


def _checked_grid(grid: Mapping[str, Sequence[float]] | None) -> Mapping[str, Sequence[float]]:
    """For each option the values to choose from; refuses options without any."""
    if grid is None:
        return GRID
    if not isinstance(grid, Mapping):
        raise ArgumentTypeError(f"grid: expected a mapping of options to values, got {brief(grid)}.")
    for name, values in grid.items():
        if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray):
            raise ArgumentTypeError(
                f"grid[{name!r}]: expected a list of values, got {brief(values)}; use [{values!r}]."
            )
        if not len(values):
            raise ArgumentError(f"grid[{name!r}]: expected at least one value, got none.")
    return grid


@dataclass(frozen=True, eq=False)
class _Part:
    """One fold.

    Attributes:
        train: of the other folds: rows, or their statistics where the fit takes these at less cost.
        held_out: the rows of this one.
        rows: (n,) their numbers.
    """

    train: MultimodalData | SufficientStatistics
    held_out: MultimodalData
    rows: NDArray[np.int64]


def _parts(model: object, data: MultimodalData, folds: int, seed: int, fixed: Mapping[str, Any]) -> list[_Part]:
    """The folds, dealt as for ``calmrl_prob.fit``."""
    fold = deal(len(data), folds, seed)
    found = []
    served: Sequence[Fold | None] = [None] * folds
    gaussian = isinstance(model, SharedLatentModel) and model.settled and isinstance(model.prior, NormalPrior)
    if gaussian and fixed.get("method", "auto") in ("auto", "em") and fixed.get("form", "auto") == "auto":
        assert isinstance(model, SharedLatentModel)
        data.require_schema(model.dims)
        served = make_folds(data.conform(model.dims), model.latent_dim, folds, seed)
    for k, part in enumerate(served):
        rows = np.flatnonzero(fold == k)
        train = data.subset(fold != k) if not isinstance(part, StatisticsFold) else part.train
        found.append(_Part(train, data.subset(rows), rows))
    return found


@dataclass
class _Scores:
    """Scores of settings on held-out rows, (N,) for each setting tried; each is fitted once.

    Attributes:
        model: copies of it are fitted.
        num_instances: N.
        parts: the folds.
        criterion: of a fit and rows that it was not fitted to, (n,).
        fixed: options of each fit.
        callback: told how many were tried; None for nobody.
        tried: the scores by the values of the setting, in the order of the grid.
    """

    model: Any
    num_instances: int
    parts: Sequence[_Part]
    criterion: Callable[[Any, MultimodalData], Array]
    fixed: Mapping[str, Any]
    callback: Callback | None
    tried: dict[tuple[float, ...], Array] = field(default_factory=dict)

    def mean(self, setting: Mapping[str, Any]) -> float:
        """Over the rows that have a score."""
        key = tuple(setting.values())
        if key not in self.tried:
            scores = np.empty(self.num_instances)
            for part in self.parts:
                fitted = fit(copy_to_fit(self.model), part.train, **self.fixed, **setting)
                scores[part.rows] = self.criterion(fitted, part.held_out)
            self.tried[key] = scores
            if self.callback is not None:
                self.callback(len(self.tried), float("nan"))
        return float(np.nanmean(self.tried[key]))

    def curve(self, chosen: Mapping[str, Any]) -> pd.DataFrame:
        """One row for each setting tried: mean, and how far behind the chosen one, each with its standard error."""
        import pandas as pd

        best = self.tried[tuple(chosen.values())]
        scored = np.isfinite(best)  # a row of one modality tells nothing of imputation
        root = scored.sum() ** 0.5
        rows = []
        for key, scores in self.tried.items():
            own, behind = scores[scored], (best - scores)[scored]
            rows.append(
                {
                    **dict(zip(chosen, key, strict=True)),
                    "evidence": own.mean(),
                    "error": own.std(ddof=1) / root,
                    "behind": behind.mean(),
                    "behind_error": behind.std(ddof=1) / root,
                }
            )
        return pd.DataFrame(rows)


def _imputation(model: object, data: MultimodalData) -> Array:
    """Mean log density of a feature given the row's other modalities, (N,); NaN where a row has one modality."""
    total, count = np.zeros(len(data)), np.zeros(len(data))
    for part in predicted_rows(model, data):
        total[part.rows] += part.log_density.nanmean(dim=1).cpu().numpy()
        count[part.rows] += 1
    mean: Array = np.divide(total, count, out=np.full(len(data), np.nan), where=count > 0)
    return mean


def _evidence(model: Any, data: MultimodalData) -> Array:  # noqa: ANN401
    """log p(x_n), (N,)."""
    found: Array = posterior(model, data).log_marginal.detach().cpu().numpy()
    return found


#: Criteria that settings are chosen by: functions of a fitted model and rows, which return a number for each row.
_CRITERIA: dict[str, Callable[[Any, MultimodalData], Array]] = {"imputation": _imputation, "evidence": _evidence}
