"""The latent space: posterior means of instances with ellipses of their covariance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calmrl_prob._support.arguments import brief, described, real_number, whole_number
from calmrl_prob.data.entries import entries, grouped
from calmrl_prob.errors import ArgumentError, ArgumentTypeError
from calmrl_prob.plots.canvas import CYCLE, GREY, MARKERS, Array, canvas, legend_beside
from calmrl_prob.posteriors.gaussian import GaussianPosterior
from calmrl_prob.posteriors.posterior import PosteriorResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_CLASSES = len(CYCLE) * 3


def latent_space(
    result: PosteriorResult,
    ax: Axes | None = None,
    *,
    latents: tuple[int, int] | None = None,
    labels: ArrayLike | Sequence[object] | None = None,
    level: float = 0.9,
) -> Axes:
    """Posterior means in two directions of the latent space, each with the ellipse that holds its latent.

        (z - E z)^T V^-1 (z - E z) <= chi2_2(level)    of the two coordinates, V in closed form

    The axes of the latent space are defined up to a rotation only, unless a prior fixes them (ARD, say). So by default
    the two directions are those in which posterior means vary most: the leading right singular vectors of their centred
    matrix. Read off: whether instances of a class lie together, and which of them are known well enough to say so.
    Where the posterior is not Gaussian, ellipses are those of a normal with its mean and covariance.

    Args:
        result: what :func:`calmrl_prob.posterior` returns; take ``data.subset`` of what is to be seen.
        ax: where to draw; new axes by default.
        latents: two latents to show instead, such as (0, 1).
        labels: classes of the instances, (N,), 21 different ones at most; each gets a colour and a marker.
        level: probability that an ellipse holds its instance's latent, in (0, 1).

    Returns:
        The axes. By the exact route a dashed ellipse shows the prior at the same level.

    Raises:
        ArgumentTypeError: ``result`` is no posterior, or ``latents`` no whole numbers.
        ArgumentError: there is one latent alone, ``latents`` are not two of them, or labels do not fit.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> cal = __import__("calmrl_prob")
        >>> synthetic = cal.datasets.make_synthetic(50, missing_rate=0.4, seed=0)
        >>> ax = latent_space(cal.posterior(synthetic.truth, synthetic.data), labels=synthetic.data.labels)
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['0', '1', 'prior']
    """
    from scipy.stats import chi2

    if not isinstance(result, PosteriorResult):
        raise ArgumentTypeError(f"result: expected what cal.posterior returns, got {described(result)}.")
    level = real_number("level", level, 0.9)
    if not 0 < level < 1:
        raise ArgumentError(f"level: expected a number between 0 and 1, both excluded, got {level}.")
    mean = result.mean.detach().double().cpu().numpy()
    directions, titles = _directions(mean, latents)
    classes, index = _classes(labels, len(mean))
    points, covariance = mean @ directions, _projected(result, directions)
    radius = float(np.sqrt(chi2.ppf(level, 2)))
    with canvas(ax, (5.2, 4.2)) as ax:
        for number, name in enumerate(classes):
            rows = index == number
            colour = CYCLE[number % len(CYCLE)]
            _ellipses(ax, points[rows], covariance[rows], radius, facecolor=colour, alpha=0.15, edgecolor=colour)
            ax.plot(
                *points[rows].T, MARKERS[number % len(MARKERS)], color=colour, markersize=3.5, linestyle="", label=name
            )
        if isinstance(result, GaussianPosterior):
            k, lg = mean.shape[1], result.linear_gaussian
            centre = lg.prior_mean[:k].double().cpu().numpy() @ directions
            prior = directions.T @ lg.prior_covariance[:k, :k].double().cpu().numpy() @ directions
            style = {"facecolor": "none", "edgecolor": GREY, "linestyle": "--"}
            _ellipses(ax, centre[None], prior[None], radius, **style)
            ax.plot([], [], color=GREY, linestyle="--", label="prior")
        ax.set_aspect("equal", adjustable="datalim")
        ax.set(
            title=f"Latents of {len(mean):,} instances, {100 * level:.0f}% ellipses",
            xlabel=f"{titles[0]} (units of the prior)",
            ylabel=f"{titles[1]} (units of the prior)",
        )
        legend_beside(ax)
        return ax


def _directions(mean: Array, latents: tuple[int, int] | None) -> tuple[Array, tuple[str, str]]:
    """Two orthonormal directions, (K, 2), and what to call them."""
    latent_dim = mean.shape[1]
    if latent_dim < 2:
        raise ArgumentError("result: there is one latent alone; see plots.prior_against_posterior.")
    if latents is None:
        _, size, right = np.linalg.svd(mean - mean.mean(0), full_matrices=True)
        share = np.pad(size**2, (0, 2)) / max(float((size**2).sum()), np.finfo(np.float64).tiny)
        right = right[:2] * np.where(right[:2].sum(1, keepdims=True) < 0, -1, 1)  # a sign that runs agree on
        return right.T, (f"direction 1, {share[0]:.0%} of means' variance", f"direction 2, {share[1]:.0%}")
    if not isinstance(latents, tuple | list) or len(latents) != 2:
        raise ArgumentError(f"latents: expected two of the {latent_dim} latents, got {brief(latents)}; pass (0, 1).")
    first, second = (whole_number("latents", k) for k in latents)
    if first == second or max(first, second) >= latent_dim:
        raise ArgumentError(f"latents: expected two different ones of 0 .. {latent_dim - 1}, got {(first, second)}.")
    return np.eye(latent_dim)[:, [first, second]], (f"latent {first}", f"latent {second}")


def _projected(result: PosteriorResult, directions: Array) -> Array:
    """The covariance of both coordinates, (N, 2, 2); of the exact route computed once for each pattern."""
    if isinstance(result, GaussianPosterior):
        by_pattern = directions.T @ result.pattern_covariance.double().cpu().numpy() @ directions
        return np.asarray(by_pattern[result.pattern_index.cpu().numpy()])
    return np.asarray(directions.T @ result.covariance.detach().double().cpu().numpy() @ directions)


def _classes(labels: ArrayLike | Sequence[object] | None, count: int) -> tuple[list[str], NDArray[np.int64]]:
    """Names of the classes and the class of each instance."""
    if labels is None:
        return ["posterior"], np.zeros(count, dtype=np.int64)
    column = entries(labels)
    if column.shape != (count,):
        raise ArgumentError(f"labels: expected one for each of the {count} instances, got shape {column.shape}.")
    names, index = grouped(column)
    if len(names) > _MOST_CLASSES:
        raise ArgumentError(f"labels: expected at most {_MOST_CLASSES} classes, got {len(names)}; choose some rows.")
    return ["(none)" if name is None else str(name) for name in names], index


def _ellipses(ax: Axes, centre: Array, covariance: Array, radius: float, **style: Any) -> None:
    """{x: (x - centre)^T covariance^-1 (x - centre) <= radius^2} for each row."""
    from matplotlib.collections import EllipseCollection

    values, vectors = np.linalg.eigh(covariance)
    reach = 2 * radius * np.sqrt(values.clip(min=0))
    angle = np.degrees(np.arctan2(vectors[:, 1, 1], vectors[:, 0, 1]))
    ax.add_collection(
        EllipseCollection(
            reach[:, 1], reach[:, 0], angle, units="xy", offsets=centre, offset_transform=ax.transData, linewidth=0.8,
            **style,
        ),
        autolim=False,
    )  # fmt: skip
    half = radius * np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    ax.update_datalim(np.concatenate([centre - half, centre + half]))
    ax.autoscale_view()
