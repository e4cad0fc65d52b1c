"""Bounds of the anchor shift: the paper's, and sharper ones from the residual of the local anchor.

Of one complete instance let G = Z Z^T, with eigenvalues lambda_1 >= lambda_2 >= .. and sigma_i = sqrt(lambda_i); v its
local anchor, rho = v^T G v = lambda_1^Omega + eta^2 with eta^2 = sum over missing m of <v, x^m>^2; r = G v - rho v; and
d = lambda_1 - rho, g = lambda_1 - lambda_2, h = lambda_1 - lambda_M. For the shift in the projector distance,
sqrt(2) sin,

    paper, Theorem 1    sqrt(2 (1 - rho / lambda_1))  <= shift   <= sqrt(2) ||Z^missing||_2 / (sigma_1 - sigma_2)
    residual            sqrt(2) ||r|| / lambda_1      <= shift   <= sqrt(2) ||r|| / (rho - lambda_2) if rho > lambda_2
    moments             2 d^2 / (d^2 + ||r||^2)       <= shift^2 <= 2 (d (g + h) - d^2 - ||r||^2) / (g h)

The moment bounds are the sharpest that follow from rho, ||r|| and these eigenvalues. They are exact for two
modalities; the lower is never below the two others, the upper never above the residual's. For a proof look at
y = lambda_1 - lambda_j as a random variable that takes its value with probability <u_j, v>^2. It has E y = d and
E y^2 = d^2 + ||r||^2; it is either 0 or in [g, h]; and sin^2 is the probability that it is not 0. By Cauchy and Schwarz
(E y)^2 <= sin^2 E y^2; and (y - g)(h - y) >= 0 wherever y > 0, which gives the other side.

The paper states Theorem 1 for the vector distance sqrt(2 (1 - cos)). Its lower bound then fails, when first tried on
3,144 of 4,000 random instances: up to a right angle sqrt(2) sin is the larger of the two, and the proof bounds sin. Its
upper bound fails for the vector distance where the missing modalities turn the sign of the sum, and with it that of the
anchor. ``tests/alignment/test_bounds.py`` counts both.

Corollary 3 says that imputing the q missing modalities, each with an error of norm below

    eps = (sigma_1 - sigma_2) / sqrt(q) sqrt(1 - rho / lambda_1)

reduces the shift for certain. It applies the upper bound to the imputed instance, whose second singular value, unlike
that of an instance that merely lacks modalities, may lie above sigma_2, by as much as the norm of the errors. There are
instances that an imputation within eps makes worse: the tests have one of five unit vectors. By Wedin's theorem, and
with t any lower bound of the sine of the local shift, what does hold is

    eps' = (sigma_1 - sigma_2) / sqrt(q)  t / (1 + t)

Source: Liu et al., Calibrated Multimodal Representation Learning with Missing Modalities, arXiv 2511.12034 (2026),
Theorem 1 and Corollary 3; Davis & Kahan, The rotation of eigenvectors by a perturbation III (1970), for the residual
bounds; Wedin, Perturbation bounds in connection with singular value decomposition (1972), for eps'.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from calmrl_prob.alignment.anchors import Anchors, eigh_descending, leading_vector
from calmrl_prob.alignment.views import require_matching

#: Units of rounding, in lambda_1, that bounds give way by where two eigenvalues are all but equal.
_ROUNDING = 64


@dataclass(frozen=True)
class ShiftBounds:
    """Bounds of the anchor shift of B instances in the projector distance, and thresholds; each of shape (B,).

    A lower bound is at least 0. An upper bound is ``inf`` where it says nothing, and may exceed the largest possible
    shift, sqrt(2), where it says little.

    Attributes:
        shift: the shift itself, projector distance between anchor and local anchor.
        theorem_lower: the paper's, from Theorem 1.
        theorem_upper: the same.
        residual_lower: from the norm of the residual.
        residual_upper: the same.
        moment_lower: from the norm of the residual and the Rayleigh quotient, never below the two others.
        moment_upper: the same, never above ``residual_upper``.
        corollary_threshold: eps of Corollary 3, in the unit of the representations; 0 where nothing is missing.
        certified_threshold: eps', below which imputation reduces the shift for certain.
    """

    shift: Tensor
    theorem_lower: Tensor
    theorem_upper: Tensor
    residual_lower: Tensor
    residual_upper: Tensor
    moment_lower: Tensor
    moment_upper: Tensor
    corollary_threshold: Tensor
    certified_threshold: Tensor


def shift_bounds(representations: Tensor, observed_mask: Tensor) -> ShiftBounds:
    """The bounds above, for complete instances and the modalities that remain of them.

    They need the complete instance. Where modalities are really missing, give draws or imputations of them
    (``certificate.py``), and know that the bounds then hold for these.

    Args:
        representations: (B, M, D), all M modalities of each instance; of any norms.
        observed_mask: (B, M) bool, True = PRESENT: what the local anchor is made of. Where nothing is present the local
            anchor is 0, and there are no bounds: lower ones are 0, upper ones ``inf``.

    Returns:
        Bounds without gradients, in float64.

    Raises:
        ArgumentError: the shapes do not go together.
        NumericalError: a representation is not finite.

    Example:
        >>> x = torch.tensor([[[1.0, 0.0], [0.6, 0.8]]])
        >>> bounds = shift_bounds(x, torch.tensor([[True, False]]))
        >>> [round(float(bound), 3) for bound in (bounds.theorem_lower, bounds.residual_lower, bounds.moment_lower)]
        [0.548, 0.424, 0.632]
        >>> [round(float(bound), 3) for bound in (bounds.shift, bounds.moment_upper, bounds.theorem_upper)]
        [0.632, 0.632, 2.236]
    """
    require_matching(representations, observed_mask)
    complete = representations.detach().double()
    full = leading_vector(complete)
    return local_anchor_bounds(complete, observed_mask, full, leading_vector(complete, observed_mask).vector)


def local_anchor_bounds(complete: Tensor, observed_mask: Tensor, full: Anchors, local: Tensor) -> ShiftBounds:
    """The same where both anchors are known already.

    Args:
        complete: (B, M, D) float64, without gradients.
        observed_mask: (B, M) bool.
        full: the anchors of ``complete``.
        local: (B, D), the local anchors.
    """
    anchor, values = full.vector, full.values
    largest, second, least = values[:, 0], _second(values), values[:, -1]
    defined = observed_mask.any(1) & (largest > 0)
    # The part of the local anchor off the anchor: d and E y^2 are quadratic in it, so that nothing cancels.
    off = local - anchor * (anchor * local).sum(1, keepdim=True)
    sine = torch.linalg.vector_norm(off, dim=1)
    along = (complete @ off[:, :, None]).squeeze(2)
    pulled = largest[:, None] * off - (along[:, None] @ complete).squeeze(1)
    # What is left of d is rounding where v lies between the anchor and another direction of the same value.
    rounding = _ROUNDING * torch.finfo(torch.float64).eps * largest
    deficit = largest * sine.square() - along.square().sum(1)
    least_deficit = (deficit - rounding * sine.square()).clamp(min=0)
    most_deficit = deficit.clamp(min=0) + rounding * sine.square()
    moment = torch.linalg.vector_norm(pulled, dim=1).square()
    residual = (moment - deficit.square()).clamp(min=0).sqrt()

    gap, width = largest - second, largest - least
    best = _ratio(least_deficit, (moment + (rounding * sine).square()).sqrt(), 0)
    upper = _ratio(most_deficit * (gap + width) - moment, gap * width, torch.inf).clamp(min=0).sqrt()
    upper = torch.where(gap > rounding, upper, torch.inf)
    davis_kahan = _ratio(residual + rounding * sine, gap - most_deficit - rounding, torch.inf)
    missing = torch.where(observed_mask[:, :, None], 0, complete)
    missing_norm = eigh_descending(missing @ missing.mT)[0][:, 0].clamp(min=0).sqrt()
    singular_gap = _ratio(gap, largest.sqrt() + second.sqrt(), 0)  # sigma_1 - sigma_2, without cancellation
    root_count = (~observed_mask).sum(1).clamp(min=1).sqrt()
    theorem = _ratio(least_deficit, largest, 0).sqrt()
    incomplete = defined & ~observed_mask.all(1)
    root_two = 2**0.5

    def only(chosen: Tensor, value: Tensor, otherwise: float) -> Tensor:
        return torch.where(chosen, value, otherwise)

    return ShiftBounds(
        shift=only(defined, root_two * sine, 1.0),
        theorem_lower=only(defined, root_two * theorem, 0.0),
        theorem_upper=only(defined, root_two * _ratio(missing_norm, singular_gap, torch.inf), torch.inf),
        residual_lower=only(defined, root_two * _ratio(residual, largest, 0), 0.0),
        residual_upper=only(defined, root_two * davis_kahan, torch.inf),
        moment_lower=only(defined, root_two * best, 0.0),
        moment_upper=only(defined, root_two * upper, torch.inf),
        corollary_threshold=only(incomplete, singular_gap / root_count * theorem, 0.0),
        certified_threshold=only(incomplete, singular_gap / root_count * best / (1 + best), 0.0),
    )


def _second(values: Tensor) -> Tensor:
    """lambda_2; 0 where there is one modality."""
    return values[:, 1] if values.shape[1] > 1 else torch.zeros_like(values[:, 0])


def _ratio(top: Tensor, bottom: Tensor, otherwise: float) -> Tensor:
    """top / bottom where bottom is positive, else a fixed value."""
    positive = bottom > 0
    return torch.where(positive, top / torch.where(positive, bottom, 1), otherwise)
