"""Options of closed-form EM: what all families share, and those of the plain Gaussian model."""

from __future__ import annotations

import math
from dataclasses import dataclass

from calmrl_prob.errors import ArgumentError
from calmrl_prob.linear_gaussian.em.pseudo_rows import require_prior_of_covariance
from calmrl_prob.linear_gaussian.options import Options


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
        if self.noise not in ("isotropic", "diagonal"):
            raise ArgumentError(f"noise: expected 'isotropic' or 'diagonal', got {self.noise!r}.")
        self._require_at_least(
            max_iterations=0, tolerance=0, noise_floor=1e-12, noise_pseudo_count=0, anderson_memory=0
        )

    def _require_at_least(self, **limits: float) -> None:
        """Refuse fields that are below these limits, or NaN."""
        for argument, least in limits.items():
            value = getattr(self, argument)
            if not value >= least:
                raise ArgumentError(f"{argument}: expected at least {least}, got {value}.")

    @property
    def isotropic(self) -> bool:
        """Whether a modality has one noise variance."""
        return self.noise == "isotropic"


@dataclass(frozen=True, kw_only=True)
class EMOptions(CommonOptions):
    """Options of :func:`~calmrl_prob.linear_gaussian.fit_em`, besides those that EM has for every family.

    Attributes:
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
    form: str = "auto"
    seed: int = 0
    expand: bool = True
    loadings_prior: str | None = None
    loadings_precision: float | None = None
    pseudo_rows: float = 0.0
    pseudo_row_pooling: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
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
