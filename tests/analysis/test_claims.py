"""Claims of the paper, judged by results that are made for it."""

from __future__ import annotations

import pandas as pd
import pytest

from analysis.statistics.claims import CLAIMS, findings

SEEDS = range(4)


def of_alignment(gain: float) -> pd.DataFrame:
    """Results of ``experiments.align`` where imputed means gain that much, by a spread of a tenth."""
    reached = {"observed": 10.0, "imputed_mean": 10.0 + gain, "started": 12.0, "oracle": 20.0}
    return pd.DataFrame(
        {"variant": name, "label": name, "seed": seed, "R@1 cosine": value + 0.1 * (seed % 2) * (name != "observed")}
        | {"gap": 10 * (value - 10)}
        for name, value in reached.items()
        for seed in SEEDS
    )


@pytest.mark.parametrize(("gain", "verdict"), [(1.0, "holds"), (-1.0, "does not hold"), (-0.05, "not told apart")])
def test_retrieval_is_judged_by_its_spread(gain: float, verdict: str) -> None:
    found = findings({"align": of_alignment(gain)}).set_index("about")
    assert found.loc["Retrieval", "verdict"] == verdict
    assert "best of the other variants: started 12.1" in found.loc["Retrieval", "found here"]
    assert found.loc["Complete data", "verdict"] in ("holds", "does not hold", "not told apart")
    assert found.loc["Anchor shift", "verdict"] == "not run"


def test_the_shift_holds_in_part_where_one_number_missing_gains_and_another_does_not() -> None:
    rows = [
        {"trained on": "incomplete rows", "missing": missing, "seed": seed, "local": 0.5 + 0.01 * seed}
        | {"calibrated": 0.5 + 0.01 * seed + change + 0.001 * (seed % 2)}
        for missing, change in ((1, -0.1), (2, 0.1))
        for seed in SEEDS
    ]
    found = findings({"anchor_shift": pd.DataFrame(rows)}).set_index("about").loc["Anchor shift"]
    assert found["verdict"] == "holds in part"
    assert found["found here"].startswith("1 missing: 0.515")


def test_convergence_does_not_hold_if_the_evidence_falls_once() -> None:
    rows = [
        {"variant": "EM", "seed": seed, "iterations": 40, "fall": 0.1, "behind": 1e-6, "converged": 100.0}
        for seed in SEEDS
    ]
    fallen = pd.DataFrame([*rows, rows[0] | {"fall": 1e9}])
    for results, verdict in ((pd.DataFrame(rows), "holds"), (fallen, "does not hold")):
        assert findings({"convergence": results}).set_index("about").loc["Convergence", "verdict"] == verdict


@pytest.mark.parametrize(("gain", "verdict"), [(1.5, "holds"), (1.0, "does not hold")])
def test_captions_have_to_gain_more_than_five_percent(gain: float, verdict: str) -> None:
    rows = [
        {"missing": "half", "variant": name, "captioner": captioner, "given": "image", "seed": seed}
        | {"CIDEr-D": level * (1 + 0.001 * seed) * (0.5 if captioner == "nearest" else 1.0)}
        for name, level in (("observed", 0.2), ("calmrl", 0.2 * gain), ("ridge", 0.25))
        for captioner in ("nearest", "consensus")
        for seed in SEEDS
    ]
    found = findings({"captions": pd.DataFrame(rows)}).set_index("about").loc["Captioning"]
    assert found["verdict"] == verdict
    assert "observed only 0.200±0.000, ridge 0.250±0.000" in found["found here"]


def test_classes_are_judged_against_the_best_rival_of_each_set() -> None:
    rows = [
        {"set": name, "missing": missing, "label": label, "seed": seed, "accuracy": value + 0.08 * (seed % 2) * others}
        for name, levels in {"leaves": (90.0, 80.0, 85.0), "emoji": (70.0, 75.0, 60.0)}.items()
        for missing in (1, 2)
        for label, value, others in zip(("exact classes", "a", "b"), levels, (0, 1, 1), strict=True)
        for seed in SEEDS
    ]
    found = findings({"classes": pd.DataFrame(rows)}).set_index("about").loc["Classification"]
    assert found["verdict"] == "holds in part"
    assert "leaves: 90.0±0.0, b 85.0±0.0; emoji: 70.0±0.0, a 75.0±0.0" in found["found here"]


def test_every_claim_says_what_explains_it() -> None:
    assert all(claim.says.endswith(".") or claim.says.endswith(").") for claim in CLAIMS)
    assert all(claim.why and claim.parts for claim in CLAIMS)
