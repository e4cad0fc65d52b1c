"""Models with batches: what their fits reach, what they say of batches they know little of, and what they refuse."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import calmrl_prob as cal
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, DataError, ReliabilityWarning
from calmrl_prob.priors import GroupPrior, MixturePrior
from calmrl_prob.selection import FoldedStatistics

DIMS = {"rna": 9, "adt": 6}
ABSENT = "batch '2' never has 'adt'"


def drawn(seed: int = 0, size: int = 80) -> tuple[cal.MultimodalData, dict[str, Tensor], Tensor]:
    """Rows of four batches of known shifts: 2 lacks the second modality, 3 is one row; 0 misses some of either."""
    made = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=made, dtype=torch.float64)

    batch = torch.tensor([0] * size + [1] * size + [2] * size + [3])
    z = normal(len(batch), 2)
    shift = {name: 1.5 * normal(4, width) for name, width in DIMS.items()}
    scale = torch.tensor([1.0, 1.4, 1.0, 1.0], dtype=torch.float64)
    values = {}
    for name, width in DIMS.items():
        own = z @ normal(2, width) + 0.5 * normal(len(batch), width)
        values[name] = shift[name][batch] + scale[batch, None] * own
    values["adt"][batch == 2] = torch.nan
    values["adt"][:10], values["rna"][10:20] = torch.nan, torch.nan
    data = cal.MultimodalData(values, covariates={"site": batch.numpy()})
    return data, shift, batch


def fitted(data: cal.MultimodalData, *, scale: bool = False, **options: object) -> cal.FitResult:
    model = cal.SharedLatentModel(data.dims, 2, "diagonal", batch=cal.BatchEffects("site", scale=scale))
    with pytest.warns(ReliabilityWarning, match=ABSENT):
        return cal.fit(model, data, **options)


@pytest.mark.parametrize("scale", [False, True])
def test_the_objective_never_falls_and_is_the_evidence_and_log_priors(scale: bool) -> None:
    data, _, _ = drawn()
    fit = fitted(data, scale=scale)
    assert fit.converged
    assert bool((fit.objective[1:] >= fit.objective[:-1]).all())
    evidence = float(cal.posterior(fit, data).log_marginal.sum())
    assert evidence == pytest.approx(float(fit.log_likelihood[-1]), rel=1e-9)
    prior = fit.model.batch.moves.log_prior()
    assert float(fit.objective[-1] - fit.log_likelihood[-1]) == pytest.approx(prior, rel=1e-6)


@pytest.mark.parametrize("scale", [False, True])
def test_no_gradient_of_any_parameter_is_left(scale: bool) -> None:
    data, _, _ = drawn()
    model = fitted(data, scale=scale, tolerance=1e-10).model
    structures = model.structure(data)
    total = torch.zeros((), dtype=torch.float64)
    for g, lg in enumerate(structures.structures[:-1]):
        rows = data.subset(torch.nonzero(structures.index == g).squeeze(1))
        total = total + cal.posterior(model, rows).log_marginal.sum() * 0 + _evidence(lg, rows)
    moves = model.batch.moves
    for name in DIMS:
        total = total - 0.5 * (moves.shift[name].square() / moves.variance[name]).sum()
        u = 1 / moves.scale[name]
        total = total + 10 * DIMS[name] * (u.log() - u.square() / 2).sum()
    total.backward()
    for name, parameter in model.named_parameters():
        if scale or "log_scale" not in name:
            # nats for a step of one unit, of evidence of about -2,000 nats; 3 times what tolerance 1e-10 leaves
            assert float(parameter.grad.abs().max()) < 0.05, name


def _evidence(lg: cal.LinearGaussian, rows: cal.MultimodalData) -> Tensor:
    """By the dense joint covariance, pattern by pattern."""
    total = torch.zeros((), dtype=torch.float64)
    for pattern in rows.observed_mask.unique(dim=0):
        names = [n for n, here in zip(rows.names, pattern.tolist(), strict=True) if here]
        own = rows.subset(torch.nonzero((rows.observed_mask == pattern).all(1)).squeeze(1))
        mean, covariance = lg.joint(names)
        x = torch.cat([own[n] for n in names], dim=1)
        total = total + torch.distributions.MultivariateNormal(mean, covariance).log_prob(x).sum()
    return total


def test_planted_shifts_are_found_and_help_imputation() -> None:
    data, shift, _batch = drawn(size=200)
    fit = fitted(data, scale=True)
    learned = fit.model.batch.moves
    for name in DIMS:
        there = [0, 1] if name == "adt" else [0, 1, 2]
        gap = (learned.shift[name][there] - learned.shift[name][there].mean(0)).detach()
        truth = shift[name][there] - shift[name][there].mean(0)
        # a mean of 200 rows of standard deviation below 4 is off by 0.3; 6 standard errors of it
        assert float((gap - truth).abs().max()) < 6 * 0.3
    scale = learned.scale["rna"].detach()
    assert float(scale[1] / scale[0]) == pytest.approx(1.4, rel=0.2)
    plain = cal.SharedLatentModel(data.dims, 2, "diagonal")
    cal.fit(plain, data)
    both = data.subset(data.complete_rows())
    hidden = both.select(["rna"])

    def error(model: object) -> float:
        return float((cal.impute(model, hidden, ["adt"]).mean["adt"] - both["adt"]).square().mean())

    assert error(fit) < 0.7 * error(plain)


def test_one_batch_is_a_model_without() -> None:
    data, _, _ = drawn()
    whole = cal.MultimodalData({n: data[n] for n in data.names}, covariates={"site": ["a"] * len(data)})
    model, plain = (cal.SharedLatentModel(DIMS, 2, "diagonal", batch=batch) for batch in ("site", None))
    cal.fit(model, whole)
    cal.fit(plain, whole)
    one, other = (cal.impute(m, whole).mean["adt"] for m in (model, plain))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_absent_and_unknown_batches_get_the_intercept_and_spread_of_all() -> None:
    data, _, _ = drawn()
    fit = fitted(data)
    effects, shared = fit.model.batch, fit.model.linear_gaussian()
    table = effects.table().set_index(["batch", "modality"])
    assert table.loc[("2", "adt"), "intercept"] == "of all batches"
    assert table.loc[("2", "adt"), "shift"] == 0
    assert table.loc[("3", "adt"), "num_instances"] == 1
    assert np.isfinite(table.loc[("3", "adt"), "shift"])
    row = data.subset(slice(160, 161))
    nobody = cal.MultimodalData({"rna": row["rna"]}, covariates={"site": [None]})
    imputed = cal.impute(fit, nobody)
    wide = shared.noise_variance["adt"] + effects.moves.variance["adt"]
    torch.testing.assert_close(imputed.noise_variance["adt"][0], wide.detach())
    known = cal.MultimodalData({"rna": row["rna"]}, covariates={"site": [2.0]})  # a float, as beside NaN
    torch.testing.assert_close(cal.impute(fit, known).noise_variance["adt"][0], wide.detach())
    stranger = cal.MultimodalData({"rna": row["rna"]}, covariates={"site": ["9"]})
    with pytest.raises(DataError, match=r"batch '9' of 'site' was not in the data of the fit.*enter None"):
        cal.impute(fit, stranger)
    with pytest.raises(DataError, match="they have no 'site'"):
        cal.impute(fit, cal.MultimodalData({"rna": row["rna"]}))


def test_retrieval_and_files_know_batches(tmp_path: Path) -> None:
    data, _, _ = drawn()
    fit = fitted(data, scale=True)
    both = data.subset(data.complete_rows())
    found = cal.retrieve(fit, both.select(["rna"]), both.select(["adt"]))
    plain = copy.deepcopy(fit.model)
    assert found.metrics()["R@1"] > 10 / len(both)
    cal.save(fit, tmp_path / "fit.safetensors")
    again = cal.load(tmp_path / "fit.safetensors")
    torch.testing.assert_close(cal.impute(again, data).mean["adt"], cal.impute(plain, data).mean["adt"])
    assert (
        repr(again.model)
        == "SharedLatentModel(rna: 9, adt: 6; latent_dim=2, noise='diagonal', prior=normal, batch='site')"
    )


def test_a_chosen_fit_has_batches_and_intervals_about_them(tmp_path: Path) -> None:
    data, _, _ = drawn(size=60)
    model = cal.SharedLatentModel(data.dims, batch="site")
    with pytest.warns(ReliabilityWarning, match=ABSENT):
        fit = cal.fit(model, data, budget=3.0)
    assert fit.choice is not None
    assert fit.model.batch.names == ("0", "1", "2", "3")
    both = data.subset(data.complete_rows())
    low, high = cal.impute(fit, both.select(["rna"])).interval(0.9)["adt"]
    held = float(((low <= both["adt"]) & (both["adt"] <= high)).double().mean())
    assert 0.75 < held < 0.99  # rows of the fit, few of them
    cal.save(fit, tmp_path / "fit.safetensors")
    again = cal.load(tmp_path / "fit.safetensors")
    torch.testing.assert_close(cal.impute(again, both.select(["rna"])).interval(0.9)["adt"][0], low)


def test_what_does_not_go_with_batches_is_refused() -> None:
    data, _, _ = drawn()
    for prior in (MixturePrior(2, 2), GroupPrior(2, ["0", "1"], "site")):
        with pytest.raises(ArgumentError, match="batch: it goes with a normal prior"):
            cal.SharedLatentModel(DIMS, 2, prior=prior, batch="site")
    with pytest.raises(ArgumentTypeError, match="batch: expected the name of a covariate"):
        cal.SharedLatentModel(DIMS, 2, batch=3)  # type: ignore[arg-type]
    model = cal.SharedLatentModel(DIMS, 2, batch="site")
    with pytest.raises(ArgumentError, match="batch: shifts of batches are learned from rows"):
        cal.fit(model, FoldedStatistics.of(data).total)
    values = {n: data[n].clone() for n in DIMS}
    values["rna"][30, 2] = torch.nan
    partial = cal.MultimodalData(values, covariates=data.covariates, missing="features")
    with pytest.raises(ArgumentError, match="batch: shifts of batches are learned from rows"):
        cal.fit(model, partial)
    nobody = cal.MultimodalData({n: data[n] for n in DIMS}, covariates={"site": [None, *["a"] * (len(data) - 1)]})
    with pytest.raises(DataError, match="row 0 has no entry in 'site'"):
        cal.fit(model, nobody)


@pytest.mark.parametrize("entries", [[1, "1", 2], [True, "True", 2], [2.0, "b", "2"]])
def test_entries_that_only_their_text_has_in_common_are_refused(entries: list[object]) -> None:
    rows = torch.randn(30, 3, generator=torch.Generator().manual_seed(0)).double()
    mixed = cal.MultimodalData({"rna": rows}, covariates={"site": np.array(entries * 10, dtype=object)})
    with pytest.raises(DataError, match="may be one batch or two; write them alike"):
        cal.fit(cal.SharedLatentModel({"rna": 3}, 1, batch="site"), mixed)


def test_batches_written_as_numbers_or_as_text_are_the_same_ones_in_new_data() -> None:
    data, _, batch = drawn()
    fit = fitted(data)
    said = {"rna": data["rna"].nan_to_num()}
    text = cal.MultimodalData(said, covariates={"site": batch.numpy().astype(str)})
    floats = cal.MultimodalData(said, covariates={"site": batch.double().numpy()})
    torch.testing.assert_close(cal.impute(fit, text).mean["adt"], cal.impute(fit, floats).mean["adt"])
    single = cal.MultimodalData(said, covariates={"site": np.array([*batch.float().numpy()], dtype=object)})
    assert fit.model.batch.index(single).tolist() == fit.model.batch.index(floats).tolist()


def test_batches_of_one_instance_each_have_no_shifts() -> None:
    data, _, _ = drawn(size=20)
    alone = cal.MultimodalData({n: data[n] for n in DIMS}, covariates={"site": np.arange(len(data))})
    model = cal.SharedLatentModel(DIMS, 2, "diagonal", batch="site")
    with pytest.warns(ReliabilityWarning, match="never has"):
        cal.fit(model, alone)
    assert float(model.batch.moves.shift["rna"].detach().abs().max()) == 0
