"""The check of rows that go with their neighbours: silent where their order means nothing, loud where it does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import calmrl_prob as cal
from calmrl_prob.errors import ReliabilityWarning
from calmrl_prob.linear_gaussian import fit_em
from calmrl_prob.selection.folds import FoldedStatistics, make_folds
from calmrl_prob.selection.neighbours import NeighbourCorrelation, neighbour_correlations


def correlations(data: cal.MultimodalData, seed: int) -> list[NeighbourCorrelation]:
    folds = make_folds(data, 2, 3, seed)
    fits = [fit_em(fold.train, 2, max_iterations=10, pseudo_rows=10).linear_gaussian for fold in folds]
    pairs = [(fold, fold.imputed(lg)) for fold, lg in zip(folds, fits, strict=True)]
    return neighbour_correlations(pairs, len(data), seed)


def drawn(seed: int, num_rows: int, persistence: float = 0.0) -> cal.MultimodalData:
    """Rows whose own errors are an autoregression: errors with the correlation ``persistence`` to the row before."""
    g = np.random.default_rng(seed)
    z, found = g.normal(size=(num_rows, 2)), {}
    for name, width in {"a": 1, "b": 6, "c": 3}.items():
        own = g.standard_t(3, size=(num_rows, width)) if seed % 2 else g.normal(size=(num_rows, width))
        for n in range(1, num_rows):
            own[n] = persistence * own[n - 1] + np.sqrt(1 - persistence**2) * own[n]
        found[name] = z @ g.normal(size=(2, width)) + own
    data = cal.MultimodalData(found)
    return data.mask(cal.missingness.mcar(data, 0.3, seed=seed)) if seed % 3 else data


def test_rows_in_no_order_raise_no_alarm() -> None:
    found = [one for seed in range(50) for one in correlations(drawn(seed, 60 if seed % 4 else 240), seed)]
    scores = np.array([one.value / one.error for one in found])
    assert len(scores) > 120
    assert not any(one.told for one in found)
    # standard normal: the mean of n within five of its standard errors, the deviation within a quarter
    assert abs(scores.mean()) < 5 / np.sqrt(len(scores))
    assert 0.75 < scores.std() < 1.25


@pytest.mark.parametrize("seed", range(3))
def test_rows_that_go_with_their_neighbours_are_told(seed: int) -> None:
    found = correlations(drawn(seed, 240, persistence=0.9), seed)
    assert any(one.told for one in found)  # of one feature, of which rows in three are missing, some are not
    assert max(one.value for one in found) < 1


def test_the_default_fit_names_figure_and_remedy_and_groups_silence_it() -> None:
    data = drawn(0, 150, persistence=0.95)
    with pytest.warns(ReliabilityWarning, match=r"correlation of neighbours: a 0\.\d\d \+/- .*groups="):
        cal.fit(cal.SharedLatentModel(data.dims), data)
    cal.fit(cal.SharedLatentModel(data.dims), data, groups=range(len(data)))  # a warning would be an error
    cal.fit(cal.SharedLatentModel(data.dims), FoldedStatistics.of(data))  # statistics have no order


def test_many_rows_are_looked_at_in_runs() -> None:
    data = drawn(0, 240, persistence=0.9)
    wide = cal.MultimodalData({name: torch.cat([data[name]] * 200) for name in data.names})
    found = correlations(wide, 0)
    assert all(one.num_pairs < 30_000 for one in found)
    assert any(one.told for one in found)
