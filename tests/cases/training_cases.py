"""Small data, encoders and runs that the tests of training share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from calmrl_prob.alignment.calibration import CALIBRATIONS
from calmrl_prob.alignment.objectives import OBJECTIVES
from calmrl_prob.data import MultimodalData
from calmrl_prob.encoders import build_encoders
from calmrl_prob.training import Alignment, AlignmentModule, align

DIMS = {"image": 12, "text": 10, "audio": 8}


def data(number: int = 160, seed: int = 0) -> MultimodalData:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(number, 5, generator=generator)
    fixed = torch.Generator().manual_seed(7)
    x = {name: z @ torch.randn(5, width, generator=fixed) for name, width in DIMS.items()}
    x = {name: part + 0.3 * torch.randn(part.shape, generator=generator) for name, part in x.items()}
    mask = torch.rand(number, 3, generator=generator) < 0.6
    mask[torch.arange(number), torch.randint(3, (number,), generator=generator)] = True
    mask[:20] = True
    return MultimodalData(x, observed_mask=mask)


def encoders(seed: int = 0, dropout: float = 0.0) -> nn.ModuleDict:
    return build_encoders("mlp", DIMS, 6, seed=seed, hidden=(16,), dropout=dropout)


def run(calibration: str = "imputed_draw", **options: Any) -> Alignment:
    settings: dict[str, Any] = {"latent_dim": 4, "max_epochs": 4, "batch_size": 32} | options
    dropout = settings.pop("dropout", 0.0)
    return align(data(), encoders(dropout=dropout), OBJECTIVES["pairwise"](), calibration, **settings)


def weights(found: Alignment) -> Tensor:
    return torch.cat([value.flatten() for value in found.module.state_dict().values()])


def make_module(**options: Any) -> AlignmentModule:
    return AlignmentModule(encoders(), OBJECTIVES["pairwise"](), CALIBRATIONS["none"](), **options)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
