"""Evidence of a fit, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from calmrl_prob._support.arguments import brief
from calmrl_prob.errors import ArgumentError, ArgumentTypeError
from calmrl_prob.inference.result import FitResult
from calmrl_prob.plots.canvas import Array, Looks, canvas, numbers, series, series_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: A trace, or several that belong together, such as those of several seeds.
Traces = FitResult | ArrayLike | Sequence[FitResult] | Sequence[ArrayLike]


def evidence_trace(
    fits: Traces | Mapping[str, Traces],
    ax: Axes | None = None,
    *,
    to_come: bool = False,
    looks: Looks | None = None,
) -> Axes:
    """Evidence of a fit, step by step, for each instance; or the rise that was still to come.

        value(t) = objective(t) / N        to come(t) = (objective(T) - objective(t)) / N, on a logarithmic axis

    The objective is the log evidence of the data, plus the log priors of parameters that were asked for. Read off: it
    never falls; and a fit that was still rising when it stopped has not converged, which ``to_come`` shows best, as a
    line that has not steepened towards its end.

    Args:
        fits: a :class:`~calmrl_prob.FitResult`; or a trace in nats per instance, (T,); or a list of these, drawn alike;
            or a mapping of labels to such.
        ax: where to draw; new axes by default.
        to_come: draw what was still to come. The last step, from which nothing came, is left out.
        looks: options of ``Axes.plot`` by label.

    Returns:
        The axes, with one line for each trace.

    Raises:
        ArgumentTypeError: something is neither a fit nor an array.
        ArgumentError: a trace is empty.
        DataError: a trace is not finite.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> cal = __import__("calmrl_prob")
        >>> data = cal.datasets.make_synthetic(200, seed=0).data
        >>> model = cal.SharedLatentModel(data.dims, latent_dim=3)
        >>> fit = cal.fit(model, data)
        >>> ax = evidence_trace(fit)
        >>> len(ax.lines[0].get_ydata()) == len(fit.objective)
        True
    """
    drawn = {label: [_trace(f"fits[{label!r}]" if label else "fits", one) for one in _several(value)]
             for label, value in series("fits", fits).items()}  # fmt: skip
    with canvas(ax) as ax:
        from matplotlib.ticker import MaxNLocator

        for number, (label, traces) in enumerate(drawn.items()):
            for repeat, (values, name) in enumerate(traces):
                heights = values[-1] - values[:-1] if to_come else values
                heights = np.where(heights > 0, heights, np.nan) if to_come else heights
                text = (label or name) if repeat == 0 else None
                options = {"linewidth": 1.3} | series_style(number, label, looks, marker=False)
                ax.plot(np.arange(len(heights)), heights, label=text, **options)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        if to_come:
            ax.set_yscale("log")
        ax.set(
            title="Convergence of the fit" + ("" if to_come else ": flat at the end"),
            xlabel="iteration",
            ylabel="rise still to come\n(nats per instance)" if to_come else "objective (nats per instance)",
        )
        ax.legend()
        return ax


def _several(value: Traces) -> Sequence[FitResult | ArrayLike]:
    """A list of traces: what came alone is a list of one."""
    if isinstance(value, list | tuple) and value and (isinstance(value[0], FitResult) or np.ndim(value[0]) == 1):
        return value
    return [value]  # type: ignore[list-item]  # a trace, by exclusion


def _trace(argument: str, value: FitResult | ArrayLike) -> tuple[Array, str]:
    """A trace in nats for each instance, and what to call it."""
    if isinstance(value, FitResult):
        if not len(value.objective):
            raise ArgumentError(f"{argument}: the fit by {value.method!r} kept no trace; there is nothing to draw.")
        state = "converged" if value.converged else "not converged"
        return numbers(argument, value.objective, 1) / value.num_instances, f"{value.method}, {state}"
    if isinstance(value, str) or not hasattr(value, "__len__"):
        raise ArgumentTypeError(f"{argument}: expected a FitResult or a trace (T,), got {brief(value)}.")
    return numbers(argument, value, 1), "trace"
