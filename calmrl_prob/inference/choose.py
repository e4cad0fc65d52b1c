"""Choice of the number of latents: held-out evidence against K, and the count that ARD keeps."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calmrl_prob._support.arguments import brief, checked_seed, described, whole_number
from calmrl_prob._support.progress import progress_bar
from calmrl_prob.data import MultimodalData, require_fittable
from calmrl_prob.errors import ArgumentError, ArgumentTypeError
from calmrl_prob.linear_gaussian import fit_em, log_marginal

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

#: Share of a modality's variance above which a latent is said to serve it.
_SERVES = 2e-3


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
        ard_limit: the largest K tried.
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
    progress: bool = False,
) -> LatentDimChoice:
    """Choose the number of latents by the evidence of rows that were held out.

    For each K the model is fitted by EM to all but one fold, and log p(x_n) is averaged over the rows of that fold. The
    fewest latents within one standard error of the best are chosen: beyond, the curve is flat, and retrieval may still
    gain (choose by what you need). The standard error is that of the difference, row by row: rows that are hard are so
    for every K, and how much they differ from each other says nothing of which K is better. Beside it, an EM fit with
    ARD on all rows says how many latents it keeps, which means something only if it is fewer than it was given.

    This asks what the joint density needs. How features of one modality go together outweighs there what modalities
    tell of each other, so it is not what to choose K for imputation by: leave ``latent_dim`` of a ``SharedLatentModel``
    open for that, and ``calmrl_prob.fit`` chooses it with the prior that it needs.

    Source: Hastie, Tibshirani & Friedman, The Elements of Statistical Learning (2009), section 7.10, for the rule.

    Args:
        data: N instances.
        latent_dims: the K to try; those that the rows of a fit cannot carry are left out.
        noise: "isotropic" or "diagonal", as for ``fit``.
        noise_pseudo_count: weight of the noise prior, as for ``fit``.
        folds: parts that rows are dealt to.
        seed: of the folds and fits.
        progress: show a progress bar on standard error.

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
    import pandas as pd

    if not isinstance(data, MultimodalData):
        raise ArgumentTypeError(f"data: expected MultimodalData, got {described(data)}; wrap it in MultimodalData.")
    if isinstance(latent_dims, str) or not isinstance(latent_dims, Iterable):
        raise ArgumentTypeError(
            f"latent_dims: expected a sequence of whole numbers, got {brief(latent_dims)}; pass one such as [2, 4, 8]."
        )
    dims = [whole_number("latent_dims", k, least=1) for k in latent_dims]
    folds, seed = whole_number("folds", folds, least=2), checked_seed(seed)
    require_fittable(data)
    if folds > len(data) // 2:
        raise ArgumentError(f"folds: {folds} are too many for {len(data)} instances; use {max(2, len(data) // 2)}.")
    parts = np.array_split(np.random.default_rng(seed).permutation(len(data)), folds)
    most = min(len(data) - max(map(len, parts)), sum(data.dims.values())) - 1
    tried = sorted({k for k in dims if k <= most})
    if not tried:
        raise ArgumentError(f"latent_dims: none of {dims} is at most {most}, which is what can be carried.")
    scores = {k: np.empty(len(data)) for k in tried}
    bar = progress_bar("choosing K", len(tried) * folds) if progress else nullcontext()
    with bar as report:
        for fold, held in enumerate(parts):
            kept = data.subset(np.setdiff1d(np.arange(len(data)), held))
            held_out = data.subset(held).blocks
            for i, k in enumerate(tried):
                lg = fit_em(
                    kept.blocks, k, noise=noise, seed=seed, noise_pseudo_count=noise_pseudo_count
                ).linear_gaussian
                scores[k][held] = log_marginal(lg, held_out).cpu().numpy()
                if report is not None:
                    report(fold * len(tried) + i + 1, float(scores[k][held].sum()))
    best = max(tried, key=lambda k: float(scores[k].mean()))
    rows = [(k, *_mean_and_error(scores[k]), *_mean_and_error(scores[best] - scores[k])) for k in tried]
    curve = pd.DataFrame(rows, columns=["latent_dim", "evidence", "error", "behind", "behind_error"])
    enough = curve["behind"] <= curve["behind_error"]
    return LatentDimChoice(
        int(curve.loc[enough, "latent_dim"].min()), best, curve, _ard_count(data, tried[-1], noise, seed), tried[-1]
    )


def _mean_and_error(rows: NDArray[np.float64]) -> tuple[float, float]:
    """The mean over rows and its standard error."""
    return float(rows.mean()), float(rows.std(ddof=1) / np.sqrt(len(rows)))


def _ard_count(data: MultimodalData, latent_dim: int, noise: str, seed: int) -> int:
    """Latents that explain more than a trace of the variance of some modality, in an EM fit with ARD."""
    lg = fit_em(data.blocks, latent_dim, noise=noise, seed=seed, loadings_prior="ard").linear_gaussian
    kept = np.zeros(latent_dim, dtype=bool)
    for name, loadings in lg.loadings.items():
        explained = loadings.square().sum(0)
        total = explained.sum() + lg.noise_variance[name].sum()
        kept |= (explained / total > _SERVES).cpu().numpy()
    return int(kept.sum())
