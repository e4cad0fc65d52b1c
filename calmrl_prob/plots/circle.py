"""The anchor shift of chosen instances, as angles on a circle, within its bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from calmrl_prob._support.arguments import described
from calmrl_prob.alignment.anchors import anchor_shift, leading_vector
from calmrl_prob.alignment.bounds import shift_bounds
from calmrl_prob.errors import ArgumentError, ArgumentTypeError
from calmrl_prob.plots.canvas import BLACK, BLUE, GREY, VERMILION, Array, canvas, legend_beside, names_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST = 12
#: Radii of the outermost and of the innermost arc.
_OUTER, _INNER = 1.0, 0.35
_PALE = "#DDDDDD"
_TICK = np.array([-0.04, 0.04])


def anchor_shift_circle(
    representations: Tensor,
    observed_mask: Tensor,
    ax: Axes | None = None,
    *,
    calibrated: Tensor | None = None,
    names: Sequence[object] | None = None,
) -> Axes:
    """Angle between the full anchor, straight up, and the local one, one arc for each instance.

        angle = 2 arcsin(||u - v|| / 2)        bounds: arcsin(lower / sqrt(2)) .. arcsin(upper / sqrt(2))

    with the bounds of :func:`calmrl_prob.alignment.bounds.shift_bounds`, which are of sqrt(2) sin: the paper's, and the
    sharper moment bounds within them, which for two modalities meet. They do not tell an angle from its supplement, and
    are drawn on the anchor's side. Read off: how far what is missing pulls an instance; how much of that is forced (up
    to where a bar begins) and how much was possible (where it ends); and whether a calibrated anchor lies nearer to the
    top than the local one. Angles of calibrated anchors are to the full anchor too, in whatever plane they lie.

    Args:
        representations: (B, M, D), all M modalities of each instance, of any norms; 12 instances at most.
        observed_mask: (B, M) bool, True = PRESENT: what the local anchor is made of.
        ax: where to draw; new axes by default.
        calibrated: (B, D), anchors that calibration gives, of norm 1.
        names: of the instances, (B,).

    Returns:
        The axes. An anchor at angle a is drawn at (r sin a, r cos a), r being the radius of its instance's arc.

    Raises:
        ArgumentTypeError: something is no tensor.
        ArgumentError: shapes do not go together, there are too many instances, or one has nothing.
        NumericalError: a representation is not finite.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> x = torch.tensor([[[1.0, 0.0], [0.6, 0.8]]])
        >>> ax = anchor_shift_circle(x, torch.tensor([[True, False]]), names=["cat"])
        >>> [label.get_text() for label in ax.get_yticklabels()]  # atan2(0.8, 1.6)
        ['cat: 27°']
    """
    _require_instances(representations, observed_mask)
    angle, reach, nearer = _angles(representations, observed_mask, calibrated)
    labels, count = names_of("names", names, len(representations)), len(representations)
    radii = np.linspace(_OUTER, _INNER, count) if count > 1 else np.array([_OUTER])
    largest = max(float(part.max()) for part in (angle, *([] if nearer is None else [nearer])))
    widest = np.pi / 2 if largest <= np.pi / 2 else np.pi
    with canvas(ax, (7.0, 3.7 if widest < 2 else 5.2)) as ax:
        _draw_arcs(ax, radii, widest, reach)
        ax.plot(0 * radii, radii, "*", color=BLACK, markersize=8, label="full anchor", clip_on=False)
        ax.plot(radii * np.sin(angle), radii * np.cos(angle), "o", color=VERMILION, markersize=5, label="local anchor")
        if nearer is not None:
            place = radii * np.sin(nearer), radii * np.cos(nearer)
            ax.plot(*place, "D", color=BLUE, markersize=4.5, label="calibrated anchor")
        _draw_degrees(ax, widest)
        ax.set_aspect("equal")
        ax.set_xticks([])
        ax.set_yticks(radii, [f"{n}: {np.degrees(a):.0f}°" for n, a in zip(labels, angle, strict=True)])
        ax.grid(visible=False)
        for spine in ax.spines.values():
            spine.set_visible(False)
        ax.tick_params(length=0)
        ax.set(
            title="Anchor shift: the nearer to the star, the better",
            xlabel="angle to the full anchor (degrees)",
            ylabel="instance: its shift",
        )
        legend_beside(ax)
        return ax


def _require_instances(representations: Tensor, observed_mask: Tensor) -> None:
    """Refuse what is no tensor, and more instances than there is room for."""
    for argument, value in {"representations": representations, "observed_mask": observed_mask}.items():
        if not isinstance(value, Tensor):
            raise ArgumentTypeError(f"{argument}: expected a tensor, got {described(value)}; use torch.as_tensor.")
    if representations.ndim != 3 or not 0 < len(representations) <= _MOST:
        raise ArgumentError(
            f"representations: expected shape (B, M, D) with 1 to {_MOST} instances, got "
            f"{tuple(representations.shape)}; choose some rows."
        )


def _angles(
    representations: Tensor, observed_mask: Tensor, calibrated: Tensor | None
) -> tuple[Array, dict[str, tuple[Array, Array]], Array | None]:
    """Angles to the full anchor, (B,) radians: of the local one, the ends of its bounds, and of the calibrated one."""
    bounds = shift_bounds(representations, observed_mask)
    empty = (~observed_mask.any(1)).nonzero().flatten().tolist()
    if empty:
        raise ArgumentError(f"observed_mask: row {empty[0]} has no modality, so no local anchor; leave it out.")
    complete = representations.detach().double()
    full, local = leading_vector(complete).vector, leading_vector(complete, observed_mask).vector
    angle = _angle(full, local)
    reach = {
        "bounds of Theorem 1": _ends(angle, bounds.theorem_lower, bounds.theorem_upper),
        "moment bounds": _ends(angle, bounds.moment_lower, bounds.moment_upper),
    }
    if calibrated is None:
        return angle, reach, None
    if not isinstance(calibrated, Tensor) or calibrated.shape != full.shape:
        shape = tuple(getattr(calibrated, "shape", ()))
        raise ArgumentError(f"calibrated: expected a tensor of shape {tuple(full.shape)}, got {shape}.")
    return angle, reach, _angle(full, calibrated.detach().double())


def _draw_arcs(ax: Axes, radii: Array, widest: float, reach: Mapping[str, tuple[Array, Array]]) -> None:
    """An arc for each instance, and on it a bar for each kind of bounds."""
    sweep = np.linspace(0, widest, 100)
    for row, radius in enumerate(radii):
        ax.plot(radius * np.sin(sweep), radius * np.cos(sweep), color=_PALE, linewidth=0.8)
        for label, (low, high) in reach.items():
            sharp, text = label == "moment bounds", label if row == 0 else None
            arc = np.linspace(low[row], high[row], 60)
            line: dict[str, Any] = {
                "color": GREY if sharp else _PALE,
                "linewidth": 3 if sharp else 9,
                "solid_capstyle": "butt",
            }
            ax.plot(radius * np.sin(arc), radius * np.cos(arc), label=text, **line)
            for end in arc[[0, -1]] if sharp else ():  # ticks, since they often all but meet
                ax.plot(*np.outer([np.sin(end), np.cos(end)], radius + _TICK), color=BLACK, linewidth=1)


def _draw_degrees(ax: Axes, widest: float) -> None:
    """A ray at every 30 degrees, with its angle."""
    for degrees in range(30, round(np.degrees(widest)) + 1, 30):
        x, y = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
        ax.plot([0, x], [0, y], color=_PALE, linewidth=0.6, zorder=0)
        ax.annotate(f"{degrees}°", (1.06 * x, 1.06 * y), ha="center", va="center", fontsize=7)


def _angle(full: Tensor, other: Tensor) -> Array:
    """The angle between unit vectors, (B,), radians, 0 .. pi; from their difference, so that small ones are exact."""
    return np.asarray(2 * torch.arcsin((anchor_shift(full, other) / 2).clamp(max=1)).cpu().numpy())


def _ends(angle: Array, lower: Tensor, upper: Tensor) -> tuple[Array, Array]:
    """Angles of which sqrt(2) sin has these bounds, on the anchor's side of a right one."""
    low, high = (torch.arcsin((bound / 2**0.5).clamp(max=1)).cpu().numpy() for bound in (lower, upper))
    beyond = angle > np.pi / 2
    return np.where(beyond, np.pi - high, low), np.where(beyond, np.pi - low, high)
