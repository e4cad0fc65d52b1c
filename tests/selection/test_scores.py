"""The criterion: what it is where the answer is known."""

from __future__ import annotations

import math

import pytest
import torch

from calmrl_prob.selection.folds import Fold
from calmrl_prob.selection.held_out import HeldOutSums
from calmrl_prob.selection.scores import mean_score, score_fold


class Bare(Fold):
    """A fold of which only the spread of its training rows is asked."""

    def __init__(self, spread: list[float]) -> None:
        self.spread = {"a": torch.tensor(spread, dtype=torch.float64)}

    def sums(self, lg: object) -> list[HeldOutSums]:
        raise NotImplementedError


def part(errors: list[float], squares: list[float], count: int = 10, seen: str = "b") -> HeldOutSums:
    error, square = torch.tensor(errors).double(), torch.tensor(squares).double()
    return HeldOutSums("a", (seen,), torch.full_like(error, count), error, square, square / 2, torch.ones_like(error))


def test_both_shares_are_equal_for_features_alike() -> None:
    found = score_fold([part([3.0, 3.0], [10.0, 10.0])], Bare([1.0, 1.0]))
    assert found.r2["a"] == pytest.approx(0.7)
    assert 1 - math.exp(-2 * found.log_score["a"]) == pytest.approx(0.7)
    assert found.value == pytest.approx(0.7)
    assert found.calibration["a"] == pytest.approx(0.3)


def test_the_log_score_does_not_depend_on_units_and_squared_error_does() -> None:
    near, far = [part([5.0, 9.0], [10.0, 10.0])], [part([5.0, 9.0e4], [10.0, 10.0e4])]
    one, other = score_fold(near, Bare([1.0, 1.0])), score_fold(far, Bare([1.0, 1.0e4]))
    assert one.log_score["a"] == pytest.approx(other.log_score["a"])
    assert one.r2["a"] == pytest.approx(0.3)
    assert other.r2["a"] == pytest.approx(0.1, abs=1e-3)


def test_a_constant_feature_counts_for_nothing() -> None:
    found = score_fold([part([5.0, 1e-30], [10.0, 0.0])], Bare([1.0, 0.0]))
    assert found.log_score["a"] == pytest.approx(0.5 * math.log(2))


def test_imputations_that_are_worse_than_the_mean_score_below_it() -> None:
    found = score_fold([part([30.0], [10.0])], Bare([1.0]))
    assert found.value < 0
    assert found.r2["a"] == pytest.approx(-2.0)


def test_the_mean_over_folds_takes_what_each_has() -> None:
    one = score_fold([part([3.0], [10.0])], Bare([1.0]))
    nothing = score_fold([], Bare([1.0]))
    assert math.isnan(nothing.value)
    assert mean_score([one, nothing]).value == pytest.approx(one.value)
