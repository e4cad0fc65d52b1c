"""The explicit cost model that chooses the form of the E-step.

All forms do the same arithmetic on different operands. With T iterations to expect, in multiply-adds:

    by modality     T (2 sum_m n_m D_m K + 2 N K^2 + 5 M C)
    by pattern      T (2 sum_m n_m D_m K + 2 N K^2 + 6 P C)
    statistics      S sum_p n_p D_p^2 + T (sum_p (D_p^2 K + 2 D_p K^2) + 20 P C)

where C is the cost of a small call in multiply-adds (a form takes 5, 6 or 20 of them for each modality or pattern) and
S the price of a multiply-add in the symmetric product of the pass against one in a tall, narrow product. K^3 terms are
the same in all and left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian.blocks import ObservedBlocks

#: Iterations to expect of a fit by EM.
EM_ITERATIONS = 40
#: Price of a multiply-add in X^T X against one in X A: measured 0.15 to 0.3 on CPUs.
_SYMMETRIC = 0.25
#: Multiply-adds that could be done in the time of one small call.
_CALL = {"cpu": 5e4, "cuda": 2e7}


def form_costs(blocks: ObservedBlocks, latent_dim: int, iterations: int = EM_ITERATIONS) -> dict[str, float]:
    """Multiply-adds, calls counted in, that a fit by each form would take.

    Args:
        blocks: the data.
        latent_dim: K.
        iterations: T, how often the form will be used.

    Example:
        >>> import torch
        >>> from calmrl_prob.linear_gaussian import ObservedBlocks
        >>> tall = ObservedBlocks.from_arrays({"x": torch.rand(50000, 8)}, torch.ones(50000, 1, dtype=torch.bool))
        >>> costs = form_costs(tall, latent_dim=4)
        >>> min(costs, key=costs.get)
        'statistics'
    """
    widths = torch.tensor(list(blocks.dims.values()), dtype=torch.float64)
    counts: Tensor = blocks.pattern_counts.double().cpu()
    pattern_widths = blocks.patterns.double().cpu() @ widths
    rows = 2 * latent_dim * float(counts @ pattern_widths) + 2 * blocks.num_instances * latent_dim**2
    scatters = latent_dim * float(pattern_widths.square().sum()) + 2 * latent_dim**2 * float(pattern_widths.sum())
    gather = _SYMMETRIC * float(counts @ pattern_widths.square())
    call = _CALL.get(blocks.device.type, _CALL["cuda"])
    patterns = blocks.num_patterns
    return {
        "modality": iterations * (rows + 5 * len(widths) * call),
        "pattern": iterations * (rows + 6 * patterns * call),
        "statistics": gather + iterations * (scatters + 20 * patterns * call),
    }


def choose_form(
    blocks: ObservedBlocks,
    latent_dim: int,
    iterations: int = EM_ITERATIONS,
    forms: Sequence[str] = ("modality", "pattern", "statistics"),
) -> str:
    """The cheapest of some forms."""
    costs = form_costs(blocks, latent_dim, iterations)
    return min(forms, key=lambda form: costs[form])
