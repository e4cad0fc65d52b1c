"""Settings of calibrated alignment: of the training of encoders, and of the generative model between its epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from calmrl_prob._support.arguments import checked_seed, described, real_number, whole_number
from calmrl_prob.errors import ArgumentError, ArgumentTypeError
from calmrl_prob.linear_gaussian.options import Options

#: What a run that goes on from a checkpoint may set otherwise than the one that wrote it.
_FREE = ("max_epochs", "patience", "progress")


@dataclass(frozen=True)
class GenerativeOptions(Options):
    """When the generative model is fitted, of which statistics, and by which EM.

    Attributes:
        first_epoch: before which it is first fitted.
        period: epochs from one fit to the next.
        period_steps: training steps from one fit to the next, instead of ``period``.
        decay: None for a pass over the training rows at each fit. A number in [0, 1] for the online form: statistics of
            the representations that training itself computes, among which those from before the last fit count this
            much, those from before the one before it the square of it, and so on. It costs no pass; but what it sees is
            older, and has the encoders' dropout in it. Until the first fit, an epoch or ``period_steps`` after training
            begins, observed modalities alone are seen.
        max_iterations: of EM at each fit, which goes on from the last one; the first has four times as many.
        noise, noise_pseudo_count, pseudo_rows: as in ``calmrl_prob.linear_gaussian.fit_em``.
        seed: of the first fit's spectral start.

    Raises:
        ArgumentTypeError: a number is none.
        ArgumentError: an option is out of range.
    """

    first_epoch: int = 0
    period: int = 1
    period_steps: int | None = None
    decay: float | None = None
    max_iterations: int = 5
    noise: str = "isotropic"
    noise_pseudo_count: float = 0.0
    pseudo_rows: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        whole_number("first_epoch", self.first_epoch)
        whole_number("period", self.period, least=1)
        if self.period_steps is not None:
            whole_number("period_steps", self.period_steps, least=1)
        if self.decay is not None and not 0 <= real_number("decay", self.decay, 0.5) <= 1:
            raise ArgumentError(f"decay: expected a number from 0 to 1, or None, got {self.decay!r}.")
        whole_number("max_iterations", self.max_iterations, least=1)
        for argument in ("noise_pseudo_count", "pseudo_rows"):
            value = getattr(self, argument)
            if real_number(argument, value, 0.0) < 0:
                raise ArgumentError(f"{argument}: expected at least 0, got {value!r}.")


@dataclass(frozen=True)
class AlignOptions(Options):
    """Settings of :func:`calmrl_prob.training.align`, which takes each of them as a keyword too.

    Attributes:
        latent_dim: K of the generative model of the representations.
        max_epochs: at most.
        warmup_epochs: first ones, on the rows alone that have every modality (the paper's protocol).
        em_period: epochs from one step 1 to the next.
        em_options: further ones of :class:`GenerativeOptions`, by name.
        batch_size: B.
        buffer_rows: of a stream, rows that batches are drawn from at random; at least B.
        chunk_rows: of a stream, rows of a chunk, at most; by default as many as make about 8 million numbers.
        num_workers: of a stream, processes beside each of training that read its chunks; 0 for none.
        learning_rate: of AdamW.
        weight_decay: of AdamW, of the encoders' parameters.
        unit_norm: whether representations are scaled to length 1.
        reconstruction_weight: of the mean squared error of encoders that have a ``decode``.
        patience: epochs without a better validation R@1 after which it stops; None for never.
        seed: of batches and draws; the same seed gives the same weights.
        progress: show a progress bar.

    Raises:
        ArgumentTypeError: a number is none, or ``em_options`` no dict.
        ArgumentError: a setting is out of range, or one of ``em_options`` unknown.

    Example:
        >>> AlignOptions(max_epochs=3, em_options={"decay": 0.5}).generative()
        GenerativeOptions(first_epoch=0, period=1, period_steps=None, decay=0.5, max_iterations=5, ...)
    """

    latent_dim: int = 32
    max_epochs: int = 50
    warmup_epochs: int = 0
    em_period: int = 1
    em_options: Mapping[str, Any] | None = None
    batch_size: int = 256
    buffer_rows: int = 8192
    chunk_rows: int | None = None
    num_workers: int = 0
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    unit_norm: bool = True
    reconstruction_weight: float = 0.0
    patience: int | None = 10
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        """Refuse what is out of range; numbers become plain ones, as checkpoints record them."""
        numbers: dict[str, Any] = {
            "em_options": _checked_em_options(self.em_options),
            "patience": None if self.patience is None else whole_number("patience", self.patience),
            "warmup_epochs": whole_number("warmup_epochs", self.warmup_epochs),
            "seed": checked_seed(self.seed),
            "num_workers": whole_number("num_workers", self.num_workers),
            "chunk_rows": None if self.chunk_rows is None else whole_number("chunk_rows", self.chunk_rows, least=1),
        }
        for argument in ("latent_dim", "em_period", "max_epochs", "batch_size", "buffer_rows"):
            numbers[argument] = whole_number(argument, getattr(self, argument), least=1)
        for argument, example in (("learning_rate", 1e-3), ("weight_decay", 1e-2), ("reconstruction_weight", 1.0)):
            numbers[argument] = from_zero(argument, getattr(self, argument), example)
        for argument, number in numbers.items():
            object.__setattr__(self, argument, number)

    def generative(self) -> GenerativeOptions:
        """Options of step 1: those of the warm-up, the period and the seed, and ``em_options`` before them."""
        own = {"first_epoch": self.warmup_epochs, "period": self.em_period, "seed": self.seed}
        return GenerativeOptions(**{**own, **(self.em_options or {})})

    def recorded(self) -> dict[str, Any]:
        """Settings that a checkpoint keeps, since a run that goes on from it must have the same."""
        return {name: value for name, value in asdict(self).items() if name not in _FREE}


def from_zero(argument: str, value: object, example: float) -> float:
    """A finite number of at least 0.

    Raises:
        ArgumentTypeError: it is no number.
        ArgumentError: it is negative, infinite or NaN.

    Example:
        >>> from_zero("weight_decay", 0.01, 0.1)
        0.01
    """
    number = real_number(argument, value, example)
    if not 0 <= number < math.inf:
        raise ArgumentError(
            f"{argument}: expected a finite number of at least 0, got {number}; use one such as {example}."
        )
    return number


def _checked_em_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Options of step 1 by name."""
    if options is not None and not isinstance(options, Mapping):
        raise ArgumentTypeError(f"em_options: expected a dict of options of GenerativeStep, got {described(options)}.")
    known = [field.name for field in fields(GenerativeOptions)]
    for name in options or {}:
        if name not in known:
            raise ArgumentError(f"em_options: step 1 has no option {name!r}; it has {known}.")
    return dict(options or {})
