"""Objectives on a batch that is spread over processes."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn

from calmrl_prob.alignment.gather import gather_views
from calmrl_prob.alignment.objectives import (
    PMRL,
    AnchorContrast,
    Anchored,
    Combined,
    Gram,
    Matching,
    Objective,
    Pairwise,
    Reconstruction,
    Triangle,
)
from calmrl_prob.alignment.views import Views

COUNTS = (5, 3)  # rows of each process: last batches differ


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Inputs (N, M, F), which are present, and anchors (N, D)."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(sum(COUNTS), 4, 6, generator=generator, dtype=torch.float64)
    observed = torch.rand(sum(COUNTS), 4, generator=generator) < 0.7
    return inputs, observed, torch.randn(sum(COUNTS), 5, generator=generator, dtype=torch.float64)


def objectives() -> dict[str, Objective]:
    return {
        "pmrl": PMRL(learnable=True).double(),
        "gram": Gram().double(),
        "triangle": Triangle().double(),
        "pairwise": Pairwise(learnable=True).double(),
        "anchored": Anchored(2).double(),
        "anchor": AnchorContrast().double(),
        "matching": Matching().double(),
        "combined": Combined({"a": Pairwise(), "b": Matching()}, {"a": 1.0, "b": 0.1}).double(),
    }


def outcomes(rows: slice) -> dict[str, list[Tensor]]:
    """For each objective its loss, and the gradients of an encoder and of its own parameters."""
    inputs, observed, anchors = (part[rows] for part in batch())
    found = {}
    losses: dict[str, nn.Module] = {**objectives(), "reconstruction": Reconstruction()}
    for name, objective in losses.items():
        torch.manual_seed(0)
        encoder = nn.Linear(6, 5).double()
        decoder = nn.Linear(5, 6).double()
        encoded = nn.functional.normalize(encoder(inputs), dim=-1)
        if isinstance(objective, Objective):
            views = Views.observed(encoded, observed)
            given = Views(views.values, views.weights, observed, anchors)
            loss = objective(given if name == "anchor" else views)
        else:
            decoded = decoder(encoded)
            names = range(4)
            loss = objective({str(m): decoded[:, m] for m in names}, {str(m): inputs[:, m] for m in names}, observed)
        loss.backward()
        parameters = [*encoder.parameters(), *objective.parameters()]
        found[name] = [loss.detach(), *(parameter.grad for parameter in parameters if parameter.grad is not None)]
    return found


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", len(COUNTS))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=len(COUNTS), timeout=timedelta(seconds=60))
    try:
        start = sum(COUNTS[:rank])
        found = outcomes(slice(start, start + COUNTS[rank]))
        for tensors in found.values():
            for gradient in tensors[1:]:  # the mean that DistributedDataParallel takes
                dist.all_reduce(gradient)
                gradient /= len(COUNTS)
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_are_as_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=len(COUNTS))
    expected = outcomes(slice(None))
    for rank in range(len(COUNTS)):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert set(found) == set(expected)
        for name, tensors in expected.items():
            assert len(found[name]) == len(tensors) >= 3
            assert all(bool((tensor != 0).any()) for tensor in tensors)
            torch.testing.assert_close(found[name], tensors, rtol=1e-10, atol=1e-12)


def test_one_process_makes_no_calls(tmp_path: Path) -> None:
    inputs, observed, _ = batch()
    views = Views.observed(inputs, observed)
    assert gather_views(views) is views
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        assert gather_views(views) is views
    finally:
        dist.destroy_process_group()
