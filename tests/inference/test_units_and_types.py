"""Units and floating-point types: right, or a typed error, whatever the route."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import calmrl_prob as cal
from calmrl_prob.priors import GroupPrior, MixturePrior, StudentTPrior


def arrays(seed: int = 0, noise: float = 0.3, num_rows: int = 120) -> dict[str, np.ndarray]:
    """Two modalities, each absent in some rows."""
    g = np.random.default_rng(seed)
    z = g.normal(size=(num_rows, 2))
    found = {n: z @ g.normal(size=(2, d)) + noise * g.normal(size=(num_rows, d)) for n, d in (("a", 5), ("b", 4))}
    found["a"][:20], found["b"][-20:] = np.nan, np.nan
    return found


def as_type(found: dict[str, np.ndarray], kind: str) -> cal.MultimodalData:
    """Data in one type, with labels for priors by group."""
    labels = np.array(["x", "y"] * (len(found["a"]) // 2))
    return cal.MultimodalData({name: value.astype(kind) for name, value in found.items()}, labels=labels)


PRIORS = {
    "normal": lambda kind: None,
    "mixture": lambda kind: MixturePrior(2, 2, dtype=kind),
    "student-t": lambda kind: StudentTPrior(2, dtype=kind),
    "group": lambda kind: GroupPrior(2, ["x", "y"], dtype=kind),
}


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize(("kind", "stored"), [(torch.float32, "f8"), (torch.float64, "f4")])
def test_models_and_data_of_different_types_go_together(prior: str, kind: torch.dtype, stored: str) -> None:
    data = as_type(arrays(), stored)
    model = cal.SharedLatentModel(data.dims, 2, dtype=kind, prior=PRIORS[prior](kind))
    cal.fit(model, data)
    imputed = cal.impute(model, data, names=["b"])
    assert imputed.mean["b"].dtype == data.dtype
    same = cal.SharedLatentModel(data.dims, 2, prior=PRIORS[prior](torch.float64))
    cal.fit(same, as_type(arrays(), "f8"))
    gap = (imputed.mean["b"].double() - cal.impute(same, as_type(arrays(), "f8"), names=["b"]).mean["b"]).abs().max()
    # parameters rounded to float32, of rows that are of the order of 1; some thirty times that rounding
    assert float(gap) < 1e-3
    both = data.subset(data.complete_rows())
    cal.retrieve(model, both.select(["a"]), both.select(["b"]))
    cal.masked_validation(model, both, num_draws=2, folds=2)


@pytest.mark.parametrize("noise", ["isotropic", "diagonal"])
@pytest.mark.parametrize("scale", [1e-2, 1e-4])
def test_evidence_of_float32_data_is_that_of_the_same_numbers(noise: str, scale: float) -> None:
    found = arrays(1, noise=scale, num_rows=200)
    single, stored = as_type(found, "f4"), as_type({n: v.astype("f4") for n, v in found.items()}, "f8")
    model = cal.SharedLatentModel(single.dims, 2, noise)
    fit = cal.fit(model, stored, noise_floor=1e-12)
    gap = cal.posterior(model, single).log_marginal.double() - cal.posterior(model, stored).log_marginal
    assert float(gap.abs().max()) < 0.03  # ten times what products in float32 may lose
    again = cal.fit(cal.SharedLatentModel(single.dims, 2, noise), single, noise_floor=1e-12)
    # a row's evidence is off by 0.03 nats at most, 200 rows
    assert abs(float(again.objective[-1] - fit.objective[-1])) < 6


@pytest.mark.parametrize(("stored", "unit"), [("f4", 1e-26), ("f4", 1e-18), ("f8", 1e-200), ("f8", 1e-155)])
def test_units_whose_squares_underflow_are_refused(stored: str, unit: float) -> None:
    data = as_type({name: value * unit for name, value in arrays().items()}, stored)
    with pytest.raises(cal.errors.DataError, match=r"modality 'a'.*cannot hold their variances"):
        cal.fit(cal.SharedLatentModel(data.dims, 2), data)
    with pytest.raises(cal.errors.DataError, match="cannot hold their variances"):
        cal.fit(cal.SharedLatentModel(data.dims), data)


def test_a_single_feature_in_tiny_units_is_named() -> None:
    found = arrays()
    found["b"][:, 2] *= 1e-26
    data = as_type(found, "f4")
    with pytest.raises(cal.errors.DataError, match=r"modality 'b': 1 of its 4 features .* first feature 2 "):
        cal.fit(cal.SharedLatentModel(data.dims, 2, "diagonal"), data)


@pytest.mark.parametrize(("stored", "unit"), [("f4", 1e-10), ("f4", 1e10), ("f8", 1e-100), ("f8", 1e100)])
def test_units_that_can_be_held_change_nothing(stored: str, unit: float) -> None:
    plain, scaled = as_type(arrays(), stored), as_type({n: v * unit for n, v in arrays().items()}, stored)
    sds = []
    for data in (plain, scaled):
        model = cal.SharedLatentModel(data.dims, 2, "diagonal")
        cal.fit(model, data)
        sds.append(cal.impute(model, data, names=["b"]).variance["b"].sqrt().double().numpy())
    # float32 keeps seven digits, and a fit ends within 1e-6 nats a value
    np.testing.assert_allclose(sds[1] / unit, sds[0], rtol=0.02)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_modules_in_half_precision_are_refused(kind: torch.dtype, tmp_path: Path) -> None:
    data = as_type(arrays(), "f4")
    model = cal.SharedLatentModel(data.dims, 2)
    cal.fit(model, data)
    with pytest.raises(cal.errors.ArgumentError, match=r"call \.float"):
        cal.impute(model.to(kind), data)
    with pytest.raises(cal.errors.ArgumentError, match=r"expected torch\.float32 or torch\.float64"):
        cal.save(model.to(kind), tmp_path / "model.safetensors")


def test_modules_without_values_are_refused(tmp_path: Path) -> None:
    data = as_type(arrays(), "f4")
    model = cal.SharedLatentModel(data.dims, 2).to("meta")
    path = tmp_path / "model.safetensors"
    for call in (lambda: cal.impute(model, data), lambda: cal.fit(model, data), lambda: cal.save(model, path)):
        with pytest.raises(cal.errors.ArgumentError, match="'meta', which has n"):
            call()
