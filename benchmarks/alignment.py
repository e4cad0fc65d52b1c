"""Cost of calibration: a training step with it against one without, and step 1's share of an epoch.

Four modalities of 256 features, MLP encoders of 1,024 hidden units to D = 256, batches of 512, a third of the cells
missing, K = 32, float32. CPU seconds, medians of alternating steps of one run.
"""

from __future__ import annotations

import statistics
import time

import torch

from calmrl_prob.alignment.calibration import CALIBRATIONS
from calmrl_prob.alignment.objectives import make_objective
from calmrl_prob.datasets import make_synthetic
from calmrl_prob.encoders import build_encoders
from calmrl_prob.training import AlignmentModule, GenerativeStep, align
from calmrl_prob.training.batches import EpochSampler, InMemory, batch_loader
from calmrl_prob.training.generative_step import gather_statistics

_BATCH, _WIDTH, _LATENT = 512, 256, 32


def measure(rounds: int = 15, num_instances: int = 8192) -> list[dict[str, object]]:
    """One row for each calibration."""
    synthetic = make_synthetic(num_instances, {f"m{i}": 256 for i in range(4)}, _LATENT, missing_rate=0.33, seed=0)
    data = synthetic.data.to(torch.float32)
    dataset = InMemory(data)
    batch = dataset.__getitems__(range(_BATCH))
    objective = make_objective("pairwise")
    encoders = build_encoders("mlp", data.dims, _WIDTH, hidden=(1024,))
    modules = {name: AlignmentModule(encoders, objective, kind()) for name, kind in CALIBRATIONS.items()}
    rows = batch_loader(dataset, tuple(data.dims), EpochSampler(range(len(data)), shuffle=False), 1024)
    model = GenerativeStep([], _LATENT).fit(gather_statistics(modules["none"], rows), None)
    times: dict[str, list[float]] = {name: [] for name in modules}
    for module in modules.values():
        module.generative = model
    optimizer = torch.optim.AdamW(encoders.parameters())
    for _ in range(rounds):
        for name, module in modules.items():
            start = time.process_time()
            views = module.calibration(
                module.encode(batch), batch.observed_mask, model, torch.Generator().manual_seed(0)
            )
            optimizer.zero_grad()
            torch.stack([objective(view) for view in views]).mean().backward()
            optimizer.step()
            times[name].append(time.process_time() - start)
    bare = statistics.median(times["none"])
    shares: dict[tuple[str, str], float] = {}
    for name in ("imputed_mean", "imputed_draw"):
        for form, options in (("by a pass", {}), ("online", {"decay": 0.5})):
            found = align(
                data, encoders, objective, name, latent_dim=_LATENT, max_epochs=3, batch_size=_BATCH, em_options=options
            )
            shares[name, form] = float(found.history["em_seconds"].sum() / found.history["seconds"].sum())
    return [
        {
            "calibration": name,
            "CPU ms a step": 1e3 * statistics.median(found),
            "against none": statistics.median(found) / bare,
            "step 1, share of the first 3 epochs": shares.get((name, "by a pass"), float("nan")),
            "the same online": shares.get((name, "online"), float("nan")),
        }
        for name, found in times.items()
    ]
