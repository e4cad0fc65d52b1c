"""Step 1 of calibrated alignment: the encoders stand still, and the generative model is fitted to what they give.

One pass over the training rows gathers the sufficient statistics of the current representations, over all processes;
closed-form EM goes on from the parameters of last time, at a cost that does not grow with the rows. Or online: the
statistics are gathered of the training batches as they go by, older ones forgotten by and by, with no pass of its own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any

import lightning
import torch
import torch.distributed as distributed
from torch import Tensor

from calmrl_prob._support.arguments import whole_number
from calmrl_prob.errors import DataError
from calmrl_prob.linear_gaussian import LinearGaussian, ObservedBlocks, SufficientStatistics, fit_em
from calmrl_prob.training.batches import Batch
from calmrl_prob.training.module import AlignmentModule, is_distributed, require_all_modalities
from calmrl_prob.training.options import GenerativeOptions

logger = logging.getLogger(__name__)

#: Rows that wait until they are added to online statistics together.
_ROWS_AT_ONCE = 4096


class GenerativeStep(lightning.Callback):
    """Fits the generative model of an ``AlignmentModule``, every so many epochs or steps.

    Args:
        batches: passes over the training rows, in any order, each process its part.
        latent_dim: K; below the width of all representations together.
        options: when it is fitted, and how.
        **settings: single ones of these options, by keyword.

    Attributes:
        seconds: spent here so far.
        statistics: gathered online so far; None if there are none.

    Raises:
        ArgumentError: an argument is out of range, or there is no such option.
        ArgumentTypeError: an argument is of another type.
    """

    def __init__(
        self,
        batches: Iterable[Batch],
        latent_dim: int,
        options: GenerativeOptions | None = None,
        **settings: Any,
    ) -> None:
        self.batches, self.latent_dim = batches, whole_number("latent_dim", latent_dim, least=1)
        self.options = GenerativeOptions.of(options, settings, "GenerativeStep")
        self.seconds = 0.0
        self.statistics: SufficientStatistics | None = None
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._steps_since = 0

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Fit, if this epoch's turn has come."""
        epoch = trainer.current_epoch - self.options.first_epoch
        if self.options.period_steps is not None or not isinstance(pl_module, AlignmentModule) or epoch < 0:
            return
        if epoch % self.options.period == 0 or pl_module.generative is None:
            self._step(pl_module)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Fit, if this step's turn has come."""
        del batch, batch_idx
        if self.options.period_steps is not None and isinstance(pl_module, AlignmentModule):
            first = pl_module.generative is None and self.options.decay is None
            if trainer.current_epoch >= self.options.first_epoch and (
                first or self._steps_since >= self.options.period_steps
            ):
                self._step(pl_module)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,  # noqa: ANN401 - what Lightning passes
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Count the step; and keep what it computed, for the online form."""
        del trainer, outputs, batch_idx
        self._steps_since += 1
        if self.options.decay is not None and isinstance(pl_module, AlignmentModule):
            assert pl_module.representations is not None
            self._waiting.append((pl_module.representations, batch.observed_mask))
            if sum(len(mask) for _, mask in self._waiting) >= _ROWS_AT_ONCE:
                self._gather(pl_module)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Nothing waits from one epoch to the next, so that a run that resumes adds up in the same order."""
        if isinstance(pl_module, AlignmentModule):
            self._gather(pl_module)

    def _step(self, module: AlignmentModule) -> None:
        self._gather(module)
        started = time.perf_counter()
        if self.options.decay is None:
            module.generative = self.fit(all_reduced(gather_statistics(module, self.batches)), module.generative)
            self._steps_since = 0
        else:
            total = None if self.statistics is None else all_reduced(self.statistics)
            if total is not None and all(_seen(total).values()):  # else it waits until every modality has gone by
                module.generative = self.fit(total, module.generative)
                assert self.statistics is not None
                self.statistics = self.statistics.scaled(self.options.decay) if self.options.decay else None
                self._steps_since = 0
        self.seconds += time.perf_counter() - started

    def _gather(self, module: AlignmentModule) -> None:
        """Add what waits: many rows at once, since a product costs its size in memory however few the rows."""
        if self._waiting:
            started = time.perf_counter()
            representations, masks = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
            self._waiting.clear()
            wide = representations.to(torch.promote_types(representations.dtype, torch.float32))
            self.statistics = _updated(self.statistics, module.names, wide, masks)
            self.seconds += time.perf_counter() - started

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        kept = None if self.statistics is None else self.statistics.to_tensors()
        return {"steps_since": self._steps_since, "statistics": kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint."""
        self._steps_since, kept = int(state_dict["steps_since"]), state_dict["statistics"]
        self.statistics = None if kept is None else SufficientStatistics.from_tensors(kept)

    def is_of(self, names: Sequence[str]) -> bool:
        """Whether what was added up so far, if anything, is of these modalities."""
        return self.statistics is None or list(self.statistics.dims) == list(names)

    def fit(self, statistics: SufficientStatistics, start: LinearGaussian | None) -> LinearGaussian:
        """EM from where it ended last time.

        Raises:
            DataError: a modality has no row in the whole epoch.
        """
        require_all_modalities(_seen(statistics))
        options = self.options
        result = fit_em(
            statistics,
            self.latent_dim,
            start=start,
            max_iterations=options.max_iterations if start is not None else 4 * options.max_iterations,
            tolerance=1e-4,
            noise=options.noise,
            noise_pseudo_count=options.noise_pseudo_count,
            pseudo_rows=options.pseudo_rows,
            seed=options.seed,
        )
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
            statistics = _updated(statistics, module.names, representations, mask)
    finally:
        module.train(training)
    if statistics is None:
        raise DataError("data: there is no training row; pass at least two.")
    return statistics


def _updated(
    statistics: SufficientStatistics | None, names: Sequence[str], representations: Tensor, observed_mask: Tensor
) -> SufficientStatistics:
    arrays = {name: representations[:, m] for m, name in enumerate(names)}
    blocks = ObservedBlocks.from_arrays(arrays, observed_mask)
    return (SufficientStatistics(blocks.dims) if statistics is None else statistics).update(blocks)


def _seen(statistics: SufficientStatistics) -> dict[str, bool]:
    """For each modality whether any row has it."""
    return {name: any(present[m] for present in statistics.scatters) for m, name in enumerate(statistics.names)}


def all_reduced(statistics: SufficientStatistics) -> SufficientStatistics:
    """The statistics of all processes together, the same in each; alone, those given.

    The scatters are taken about one shift, that of the first process, and added pattern by pattern.
    """
    if not is_distributed():
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
