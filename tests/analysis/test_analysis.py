from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from analysis.figures import comparison as figures
from analysis.figures.style import line
from analysis.gather import gather_runs
from analysis.gather import main as gather_main
from analysis.report import build_report
from analysis.runs.files import TABLES, write_table, write_text
from analysis.statistics.tables import best_rows, formatted, summarize
from calmrl_prob.errors import FileFormatError
from calmrl_prob.report.pictures import png
from docs import make_images

VARIANTS = {"mean": "mean", "calmrl": "CalMRL isotropic (paper)", "oracle": "complete data (oracle)"}


@pytest.fixture
def results() -> pd.DataFrame:
    rows = [
        {"variant": key, "label": label, "seed": seed, "K": 4, "noise_pseudo_count": 30.0, "note": ""}
        | {"R@1": 10.0 * (place + 1) + seed, "R@10": 50.0, "RMSE": 1.0 - 0.1 * place, "NLL": 1.0, "coverage": 90.0}
        | {"probe": 80.0, "seconds": 0.5, "scoring_used": "likelihood_ratio"}
        for place, (key, label) in enumerate(VARIANTS.items())
        for seed in (0, 2)
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def run_folder(results: pd.DataFrame, tmp_path: Path) -> Path:
    named = [{"variant": key, "label": label, "seed": 0} for key, label in VARIANTS.items()]
    tables = {
        "coverage": [n | {"level": q, "coverage": q, "width": 1.0} for n in named for q in (0.1, 0.5, 0.9)],
        "evidence": [n | {"iteration": t, "objective": -1.0 / (t + 1)} for n in named for t in range(4)],
        "pairs": [n | {"query": q, "candidate": c, "R@1": 0.5} for n in named for q, c in (("a", "b"), ("b", "a"))],
        "intervals": [
            {"modality": m, "row": r, "mean": 0.1 * r, "sd": 1.0, "truth": r} for m in "ab" for r in range(5)
        ],
        "modalities": [n | {"modality": m, "level": 0.9, "coverage": 0.84} for n in named for m in "ab"],
        "shares": [n | {"share": s, "R@1": 20.0} for n in named for s in (0.1, 0.5)],
    }
    assert set(tables) == set(TABLES)
    write_table(results, tmp_path / "results.parquet")
    for name, rows in tables.items():
        write_table(pd.DataFrame(rows), tmp_path / "tables" / f"{name}.csv")
    facts = {
        "data": "<emoji> & co", "modalities": ["a", "b"], "num_train": 100, "num_test": 50, "missingness": "mcar",
        "missing_share": 0.5, "share_mechanism": "by the same mechanism", "scoring": "likelihood_ratio",
        "seeds": [0, 2], "seconds": 1.0,
        "interval_level": 0.9, "focus": VARIANTS["calmrl"], "overrides": [], "versions": {"python": "3"},
    }  # fmt: skip
    write_text(json.dumps(facts), tmp_path / "run.json")
    write_text("seeds: [0, 2]\n", tmp_path / "config.yaml")
    return tmp_path


def test_summary_is_mean_and_sample_deviation_over_seeds(results: pd.DataFrame) -> None:
    summary = summarize(results).set_index("variant")
    assert summary.loc["calmrl", ["R@1", "R@1 sd", "seeds", "K"]].tolist() == [21.0, pytest.approx(2**0.5), 2, 4]
    assert list(summary.index) == list(VARIANTS)  # the order of the results
    text = formatted(summarize(results))
    assert text.loc[1, ["K", "noise prior", "R@1 %"]].tolist() == ["4", "30", "21.0±1.4"]


def test_what_is_lacking_is_a_dash(results: pd.DataFrame) -> None:
    results.loc[results["variant"] == "mean", ["R@1", "K"]] = np.nan
    text = formatted(summarize(results))
    assert text.loc[0, ["R@1 %", "K"]].tolist() == ["-", "-"]


def test_best_looks_the_right_way_and_past_the_oracle(results: pd.DataFrame) -> None:
    best = best_rows(summarize(results))
    assert best["R@1 %"] == 1
    assert best["RMSE"] == 1
    assert "coverage %" not in best


class _Addresses(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "data", "action")]


def test_report_stands_alone(run_folder: Path) -> None:
    page = build_report(run_folder).read_text(encoding="utf-8")
    reader = _Addresses()
    reader.feed(page)
    pictures = [address for address in reader.found if address.startswith("data:image/png;base64,")]
    assert len(pictures) == 6
    assert all(address == "data:," or address.startswith("#part-") for address in set(reader.found) - set(pictures))
    assert "default-src 'none'" in page  # a browser would refuse to load anything else
    assert page.count("<script") == 1
    assert "@import" not in page
    assert not re.search(r"url\(", page)
    assert "&lt;emoji&gt; &amp; co" in page  # names are text, not markup
    assert "<strong>21.0±1.4</strong>" in page
    assert "seeds: [0, 2]" in page
    assert "The 90% intervals of a cover 84.0%: too narrow." in page
    assert "cal.recalibrate" in page


def test_report_leaves_out_figures_without_data(run_folder: Path) -> None:
    write_table(pd.DataFrame(columns=["variant", "label", "share", "R@1"]), run_folder / "tables" / "shares.csv")
    write_table(pd.DataFrame(), run_folder / "tables" / "intervals.csv")
    page = build_report(run_folder).read_text(encoding="utf-8")
    assert page.count("<figure>") == 3


def test_report_names_the_file_it_lacks(run_folder: Path) -> None:
    (run_folder / "tables" / "pairs.csv").unlink()
    page = build_report(run_folder).read_text(encoding="utf-8")
    assert "tables/pairs.csv is not there" in page
    assert "Recall by pair" not in page
    assert "Evidence trace" in page
    (run_folder / "run.json").write_text("[]")
    with pytest.raises(FileFormatError, match="JSON object"):
        build_report(run_folder)


def test_matrix_is_blank_where_no_row_has_both() -> None:
    pairs = pd.DataFrame({"query": ["a", "b", "c"], "candidate": ["b", "a", "d"], "R@1": [0.5, 0.25, np.nan]})
    axes = figures.recall_matrix(pairs, "title").axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "c", "d"]
    assert sorted(text.get_text() for text in axes.texts) == ["25.0", "50.0"]
    assert figures.recall_matrix(pairs.assign(**{"R@1": np.nan}), "nothing").axes[0].texts[:] == []


def test_one_seed_has_no_spread(results: pd.DataFrame, run_folder: Path) -> None:
    one = results[results["seed"] == 0]
    assert "whiskers" not in figures.recall_bars(summarize(one), "title").axes[0].get_xlabel()
    assert "whiskers" in figures.recall_bars(summarize(results), "title").axes[0].get_xlabel()
    write_table(one, run_folder / "results.parquet")
    facts = json.loads((run_folder / "run.json").read_text(encoding="utf-8"))
    write_text(json.dumps(facts | {"seeds": [0], "warnings": ["mind <this>"]}), run_folder / "run.json")
    page = build_report(run_folder).read_text(encoding="utf-8")
    assert "±" not in page
    assert "One seed (0)" in page
    assert "chosen at the share of the run (50%) and kept" in page
    assert "mind &lt;this&gt;" in page


def test_figures_leave_global_settings_alone_and_repeat_to_the_byte(run_folder: Path) -> None:
    before = dict(mpl.rcParams)
    table = pd.read_csv(run_folder / "tables" / "coverage.csv")
    first, second = (png(figures.coverage(table, "coverage")) for _ in range(2))
    assert first == second
    assert dict(mpl.rcParams) == before
    assert Image.open(io.BytesIO(first)).size[0] > 400


def test_interval_panels_say_how_many_are_inside() -> None:
    table = pd.DataFrame({"modality": "a", "mean": 0.0, "sd": 1.0, "truth": [0.0, 1.0, -3.0, 1.7]})
    figure = figures.intervals(table, 0.9, "title")  # the interval reaches to 1.645
    assert figure.axes[0].get_title() == "a: 2 of 4 inside"


def test_the_gain_shows_each_variant_with_its_spread_on_both_sides() -> None:
    rows = [("mean", 0, 0.9, 16.0), ("mean", 1, 1.0, 18.0), ("calmrl", 0, 0.7, 19.0), ("calmrl", 1, 0.8, 19.0)]
    results = pd.DataFrame(rows, columns=["variant", "seed", "RMSE", "R@1"]).assign(label=lambda rows: rows["variant"])
    error, recall = figures.gain(summarize(results), "title").axes
    assert [text.get_text() for text in error.texts] == ["0.750±0.071", "0.950±0.071"]  # the first variant on top
    assert [text.get_text() for text in recall.texts] == ["19.0±0.0", "17.0±1.4"]
    assert [label.get_text() for label in error.get_yticklabels()] == ["calmrl", "mean"]


def test_the_pages_hold_a_table_that_make_images_can_replace() -> None:
    for page, begin in make_images.BEGIN.items():
        (table,) = re.findall(f"{begin}\n(.*?)\n{make_images.END}", page.read_text(encoding="utf-8"), re.DOTALL)
        rows = [re.split(r" *\| *", row.strip("| ")) for row in table.splitlines()]
        assert len(rows) == 2 + (len(make_images.FIVE_ROWS) if page == make_images.README else 10)
        if page == make_images.README:
            assert tuple(rows[0]) == make_images.FIVE_COLUMNS
    kept, whole = (page.read_text(encoding="utf-8") for page in (make_images.README, make_images.DEMO))
    assert all(figure in whole for figure in re.findall(r"\d\.\d{3}±\d\.\d{3}", kept)), "of the same run"


def test_known_variants_look_different() -> None:
    shown = ("complete_rows", "mean", "ridge", "calmrl_default", "calmrl", "oracle")  # against the share missing
    for keys in (shown, ("complete_rows", "zero", "mean", "knn", "ridge", "calmrl", "oracle")):
        looks = [tuple(line(key).values()) for key in keys]
        assert len({look[0] for look in looks}) == len(looks)
    assert line("something new") == line("something new")


def test_gather_joins_runs_in_order_with_their_settings(results: pd.DataFrame, tmp_path: Path) -> None:
    for number in (10, 9, 0):
        write_table(results.assign(**{"missingness.rate": number / 100}), tmp_path / str(number) / "results.parquet")
    gathered = gather_runs(tmp_path)
    assert gathered["run"].unique().tolist() == ["0", "9", "10"]
    assert len(gathered) == 3 * len(results)
    assert summarize(gathered, by=["variant", "missingness.rate"])["R@1"].notna().all()


def test_gather_writes_both_files(results: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(results, tmp_path / "0" / "results.parquet")
    for folder in ("0", "1"):
        write_text("log", tmp_path / folder / "compare.log")
    assert gather_main([str(tmp_path)]) == 0
    csv, parquet = pd.read_csv(tmp_path / "gathered.csv"), pd.read_parquet(tmp_path / "gathered.parquet")
    assert len(csv) == len(parquet) == len(results)
    captured = capsys.readouterr()
    assert "1 runs" in captured.out
    assert captured.err == f"skipped {tmp_path / '1'}: no results; its compare.log may tell why.\n"


def test_gather_says_where_it_found_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gather_main([str(tmp_path)]) == 1
    assert "no results.parquet" in capsys.readouterr().err
    (tmp_path / "results.parquet").write_bytes(b"broken")
    with pytest.raises(FileFormatError, match="cannot be read"):
        gather_runs(tmp_path)


def test_a_failed_write_leaves_the_old_file(results: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "results.parquet"
    write_table(results, path)
    before = path.read_bytes()
    with pytest.raises(Exception, match=r"str|convert|object"):
        write_table(pd.DataFrame({"mixed": [1, "a", object()]}), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.parquet"]
