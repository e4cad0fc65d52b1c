"""Anchor shifts with and without calibration: the generative model, and one case a row for tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from calmrl_prob.alignment.bounds import shift_bounds
from calmrl_prob.alignment.certificate import probability_of_gain
from calmrl_prob.alignment.certificate_correction import CertificateCorrection
from calmrl_prob.alignment.rehearsal import rehearse
from calmrl_prob.data import MultimodalData
from calmrl_prob.linear_gaussian import LinearGaussian, fit_em

#: Draws that probabilities of gain are estimated from, and the probability from which on a certificate says yes.
DRAWS, YES = 32, 0.8
#: Rounding, in distance, that bounds may be off by.
_ROUNDING = 1e-4
#: Shifts below it count as it: their logarithm says nothing.
_LEAST_SHIFT = 1e-6
#: How often each number of modalities is hidden of a validation row.
_TIMES = 2


@dataclass(frozen=True)
class ShiftModel:
    """A model of representations, for calibrated anchors.

    Attributes:
        linear_gaussian: the model.
        pseudo_rows: chosen weight of the prior of its covariance.
        weight: chosen weight of imputed modalities in the anchor.
        relative_shift: geometric mean of calibrated shift / local shift on validation rows; below 1 it helps.
    """

    linear_gaussian: LinearGaussian
    pseudo_rows: float
    weight: float
    relative_shift: float


def choose_shift_model(
    fit: MultimodalData,
    validation: MultimodalData,
    latent_dim: int,
    pseudo_rows: Sequence[float],
    weights: Sequence[float],
    seed: int,
) -> ShiftModel:
    """Fit for each weight of the prior, and keep what brings the anchors of validation rows nearest, in proportion.

    Encoders have the representations of the rows that they were trained on closer together than those of other rows, so
    that the model by itself trusts its means too much. A heavier prior, and less weight of the means, undo it.

    Args:
        fit: representations of training rows.
        validation: of rows that encoders were not trained on; they lose modalities on purpose.
        latent_dim: K.
        pseudo_rows: to choose from.
        weights: of imputed modalities, to choose from.
        seed: of the fit, and of what is hidden.
    """
    most = min(latent_dim, sum(fit.dims.values()) - 1, len(fit) - 1)
    found = []
    for prior in pseudo_rows:
        lg = fit_em(fit.blocks, most, tolerance=1e-4, pseudo_rows=prior, seed=seed).linear_gaussian
        rehearsals = rehearse(lg, stacked(validation), validation.observed_mask, times=_TIMES, seed=seed)
        local = torch.cat([part.local_shift() for part in rehearsals]).clamp(min=_LEAST_SHIFT)
        for weight in weights:
            shift = torch.cat([part.shift(part.completion.anchors(weight).vector) for part in rehearsals])
            relative = float((shift.clamp(min=_LEAST_SHIFT) / local).log().mean().exp())
            found.append(ShiftModel(lg, prior, weight, relative))
    return min(found, key=lambda model: model.relative_shift)


@torch.no_grad()
def shift_cases(chosen: ShiftModel, validation: MultimodalData, test: MultimodalData, seed: int) -> pd.DataFrame:
    """Test rows that lose one, two ... modalities, which ones at random.

    Args:
        chosen: the model of representations.
        validation: representations that its certificate is calibrated on.
        test: those that are measured.
        seed: of what is hidden and drawn.

    Returns:
        One row for each test row and number missing: ``id`` of the row (its number where the data have none);
        ``missing``; ``local`` and ``calibrated``, vector distances to the anchor of all that the row has; ``model`` and
        ``certificate``, probabilities that the second is the smaller, by the model and calibrated; ``shift``, ``lower``
        and ``upper``, the projector distance of the local anchor and its moment bounds, and ``within``, whether they
        hold.
    """
    lg, weight = chosen.linear_gaussian, chosen.weight
    calibration = CertificateCorrection.fit(
        lg, stacked(validation), validation.observed_mask, weight=weight, num_draws=DRAWS, times=_TIMES, seed=seed
    )
    parts = []
    for case in rehearse(lg, stacked(test), test.observed_mask, seed=seed):
        anchors, mask = case.completion.anchors(weight).vector, case.completion.observed_mask
        bounds = shift_bounds(case.complete, mask)
        within = bounds.moment_lower <= bounds.shift + _ROUNDING
        within &= bounds.shift <= bounds.moment_upper + _ROUNDING
        columns = {
            "row": case.rows,
            "missing": (~mask).sum(1),
            "local": case.local_shift(),
            "calibrated": case.shift(anchors),
            "model": probability_of_gain(case.completion, anchors, num_draws=DRAWS, seed=seed),
            "certificate": calibration.probability(case.completion),
            "shift": bounds.shift,
            "lower": bounds.moment_lower,
            "upper": bounds.moment_upper,
            "within": within,
        }
        parts.append(pd.DataFrame({name: values.numpy() for name, values in columns.items()}))
    cases = pd.concat(parts, ignore_index=True)
    ids = cases.pop("row") if test.ids is None else test.ids[cases.pop("row")]
    return cases.assign(id=ids)


def summarize_cases(cases: pd.DataFrame) -> pd.DataFrame:
    """For each kind of training rows, seed and number missing: mean shifts, and shares of rows.

    ``nearer`` is the share that calibration brings nearer; ``<who> yes`` the share to which a certificate says yes, and
    ``<who> right`` the share of these that are brought nearer; ``only certified`` the mean shift if only those are
    calibrated to which the calibrated certificate says yes; ``<who> Brier`` the mean squared error of the probability.

    Example:
        >>> rows = {"trained on": "all", "seed": 0, "missing": 1, "local": [0.5, 0.3], "calibrated": [0.4, 0.4],
        ...         "model": [0.9, 0.9], "certificate": [0.9, 0.2], "within": True}
        >>> summary = summarize_cases(pd.DataFrame(rows)).iloc[0]
        >>> summary[["nearer", "model right", "certificate right", "only certified"]].astype(float).tolist()
        [0.5, 0.5, 1.0, 0.35]
    """
    nearer = (cases["calibrated"] < cases["local"]).astype(float)
    columns = {name: cases[name] for name in ("trained on", "seed", "missing", "local", "calibrated")}
    yes = cases["certificate"] >= YES
    columns |= {"nearer": nearer, "only certified": cases["calibrated"].where(yes, cases["local"])}
    for who in ("model", "certificate"):
        says = cases[who] >= YES
        columns |= {f"{who} yes": says.astype(float), f"{who} right": nearer.where(says, np.nan)}
        columns |= {f"{who} Brier": (cases[who] - nearer) ** 2}
    columns |= {"bounds hold": cases["within"].astype(float)}
    return pd.DataFrame(columns).groupby(["trained on", "seed", "missing"], sort=False).mean().reset_index()


def stacked(data: MultimodalData) -> Tensor:
    """Representations of one width as one tensor (N, M, D), float64."""
    return torch.stack([data[name] for name in data.names], dim=1).double()
