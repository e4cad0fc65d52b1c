"""Figures as PNG, the same bytes for the same figure, in files or within a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import TYPE_CHECKING

from calmrl_prob.errors import MissingDependencyError
from calmrl_prob.plots.canvas import SETTINGS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Dots an inch, so that a figure is sharp on a page that shows it at its size.
_DPI = 144


def drawn(draw: Callable[[Axes], object], size: tuple[float, float]) -> Figure:
    """A figure of one plot, of which pyplot knows nothing.

    Args:
        draw: draws on the axes, as the functions of ``cal.plots`` do.
        size: inches.

    Raises:
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> drawn(lambda ax: ax.plot([1, 2]), (3, 2)).axes[0].lines[0].get_ydata().tolist()
        [1, 2]
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "figures: they need matplotlib, which is not installed; pip install 'calmrl-prob[plots]'."
        ) from error
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
        draw(figure.subplots())
    return figure


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file, without a time stamp: the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def data_uri(content: bytes) -> str:
    """A PNG file as a ``data:`` address, for a page that needs no other file.

    Example:
        >>> data_uri(b"PNG")
        'data:image/png;base64,UE5H'
    """
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")
