"""Coverage of a variant's intervals once they are recalibrated on the validation rows."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

import calmrl_prob as cal
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, DataError
from experiments.comparison.fitted_variant import without
from experiments.comparison.fitting import collected_warnings
from experiments.comparison.imputers import predictable
from experiments.comparison.variants import Choice, Task, Variant

logger = logging.getLogger(__name__)


def recalibrated_coverage(
    variant: Variant, choice: Choice, task: Task, test: MultimodalData, level: float
) -> dict[str, float]:
    """The share of true values inside conformal intervals, by modality, each imputed from all others of a row.

    Split conformal: the variant is fitted anew without the validation rows, and they set the quantiles. The settings
    were chosen on the same rows, so few of them make the intervals a little too narrow.

    Args:
        variant: one that imputes by its generative model alone, without options of ``cal.posterior``.
        choice: its settings.
        task: training rows, and which of them are for validation.
        test: complete rows, or rows that lack something.
        level: nominal coverage.

    Returns:
        Shares in [0, 1]; modalities that could not be recalibrated are left out.
    """
    fitted, held_out = (task.incomplete.subset(rows) for rows in (task.fit_rows, task.validation_rows))
    everything = np.arange(len(fitted))
    apart = replace(
        task,
        incomplete=fitted,
        complete=task.complete.subset(task.fit_rows),
        fit_rows=everything,
        validation_rows=everything[:0],
    )
    found: dict[str, float] = {}
    try:
        model = variant.calibrate(apart, choice).model
        with collected_warnings() as told:
            recalibration = cal.recalibrate(model.model, model.units.apply(held_out), "conformal")
        for message in told:
            logger.warning("%s: %s", variant.label, message)
        for name in recalibration.groups:
            truth = model.units.apply(test.subset(predictable(test, name)))
            imputed = cal.impute(model.model, without(truth, name), names=[name], recalibrated=recalibration)
            lower, upper = imputed.interval(level)[name]
            inside = (lower <= truth.filled(name)) & (truth.filled(name) <= upper)
            found[name] = float(inside.double().mean())
    except (ArgumentError, DataError) as error:  # too few rows for the fit or the level: the report does without
        logger.warning("%s: not recalibrated; %s", variant.label, error)
    return found
