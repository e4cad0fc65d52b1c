"""Settings of a fit, why they were chosen, and what its held-out folds say of imputations: as facts and in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from calmrl_prob.report.readings import coverage_verdict, give_or_take, r2_reading, share_error
from calmrl_prob.selection.choice import Choice
from calmrl_prob.selection.intervals import LEVELS, ErrorScale, HeldOutIntervals

if TYPE_CHECKING:
    import pandas as pd

#: Standard errors within which two settings score alike.
_ALIKE = 2.0


@dataclass(frozen=True)
class Fitted:
    """A fit, or a model read from a file, by what can be told of it.

    Attributes:
        model: the fitted model.
        choice: the settings that were tried; None where it is not known, or nothing was open.
        intervals: errors of held-out imputations; None where nothing was held out.
    """

    model: Any
    choice: Choice | None
    intervals: HeldOutIntervals | None

    @classmethod
    def of(cls, fit: object) -> Fitted:
        """From what ``cal.fit`` or ``cal.load`` returns.

        Example:
            >>> from calmrl_prob.model import SharedLatentModel
            >>> print(Fitted.of(SharedLatentModel({"image": 3}, latent_dim=2)).settings)
            K 2, isotropic noise
        """
        model = getattr(fit, "model", fit)
        choice, intervals = getattr(fit, "choice", None), getattr(model, "intervals", None)
        return cls(
            model,
            choice if isinstance(choice, Choice) else None,
            intervals if isinstance(intervals, HeldOutIntervals) else None,
        )

    @property
    def settings(self) -> str:
        """The settings in a line."""
        if self.choice is not None:
            return str(self.choice.setting)
        latent_dim, noise = getattr(self.model, "latent_dim", None), getattr(self.model, "noise", None)
        known = [f"K {latent_dim}"] * (latent_dim is not None) + [f"{str(noise).replace('_', '-')} noise"] * bool(noise)
        return ", ".join(known) or type(self.model).__name__

    def facts(self, level: float) -> dict[str, Any]:
        """All of it as what JSON holds; shares in [0, 1]."""
        found: dict[str, Any] = {"settings": self.settings, "latent_dim": getattr(self.model, "latent_dim", None)}
        if self.choice is not None:
            found |= {
                "noise": self.choice.noise,
                "prior": self.choice.setting.prior,
                "family": self.choice.family,
                "criterion": self.choice.criterion,
                "settings_tried": len(self.choice.table),
                "folds": self.choice.num_folds,
                "r2": self.choice.r2,
                "fallback": self.choice.fallback,
                "not_tried": self.choice.not_tried,
            }
        covered = {name: share for name, _, share in self.own_coverage(level)}
        return found | {"level": level, "own_coverage": covered}

    def own_coverage(self, level: float) -> Iterator[tuple[str, int, float]]:
        """Of each modality how many held-out instances the model's own intervals were tried on, and their coverage."""
        if self.intervals is not None:
            for name, groups in self.intervals.scales.items():
                yield name, groups[None].num_instances, own_coverage(groups[None], level)

    def why(self) -> list[str]:
        """Reasons of the choice, in sentences."""
        choice = self.choice
        if choice is None:
            return [
                f"The model has {self.settings}. The file does not say whether these were chosen: either they were "
                "given, or it holds the model alone."
            ]
        if choice.fallback:
            return [f"{choice.setting}, not by held-out imputations: {choice.fallback}."]
        row = choice.table[choice.table["chosen"]].iloc[0]
        lines = [
            f"Chosen: {choice.setting}. Of {len(choice.table)} settings it scored best, {row['score']:.3f} ± "
            f"{row['error']:.3f}, when modalities of held-out instances were "
            + ("imputed" if choice.criterion == "imputation" else "to find their partners")
            + f" ({choice.num_folds} folds; each setting was fitted to all folds but one and scored on that one)."
        ]
        lines += self._runners_up(choice.table)
        if choice.scale != "none":
            lines.append(f"The fit worked in units of each {choice.scale}'s own spread; results are in the data's own.")
        if choice.not_tried:
            lines.append(f"Not tried: {choice.not_tried}.")
        return lines

    @staticmethod
    def _runners_up(table: pd.DataFrame) -> list[str]:
        others = table[~table["chosen"] & np.isfinite(table["score"])].sort_values("behind")
        if others.empty:
            return []
        near = others["behind"] <= _ALIKE * others["behind_error"].fillna(0)
        best = others.iloc[0]
        count = int(near.sum())
        alike = (
            f"{count} of the others score the same within {_ALIKE:g} standard errors" if count else "all score worse"
        )
        return [
            f"Next came K {best['latent_dim']}, {str(best['noise']).replace('_', '-')} noise, {best['prior']}, "
            f"{best['behind']:.3f} behind; {alike}."
        ]

    def worth(self, level: float) -> list[str]:
        """Worth of held-out imputations: R^2 and coverage of each modality, in sentences."""
        r2 = self.choice.r2 if self.choice is not None else {}
        covered = {name: (count, share) for name, count, share in self.own_coverage(level)}
        lines = []
        for name in dict.fromkeys([*r2, *covered]):
            parts = []
            if name in r2:
                parts.append(r2_reading(r2[name]))
            if name in covered:
                count, share = covered[name]
                error = share_error(share, count)
                verdict = coverage_verdict(level, share, error)
                parts.append(
                    f"the model's own {100 * level:g}% intervals held {100 * share:.0f}% of the values of {count:,} "
                    f"held-out instances{give_or_take(error)}: {verdict}"
                    + ", which imputing puts right"
                    * verdict.startswith("too")
                )
            lines.append(f"{name}: {'; '.join(parts)}.")
        if not lines:
            lines.append(
                "Nothing was held out, so that what imputations are worth is not known: validate on other rows."
            )
        return lines


def own_coverage(errors: ErrorScale, level: float) -> float:
    """Share of held-out values that the model's own intervals of a level held, by the quantiles of its errors.

    Where statistics alone are known, that of normal errors of the variance found.

    Example:
        >>> import torch
        >>> as_stated = torch.special.ndtri((1 + LEVELS) / 2)[None]
        >>> errors = ErrorScale("text", None, 100, torch.ones(1), 1.0, as_stated)
        >>> round(own_coverage(errors, 0.9), 3)
        0.9
        >>> round(own_coverage(ErrorScale("text", None, 100, 4 * torch.ones(1), 1.0, None), 0.9), 3)
        0.589
    """
    from scipy.special import ndtr, ndtri

    own = float(ndtri((1 + level) / 2))
    if errors.half_widths is None:
        sd = np.sqrt(errors.factor.numpy(force=True))
        return float(np.mean(2 * ndtr(own / sd) - 1))
    widths = errors.half_widths.numpy(force=True)
    return float(np.mean([np.interp(own, row, LEVELS.numpy(force=True)) for row in widths]))
