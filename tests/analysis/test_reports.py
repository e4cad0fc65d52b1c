"""Reports and comparisons of runs of any experiment: finished, interrupted, many at once, and none."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.compare import compare_runs
from analysis.compare import main as compare_main
from analysis.pages.readings import (
    certificate_readings,
    modality_readings,
    recalibration_readings,
    variant_readings,
)
from analysis.report import build_report
from analysis.report import main as report_main
from analysis.runs.files import write_table, write_text
from analysis.runs.runs import find_runs, missing_rows, read_run
from calmrl_prob.errors import ArgumentError, FileFormatError
from calmrl_prob.report.page import Section, Table, render
from calmrl_prob.report.readings import coverage_reading

LABELS = {"observed": "observed only", "mine": "imputed <draws>", "oracle": "complete data"}


def align_results(gains: dict[str, float], seeds: list[int]) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    noise = {seed: generator.normal(0, 2) for seed in seeds}
    return pd.DataFrame(
        [
            {
                "variant": key,
                "label": LABELS[key],
                "seed": seed,
                "R@1 cosine": 10 + gain * (1 + 0.01 * seed) + noise[seed],
            }
            | {"R@1 ratio": 12 + gain + noise[seed], "seconds": 1.0}
            for seed in seeds
            for key, gain in gains.items()
        ]
    )


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Makes the folder of a run of experiments.align, as it is left."""

    def make(
        name: str = "run", gains: dict[str, float] | None = None, seeds: int = 5, *, keep: int | None = None,
        whole: bool = True,
    ) -> Path:  # fmt: skip
        folder = tmp_path / name
        gains = {"observed": 0.0, "mine": 2.0, "oracle": 5.0} if gains is None else gains
        results = align_results(gains, list(range(seeds)))
        write_table(results[:keep], folder / "results.csv")
        config = f"seeds: {list(range(seeds))}\nonly: {list(gains)}\nvariants: {json.dumps({k: {} for k in LABELS})}\n"
        write_text(config, folder / ".hydra" / "config.yaml")
        write_text("hydra: {job: {name: align}}\n", folder / ".hydra" / "hydra.yaml")
        write_text("- missingness=mcar\n", folder / ".hydra" / "overrides.yaml")
        if whole:
            write_text(config, folder / "config.yaml")
            write_text("## emoji, mcar\n\n| variant | R@1 |\n| --- | --- |\n| own | 10±1 |\n", folder / "table.md")
        return folder

    return make


class Outline(HTMLParser):
    """Headings, addresses, and whether tags close."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in {"meta", "link", "img"}:
            self.open.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page_of(folder: Path) -> str:
    text = build_report(folder).read_text(encoding="utf-8")
    outline = Outline(text)
    assert outline.open == []
    assert all(address.startswith(("data:", "#part-")) for address in outline.addresses)
    return text


def test_a_run_of_align_has_its_table_figure_tests_rows_and_configuration(make_run: Callable[..., Path]) -> None:
    page = page_of(make_run())
    assert "10±1" in page  # the experiment's own table
    assert page.count("<figure>") == 1
    assert "better than observed only: imputed &lt;draws&gt; by 2" in page
    assert "cannot give a p below 0.062" in page
    assert "missingness=mcar" in page
    assert "python -m experiments.align" in page
    assert "Warning" not in page
    assert page.count("<tr>") > 15  # every row


def test_an_interrupted_run_says_which_rows_it_lacks(make_run: Callable[..., Path]) -> None:
    folder = make_run(seeds=3, keep=4, whole=False)
    assert missing_rows(read_run(folder)) == {LABELS["observed"]: [2], LABELS["mine"]: [1, 2], LABELS["oracle"]: [1, 2]}
    page = page_of(folder)
    assert "Warning" in page
    assert "observed only (seeds 2); imputed &lt;draws&gt; (seeds 1, 2); complete data (seeds 1, 2)" in page
    assert "15.3" not in page or "±" in page  # a table of its own, as the experiment wrote none


def test_a_variant_without_any_row_is_named_by_its_key(make_run: Callable[..., Path]) -> None:
    assert missing_rows(read_run(make_run(seeds=2, keep=1, whole=False)))["mine"] == [0, 1]


def test_a_run_without_results_tells_its_last_line(tmp_path: Path) -> None:
    write_text("seeds: [0]\n", tmp_path / ".hydra" / "config.yaml")
    write_text("first\nrefused: rows: expected at most 10\n", tmp_path / "small_data.log")
    page = page_of(tmp_path)
    assert "There are no results" in page
    assert "refused: rows: expected at most 10" in page


def test_a_failed_run_tells_why_and_a_finished_one_its_versions(make_run: Callable[..., Path]) -> None:
    folder = make_run()
    facts = {"experiment": "align", "versions": {"torch": "9.9"}, "seconds": 12.3, "state": "finished"}
    write_text(json.dumps(facts), folder / "job.json")
    page = page_of(folder)
    assert ">9.9<" in page
    assert ">12.3<" in page
    write_text(json.dumps(facts | {"state": "failed", "error": "RuntimeError: boom"}), folder / "job.json")
    assert "RuntimeError: boom" in page_of(folder)
    write_text(json.dumps(facts | {"state": "running"}), folder / "job.json")
    assert "It has not ended" in page_of(folder)


def test_a_sweep_is_one_page_of_all_its_runs(make_run: Callable[..., Path], tmp_path: Path) -> None:
    for number in (10, 9):
        make_run(f"sweep/{number}")
    make_run("sweep/11", keep=0, whole=False)
    assert [path.name for path in find_runs(tmp_path / "sweep")] == ["9", "10", "11"]
    page = page_of(tmp_path / "sweep")
    assert "<h1>3 runs in sweep</h1>" in page
    assert page.count("not whole") == 1
    assert page.count("<figure>") == 2
    assert "9: R@1 cosine" in page
    for number in range(12, 18):
        make_run(f"sweep/{number}")
    many = page_of(tmp_path / "sweep")
    assert "<figure>" not in many
    assert "Figures are left out" in many


def test_the_figures_of_a_run_are_shown_as_they_are(make_run: Callable[..., Path]) -> None:
    from matplotlib.figure import Figure

    folder = make_run()
    Figure(figsize=(1, 1)).savefig(folder / "shifts.png")
    page = page_of(folder)
    assert 'alt="shifts"' in page
    assert page.count("<figure>") == 1


def test_runs_of_other_experiments_have_their_own_keys(tmp_path: Path) -> None:
    rows = [
        {"dataset": name, "variant": key, "label": key.upper(), "seed": seed, "NLL": 1.0 + seed, "R@1": 10.0 + seed}
        | {"coverage": 84.0 + 0.2 * seed}
        for name in ("emoji", "leaves")
        for key in ("flow", "mixture")
        for seed in (0, 1)
    ]
    config = "{seeds: [0, 1], datasets: {emoji: 1, leaves: 2}, models: {flow: 1, mixture: 2}, interval_level: 0.9,"
    write_text(f"{config} only_data: null, only_models: null}}", tmp_path / "config.yaml")
    write_table(pd.DataFrame(rows), tmp_path / "results.parquet")
    assert read_run(tmp_path).lacking == []
    page = page_of(tmp_path)
    assert "emoji: The 90% intervals are too narrow, over all modalities, of: FLOW (84.1%), MIXTURE (84.1%)." in page
    found = compare_runs([tmp_path])
    assert set(found["group"]) == {"dataset=emoji", "dataset=leaves"}
    write_table(pd.DataFrame(rows[:-1]), tmp_path / "results.parquet")
    assert missing_rows(read_run(tmp_path)) == {"MIXTURE on leaves": [1]}


def test_where_there_is_nothing_the_remedy_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FileFormatError, match=r"nothing of a run is in it.*python -m experiments.compare"):
        build_report(tmp_path)
    assert report_main([f"run={tmp_path / 'nowhere'}"]) == 1
    assert "there is no such folder" in capsys.readouterr().err
    write_text("", tmp_path / "results.csv")
    assert "There are no results" in page_of(tmp_path)
    write_text("{", tmp_path / "job.json")
    with pytest.raises(FileFormatError, match=r"job\.json"):
        build_report(tmp_path)
    assert report_main([]) == 1
    assert "run: expected <folder of a run, or of a sweep>" in capsys.readouterr().err


def test_both_spellings_of_the_command(make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run()
    assert report_main([f"run={folder}"]) == report_main([str(folder)]) == 0
    assert capsys.readouterr().out.splitlines() == 2 * [str(folder / "report.html")]
    assert report_main([f"rum={folder}"]) == 1
    assert "expected one of run=<" in capsys.readouterr().err


def test_comparison_writes_its_three_files(make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run()
    assert compare_main([f"runs={folder}", "reference=observed only"]) == 0
    said = capsys.readouterr().out
    assert "R@1 cosine: better than observed only: imputed <draws> by 2" in said
    assert "5 pairs of runs with the same seed" in said
    table = pd.read_csv(folder / "comparison.csv")
    assert set(table["metric"]) == {"R@1 cosine", "R@1 ratio"}
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "comparison.html").read_text(encoding="utf-8")
    assert Outline(page).open == []
    assert "imputed &lt;draws&gt;" in page
    assert 'alt="comparison"' not in page_of(folder)  # no figure of the run


def test_variants_of_two_runs_are_paired_by_the_seed(make_run: Callable[..., Path]) -> None:
    first = make_run("a", {"observed": 0.0}, seeds=3)
    second = make_run("b", {"mine": 2.0}, seeds=4)
    found = compare_runs([first, second], metrics=["R@1 ratio"]).iloc[0]
    assert found[["pairs", "variant"]].tolist() == [3, "mine"]
    assert found["difference"] == pytest.approx(2.0)
    results = align_results({"mine": 2.0}, [7, 8])
    write_table(results, second / "results.csv")
    with pytest.raises(ArgumentError, match="shares no seed"):
        compare_runs([first, second], metrics=["R@1 ratio"])


def test_a_variant_in_two_runs_is_two_of_them_by_run(make_run: Callable[..., Path]) -> None:
    folders = [make_run("one", seeds=3), make_run("two", {"observed": 1.0, "mine": 3.0}, seeds=3)]
    pooled = compare_runs(folders, metrics=["R@1 ratio"]).set_index("variant")
    assert pooled.loc["mine", "pairs"] == 6  # three seeds in each of two runs
    apart = compare_runs(folders, reference="observed @ one", metrics=["R@1 ratio"], by="run").set_index("variant")
    assert apart.loc["observed @ two", "difference"] == pytest.approx(1.0)
    assert apart.loc["observed @ two", "pairs"] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reference=x"], "reference: expected one of"),
        (["metric=x"], "metric: expected"),
        (["by=x"], "by: expected"),
        (["level=much"], "level: expected a number"),
        (["level=2"], "level: expected a number"),
    ],
)
def test_a_comparison_that_cannot_work_says_why(
    make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert compare_main([f"runs={make_run()}", *words]) == 1
    assert message in capsys.readouterr().err


def test_one_seed_is_shown_without_interval(make_run: Callable[..., Path]) -> None:
    folder = make_run(seeds=1)
    assert compare_main([f"runs={folder}"]) == 0
    page = (folder / "comparison.html").read_text(encoding="utf-8")
    assert "one pair only, so that nothing is known of the spread" in page
    assert "One seed (0)" in page_of(folder)


def test_coverage_is_read_within_its_error() -> None:
    assert "too narrow" in coverage_reading("audio", 0.9, 0.84, 0.01)
    assert coverage_reading("audio", 0.9, 0.84, 0.04).endswith("84.0% (give or take 4%): not told apart from 90%.")
    assert "as wide as they should be" in coverage_reading("audio", 0.9, 0.905, 0.003)
    assert "too wide" in coverage_reading("audio", 0.9, 0.97)
    assert coverage_reading("audio", 0.9, 0.8, 0.0, 0.85).endswith("recalibrated they cover 85.0%, still too narrow.")
    assert coverage_reading("audio", 0.9, 0.8, 0.0, 0.95).endswith("recalibrated they cover 95.0%, then too wide.")
    table = pd.DataFrame({"modality": ["a", "a"], "level": 0.9, "seed": [0, 1], "coverage": [0.83, 0.85]})
    assert modality_readings(table.assign(recalibrated=[0.9, 0.9])) == [
        "The 90% intervals of a cover 84.0% (give or take 1%): too narrow; recalibrated they cover 90.0%."
    ]
    rows = {"fit": "likelihood", "method": ["none", "scale", "cv"], "modality": "a", "coverage": [0.84, 0.97, 0.9]}
    (said,) = recalibration_readings(pd.DataFrame(rows | {"seed": 0}), 0.9)
    assert said.startswith("likelihood. The 90% intervals of a cover 84.0%: too narrow; recalibrated they cover 90.0%.")
    assert said.endswith("(Recalibrated by: cv.)")
    results = pd.DataFrame({"label": ["A", "B"], "seed": 0, "coverage": [90.2, 70.0]})
    assert len(variant_readings(results, 0.9)) == 2


def test_instances_that_should_not_be_imputed_are_named(make_run: Callable[..., Path]) -> None:
    certificates = pd.DataFrame(
        {
            "id": ["cat", "dog", "<fox>"],
            "missing": "text",
            "probability": [0.9, 0.3, 0.1],
            "nearer": [True, False, True],
        }
    )
    said = certificate_readings(certificates)
    assert said[0].endswith("2 should not be imputed (probability of gain below 0.5): <fox>, dog.")
    assert "brought 100% nearer" in said[1]
    assert "brought 50% nearer" in said[2]
    assert "promised 20%" in said[2]
    folder = make_run()
    cases = pd.DataFrame({"id": certificates["id"], "missing": 1, "local": 0.5, "calibrated": [0.4, 0.6, 0.1]})
    cases = cases.assign(**{"seed": 0, "trained on": "incomplete rows", "model": 0.99})
    write_table(cases.assign(certificate=certificates["probability"]), folder / "cases.csv")
    page = page_of(folder)
    assert "Instances that should not be imputed" in page
    assert "&lt;fox&gt;, dog" in page
    assert len(re.findall("and 1 more", certificate_readings(certificates, most=1)[0])) == 1
    assert "nothing to certify" in certificate_readings(certificates[:0])[0]


def test_a_page_escapes_whatever_it_is_given() -> None:
    nasty = "<script>alert(1)</script>"
    section = Section(
        nasty, [nasty], [nasty], [Table([nasty], [[nasty]], {}, nasty)], (), {nasty: nasty}, [nasty], nasty
    )
    page = render(nasty, [section], nasty)
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;") >= 10
