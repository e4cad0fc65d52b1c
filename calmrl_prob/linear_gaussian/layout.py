"""Instances laid out pattern by pattern, so that all K x K algebra is batched and none is repeated per row.

Patterns of similar count share a bucket: a (patterns, capacity, K) array, padded with zero rows, on which one batched
product serves them all. A bucket takes in further patterns for as long as the arithmetic wasted on padding costs less
than another round of calls would. Buckets are also cut so that their (patterns, K, K) arrays stay within a memory
budget: with thousands of patterns and hundreds of latents the covariances of all patterns would not fit at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Padding rows times K^2 that a bucket may hold: about the arithmetic done in the time of one more round of calls.
_PADDING_BUDGET = 2**18
#: Numbers (not bytes) that the K x K arrays of one bucket may hold.
_BUCKET_BUDGET = 2**23


@dataclass(frozen=True)
class Bucket:
    """Patterns of nearly equal count.

    Attributes:
        patterns: (B,) int64, which patterns.
        start, stop: the slots they fill; ``stop - start = B * capacity``.
        capacity: rows reserved for each pattern.
        filled: (B, capacity, 1) float64, 1 where a row stands and 0 at the padding.
    """

    patterns: Tensor
    start: int
    stop: int
    capacity: int
    filled: Tensor


class PatternLayout:
    """Layout of instances by missing pattern: the place of each.

    Attributes:
        buckets: the groups of patterns, smallest counts first.
        slot: (N,) int64, the place of each instance in the padded arrays.
        num_slots: T.
    """

    buckets: list[Bucket]
    slot: Tensor
    num_slots: int

    def __init__(self, pattern_index: Tensor, pattern_counts: Tensor, latent_dim: int) -> None:
        if len(pattern_counts) == 1:  # nothing to sort or pad, as where rows come one by one
            number, filled = len(pattern_index), pattern_counts.new_ones(1, len(pattern_index), 1).double()
            self.buckets = [Bucket(pattern_counts.new_zeros(1), 0, number, number, filled)]
            self.slot, self.num_slots = torch.arange(number, device=pattern_index.device), number
            return
        counts, order = torch.sort(pattern_counts)
        counts_list = counts.tolist()
        most = max(1, _BUCKET_BUDGET // latent_dim**2)
        self.buckets = []
        first_slot = torch.empty_like(pattern_counts)
        begin, slots = 0, 0
        while begin < len(counts_list):
            end, padding = begin + 1, 0
            while end < len(counts_list) and end - begin < most:
                padding += (counts_list[end] - counts_list[end - 1]) * (end - begin)
                if padding * latent_dim**2 > _PADDING_BUDGET:
                    break
                end += 1
            capacity = counts_list[end - 1]
            patterns = order[begin:end]
            stop = slots + (end - begin) * capacity
            first_slot[patterns] = torch.arange(slots, stop, max(capacity, 1), device=order.device)[: end - begin]
            filled = torch.arange(capacity, device=order.device) < counts[begin:end, None]
            self.buckets.append(Bucket(patterns, slots, stop, capacity, filled.double().unsqueeze(-1)))
            begin, slots = end, stop
        self.num_slots = slots
        by_pattern = torch.argsort(pattern_index, stable=True)
        starts = torch.cumsum(pattern_counts, 0) - pattern_counts
        place = torch.arange(len(pattern_index), device=pattern_index.device)
        self.slot = torch.empty_like(pattern_index)
        self.slot[by_pattern] = (first_slot - starts)[pattern_index[by_pattern]] + place
