"""The command ``calmrl``, on small files of several formats: what it writes and tells is what the library does."""

from __future__ import annotations

import io
import json
import re
import resource
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import calmrl_prob as cal
from calmrl_prob.cli.main import COMMANDS, app

ROOT = Path(__file__).resolve().parents[2]
IDS = [f"cell-{n:02}" for n in range(60)]


def run(*arguments: object, code: int = 0) -> Result:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, f"{arguments}\n{done.output}\n{done.exception!r}"
    return done


def told(*arguments: object) -> dict[str, Any]:
    """What a command says as JSON, of which nothing else is on standard output."""
    return json.loads(run(*arguments, "--json").stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty cells of two modalities, a third of which lack the proteins, in many formats; a fit; and forty others."""
    folder = tmp_path_factory.mktemp("cells")
    drawn = cal.datasets.make_synthetic(100, {"rna": 6, "protein": 4}, latent_dim=2, seed=0).complete
    made = drawn.subset(slice(0, 60))
    cal.save_npz(drawn.subset(slice(60, None)), folder / "others.npz")
    rna = pd.DataFrame(made["rna"].numpy(), index=IDS).add_prefix("gene-")
    protein = pd.DataFrame(made["protein"].numpy(), index=IDS).add_prefix("antibody-")
    whole = cal.MultimodalData({"rna": rna, "protein": protein}, labels=np.arange(60) % 2)
    cal.save_npz(whole, folder / "whole.npz")
    data = whole.mask({"protein": np.arange(60) % 3 > 0})
    for name in ("cells.h5mu", "cells.npz", "cells.parquet"):
        cal.write(data, folder / name)
    wide = pd.concat([rna.add_prefix("rna:"), protein[np.arange(60) % 3 > 0].add_prefix("protein:")], axis=1)
    wide.rename_axis("id").to_csv(folder / "cells.csv")
    rna.rename_axis("id").to_csv(folder / "rna.csv")
    protein[np.arange(60) % 3 > 0].rename_axis("id").to_csv(folder / "protein.csv")
    (folder / "parts").mkdir()
    table = pq.read_table(folder / "cells.parquet")
    for k in range(3):
        pq.write_table(table.slice(20 * k, 20), folder / "parts" / f"part-{k}.parquet")
    run("fit", folder / "cells.h5mu", "-o", folder / "fit.safetensors")
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        ["cells.h5mu"],
        ["cells.npz"],
        ["cells.csv", "--sep", ":"],
        ["cells.csv", "-m", "rna=rna:*", "-m", "protein=" + ",".join(f"protein:antibody-{k}" for k in range(4))],
        ["rna=rna.csv", "protein=protein.csv"],
        ["parts"],
        ["parts", "--stream"],
    ],
)
def test_data_are_described_alike_in_every_format(
    arguments: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    found = told("describe", *arguments)
    assert found["instances"] == 60
    shares = {each["modality"]: (each["features"], each["instances"]) for each in found["modalities"]}
    assert shares == {"rna": (6, 60), "protein": (4, 40)}
    assert [(each["present"], each["instances"]) for each in found["patterns"]] == [
        (["rna", "protein"], 40),
        (["rna"], 20),
    ]
    assert "ids" in found["columns"]


def test_what_is_imputed_goes_into_a_copy_of_the_omics(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "both.h5mu"
    told("impute", folder / "fit.safetensors", folder / "cells.h5mu", "-o", out, "--into", folder / "cells.h5mu")
    found, before = cal.read(out), cal.read(folder / "cells.h5mu")
    assert int(found.observed("protein").sum()) == int(before.observed("protein").sum()) == 40
    assert bool(cal.read(out, modalities=["protein.completed"]).observed("protein.completed").all())


def test_files_have_columns_of_ids_of_their_own(folder: Path, tmp_path: Path) -> None:
    pd.read_csv(folder / "rna.csv").rename(columns={"id": "cell"}).to_csv(tmp_path / "rna.csv", index=False)
    pd.read_csv(folder / "protein.csv").rename(columns={"id": "bar=code"}).to_csv(tmp_path / "protein.csv", index=False)
    files = [f"rna={tmp_path / 'rna.csv'}", f"protein={tmp_path / 'protein.csv'}"]
    found = told("describe", *files, "--ids", "rna=cell", "--ids", "protein=bar=code")
    assert [(each["modality"], each["instances"]) for each in found["modalities"]] == [("rna", 60), ("protein", 40)]
    assert told("describe", tmp_path / "protein.csv", "--ids", "bar=code")["columns"] == ["ids"]
    one = run("describe", *files, "--ids", "cell", code=1)
    assert "name the column of each, as --ids protein=bar=code for this one" in one.stderr
    assert "no modality is called 'dna'" in run("describe", *files, "--ids", "dna=cell", code=1).stderr
    for wrong in ([*files, "--ids", "rna=cell", "--ids", "cell"], [files[0], "--ids", "a=b", "--ids", "a=c"]):
        assert "NAME=COLUMN once for each" in " ".join(run("describe", *wrong, code=2).stderr.split())


def test_join_keeps_what_all_files_have(folder: Path) -> None:
    found = told("describe", f"rna={folder / 'rna.csv'}", f"protein={folder / 'protein.csv'}", "--join", "inner")
    assert found["instances"] == 40


def test_the_map_is_drawn_as_text_and_as_a_picture(folder: Path, tmp_path: Path) -> None:
    out = run("describe", folder / "cells.h5mu", "--png", tmp_path / "map.png").stdout
    assert re.search(r"^ +40 +67% +## +## +#{24}$", out, re.MULTILINE)
    assert re.search(r"^ +20 +33% +## +\.\. +#{12}$", out, re.MULTILINE)
    assert "40 of 60 instances (66.7%) have all modalities." in out
    assert min(Image.open(io.BytesIO((tmp_path / "map.png").read_bytes())).size) > 400


def test_two_commands_take_omics_to_imputed_proteins(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "imputed.h5mu"
    found = told("impute", folder / "fit.safetensors", folder / "cells.h5mu", "-o", out, "--only", "protein")
    assert found == {"output": str(out), "instances": 60, "imputed": {"protein": 20}, "level": 0.9}
    where = {name: f"protein/layers/{name}" for name in ("mean", "lower", "upper")}
    written = cal.read(out, modalities={"completed": "protein", **where})
    truth, missing = cal.load_npz(folder / "whole.npz"), np.arange(60) % 3 == 0
    assert written.ids.tolist() == IDS
    np.testing.assert_allclose(written["completed"][~missing], truth["protein"][~missing])
    np.testing.assert_array_equal(written["completed"][missing], written["mean"][missing])
    held = (written["lower"] < truth["protein"]) & (truth["protein"] < written["upper"])
    # 90% intervals of 80 values of 20 instances: even ten instances' worth of independent values hold half and more
    assert held[missing].double().mean() > 0.6
    expected = cal.impute(cal.load(folder / "fit.safetensors"), cal.read(folder / "cells.h5mu")).mean["protein"]
    np.testing.assert_allclose(written["mean"], expected, rtol=1e-12)


def test_a_fit_tells_its_choice_and_what_it_is_worth(folder: Path, tmp_path: Path) -> None:
    found = told("fit", folder / "cells.npz", "-o", tmp_path / "fit.safetensors", "--progress")
    fit = cal.fit(cal.SharedLatentModel(cal.read(folder / "cells.npz").dims), cal.read(folder / "cells.npz"))
    assert found["latent_dim"] == fit.choice.latent_dim == cal.load(tmp_path / "fit.safetensors").model.latent_dim
    assert found["r2"] == pytest.approx(fit.choice.r2)
    assert found["settings_tried"] == len(fit.choice.table)
    assert set(found["own_coverage"]) == {"rna", "protein"}


def test_a_given_number_of_latents_is_not_chosen(folder: Path, tmp_path: Path) -> None:
    arguments = ("fit", folder / "cells.npz", "-o", tmp_path / "fit.safetensors", "--latent-dim", "2")
    out = run(*arguments, "--noise", "diagonal").stdout
    assert "As given: K 2, diagonal noise." in out
    assert "Nothing was held out" in out


def test_batches_are_told_apart_by_a_column(tmp_path: Path) -> None:
    drawn = cal.datasets.make_synthetic(90, {"rna": 6, "protein": 4}, latent_dim=2, seed=0).complete
    donor = np.array(["a", "b", "c"])[np.arange(90) % 3]
    shifted = {name: drawn[name].numpy() + 4 * (np.arange(90) % 3)[:, None] for name in drawn.names}
    cal.write(cal.MultimodalData(shifted, covariates={"donor": donor}), tmp_path / "cells.npz")
    told("fit", tmp_path / "cells.npz", "-o", tmp_path / "fit.safetensors", "--batch", "donor", "--latent-dim", "2")
    model = cal.load(tmp_path / "fit.safetensors").model
    assert model.batch.names == ("a", "b", "c")
    told("impute", tmp_path / "fit.safetensors", tmp_path / "cells.npz", "-o", tmp_path / "out.npz")
    refused = run("fit", tmp_path / "cells.npz", "-o", tmp_path / "other.safetensors", "--batch", "site", code=1)
    assert "they have no 'site', by which batches are told apart" in refused.stderr


def test_a_stream_is_fitted_and_imputed_like_rows_in_memory(folder: Path, tmp_path: Path) -> None:
    fit, out = tmp_path / "fit.safetensors", tmp_path / "imputed"
    run("fit", folder / "parts", "-o", fit, "--stream", "--latent-dim", "2", "--state", tmp_path / "state")
    found = told("impute", fit, folder / "parts", "-o", out, "--stream")
    assert found["files"] == len(list(out.glob("*.parquet"))) > 0
    written = cal.read(out, modalities={"mean": "protein.mean"})
    expected = cal.impute(cal.load(fit), cal.read(folder / "parts"))
    np.testing.assert_allclose(written["mean"], expected.mean["protein"], rtol=1e-9, atol=1e-9)


def test_validation_is_that_of_the_library(folder: Path) -> None:
    found = told("validate", folder / "fit.safetensors", folder / "others.npz", "--scheme", "each", "--level", "0.8")
    expected = cal.masked_validation(cal.load(folder / "fit.safetensors"), cal.read(folder / "others.npz"), "each")
    summary = expected.summary(level=0.8)
    for each, row in zip(found["modalities"], summary.to_dict("records"), strict=True):
        assert each["modality"] == row["modality"]
        assert each["R2"] == pytest.approx(row["R2"])
        assert each["coverage"] == pytest.approx(row["coverage"])
    out = run("validate", folder / "fit.safetensors", folder / "others.npz").stdout
    assert "protein, hidden in 40 instances: R^2" in out


def test_validation_on_rows_of_the_fit_is_warned_about(folder: Path) -> None:
    (line,) = run("validate", folder / "fit.safetensors", folder / "cells.npz").stderr.splitlines()
    assert line.startswith("Warning: data: about 100% of these 60 instances are among those")


def test_validation_of_the_rows_of_the_fit_fits_anew_without_each_part(folder: Path) -> None:
    given = folder / "given.safetensors"
    run("fit", folder / "cells.npz", "-o", given, "--latent-dim", "2")
    found = told("validate", given, folder / "cells.npz", "--folds", "2")
    rows = cal.read(folder / "cells.npz")
    expected = cal.masked_validation(
        cal.load(given), rows, folds=2, num_draws=0, refit=lambda part, _: cal.fit(model(part), part, seed=0)
    )
    assert [each["R2"] for each in found["modalities"]] == pytest.approx(expected.summary()["R2"].tolist())


def model(rows: cal.MultimodalData) -> cal.SharedLatentModel:
    return cal.SharedLatentModel(rows.dims, 2, "isotropic")


def test_acquisitions_are_ranked_as_by_the_library(folder: Path) -> None:
    arguments = ("acquire", folder / "fit.safetensors", folder / "cells.h5mu")
    expected = cal.value_of_information(cal.load(folder / "fit.safetensors"), cal.read(folder / "cells.h5mu")).ranking()
    table = pd.read_csv(io.StringIO(run(*arguments, "--csv").stdout))
    assert table["instance"].tolist() == expected["instance"].tolist()
    assert table["gain"].tolist() == pytest.approx(expected["gain"].tolist())
    found = told(*arguments, "-k", "3", "--by", "pattern")
    assert [(each["pattern"], each["modality"], each["rows"]) for each in found["ranking"]] == [("rna", "protein", 20)]
    assert len(run(*arguments, "-k", "3").stdout.splitlines()) == 4
    assert "nothing to acquire" in run("acquire", folder / "fit.safetensors", folder / "whole.npz").stdout


def test_candidates_are_ranked_as_by_the_library(folder: Path) -> None:
    whole = folder / "whole.npz"
    arguments = ("retrieve", folder / "fit.safetensors", whole, whole, "--using", "rna", "--among", "protein", "-k", 3)
    data = cal.read(whole)
    expected = cal.retrieve(
        cal.load(folder / "fit.safetensors"), data.select(["rna"]), data.select(["protein"]), top_k=3
    )
    table = pd.read_csv(io.StringIO(run(*arguments, "--csv").stdout))
    assert table["query"].tolist() == [name for name in IDS for _ in range(3)]
    assert table["candidate"].tolist() == [IDS[row] for row in expected.top_indices.ravel()]
    assert table["score"].tolist() == pytest.approx(expected.top_scores.ravel().tolist())
    found = told(*arguments)
    assert found["metrics"] == pytest.approx(expected.metrics())
    assert [each["candidate"] for each in found["found"]] == table["candidate"].tolist()
    assert "The true candidate of each query, by its id: R@1" in run(*arguments).stdout


@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_a_saved_index_is_searched(stream: list[str], folder: Path, tmp_path: Path) -> None:
    fit, whole, out = folder / "fit.safetensors", folder / "whole.npz", tmp_path / "proteins.index"
    made = told("index", fit, whole, "-m", "protein", "-o", out, *stream)
    assert made == {"output": str(out), "candidates": 60, "engine": "exact", "recall": {}}
    found = told("retrieve", out, whole, "--using", "rna", "-k", 3)
    straight = told("retrieve", fit, whole, whole, "--using", "rna", "--among", "protein", "-k", 3)
    assert (found["queries"], found["candidates"], found["score"]) == (60, 60, straight["score"])
    for mine, theirs in zip(found["found"], straight["found"], strict=True):
        assert (mine["query"], mine["candidate"]) == (theirs["query"], theirs["candidate"])
        assert mine["score"] == pytest.approx(theirs["score"])
    assert [path.name for path in tmp_path.iterdir()] == ["proteins.index"]
    assert "an index, which has its own" in run("retrieve", out, whole, whole, code=2).output
    assert "index" in run("index", out, whole, "-o", tmp_path / "x", code=1).stderr


def test_modalities_that_some_rows_lack_leave_these_out(folder: Path) -> None:
    cells = folder / "cells.npz"
    found = told("retrieve", folder / "fit.safetensors", cells, cells, "--using", "rna", "--among", "protein", "-k", 1)
    assert (found["queries"], found["candidates"]) == (60, 40)


@pytest.mark.parametrize("label", [[], ["--held-out", "others.npz"]])
def test_a_report_is_written(label: list[str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    page = tmp_path / "page.html"
    found = told("report", "fit.safetensors", "cells.h5mu", "-o", page, *label)
    assert found == {"output": str(page), "bytes": page.stat().st_size}
    assert ("40 other instances" in page.read_text(encoding="utf-8")) == bool(label)


REFUSED: dict[str, tuple[list[str], str]] = {
    "no such file": (["describe", "nowhere.npz"], "there is no 'nowhere.npz'"),
    "an unknown ending": (["describe", "cells.docx"], "the endings that can be read are"),
    "no folder to write into": (["fit", "cells.npz", "-o", "no/fit.safetensors"], "create it first"),
    "not a fit": (["impute", "cells.npz", "cells.npz", "-o", "out.npz"], "save the model again"),
    "a column that is not there": (["describe", "cells.csv", "--labels", "kind"], "labels: cells.csv has no column"),
    "a modality that is not there": (
        ["impute", "fit.safetensors", "cells.npz", "-o", "out.npz", "--only", "atac"],
        "no modality is called 'atac'",
    ),
    "a level out of range": (
        ["impute", "fit.safetensors", "cells.npz", "-o", "out.npz", "--level", "9"],
        "between 0 and 1",
    ),
    "rows without anything": (["describe", "cells.npz", "-m", "protein"], "pass --empty drop to leave them out"),
    "an ending that is not written": (["impute", "fit.safetensors", "cells.npz", "-o", "out.xlsx"], "ends with one of"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_errors_are_one_line_with_the_remedy(case: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "cells.docx").touch()
    arguments, said = REFUSED[case]
    done = run(*arguments, "--json", code=1)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    assert said in line
    assert not (folder / "out.npz").exists()
    assert "Traceback (most recent call last)" in run(*arguments, "--debug", code=1).stderr


def test_an_index_is_no_fit(folder: Path) -> None:
    whole = cal.read(folder / "whole.npz")
    cal.RetrievalIndex.build(cal.load(folder / "fit.safetensors"), whole.select(["protein"])).save(folder / "an.index")
    done = run("acquire", folder / "an.index", folder / "cells.npz", code=1)
    assert "is an index; give the file that calmrl fit wrote" in done.stderr


def test_rows_without_anything_are_dropped_if_asked_for(folder: Path) -> None:
    assert told("describe", folder / "cells.npz", "-m", "protein", "--empty", "drop")["instances"] == 40


@pytest.mark.parametrize(
    "arguments",
    [
        ["fitt"],
        ["describe"],
        ["describe", "a.csv", "b.csv"],
        ["describe", "x=a.csv", "x=b.csv"],
        ["describe", "cells.npz", "--join", "left"],
        ["describe", "cells.npz", "-m", "=GATA1"],
        ["describe", "cells.npz", "-m", "rna", "-m", "rna"],
        ["describe", "cells.npz", "--stream", "--png", "map.png"],
        ["fit", "cells.npz"],
        ["fit", "cells.npz", "-o", "fit.safetensors", "--state", "state"],
        ["acquire", "fit.safetensors", "cells.npz", "--csv", "--json"],
        ["retrieve", "fit.safetensors", "cells.npz", "cells.npz", "-k", "0"],
        ["retrieve", "fit.safetensors", "cells.npz"],
        ["index", "fit.safetensors", "cells.npz"],
        ["impute", "fit.safetensors", "cells.h5mu", "-o", "x.h5mu", "--into", "cells.h5mu", "--stream"],
    ],
)
def test_a_command_that_is_misspelt_ends_with_2(
    arguments: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    done = run(*arguments, code=2)
    assert done.stdout == ""
    assert "Usage: " in done.stderr


def test_warnings_are_a_line_each_beside_the_result(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)  # modalities that tell nothing of each other
    noise = {name: generator.normal(size=(80, 3)) for name in ("x", "y")}
    cal.save_npz(cal.MultimodalData(noise), tmp_path / "noise.npz")
    done = run("fit", tmp_path / "noise.npz", "-o", tmp_path / "fit.safetensors", "--json")
    assert json.loads(done.stdout)["output"] == str(tmp_path / "fit.safetensors")
    lines = done.stderr.splitlines()
    assert lines
    assert all(line.startswith("Warning: ") for line in lines)


def test_progress_is_on_standard_error_alone(folder: Path) -> None:
    done = run("validate", folder / "fit.safetensors", folder / "others.npz", "--json", "--progress")
    assert "masked validation" in done.stderr
    assert json.loads(done.stdout)["instances"] == 40
    assert run("validate", folder / "fit.safetensors", folder / "others.npz", "--no-progress").stderr == ""


def test_the_wheel_has_the_command_and_it_knows_its_version() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    module, _, name = scripts["calmrl"].partition(":")
    assert getattr(import_module(module), name) is app
    assert run("--version").stdout == f"calmrl-prob {cal.__version__}\n"


def test_a_new_model_is_one_of_the_models_folder_and_fits(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    listed = run("new-model").stdout
    for path in (ROOT / "models").glob("[a-z]*.py"):
        assert re.search(rf"^{path.stem} +\S", listed, re.MULTILINE), path
    assert run("new-model", "factor_analysis").stdout == (
        "Wrote factor_analysis.py.\n"
        "Its class FactorAnalysis is fitted in Python, by cal.fit; the example in it shows how.\n"
    )
    written = Path("factor_analysis.py").read_text(encoding="utf-8")
    assert written == (ROOT / "models" / "factor_analysis.py").read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "factor_analysis"}
    exec(compile(written, "factor_analysis.py", "exec"), names)
    data = cal.read(folder / "cells.npz")
    assert cal.fit(names["FactorAnalysis"](data.dims, latent_dim=2), data, seed=0).converged
    assert "is there already; name another" in run("new-model", "factor_analysis", code=1).output
    assert "choose among calmrl, " in run("new-model", "nothing", code=1).output


@pytest.mark.parametrize("command", ["", *(function.__name__.replace("_", "-") for function in COMMANDS)])
def test_every_command_has_help(command: str) -> None:
    out = run(*command.split(), "--help").stdout
    assert "Usage: " in out
    assert "self" not in out


def child(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True).stdout


HELP = "import sys; from calmrl_prob.cli.main import app; app(['--help'], standalone_mode=False)"


def test_help_loads_nothing_heavy() -> None:
    names = set(child("-c", f"{HELP}; print(*{{name.partition('.')[0] for name in sys.modules}})").split())
    assert "typer" in names
    assert not names & {"numpy", "pandas", "pyro", "torch", "matplotlib", "pydantic", "sklearn"}


@pytest.mark.slow
def test_help_takes_half_a_second_at_most() -> None:
    """0.2 CPU seconds of this process's children, the least of three, which other work on the machine sways little."""

    def seconds(measure: Callable[[], object]) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        measure()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    assert min(seconds(lambda: child("-c", HELP)) for _ in range(3)) < 0.5


def test_output_to_who_has_had_enough_ends_quietly(folder: Path) -> None:
    files = [str(folder / name) for name in ("fit.safetensors", "whole.npz", "whole.npz")]
    command = [sys.executable, "-c", "from calmrl_prob.cli.main import app; app()", "retrieve", *files, "-k", "60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    "arguments",
    [
        ["fit", "mine.npz", "-o", "mine.npz"],
        ["fit", "a=mine.npz", "-o", "mine.npz"],
        ["fit", "m*.npz", "-o", "mine.npz"],
        ["fit", "mine.npz", "-o", "linked.npz"],
        ["fit", "m[1].npz", "-o", "m[1].npz"],
        ["fit", "parts", "-o", "parts/part-0.parquet"],
        ["fit", "parts", "--stream", "-o", "fit.safetensors", "--state", "parts/part-0.parquet"],
        ["impute", "fit.safetensors", "parts", "--stream", "-o", "parts"],
        ["report", "fit.safetensors", "parts", "--held-out", "mine.npz", "-o", "mine.npz"],
        ["report", "fit.safetensors", "mine.npz", "-o", "mine.npz"],
        ["report", "fit.safetensors", "mine.npz", "-o", "fit.safetensors"],
        ["impute", "fit.safetensors", "mine.npz", "-o", "mine.npz"],
        ["index", "fit.safetensors", "mine.npz", "-o", "fit.safetensors"],
        ["describe", "mine.npz", "--png", "mine.npz"],
    ],
)
def test_nothing_is_written_over_what_is_read(
    arguments: list[str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(folder / "cells.npz", tmp_path / "mine.npz")
    shutil.copy(folder / "cells.npz", tmp_path / "m[1].npz")
    shutil.copy(folder / "fit.safetensors", tmp_path)
    shutil.copytree(folder / "parts", tmp_path / "parts")
    (tmp_path / "linked.npz").symlink_to(tmp_path / "mine.npz")
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    refused = run(*arguments, code=2)
    assert "is read here, and would be lost" in " ".join(refused.stderr.replace("\u2502", " ").split())
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_imputations_may_go_into_the_very_file_that_keeps_all_it_has(folder: Path, tmp_path: Path) -> None:
    own = shutil.copy(folder / "cells.h5mu", tmp_path)
    before = cal.read(own)
    run("impute", folder / "fit.safetensors", own, "--into", own, "-o", own)
    after = cal.read(own, modalities={name: name for name in before.names})
    for name in before.names:
        assert np.array_equal(after[name], before[name], equal_nan=True)


def test_a_fit_may_be_written_again_beside_the_files_of_a_folder(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "parts", tmp_path / "parts")
    for _ in range(2):
        run("fit", tmp_path / "parts", "--latent-dim", 2, "-o", tmp_path / "parts" / "fit.safetensors")


@pytest.mark.parametrize("ending", [".NPZ", ".Csv", ".PARQUET", ".H5MU"])
def test_endings_may_be_in_capitals(ending: str, folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / f"cells{ending.lower()}", tmp_path / f"cells{ending}")
    assert told("describe", tmp_path / f"cells{ending}") == told("describe", folder / f"cells{ending.lower()}")


def test_a_folder_of_others_is_refused_before_the_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    monkeypatch.setattr(cal, "fit", None)  # would fail if called
    refused = run("fit", folder / "cells.npz", "-o", folder / "other.safetensors", code=1)
    assert "name a folder of your own" in refused.stderr
