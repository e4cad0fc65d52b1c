"""The value of information: what each modality would tell, by missing pattern."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from calmrl_prob._support.arguments import described, whole_number
from calmrl_prob.errors import ArgumentError, ArgumentTypeError
from calmrl_prob.evaluation import ValueOfInformation
from calmrl_prob.plots.canvas import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ABSENT = "#EDEDED"
#: Share of the largest gain above which text is white.
_DARK = 0.6


def value_of_information(result: ValueOfInformation, ax: Axes | None = None, *, most: int = 12) -> Axes:
    """The mean gain of each modality to acquire, by missing pattern, the most frequent pattern on top.

    Read off: what to acquire of instances of a pattern (the darkest cell of its row), and for which instances it is
    worth most (the darkest row). Grey cells are there already, or not asked about.

    Args:
        result: what ``calmrl_prob.value_of_information`` returns.
        ax: where to draw; new axes by default.
        most: how many patterns to show.

    Returns:
        The axes, with a mesh of patterns (rows) by modalities (columns): mean gains in nats, masked where grey.

    Raises:
        ArgumentTypeError: ``result`` is something else, or ``ax`` no axes.
        ArgumentError: nothing is missing, or ``most`` is below 1.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> import torch, calmrl_prob as cal
        >>> made = cal.datasets.make_synthetic(200, missing_rate=0.4, seed=0)
        >>> ax = value_of_information(cal.value_of_information(made.truth, made.data))
        >>> ax.get_title()
        'Information about the latents'
    """
    if not isinstance(result, ValueOfInformation):
        raise ArgumentTypeError(
            f"result: expected what calmrl_prob.value_of_information returns, got {described(result)}."
        )
    most = whole_number("most", most, least=1)
    table = result.by_pattern
    if table.empty:
        raise ArgumentError("result: no instance lacks anything that was asked about, so there is nothing to show.")
    patterns = list(dict.fromkeys(table["pattern"]))[:most]
    gains = np.full((len(patterns), len(result.names)), np.nan)
    for pattern, name, gain in table[["pattern", "modality", "gain"]].itertuples(index=False):
        if pattern in patterns:
            gains[patterns.index(pattern), result.names.index(name)] = gain
    rows = table.groupby("pattern")["rows"].max()
    top = max(float(np.nanmax(gains)), np.finfo(float).tiny)
    with canvas(ax, (2.6 + 1.4 * len(result.names), 1.4 + 0.35 * len(patterns))) as ax:
        ax.set_facecolor(_ABSENT)
        mesh = ax.pcolormesh(
            np.arange(len(result.names) + 1), np.arange(len(patterns) + 1), np.ma.masked_invalid(gains),
            cmap="Blues", vmin=0, vmax=top, edgecolors="white", linewidth=0.5,
        )  # fmt: skip
        for (p, m), gain in np.ndenumerate(gains):
            if not np.isnan(gain):
                colour = "white" if gain > _DARK * top else "black"
                ax.text(m + 0.5, p + 0.5, f"{gain:.2g}", ha="center", va="center", color=colour)
        ax.set_ylim(len(patterns), 0)
        ax.set_yticks(np.arange(len(patterns)) + 0.5, [f"{pattern} ({rows[pattern]:,})" for pattern in patterns])
        ax.set_xticks(np.arange(len(result.names)) + 0.5, list(result.names))
        ax.tick_params(length=0)
        ax.grid(visible=False)
        about = "the latents" if result.target is None else result.target
        ax.set(
            title=f"Information about {about}", xlabel="modality to acquire", ylabel="what instances have (how many)"
        )
        ax.figure.colorbar(mesh, ax=ax, label="expected gain (nats)")
        return ax
