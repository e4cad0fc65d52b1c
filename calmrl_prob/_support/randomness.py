"""Pyro draws from torch's global generators; here they are set for a while, and then put back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from calmrl_prob._support.arguments import checked_seed
from calmrl_prob._support.global_state import exclusive


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Within, torch draws the stream that ``seed`` names; after, it goes on as if nothing had been drawn.

    The generators are one for all threads: another that wants to set them waits until the block ends.

    Args:
        seed: of the processor's generator and, if ``device`` is a GPU, of that GPU's.
        device: where draws are made.

    Raises:
        ArgumentError: the seed is negative or too large.
        ArgumentTypeError: it is not a whole number.

    Example:
        >>> with seeded(3):
        ...     first = torch.rand(2)
        >>> with seeded(3):
        ...     torch.equal(torch.rand(2), first)
        True
    """
    seed, device = checked_seed(seed), torch.device(device)
    devices = [device] if device.type == "cuda" else []
    with exclusive(), torch.random.fork_rng(devices=devices):
        # not torch.manual_seed: where there is no GPU, it notes each call for the day that one appears
        torch.default_generator.manual_seed(seed)
        for each in devices:
            with torch.cuda.device(each):
                torch.cuda.manual_seed(seed)
        yield


def spread_seeds(seed: int, count: int) -> list[int]:
    """Seeds of several streams that have nothing to do with each other.

    Example:
        >>> len(set(spread_seeds(0, 4) + spread_seeds(1, 4)))
        8
    """
    words = np.random.SeedSequence(checked_seed(seed)).generate_state(count, np.uint64)
    return [int(word >> np.uint64(1)) for word in words]
