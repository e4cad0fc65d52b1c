"""Predictives of held-out rows by any model: those of the closed form, in parts or whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import calmrl_prob as cal
from calmrl_prob.linear_gaussian import fit_em
from calmrl_prob.selection import predicted
from calmrl_prob.selection.hidden import imputed_rows
from calmrl_prob.selection.predicted import predicted_rows


def by_pattern(parts: Any) -> dict[tuple[str, tuple[str, ...]], tuple[torch.Tensor, ...]]:  # noqa: ANN401 - rows of either kind
    found: dict[Any, list[Any]] = {}
    for part in parts:
        variance = part.variance.expand_as(part.truth)
        found.setdefault((part.modality, part.seen), []).append((part.truth, part.imputed, variance))
    return {key: tuple(map(torch.cat, zip(*own, strict=True))) for key, own in found.items()}


@pytest.fixture(scope="module")
def data() -> cal.MultimodalData:
    return cal.datasets.make_synthetic(60, {"a": 5, "b": 4, "c": 3}, latent_dim=2, missing_rate=0.3, seed=0).data


def test_of_a_normal_model_they_are_the_closed_form(data: cal.MultimodalData) -> None:
    lg = fit_em(data.blocks, 2).linear_gaussian
    one, other = (by_pattern(p) for p in ((p.held_out() for p in predicted_rows(lg, data)), imputed_rows(lg, data)))
    assert one.keys() == other.keys()
    for key, parts in one.items():
        torch.testing.assert_close(parts, other[key], rtol=1e-8, atol=1e-10)


def test_parts_of_a_pattern_are_the_pattern(data: cal.MultimodalData, monkeypatch: pytest.MonkeyPatch) -> None:
    lg = fit_em(data.blocks, 2).linear_gaussian
    whole = list(predicted_rows(lg, data))
    monkeypatch.setattr(predicted, "_CHUNK", 11)
    parts = list(predicted_rows(lg, data))
    assert len(parts) > 2 * len(whole)
    for one in whole:
        own = [p for p in parts if (p.modality, p.seen) == (one.modality, one.seen)]
        np.testing.assert_array_equal(np.concatenate([p.rows for p in own]), one.rows)
        torch.testing.assert_close(torch.cat([p.log_density for p in own]), one.log_density)


def test_features_that_are_missing_have_no_density() -> None:
    values = cal.datasets.make_synthetic(40, {"a": 5, "b": 4}, latent_dim=2, seed=0).complete
    spoilt = {name: values[name].clone() for name in values.names}
    spoilt["a"][3, 1] = torch.nan
    data = cal.MultimodalData(spoilt, missing="features")
    lg = fit_em(values.blocks, 2).linear_gaussian
    part = next(p for p in predicted_rows(lg, data) if p.modality == "a")
    assert part.log_density.isnan().nonzero().tolist() == [[3, 1]]
