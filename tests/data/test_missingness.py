from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from calmrl_prob.data import MultimodalData
from calmrl_prob.data.missingness import MECHANISMS, hub, mar, mcar, mnar, pairs
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, DataError

NAMES = ("image", "text", "audio", "video")


def complete(num_instances: int = 400, seed: int = 0) -> MultimodalData:
    """Four modalities that share a latent, and a numeric and a text covariate."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(num_instances, 2))
    arrays = {
        name: z @ rng.normal(size=(2, d)) + 0.3 * rng.normal(size=(num_instances, d))
        for name, d in zip(NAMES, (5, 3, 2, 1), strict=True)
    }
    return MultimodalData(
        arrays, covariates={"age": rng.normal(50, 9, size=num_instances), "site": np.array(["a"] * num_instances)}
    )


def first_component(x: Tensor) -> Tensor:
    """An independent computation of the score that removal depends on: by SVD, in torch."""
    centred = x - x.mean(dim=0)
    direction = torch.linalg.svd(centred, full_matrices=False).Vh[0]
    scores = centred @ direction * torch.sign(direction[direction.abs().argmax()])
    return scores / scores.std(correction=0)


def log_odds_slope(removed: Tensor, scores: Tensor) -> tuple[float, float]:
    """Slope of a logistic regression of removal on the score, and its standard error, by Newton's method."""
    design = torch.stack([torch.ones_like(scores), scores], dim=1)
    beta = torch.zeros(2, dtype=torch.float64)
    for _ in range(30):
        p = torch.sigmoid(design @ beta)
        information = design.mT @ (design * (p * (1 - p))[:, None])
        beta = beta + torch.linalg.solve(information, design.mT @ (removed.double() - p))
    return float(beta[1]), float(torch.linalg.inv(information)[1, 1].sqrt())


@pytest.mark.parametrize("name", MECHANISMS)
class TestEveryMechanism:
    def test_seed_decides(self, name: str) -> None:
        data = complete()
        first, again, other = (MECHANISMS[name](data, seed=seed) for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_shape_type_and_something_removed(self, name: str) -> None:
        data = complete()
        observed = MECHANISMS[name](data, seed=0)
        assert observed.dtype == torch.bool
        assert observed.shape == data.observed_mask.shape
        assert not observed.all()
        assert observed.any(dim=0).all()
        assert torch.equal(data.mask(observed).observed_mask, observed)
        assert data.observed_mask.all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_removes_only_what_is_there_and_empties_no_instance(self, name: str, dtype: torch.dtype) -> None:
        rng = np.random.default_rng(5)
        mask = rng.random((400, 4)) < 0.8
        mask[np.arange(400), rng.integers(4, size=400)] = True
        data = complete().mask(mask).to(dtype)
        options = {"rate": 0.3} if name in ("mcar", "mar", "mnar") else {}
        observed = MECHANISMS[name](data, seed=0, **options)
        assert not (observed & ~data.observed_mask).any()
        assert observed.any(dim=1).all()
        assert not torch.equal(observed, data.observed_mask)

    def test_constant_features_and_few_rows(self, name: str) -> None:
        data = MultimodalData({m: np.ones((3, 7)) for m in NAMES})
        assert MECHANISMS[name](data, seed=0).any(dim=1).all()

    def test_single_features_may_be_missing(self, name: str) -> None:
        data = complete()
        x = data["image"].clone()
        x[::7, 1] = torch.nan
        gappy = MultimodalData({**{m: data[m] for m in NAMES}, "image": x}, missing="features")
        assert MECHANISMS[name](gappy, seed=0).any(dim=1).all()

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
    def test_the_same_cells_on_a_gpu(self, name: str) -> None:
        data = complete()
        observed = MECHANISMS[name](data.to(device="cuda"), seed=0)
        assert observed.device.type == "cuda"
        assert torch.equal(observed.cpu(), MECHANISMS[name](data, seed=0))


class TestMcar:
    @given(st.floats(0.0, 0.75), st.integers(0, 1000))
    @settings(max_examples=25, deadline=None, derandomize=True)
    def test_the_share_is_exact(self, rate: float, seed: int) -> None:
        observed = mcar(complete(101), rate, seed=seed)
        assert int((~observed).sum()) == round(rate * 404)
        assert observed.any(dim=1).all()

    def test_half_of_all_cells_of_four_modalities(self) -> None:
        assert mcar(complete(), 0.5, seed=0).double().mean() == 0.5

    def test_the_share_counts_present_cells(self) -> None:
        data = complete(200).mask({"text": np.arange(200) < 100})
        removed = data.observed_mask & ~mcar(data, 0.4, seed=0)
        assert int(removed.sum()) == round(0.4 * 700)

    def test_every_modality_is_as_likely(self) -> None:
        kept = torch.stack([mcar(complete(), 0.5, seed=seed).sum(dim=0) for seed in range(50)]).double().sum(dim=0)
        # of 50 * 400 cells a modality keeps half; 6 standard errors
        assert ((kept - 10_000).abs() < 6 * (20_000 * 0.25) ** 0.5).all()

    def test_rate_beyond_reach_names_the_reach(self) -> None:
        with pytest.raises(ArgumentError, match=r"from 0 to 0\.75, .*left empty, got 0\.8"):
            mcar(complete(), 0.8)
        with pytest.raises(ArgumentError, match=r"got -0\.1"):
            mcar(complete(), -0.1)


@pytest.mark.parametrize("name", list(MECHANISMS))
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"seed": "x"}, ArgumentTypeError, "seed: .*got 'x'"),
        ({"seed": None}, ArgumentTypeError, "seed: .*got None"),
        ({"seed": -1}, ArgumentError, "seed: .*got -1"),
        ({"data": np.ones((3, 2))}, ArgumentTypeError, "data: expected MultimodalData, got ndarray; wrap it"),
        ({"share": "x"}, ArgumentTypeError, "(rate|complete): expected a number, got 'x'; pass one such as 0"),
        ({"share": None}, ArgumentTypeError, "(rate|complete): expected a number, got None"),
    ],
)
def test_bad_arguments_are_named(name: str, change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = dict(change)
    if "share" in arguments:
        arguments["rate" if name in ("mcar", "mar", "mnar") else "complete"] = arguments.pop("share")
    with pytest.raises(error, match=message):
        MECHANISMS[name](arguments.pop("data", complete(20)), **arguments)


@pytest.mark.parametrize("mechanism", [mar, mnar])
def test_bad_strengths_are_named(mechanism: Any) -> None:  # noqa: ANN401
    with pytest.raises(ArgumentTypeError, match="strength: expected a number, got 'x'"):
        mechanism(complete(20), strength="x")
    with pytest.raises(ArgumentError, match="strength: expected a finite number, got nan"):
        mechanism(complete(20), strength=np.nan)


class TestMar:
    def test_removal_follows_the_driver_with_the_strength_asked(self) -> None:
        data = complete(4000)
        observed = mar(data, 0.5, driver="text", strength=1.5, seed=0)
        assert observed[:, 1].all()
        scores = first_component(data["text"])
        for m in (0, 2, 3):
            slope, error = log_odds_slope(~observed[:, m], scores)
            assert abs(slope - 1.5) < 6 * error
            assert slope > 6 * error

    def test_given_the_driver_other_values_do_not_matter(self) -> None:
        # other values replaced, driver kept: the very same cells go
        data = complete()
        rng = np.random.default_rng(9)
        arrays = {m: data[m].numpy() if m == "text" else rng.normal(size=data[m].shape) for m in NAMES}
        assert torch.equal(
            mar(data, 0.5, driver="text", seed=3), mar(MultimodalData(arrays), 0.5, driver="text", seed=3)
        )

    @pytest.mark.parametrize("driver", [None, "video", "age"])
    @pytest.mark.parametrize("rate", [0.2, 0.6])
    def test_realised_rate(self, driver: str | None, rate: float) -> None:
        data = complete(2000)
        observed = mar(data, rate, driver=driver, seed=1)
        cells = 2000 * (4 if driver == "age" else 3)
        assert abs(int((~observed).sum()) - rate * cells) < 6 * (cells * rate * (1 - rate)) ** 0.5

    def test_covariate_as_driver(self) -> None:
        data = complete(4000)
        observed = mar(data, 0.4, driver="age", strength=2.0, seed=0)
        high = torch.tensor(data.covariates["age"] > 50)
        assert observed[high].double().mean() < observed[~high].double().mean() - 0.2
        assert observed.any(dim=1).all()

    def test_with_a_modality_as_driver_all_the_rest_can_go(self) -> None:
        assert mar(complete(), 1.0, seed=0).sum(dim=0).tolist() == [400, 0, 0, 0]

    def test_strength_zero_is_mcar(self) -> None:
        data = complete(4000)
        slope, error = log_odds_slope(~mar(data, 0.5, strength=0.0, seed=0)[:, 2], first_component(data["image"]))
        assert abs(slope) < 6 * error

    def test_refusals(self) -> None:
        data = complete(20)
        with pytest.raises(ArgumentError, match=r"no modality or covariate is called 'sex'.*\['age', 'site'\]"):
            mar(data, driver="sex")
        with pytest.raises(ArgumentError, match="numeric covariate, but 'site'"):
            mar(data, driver="site")
        data.covariates["age"][4] = np.nan
        with pytest.raises(DataError, match="row 4 is not finite"):
            mar(data, driver="age")


class TestMnar:
    def test_removal_follows_the_removed_values(self) -> None:
        data = complete(4000)
        observed = mnar(data, 0.3, strength=1.5, seed=0)
        for m, name in enumerate(NAMES):
            slope, error = log_odds_slope(~observed[:, m], first_component(data[name]))
            assert slope > 6 * error
            assert slope < 1.5 + 6 * error  # one cell a row is kept whatever its value, which flattens the slope

    def test_changing_the_values_changes_what_goes(self) -> None:
        data = complete()
        flipped = MultimodalData({m: data[m].flip(0) for m in NAMES})
        assert not torch.equal(mnar(data, 0.3, seed=3), mnar(flipped, 0.3, seed=3))

    @pytest.mark.parametrize("rate", [0.1, 0.5, 0.75])
    def test_realised_rate(self, rate: float) -> None:
        observed = mnar(complete(2000), rate, seed=1)
        assert abs(int((~observed).sum()) - rate * 8000) <= 6 * (8000 * rate * (1 - rate)) ** 0.5

    def test_scores_of_wide_modalities(self) -> None:
        # more features than instances take the other form of the principal component
        rng = np.random.default_rng(0)
        wide = rng.normal(size=(30, 1)) @ rng.normal(size=(1, 200)) + 0.01 * rng.normal(size=(30, 200))
        data = MultimodalData({"x": wide, "y": np.ones((30, 1))})
        observed = mnar(data, 0.25, strength=50.0, seed=0)
        scores = first_component(data["x"])
        assert scores[~observed[:, 0]].mean() > scores[observed[:, 0]].mean()


class TestPairsAndHub:
    @pytest.mark.parametrize("share", [0.0, 0.15, 1.0])
    def test_pairs(self, share: float) -> None:
        counts = pairs(complete(), share, seed=0).sum(dim=1)
        assert int((counts == 4).sum()) == round(share * 400)
        assert int((counts == 2).sum()) == 400 - round(share * 400)

    def test_every_pair_is_as_likely(self) -> None:
        data = complete(6000).mask(pairs(complete(6000), 0.0, seed=0))
        assert len(data.patterns) == 6
        counts = data.pattern_index.bincount().double()
        assert ((counts - 1000).abs() < 6 * (6000 / 6 * 5 / 6) ** 0.5).all()

    def test_pairs_of_what_is_there(self) -> None:
        data = complete().mask({m: np.arange(400) >= 100 for m in NAMES[1:]})
        assert pairs(data, 0.0, seed=0).sum(dim=1).tolist() == [1] * 100 + [2] * 300

    def test_hub(self) -> None:
        observed = hub(complete(6000), "audio", seed=0)
        assert observed[:, 2].all()
        assert (observed.sum(dim=1) == 2).all()
        counts = observed.sum(dim=0).double()[[0, 1, 3]]
        assert ((counts - 2000).abs() < 6 * (6000 * 2 / 9) ** 0.5).all()

    def test_hub_defaults_to_the_first_and_may_leave_some_complete(self) -> None:
        observed = hub(complete(), complete=0.25, seed=0)
        assert observed[:, 0].all()
        assert int((observed.sum(dim=1) == 4).sum()) == 100

    def test_instances_without_the_hub_keep_one(self) -> None:
        data = complete().mask({"text": np.arange(400) >= 50})
        observed = hub(data, "text", seed=0)
        assert (observed[:50].sum(dim=1) == 1).all()
        assert (observed[50:].sum(dim=1) == 2).all()

    def test_refusals(self) -> None:
        with pytest.raises(ArgumentError, match=r"complete: expected a share.*got 1\.5"):
            pairs(complete(), 1.5)
        with pytest.raises(ArgumentError, match="no modality is called 'smell'"):
            hub(complete(), "smell")
