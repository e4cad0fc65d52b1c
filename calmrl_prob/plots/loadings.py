"""Variance explained of each modality by each latent: a map."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from calmrl_prob.data import MultimodalData
from calmrl_prob.evaluation.explained import variance_explained as shares_explained
from calmrl_prob.inference.protocols import Model
from calmrl_prob.inference.result import FitResult
from calmrl_prob.plots.canvas import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Most latents for which numbers are written into the cells.
_ROOM_FOR_TEXT = 12


def variance_explained(
    model: Model | FitResult, ax: Axes | None = None, *, data: MultimodalData | None = None, rotate: bool = True
) -> Axes:
    """Share of each modality's variance that each latent explains, as a map of M modalities by K latents.

    Read off: latents that serve all modalities (shared), one alone (private: it predicts nothing across modalities), or
    none (K is larger than it need be); and, beside each modality, what all latents explain of it: the rest is noise.
    The numbers, their formula and why latents are turned: :func:`calmrl_prob.evaluation.variance_explained`.

    Args:
        model: whatever states one linear-Gaussian form: a SharedLatentModel, a LinearGaussian, a FitResult.
        ax: where to draw; new axes by default.
        data: what it was fitted to; give it where the loadings have a prior, which makes shares too low without.
        rotate: turn the latents to stay independent given all modalities; otherwise show the model's own.

    Returns:
        The axes; the map is its one image, in percent.

    Raises:
        ArgumentTypeError: the model has no such form, or ``ax`` is no axes.
        ArgumentError: ``rotate=False``, and latents are correlated under the prior.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> synthetic = __import__("calmrl_prob").datasets.make_synthetic(10, latent_dim=3, seed=0)
        >>> ax = variance_explained(synthetic.truth)
        >>> ax.images[0].get_array().shape
        (3, 3)
    """
    table = shares_explained(model, data=data, rotate=rotate)
    percent = 100 * table.to_numpy()
    modalities, latents = percent.shape
    with canvas(ax, (min(9.0, 2.8 + 0.42 * latents), 1.2 + 0.42 * modalities)) as ax:
        from matplotlib.ticker import MaxNLocator

        image = ax.imshow(
            percent, cmap="cividis", vmin=0, aspect="auto", extent=(0.5, latents + 0.5, modalities - 0.5, -0.5)
        )
        for (row, column), value in np.ndenumerate(percent if latents <= _ROOM_FOR_TEXT else percent[:, :0]):
            colour = "white" if value < percent.max() / 2 else "black"
            ax.text(column + 1, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=7)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        totals = percent.sum(axis=1)
        ax.set_yticks(range(modalities), [f"{n} ({t:.0f}%)" for n, t in zip(table.index, totals, strict=True)])
        ax.set(
            title="Variance explained: a bright column is shared, a bright cell private",
            xlabel="latent",
            ylabel="modality (all latents)",
        )
        ax.grid(visible=False)
        ax.figure.colorbar(image, ax=ax, label="share of variance (%)")
        return ax
