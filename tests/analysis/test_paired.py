"""Paired tests over seeds, against SciPy and by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.runs.arguments import parse
from analysis.statistics.paired import holm, paired_differences, signed_rank_p
from calmrl_prob.errors import ArgumentError


def table(values: dict[str, list[float]]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"variant": name, "label": name.upper(), "seed": seed, "R@1": value}
            for name, column in values.items()
            for seed, value in enumerate(column)
        ]
    )


@pytest.mark.parametrize("n", [3, 5, 9, 30])
def test_tests_and_interval_are_those_of_scipy(n: int) -> None:
    generator = np.random.default_rng(n)
    a, b = generator.normal(10, 3, n), generator.normal(11, 3, n)
    row = paired_differences(table({"a": list(a), "b": list(b)}), "R@1", "a").iloc[0]
    expected = stats.ttest_rel(b, a)
    interval = expected.confidence_interval(0.95)
    assert row["t_p"] == pytest.approx(expected.pvalue)
    assert row["difference"] == pytest.approx((b - a).mean())
    assert [row["lower"], row["upper"]] == pytest.approx([interval.low, interval.high])
    method = "exact" if n <= 16 else "approx"
    assert row["wilcoxon_p"] == pytest.approx(stats.wilcoxon(b - a, method=method).pvalue)


def test_few_seeds_can_never_decide_by_ranks() -> None:
    for n in (2, 3, 4, 5):
        far = paired_differences(table({"a": [0.0] * n, "b": [9.0 + 0.01 * s for s in range(n)]}), "R@1", "a").iloc[0]
        assert far["wilcoxon_p"] == far["wilcoxon_least"] == pytest.approx(2 / 2**n)


def test_mid_ranks_go_through_all_signs() -> None:
    # |d| = 1, 1, 2, ranks 1.5, 1.5, 3: of 8 sign changes those with |sum| >= 3 are all but (+,-), (-,+) with either 3:
    # sums are 6, 0, 3, 3 and their negatives, so that |sum| >= 3 in six of eight.
    assert signed_rank_p(np.array([1.0, -1.0, 2.0])) == pytest.approx(6 / 8)
    assert np.isnan(signed_rank_p(np.zeros(4)))
    assert signed_rank_p(np.array([0.0, 1.0, 2.0])) == 0.5  # zeros do not count


def test_holm_is_what_it_is_by_hand() -> None:
    assert holm(np.array([0.04, 0.01, 0.02])).tolist() == pytest.approx([0.04, 0.03, 0.04])
    assert holm(np.array([0.6, 0.7])).tolist() == [1.0, 1.0]


def test_adjustment_takes_back_what_one_test_alone_would_tell() -> None:
    seeds = np.array([0.0, 0.3, -0.2, 0.1, -0.1])
    one = {"a": [10.0] * 5, "b": list(10.3 + seeds)}
    assert paired_differences(table(one), "R@1", "a").iloc[0]["verdict"] == "higher"
    many = one | {f"c{k}": list(10 + seeds[::-1] * k) for k in range(1, 5)}
    found = paired_differences(table(many), "R@1", "a").set_index("variant")
    assert found.loc["b", "t_p"] < 0.05 < found.loc["b", "t_p_holm"]
    assert found.loc["b", "verdict"] == "not told apart"


def test_what_nothing_can_be_said_of_says_so() -> None:
    results = table({"a": [1.0, 2.0, 3.0], "same": [1.5, 2.5, 3.5], "one": [2.0], "none": []})
    results = pd.concat([results, pd.DataFrame([{"variant": "none", "label": "NONE", "seed": 9, "R@1": 1.0}])])
    found = paired_differences(results, "R@1", "a").set_index("variant")
    assert found["verdict"].to_dict() == {"same": "the same everywhere", "one": "one pair", "none": "no pair"}
    assert np.isnan(found.loc["one", "lower"])
    assert found.loc["none", "pairs"] == 0


def test_pairs_are_of_the_same_seed_whatever_the_order_of_rows() -> None:
    results = table({"a": [1.0, 5.0, 9.0], "b": [2.0, 6.2, 10.1]})
    shuffled = results.sample(frac=1, random_state=0)
    first = paired_differences(results, "R@1", "a").drop(columns=["variant", "label"])
    second = paired_differences(shuffled, "R@1", "a").drop(columns=["variant", "label"])
    if shuffled["variant"].iloc[0] == results["variant"].iloc[0]:
        pd.testing.assert_frame_equal(first, second)
    assert second["difference"].iloc[0] == pytest.approx(first["difference"].iloc[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": "x"}, "reference: expected one of"),
        ({"metric": "x"}, "metric: expected a column"),
        ({"level": 1.0}, "level: expected"),
        ({"blocks": ["label"]}, "blocks: expected columns"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, object], message: str) -> None:
    results = table({"a": [1.0, 2.0], "b": [2.0, 3.0]})
    arguments = {"metric": "R@1", "reference": "a"} | options
    with pytest.raises(ArgumentError, match=message):
        paired_differences(results, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="a variant besides"):
        paired_differences(results[results["variant"] == "a"], "R@1", "a")


def test_folders_given_one_by_one_are_told_how_to_be_given() -> None:
    with pytest.raises(ArgumentError, match=r"runs: expected once, got 'a' and 'b'.* parted by commas"):
        parse(["a", "b"], {"runs": "folders"}, "runs")
