"""Options of closed-form EM: what all families share, and those of the plain Gaussian model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Literal

from calmrl_prob.errors import ArgumentError
from calmrl_prob.linear_gaussian.em.pseudo_rows import require_prior_of_covariance
from calmrl_prob.linear_gaussian.options import Options

#: Forms of the noise of the plain Gaussian model.
NoiseForm = Literal["isotropic", "diagonal", "full", "low_rank"]
NOISES: tuple[NoiseForm, ...] = ("isotropic", "diagonal", "full", "low_rank")


@dataclass(frozen=True, kw_only=True)
class CommonOptions(Options):
    """Options that EM has for every family of models.

    Attributes:
        noise: "isotropic" (one variance for each modality) or "diagonal" (one for each feature).
        max_iterations: E-steps at most, and one more if the last of them was a guess that had to be taken back.
        tolerance: stop when the gain in evidence still to be expected is below this, in nats for each observed
            value. It is extrapolated from the decay of the last gains, so that a slow crawl is not taken for arrival.
        noise_floor: least noise variance as a share of the feature's variance; keeps the evidence bounded.
        noise_pseudo_count: weight, in observations of each feature, of an inverse-gamma prior whose variance is half
            of the feature's; 0 for none.
        anderson_memory: iterations that Anderson acceleration looks back on; 0 to switch it off.

    Raises:
        ArgumentError: one is out of range.
    """

    noise: str = "isotropic"
    max_iterations: int = 500
    tolerance: float = 1e-5
    noise_floor: float = 1e-4
    noise_pseudo_count: float = 0.0
    anderson_memory: int = 10

    def __post_init__(self) -> None:
        self._require_noise()
        self._require_at_least(
            max_iterations=0, tolerance=0, noise_floor=1e-12, noise_pseudo_count=0, anderson_memory=0
        )

    def _require_at_least(self, **limits: float) -> None:
        """Refuse fields that are below these limits, or NaN."""
        for argument, least in limits.items():
            value = getattr(self, argument)
            if not value >= least:
                raise ArgumentError(f"{argument}: expected at least {least}, got {value}.")

    def _require_noise(self) -> None:
        """Refuse a form of the noise that the family does not have."""
        if self.noise in ("full", "low_rank"):
            raise ArgumentError(
                f"noise: of this family expected 'isotropic' or 'diagonal', got {self.noise!r}; noise that is "
                "correlated within a modality is there for latents with a normal prior."
            )
        if self.noise not in ("isotropic", "diagonal"):
            raise ArgumentError(f"noise: expected 'isotropic' or 'diagonal', got {self.noise!r}.")

    @property
    def isotropic(self) -> bool:
        """Whether a modality has one noise variance."""
        return self.noise == "isotropic"


@dataclass(frozen=True, kw_only=True)
class EMOptions(CommonOptions):
    """Options of :func:`~calmrl_prob.linear_gaussian.fit_em`, besides those that EM has for every family.

    Attributes:
        noise: "isotropic" (one variance for each modality), "diagonal" (one for each feature), or, correlated within a
            modality, "full" (a covariance of all its features) or "low_rank" (``noise_rank`` factors of its own besides
            a variance for each feature). The latter two carry what a modality shares with no other, which latents
            must then not serve; "full" wants more rows than features, or ``pseudo_rows``.
        noise_rank: R_m of "low_rank" noise, for all modalities or by name; by default K, or a third of the features
            where that is less.
        form: of the E-step: "modality", "pattern", "statistics", or "auto" to choose by cost. All give the same fit.
        seed: for the random block of the spectral start.
        expand: expand parameters (PX-EM).
        loadings_prior: "normal", "ard" (automatic relevance determination: a latent can be switched off for a
            modality; ``penalties.py``), or None for maximum likelihood. Both shrink w_dk / s_d, with s_d^2 the
            variance of the feature (isotropic noise: of the modality's features on average).
        loadings_precision: of the normal prior: w_dk / s_d ~ N(0, 1 / loadings_precision). K by default, which lets
            the latents together explain as much as there is.
        pseudo_rows: weight, in rows, of a prior of the joint covariance of all features, under which they
            are uncorrelated: ridge regression's own (``pseudo_rows.py``). For data of few rows; 0 for none.
        pseudo_row_pooling: how far the variances of that prior are pooled, from 0 (each feature has its own, so that
            units of features do not matter) to 1 (the modality's features have their average, as in ridge regression:
            directions of little variance are trusted less).

    Raises:
        ArgumentError: one is out of range.

    Example:
        >>> EMOptions(noise="diagonal", pseudo_rows=10.0).max_iterations
        1000
    """

    max_iterations: int = 1000
    tolerance: float = 1e-6
    noise_rank: int | Mapping[str, int] | None = None
    form: str = "auto"
    seed: int = 0
    expand: bool = True
    loadings_prior: str | None = None
    loadings_precision: float | None = None
    pseudo_rows: float = 0.0
    pseudo_row_pooling: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise_rank is not None and self.noise != "low_rank":
            raise ArgumentError(
                f"noise_rank: it belongs to noise='low_rank', but that is {self.noise!r}; leave it out."
            )
        name, precision = self.loadings_prior, self.loadings_precision
        if name not in (None, "normal", "ard"):
            raise ArgumentError(f"loadings_prior: expected 'normal', 'ard' or None, got {name!r}.")
        if precision is not None and name != "normal":
            raise ArgumentError(
                f"loadings_precision: it belongs to loadings_prior='normal', but that is {name!r}; leave it out."
            )
        if precision is not None and not 0 < precision < math.inf:
            raise ArgumentError(f"loadings_precision: expected a positive number, got {precision}.")
        require_prior_of_covariance(self.pseudo_rows, self.pseudo_row_pooling)

    def _require_noise(self) -> None:
        if self.noise not in NOISES:
            raise ArgumentError(f"noise: expected one of {list(NOISES)}, got {self.noise!r}.")

    @property
    def correlated(self) -> bool:
        """Whether noise is correlated within a modality."""
        return self.noise in ("full", "low_rank")

    def noise_ranks(self, dims: Mapping[str, int], latent_dim: int) -> tuple[int, ...] | None:
        """R_m of each modality, of "low_rank" noise; None of another.

        Raises:
            ArgumentError: one is no whole number from 0 to D_m, or names of modalities differ.
        """
        return checked_ranks(self.noise_rank, dims, latent_dim) if self.noise == "low_rank" else None


def checked_ranks(given: int | Mapping[str, int] | None, dims: Mapping[str, int], latent_dim: int) -> tuple[int, ...]:
    """R_m of each modality of low-rank noise: as given, or min(K, D_m / 3).

    Raises:
        ArgumentError: one is no whole number from 0 to D_m, or names of modalities differ.
    """
    if isinstance(given, Mapping) and set(given) != set(dims):
        raise ArgumentError(f"noise_rank: expected a rank for each of {list(dims)}, got {dict(given)}.")
    ranks: list[int] = []
    for name, width in dims.items():
        rank = given[name] if isinstance(given, Mapping) else given
        rank = min(latent_dim, width // 3) if rank is None else rank
        if isinstance(rank, bool) or not isinstance(rank, Integral) or not 0 <= rank <= width:
            raise ArgumentError(
                f"noise_rank: of modality {name!r} expected a whole number from 0 to {width}, its width, got {rank!r}."
            )
        ranks.append(int(rank))
    return tuple(ranks)
