"""``experiments.align`` from end to end on small data, and what its tables are made of."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from rich.console import Console

from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError
from experiments.align import run
from experiments.alignment.anchor_shifts import choose_shift_model
from experiments.alignment.training import Variant, make_task
from experiments.anchor_shift import run as run_anchor_shift
from tests.cases.certificate_cases import close_model

CONF = Path(__file__).resolve().parents[2] / "experiments" / "conf"
TINY = [
    "data=synthetic", "data.source.num_instances=160", "data.source.dims={a: 6, b: 5, c: 4}",
    "data.source.latent_dim=2", "seeds=[0]", "latent_dim=4", "width=6", "encoder.hidden=[8]", "training.max_epochs=3",
    "pseudo_rows=[10]", "temperatures=[0.1]", "training.batch_size=32",
]  # fmt: skip


def config(*overrides: str, name: str = "align") -> object:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, [*TINY, *overrides])


def test_every_variant_gives_a_row_and_the_gap_runs_from_observed_to_oracle_by_cosine(tmp_path: Path) -> None:
    out = io.StringIO()
    results = run(config(), tmp_path, Console(file=out, quiet=False, width=140))  # type: ignore[arg-type]
    by_variant = results.set_index("variant")
    assert config().only == by_variant.index.tolist()  # type: ignore[attr-defined]
    low, high = by_variant.loc[["observed", "oracle"], "R@1 cosine"]
    assert low != high
    assert (low + by_variant["gap"] / 100 * (high - low)).to_numpy() == pytest.approx(
        by_variant["R@1 ratio"].to_numpy()
    )
    assert bool(by_variant["R@1 ratio"].between(0, 100).all())
    assert np.isnan(by_variant.loc["no_encoder", "R@1 cosine"])
    assert pd.read_csv(tmp_path / "results.csv")["variant"].tolist() == results["variant"].tolist()
    assert "generative start" in (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "generative start" in out.getvalue()


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, Path, str]:
    folder, out = tmp_path_factory.mktemp("shift"), io.StringIO()
    cfg = config(
        "data.source.num_instances=400", "shift.pseudo_rows=[0,30]", "training.max_epochs=2", name="anchor_shift"
    )
    return run_anchor_shift(cfg, folder, Console(file=out, width=140)), folder, out.getvalue()  # type: ignore[arg-type]


def test_anchor_shift_has_a_row_for_each_number_missing(shifted: tuple[pd.DataFrame, Path, str]) -> None:
    results, folder, printed = shifted
    assert results["missing"].tolist() == [1, 2, 1, 2]
    assert bool((results["bounds hold"] == 1).all())
    assert bool((results["local"] > 0).all())
    shares = results[["nearer", "model yes", "certificate yes", "certificate Brier"]]
    assert bool(shares.stack().between(0, 1).all())
    assert "complete rows" in (folder / "table.md").read_text(encoding="utf-8")
    assert "complete rows" in printed
    for name in ("shifts.png", "bounds.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_anchor_shift_summarizes_its_cases(shifted: tuple[pd.DataFrame, Path, str]) -> None:
    results, folder, _ = shifted
    cases = pd.read_csv(folder / "cases.csv")
    chosen = cases[(cases["trained on"] == "complete rows") & (cases["missing"] == 2)]
    row = results[(results["trained on"] == "complete rows") & (results["missing"] == 2)].iloc[0]
    nearer = chosen["calibrated"] < chosen["local"]
    assert row["nearer"] == pytest.approx(nearer.mean())
    assert row["calibrated"] == pytest.approx(chosen["calibrated"].mean())
    yes = chosen["certificate"] >= 0.8
    assert row["only certified"] == pytest.approx(np.where(yes, chosen["calibrated"], chosen["local"]).mean())
    assert bool((chosen["lower"] <= chosen["shift"] + 1e-4).all())


def test_the_model_for_shifts_is_the_best_of_those_tried() -> None:
    lg = close_model(noise=0.2)
    x = lg.sample(300, torch.Generator().manual_seed(0)).features
    rows = MultimodalData({name: values.float() for name, values in x.items()})
    fit, validation = rows.split(0.6, seed=0)
    tried = {
        (prior, weight): choose_shift_model(fit, validation, 3, [prior], [weight], seed=0).relative_shift
        for prior in (0.0, 1e5)
        for weight in (0.1, 1.0)
    }
    chosen = choose_shift_model(fit, validation, 3, [0.0, 1e5], [0.1, 1.0], seed=0)
    assert chosen.relative_shift == min(tried.values())
    assert tried[chosen.pseudo_rows, chosen.weight] == chosen.relative_shift
    assert chosen.relative_shift < 0.9 < max(tried.values())  # the prior of 1e5 rows knows of no relation


def test_components_are_learned_from_what_the_training_rows_keep() -> None:
    generator = torch.Generator().manual_seed(0)
    x = {name: torch.randn(60, 5, generator=generator) for name in ("a", "b")}
    mask = torch.ones(60, 2, dtype=torch.bool)
    mask[40:, 1] = False
    spoilt = {"a": x["a"], "b": torch.where(mask[:, 1:], x["b"], 1e6)}
    test = MultimodalData({name: torch.randn(9, 5, generator=generator) for name in x})
    one, other = (make_task(MultimodalData(v), test, mask, seed=0, components=3) for v in (x, spoilt))
    assert one.fit.dims == {"a": 3, "b": 3}
    for name in x:
        assert torch.equal(one.test[name], other.test[name])
        kept = one.fit.observed(name)
        assert torch.equal(one.fit[name][kept], other.fit[name][kept])
    assert len(one.fit) + len(one.validation) == 60
    assert bool(one.complete_fit.observed_mask.all())


def test_every_variant_of_the_configuration_can_be_trained(tmp_path: Path) -> None:
    results = run(config("only=null", "training.max_epochs=1"), tmp_path, Console(quiet=True))  # type: ignore[arg-type]
    assert set(config().variants) == set(results["variant"])  # type: ignore[attr-defined]


def test_what_cannot_work_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"only: expected some of .*'observed'"):
        run(config("only=[observd]"), tmp_path, Console(quiet=True))  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"variants.x.start: expected one of .*'generative'"):
        Variant("x", start="warm")
    with pytest.raises(ArgumentError, match=r"variants.x.objective: expected one of .*'pairwise'"):
        Variant("x", objective="pairs")
