"""Calibrated certificates: little changes where the model is right, and promises are kept where it is not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from calmrl_prob.alignment.certificate import probability_of_gain
from calmrl_prob.alignment.certificate_correction import CertificateCorrection
from calmrl_prob.alignment.completion import Completion
from calmrl_prob.alignment.rehearsal import Rehearsal, rehearse
from calmrl_prob.errors import ArgumentError, DataError
from calmrl_prob.linear_gaussian import LinearGaussian
from tests.cases.certificate_cases import close_model
from tests.cases.linear_gaussian_cases import random_mask

FITTED, MEASURED, DRAWS = 400, 800, 16


def sampled(lg: LinearGaussian, rows: int, seed: int) -> Tensor:
    return torch.stack(list(lg.sample(rows, torch.Generator().manual_seed(seed)).features.values()), dim=1)


def everything(rows: int) -> Tensor:
    return torch.ones(rows, 3, dtype=torch.bool)


def outcomes(lg: LinearGaussian, truth: LinearGaussian) -> tuple[Rehearsal, Tensor]:
    """Fresh instances of the truth, each once, and whether the means of the model bring them nearer."""
    (case,) = rehearse(lg, sampled(truth, MEASURED, seed=1), everything(MEASURED), seed=1)
    return case, (case.shift(case.completion.anchors().vector) < case.local_shift()).double()


def brier(promised: Tensor, came_true: Tensor) -> float:
    return float((promised - came_true).square().mean())


def excess(promised: Tensor, came_true: Tensor) -> float:
    """Mean promise less what came true, in standard errors of a promise learned from ``FITTED`` rows."""
    difference = (promised - came_true).view(2, -1).mean(0)  # the two cases of a row go together
    return float(difference.mean() / difference.std() / math.sqrt(1 / FITTED + 1 / MEASURED))


def test_little_changes_where_the_model_is_right() -> None:
    lg = close_model(noise=0.4)
    calibration = CertificateCorrection.fit(
        lg, sampled(lg, FITTED, seed=0), everything(FITTED), evidence="probability", num_draws=DRAWS
    )
    case, came_true = outcomes(lg, lg)
    model, calibrated = probability_of_gain(case.completion, num_draws=DRAWS), calibration.probability(case.completion)
    assert float((model - calibrated).abs().mean()) < 0.06
    assert brier(calibrated, came_true) < brier(model, came_true) + 0.005
    assert calibration.num_cases == 2 * 2 * FITTED


@pytest.mark.parametrize("evidence", ["all", "probability"])
def test_promises_are_kept_where_the_model_is_too_sure(evidence: str) -> None:
    lg = close_model(noise=0.05)
    truth = replace(lg, noise_variance={name: 30 * variance for name, variance in lg.noise_variance.items()})
    calibration = CertificateCorrection.fit(
        lg,
        sampled(truth, FITTED, seed=0),
        everything(FITTED),
        evidence=evidence,  # type: ignore[arg-type]
        num_draws=DRAWS,
    )
    case, came_true = outcomes(lg, truth)
    model, calibrated = probability_of_gain(case.completion, num_draws=DRAWS), calibration.probability(case.completion)
    assert excess(model, came_true) > 10
    assert abs(excess(calibrated, came_true)) < 6
    assert brier(calibrated, came_true) < brier(model, came_true) - 0.02
    if evidence == "all":  # the model's probability says 1 to nearly all, but other evidence tells them apart
        half = calibrated > calibrated.median()
        assert float(came_true[half].mean()) > float(came_true[~half].mean())


def test_platts_scaling_never_reverses_the_models_order() -> None:
    lg = close_model(noise=0.4)
    calibration = CertificateCorrection.fit(
        lg, sampled(lg, FITTED, seed=0), everything(FITTED), evidence="probability", num_draws=DRAWS
    )
    case, _ = outcomes(lg, lg)
    order = probability_of_gain(case.completion, num_draws=DRAWS).argsort(stable=True)
    assert bool((calibration.probability(case.completion)[order].diff() >= -1e-12).all())


def test_rows_that_lack_modalities_serve_and_complete_ones_have_nothing_to_gain() -> None:
    lg = close_model(noise=0.4)
    x, mask = sampled(lg, FITTED, seed=0), random_mask(FITTED, 3, 0.3, 0)
    spoilt = torch.where(mask[:, :, None], x, math.nan)
    calibration = CertificateCorrection.fit(lg, spoilt, mask, num_draws=4)
    other = CertificateCorrection.fit(lg, torch.where(mask[:, :, None], x, 0), mask, num_draws=4)
    assert torch.equal(calibration.coefficients, other.coefficients)
    completion = Completion.from_linear_gaussian(lg, spoilt, mask)
    promised = calibration.probability(completion)
    assert bool((promised[mask.all(1)] == 0).all())
    assert bool((promised[~mask.all(1)] > 0).all())


def test_where_all_gain_it_is_still_not_certain() -> None:
    lg = close_model(noise=1e-6)
    calibration = CertificateCorrection.fit(lg, sampled(lg, 40, seed=0), everything(40), num_draws=DRAWS)
    case, came_true = outcomes(lg, lg)
    promised = calibration.probability(case.completion)
    assert float(came_true.mean()) > 0.99
    assert 0.95 < float(promised.mean()) < 1


def test_what_cannot_work_is_refused() -> None:
    lg = close_model()
    x = sampled(lg, 40, seed=0)
    with pytest.raises(DataError, match=r"at least 30 rows with two modalities or more .* got 29"):
        CertificateCorrection.fit(lg, x[:29], everything(29))
    with pytest.raises(DataError, match="two modalities"):
        CertificateCorrection.fit(lg, x, torch.tensor([[True, False, False]]).expand(40, 3))
    with pytest.raises(ArgumentError, match=r"evidence: expected one of .*'probability'"):
        CertificateCorrection.fit(lg, x, everything(40), evidence="some")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="penalty"):
        CertificateCorrection.fit(lg, x, everything(40), penalty=0.0)
