"""Rehearsals: what is hidden, what is left, and that shifts are those of the modalities that a row has."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from calmrl_prob.alignment.anchors import leading_vector
from calmrl_prob.alignment.rehearsal import rehearse
from calmrl_prob.errors import ArgumentError, DataError
from tests.cases.certificate_cases import close_model, complete_and_completed, svd_anchors
from tests.cases.linear_gaussian_cases import random_mask


def test_each_number_is_hidden_of_each_row_that_can_lose_it() -> None:
    truth, _ = complete_and_completed(close_model(), rows=60)
    mask = random_mask(60, 3, 0.4, 1)
    found = rehearse(close_model(), torch.where(mask[:, :, None], truth, math.nan), mask, times=2)
    counted = np.zeros((60, 3), dtype=int)
    for case in found:
        kept = case.completion.observed_mask
        assert bool(kept.any(1).all())
        assert bool(case.complete.isfinite().all())
        for row, hidden in zip(case.rows.tolist(), (~kept).sum(1).tolist(), strict=True):
            counted[row, hidden] += 1
    has = mask.sum(1).numpy()
    np.testing.assert_array_equal(counted[:, 0], 0)
    np.testing.assert_array_equal(counted[:, 1], 2 * (has >= 2))
    np.testing.assert_array_equal(counted[:, 2], 2 * (has == 3))


def test_every_modality_is_hidden_as_often() -> None:
    truth, _ = complete_and_completed(close_model(), rows=2000)
    (found,) = rehearse(close_model(), truth, torch.ones(2000, 3, dtype=torch.bool))
    kept = found.completion.observed_mask.double()
    for hidden in (1, 2):
        chosen = kept[(~found.completion.observed_mask).sum(1) == hidden]
        share = hidden / 3
        error = math.sqrt(share * (1 - share) / len(chosen))
        assert bool(((1 - chosen.mean(0) - share).abs() <= 6 * error).all())


def test_shifts_are_those_of_the_modalities_that_a_row_has() -> None:
    lg = close_model(noise=0.3)
    truth, _ = complete_and_completed(lg, rows=20)
    mask = torch.tensor([[True, False, True]]).expand(20, 3)
    (found,) = rehearse(lg, torch.where(mask[:, :, None], truth, math.nan), mask)
    assert found.completion.linear_gaussian.names == (lg.names[0], lg.names[2])
    full = svd_anchors(truth[:, [0, 2]].numpy())[found.rows.numpy()]
    kept = found.completion.observed_mask
    rows = truth[:, [0, 2]][found.rows][kept].numpy()  # one is left of two, so that it is the local anchor
    expected = np.linalg.norm(full - rows / np.linalg.norm(rows, axis=1, keepdims=True), axis=1)
    np.testing.assert_allclose(found.local_shift().numpy(), expected, atol=1e-10)
    np.testing.assert_allclose(found.shift(torch.from_numpy(full)).numpy(), 0, atol=1e-7)


def test_less_weight_of_means_is_as_if_they_were_shorter() -> None:
    _, completion = complete_and_completed(close_model(noise=0.3), rows=50)
    mask = completion.observed_mask[:, :, None]
    shorter = leading_vector(torch.where(mask, completion.values, 0.5 * completion.values)).vector
    found = completion.anchors(0.25).vector
    torch.testing.assert_close((found * shorter).sum(1).abs(), torch.ones(50, dtype=torch.float64))
    local = leading_vector(completion.values, completion.observed_mask).vector
    torch.testing.assert_close(completion.anchors(0.0).vector, local)
    torch.testing.assert_close(completion.anchors().vector, leading_vector(completion.values).vector)
    with pytest.raises(ArgumentError, match="weight: expected a number of at least 0, got -1"):
        completion.anchors(-1.0)


def test_what_is_hidden_follows_the_seed_alone() -> None:
    truth, _ = complete_and_completed(close_model(), rows=30)
    everything, state = torch.ones(30, 3, dtype=torch.bool), torch.get_rng_state()
    (first,), (again,), (other,) = (rehearse(close_model(), truth, everything, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first.completion.observed_mask, again.completion.observed_mask)
    assert not torch.equal(first.completion.observed_mask, other.completion.observed_mask)


def test_rows_that_cannot_lose_anything_are_refused() -> None:
    single = torch.eye(3, dtype=torch.bool)
    with pytest.raises(DataError, match="rows that have two modalities or more"):
        rehearse(close_model(), torch.zeros(3, 3, 5), single)
    with pytest.raises(ArgumentError, match="times"):
        rehearse(close_model(), torch.zeros(3, 3, 5), ~single, times=0)
