"""Step 1 of calibrated alignment: the encoders stand still, and the generative model is fitted to what they give.

One pass over the training rows gathers the sufficient statistics of the current representations, over all processes;
closed-form EM goes on from the parameters of last time, at a cost that does not grow with the rows.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any

import lightning
import torch
import torch.distributed as distributed

from calmrl_prob._arguments import real_number, whole_number
from calmrl_prob.errors import ArgumentError, DataError
from calmrl_prob.linear_gaussian import LinearGaussian, ObservedBlocks, SufficientStatistics, fit_em
from calmrl_prob.training.batches import Batch
from calmrl_prob.training.module import AlignmentModule

logger = logging.getLogger(__name__)


class GenerativeStep(lightning.Callback):
    """Fits the generative model of an ``AlignmentModule`` before epochs begin.

    Args:
        batches: passes over the training rows, in any order, each process its part.
        latent_dim: K; below the width of all representations together.
        first_epoch: before which it is first fitted.
        period: epochs from one fit to the next.
        max_iterations: of EM at each fit, which goes on from the last one; the first has four times as many.
        noise, noise_pseudo_count, pseudo_rows: as in ``calmrl_prob.linear_gaussian.fit_em``.
        seed: of the first fit's spectral start.

    Attributes:
        seconds: spent here so far.

    Raises:
        ArgumentError: an argument is out of range.
    """

    def __init__(
        self,
        batches: Iterable[Batch],
        latent_dim: int,
        *,
        first_epoch: int = 0,
        period: int = 1,
        max_iterations: int = 5,
        noise: str = "isotropic",
        noise_pseudo_count: float = 0.0,
        pseudo_rows: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.batches, self.latent_dim = batches, whole_number("latent_dim", latent_dim, least=1)
        self.first_epoch = whole_number("first_epoch", first_epoch)
        self.period = whole_number("period", period, least=1)
        self.max_iterations = whole_number("max_iterations", max_iterations, least=1)
        for argument, value in (("noise_pseudo_count", noise_pseudo_count), ("pseudo_rows", pseudo_rows)):
            if real_number(argument, value, 0.0) < 0:
                raise ArgumentError(f"{argument}: expected at least 0, got {value!r}.")
        self.options: dict[str, Any] = {
            "noise": noise,
            "noise_pseudo_count": noise_pseudo_count,
            "pseudo_rows": pseudo_rows,
            "seed": seed,
        }
        self.seconds = 0.0

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Fit, if this epoch's turn has come."""
        epoch = trainer.current_epoch
        if not isinstance(pl_module, AlignmentModule) or epoch < self.first_epoch:
            return
        if (epoch - self.first_epoch) % self.period and pl_module.generative is not None:
            return
        started = time.perf_counter()
        statistics = all_reduced(gather_statistics(pl_module, self.batches))
        pl_module.generative = self.fit(statistics, pl_module.generative)
        self.seconds += time.perf_counter() - started

    def fit(self, statistics: SufficientStatistics, start: LinearGaussian | None) -> LinearGaussian:
        """EM from where it ended last time.

        Raises:
            DataError: a modality has no row in the whole epoch.
        """
        seen = [any(column) for column in zip(*statistics.scatters, strict=True)]
        absent = [name for name, here in zip(statistics.names, seen, strict=True) if not here]
        if absent:
            raise DataError(
                f"data: no training row has the modality {absent[0]!r}, so nothing can be learned of it; leave out its "
                "encoder."
            )
        most = self.max_iterations if start is not None else 4 * self.max_iterations
        result = fit_em(statistics, self.latent_dim, start=start, max_iterations=most, tolerance=1e-4, **self.options)
        logger.info("EM: %d iterations, %.4g nats", result.num_iterations, float(result.log_likelihood[-1]))
        return result.linear_gaussian


@torch.no_grad()
def gather_statistics(module: AlignmentModule, batches: Iterable[Batch]) -> SufficientStatistics:
    """Sufficient statistics of the representations of all batches, with the encoders as they are in evaluation."""
    training = module.training
    module.eval()
    statistics: SufficientStatistics | None = None
    try:
        for batch in batches:
            representations = module.encode(batch.to(module.device))
            mask = batch.observed_mask.to(module.device)
            arrays = {name: representations[:, m] for m, name in enumerate(module.names)}
            blocks = ObservedBlocks.from_arrays(arrays, mask)
            if statistics is None:
                statistics = SufficientStatistics(blocks.dims)
            statistics.update(blocks)
    finally:
        module.train(training)
    if statistics is None:
        raise DataError("data: there is no training row; pass at least two.")
    return statistics


def all_reduced(statistics: SufficientStatistics) -> SufficientStatistics:
    """The statistics of all processes together, the same in each; alone, those given.

    The scatters are taken about one shift, that of the first process, and added pattern by pattern.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return statistics
    shift = statistics.shift.clone()
    distributed.broadcast(shift, src=0)
    parts = dict(zip(statistics.names, shift.split(list(statistics.dims.values())), strict=True))
    own = statistics.shifted(parts)
    total = SufficientStatistics(statistics.dims, parts)
    for present in _patterns_anywhere(own, shift.device):
        width = sum(size for size, here in zip(own.dims.values(), present, strict=True) if here) + 1
        scatter = own.scatters.get(present, shift.new_zeros(width, width)).contiguous()
        distributed.all_reduce(scatter)
        total.scatters[present] = scatter
    return total


def _patterns_anywhere(statistics: SufficientStatistics, device: torch.device) -> list[tuple[bool, ...]]:
    """The missing patterns that any process has met, in one order for all."""
    known = torch.zeros(2 ** len(statistics.names), dtype=torch.int32, device=device)
    for present in statistics.scatters:
        known[sum(2**m for m, here in enumerate(present) if here)] = 1
    distributed.all_reduce(known)
    codes = known.nonzero().flatten().tolist()
    return [tuple(bool(code >> m & 1) for m in range(len(statistics.names))) for code in codes]
