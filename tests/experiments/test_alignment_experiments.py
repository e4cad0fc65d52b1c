"""The other experiments of alignment, from end to end on small data, and what their tables are made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from rich.console import Console

from calmrl_prob.data import MultimodalData
from calmrl_prob.datasets import load_synthetic
from calmrl_prob.errors import ArgumentError, DataError
from calmrl_prob.linear_gaussian import LinearGaussian, fit_em
from experiments import align_ablation, align_classify, align_imputation, align_missing
from experiments.align_imputation import choose_model, imputations, score
from experiments.align_missing import removed
from experiments.alignment.fusion import fused_inputs, fused_representations
from experiments.alignment.runs import collect, lacking

CONF = Path(__file__).resolve().parents[2] / "experiments" / "conf"
QUIET = Console(quiet=True)
SYNTHETIC = [
    "data=synthetic", "data.source.num_instances=160", "data.source.dims={a: 6, b: 5, c: 4}",
    "data.source.latent_dim=2",
]  # fmt: skip
TINY = [
    "seeds=[0]", "latent_dim=4", "width=6", "encoder.hidden=[8]", "training.max_epochs=2", "pseudo_rows=[10]",
    "training.batch_size=64",
]  # fmt: skip


def config(name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, [*TINY, *overrides])


def small(seed: int = 0) -> MultimodalData:
    return load_synthetic(num_instances=120, dims={"a": 5, "b": 5, "c": 5}, latent_dim=2, seed=seed)


def finished(folder: Path, *figures: str) -> bool:
    files = {path.name for path in folder.iterdir()}
    return {"results.csv", "table.md", "config.yaml", *(f"{name}.png" for name in figures)} <= files


# ---- from end to end -----------------------------------------------------------------------------------------------


def test_classification_under_missing_modalities(tmp_path: Path) -> None:
    cfg = config("align_classify", *SYNTHETIC, "only=[observed,no_encoder]", "missing=[0,2]", "penalties=[1.0]")
    results = align_classify.run(cfg, tmp_path, QUIET)
    assert finished(tmp_path)
    assert len(results) == (3 + 3) * 2
    raw = results[results["pooled"] == "mean for what is missing"].set_index("missing")["accuracy"]
    assert raw[0] > raw[2] > results["chance"].iloc[0]
    assert "0 missing" in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_imputation_of_representations(tmp_path: Path) -> None:
    overrides = ["only=[oracle]", "imputation_pseudo_rows=[10]", "training.max_epochs=6"]
    results = align_imputation.run(config("align_imputation", *SYNTHETIC, *overrides), tmp_path, QUIET)
    assert finished(tmp_path)
    assert sorted(set(results["missing"])) == [1, 2]
    by_way = results[results["missing"] == 1].set_index("imputed by")
    assert by_way.loc["model", "cosine distance"] < by_way.loc["mean", "cosine distance"]
    assert by_way.loc["model", "rmse"] < by_way.loc["another row", "rmse"]
    assert by_way["coverage"].drop("another row").between(0, 100).all()


def test_recall_against_the_share_missing(tmp_path: Path) -> None:
    cfg = config("align_missing", *SYNTHETIC, "only=[observed,no_encoder]", "shares=[0,0.85]")
    results = align_missing.run(cfg, tmp_path, QUIET)
    assert finished(tmp_path, "recall_cosine", "recall_ratio")
    ratio = results.set_index(["variant", "share"])["R@1 ratio"]
    assert ratio["no_encoder", 0.0] > ratio["no_encoder", 0.85]


def test_so_much_missing_that_nothing_can_be_trained_leaves_a_gap(tmp_path: Path) -> None:
    cfg = config("align_missing", *SYNTHETIC, "only=[observed]", "shares=[0,0.99]")
    results = align_missing.run(cfg, tmp_path, QUIET)
    assert results["share"].tolist() == [0]


def test_ablation_trains_the_default_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []
    once = align_ablation.run_variant
    monkeypatch.setattr(align_ablation, "run_variant", lambda *given: trained.append(given) or once(*given))
    factors = "{latents: {option: latent_dim, values: [2, 4], only: [imputed_draw]}, "
    factors += "EM period: {option: training.em_period, values: [1, 5], only: [imputed_draw]}}"
    overrides = [*SYNTHETIC, "~factors", f"+factors={factors}"]
    results = align_ablation.run(config("align_ablation", *overrides), tmp_path, QUIET)
    assert finished(tmp_path, "ablation")
    assert results["value"].tolist() == ["2", "4*", "1", "5*"]
    assert len(trained) == 3
    assert results["R@1 cosine"].iloc[1] == results["R@1 cosine"].iloc[3]


@pytest.mark.parametrize("name", ["align_classify", "align_imputation", "align_missing", "align_ablation"])
def test_every_configuration_is_complete_and_names_variants_that_exist(name: str) -> None:
    cfg = config(name)
    used = set(cfg.only) | {key for factor in cfg.get("factors", {}).values() for key in factor.only}
    assert used <= set(cfg.variants)


# ---- what cannot work ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "overrides", "error", "words"),
    [
        (align_classify.run, [*SYNTHETIC, "missing=[3]"], ArgumentError, "missing: expected whole numbers from 0 to 2"),
        (align_missing.run, [*SYNTHETIC, "shares=[1.0]"], ArgumentError, "shares: expected numbers from 0 to 1"),
        (align_imputation.run, [*SYNTHETIC, "only=[no_encoder]"], ArgumentError, "'no_encoder' has no encoders"),
        (
            align_ablation.run,
            [*SYNTHETIC, "+factors.depth={option: depth, values: [1], only: [observed]}"],
            ArgumentError,
            "no option 'depth'",
        ),
    ],
)
def test_what_cannot_work_is_refused_by_name(
    run: Callable[..., pd.DataFrame], overrides: list[str], error: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        run(config(run.__module__.rpartition(".")[2], *overrides), tmp_path, QUIET)


def test_classes_need_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "plain.npz", x_a=np.ones((8, 2)), x_b=np.ones((8, 2)))
    cfg = config("align_classify", "data=npz", f"data.source.path={tmp_path / 'plain.npz'}")
    with pytest.raises(DataError, match="expected rows with labels, but plain has none"):
        align_classify.run(cfg, tmp_path, QUIET)


# ---- parts ---------------------------------------------------------------------------------------------------------


def test_results_of_an_interrupted_run_stay_and_no_table_says_that_it_finished(tmp_path: Path) -> None:
    (tmp_path / "table.md").write_text("of an earlier run", encoding="utf-8")

    def steps() -> object:
        yield "one", [{"x": 1}]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(steps(), 2, tmp_path, QUIET)  # type: ignore[arg-type]
    assert pd.read_csv(tmp_path / "results.csv")["x"].tolist() == [1]
    assert not (tmp_path / "table.md").exists()


def test_removed_cells_are_as_many_as_asked_and_nested() -> None:
    data = small()
    kept = {}
    for share in (0.3, 0.8):
        rows, mask = removed(data, share, seed=1)
        assert int(mask.sum()) == data.observed_mask.numel() - round(share * data.observed_mask.numel())
        kept[share] = {(id_, m) for id_, row in zip(rows["a"][:, 0].tolist(), mask, strict=True) for m in row.nonzero()}
    assert {(i, int(m)) for i, m in kept[0.8]} <= {(i, int(m)) for i, m in kept[0.3]}


def test_pools_of_representations_are_the_closed_forms() -> None:
    data = small()
    lg = fit_em(data.blocks, 2, pseudo_rows=1.0, seed=0).linear_gaussian
    given = lacking(data, 1, seed=0)
    pools = fused_representations(given, lg)
    row = 7
    names = [name for name in data.names if bool(given.observed(name)[row])]
    assert len(names) == 2
    w, x, psi = (
        torch.cat([part[name] if part is lg.loadings else part[name][row] - lg.intercepts[name] for name in names])
        if part is not lg.noise_variance
        else torch.cat([lg.noise_variance[name].expand(5) for name in names])
        for part in (lg.loadings, given, lg.noise_variance)
    )
    precision = torch.linalg.inv(lg.prior_covariance) + w.mT @ (w / psi[:, None])
    expected = torch.linalg.solve(
        precision, w.mT @ (x.to(w) / psi) + torch.linalg.solve(lg.prior_covariance, lg.prior_mean)
    )
    torch.testing.assert_close(pools["latent"][row], expected.to(pools["latent"]), rtol=1e-4, atol=1e-4)
    mean = torch.stack([data[name][row] for name in names]).mean(dim=0)
    torch.testing.assert_close(pools["mean of the observed"][row], mean.double())
    torch.testing.assert_close(pools["calibrated anchor"].norm(dim=1), torch.ones(len(data)).double())


def test_inputs_keep_what_was_observed_and_only_the_rest_is_imputed() -> None:
    data = small()
    lg = fit_em(data.blocks, 2, pseudo_rows=1.0, seed=0).linear_gaussian
    given = lacking(data, 1, seed=0)
    pools = fused_inputs(given, lg)
    truth = torch.cat([data[name] for name in data.names], dim=1).double()
    here = torch.cat([given.observed(name)[:, None].expand(-1, 5) for name in data.names], dim=1)
    for name in ("mean for what is missing", "imputed by the model"):
        torch.testing.assert_close(pools[name][here], truth[here])
    assert bool((pools["mean for what is missing"][~here] == 0).all())
    better, worse = (
        (pools[n] - truth)[~here].square().mean() for n in ("imputed by the model", "mean for what is missing")
    )
    assert better < worse


def test_the_model_that_imputes_is_the_one_that_imputes_validation_rows_best() -> None:
    fit, validation, test = small().split([0.4, 0.3, 0.3], seed=0)
    weight, lg = choose_model(fit, validation, 2, [1.0, 1e6], seed=0)
    assert weight == 1.0
    given = lacking(test, 1, seed=0)
    unit = dict.fromkeys(test.names, 1.0)
    ways = imputations(given, {"model": lg}, {}, fit, seed=0)
    assert score(ways["model"], given, test, unit)["rmse"] < score(ways["another row"], given, test, unit)["rmse"]
    assert np.isnan(score(ways["another row"], given, test, unit)["coverage"])


def test_lacking_takes_as_many_as_asked() -> None:
    data = small()
    assert lacking(data, 0, seed=0) is data
    assert bool((lacking(data, 2, seed=0).observed_mask.sum(dim=1) == 1).all())
    assert isinstance(fit_em(data.blocks, 1).linear_gaussian, LinearGaussian)
