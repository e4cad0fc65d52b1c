"""Choosing the number of latents: what is known of synthetic data is found."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
import torch

import calmrl_prob as cal
from calmrl_prob.data.missingness import mcar
from calmrl_prob.errors import ArgumentError, ArgumentTypeError

mpl.use("Agg")


@pytest.mark.parametrize("latent_dim", [2, 5])
def test_the_true_number_is_found_with_modalities_missing(latent_dim: int) -> None:
    made = cal.datasets.make_synthetic(400, {"image": 12, "text": 10, "audio": 8}, latent_dim=latent_dim, seed=1)
    data = made.data.mask(mcar(made.data, rate=0.3, seed=0))
    found = cal.choose_latent_dim(data, range(1, 9), folds=3)
    assert found.latent_dim == latent_dim
    assert found.ard_count == latent_dim
    assert found.curve["latent_dim"].tolist() == list(range(1, 9))
    assert bool((found.curve["error"] > 0).all())
    assert not found.ard_is_limited


def test_the_plot_has_titles_units_and_a_legend() -> None:
    found = cal.choose_latent_dim(cal.datasets.make_synthetic(100, seed=0).data, [1, 2, 3], folds=2)
    axes = cal.plots.latent_dim_choice(found)
    assert axes.get_xlabel()
    assert "nats" in axes.get_ylabel()
    assert axes.get_title()
    assert len(axes.get_legend().get_texts()) == 3
    with pytest.warns(DeprecationWarning, match="call cal.plots.latent_dim_choice"):
        assert found.plot(axes) is axes


def test_standard_errors_are_of_differences_to_the_best_row_by_row() -> None:
    """Rows of very different difficulty: their spread is far greater than the difference between two K that matters."""
    made = cal.datasets.make_synthetic(200, {"image": 12, "text": 10}, latent_dim=3, seed=1).data
    size = torch.linspace(0.5, 2.0, 200, dtype=made.dtype)[:, None]
    found = cal.choose_latent_dim(cal.MultimodalData({n: size * made[n] for n in made.names}), [1, 3, 4], folds=2)
    curve = found.curve.set_index("latent_dim")
    assert curve.loc[found.best, ["behind", "behind_error"]].tolist() == [0, 0]
    np.testing.assert_allclose(curve["behind"], curve["evidence"].max() - curve["evidence"], atol=1e-9)
    others = curve.drop(found.best)
    assert bool((others["behind_error"] < others["error"]).all())
    enough = curve.index[curve["behind"] <= curve["behind_error"]]
    assert found.latent_dim == enough.min()


def test_a_count_of_ard_that_was_cut_off_is_said_to_be() -> None:
    made = cal.datasets.make_synthetic(200, {"image": 12, "text": 10}, latent_dim=5, seed=1).data
    found = cal.choose_latent_dim(made, [1, 2], folds=2)
    assert found.ard_is_limited
    assert "kept by ARD: 2 of 2, all there were" in repr(found)
    axes = cal.plots.latent_dim_choice(found)
    assert any("all there were" in text.get_text() for text in axes.get_legend().get_texts())


def test_same_seed_same_choice_and_bad_arguments_are_named() -> None:
    data = cal.datasets.make_synthetic(60, seed=0).data
    one, two = (cal.choose_latent_dim(data, [1, 2], folds=2, seed=3) for _ in range(2))
    assert one.curve.equals(two.curve)
    with pytest.raises(ArgumentError, match="latent_dims: none of"):
        cal.choose_latent_dim(data, [500])
    with pytest.raises(ArgumentError, match="folds: 40 are too many for 60"):
        cal.choose_latent_dim(data, folds=40)
    with pytest.raises(ArgumentTypeError, match="data: expected MultimodalData"):
        cal.choose_latent_dim({"x": 1})  # type: ignore[arg-type]


@pytest.mark.parametrize("latent_dims", ["3", 3, [2, "3"]])
def test_what_is_no_sequence_of_numbers_is_refused(latent_dims: object) -> None:
    data = cal.datasets.make_synthetic(60, seed=0).data
    with pytest.raises(ArgumentTypeError, match="latent_dims: expected"):
        cal.choose_latent_dim(data, latent_dims)  # type: ignore[arg-type]
