"""Training rows of a stream: shares, shuffling, what is held out, statistics, and two processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from calmrl_prob.alignment.objectives import OBJECTIVES
from calmrl_prob.data import MultimodalData
from calmrl_prob.data.stream import MultimodalStream
from calmrl_prob.errors import ArgumentError, DataError, SchemaError
from calmrl_prob.training import Alignment, align
from calmrl_prob.training.batches import Batch, InMemory
from calmrl_prob.training.generative_step import gather_statistics
from calmrl_prob.training.streamed import RowsOfStream, StreamedBatches
from tests.cases.training_cases import DIMS, data, encoders, environment, make_module

NAMES = tuple(DIMS)


def rows() -> MultimodalData:
    """Rows whose first feature of the first modality is their number, all there."""
    whole = data()
    values = {name: whole.filled(name).clone() for name in NAMES}
    values["image"][:, 0] = torch.arange(len(whole))
    mask = whole.observed_mask.clone()
    mask[:, 0] = True
    return MultimodalData(values, observed_mask=mask, ids=[f"row {n}" for n in range(len(whole))])


def streamed(size: int = 17) -> MultimodalStream:
    whole = rows()
    starts = range(0, len(whole), size)
    return MultimodalStream.from_chunks(lambda: (whole.subset(slice(s, s + size)) for s in starts), DIMS)


def numbers(batches: Iterable[Batch]) -> list[int]:
    return [int(number) for batch in batches for number in batch.inputs["image"][:, 0]]


def test_processes_share_the_rows_and_each_epoch_has_an_order_of_its_own() -> None:
    chosen = RowsOfStream(streamed(), NAMES)
    shares = [numbers(StreamedBatches(chosen, 8, 40, (0, 0, rank, 3))) for rank in range(3)]
    assert sorted(chain(*shares)) == list(range(160))
    again, later = (numbers(StreamedBatches(chosen, 8, 40, (0, epoch, 0, 3))) for epoch in (0, 1))
    assert again == shares[0] != later
    assert sorted(later) == sorted(again)


def test_workers_share_the_rows_of_a_process() -> None:
    loader = torch.utils.data.DataLoader(
        StreamedBatches(RowsOfStream(streamed(), NAMES), 8, 40), batch_size=None, num_workers=2
    )
    assert sorted(numbers(loader)) == list(range(160))


def test_rows_are_drawn_from_as_many_as_the_buffer_holds() -> None:
    found = numbers(StreamedBatches(RowsOfStream(streamed(), NAMES), 8, 40))
    moved = np.abs(np.array(found) - np.arange(160))
    assert moved.max() > 17  # beyond its own chunk
    assert max(n - place for place, n in enumerate(found)) <= 40 + 17 + 8  # nothing comes before it was read
    assert numbers(StreamedBatches(RowsOfStream(streamed(), NAMES), 8)) == list(range(160))


def test_batches_hold_the_rows_as_they_are() -> None:
    whole = InMemory(rows())
    for batch in StreamedBatches(RowsOfStream(streamed(), NAMES), 8, 40):
        own = whole.batch(torch.tensor(numbers([batch])))
        assert torch.equal(batch.observed_mask, own.observed_mask)
        assert all(torch.equal(batch.inputs[name], own.inputs[name]) for name in NAMES)


def test_what_is_held_out_goes_by_the_ids_and_is_never_trained_on() -> None:
    found = []
    for size in (17, 60):
        chosen = RowsOfStream(streamed(size), NAMES, share=0.25)
        held_out = set(chosen.held_out().ids.tolist())
        trained = {f"row {n}" for n in numbers(StreamedBatches(chosen, 8, 40))}
        assert not held_out & trained
        assert len(held_out | trained) == 160
        found.append(held_out)
    assert found[0] == found[1]
    assert 20 <= len(found[0]) <= 60  # 40 expected, 5.5 a standard deviation


def test_statistics_are_those_of_the_rows_in_memory() -> None:
    module = make_module().double()
    chosen = RowsOfStream(streamed(), NAMES)
    whole = gather_statistics(module, [InMemory(rows()).batch(torch.arange(160))])
    parts = [gather_statistics(module, StreamedBatches(chosen, 32, place=(0, 0, rank, 2))) for rank in range(2)]
    both = parts[0].merge(parts[1])
    shift = dict(zip(whole.dims, whole.shift.split(list(whole.dims.values())), strict=True))
    for present, scatter in both.shifted(shift).scatters.items():  # sums of 160 rows of size 1: 1e-10 leaves 4 digits
        torch.testing.assert_close(scatter, whole.scatters[present], rtol=1e-10, atol=1e-10)


def test_encoders_are_trained_from_a_stream_and_a_checkpoint_goes_on(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"latent_dim": 4, "batch_size": 16, "buffer_rows": 40, "warmup_epochs": 1}

    def run(**options: Any) -> Alignment:
        return align(
            streamed(), encoders(), OBJECTIVES["pairwise"](), "imputed_draw", validation=0.25, **settings, **options
        )

    whole = run(max_epochs=3)
    assert whole.history["loss"].iloc[-1] < whole.history["loss"].iloc[0]
    assert whole.history["validation_recall"].notna().all()
    run(max_epochs=2, folder=tmp_path)
    resumed = run(max_epochs=3, resume=tmp_path / "checkpoints/last.ckpt")
    assert resumed.history["loss"].tolist() == whole.history["loss"].tolist()


_PROCESS = """
import sys, torch
from tests.cases.training_cases import encoders
from tests.training.test_streamed import streamed
from calmrl_prob.alignment.objectives import OBJECTIVES
from calmrl_prob.training import Alignment, align
found = align(streamed(), encoders(), OBJECTIVES["pairwise"](), "imputed_mean", latent_dim=4, max_epochs=2,
              batch_size=16, buffer_rows=40, validation=0.2, trainer_options={"devices": 2, "strategy": "ddp"})
parts = [value.flatten() for value in found.module.encoders.parameters()]
torch.save(torch.cat(parts), f"{sys.argv[1]}-{found.module.global_rank}")
"""


@pytest.mark.slow
def test_two_processes_of_uneven_shares_end_with_the_same_encoders(tmp_path: Path) -> None:
    script, out = tmp_path / "process.py", tmp_path / "weights"
    script.write_text(_PROCESS)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--standalone",
        str(script),
        str(out),
    ]
    done = subprocess.run(launch, capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode == 0, done.stderr
    one, two = (torch.load(f"{out}-{rank}", weights_only=True) for rank in range(2))
    assert torch.equal(one, two)  # the same gradients, averaged, from the same start


def test_what_cannot_be_is_refused() -> None:
    objective = OBJECTIVES["pairwise"]()
    with pytest.raises(ArgumentError, match=r"validation: a share, 0.1, is of a stream"):
        align(data(), encoders(), objective, validation=0.1)
    with pytest.raises(ArgumentError, match=r"validation: expected a share of the rows in \[0, 1\), got 1.5"):
        align(streamed(), encoders(), objective, validation=1.5)
    with pytest.raises(DataError, match="validation: no row of the stream is among the 1e-09 held out"):
        align(streamed(), encoders(), objective, validation=1e-9)
    few = MultimodalStream.from_chunks(lambda: [rows().select(["image", "text"])])
    with pytest.raises(SchemaError, match=r"data: its modalities are \['image', 'text'\]"):
        align(few, encoders(), objective)
    incomplete = MultimodalStream.from_chunks(lambda: [rows().select(["image", "text"]).conform(DIMS)])
    with pytest.raises(DataError, match="a process has no row to begin the epoch with"):
        align(incomplete, encoders(), objective, max_epochs=1, warmup_epochs=1)
