"""The choice of shrinkage: what it scores, that it repairs intervals, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import calmrl_prob as cal
from calmrl_prob import MultimodalData, choose_shrinkage, masked_validation
from calmrl_prob.datasets import make_synthetic
from calmrl_prob.errors import ArgumentError, ArgumentTypeError

FAST = {"tolerance": 1e-3, "max_iterations": 50}


@pytest.fixture(scope="module")
def data() -> MultimodalData:
    return make_synthetic(360, {"a": 14, "b": 12, "c": 8}, latent_dim=2, missing_rate=0.2, seed=0).data


def test_criteria_are_the_scores_of_rows_held_out_of_the_fit(data: MultimodalData) -> None:
    train, model = data.subset(slice(0, 60)), cal.SharedLatentModel(data.dims, 6)
    grid = {"pseudo_rows": [20.0]}
    fold = np.random.default_rng(3).permutation(60) % 3
    evidence, imputation = np.empty(60), np.full(60, np.nan)
    for k in range(3):
        own = cal.SharedLatentModel(data.dims, 6)
        cal.fit(own, train.subset(fold != k), seed=3, pseudo_rows=20.0, **FAST)
        rows = np.flatnonzero(fold == k)
        evidence[rows] = cal.posterior(own, train.subset(rows)).log_marginal.numpy()
        for n in rows:
            row = train.subset([n])
            have = [name for name in row.names if bool(row.observed(name)[0])]
            if len(have) > 1:
                cells = []
                for name in have:
                    seen = row.select([other for other in have if other != name])
                    imputed = cal.impute(own, seen, names=[name])
                    normal = torch.distributions.Normal(imputed.mean[name], imputed.variance[name].sqrt())
                    cells.append(float(normal.log_prob(row[name]).mean()))
                imputation[n] = np.mean(cells)
    for criterion, scores in (("evidence", evidence), ("imputation", imputation)):
        found = choose_shrinkage(model, train, grid, criterion=criterion, folds=3, seed=3, **FAST)  # type: ignore[arg-type]
        told = scores[np.isfinite(scores)]
        assert found.curve["evidence"].item() == pytest.approx(told.mean(), rel=1e-9)
        assert found.curve["error"].item() == pytest.approx(told.std(ddof=1) / len(told) ** 0.5, rel=1e-9)
        assert found.options == {"pseudo_rows": 20.0, **FAST}
    assert model.unfitted


def test_what_it_chooses_covers_more_than_maximum_likelihood(data: MultimodalData) -> None:
    train, new = data.split([60, 300], seed=0)
    model = cal.SharedLatentModel(data.dims, 10)
    found = choose_shrinkage(model, train, {"pseudo_rows": [0, 20, 60, 180]}, folds=3, **FAST)
    assert len(found.curve) == 4
    assert found.curve.set_index("pseudo_rows").loc[found.options["pseudo_rows"], "behind"] == 0
    coverage = {}
    for kind, options in {"likelihood": FAST, "shrunk": dict(found.options)}.items():
        own = cal.SharedLatentModel(data.dims, 10)
        cal.inference.fit(own, train, **options)  # type: ignore[arg-type]  # cal.fit warns of the likelihood's
        table = masked_validation(own, new, num_draws=0).summary()
        coverage[kind] = table["coverage"].mean(), table["crps"].mean()
    assert coverage["likelihood"][0] < 0.82
    assert coverage["shrunk"][0] > 0.86
    assert coverage["shrunk"][1] < coverage["likelihood"][1]


def test_bad_input_is_refused_by_name(data: MultimodalData) -> None:
    model = cal.SharedLatentModel(data.dims, 2)
    with pytest.raises(ArgumentTypeError, match="data"):
        choose_shrinkage(model, {"a": 1})  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="grid"):
        choose_shrinkage(model, data, [1, 2])  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="pseudo_rows"):
        choose_shrinkage(model, data, {"pseudo_rows": []})
    with pytest.raises(ArgumentTypeError, match=r"grid\['pseudo_rows'\]: expected a list of values, got 5; use \[5\]"):
        choose_shrinkage(model, data, {"pseudo_rows": 5})  # type: ignore[dict-item]
    with pytest.raises(ArgumentError, match="folds"):
        choose_shrinkage(model, data, folds=1000)
    with pytest.raises(ArgumentError, match="criterion"):
        choose_shrinkage(model, data, criterion="r2")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="no option 'pseudo_row'"):
        choose_shrinkage(model, data, {"pseudo_row": [1]})
