"""What each plot shows is what the numbers say: lines, bars, ellipses and marks against independent computations."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox
from matplotlib.patches import Rectangle

import calmrl_prob as cal
from calmrl_prob import plots
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, CalmrlError, DataError
from calmrl_prob.evaluation import coverage_curve, pit_values, variance_explained
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.plots.emoji import picture_of
from calmrl_prob.plots.gallery import _font
from tests.cases.linear_gaussian_cases import random_model
from tests.cases.plot_cases import anchors, cells, data, model, retrieval, tried


def line(axes: Axes, label: str) -> tuple[np.ndarray, np.ndarray]:
    """Data of the one line whose label starts so."""
    (found,) = [one for one in axes.lines if str(one.get_label()).startswith(label)]
    return np.asarray(found.get_xdata(), dtype=float), np.asarray(found.get_ydata(), dtype=float)


def heights(axes: Axes, label: str) -> np.ndarray:
    """Heights of the one histogram of this label."""
    (found,) = [patch for patch in axes.patches if patch.get_label() == label]
    return np.asarray(found.get_data().values)


def test_coloured_share_of_a_column_is_the_share_that_has_the_modality() -> None:
    given = cal.datasets.make_synthetic(300, missing_rate=0.4, seed=3).data
    axes = plots.missingness_map(given)
    (mesh,) = axes.collections
    present = np.asarray(mesh.get_array())
    tall = np.diff(np.asarray(mesh.get_coordinates())[:, 0, 1])
    assert sorted(map(tuple, present)) == sorted(map(tuple, given.patterns.double().tolist()))
    assert (np.diff(tall) <= 0).all()
    np.testing.assert_allclose(tall @ present / len(given), given.observed_mask.double().mean(0))
    assert axes.get_ylim() == (300, 0)


def test_patterns_that_no_instance_has_any_more_are_not_drawn() -> None:
    axes = plots.missingness_map(data().subset([0, 1, 10]))
    assert axes.get_title() == "3 instances, 2 missing patterns"


def test_choice_shows_every_setting_at_its_weight_and_rings_the_chosen_one() -> None:
    found = tried()
    axes = plots.choice(found)
    by_label = {container.get_label(): container for container in axes.containers}
    assert list(by_label) == [
        "K 4, isotropic, pooled variances",
        "K 8, isotropic, pooled variances",
        "K 4, diagonal, pooled variances",
        "K 2, isotropic, automatic relevance",
        "K 4, isotropic, no prior",
    ]
    points = [np.stack(container[0].get_data(), axis=1) for container in axes.containers]
    np.testing.assert_array_equal(points[0], [[10, 0.2], [100, 0.3], [1000, 0.1]])  # joined in the order of weights
    assert sum(map(len, points)) == len(found.table)
    assert points[4][0, 0] < points[3][0, 0] < 10  # without a weight: apart, on the left
    (whiskers,) = by_label["K 4, diagonal, pooled variances"][2]
    np.testing.assert_allclose(whiskers.get_segments()[0][:, 1], [0.23, 0.27])
    assert (line(axes, "chosen")[0].item(), line(axes, "chosen")[1].item()) == (100, 0.35)
    _, panel = axes.figure.axes
    assert [text.get_text() for text in panel.get_yticklabels()] == ["image", "text"]
    np.testing.assert_allclose([bar.get_width() for bar in panel.patches], [0.45, -0.05])
    assert panel.patches[0].get_facecolor() != panel.patches[1].get_facecolor()  # no better than the mean


def test_choice_without_weights_stands_against_the_number_of_latents() -> None:
    found = tried("retrieval")
    same = found.table[found.table["pseudo_rows"] == 100].reset_index(drop=True)
    axes = plots.choice(replace(found, table=same))
    assert axes.get_xlabel() == "number of latents K"
    assert "rank" in axes.get_ylabel()
    np.testing.assert_array_equal(line(axes, "chosen")[0], [8])
    np.testing.assert_array_equal(axes.containers[0][0].get_xdata(), [4, 8])


def test_choice_draws_the_second_panel_only_where_it_is_given_room() -> None:
    first, second = Figure().subplots(1, 2)
    assert plots.choice(tried(), first) is first
    assert not second.has_data()
    plots.choice(tried(), first, second)
    assert len(second.patches) == 2


def test_choice_refuses_what_was_not_chosen() -> None:
    given = cal.datasets.make_synthetic(60, seed=0).data
    with pytest.raises(ArgumentError, match="choice: this fit chose nothing"):
        plots.choice(cal.fit(cal.SharedLatentModel(given.dims, latent_dim=2), given))
    with pytest.raises(ArgumentError, match=r"choice: no setting was scored.*: too few"):
        plots.choice(replace(tried(), table=pd.DataFrame(), fallback="too few"))
    with pytest.raises(ArgumentTypeError, match=r"choice: expected what cal\.fit returns"):
        plots.choice("K 8")  # type: ignore[arg-type]


def test_trace_is_the_objective_for_each_instance() -> None:
    given = cal.datasets.make_synthetic(150, seed=0).data
    fit = cal.fit(cal.SharedLatentModel(given.dims, latent_dim=2), given)
    np.testing.assert_allclose(line(plots.evidence_trace(fit), "em, converged")[1], fit.objective / 150)
    to_come = line(plots.evidence_trace(fit, to_come=True), "em")[1]
    np.testing.assert_allclose(to_come[0], (fit.objective[-1] - fit.objective[0]) / 150)
    assert len(to_come) == len(fit.objective) - 1
    assert line(plots.evidence_trace(replace(fit, converged=False)), "em, not converged")
    axes = plots.evidence_trace({"seeds": [fit, fit], "mine": [-2.0, -1.0]}, looks={"mine": {"color": "#123456"}})
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["seeds", "mine"]
    assert len(axes.lines) == 3
    assert axes.lines[2].get_color() == "#123456"


def test_coverage_is_drawn_in_percent_and_its_difference_in_points() -> None:
    curve = pd.DataFrame({"level": [0.5, 0.9], "coverage": [0.4, 0.95]})
    assert line(plots.coverage(curve), "observed")[1].tolist() == [40, 95]
    np.testing.assert_allclose(line(plots.coverage(curve, difference=True), "observed")[1], [-10, 5])


def test_tables_of_groups_are_one_curve_for_each_with_a_band_of_one_standard_error() -> None:
    table = pd.DataFrame({"modality": ["a", "a", "b"], "level": [0.5, 0.9, 0.5], "coverage": [0.4, 0.8, 0.6]})
    axes = plots.coverage(table.assign(coverage_se=0.02))
    assert line(axes, "a")[1].tolist() == [40, 80]
    assert line(axes, "b")[1].tolist() == [60]
    band = axes.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((38, 82))
    patterns = plots.coverage(table.assign(pattern="c+d"))
    assert line(patterns, "b, given c+d")[1].tolist() == [60]


def test_pit_bars_are_densities_and_stay_in_the_band_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    values = pit_values(generator.normal(size=4000), 0.0, 1.0)
    axes = plots.pit({"right": values, "sure": pit_values(generator.normal(size=5000), 0.0, 0.5)}, bins=400)
    assert heights(axes, "right").mean() == pytest.approx(1)
    (band,) = [patch for patch in axes.patches if str(patch.get_label()).startswith("uniform, 95% of bars (4,000")]
    low, high = band.get_y(), band.get_y() + band.get_height()
    inside = np.mean((heights(axes, "right") >= low) & (heights(axes, "right") <= high))
    assert inside >= 0.95 - 6 * (0.95 * 0.05 / 400) ** 0.5  # the band holds at least that much: counts are whole
    assert heights(axes, "sure")[[0, -1]].min() > high
    few = plots.pit(values, bins=400, num_independent=500).patches[0]
    assert few.get_height() > 2 * (high - low)


def test_error_is_on_the_diagonal_where_deviations_are_right() -> None:
    generator = np.random.default_rng(1)
    sd = generator.uniform(0.5, 3, size=(500, 20))
    axes = plots.error_against_sd(generator.normal(0, sd), 0.0, sd**2, bins=8)
    (bars,) = axes.containers
    predicted, actual = (np.asarray(part) for part in bars.lines[0].get_data())
    ends = np.array([segment[:, 1] for segment in bars.lines[2][0].get_segments()])
    whisker = (ends[:, 1] - ends[:, 0]) / 2
    assert (np.abs(actual - predicted) < 6 * whisker).all()
    np.testing.assert_allclose(whisker, actual / np.sqrt(2 * sd.size / 8), rtol=0.2)  # of a normal's deviation
    truth, mean, variance = cells()
    _, one = plots.error_against_sd(truth, mean, variance, bins=1).containers[0].lines[0].get_data()
    np.testing.assert_allclose(one, [np.sqrt(np.mean((truth - mean) ** 2))])


def test_risk_of_ties_is_the_mean_over_their_orders() -> None:
    error, uncertainty = np.array([3.0, 1.0, 5.0, 2.0]), np.array([1.0, 0.5, 1.0, 1.0])
    curves = [
        np.cumsum(error[list(order)]) / np.arange(1, 5)
        for order in itertools.permutations(range(4))
        if (np.diff(uncertainty[list(order)]) >= 0).all()
    ]
    axes = plots.risk_coverage(error, uncertainty)
    share, risk = line(axes, "most certain first")
    np.testing.assert_allclose(risk, np.mean(curves, axis=0))
    assert share.tolist() == [25, 50, 75, 100]
    assert f"(area {risk.mean():.3g})" in axes.get_legend().get_texts()[0].get_text()
    best = line(axes, "best possible")[1]
    np.testing.assert_allclose(best, np.cumsum(np.sort(error)) / np.arange(1, 5))


@pytest.mark.parametrize("by", ["value", "rank"])
def test_truths_are_inside_or_outside_of_their_intervals(by: Any) -> None:  # noqa: ANN401
    truth, mean = np.array([0.0, 5.0, -1.0]), np.array([0.5, 1.0, -0.5])
    axes = plots.imputed_against_true(truth, mean, mean - 1, mean + 1, by=by, level=0.8)
    place, outside = line(axes, "truth, outside")
    assert (place.tolist(), outside.tolist()) == ([1.0 if by == "value" else 2.0], [5.0])
    assert line(axes, "truth, inside")[1].tolist() == [-1.0, 0.0]
    assert axes.get_title() == "2 of 3 true values inside"
    assert axes.collections[0].get_label() == "80% interval"


def framed(axes: Axes) -> list[tuple[int, int]]:
    return [
        (round(p.get_x() + p.get_width() / 2), round(p.get_y() + p.get_height() / 2))
        for p in axes.patches
        if isinstance(p, Rectangle)
    ]


def test_gallery_puts_candidates_by_rank_and_frames_the_true_ones() -> None:
    names = ["cat", "dog", "fox", "hen"]
    axes = plots.retrieval_gallery(retrieval(), names, query_names=["x", "y", "z"], targets=[0, 1, 2], top=2)
    shown = {(round(t.get_position()[0], 1), round(t.get_position()[1], 1)): t.get_text() for t in axes.texts}
    assert [shown[1, 0], shown[2, 0], shown[1, 1], shown[2, 1], shown[1, 2]] == ["cat", "fox", "fox", "dog", "hen"]
    assert framed(axes) == [(1, 0), (2, 1)]
    assert [text for text in shown.values() if text.startswith("rank")] == ["rank 1", "rank 2", "rank 4"]
    chosen = plots.retrieval_gallery(retrieval(), names, query_names=list("xyz"), queries=[-1])
    assert framed(chosen) == []
    with pytest.raises(ArgumentError, match="targets: query 0 has its true candidate at rank 1, which is not row 3"):
        plots.retrieval_gallery(retrieval(), names, query_names=list("xyz"), targets=[3, 1, 2])


def test_gallery_of_a_model_frames_the_row_of_the_query() -> None:
    given = data().subset(slice(0, 4))
    found = cal.retrieve(model(), given.select("image"), given.select("text"), top_k=4)
    axes = plots.retrieval_gallery(found, list("abcd"), top=4)
    assert framed(axes) == [(rank, row) for row, rank in enumerate(found.ranks)]


def test_characters_are_drawn_by_fonts_that_have_them_and_left_to_names_otherwise() -> None:
    assert _font("\u263a\ufe0f") is not None  # in DejaVu Sans, which comes with matplotlib
    assert _font("\N{FAMILY}\u200d\N{DOG FACE}") is None
    assert _font("\U000f0000") is None
    emoji = cal.datasets.load_emoji().test.subset(slice(0, 4))
    found = cal.retrieve(
        random_model(dict.fromkeys(emoji.names, 64), 2, seed=0), emoji.select("name"), emoji.select("tags")
    )
    axes = plots.retrieval_gallery(found, emoji.covariates["caption"], pictures=emoji.covariates["emoji"])
    axes.figure.draw_without_rendering()  # a missing glyph would warn


@pytest.mark.skipif(picture_of("\N{GRINNING FACE}") is None, reason="no font of emoji in colour is installed")
def test_emoji_are_pictures_in_colour_where_a_font_has_them() -> None:
    face = picture_of("\N{GRINNING FACE}")
    assert face is not None
    assert face.shape[2] == 4
    red, _, blue = face[face[:, :, 3] > 200][:, :3].mean(axis=0)
    assert red > 1.5 * blue  # a yellow face
    assert picture_of("a") is None
    assert picture_of("\N{GRINNING FACE}\N{DOG FACE}") is None  # two beside each other
    names = list("abcd")
    axes = plots.retrieval_gallery(retrieval(), names, query_names=list("xyz"), pictures=["\N{DOG FACE}", *names[1:]])
    assert sum(isinstance(part, AnnotationBbox) for part in axes.artists) == (retrieval().top_indices == 0).sum()


def test_anchors_are_at_their_angles_and_within_bounds() -> None:
    (x, mask), named = anchors()
    axes = plots.anchor_shift_circle(x, mask, **named)
    full = torch.linalg.svd(x.mT)[0][:, :, 0]
    local = torch.linalg.svd(x[:, :2].mT)[0][:, :, 0]
    full, local = (
        full * (full * x.sum(1)).sum(1, keepdim=True).sign(),
        local * (local * x[:, :2].sum(1)).sum(1, keepdim=True).sign(),
    )
    expected = torch.arccos((full * local).sum(1))
    place, height = line(axes, "local anchor")
    np.testing.assert_allclose(np.arctan2(place, height), expected, atol=1e-6)
    np.testing.assert_allclose(np.hypot(place, height), line(axes, "full anchor")[1])
    place, height = line(axes, "calibrated")
    np.testing.assert_allclose(np.arctan2(place, height), torch.arccos((full * named["calibrated"]).sum(1)), atol=1e-6)
    for label in ("bounds of Theorem 1", "moment bounds"):
        arc = np.arctan2(*line(axes, label))
        assert arc.min() - 1e-6 <= float(expected[0]) <= arc.max() + 1e-6


def test_a_shift_beyond_a_right_angle_has_its_bounds_there() -> None:
    x = torch.tensor([[[1.0, 0.0], [-1.0, 0.1], [-1.0, 0.0]]], dtype=torch.float64)
    axes = plots.anchor_shift_circle(x, torch.tensor([[True, False, False]]))
    angle = np.arctan2(*line(axes, "local anchor"))[0]
    arc = np.arctan2(*line(axes, "moment bounds"))
    assert angle > np.pi / 2
    assert arc.min() - 1e-6 <= angle <= arc.max() + 1e-6


def inside(ellipses: EllipseCollection, points: np.ndarray) -> np.ndarray:
    """Which of S points of each of n ellipses lie in it, (S, n)."""
    angle = np.radians(ellipses.get_angles())
    off = points - ellipses.get_offsets()
    along = off[..., 0] * np.cos(angle) + off[..., 1] * np.sin(angle)
    across = off[..., 1] * np.cos(angle) - off[..., 0] * np.sin(angle)
    return (2 * along / ellipses.get_widths()) ** 2 + (2 * across / ellipses.get_heights()) ** 2 <= 1


@pytest.mark.parametrize("latents", [(0, 2), None])
def test_ellipses_hold_their_share_of_posterior_draws(latents: tuple[int, int] | None) -> None:
    lg = random_model({"image": 3, "text": 2}, 4, seed=2)
    features = lg.sample(20, torch.Generator().manual_seed(0)).features
    mask = torch.arange(20)[:, None] % 3 != torch.tensor([0, 1])
    result = cal.posterior(lg, cal.MultimodalData(features, observed_mask=mask))
    axes = plots.latent_space(result, latents=latents, level=0.8)
    mean, draws = result.mean.numpy(), result.sample(2000, seed=0).numpy()
    if latents is None:
        turn = np.linalg.svd(mean - mean.mean(0))[2][:2].T
        turn = turn * np.where(turn.sum(0) < 0, -1, 1)
    else:
        turn = np.eye(4)[:, list(latents)]
    np.testing.assert_allclose(np.stack(line(axes, "posterior"), 1), mean @ turn, atol=1e-9)
    own, prior = (found for found in axes.collections if isinstance(found, EllipseCollection))
    share = inside(own, draws @ turn).mean(0)
    assert (np.abs(share - 0.8) < 6 * (0.16 / 2000) ** 0.5).all()
    before = torch.distributions.MultivariateNormal(lg.prior_mean, lg.prior_covariance).sample([2000]).numpy()
    assert abs(inside(prior, before[:, None] @ turn).mean() - 0.8) < 6 * (0.16 / 2000) ** 0.5


def test_shares_of_variance_add_up_whatever_the_rotation_and_scale_of_the_latents() -> None:
    lg = random_model({"image": 5, "text": 3}, 3, seed=4)
    table = variance_explained(lg)
    for name in lg.names:
        _, covariance = lg.joint([name])
        noise = float(lg.noise_variance[name].sum() / covariance.diagonal().sum())
        assert table.loc[name].sum() == pytest.approx(1 - noise)
    mixing = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inverse = torch.linalg.inv(mixing)
    same = LinearGaussian(
        {name: weights @ inverse for name, weights in lg.loadings.items()},
        lg.intercepts,
        lg.noise_variance,
        mixing @ lg.prior_mean,
        mixing @ lg.prior_covariance @ mixing.mT,
    )
    np.testing.assert_allclose(variance_explained(same), table, atol=1e-10)
    with pytest.raises(ArgumentError, match="rotate: latents are correlated"):
        variance_explained(lg, rotate=False)


def test_the_map_is_the_table_in_percent_with_numbers_in_it() -> None:
    axes = plots.variance_explained(model(), rotate=False)
    table = variance_explained(model(), rotate=False)
    np.testing.assert_allclose(np.asarray(axes.images[0].get_array()), 100 * table)
    assert [text.get_text() for text in axes.texts] == [f"{100 * share:.0f}" for share in table.to_numpy().ravel()]
    assert table.loc["audio", 1] == 0
    assert table.loc["image", 1] == pytest.approx(5 / 7.25)


def test_the_mean_of_posteriors_is_the_prior_for_data_of_the_model() -> None:
    lg = random_model({"image": 3, "text": 2}, 2, seed=5)
    features = lg.sample(3000, torch.Generator().manual_seed(1)).features
    result = cal.posterior(lg, cal.MultimodalData(features))
    axes = plots.prior_against_posterior(result, latent=1, instances=[7])
    grid, before = line(axes, "prior")
    _, after = line(axes, "mean posterior of 3,000")
    normal = torch.distributions.Normal(result.mean[:, 1:2], result.covariance[:, 1, 1, None].sqrt())
    each = normal.log_prob(torch.as_tensor(grid)).exp().numpy()
    np.testing.assert_allclose(after, each.mean(0), atol=1e-12)
    middle = np.abs(grid - float(lg.prior_mean[1])) < 2 * float(lg.prior_covariance[1, 1]) ** 0.5  # beyond, few decide
    assert (np.abs(after - before) <= 6 * each.std(0) / 3000**0.5)[middle].all()
    np.testing.assert_allclose(line(axes, "posterior of instance 7")[1], each[7])
    assert np.trapezoid(before, grid) == pytest.approx(1, abs=1e-3)


def test_histograms_of_draws_have_the_area_of_what_is_shown() -> None:
    draws = torch.randn(4, 500, generator=torch.Generator().manual_seed(0)).exp()
    axes = plots.prior_against_posterior(draws, torch.distributions.LogNormal(0.0, 1.0), bins=30)
    grid, density = line(axes, "prior")
    assert (density[grid < 0] == 0).all()
    np.testing.assert_allclose(
        density[grid > 0], torch.distributions.LogNormal(0.0, 1.0).log_prob(torch.as_tensor(grid[grid > 0])).exp()
    )
    values = heights(axes, "posterior")
    edges = axes.patches[0].get_data().edges
    assert 0.99 < values @ np.diff(edges) <= 1
    both = plots.prior_against_posterior(draws, draws * 3, bins=30)
    assert heights(both, "prior") @ np.diff(both.patches[0].get_data().edges) > 0.9


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: plots.evidence_trace({}), ArgumentError, "fits: expected at least one series"),
        (lambda: plots.evidence_trace([1.0, np.nan]), DataError, r"fits: expected finite numbers, got nan at \[1\]"),
        (lambda: plots.coverage(pd.DataFrame({"level": [0.5]})), ArgumentError, "lacks the column 'coverage'"),
        (lambda: plots.coverage(coverage_curve([1.0], 0.0, 1.0) * 100), ArgumentError, r"shares in \[0, 1\]"),
        (lambda: plots.pit([0.5, 1.5]), ArgumentError, r"values: expected numbers in \[0, 1\], got 0.5 .. 1.5"),
        (lambda: plots.pit([0.5], bins=0), ArgumentError, "bins: expected a whole number of at least 1"),
        (lambda: plots.pit([]), ArgumentError, "values: expected at least one number"),
        (lambda: plots.error_against_sd([1.0], [0.0], [0.0]), ArgumentError, "variance: expected positive"),
        (lambda: plots.error_against_sd([1.0], [0.0], [1.0]), ArgumentError, "bins: expected at most"),
        (lambda: plots.risk_coverage([-1.0], [1.0]), ArgumentError, "error: expected numbers of at least 0"),
        (lambda: plots.risk_coverage([1.0], [1.0, 2.0]), ArgumentError, r"uncertainty: expected .* shape \(1,\)"),
        (lambda: plots.imputed_against_true([1.0], [1.0], [2.0], [1.0]), ArgumentError, "lower: expected at most"),
        (lambda: plots.imputed_against_true([1], [1], [0], [2], level=90), ArgumentError, "level: expected"),
        (lambda: plots.imputed_against_true([1], [1], [0], [2], by="x"), ArgumentError, "by: expected 'value'"),  # type: ignore[arg-type]
        (lambda: plots.retrieval_gallery(retrieval(), ["a"]), ArgumentError, "names: expected 4 names"),
        (lambda: plots.retrieval_gallery(retrieval(), list("abcd")), ArgumentError, "query_names: there are 3"),
        (
            lambda: plots.retrieval_gallery(retrieval(), "abcd", query_names=list("abc")),
            ArgumentTypeError,
            "names: expected a sequence of 4 names",
        ),
        (
            lambda: plots.retrieval_gallery(retrieval(), list("abcd"), query_names=list("abc"), queries=[5]),
            ArgumentError,
            "queries: row 5 is out of range",
        ),
        (lambda: plots.anchor_shift_circle(torch.ones(20, 2, 2), torch.ones(20, 2) > 0), ArgumentError, "1 to 12"),
        (
            lambda: plots.anchor_shift_circle(torch.ones(1, 2, 2), torch.zeros(1, 2) > 0),
            ArgumentError,
            "observed_mask: row 0 has no modality",
        ),
        (lambda: plots.latent_space(cal.posterior(model(), data()), latents=(0, 2)), ArgumentError, "latents: exp"),
        (lambda: plots.latent_space(cal.posterior(model(), data()), labels=[1]), ArgumentError, "labels: expected"),
        (
            lambda: plots.prior_against_posterior(cal.posterior(model(), data()), latent=2),
            ArgumentError,
            r"latent: expected one of 0 \.\. 1",
        ),
        (lambda: plots.prior_against_posterior([1.0, 2.0]), ArgumentError, "prior: with draws of the posterior"),
        (
            lambda: plots.prior_against_posterior([1.0], torch.distributions.Normal(torch.zeros(2), torch.ones(2))),
            ArgumentError,
            "prior: expected a distribution of one number",
        ),
    ],
)
def test_bad_input_is_refused_by_name(call: Any, error: type[CalmrlError], message: str) -> None:  # noqa: ANN401
    with pytest.raises(error, match=message):
        call()


def test_choice_has_a_line_for_each_family_of_latents() -> None:
    found = tried()
    table = found.table.copy()
    last = table.index[~table["chosen"]][-1]
    table.loc[last, ["family", "prior", "pseudo_rows", "ard"]] = [
        "mixture",
        "latents of a mixture of 3 normals",
        0.0,
        False,
    ]
    axes = plots.choice(replace(found, table=table))
    assert any("mixture of 3 normals" in text.get_text() for text in axes.get_legend().get_texts())


def test_choice_leaves_settings_far_behind_below_the_axes_and_says_how_many() -> None:
    found = tried()
    table = found.table.copy()
    table.loc[table["ard"], "score"] = -30.0
    axes = plots.choice(replace(found, table=table))
    assert -3.0 < axes.get_ylim()[0] < table.loc[~table["ard"], "score"].min()
    assert "1 below" in [text.get_text() for text in axes.texts]
    assert not [text for text in plots.choice(found).texts if "below" in text.get_text()]
