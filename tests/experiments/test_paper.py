"""All experiments of alignment with one command, and the page of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from rich.console import Console

from analysis.alignment_report import build_alignment_report, main
from analysis.figures.alignment import ablation, variant_bars
from analysis.pages.markdown import read_markdown
from calmrl_prob.errors import ArgumentError, FileFormatError
from experiments import align
from experiments.paper import run

CONF = Path(__file__).resolve().parents[2] / "experiments" / "conf"
QUIET = Console(quiet=True)
TINY = [
    "data=synthetic", "data.source.num_instances=120", "data.source.dims={a: 6, b: 5, c: 4}",
    "data.source.latent_dim=2", "seeds=[0]", "latent_dim=3", "width=6", "encoder.hidden=[8]", "training.max_epochs=1",
    "pseudo_rows=[10]", "training.batch_size=64",
]  # fmt: skip


@pytest.fixture
def hydra_ready() -> Iterator[None]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def config(*overrides: str) -> DictConfig:
    given = ", ".join(f'"{override}"' for override in TINY)
    cfg = compose("paper", [f"overrides=[{given}]", *overrides])
    for part in cfg.parts.values():  # whatever variants a part names: one, so that this takes seconds
        if part.get("aligns", True):
            part.quick = ["only=[no_encoder]"]
    return cfg


def test_every_part_of_either_size_composes_and_its_module_runs(hydra_ready: None) -> None:
    for size in ("quick", "full"):
        cfg = compose("paper", [f"quick={str(size == 'quick').lower()}"])
        for part in cfg.parts.values():
            if part.get(size) is not None and not part.get("control"):
                composed = compose(part.config, [*(cfg.common[size] if part.get("aligns", True) else []), *part[size]])
                if part.get("aligns", True):
                    assert set(composed.only or composed.variants) <= set(composed.variants)
            assert (CONF.parent / f"{part.module.rpartition('.')[2]}.py").is_file()


def test_one_page_says_what_is_finished_failed_and_lacking(hydra_ready: None, tmp_path: Path) -> None:
    failed = run(config("only=[align,imputation]"), tmp_path, QUIET)
    assert failed == ["imputation"]  # it needs encoders
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in page
    assert "http" not in page.replace("http-equiv", "")
    assert "'no_encoder' has no encoders" in page.replace("&#39;", "'")
    assert "no encoder" in page
    states = {title: state for title, state, _ in _states(page)}
    assert states["Imputed representations against the true ones"] == "failed"
    assert states["Classification under missing modalities"] == "not run"
    assert states["Negative control: modalities that share next to nothing"] == "left out"
    assert list(states.values()).count("finished") == 1
    assert float(next(minutes for _, state, minutes in _states(page) if state == "finished")) >= 0
    claims = pd.read_csv(tmp_path / "claims.csv").set_index("about")
    assert claims.loc["Retrieval", "verdict"] == "not run with imputed_mean, observed"
    assert claims.loc["Imputation", "verdict"] == "not run"
    assert "never falls (Corollary 4)" in page


def test_what_is_finished_is_not_run_again_unless_settings_change(
    hydra_ready: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(align, "run", _counting(align.run, calls))
    for overrides in ([], [], ['common.quick=["validation_share=0.2"]']):
        assert run(config("only=[align]", *overrides), tmp_path, QUIET) == []
    assert len(calls) == 2
    seconds = json.loads((tmp_path / "paper.json").read_text(encoding="utf-8"))["parts"]["align"]["seconds"]
    assert seconds > 0


def test_an_interrupted_part_is_named_and_the_page_is_written(
    hydra_ready: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(cfg: DictConfig, folder: Path, console: Console) -> None:
        folder.mkdir(parents=True)
        (folder / "results.csv").write_text("a\n1\n2\n", encoding="utf-8")
        raise KeyboardInterrupt

    monkeypatch.setattr(align, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(config("only=[align]"), tmp_path, QUIET)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "2 rows of results.csv were measured" in page
    assert main([str(tmp_path)]) == 0


def test_a_finished_command_is_recorded_as_finished(tmp_path: Path) -> None:
    given = ", ".join(f'"{override}"' for override in TINY)
    small = [f"overrides=[{given}]", "only=[align]", 'parts.align.quick=["only=[no_encoder]"]']
    command = [sys.executable, "-m", "experiments.paper", *small, f"hydra.run.dir={tmp_path}"]
    done = subprocess.run(command, cwd=CONF.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "job.json").read_text(encoding="utf-8"))["state"] == "finished"
    states = [state for _, state, _ in _states((tmp_path / "report.html").read_text(encoding="utf-8"))]
    assert states.count("finished") == 1


def test_what_cannot_work_is_refused_by_name(hydra_ready: None, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"only: expected some of .*'classify'"):
        run(config("only=[sounds]"), tmp_path, QUIET)
    with pytest.raises(FileFormatError, match=r"paper\.json cannot be read"):
        build_alignment_report(tmp_path)
    assert main([str(tmp_path)]) == 1


def test_markdown_tables_are_read_back() -> None:
    tables, prose = read_markdown(
        "# T\n| a | b |\n| --- | ---: |\n| 1 | - |\n| 2 | x |\n\nwords\n| c |\n|---|\n| z |\n"
    )
    assert tables == [(["a", "b"], [["1", "-"], ["2", "x"]]), (["c"], [["z"]])]
    assert prose == ["T", "words"]


def test_figures_draw_what_the_tables_hold() -> None:
    results = pd.DataFrame(
        {
            "variant": ["observed", "no_encoder"] * 2,
            "label": ["A", "B"] * 2,
            "seed": [0, 0, 1, 1],
            "factor": "K",
            "value": ["2", "2", "4*", "4*"],
            "R@1 cosine": [10.0, float("nan"), 12.0, float("nan")],
            "R@1 ratio": [11.0, 5.0, 12.0, 6.0],
        }
    )
    bars = variant_bars(results, "t").axes[0]
    assert [label.get_text() for label in bars.get_yticklabels()] == ["B", "A"]
    assert np.nanmax([patch.get_width() for patch in bars.patches]) == pytest.approx(11.5)
    panel = ablation(results, "t").axes[0]
    assert panel.lines[0].get_ydata().tolist() == [10.0, 12.0]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["2", "4*"]


def _counting(function: object, calls: list[object]) -> object:
    def counted(*given: object) -> object:
        calls.append(given)
        return function(*given)  # type: ignore[operator]

    return counted


def _states(page: str) -> list[tuple[str, str, str]]:
    """Of the overview, which follows the table of claims."""
    rows = page.split("<tbody>")[2].split("</tbody>")[0].split("<tr>")[1:]
    cells = [[cell.split("</td>")[0].split(">", 1)[1] for cell in row.split("<td")[1:]] for row in rows]
    return [(title.replace("</a>", "").rpartition(">")[2], state, minutes) for title, state, minutes in cells]
