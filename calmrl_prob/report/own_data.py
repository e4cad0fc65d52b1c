"""The report of own data: one HTML page of a fit and the rows that it is asked about."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from calmrl_prob import plots
from calmrl_prob._support.files import write_atomically
from calmrl_prob._support.versions import installed_version
from calmrl_prob.data import MultimodalData
from calmrl_prob.data.entries import grouped
from calmrl_prob.evaluation import masked_validation, value_of_information
from calmrl_prob.inference.posterior import posterior
from calmrl_prob.inference.result import FitResult
from calmrl_prob.report.chosen import Fitted
from calmrl_prob.report.missing import Described
from calmrl_prob.report.page import Picture, Section, Table, render
from calmrl_prob.report.pictures import drawn
from calmrl_prob.report.readings import validation_readings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Instances in the picture of the latents, classes that it can tell apart, and rows of the longest tables.
_MOST_POINTS, _MOST_CLASSES, _MOST_ROWS = 400, 21, 20


@dataclass(frozen=True)
class ReportOptions:
    """Settings of :func:`write_report`.

    Attributes:
        title: of the page.
        held_out: rows that the model was not fitted to, to check coverage on; None for none.
        level: probability that the intervals are to hold.
        target: the modality that is to be learned about by acquiring others; None for the latents.
        seed: of what is drawn.
    """

    title: str = "Own data"
    held_out: MultimodalData | None = None
    level: float = 0.9
    target: str | None = None
    seed: int = 0


def write_report(
    fit: Any,  # noqa: ANN401 - whatever cal.load returns
    data: MultimodalData,
    path: str | os.PathLike[str],
    options: ReportOptions | None = None,
) -> Path:
    """Write the report of own data; the path.

    The page needs no other file and fetches nothing. It tells what was chosen and why, what imputations were worth on
    held-out instances before any is used, what is missing, where instances lie by label, and what to acquire next.

    Args:
        fit: what ``cal.fit`` or ``cal.load`` returned.
        data: N instances.
        path: where; a file that is there is replaced.
        options: what else to show.

    Raises:
        SchemaError: the data do not fit the model.
        MissingDependencyError: matplotlib is not installed.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile, calmrl_prob as cal
        >>> made = cal.datasets.make_synthetic(60, missing_rate=0.4, seed=0)
        >>> path = write_report(made.truth, made.data, Path(tempfile.mkdtemp()) / "report.html")
        >>> "What to acquire next" in path.read_text(encoding="utf-8")
        True
    """
    how = options or ReportOptions()
    fitted, described = Fitted.of(fit), Described.of(data)
    lead = (
        f"{described.num_instances:,} instances with up to {len(described.dims)} modalities: "
        f"{', '.join(f'{name} ({width:,} features)' for name, width in described.dims.items())}. "
        f"Model: {fitted.settings}."
    )
    sections = [
        _worth(fitted, fit, how),
        _chosen(fitted),
        _missing(described, data),
        _latents(fit, data, how),
        _acquisition(fit, data, how),
        Section(notes=[f"Written by calmrl-prob {installed_version('calmrl-prob')}."]),
    ]
    page = render(how.title, sections, lead)
    with write_atomically(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return Path(path)


def _worth(fitted: Fitted, fit: object, how: ReportOptions) -> Section:
    heading = "What imputations are worth, before any is used"
    lines, notes = fitted.worth(how.level), []
    if fitted.intervals is not None:
        notes.append("Of instances held out while settings were chosen, each imputed by a model not fitted to it.")
    if how.held_out is None:
        notes.append("To check it on instances that the model has not seen, give them (--held-out of the command).")
        return Section(heading, readings=lines, notes=notes)
    checked = masked_validation(fit, how.held_out, num_draws=0, seed=how.seed)
    summary = checked.summary(level=how.level)
    lines = [*(lines if fitted.intervals is not None else ()), *validation_readings(summary, how.level)]
    columns = ["modality", "num_instances", "R2", "R2_se", "rmse", "sd", "coverage", "coverage_se", "width"]
    table = Table.of(summary[columns], caption=f"{len(how.held_out):,} other instances, each modality hidden in turn.")
    curve = checked.coverage(levels=[share / 20 for share in range(1, 20)])
    caption = "On the diagonal intervals hold what they promise; below it they are too narrow."
    picture = _picture(partial(plots.coverage, curve), (4.6, 3.8), "Coverage of intervals of each level", caption)
    return Section(heading, readings=lines, tables=[table], pictures=[picture], notes=notes)


def _chosen(fitted: Fitted) -> Section:
    choice, heading = fitted.choice, "What was chosen, and why"
    if choice is None or choice.table.empty:
        return Section(heading, readings=fitted.why())
    table = choice.table.sort_values("score", ascending=False)
    shown = table[["latent_dim", "noise", "prior", "score", "behind", "behind_error", "r2", "calibration", "reason"]]
    shown = shown.rename(columns={"latent_dim": "K", "r2": "R^2"}).assign(chosen=np.where(table["chosen"], "yes", ""))
    pictures = []
    if np.isfinite(choice.table["score"]).any():
        caption = "Each point is a setting; bars are standard errors of its distance from the chosen one."
        pictures.append(_picture(partial(plots.choice, choice), (6.4, 4.6), "Scores of the settings tried", caption))
    meanings = {
        "score": "of held-out imputations, of squared error and of log density; higher is better",
        "behind": "the chosen one's score less this one's, with its standard error over folds",
        "R^2": "of held-out imputations, mean over modalities: 0 = the mean, 1 = exact",
        "calibration": "mean squared standardised error: 1 where stated variances are right",
        "reason": "why it was tried",
    }
    tables = [Table.of(shown.head(_MOST_ROWS), caption=_cut(len(shown), "settings"))]
    return Section(heading, readings=fitted.why(), tables=tables, pictures=pictures, meanings=meanings)


def _missing(described: Described, data: MultimodalData) -> Section:
    rows = [
        [
            " + ".join(name for name, there in zip(described.dims, pattern, strict=True) if there) or "nothing",
            f"{count:,}",
            f"{100 * count / described.num_instances:.1f}%",
        ]
        for pattern, count in list(described.patterns.items())[:_MOST_ROWS]
    ]
    table = Table(["pattern", "instances", "share"], rows, caption=_cut(len(described.patterns), "patterns"))
    size = (2.6 + 1.1 * len(described.dims), 3.8)
    caption = "Each block is a pattern, as tall as it has instances."
    picture = _picture(partial(plots.missingness_map, data), size, "Missingness map", caption)
    return Section("What is missing", readings=described.readings(), tables=[table], pictures=[picture])


def _latents(fit: Any, data: MultimodalData, how: ReportOptions) -> Section:  # noqa: ANN401
    heading = "The latents, by label"
    labels, notes = data.labels, []
    if labels is None:
        notes.append("The data have no labels; name their column (--labels of the command).")
    elif len(grouped(labels)[0]) > _MOST_CLASSES:
        labels = None
        notes.append(f"There are more than {_MOST_CLASSES} labels, so that colours would not tell them apart.")
    rows = np.arange(len(data))
    if len(data) > _MOST_POINTS:
        rows = np.sort(np.random.default_rng(how.seed).permutation(len(data))[:_MOST_POINTS])
        notes.append(f"{_MOST_POINTS} of {len(data):,} instances are shown, drawn at random.")
    part = data.subset(rows)
    found = fit.posterior(part) if isinstance(fit, FitResult) else posterior(fit, part)
    if found.mean.shape[1] < 2:
        return Section(heading, readings=["There is one latent alone: no plane to show it in."])
    draw = partial(plots.latent_space, found, labels=None if labels is None else labels[rows])
    caption = "Posterior means where they vary most; an ellipse holds the latents of an instance with 90%."
    return Section(heading, pictures=[_picture(draw, (6.4, 4.6), "Latents of instances", caption)], notes=notes)


def _acquisition(fit: Any, data: MultimodalData, how: ReportOptions) -> Section:  # noqa: ANN401
    heading = "What to acquire next"
    value = value_of_information(fit, data, how.target, seed=how.seed)
    by_pattern = value.by_pattern
    if by_pattern.empty:
        return Section(heading, readings=["Nothing is missing that was asked about: there is nothing to acquire."])
    best = by_pattern.sort_values("gain", ascending=False).iloc[0]
    about = "the latents" if how.target is None else how.target
    line = (
        f"Most is to be learned about {about} by acquiring {best['modality']} of the {best['rows']:,} instances that "
        f"have {best['pattern']}: {best['gain']:.2f} nats each."
    )
    size = (2.8 + 1.3 * len(value.names), 2.2 + 0.35 * min(12, by_pattern["pattern"].nunique()))
    draw = partial(plots.value_of_information, value)
    return Section(
        heading,
        readings=[line],
        tables=[
            Table.of(by_pattern.head(_MOST_ROWS), caption=_cut(len(by_pattern), "pairs of pattern and modality")),
            Table.of(value.ranking(_MOST_ROWS), caption="Single instances; calmrl acquire lists all of them."),
        ],
        meanings={"gain": "information that observing the modality is expected to give, nats"},
        pictures=[_picture(draw, size, "Value of each modality by pattern", "Grey is there already.")],
    )


def _picture(draw: Callable[..., Axes], size: tuple[float, float], alternative: str, caption: str) -> Picture:
    return Picture.of(drawn(lambda ax: draw(ax=ax), size), alternative, caption)


def _cut(count: int, what: str) -> str:
    return f"The first {_MOST_ROWS} of {count:,} {what}." if count > _MOST_ROWS else ""
