"""What a newcomer passes to ``align``: arrays as numpy makes them, queries of one modality, and what cannot be."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from calmrl_prob.alignment.calibration import CALIBRATIONS
from calmrl_prob.alignment.objectives import OBJECTIVES, make_objective
from calmrl_prob.alignment.views import Views
from calmrl_prob.data import MultimodalData
from calmrl_prob.encoders import build_encoders
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, CalmrlWarning, FileFormatError, SchemaError
from calmrl_prob.training import Alignment, AlignmentModule, AlignOptions, GenerativeStep, align
from tests.cases.training_cases import data, encoders


def go(**changes: Any) -> Alignment:
    options: dict[str, Any] = {"encoders": encoders(), "objective": OBJECTIVES["pairwise"](), "latent_dim": 4}
    return align(**{"data": data(), **options, "max_epochs": 1, **changes})


def test_arrays_of_numpys_own_precision_train_as_those_of_torchs_do() -> None:
    rows = data()
    wide = MultimodalData({name: rows[name].double().numpy() for name in rows.names})
    assert wide.dtype == torch.float64
    found, as_before = (
        go(data=given, encoders=build_encoders("autoencoder", rows.dims, 6), reconstruction_weight=1.0)
        for given in (wide, rows)
    )
    shown, before = found.represent(wide), as_before.represent(rows)
    for name in rows.names:
        torch.testing.assert_close(shown[name], before[name], equal_nan=True)
    assert repr(found) == "Alignment(image, text, audio; best epoch 0 of 1, stopped by max_epochs)"


def test_queries_of_one_modality_and_single_rows_are_represented() -> None:
    found, rows = go(), data()
    whole = found.represent(rows)
    one = found.represent(rows.subset(rows.rows_with("text")).select(["text"]))
    assert one.names == whole.names
    assert one.observed_mask.any(dim=0).tolist() == [False, True, False]
    torch.testing.assert_close(one["text"], whole["text"][rows.observed("text")])
    first = found.represent(rows.subset([0]))
    assert torch.equal(first.observed_mask, rows.observed_mask[:1])
    assert (
        go(validation=rows.subset(rows.rows_with("image", "text")).select(["image", "text"]))
        .history["validation_recall"]
        .notna()
        .all()
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": -1.0}, r"learning_rate: expected a finite number of at least 0, got -1\.0"),
        ({"learning_rate": "fast"}, "learning_rate: expected a number"),
        ({"weight_decay": float("nan")}, "weight_decay: expected a finite number"),
        ({"reconstruction_weight": -1}, "reconstruction_weight: expected a finite number"),
        ({"patience": -1}, "patience: expected a whole number"),
        ({"em_period": 0}, "em_period: expected a whole number of at least 1"),
        ({"em_options": {"periods": 3}}, "em_options: step 1 has no option 'periods'"),
        ({"em_options": 3}, "em_options: expected a dict"),
        ({"calibration": None}, "calibration: expected one of"),
        ({"calibration": CALIBRATIONS["mean"]}, "the class MeanFill itself"),
        ({"objective": "pairwise"}, r"make one such as make_objective\('pairwise'\)"),
        ({"objective": OBJECTIVES["pairwise"]}, "the class Pairwise itself"),
        ({"objective": lambda views: views.values}, "objective: expected a tensor of one number of it, got the shape"),
        ({"objective": lambda views: 1.0}, "of it, got float; return its mean"),
        ({"encoders": {}}, "encoders: expected a dict from modality to nn.Module"),
        ({"encoders": nn.Linear(3, 3)}, "got Linear; make them with build_encoders"),
        ({"encoders": {"image": len}}, "expected nn.Module for 'image'"),
        ({"encoders": {"image.raw": nn.Linear(3, 3)}}, "torch refuses a name .*; rename the modality"),
        ({"data": {"image": np.zeros((3, 2))}}, r"got a dict; make it MultimodalData\(data\)"),
        ({"data": np.zeros((3, 2))}, "expected a dict from modality to tensor for each item, got ndarray"),
        ({"data": [{"image": "a cat"}] * 3}, "modality 'image' of item 0 of a batch is no tensor but 'a cat'"),
        ({"validation": 3}, "validation: expected MultimodalData"),
        ({"trainer_options": {"max_epochs": 3}}, "trainer_options: lightning.Trainer refuses"),
        ({"trainer_options": {"gpus": 1}}, "trainer_options: lightning.Trainer refuses"),
    ],
)
def test_what_cannot_work_is_refused_by_its_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        go(**changes)


def test_encoders_that_cannot_take_their_inputs_or_differ_in_precision_are_named() -> None:
    with pytest.raises(SchemaError, match=r"encoder 'text': it fails on inputs of shape \(.*make it for inputs like"):
        go(encoders=nn.ModuleDict({**encoders(), "text": nn.Linear(99, 6)}))
    with pytest.raises(SchemaError, match=r"outputs are of the types .*; give all the same"):
        go(encoders=nn.ModuleDict({**encoders(), "text": nn.Linear(data().dims["text"], 6).double()}))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("linear", {"hidden": (3,)}, "settings: 'linear' does not take them, .*'hidden'"),
        ("mlp", {"hidden": 8}, r"hidden: expected widths of layers such as \(256,\), got 8"),
        ("mlp", {"hidden": (0,)}, "hidden: expected a whole number"),
        ("mlp", {"dims": [3, 4]}, "dims: expected a dict"),
        ("mlp", {"dims": {}}, "dims: expected a dict"),
        ("mlp", {"seed": -1}, "seed: expected"),
    ],
)
def test_encoders_are_not_built_of_what_they_do_not_take(kind: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        build_encoders(kind, **{"dims": {"image": 3}, "width": 2, **changes})


def test_objectives_say_which_settings_they_have() -> None:
    with pytest.raises(ArgumentError, match=r"'pairwise' does not take them, .*'margin'; it has \['temperature'"):
        make_objective("pairwise", margin=1)
    with pytest.raises(ArgumentError, match="'combined' does not take them, missing a required argument: 'parts'"):
        make_objective("combined")
    made = make_objective("combined", parts={"pairwise": make_objective("pairwise")}, weights={"pairwise": 1.0})
    assert made(Views.observed(torch.randn(4, 2, 3), torch.ones(4, 2).bool())).isfinite()


def test_a_run_does_not_resume_from_what_is_no_checkpoint_or_one_that_is_further(tmp_path: Path) -> None:
    (tmp_path / "notes.ckpt").write_text("x")
    with pytest.raises(FileFormatError, match=r"notes\.ckpt: not a safetensors file, .*; go on from another one"):
        go(resume=tmp_path / "notes.ckpt")
    go(max_epochs=2, folder=tmp_path)
    with pytest.raises(ArgumentError, match=r"resume: .* has 2 epochs already, and max_epochs is 1; pass more"):
        go(max_epochs=1, resume=tmp_path / "checkpoints/last.ckpt")


def test_a_warm_up_that_leaves_nothing_to_calibrate_is_told() -> None:
    with pytest.warns(CalmrlWarning, match=r"warmup_epochs: 1 of 1 epochs .* raise max_epochs"):
        go(calibration="imputed_mean", warmup_epochs=1)
    go(warmup_epochs=1)  # which calibrates nothing anyway


def test_options_are_one_object_or_keywords_and_a_checkpoint_records_them(tmp_path: Path) -> None:
    options = AlignOptions(latent_dim=3, batch_size=32, max_epochs=1)
    found = align(data(), encoders(), OBJECTIVES["pairwise"](), "imputed_mean", options=options, latent_dim=4)
    assert found.module.options == AlignOptions(latent_dim=4, batch_size=32, max_epochs=1)
    free = {"max_epochs", "patience", "progress"}
    fields = {field.name for field in dataclasses.fields(AlignOptions)} - free
    assert set(options.recorded()) == fields
    assert fields | {"calibration", "objective", "modalities", "num_instances"} == set(found.module.settings)
    again = go(max_epochs=1, folder=tmp_path, patience=3)
    resumed = go(max_epochs=2, patience=5, progress=False, resume=tmp_path / "checkpoints/last.ckpt")
    assert len(resumed.history) == len(again.history) + 1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"epochs": 3}, ArgumentError, r"options: align has no option 'epochs'; it has \['latent_dim', 'max_epochs'.*"),
        ({"valdation": 3}, ArgumentError, r"no option 'valdation'; it has \[.*'validation'"),
        ({"options": {"max_epochs": 3}}, ArgumentTypeError, "options: expected AlignOptions, got dict; pass one, or"),
        ({"latent_dim": 0}, ArgumentError, "latent_dim: expected a whole number of at least 1, got 0"),
        ({"seed": -1}, ArgumentError, "seed: expected a whole number of at least 0"),
    ],
)
def test_options_that_there_are_not_are_refused_with_those_that_there_are(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        go(**changes)


def test_steps_and_modules_refuse_options_that_they_do_not_have() -> None:
    with pytest.raises(ArgumentError, match=r"options: GenerativeStep has no option 'periods'; it has \['first_epoch'"):
        GenerativeStep([], 4, periods=3)
    with pytest.raises(ArgumentError, match="options: AlignmentModule has no option 'rate'"):
        AlignmentModule(encoders(), OBJECTIVES["pairwise"](), CALIBRATIONS["none"](), rate=0.1)
