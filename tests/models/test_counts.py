"""Models of counts: rates, dispersion and intervals that were planted are found; what is no count is refused."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import calmrl_prob as cal
from calmrl_prob.errors import ArgumentError, ReliabilityWarning
from models.counts import Counts

DIMS = {"rna": 8, "adt": 6}


def counted(size: float | None, seed: int = 0, number: int = 400) -> tuple[cal.MultimodalData, torch.Tensor]:
    """Counts of one latent, at exposures between 1 and 6, overdispersed by gamma factors; and all loadings."""
    made, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    z = torch.randn(number, 1, generator=made).double()
    values, beside, loadings = {}, {}, []
    for name, width in DIMS.items():
        depth = 1 + 5 * torch.rand(number, generator=made).double()
        loadings.append(0.6 * torch.randn(1, width, generator=made).double().tanh())
        rate = depth[:, None] * (z * loadings[-1] + 0.5).exp()
        if size is not None:
            rate = rate * torch.from_numpy(rng.gamma(size, 1 / size, rate.shape))
        values[name], beside[f"exposure_{name}"] = torch.poisson(rate, made), depth.numpy()
    values["adt"][: number // 4] = torch.nan
    return cal.MultimodalData(values, covariates=beside), torch.cat(loadings, dim=1)[0]


@pytest.mark.parametrize("family", ["poisson", "negative_binomial"])
def test_what_was_planted_is_found_and_intervals_hold(family: str) -> None:
    size = None if family == "poisson" else 2.0
    data, truth = counted(size)
    train, test = data.subset(slice(0, 300)), data.subset(slice(300, 400))
    fit = cal.fit(Counts(DIMS, 1, family), train, max_iterations=60, patience=1, tolerance=0.02)
    found = torch.cat([fit.model.loadings[name].detach()[:, 0] for name in DIMS])
    # off by 0.05 and 0.13 at most; three times that
    assert float((found * torch.sign(found @ truth) - truth).abs().max()) < 0.4
    assert float((fit.model.intercepts["rna"].detach() - 0.5).abs().max()) < 0.3
    if size is not None:
        assert 1.0 < float(fit.model.log_size["rna"].detach().exp().median()) < 4.0
    rows = cal.MultimodalData({"rna": test["rna"]}, covariates=test.covariates)
    # The posterior's tail towards low rates is that of the prior, wider than a normal's: importance weights say so,
    # though moments are those of the exact posterior to a twentieth of a standard deviation.
    with pytest.warns(ReliabilityWarning, match="Pareto k-hat"):
        imputed = cal.impute(fit.model, rows, ["adt"])
    low, high = imputed.interval(0.9)["adt"]
    held = float(((low <= test["adt"]) & (test["adt"] <= high)).double().mean())
    assert 0.86 < held < 0.99  # whole numbers hold at least what is asked
    centre = train["adt"][train.observed("adt")].mean(0)
    error = (imputed.mean["adt"] - test["adt"]).square().mean() / (centre - test["adt"]).square().mean()
    assert float(error) < 0.9


def test_what_is_no_count_and_what_is_no_family_is_refused() -> None:
    with pytest.raises(ArgumentError, match="family: expected 'poisson' or 'negative_binomial'"):
        Counts(DIMS, 1, "normal")  # type: ignore[arg-type]
    fractions = cal.MultimodalData({n: torch.full((4, d), 0.5).double() for n, d in DIMS.items()})
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        cal.fit(Counts(DIMS, 1), fractions, max_iterations=1)
    assert any("Poisson, cannot take the value 0.5" in str(warning.message) for warning in told)
    data, _ = counted(None, number=20)
    data.covariates["exposure_rna"] = np.zeros(20)
    with pytest.raises(ArgumentError, match="exposure_rna: expected positive numbers"):
        cal.fit(Counts(DIMS, 1), data)
