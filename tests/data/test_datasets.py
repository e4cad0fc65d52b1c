from __future__ import annotations

import inspect
from importlib.resources import files

import numpy as np
import pytest
import torch

from calmrl_prob.data import MultimodalData, require_fittable
from calmrl_prob.datasets import DATASETS, load_emoji, load_leaves, make_synthetic
from calmrl_prob.errors import ArgumentError, ArgumentTypeError
from calmrl_prob.linear_gaussian import LinearGaussian, log_marginal


@pytest.mark.parametrize("name", DATASETS)
class TestEveryDataSet:
    def test_is_ready_to_fit(self, name: str) -> None:
        data = DATASETS[name]()
        assert isinstance(data, MultimodalData)
        require_fittable(data)
        assert len(data.names) >= 2
        assert data.labels is not None
        assert data.labels.shape == (len(data),)
        assert len(np.unique(data.labels)) >= 2
        assert data.attributes["name"] == name

    def test_loads_the_same_twice(self, name: str) -> None:
        first, second = DATASETS[name](), DATASETS[name]()
        assert all(torch.equal(first[m], second[m]) for m in first.names)

    def test_dtype_is_an_option(self, name: str) -> None:
        assert {DATASETS[name](dtype=dtype).dtype for dtype in (torch.float32, torch.float64)} == {
            torch.float32,
            torch.float64,
        }

    def test_arguments_are_optional_keywords(self, name: str) -> None:
        for parameter in inspect.signature(DATASETS[name]).parameters.values():
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
            assert parameter.default is not inspect.Parameter.empty

    def test_a_split_separates_train_from_test(self, name: str) -> None:
        data = DATASETS[name]()
        if data.partition is not None:
            assert len(data.train) + len(data.test) == len(data)
            assert len(data.train) > len(data.test) > 0


class TestEmoji:
    def test_contents(self) -> None:
        data = load_emoji()
        assert data.dims == dict.fromkeys(("image_noto", "image_twemoji", "name", "tags"), 64)
        assert (len(data), len(data.train), len(data.test)) == (1906, 1431, 475)
        assert data.observed_mask.all()
        assert data.dtype == torch.float32
        assert data.ids is not None
        row = data.ids.tolist().index("1F600")
        assert data.covariates["caption"][row] == "grinning face"
        assert data.covariates["emoji"][row] == "\N{GRINNING FACE}"

    @pytest.mark.parametrize(
        ("source", "target"), [("image_noto", "image_twemoji"), ("name", "tags"), ("name_fr", "name")]
    )
    def test_rows_belong_together(self, source: str, target: str) -> None:
        # a linear map learned on training rows must tell of test rows, and nothing once rows are shifted
        data = load_emoji(modalities=(source, target), dtype=torch.float64)

        def explained(shift: int) -> float:
            (x, y), (u, v) = (
                (torch.nn.functional.pad(part[source], (0, 1), value=1.0), part[target].roll(shift, dims=0))
                for part in (data.train, data.test)
            )
            residual = v - u @ torch.linalg.lstsq(x, y).solution
            return float(1 - residual.square().sum() / (v - v.mean(dim=0)).square().sum())

        assert explained(0) > 0.2
        assert explained(200) < 0.1

    def test_choice_of_modalities(self) -> None:
        assert load_emoji(modalities=["tags", "name_fr"]).names == ("tags", "name_fr")
        with pytest.raises(ArgumentError, match=r"no modality 'smell'; it has .*image_noto"):
            load_emoji(modalities=["smell"])


def test_leaves_contents() -> None:
    data = load_leaves()
    assert (len(data), len(data.train), len(data.test)) == (1600, 1200, 400)
    assert data.labels is not None
    assert np.bincount(data.labels).tolist() == [16] * 100


def test_attribution_names_every_source() -> None:
    text = (files("calmrl_prob.datasets") / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for word in ("emoji_small.npz", "leaves100.npz", "Noto Emoji", "Twemoji", "emojibase", "CLDR", "Mallah", "CC-BY"):
        assert word in text


class TestSynthetic:
    def test_data_have_the_moments_of_the_truth(self) -> None:
        made = make_synthetic(20_000, {"a": 4, "b": 3}, latent_dim=2, noise="diagonal", seed=3)
        mean, covariance = made.truth.joint()
        x = torch.cat([made.complete[m] for m in ("a", "b")], dim=1)
        scale = covariance.diagonal().sqrt()
        assert ((x.mean(dim=0) - mean).abs() < 6 * scale / 20_000**0.5).all()
        # the variance of a product of two jointly normal variables is c_ii c_jj + c_ij^2
        error = ((torch.outer(scale, scale).square() + covariance.square()) / 20_000).sqrt()
        assert ((torch.cov(x.mT) - covariance).abs() < 6 * error).all()

    def test_residuals_at_the_true_latents_are_the_noise(self) -> None:
        made = make_synthetic(20_000, {"a": 4}, noise_variance=0.2, noise="isotropic", seed=1)
        residual = made.complete["a"] - made.latents @ made.truth.loadings["a"].mT - made.truth.intercepts["a"]
        assert ((residual.var(dim=0) - 0.2).abs() < 6 * 0.2 * (2 / 20_000) ** 0.5).all()

    def test_truth_beats_other_parameters(self) -> None:
        made = make_synthetic(500, missing_rate=0.3, seed=0)
        other = make_synthetic(500, seed=1).truth
        assert log_marginal(made.truth, made.data.blocks).sum() > log_marginal(other, made.data.blocks).sum()

    def test_missing_rate_and_what_was_removed(self) -> None:
        made = make_synthetic(100, missing_rate=0.4, seed=0)
        assert int((~made.data.observed_mask).sum()) == 120
        assert made.complete.observed_mask.all()
        rows = made.data.observed("text")
        assert torch.equal(made.data["text"][rows], made.complete["text"][rows])

    def test_noise_kinds(self) -> None:
        isotropic, diagonal = (make_synthetic(10, noise=kind, seed=0).truth for kind in ("isotropic", "diagonal"))
        assert isinstance(isotropic, LinearGaussian)
        assert isotropic.noise_variance["image"].unique().tolist() == [0.5]
        assert len(diagonal.noise_variance["image"].unique()) == 8

    def test_seed_decides(self) -> None:
        first, again, other = (make_synthetic(10, seed=seed).latents for seed in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_instances": 0}, "num_instances: expected a whole number of at least 1, got 0"),
            ({"dims": {"x": 0}}, "x: expected a whole number of at least 1"),
            ({"noise_variance": 0.0}, "noise_variance: expected a positive"),
            ({"noise": "full"}, "noise: expected 'isotropic' or 'diagonal', got 'full'"),
            ({"missing_rate": 0.9}, "rate"),
            ({"dims": {}}, "dims: expected at least one modality"),
            ({"seed": -1}, "seed: .*got -1"),
        ],
    )
    def test_refusals(self, options: dict[str, object], message: str) -> None:
        with pytest.raises(ArgumentError, match=message):
            make_synthetic(**options)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_instances": "x"}, "num_instances: .*got 'x'"),
            ({"latent_dim": 2.5}, "latent_dim: .*got 2.5"),
            ({"dims": 3}, "dims: expected a mapping .*got 3"),
            ({"noise_variance": None}, "noise_variance: expected a number, got None"),
            ({"seed": None}, "seed: .*got None"),
            ({"dtype": "float32"}, r"dtype: expected torch\.float32 or torch\.float64, got float32"),
        ],
    )
    def test_types_that_do_not_fit(self, options: dict[str, object], message: str) -> None:
        with pytest.raises(ArgumentTypeError, match=message):
            make_synthetic(**options)  # type: ignore[arg-type]
