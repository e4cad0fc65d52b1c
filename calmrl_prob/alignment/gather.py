"""The views of one batch that is spread over processes, as if it were in one."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from calmrl_prob.alignment.views import Views


class _Gather(torch.autograd.Function):
    """Rows of all processes in the order of their ranks; the gradient of a row is summed over the processes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:  # noqa: ANN401 - autograd's context has no public type
        size = torch.tensor([len(rows)], device=rows.device)
        sizes = [torch.empty_like(size) for _ in range(dist.get_world_size())]
        dist.all_gather(sizes, size)
        counts = [int(count) for count in sizes]
        padded = rows.new_zeros(max(counts), rows.shape[1])  # collectives want one shape; last batches differ
        padded[: len(rows)] = rows
        received = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(received, padded)
        ctx.start, ctx.count = sum(counts[: dist.get_rank()]), len(rows)
        return torch.cat([part[:count] for part, count in zip(received, counts, strict=True)])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:  # noqa: ANN401
        total = slopes[0].contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.start : ctx.start + ctx.count]


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all processes, in the order of their ranks; the rows themselves where there is one process.

    Every process must call it, and go backward through it, equally often. A loss that all processes compute from the
    gathered rows has, after the mean over processes that ``DistributedDataParallel`` takes, the gradient of the loss of
    one process with all rows.

    Args:
        rows: (B, F); B may differ between processes, F may not.

    Example:
        >>> gather_rows(torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """
    if not _spread():
        return rows
    gathered: Tensor = _Gather.apply(rows)  # type: ignore[no-untyped-call]
    return gathered


def gather_views(views: Views) -> Views:
    """The views of all processes as one batch; ``views`` itself where there is one process.

    Example:
        >>> views = Views.observed(torch.ones(2, 3, 4), torch.ones(2, 3).bool())
        >>> gather_views(views) is views
        True
    """
    if not _spread():
        return views
    instances, modalities, width = views.shape
    parts = [views.values.reshape(instances, modalities * width), views.weights, views.observed_mask.to(views.values)]
    if views.anchors is not None:
        parts.append(views.anchors)
    widths = [part.shape[1] for part in parts]
    values, weights, observed, *anchors = gather_rows(torch.cat(parts, dim=1)).split(widths, dim=1)  # one collective
    return Views(values.reshape(-1, modalities, width), weights, observed > 0.5, anchors[0] if anchors else None)


def _spread() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
