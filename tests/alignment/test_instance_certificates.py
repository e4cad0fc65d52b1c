"""Certificates of an imputation: the same as by hand, named by id, and refused where there are no anchors."""

from __future__ import annotations

import pytest
import torch

import calmrl_prob as cal
from calmrl_prob.alignment.certificate import probability_of_gain
from calmrl_prob.alignment.certificate_correction import CertificateCorrection
from calmrl_prob.alignment.completion import Completion
from calmrl_prob.alignment.instances import certify_instances
from calmrl_prob.errors import ArgumentError, SchemaError
from calmrl_prob.linear_gaussian import LinearGaussian
from models.student_t import StudentT


def problem(n: int = 120, seed: int = 0) -> tuple[LinearGaussian, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    names = ("image", "sound", "text")
    loadings = torch.randn(3, 4, 2, generator=generator)
    lg = LinearGaussian(
        dict(zip(names, loadings, strict=True)),
        {name: torch.zeros(4) for name in names},
        {name: torch.tensor(noise) for name, noise in zip(names, (0.3, 0.3, 3.0), strict=True)},
    )
    x = torch.stack(list(lg.sample(n, generator).features.values()), dim=1)
    mask = torch.rand(n, 3, generator=generator) < 0.7
    mask[:, 0] |= ~mask.any(dim=1)
    return lg, x, mask


def imputed(lg: LinearGaussian, x: torch.Tensor, mask: torch.Tensor) -> cal.Imputation:
    arrays = {name: torch.where(mask[:, m, None], x[:, m], torch.nan) for m, name in enumerate(lg.names)}
    data = cal.MultimodalData(arrays, ids=[f"row {number}" for number in range(len(x))])
    return cal.impute(lg, data)


def test_an_imputation_has_the_probabilities_of_its_completion() -> None:
    lg, x, mask = problem()
    found = imputed(lg, x, mask).certificate(num_draws=50, seed=3)
    completion = Completion.from_linear_gaussian(lg, x, mask)
    expected = probability_of_gain(completion, num_draws=50, seed=3)
    torch.testing.assert_close(found.probability, expected)
    assert bool((found.probability[mask.all(1)] == 0).all())
    table = found.table().set_index("id")
    assert len(table) == int((~mask.all(1)).sum())
    row = int((~mask.all(1)).nonzero()[0])
    lacking = "+".join(name for name, here in zip(lg.names, mask[row].tolist(), strict=True) if not here)
    assert table.loc[f"row {row}", "missing"] == lacking
    assert not found.is_calibrated


def test_those_below_the_threshold_are_named_the_lowest_first() -> None:
    lg, x, mask = problem()
    found = imputed(lg, x, mask).certificate(threshold=0.7, num_draws=50)
    table = found.table()
    below = table[~table["impute"]].sort_values("probability", kind="stable")
    assert found.refused.tolist() == below["id"].tolist()
    assert 0 < len(below) < len(table)
    assert imputed(lg, x, mask).certificate(threshold=0.0).refused.tolist() == []
    assert set(imputed(lg, x, mask).certificate(threshold=1.0, num_draws=50).refused) >= set(below["id"])
    assert "refused" in repr(found)


def test_a_calibration_takes_the_place_of_the_models_own_probability() -> None:
    lg, x, mask = problem()
    calibration = CertificateCorrection.fit(lg, x, mask, num_draws=16)
    found = imputed(lg, x, mask).certificate(calibration)
    torch.testing.assert_close(found.probability, calibration.probability(Completion.from_linear_gaussian(lg, x, mask)))
    assert found.is_calibrated
    with pytest.raises(ArgumentError, match="distance: the calibration is of"):
        certify_instances(Completion.from_linear_gaussian(lg, x, mask), None, calibration, distance="projector")


def test_where_there_are_no_anchors_it_says_so() -> None:
    lg, x, mask = problem()
    given = imputed(lg, x, mask)
    with pytest.raises(ArgumentError, match="threshold: expected a probability"):
        given.certificate(threshold=2.0)
    with pytest.raises(ArgumentError, match="ids: expected 120"):
        certify_instances(Completion.from_linear_gaussian(lg, x, mask), given.posterior.mean[:3, 0].numpy())
    wide = cal.MultimodalData({"a": torch.randn(30, 3), "b": torch.randn(30, 5)})
    model = cal.SharedLatentModel(wide.dims, latent_dim=2)
    cal.fit(model, wide)
    with pytest.raises(SchemaError, match=r"one width.*align encoders"):
        cal.impute(model, wide).certificate()
    narrow = cal.MultimodalData({"a": torch.randn(30, 3), "b": torch.randn(30, 3)})
    with pytest.raises(ArgumentError, match=r"exact route, got one by 'exact student-t'"):
        cal.impute(StudentT(narrow.dims, latent_dim=2), narrow).certificate()
