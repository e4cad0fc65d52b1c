"""Random instances that the tests of anchors, of their bounds and of certificates share."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def random_views(
    num_instances: int, num_modalities: int, width: int, seed: int = 0, *, together: float = 1.0
) -> Tensor:
    """Unit vectors (B, M, D) about a direction of each instance; the larger ``together``, the closer."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(num_instances, 1, width, generator=generator, dtype=torch.float64)
    own = torch.randn(num_instances, num_modalities, width, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(together * common + own, dim=-1)


def random_instances(seed: int, count: int = 40, size: int = 100) -> Iterator[tuple[Tensor, Tensor]]:
    """``count`` batches of ``size`` complete instances, M of 2 .. 6, D of M .. 32, and masks that lack something."""
    generator = torch.Generator().manual_seed(seed)
    for batch in range(count):
        modalities = int(torch.randint(2, 7, (), generator=generator))
        width = int(torch.randint(modalities, 33, (), generator=generator))
        together = float(2.5 * torch.rand((), generator=generator))
        mask = torch.rand(size, modalities, generator=generator) < 0.5
        mask[torch.arange(size), torch.randint(modalities, (size,), generator=generator)] = True
        mask[torch.arange(size), torch.randint(modalities, (size,), generator=generator)] = False
        mask[~mask.any(1), 0] = True
        complete = mask.all(1)
        mask[complete, 0] = False
        yield random_views(size, modalities, width, seed * 1000 + batch, together=together), mask
