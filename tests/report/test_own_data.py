"""The report of own data: what a reader is told of a fit and of rows, on a page that needs nothing else."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

import calmrl_prob as cal
from calmrl_prob.report.chosen import Fitted, own_coverage
from calmrl_prob.report.missing import Described
from calmrl_prob.report.own_data import ReportOptions, write_report
from calmrl_prob.selection.intervals import LEVELS, ErrorScale, HeldOutIntervals


@pytest.fixture(scope="module")
def data() -> cal.MultimodalData:
    made = cal.datasets.make_synthetic(90, {"image": 5, "<text>": 4, "sound": 3}, latent_dim=2, seed=0).complete
    return made.mask(cal.missingness.mcar(made, 0.3, seed=0))


@pytest.fixture(scope="module")
def fit(data: cal.MultimodalData) -> cal.FitResult:
    return cal.fit(cal.SharedLatentModel(data.dims), data, seed=0)


class Outline(HTMLParser):
    """Headings, addresses, and whether tags close."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.headings: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in {"meta", "link", "img"}:
            self.open.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["h2"]:
            self.headings.append(data)


def written(fit: object, data: cal.MultimodalData, folder: Path, **options: object) -> str:
    path = write_report(fit, data, folder / "report.html", ReportOptions(**options))  # type: ignore[arg-type]
    return path.read_text(encoding="utf-8")


def test_a_page_tells_all_of_a_fit_and_fetches_nothing(
    fit: cal.FitResult, data: cal.MultimodalData, tmp_path: Path
) -> None:
    others = cal.datasets.make_synthetic(40, data.dims, latent_dim=2, seed=0).complete
    page = written(fit, data, tmp_path, title="cells <1>", held_out=others)
    outline = Outline(page)
    assert outline.open == []
    assert all(address.startswith(("data:", "#part-")) for address in outline.addresses)
    assert [heading for heading in outline.headings if heading] == [
        "What imputations are worth, before any is used",
        "What was chosen, and why",
        "What is missing",
        "The latents, by label",
        "What to acquire next",
    ]
    assert "<h1>cells &lt;1&gt;</h1>" in page
    assert page.count("<figure>") == 5
    assert str(fit.choice.setting) in page
    assert all(reason in page for reason in fit.choice.table["reason"].head(3))
    assert f"image: R^2 {fit.choice.r2['image']:.2f}" in page
    assert "40 other instances" in page
    assert "prefers-color-scheme: dark" in page
    assert "&lt;text&gt;" in page
    assert "<text>" not in page


def test_the_same_report_is_the_same_file(fit: cal.FitResult, data: cal.MultimodalData, tmp_path: Path) -> None:
    assert written(fit, data, tmp_path) == written(fit, data, tmp_path)


def test_a_model_without_a_choice_says_so(data: cal.MultimodalData, tmp_path: Path) -> None:
    model = cal.SharedLatentModel(data.dims, 1)
    cal.fit(model, data, seed=0)
    page = written(model, data, tmp_path)
    assert "K 1, isotropic noise. The file does not say whether these were chosen" in page
    assert "Nothing was held out" in page
    assert "There is one latent alone" in page


def test_complete_data_have_nothing_to_acquire(data: cal.MultimodalData, tmp_path: Path) -> None:
    complete = data.subset(data.complete_rows())
    model = cal.SharedLatentModel(data.dims, 2)
    cal.fit(model, complete, seed=0)
    page = written(model, complete, tmp_path)
    assert "there is nothing to acquire" in page
    assert page.count("<figure>") == 2


def test_many_labels_are_not_coloured_and_no_labels_are_asked_for(data: cal.MultimodalData, tmp_path: Path) -> None:
    model = cal.SharedLatentModel(data.dims, 2)
    cal.fit(model, data, seed=0)
    arrays = {name: data[name] for name in data.names}
    mask = data.observed_mask
    named = cal.MultimodalData(arrays, observed_mask=mask, labels=np.arange(len(data)))
    assert "more than 21 labels" in written(model, named, tmp_path)
    assert "have no labels" in written(model, cal.MultimodalData(arrays, observed_mask=mask), tmp_path)


def test_counts_of_a_stream_are_those_of_its_rows(data: cal.MultimodalData) -> None:
    stream = cal.MultimodalStream.from_chunks(lambda: [data.subset(slice(0, 50)), data.subset(slice(50, None))])
    streamed, whole = Described.of(stream), Described.of(data)
    assert streamed == whole
    assert streamed.facts() == whole.facts()
    assert sum(whole.patterns.values()) == whole.num_instances == 90
    for m, name in enumerate(data.names):
        assert whole.instances[name] == int(data.observed_mask[:, m].sum())
        assert whole.entries[name] == whole.instances[name] * data.dims[name]


def test_modalities_that_never_meet_and_single_missing_features_are_told() -> None:
    x, y = np.ones((4, 2)), np.ones((4, 2))
    x[:2], y[2:], y[0, 1] = np.nan, np.nan, np.nan
    found = Described.of(cal.MultimodalData({"x": x, "y": y}, missing="features"))
    assert found.single_features_missing
    said = " ".join(found.readings())
    assert "No instance has both x and y" in said
    assert "lack single features" in said
    assert found.entries == {"x": 4, "y": 3}


def test_patterns_that_do_not_fit_are_counted_together() -> None:
    generator = np.random.default_rng(0)
    present = generator.uniform(size=(400, 8)) < 0.5
    present[:, 0] = True
    arrays = {f"m{k}": generator.normal(size=(400, 1)) for k in range(8)}
    found = Described.of(cal.MultimodalData(arrays, observed_mask=present))
    counts = [int(re.findall(r"[\d,]+", line)[0].replace(",", "")) for line in found.map().splitlines()[1:]]
    assert len(counts) == 21
    assert sum(counts) == 400


def test_coverage_of_the_models_own_intervals_is_that_of_the_held_out_errors() -> None:
    """Errors of t_3 and scaled normals: the share within ±1.645 stated deviations, counted."""
    errors = torch.from_numpy(np.random.default_rng(0).standard_t(3, size=200_000))
    half_widths = torch.quantile(errors.abs()[:100_000], LEVELS)[None]
    counted = float((errors[:100_000].abs() <= 1.6449).double().mean())
    scale = ErrorScale("x", None, 100, torch.ones(1).double(), 1.0, half_widths)
    # between two of the levels, 4% apart at most, the quantile is taken as straight
    assert own_coverage(scale, 0.9) == pytest.approx(counted, abs=0.003)
    doubled = 2 * np.random.default_rng(1).normal(size=200_000)
    normal = float((np.abs(doubled) <= 1.6449).mean())
    wide = ErrorScale("x", None, 100, 4 * torch.ones(1).double(), 1.0, None)
    assert own_coverage(wide, 0.9) == pytest.approx(normal, abs=6 * (0.25 / 200_000) ** 0.5)


def test_facts_of_a_fit_are_those_of_its_choice(fit: cal.FitResult) -> None:
    facts = Fitted.of(fit).facts(0.9)
    assert facts["settings"] == str(fit.choice.setting)
    assert facts["r2"] == fit.choice.r2
    assert all(0.7 < share <= 1 for share in facts["own_coverage"].values())


@pytest.mark.parametrize(
    ("count", "spread", "said"),
    [
        (158, 1.114, "held 86% of the values of 158 held-out instances (give or take 3%): not told apart from 90%."),
        (158, 0.5, "held 100% of the values of 158 held-out instances (give or take 0.9%): too wide, which imputing"),
        (5, 0.2, "held 100% of the values of 5 held-out instances (give or take 14%): not told apart from 90%."),
        (200_000, 1.0, "of 200,000 held-out instances (give or take 0.07%): as wide as they should be."),
    ],
)
def test_a_share_is_told_with_its_error_and_within_it_from_nothing(count: int, spread: float, said: str) -> None:
    """Errors that are normal, their deviation ``spread`` of that stated."""
    errors = ErrorScale("text", None, count, torch.tensor([spread**2]), 1.0, None)
    intervals = HeldOutIntervals(["text"], {"text": {None: errors}}, {"text": torch.zeros(1)}, 3)
    (told,) = Fitted(None, None, intervals).worth(0.9)
    assert said in told
