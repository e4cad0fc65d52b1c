"""The fit of a user who chooses nothing. What the default is stands here, and nowhere else in this experiment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import calmrl_prob as cal
from calmrl_prob.data import MultimodalData

#: What the default may be asked to choose by: errors of imputations, or retrieval.
CRITERIA = ("imputation", "retrieval")


@dataclass(frozen=True)
class DefaultFit:
    """A fitted model, and the settings that it was fitted with.

    Attributes:
        model: what ``cal.impute`` and ``cal.evaluation`` take.
        latent_dim, noise: of a ``SharedLatentModel`` of the same settings.
        options: of ``cal.fit`` with the same settings.
    """

    model: Any
    latent_dim: int
    noise: str = "isotropic"
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def setting(self) -> str:
        """All settings as text."""
        rest = " ".join(f"{name}={value}" for name, value in self.options.items())
        return f"K={self.latent_dim} {self.noise} {rest}".strip()


def fit_default(data: MultimodalData, criterion: str) -> DefaultFit:
    """Fit with nothing chosen.

    Args:
        data: training rows, as they are.
        criterion: one of ``CRITERIA``.
    """
    model = cal.SharedLatentModel(data.dims)
    fit = cal.fit(model, data, criterion=criterion)
    return DefaultFit(fit, fit.choice.latent_dim, fit.choice.noise, fit.choice.options)


def fit_again(found: DefaultFit, data: MultimodalData) -> None:
    """Fit once with the settings of a default fit given: what the choice is measured against in time."""
    cal.fit(cal.SharedLatentModel(data.dims, found.latent_dim, noise=found.noise), data, **found.options)
