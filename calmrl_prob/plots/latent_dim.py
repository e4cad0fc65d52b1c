"""Choice of the number of latents: the held-out evidence against K."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calmrl_prob._support.arguments import described
from calmrl_prob.errors import ArgumentTypeError
from calmrl_prob.plots.canvas import BLUE, GREEN, VERMILION, canvas
from calmrl_prob.selection.latent_dim import LatentDimChoice

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def latent_dim_choice(choice: LatentDimChoice, ax: Axes | None = None) -> Axes:
    """Held-out evidence against K, with one standard error of the difference to the best, and what was chosen.

    Read off: where the curve flattens. The fewest latents whose whisker reaches the best are chosen; further ones cost
    no evidence as long as the curve does not fall, and may help retrieval.

    Args:
        choice: what :func:`calmrl_prob.choose_latent_dim` found.
        ax: where to draw; new axes by default.

    Returns:
        The axes.

    Raises:
        ArgumentTypeError: ``choice`` is something else, or ``ax`` no axes.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> cal = __import__("calmrl_prob")
        >>> data = cal.datasets.make_synthetic(200, latent_dim=2, seed=0).data
        >>> ax = latent_dim_choice(cal.choose_latent_dim(data, [1, 2, 3], folds=2))
        >>> ax.get_ylabel()
        'nats per held-out row'
    """
    if not isinstance(choice, LatentDimChoice):
        raise ArgumentTypeError(f"choice: expected what cal.choose_latent_dim returns, got {described(choice)}.")
    with canvas(ax) as ax:
        curve = choice.curve
        ax.errorbar(
            curve["latent_dim"], curve["evidence"], curve["behind_error"],
            marker="o", color=BLUE, capsize=3, label="held-out evidence, one standard error against the best",
        )  # fmt: skip
        ax.axvline(choice.latent_dim, color=VERMILION, linestyle="--", label=f"chosen: {choice.latent_dim}")
        ax.axvline(choice.ard_count, color=GREEN, linestyle=":", label=choice.ard_summary)
        ax.set(
            xlabel="number of latents K",
            ylabel="nats per held-out row",
            title="How many latents: where held-out evidence is highest",
        )
        ax.legend()
        return ax
