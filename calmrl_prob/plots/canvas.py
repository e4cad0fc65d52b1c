"""Canvas of all plots: the axes to draw on, the house style while drawing, colours, and checks of arrays.

matplotlib is an optional dependency, so it is imported when a plot is drawn and not before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from calmrl_prob._support.arguments import brief, described
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, DataError, MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]
#: Options of ``Axes.plot`` by label of a series: ``{"mean": {"color": "black"}}``.
Looks = Mapping[str, Mapping[str, Any]]

# The palette of Okabe & Ito, Color Universal Design (2008), which colour-blind readers can tell apart.
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE, GREY = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#7F7F7F",
)  # fmt: skip
#: Colours of series, in turn. With markers and dashes of other periods, so that few series look alike in print.
CYCLE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")
DASHES = ("-", "--", "-.", ":")

#: The house style, as settings of matplotlib.
SETTINGS: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


@contextmanager
def canvas(ax: Axes | None, size: tuple[float, float] = (5.2, 3.4)) -> Iterator[Axes]:
    """Axes to draw on, in the house style; matplotlib's own settings are the user's again afterwards.

    Args:
        ax: where to draw. New axes of pyplot by default, so that notebooks show them and ``pyplot.show`` finds them.
        size: of a new figure, inches.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        ArgumentTypeError: ``ax`` is no axes.
        ArgumentError: it has another projection than the plain one.

    Example:
        >>> with canvas(None) as ax:
        ...     lines = ax.plot([1, 2])
        >>> type(ax).__name__
        'Axes'
    """
    try:
        import matplotlib as mpl
        from matplotlib.axes import Axes
    except ImportError as error:
        raise MissingDependencyError(
            "plots: they need matplotlib, which is not installed; pip install 'calmrl-prob[plots]'."
        ) from error
    if ax is not None and not isinstance(ax, Axes):
        raise ArgumentTypeError(
            f"ax: expected matplotlib axes, got {described(ax)}; pass one of those that pyplot.subplots makes, or None."
        )
    if ax is not None and ax.name != "rectilinear":
        raise ArgumentError(f"ax: expected plain axes, got those of the projection {ax.name!r}; leave it out.")
    if ax is None:
        from matplotlib import pyplot

        # Loads the backend, which may turn interaction on. In the context below that would be undone with the rest, and
        # notebooks would not show the figure.
        pyplot.draw_if_interactive()
    with mpl.rc_context(SETTINGS):
        if ax is None:
            ax = pyplot.subplots(figsize=size, layout="constrained")[1]
        yield ax


def series_style(number: int, label: str = "", looks: Looks | None = None, *, marker: bool = True) -> dict[str, Any]:
    """Colour, marker and dashes of a series, as keywords of ``plot``: those asked for, else the next of the palette.

    Example:
        >>> series_style(1, "mean", {"mean": {"color": "black"}})["color"], series_style(0)["color"]
        ('black', '#0072B2')
    """
    own = {
        "color": CYCLE[number % len(CYCLE)],
        "marker": MARKERS[number % len(MARKERS)] if marker else "",
        "linestyle": DASHES[number % len(DASHES)],
    }
    return own | dict((looks or {}).get(label, {}))


def series(argument: str, values: object) -> dict[str, Any]:
    """Values by label; the empty label for those that came alone.

    Raises:
        ArgumentError: a mapping without entries.

    Example:
        >>> series("pit", [0.1]), series("pit", {"image": [0.1]})
        ({'': [0.1]}, {'image': [0.1]})
    """
    found = {str(label): value for label, value in values.items()} if isinstance(values, Mapping) else {"": values}
    if not found:
        raise ArgumentError(f"{argument}: expected at least one series by its label, got an empty mapping.")
    return found


def numbers(argument: str, values: ArrayLike | Tensor, shape: tuple[int, ...] | int | None = None) -> Array:
    """An array of finite numbers, in float64.

    Args:
        argument: its name, for messages.
        values: an array or tensor.
        shape: what is expected of it: a number of dimensions, or the shape itself.

    Raises:
        ArgumentTypeError: it is not made of numbers.
        ArgumentError: it is empty or has another shape.
        DataError: a number is not finite.

    Example:
        >>> numbers("error", [1, 2], 1)
        array([1., 2.])
    """
    try:
        given = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
        array = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ArgumentTypeError(f"{argument}: expected an array of numbers, got {brief(values)}.") from error
    wrong = array.ndim != shape if isinstance(shape, int) else shape is not None and array.shape != shape
    if wrong:
        expected = f"{shape} dimensions" if isinstance(shape, int) else f"shape {shape}"
        raise ArgumentError(f"{argument}: expected an array of {expected}, got shape {array.shape}.")
    if not array.size:
        raise ArgumentError(f"{argument}: expected at least one number, got an array of shape {array.shape}.")
    bad = ~np.isfinite(array)
    if bad.any():
        raise DataError(
            f"{argument}: expected finite numbers, got {array[bad][0]} at {np.argwhere(bad)[0].tolist()} "
            f"({int(bad.sum())} of {array.size}); keep only what np.isfinite({argument})."
        )
    return array


def row_numbers(argument: str, rows: Sequence[int] | None, count: int, most: int) -> list[int]:
    """Chosen row numbers out of ``count``; the first ``most`` by default. Negative ones count from the end.

    Raises:
        ArgumentError: one is out of range, none is chosen, or more than ``most``.
        ArgumentTypeError: they are not whole numbers.

    Example:
        >>> row_numbers("instances", [0, -1], 5, 3), row_numbers("instances", None, 5, 3)
        ([0, 4], [0, 1, 2])
    """
    if rows is None:
        return list(range(min(count, most)))
    chosen = np.asarray(rows.cpu() if isinstance(rows, Tensor) else rows)
    if chosen.ndim != 1 or (chosen.size and chosen.dtype.kind not in "iu"):
        raise ArgumentTypeError(f"{argument}: expected a sequence of row numbers, got {brief(rows)}; pass [0, 1].")
    if not 0 < len(chosen) <= most:
        raise ArgumentError(f"{argument}: expected 1 to {most} of the {count} rows, got {len(chosen)}.")
    outside = (chosen < -count) | (chosen >= count)
    if outside.any():
        raise ArgumentError(f"{argument}: row {chosen[outside][0]} is out of range; there are {count} rows.")
    return [int(row) % count for row in chosen]


def names_of(argument: str, names: Sequence[object] | None, count: int) -> list[str]:
    """One name for each of ``count`` things; their numbers by default.

    Raises:
        ArgumentError: another number of names.
        ArgumentTypeError: no sequence.
    """
    if names is None:
        return [str(number) for number in range(count)]
    if isinstance(names, str) or not hasattr(names, "__len__"):
        raise ArgumentTypeError(f"{argument}: expected a sequence of {count} names, got {brief(names)}.")
    if len(names) != count:
        raise ArgumentError(f"{argument}: expected {count} names, one for each, got {len(names)}.")
    return [str(name) for name in names]


def legend_beside(ax: Axes) -> None:
    """A legend to the right of the axes, where nothing is drawn; none where nothing has a label."""
    if ax.get_legend_handles_labels()[1]:
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
