"""Questions about observations still to be made, and the numbers that answer them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Question:
    """Observations that are to be valued, and what about.

    Attributes:
        names: the M modalities.
        lacking: (N, M) bool, True = the instance lacks the modality, or some of its features.
        present: what instances have, True = PRESENT: (N, M) bool, or (N, D) where single features may be missing.
        target: the modality that the gain is about; None for the latents.
        num_draws: S, of routes that draw.
        seed: of the draws.
    """

    names: tuple[str, ...]
    lacking: Tensor
    present: Tensor
    target: str | None = None
    num_draws: int = 256
    seed: int = 0

    def of(self, rows: Tensor) -> Question:
        """The same of some instances, (n,) int64."""
        return replace(self, lacking=self.lacking[rows], present=self.present[rows])

    def rows(self, name: str) -> Tensor:
        """The instances that are asked about a modality, (n,) int64: they lack it, and the target if there is one."""
        asked = self.lacking[:, self.names.index(name)]
        if self.target is not None:
            asked = asked & self.lacking[:, self.names.index(self.target)]
            asked = asked & (name != self.target)
        return asked.nonzero().squeeze(1)


@dataclass(frozen=True)
class Gains:
    """Expected gains, NaN where nothing was asked.

    Attributes:
        information: (N, M), nats.
        trace_drop: (N, M), squared units of the target; NaN throughout if there is none.
        error, drop_error: standard errors of the two, (N, M); 0 where they are in closed form.
        method: "exact" or "draws".
        capped: the cells whose estimate is near the most that so many draws can show, (N, M) bool.
    """

    information: Tensor
    trace_drop: Tensor
    error: Tensor
    drop_error: Tensor
    method: str
    capped: Tensor

    @classmethod
    def empty(cls, question: Question, method: str) -> Gains:
        """To be filled in."""
        nan = torch.full(question.lacking.shape, torch.nan, dtype=torch.float64, device=question.lacking.device)
        return cls(nan, nan.clone(), nan.clone(), nan.clone(), method, torch.zeros_like(question.lacking))

    def put(self, rows: Tensor, column: int, information: Tensor, drop: Tensor | None = None) -> None:
        """Enter what was found for some instances, (n,), or by draws of it (n, S), of which it is the mean.

        Negative estimates count as 0, which all gains are at least.
        """
        self.information[rows, column], self.error[rows, column] = _mean_and_error(information)
        if drop is not None:
            self.trace_drop[rows, column], self.drop_error[rows, column] = _mean_and_error(drop)

    @classmethod
    def together(cls, question: Question, parts: Sequence[tuple[Tensor, Gains]]) -> Gains:
        """Those of disjoint sets of instances, each in its place."""
        method = "exact" if all(part.method == "exact" for _, part in parts) else "draws"
        whole = cls.empty(question, method)
        for rows, part in parts:
            whole.information[rows], whole.trace_drop[rows] = part.information, part.trace_drop
            whole.error[rows], whole.drop_error[rows] = part.error, part.drop_error
            whole.capped[rows] = part.capped
        return whole

    @classmethod
    def averaged(cls, parts: Sequence[Gains]) -> Gains:
        """The mean over draws of the parameters, with its standard error over these draws."""
        information, error = _mean_and_error(torch.stack([part.information for part in parts], dim=-1))
        drop, drop_error = _mean_and_error(torch.stack([part.trace_drop for part in parts], dim=-1))
        capped = torch.stack([part.capped for part in parts]).any(0)
        return cls(information, drop, error, drop_error, "draws", capped)


def _mean_and_error(values: Tensor) -> tuple[Tensor, Tensor]:
    """Of draws in the last of two or three dimensions, at least 0; of one dimension the values themselves."""
    if values.ndim == 1:
        return values.clamp(min=0), torch.zeros_like(values)
    return values.mean(-1).clamp(min=0), values.std(-1) / values.shape[-1] ** 0.5
