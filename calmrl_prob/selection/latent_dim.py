"""Choice of the number of latents: held-out evidence against K, and the count that ARD keeps."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calmrl_prob._support.arguments import brief, checked_seed, whole_number
from calmrl_prob._support.progress import Callback
from calmrl_prob.data import MultimodalData, require_fittable
from calmrl_prob.data.stream import require_data
from calmrl_prob.errors import ArgumentError, ArgumentTypeError
from calmrl_prob.linear_gaussian import (
    FeatureBlocks,
    LinearGaussian,
    ObservedBlocks,
    SufficientStatistics,
    fit_em,
    log_marginal,
)
from calmrl_prob.selection.folds import Fold, StatisticsFold, folds_to_fit, make_folds
from calmrl_prob.selection.shown import shown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Rows = NDArray[np.float64]

#: Share of a modality's variance above which a latent is said to serve it.
_SERVES = 2e-3
#: Latents that ARD begins with, for each one that was chosen, and its steps at most: each turns all pairs of latents.
_TIMES, _ARD_STEPS = 2, 100


@dataclass(frozen=True, eq=False, repr=False)
class LatentDimChoice:
    """The number of latents chosen, and what it was chosen by; :func:`calmrl_prob.plots.latent_dim_choice` draws it.

    Attributes:
        latent_dim: K, the fewest latents that are behind the best by no more than one standard error of the difference.
            This is the one to take, for density and imputation.
        best: K of the best held-out evidence.
        curve: one row for each K: ``latent_dim``, ``evidence`` (mean log density of a held-out row, nats), ``error``
            (its standard error over rows), ``behind`` (the best's evidence less this one's, nats for each row) and
            ``behind_error`` (the standard error of that, row by row against the best; 0 for the best itself).
        ard_count: how many latents ARD keeps for at least one modality, out of ``ard_limit``. It is a check, not a
            second opinion on held-out rows: it counts what training rows use, and only where it is below the limit.
        ard_limit: how many ARD began with: the fewest tried that are twice those chosen, or the largest K tried.
    """

    latent_dim: int
    best: int
    curve: pd.DataFrame
    ard_count: int
    ard_limit: int

    @property
    def ard_is_limited(self) -> bool:
        """Whether ARD kept all latents there were, so that its count is of what was tried, not of what is needed."""
        return self.ard_count >= self.ard_limit

    def __repr__(self) -> str:
        return f"LatentDimChoice(latent_dim={self.latent_dim}, best={self.best}, {self.ard_summary})"

    @property
    def ard_summary(self) -> str:
        """Count of the latents that ARD kept, in words."""
        limit = ", all there were: says nothing" if self.ard_is_limited else ""
        return f"kept by ARD: {self.ard_count} of {self.ard_limit}{limit}"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Deprecated: use :func:`calmrl_prob.plots.latent_dim_choice`."""
        warnings.warn(
            "LatentDimChoice.plot goes with the next release; call cal.plots.latent_dim_choice(choice) instead.",
            DeprecationWarning,
            stacklevel=2,
        )
        plots: Any = sys.modules[__name__.partition(".")[0]].plots  # by way of the package: plots lie above inference
        axes: Axes = plots.latent_dim_choice(self, ax)
        return axes


def choose_latent_dim(
    data: MultimodalData,
    latent_dims: Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
    *,
    noise: str = "isotropic",
    noise_pseudo_count: float = 0.0,
    folds: int = 5,
    seed: int = 0,
    progress: bool | None = None,
) -> LatentDimChoice:
    """Choose the number of latents by the evidence of rows that were held out.

    For each K the model is fitted by EM to all but one fold, and log p(x_n) is averaged over the rows of that fold. The
    fewest latents within one standard error of the best are chosen: beyond, the curve is flat, and retrieval may still
    gain (choose by what you need). The standard error is that of the difference, row by row: rows that are hard are so
    for every K, and how much they differ from each other says nothing of which K is better. Beside it, an EM fit with
    ARD on all rows, of twice the latents chosen, says how many it keeps, which means something only if it is fewer than
    it was given. Folds are those of ``calmrl_prob.fit``: their statistics where these cost less than their rows.

    This asks what the joint density needs. How features of one modality go together outweighs there what modalities
    tell of each other, so it is not what to choose K for imputation by: leave ``latent_dim`` of a ``SharedLatentModel``
    open for that, and ``calmrl_prob.fit`` chooses it with the prior that it needs.

    Source: Hastie, Tibshirani & Friedman, The Elements of Statistical Learning (2009), section 7.10, for the rule.

    Args:
        data: N instances.
        latent_dims: the K to try; those that the rows of a fit cannot carry are left out.
        noise: "isotropic" or "diagonal", as for ``fit``.
        noise_pseudo_count: weight of the noise prior, as for ``fit``.
        folds: parts that rows are dealt to; of parts of 1,500 rows or more two are held out, which tell enough.
        seed: of the folds and fits.
        progress: show a progress bar on standard error; by default where it takes more than a few seconds and standard
            error is a terminal.

    Raises:
        ArgumentError: no K can be tried, or too many folds.
        ArgumentTypeError: an argument is of another type.
        DataError: the data cannot be fitted.

    Example:
        >>> made = __import__("calmrl_prob").datasets.make_synthetic(300, latent_dim=3, seed=0)
        >>> found = choose_latent_dim(made.data, latent_dims=[1, 2, 3, 4, 6])
        >>> found.latent_dim, list(found.curve.columns)
        (3, ['latent_dim', 'evidence', 'error', 'behind', 'behind_error'])
    """
    dims, folds, seed = _checked(data, latent_dims, folds, seed)
    most = min(len(data) - -(-len(data) // folds), sum(data.dims.values())) - 1
    tried = sorted({k for k in dims if k <= most})
    if not tried:
        raise ArgumentError(f"latent_dims: none of {dims} is at most {most}, which is what can be carried.")
    parts = make_folds(data, tried[-1], folds, seed)
    parts = parts[: max(2, folds_to_fit(len(parts), len(data)))]
    settings: dict[str, Any] = {"noise": noise, "noise_pseudo_count": noise_pseudo_count, "seed": seed}
    with shown(progress, "choosing K", len(tried) * len(parts) + 1, data) as report:
        fits, scores = _fitted(parts, tried, settings, report)
        best, chosen, curve = _chosen(scores)
        limit = min((k for k in tried if k >= _TIMES * chosen), default=tried[-1])
        count = _ard_count(_whole(data, parts), fits[limit], settings)
        if report is not None:
            report(len(tried) * len(parts) + 1, float("nan"))
    return LatentDimChoice(chosen, best, curve, count, limit)


def _checked(data: MultimodalData, latent_dims: Sequence[int], folds: int, seed: int) -> tuple[list[int], int, int]:
    """The numbers of latents, of folds, and the seed; refuses what does not serve."""
    require_data(data)
    if isinstance(latent_dims, str) or not isinstance(latent_dims, Iterable):
        raise ArgumentTypeError(
            f"latent_dims: expected a sequence of whole numbers, got {brief(latent_dims)}; pass one such as [2, 4, 8]."
        )
    dims = [whole_number("latent_dims", k, least=1) for k in latent_dims]
    folds, seed = whole_number("folds", folds, least=2), checked_seed(seed)
    require_fittable(data)
    if folds > len(data) // 2:
        raise ArgumentError(f"folds: {folds} are too many for {len(data)} instances; use {max(2, len(data) // 2)}.")
    return dims, folds, seed


def _fitted(
    parts: Sequence[Fold], tried: Sequence[int], settings: Mapping[str, Any], report: Callback | None
) -> tuple[dict[int, LinearGaussian], dict[int, Rows]]:
    """For each K the fit of the first fold, and log p(x_n) of the rows of all folds, fold by fold."""
    fits: dict[int, LinearGaussian] = {}
    scores: dict[int, list[Rows]] = {k: [] for k in tried}
    for number, part in enumerate(parts):
        assert part.data is not None
        held_out = part.data.blocks
        for i, k in enumerate(tried):
            lg = fit_em(part.train, k, **settings).linear_gaussian
            fits.setdefault(k, lg)
            scores[k].append(log_marginal(lg, held_out).cpu().numpy())
            if report is not None:
                report(number * len(tried) + i + 1, float(scores[k][-1].sum()))
    return fits, {k: np.concatenate(rows) for k, rows in scores.items()}


def _chosen(scores: Mapping[int, Rows]) -> tuple[int, int, pd.DataFrame]:
    """The best K, the fewest that are as good, and the curve."""
    import pandas as pd

    best = max(scores, key=lambda k: float(scores[k].mean()))
    rows = [(k, *_mean_and_error(own), *_mean_and_error(scores[best] - own)) for k, own in scores.items()]
    curve = pd.DataFrame(rows, columns=["latent_dim", "evidence", "error", "behind", "behind_error"])
    enough = curve["behind"] <= curve["behind_error"]
    return best, int(curve.loc[enough, "latent_dim"].min()), curve


def _mean_and_error(rows: Rows) -> tuple[float, float]:
    """The mean over rows and its standard error."""
    return float(rows.mean()), float(rows.std(ddof=1) / np.sqrt(len(rows)))


def _whole(data: MultimodalData, parts: Sequence[Fold]) -> ObservedBlocks | FeatureBlocks | SufficientStatistics:
    """All rows, as their statistics where the folds have these."""
    first = parts[0]
    return first.whole if isinstance(first, StatisticsFold) else data.blocks


def _ard_count(
    data: ObservedBlocks | FeatureBlocks | SufficientStatistics, start: LinearGaussian, settings: Mapping[str, Any]
) -> int:
    """Latents that explain more than a trace of the variance of some modality, in an EM fit with ARD."""
    options = {**settings, "noise_pseudo_count": 0.0, "loadings_prior": "ard", "max_iterations": _ARD_STEPS}
    lg = fit_em(data, start.latent_dim, start=start, **options).linear_gaussian
    kept = np.zeros(start.latent_dim, dtype=bool)
    for name, loadings in lg.loadings.items():
        explained = loadings.square().sum(0)
        total = explained.sum() + lg.noise_variance[name].sum()
        kept |= (explained / total > _SERVES).cpu().numpy()
    return int(kept.sum())
