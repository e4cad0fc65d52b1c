"""Units: what is found out of them, and models folded back into the data's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import calmrl_prob as cal
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.selection import FoldedStatistics
from calmrl_prob.selection.scaling import Scaling, feature_spreads

UNITS = {"a": [1.0, 1e3, 1e-3], "b": [1e6, 1.0]}


def data(number: int = 90) -> cal.MultimodalData:
    generator = np.random.default_rng(0)
    values = {name: 5.0 + generator.normal(size=(number, len(units))) * units for name, units in UNITS.items()}
    return cal.MultimodalData(values)


@pytest.mark.parametrize("correlated", [False, True])
def test_the_model_folded_back_has_the_density_of_scaled_data_less_the_volume(correlated: bool) -> None:
    given = data()
    scaling = Scaling.of(given, "feature")
    scaled = scaling.scaled(given)
    assert isinstance(scaled, cal.MultimodalData)
    generator = torch.Generator().manual_seed(1)
    factor = {n: 0.3 * torch.randn(len(u), 1, generator=generator, dtype=torch.float64) for n, u in UNITS.items()}
    lg = LinearGaussian(
        {n: torch.randn(len(u), 2, generator=generator, dtype=torch.float64) for n, u in UNITS.items()},
        {n: scaled[n].mean(0) for n in UNITS},
        {n: torch.full((len(u),), 0.7, dtype=torch.float64) for n, u in UNITS.items()},
        noise_factor=factor if correlated else None,
    )
    evidence = float(cal.posterior(lg, scaled).log_marginal.sum())
    own = float(cal.posterior(scaling.unscaled(lg), given).log_marginal.sum())
    assert own == pytest.approx(evidence - scaling.log_volume(given), rel=1e-10)
    assert scaling.log_volume(FoldedStatistics.of(given)) == pytest.approx(scaling.log_volume(given), rel=1e-10)


def test_spreads_are_the_same_from_rows_and_statistics() -> None:
    given = data()
    for name, found in feature_spreads(FoldedStatistics.of(given)).items():
        torch.testing.assert_close(found, feature_spreads(given)[name], rtol=1e-8, atol=0.0)


def test_units_are_found_to_differ_where_they_do() -> None:
    assert Scaling.of(data(), "auto").kind == "feature"
    alike = cal.MultimodalData({"a": np.random.default_rng(0).normal(size=(50, 6)) * np.geomspace(10, 1, 6)})
    assert Scaling.of(alike, "auto").kind == "none"
    assert Scaling.of(data(), "none").scaled(data())["a"].equal(data()["a"])
