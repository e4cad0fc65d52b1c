"""Missingness map: the modalities that instances have, by missing pattern."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from calmrl_prob.data import MultimodalData
from calmrl_prob.data.stream import require_data
from calmrl_prob.plots.canvas import BLUE, canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ABSENT = "#EDEDED"
#: Least share of all instances that a pattern must have for its count to be written beside it.
_ROOM_FOR_TEXT = 0.035


def missingness_map(data: MultimodalData, ax: Axes | None = None) -> Axes:
    """The missing patterns, the most frequent first, each as tall as it has instances.

    Read off: what is missing together, how many instances are complete, and whether some modalities never meet (no
    pattern has both), which leaves the model nothing but the others to join them by. The coloured share of a column is
    the share of instances that have the modality. A row of which only single features are missing counts as present.

    Args:
        data: N instances, M modalities.
        ax: where to draw; new axes by default.

    Returns:
        The axes. The map is a mesh of P patterns (rows) by M modalities (columns), 1 where present.

    Raises:
        ArgumentTypeError: ``data`` is not MultimodalData, or ``ax`` no axes.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> synthetic = __import__("calmrl_prob").datasets.make_synthetic(200, missing_rate=0.4, seed=0)
        >>> ax = missingness_map(synthetic.data)
        >>> ax.get_title()
        '200 instances, 7 missing patterns'
    """
    require_data(data)
    index = data.pattern_index.cpu().numpy()
    counts = np.bincount(index, minlength=len(data.patterns))
    order = np.argsort(-counts, kind="stable")
    order = order[counts[order] > 0]
    present, heights = data.patterns.cpu().numpy()[order].astype(float), counts[order]
    edges = np.concatenate([[0], np.cumsum(heights)])
    shares = data.observed_mask.double().mean(dim=0).tolist()
    with canvas(ax, (1.6 + 1.3 * len(data.names), 3.6)) as ax:
        from matplotlib.colors import ListedColormap
        from matplotlib.patches import Patch

        ax.pcolormesh(
            np.arange(len(data.names) + 1), edges, present, cmap=ListedColormap([_ABSENT, BLUE]), vmin=0, vmax=1,
            edgecolors="white", linewidth=0.5,
        )  # fmt: skip
        ax.set_ylim(len(data), 0)
        tall = heights >= _ROOM_FOR_TEXT * len(data)
        middles = (edges[:-1] + edges[1:]) / 2
        ax.set_yticks(middles[tall], [f"{n:,} ({n / len(data):.0%})" for n in heights[tall]])
        ax.set_xticks(
            np.arange(len(data.names)) + 0.5,
            [f"{name}\n{share:.0%}" for name, share in zip(data.names, shares, strict=True)],
        )
        ax.tick_params(length=0)
        ax.grid(visible=False)
        patterns = f"{len(heights):,} missing pattern{'s' * (len(heights) != 1)}"
        ax.set(
            title=f"{len(data):,} instances, {patterns}",
            xlabel="modality, and share of instances that have it",
            ylabel="instances, by pattern",
        )
        handles = [Patch(facecolor=BLUE, label="present"), Patch(facecolor=_ABSENT, label="missing")]
        ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5))
        return ax
