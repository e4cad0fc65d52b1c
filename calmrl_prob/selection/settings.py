"""One setting of a fit: number of latents, form of the noise, and prior."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

#: Options of a fit that settle the prior, so that it is not chosen.
SETTLES_PRIOR = ("pseudo_rows", "pseudo_row_pooling", "loadings_prior", "loadings_precision", "noise_pseudo_count")


@dataclass(frozen=True)
class Setting:
    """A setting of a fit: all that is chosen.

    Attributes:
        latent_dim: K.
        noise: the form of Psi^m: "isotropic", "diagonal", "full" or "low_rank".
        pseudo_rows: weight, in rows, of a prior of the joint covariance under which features are uncorrelated.
        pooling: how far the variances of that prior are pooled, 1 for one a modality, 0 for one a feature.
        ard: whether latents can be switched off for a modality (automatic relevance determination).
        noise_rank: R of "low_rank" noise.
        family: of the prior of the latents: "normal", "student_t" or "mixture".
        num_components: C of a mixture.

    Example:
        >>> setting = Setting(64, pseudo_rows=100.0)
        >>> str(setting)
        'K 64, isotropic noise, 100 pseudo-rows of pooled variances'
        >>> setting.options()
        {'pseudo_rows': 100.0, 'pseudo_row_pooling': 1.0}
    """

    latent_dim: int
    noise: str = "isotropic"
    pseudo_rows: float = 0.0
    pooling: float = 1.0
    ard: bool = False
    noise_rank: int | None = None
    family: str = "normal"
    num_components: int | None = None

    def options(self) -> dict[str, Any]:
        """The options of ``fit_em``, besides K and the noise."""
        if self.ard:
            return {"loadings_prior": "ard"}
        if self.pseudo_rows == 0:
            return {}
        return {"pseudo_rows": self.pseudo_rows, "pseudo_row_pooling": self.pooling}

    def but(self, **changes: Any) -> Setting:
        """The same with some attributes changed."""
        return replace(self, **changes)

    @property
    def prior(self) -> str:
        """The prior in words."""
        if self.family == "mixture":
            return f"latents of a mixture of {self.num_components} normals"
        if self.family == "student_t":
            return "Student-t latents"
        if self.ard:
            return "automatic relevance determination"
        if self.pseudo_rows == 0:
            return "no prior"
        kind = {0.0: "own", 1.0: "pooled"}.get(self.pooling, f"{self.pooling:.0%} pooled")
        return f"{self.pseudo_rows:.3g} pseudo-rows of {kind} variances"

    def __str__(self) -> str:
        """In a line."""
        rank = "" if self.noise_rank is None else f" of rank {self.noise_rank}"
        return f"K {self.latent_dim}, {self.noise.replace('_', '-')} noise{rank}, {self.prior}"
