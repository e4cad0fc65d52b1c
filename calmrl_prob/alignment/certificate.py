"""Certificates: the probability that calibration brings an instance's anchor nearer to where it belongs.

The complete instance is not known, but the generative model says how it may look. Over draws of the missing modalities
beside the observed ones, each of which makes a complete instance with an anchor of its own,

    probability of gain     the calibrated anchor lies nearer to the drawn one than the local anchor does
    Corollary 3             all errors ||drawn - imputed|| lie below its eps, with the draw's own eigenvalues
    certified               the same with the threshold eps' that does hold for certain (see ``bounds.py``)

The last implies the first for anchors of imputed means in the projector distance, and is much rarer: bounds are for the
worst direction of an error. All are probabilities under the model, and as good as the model is: where it fits badly
they promise too much, and ``certificate_correction.py`` learns from held-out rows what to make of them. For a
threshold by hand see :func:`probability_within`.

Source: Liu et al., Calibrated Multimodal Representation Learning with Missing Modalities, arXiv 2511.12034 (2026),
Corollary 3, whose eigenvalues are those of the complete instance, and so have to be drawn or plugged in.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from torch import Tensor

from calmrl_prob._support.arguments import checked_seed, whole_number
from calmrl_prob.alignment.anchors import ShiftDistance, anchor_shift, leading_vector, require_distance, unit
from calmrl_prob.alignment.bounds import local_anchor_bounds
from calmrl_prob.alignment.completion import Completion
from calmrl_prob.alignment.expected_scatter import expected_scatter_anchor
from calmrl_prob.errors import ArgumentError
from calmrl_prob.linear_gaussian.products import CHUNK_BUDGET

CalibratedAnchor = Literal["mean", "expected_scatter"]


@dataclass(frozen=True)
class Certificate:
    """Certificate of the calibration of B instances from S draws; each of shape (B,), float64, without gradients.

    A probability p has the standard error sqrt(p (1 - p) / S). All are 0 where nothing is missing, so nothing to gain.

    Attributes:
        probability_of_gain: that the calibrated anchor lies nearer to the full one than the local anchor does.
        expected_gain: mean of local shift less calibrated shift, in the distance chosen.
        probability_of_corollary: that every imputation error lies below Corollary 3's threshold.
        probability_certified: the same with the threshold that holds for certain.
    """

    probability_of_gain: Tensor
    expected_gain: Tensor
    probability_of_corollary: Tensor
    probability_certified: Tensor


def certify(
    completion: Completion,
    calibrated: CalibratedAnchor | Tensor = "mean",
    distance: ShiftDistance = "vector",
    *,
    num_draws: int = 100,
    seed: int = 0,
    unit_draws: bool = False,
    unit_means: bool = False,
) -> Certificate:
    """The probabilities above, over joint draws of the missing modalities.

    Args:
        completion: what is known of B instances.
        calibrated: which anchor calibration would give: "mean", the leading vector of the observed modalities and the
            imputed means; "expected_scatter"; or any anchors (B, D).
        distance: in which anchors lie near or far.
        num_draws: S. Time and randomness grow with S; memory does not.
        seed: of the draws.
        unit_draws: scale drawn modalities to norm 1, where representations have it: a Gaussian does not know.
        unit_means: scale imputed means to norm 1 too. Left as they are, they are the shorter the less is known.

    Raises:
        ArgumentError: an option is out of range, or the anchors have another shape.
        ArgumentTypeError: the number of draws or the seed is no whole number.

    Example:
        >>> from calmrl_prob.linear_gaussian import LinearGaussian
        >>> lg = LinearGaussian(
        ...     {"image": torch.eye(2), "text": torch.tensor([[0.8, -0.6], [0.6, 0.8]])},
        ...     {"image": torch.zeros(2), "text": torch.zeros(2)},
        ...     {"image": torch.tensor(0.01), "text": torch.tensor(0.01)},
        ... )
        >>> x = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
        >>> completion = Completion.from_linear_gaussian(lg, x, torch.tensor([[True, False]]))
        >>> certify(completion, distance="projector").probability_of_gain.item()  # text is nearly known
        1.0
    """
    return Certificate(
        *_shares(completion, calibrated, distance, num_draws, seed, unit_draws, unit_means, thresholds=True)
    )


def probability_of_gain(
    completion: Completion,
    calibrated: CalibratedAnchor | Tensor = "mean",
    distance: ShiftDistance = "vector",
    *,
    num_draws: int = 100,
    seed: int = 0,
    unit_draws: bool = False,
    unit_means: bool = False,
) -> Tensor:
    """Over draws of the missing modalities, how often the calibrated anchor is the nearer one, shape (B,), float64.

    Arguments and errors are those of :func:`certify`, which returns more and takes about twice as long.
    """
    return gain_over_draws(
        completion,
        calibrated,
        distance,
        num_draws=num_draws,
        seed=seed,
        unit_draws=unit_draws,
        unit_means=unit_means,
    )[0]


def gain_over_draws(
    completion: Completion,
    calibrated: CalibratedAnchor | Tensor = "mean",
    distance: ShiftDistance = "vector",
    *,
    num_draws: int = 100,
    seed: int = 0,
    unit_draws: bool = False,
    unit_means: bool = False,
) -> tuple[Tensor, Tensor]:
    """The probability of gain and the expected gain alone, (B,) each, float64.

    Arguments and errors are those of :func:`certify`, which returns more and takes about twice as long.
    """
    shares = _shares(completion, calibrated, distance, num_draws, seed, unit_draws, unit_means, thresholds=False)
    return shares[0], shares[1]


def probability_within(
    completion: Completion, threshold: Tensor | float, *, num_draws: int = 1000, seed: int = 0
) -> Tensor:
    """The probability that the errors of all imputed means have norms below a threshold, given what is observed.

        P(max over missing m of ||x^m - E x^m|| < eps),   x^m - E x^m = W^m (z - E z) + noise

    Means are those of the model, not scaled. Their errors go together through the latents, and depend on the missing
    pattern alone: S joint errors are drawn once for each pattern, and each instance finds its threshold among them.

    Corollary 3's threshold takes the eigenvalues of the complete instance, which nobody knows. What can be plugged in
    are those of the completed one, ``shift_bounds(completion.values, completion.observed_mask).corollary_threshold``;
    :func:`certify` draws them instead.

    Args:
        completion: what is known of B instances.
        threshold: eps, (B,) or one for all, in the unit of the representations.
        num_draws: S.
        seed: of the draws.

    Returns:
        Shape (B,), float64, with standard error sqrt(p (1 - p) / S); 1 where nothing is missing and eps is above 0.

    Raises:
        ArgumentError: the thresholds have another shape, or an option is out of range.
        ArgumentTypeError: the number of draws or the seed is no whole number.
    """
    num_draws = whole_number("num_draws", num_draws, least=1)
    given, lg, patterns = completion.posterior, completion.linear_gaussian, completion.patterns
    eps = torch.as_tensor(threshold, dtype=torch.float64, device=given.mean.device)
    if eps.ndim > 1 or (eps.ndim == 1 and len(eps) != len(given.mean)):
        raise ArgumentError(f"threshold: expected one number or shape ({len(given.mean)},), got {tuple(eps.shape)}.")
    generator = _generator(completion, seed)
    with torch.no_grad():
        first = torch.stack([rows[0] for rows in completion.pattern_rows()])  # a row that stands for its pattern
        rows = first.repeat_interleave(num_draws)
        noise = torch.randn(
            len(rows), lg.latent_dim, generator=generator, dtype=given.mean.dtype, device=given.mean.device
        )
        deviation = given.deviate(noise, rows).view(len(first), num_draws, -1)
        worst = torch.zeros(len(first), num_draws, dtype=torch.float64, device=rows.device)
        for m, name in enumerate(lg.names):
            for pattern in (~patterns[:, m]).nonzero().flatten().tolist():
                error = completion.draw_given(name, deviation[pattern], generator) - lg.intercepts[name]
                worst[pattern] = torch.maximum(worst[pattern], torch.linalg.vector_norm(error, dim=1).double())
        sorted_worst = worst.sort(dim=1).values
        below = eps.expand(len(given.mean)).clone()
        count = torch.empty_like(below)
        for pattern, members in enumerate(completion.pattern_rows()):
            count[members] = torch.searchsorted(sorted_worst[pattern], below[members]).double()
    return count / num_draws


def _shares(
    completion: Completion,
    calibrated: CalibratedAnchor | Tensor,
    distance: ShiftDistance,
    num_draws: int,
    seed: int,
    unit_draws: bool,
    unit_means: bool,
    *,
    thresholds: bool,
) -> Tensor:
    """Means over draws of what a certificate holds, in its order; the first two alone without ``thresholds``."""
    num_draws = whole_number("num_draws", num_draws, least=1)
    require_distance(distance)
    with torch.no_grad():
        mask = completion.observed_mask
        imputed = _unit_where_missing(completion.values, mask, unit_means).double()
        local = leading_vector(imputed, mask).vector
        anchor = _calibrated_anchor(completion, imputed, calibrated)
        totals = imputed.new_zeros(4 if thresholds else 2, len(imputed))
        draws = completion.draws(num_draws, _generator(completion, seed))
        together = max(1, CHUNK_BUDGET // max(1, imputed.numel()))  # few instances: many draws at once
        while batch := list(islice(draws, together)):
            again = len(batch)
            complete = _unit_where_missing(torch.cat(batch), mask.repeat(again, 1), unit_draws).double()
            full, near = leading_vector(complete), local.repeat(again, 1)
            gain = anchor_shift(full.vector, near, distance)
            gain = gain - anchor_shift(full.vector, anchor.repeat(again, 1), distance)
            found = [(gain > 0).double(), gain]
            if thresholds:
                bounds = local_anchor_bounds(complete, mask.repeat(again, 1), full, near)
                error = torch.linalg.vector_norm(complete - imputed.repeat(again, 1, 1), dim=2).amax(1)
                found += [(error < bounds.corollary_threshold).double(), (error < bounds.certified_threshold).double()]
            totals += torch.stack(found).view(len(found), again, -1).sum(1)
        return torch.where(mask.all(1), 0, totals / num_draws)


def _calibrated_anchor(completion: Completion, imputed: Tensor, calibrated: CalibratedAnchor | Tensor) -> Tensor:
    """The anchors (B, D) that calibration would give, float64."""
    if isinstance(calibrated, Tensor):
        expected = (imputed.shape[0], imputed.shape[2])
        if calibrated.shape != expected:
            raise ArgumentError(f"calibrated: expected anchors of shape {expected}, got {tuple(calibrated.shape)}.")
        return calibrated.double()
    if calibrated == "mean":
        return leading_vector(imputed).vector
    if calibrated == "expected_scatter":
        return expected_scatter_anchor(completion).vector.double()
    raise ArgumentError(
        f"calibrated: expected 'mean', 'expected_scatter' or anchors (B, D), got {calibrated!r}; pass the anchors "
        "themselves to judge any other calibration."
    )


def _unit_where_missing(values: Tensor, observed_mask: Tensor, scaled: bool) -> Tensor:
    """(B, M, D) with the missing modalities scaled to norm 1, if they are to be."""
    return torch.where(observed_mask[:, :, None], values, unit(values)) if scaled else values


def _generator(completion: Completion, seed: int) -> torch.Generator:
    return torch.Generator(completion.values.device).manual_seed(checked_seed(seed))
