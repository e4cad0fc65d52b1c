"""``python -m experiments.defaults``: options, the whole run, its verdicts and its page."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from analysis.report import build_report
from analysis.statistics.defaults import formatted_defaults, summarize_defaults, verdicts
from calmrl_prob.datasets import load_synthetic
from calmrl_prob.errors import ArgumentError
from experiments.default_choice import mofa, table
from experiments.default_choice.options import Options
from experiments.default_choice.table import LABELS
from experiments.defaults import run
from tests.cases.experiment_cases import CONF, ROOT, composed

TINY = [
    "+datasets.tiny={file: tiny.npz, scale: feature, assays: true}",
    "+datasets.gone={file: gone.npz}",
    "sets=[tiny,gone]",
    "seeds=2",
    "missing=[mcar]",
    "oracle_seeds=1",
    "oracle_grid.latent_dims=[2]",
    "oracle_grid.pseudo_rows=[0,30]",
    "oracle_grid.pooling=[1]",
    "oracle_grid.noise=[isotropic]",
    "oracle_grid.max_iterations=20",
]


def tiny_file(folder: Path) -> list[str]:
    data = load_synthetic(num_instances=120, dims={"a": 6, "b": 5, "c": 4}, latent_dim=2, noise_variance=0.3, seed=1)
    arrays = {f"x_{name}": data[name].numpy() for name in data.names}
    np.savez(folder / "tiny.npz", train_idx=np.arange(80), test_idx=np.arange(80, 120), **arrays)
    return [*TINY, f"data_root={folder}"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder of a run, and what it printed; without mofapy2, wherever the tests run."""
    folder, console = tmp_path_factory.mktemp("defaults"), Console(file=io.StringIO(), width=200)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "mofa_is_there", lambda: False)
        run(composed("defaults", *tiny_file(folder)), folder / "run", console)
    assert isinstance(console.file, io.StringIO)
    return folder / "run", console.file.getvalue()


def test_every_method_is_measured_for_every_missingness_and_seed(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    results = pd.read_csv(folder / "results.csv")
    assert len(results) == 2 * len(LABELS)
    measured = results[results["variant"] != "mofa"].set_index(["variant", "seed"])
    lacking = measured[measured["R2"].isna()]
    assert set(lacking.index) == {("oracle", 1)}
    assert (lacking["note"] == "not sought for this seed").all()
    assert (results.loc[results["variant"] == "mofa", "note"] == "mofapy2 is not installed").all()
    oracle = measured.loc[[("oracle", 0)]].set_index("missing")["R2"]
    tried = pd.read_csv(folder / "oracle.csv")
    pd.testing.assert_series_equal(oracle, tried.groupby("missing")["R2"].max(), check_names=False)
    assert len(pd.read_csv(folder / "modalities.csv")) == 2 * 5 * 3
    assert "gone: there is no gone.npz" in printed
    assert "gone.npz" in (folder / "table.md").read_text(encoding="utf-8")


def test_the_page_has_verdicts_summary_and_figure(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    page = build_report(folder).read_text(encoding="utf-8")
    for heading in ("Must reach", "Summary", "Every method", "Every modality", "Every row of the results"):
        assert heading in page
    assert "R2 from all others: at least ridge&#39;s" in page
    assert page.count("data:image/png") == 1
    assert "What it was to measure and did not" not in page
    assert "R2 - ridge" in printed


def test_an_earlier_oracle_is_not_sought_again(
    finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = finished[0] / "oracle.csv"
    monkeypatch.setattr("experiments.default_choice.oracle.Oracle._fitted", None)  # would fail if called
    options = [*tiny_file(tmp_path), f"oracle={earlier}", "seeds=[0]", "sets=tiny"]
    results = run(composed("defaults", *options), tmp_path / "run", Console(quiet=True))
    before = pd.read_csv(finished[0] / "results.csv")
    same = (before["variant"] == "oracle") & (before["missing"] == "mcar") & (before["seed"] == 0)
    again = (results["variant"] == "oracle") & (results["seed"] == 0)
    assert results.loc[again, "R@1"].item() == pytest.approx(before.loc[same, "R@1"].item())


def test_a_method_that_fails_is_a_row_that_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(task: object) -> None:
        raise RuntimeError("no luck")

    monkeypatch.setitem(table._MEASURES, "default", broken)
    options = [*tiny_file(tmp_path), "oracle=false", "missing=[pairs]", "seeds=[3]"]
    results = run(composed("defaults", *options), tmp_path / "run", Console(quiet=True)).set_index("variant")
    assert results.loc["default", "note"] == "RuntimeError: no luck"
    assert np.isfinite(results.loc["ridge", "R2"])
    judged = pd.read_csv(tmp_path / "run" / "verdicts.csv")
    assert judged.loc[0, ["holds", "found"]].tolist() == ["no", "1 of 2; first tiny: RuntimeError: no luck"]


@pytest.mark.parametrize(
    ("override", "option"),
    [
        ("sets=[emoji,nonsense]", "sets"),
        ("sets=[]", "sets"),
        ("sets=[emoji]", "data_root"),
        ("missing=[mnar]", "missing"),
        ("missing=[]", "missing"),
        ("seeds=0", "seeds"),
        ("seeds=[0,0]", "seeds"),
        ("seeds=[x]", "seeds"),
        ("oracle=3", "oracle"),
        ("oracle_seeds=0", "oracle_seeds"),
        ("datasets.leaves.scale=row", r"datasets\.leaves\.scale"),
        ("+datasets.leaves.nonsense=1", r"datasets\.leaves"),
    ],
)
def test_options_that_cannot_work_are_refused_by_name(override: str, option: str) -> None:
    with pytest.raises(ArgumentError, match=option):
        Options.of(composed("defaults", override))


def test_every_set_of_the_configuration_is_an_entry_that_can_be_made() -> None:
    found = Options.of(composed("defaults"))
    assert {"emoji_small", "leaves", "omics", "private_structure"} <= set(found.datasets)
    assert {"emoji", "multi30k", "breast_tcga", "brca5", "pbmc_mosaic", "wristwatch", "flickr8k"} <= set(found.absent)
    assert found.seeds == [0, 1, 2]
    assert (CONF / "defaults.yaml").is_file()


# ---- verdicts ------------------------------------------------------------------------------------------------------


def rows(**measures: tuple[float, float]) -> list[dict[str, object]]:
    """One row for each method and seed, of one data set."""
    return [
        {"dataset": "d", "missing": "mcar", "seed": seed, "variant": variant, "note": ""}
        | {"R2": r2, "R2 by pair": r2, "R@1": 100 * r2, "seconds": 30.0, "plain seconds": 1.0}
        for variant, both in measures.items()
        for seed, r2 in enumerate(both)
    ]


def modality_rows(*coverage: float) -> list[dict[str, object]]:
    return [
        {"dataset": "d", "missing": "mcar", "seed": 0, "variant": "default", "modality": str(number)}
        | {"coverage 50%": 50.0, "coverage 90%": share, "coverage 95%": 95.0}
        for number, share in enumerate(coverage)
    ]


def test_differences_are_paired_by_seed_and_coverage_is_of_the_worst_modality() -> None:
    results = pd.DataFrame(rows(default=(0.3, 0.5), ridge=(0.2, 0.4), oracle=(0.35, np.nan)))
    (found,) = summarize_defaults(results, pd.DataFrame(modality_rows(87.0, 91.0))).to_dict("records")
    assert found["R2 - ridge"] == pytest.approx(0.1)
    assert found["R2 - ridge sd"] == pytest.approx(0)
    assert found["R2 - oracle"] == pytest.approx(-0.05)
    assert found["R@1 / oracle"] == pytest.approx(0.3 / 0.35)
    assert (found["lowest 90%"], found["highest 90%"]) == (87.0, 91.0)
    assert found["times plain"] == 30
    text = formatted_defaults(summarize_defaults(results, pd.DataFrame(modality_rows(87.0, 91.0))))
    assert text.loc[0, "R2 - ridge"] == "+0.100±0.000"
    assert text.loc[0, "90% covers"] == "87.0 to 91.0"


@pytest.mark.parametrize(
    ("demand", "results", "coverage", "holds"),
    [
        ("R2 by pair: at least ridge's", {"default": (0.3, 0.3), "ridge": (0.304, 0.304)}, 90.0, "yes"),
        ("R2 by pair: at least ridge's", {"default": (0.3, 0.3), "ridge": (0.31, 0.31)}, 90.0, "no"),
        ("R2 by pair: above ridge's", {"default": (0.3, 0.3), "ridge": (0.3, 0.3)}, 90.0, "no"),
        ("R2 from all others: at least mofapy2's", {"default": (0.3, 0.3)}, 90.0, "not measured"),
        ("R@1: at least 95%", {"default": (0.96, 0.96), "oracle": (1.0, 1.0)}, 90.0, "yes"),
        ("R@1: at least 95%", {"default": (0.9, 0.9), "oracle": (1.0, 1.0)}, 90.0, "no"),
        ("R@1: at least 95%", {"default": (0.9, 0.9), "default_retrieval": (1, 1), "oracle": (1.0, 1.0)}, 90.0, "yes"),
        ("90% intervals hold at least", {"default": (0.3, 0.3)}, 87.9, "no"),
        ("90% intervals hold at most", {"default": (0.3, 0.3)}, 92.6, "no"),
        ("90% intervals hold at most", {"default": (0.3, 0.3)}, 92.4, "yes"),
        ("CPU seconds: at most 15 times", {"default": (0.3, 0.3)}, 90.0, "no"),
        ("CPU seconds: at most 60", {"default": (0.3, 0.3)}, 90.0, "yes"),
    ],
)  # fmt: skip
def test_verdicts(demand: str, results: dict[str, tuple[float, float]], coverage: float, holds: str) -> None:
    judged = verdicts(pd.DataFrame(rows(**results)), pd.DataFrame(modality_rows(coverage)))
    (verdict,) = judged.loc[judged["must reach"].str.startswith(demand), "holds"]
    assert verdict == holds


# ---- mofapy2 and the command ---------------------------------------------------------------------------------------


@pytest.mark.skipif(not mofa.mofa_is_there(), reason="mofapy2 is an optional extra")
def test_mofa_explains_what_two_latents_explain() -> None:
    data = load_synthetic(num_instances=200, dims={"a": 30, "b": 20}, latent_dim=2, noise_variance=0.3, seed=1)
    model = mofa.fit_mofa(data, factors=3, iterations=50)
    assert model.dims == data.dims
    assert float(model.noise_variance["a"].mean()) == pytest.approx(0.3, rel=0.2)


@pytest.mark.slow
def test_the_command_runs_and_its_page_is_whole(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.defaults", *tiny_file(tmp_path), "seeds=1", "oracle=false",
               f"hydra.run.dir={tmp_path / 'run'}"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "It has not ended" not in page
    assert "Defaults: tiny; seeds 0" in page
