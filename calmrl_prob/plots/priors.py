"""Prior beside posterior: what was assumed before the data, and what is known after them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.distributions import Distribution

from calmrl_prob._support.arguments import whole_number
from calmrl_prob.errors import ArgumentError, ArgumentTypeError
from calmrl_prob.plots.canvas import BLACK, BLUE, GREY, Array, canvas, numbers, row_numbers, series_style
from calmrl_prob.posteriors.gaussian import GaussianPosterior
from calmrl_prob.posteriors.posterior import PosteriorResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST = 6
#: Share of draws of a prior that may fall outside the axes: heavy tails would squeeze everything else.
_TAIL = 0.02


def prior_against_posterior(
    posterior: PosteriorResult | ArrayLike | Tensor,
    prior: ArrayLike | Tensor | Distribution | None = None,
    ax: Axes | None = None,
    *,
    latent: int = 0,
    instances: Sequence[int] | None = None,
    name: str | None = None,
    bins: int = 40,
) -> Axes:
    """Prior and posterior densities of one quantity.

    Given the posterior of the latents by the exact route, in closed form: the prior N(m0_k, S0_kk) of latent k, the
    posteriors of some instances, and the mean of the posteriors of all. Under the right model the last equals the
    prior, since p(z) is the mean of p(z | x) over x. Given draws of anything else, histograms, and of a prior that is a
    distribution its density. Read off: how much the data have said (how much narrower the posterior is), and whether
    they disagree with the prior (it lies in the prior's tail).

    Args:
        posterior: what :func:`calmrl_prob.posterior` returns by the exact route; or draws of a scalar, (S,) or
            (chains, draws).
        prior: with draws: draws from the prior, or its (univariate) distribution of torch or Pyro.
        ax: where to draw; new axes by default.
        latent: k, which latent of an exact posterior.
        instances: row numbers of instances whose posteriors are shown, 6 at most; the first three by default.
        name: of the quantity, with its unit.
        bins: of histograms.

    Returns:
        The axes.

    Raises:
        ArgumentError: a posterior of another route (pass its draws), a prior too many or too few, or no such latent.
        ArgumentTypeError: something is no number.
        DataError: a draw is not finite.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> cal = __import__("calmrl_prob")
        >>> synthetic = cal.datasets.make_synthetic(100, seed=0)
        >>> ax = prior_against_posterior(cal.posterior(synthetic.truth, synthetic.data), latent=1)
        >>> ax = prior_against_posterior(torch.randn(100).exp(), torch.distributions.HalfNormal(2.0), name="noise (V)")
        >>> ax.get_xlabel()
        'noise (V)'
    """
    if isinstance(posterior, PosteriorResult):
        if not isinstance(posterior, GaussianPosterior):
            raise ArgumentError(
                f"posterior: route {posterior.route!r} has no closed form here; pass draws, such as "
                "posterior.sample(500)[:, n, k], and prior."
            )
        if prior is not None:
            raise ArgumentError("prior: an exact posterior knows its own; leave it out.")
        return _closed_form(posterior, ax, latent, instances, name)
    draws = numbers("posterior", posterior).ravel()
    if prior is None:
        raise ArgumentError("prior: with draws of the posterior, pass draws of the prior too, or its distribution.")
    bins = whole_number("bins", bins, least=1)
    before = None if isinstance(prior, Distribution) else numbers("prior", prior).ravel()
    low, high = np.quantile(draws, [0.001, 0.999])
    if before is not None:
        low, high = min(low, np.quantile(before, _TAIL)), max(high, np.quantile(before, 1 - _TAIL))
    else:
        low, high = low - 0.5 * (high - low), high + 0.5 * (high - low)
    if not low < high:
        low, high = low - 0.5, high + 0.5
    density = None if before is not None else _density(prior, np.linspace(low, high, 400))
    with canvas(ax) as ax:
        edges = np.linspace(low, high, bins + 1)
        if density is None:
            ax.stairs(_histogram(before, edges), edges, color=GREY, linewidth=1.4, linestyle="--", label="prior")
        else:
            ax.plot(*density, color=GREY, linewidth=1.4, linestyle="--", label="prior")
        ax.stairs(_histogram(draws, edges), edges, color=BLUE, fill=True, alpha=0.4, label="posterior")
        _finish(ax, name or "value")
        return ax


def _closed_form(
    result: GaussianPosterior, ax: Axes | None, latent: int, instances: Sequence[int] | None, name: str | None
) -> Axes:
    from scipy.stats import norm

    count, latent_dim = result.mean.shape
    k = whole_number("latent", latent)
    if k >= latent_dim:
        raise ArgumentError(f"latent: expected one of 0 .. {latent_dim - 1}, got {k}.")
    rows = row_numbers("instances", range(min(3, count)) if instances is None else instances, count, _MOST)
    lg = result.linear_gaussian
    mean = result.mean[:, k].double().cpu().numpy()
    spread = result.pattern_covariance[:, k, k].double().cpu().numpy()[result.pattern_index.cpu().numpy()] ** 0.5
    centre, width = float(lg.prior_mean[k]), float(lg.prior_covariance[k, k]) ** 0.5
    low = min(centre - 3.5 * width, float((mean - 3 * spread).min()))
    high = max(centre + 3.5 * width, float((mean + 3 * spread).max()))
    grid = np.linspace(low, high, 400)
    patterns = np.zeros_like(grid)
    for start in range(0, count, 4096):  # (N, 400) may not fit
        part = slice(start, start + 4096)
        patterns += norm.pdf(grid[:, None], mean[part], spread[part]).sum(1)
    with canvas(ax) as ax:
        ax.plot(grid, norm.pdf(grid, centre, width), color=GREY, linestyle="--", linewidth=1.6, label="prior")
        ax.plot(grid, patterns / count, color=BLACK, linewidth=1.6, label=f"mean posterior of {count:,} instances")
        for number, row in enumerate(rows):
            options = series_style(number, marker=False) | {"linewidth": 1}
            ax.plot(grid, norm.pdf(grid, mean[row], spread[row]), label=f"posterior of instance {row}", **options)
        _finish(ax, name or f"latent {k} (units of the prior)")
        return ax


def _density(prior: ArrayLike | Tensor | Distribution | None, grid: Array) -> tuple[Array, Array]:
    """A grid and the density there; 0 outside the support."""
    assert isinstance(prior, Distribution)
    if prior.batch_shape.numel() != 1 or prior.event_shape.numel() != 1:
        raise ArgumentError(
            f"prior: expected a distribution of one number, got batch shape {tuple(prior.batch_shape)} and event shape "
            f"{tuple(prior.event_shape)}; pass draws of the one that is meant."
        )
    try:
        values = torch.as_tensor(grid).reshape(-1, *prior.batch_shape, *prior.event_shape)
        inside = prior.support.check(values).reshape(-1)  # type: ignore[union-attr]
        density = torch.zeros(len(grid), dtype=torch.float64)
        density[inside] = prior.log_prob(values[inside]).double().exp().reshape(-1)
    except (NotImplementedError, AttributeError) as error:
        raise ArgumentTypeError(f"prior: {type(prior).__name__} has no density to draw; pass draws of it.") from error
    return grid, np.asarray(density.detach().numpy())


def _histogram(draws: Array | None, edges: Array) -> Array:
    """The density of draws over bins; those outside count too, so that areas are probabilities."""
    assert draws is not None
    return np.asarray(np.histogram(draws, edges)[0] / (len(draws) * np.diff(edges)))


def _finish(ax: Axes, name: str) -> None:
    ax.set(title="Prior and posterior: how far the data moved it", xlabel=name, ylabel="probability density")
    ax.set_ylim(bottom=0)
    ax.legend()
