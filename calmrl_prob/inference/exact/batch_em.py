"""Fitting a model whose instances come in batches: the method "em" of ``calmrl_prob.fit`` for it.

Rounds of two exact steps: EM of the model on rows whose batches' shifts and scales were taken off, from where the last
round ended; and the best shifts and scales given the model. What is maximised never falls.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from calmrl_prob._support.progress import Callback
from calmrl_prob._support.warnings import warn_unreliable
from calmrl_prob.batch_effects import PARTIAL, BatchEffects
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError
from calmrl_prob.inference.exact.em import run_em
from calmrl_prob.inference.exact.preparation import checked_blocks
from calmrl_prob.linear_gaussian import (
    BatchMoves,
    EMResult,
    LinearGaussian,
    ObservedBlocks,
    SufficientStatistics,
    Trace,
    improved_moves,
    start_moves,
)

#: Rounds at most, and the gain of one, in tolerances of EM, that is the last: what EM itself leaves undone is as much.
_ROUNDS, _LAST_GAIN = 30, 2.0


def run_batch_em(
    model: Any,  # noqa: ANN401 - a Fittable
    effects: BatchEffects,
    data: MultimodalData | SufficientStatistics,
    seed: int,
    callback: Callback | None,
    **options: Any,
) -> EMResult[LinearGaussian]:
    """Fit a model and the effects of its batches in place.

    Args:
        model: as :func:`~calmrl_prob.inference.exact.em.run_em` takes it.
        effects: of its batches; they are learned anew.
        data: N instances, with the column that tells their batches.
        seed: as of that.
        callback: as of that.
        **options: as of that.

    Raises:
        ArgumentError: the data are statistics, or lack single features; or what ``run_em`` refuses.
        DataError: an instance has no batch, or the data lack the column.

    Warns:
        ReliabilityWarning: a batch never has some modality.
    """
    blocks = checked_blocks(model, data)
    if not isinstance(data, MultimodalData) or not isinstance(blocks, ObservedBlocks):
        raise ArgumentError(PARTIAL)
    names, index = effects.learn_index(data.conform(model.dims))
    scaled = effects.scale
    moves = start_moves(blocks, index, len(names), scaled=scaled)
    warn_of_absent(names, moves)
    found, trace = _round(model, moves, blocks, index, seed, callback, options)
    for _ in range(_ROUNDS):
        lg = found.linear_gaussian
        further, start = improved_moves(moves, lg, blocks, index, scaled=scaled)
        again = {**options, "start": start}
        better, course = _round(model, further, blocks, index, seed, callback, again)
        gain = float(course.objective[-1] - trace.objective[-1]) / _num_values(blocks)
        if gain <= 0:  # rounding, or a prior of the parameters that is set by the rows themselves
            model.load_linear_gaussian(lg)
            break
        moves, found, trace = further, better, trace.then(course)
        if gain <= _LAST_GAIN * trace.tolerance:
            break
    else:
        trace = replace(trace, converged=False, stop_reason="max_iterations")
    effects.load(names, moves, next(model.parameters()).dtype)
    return replace(found, trace=trace)


def _round(
    model: Any,  # noqa: ANN401
    moves: BatchMoves,
    blocks: ObservedBlocks,
    index: torch.Tensor,
    seed: int,
    callback: Callback | None,
    options: dict[str, Any],
) -> tuple[EMResult[LinearGaussian], Trace]:
    """EM of the model under some moves, and its course as that of the rows as they are."""
    found = run_em(model, moves.blocks(blocks, index), seed, callback, **options)
    volume, prior = moves.log_volume(), moves.log_prior()
    return found, replace(
        found.trace,
        log_likelihood=found.trace.log_likelihood + volume,
        objective=found.trace.objective + volume + prior,
    )


def _num_values(blocks: ObservedBlocks) -> float:
    return float(sum(values.numel() for values in blocks.values.values()))


def warn_of_absent(names: tuple[str, ...], moves: BatchMoves) -> None:
    """Tell which batches never have a modality.

    Warns:
        ReliabilityWarning: there are some.
    """
    lacking = [
        f"batch {batch!r} never has {name!r}, which gets the intercept of all batches there, and the variance between "
        "batches as noise"
        for b, batch in enumerate(names)
        for name in moves.names
        if not float(moves.count[name][b])
    ]
    warn_unreliable(lacking)
