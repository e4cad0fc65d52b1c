"""What data and encoders do to a training: batches of one, of rows without a partner, modalities that no row has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from calmrl_prob.alignment.objectives import OBJECTIVES
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, DataError, SchemaError
from calmrl_prob.training import align
from tests.cases.training_cases import data, encoders, run, weights


def complete(number: int = 21) -> MultimodalData:
    rows = data()
    return rows.subset(rows.complete_rows().nonzero().flatten()[:number])


def alone(number: int = 21) -> MultimodalData:
    """Rows that have one modality each."""
    return complete(number).mask(torch.eye(3, dtype=torch.bool)[torch.arange(number) % 3])


@pytest.mark.parametrize("objective", ["pairwise", "anchored", "pmrl", "gram", "triangle"])
def test_a_batch_of_one_and_batches_without_any_pair_teach_nothing_and_break_nothing(objective: str) -> None:
    options: dict[str, Any] = {"anchor": 0} if objective == "anchored" else {}
    before = encoders()
    start = torch.cat([value.flatten() for value in before.state_dict().values()])
    made = OBJECTIVES[objective](**options)
    found = align(alone(), before, made, batch_size=8, max_epochs=1, weight_decay=0.0)
    ends = torch.cat([value.flatten() for value in found.encoders.state_dict().values()])
    assert bool(found.history["loss"].notna().all())
    assert bool(ends.isfinite().all())
    if objective == "pairwise":
        assert torch.equal(start, ends)
    one_left = align(complete(9), encoders(), OBJECTIVES[objective](**options), batch_size=8, max_epochs=1)
    assert bool(one_left.history["loss"].notna().all())


def test_a_modality_that_no_row_has_is_named_without_a_generative_model_too() -> None:
    mask = torch.ones(21, 3, dtype=torch.bool)
    mask[:, 2] = False
    with pytest.raises(DataError, match="no training row has the modality 'audio'"):
        align(complete().mask(mask), encoders(), OBJECTIVES["pairwise"](), max_epochs=1)
    mask[20, 2] = True  # in the last batch alone
    align(complete().mask(mask), encoders(), OBJECTIVES["pairwise"](), batch_size=8, max_epochs=1)


@pytest.mark.parametrize("shape", [(12, 6, 1), (6,)])
def test_encoders_must_make_one_vector_of_each_instance(shape: tuple[int, ...]) -> None:
    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :6].reshape(-1, *shape[1:]) if len(shape) == 1 else x.new_ones(len(x), *shape[1:])

    with pytest.raises(SchemaError, match=r"encoder 'text': of 21 instances it makes the shape .*; make it \(21, D\)"):
        align(complete(), nn.ModuleDict({**encoders(), "text": Wrong()}), OBJECTIVES["pairwise"](), max_epochs=1)


def test_a_checkpoint_made_with_other_settings_is_refused_by_their_name(tmp_path: Path) -> None:
    run(max_epochs=1, patience=3, folder=tmp_path)
    checkpoint = tmp_path / "checkpoints/last.ckpt"
    others: dict[str, Any] = {"learning_rate": 0.5, "batch_size": 16, "seed": 7, "em_options": {"decay": 0.5}}
    for option, value in others.items():
        with pytest.raises(ArgumentError, match=rf"resume: the checkpoint was made with {option}=.*, and this run has"):
            run(max_epochs=2, resume=checkpoint, **{option: value})
    with pytest.raises(ArgumentError, match=r"made with calibration='imputed_draw\(.*', and this run has 'mean\("):
        run("mean", max_epochs=2, resume=checkpoint)
    found = run(max_epochs=2, patience=9, resume=checkpoint)  # more epochs, more patience are no other settings
    assert torch.equal(weights(found), weights(run(max_epochs=2)))
