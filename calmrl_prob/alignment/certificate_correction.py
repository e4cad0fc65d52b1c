"""Certificates that keep their promise: the model's probability of gain, corrected on rows where the truth is known.

``probability_of_gain`` is right for data of the model. On representations of real encoders, which held-out instances
have further apart than those that the model was fitted to, it promises too much. How often calibration really gains is
seen in rehearsals (``rehearsal.py``): rows that nothing was fitted to lose modalities on purpose. From them is learned,
by logistic regression,

    P(gain) = sigmoid(b + sum_j a_j f_j)

on what the model says of an instance, each scaled to mean 0 and variance 1: the logit of its probability of gain, the
gain that it expects, how far calibration moves the anchor, the share of variance of the missing modalities that it
predicts, how many are missing and how many present, and the relative gap (lambda_1 - lambda_2) / lambda_1 of what is
present. With the first alone that is Platt's scaling, a monotone map of the model's probability.

Source: Platt, Probabilistic outputs for support vector machines and comparisons to regularized likelihood methods
(1999); Niculescu-Mizil & Caruana, Predicting good probabilities with supervised learning (2005).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from calmrl_prob._support.arguments import whole_number
from calmrl_prob.alignment.anchors import ShiftDistance, anchor_shift, leading_vector
from calmrl_prob.alignment.calibration import predicted_share
from calmrl_prob.alignment.certificate import gain_over_draws
from calmrl_prob.alignment.completion import Completion
from calmrl_prob.alignment.rehearsal import rehearse
from calmrl_prob.errors import ArgumentError, DataError
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.linear_gaussian.options import Options

Evidence = Literal["all", "probability"]

#: Rows that lost modalities on purpose, at least, for a calibration that says anything.
_LEAST_ROWS = 30


@dataclass(frozen=True)
class CertificateOptions(Options):
    """Settings of :meth:`CertificateCorrection.fit`, which takes each of them as a keyword too.

    Attributes:
        evidence: "all" features above, or the model's "probability" alone.
        weight: of an imputed modality in the calibrated anchor, beside 1 of an observed one.
        distance: in which anchors lie near or far.
        num_draws: S, for the model's probability.
        times: how often each number of modalities is hidden of a row.
        penalty: precision of a normal prior of the coefficients of scaled features.
        seed: of what is hidden and drawn.

    Raises:
        ArgumentError: an option is out of range.
    """

    evidence: Evidence = "all"
    weight: float = 1.0
    distance: ShiftDistance = "vector"
    num_draws: int = 32
    times: int = 2
    penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        if self.evidence not in get_args(Evidence):
            raise ArgumentError(f"evidence: expected one of {list(get_args(Evidence))}, got {self.evidence!r}.")
        if not self.penalty > 0:
            raise ArgumentError(f"penalty: expected a positive number, got {self.penalty!r}.")
        whole_number("num_draws", self.num_draws, least=1)


@dataclass(frozen=True, eq=False)
class CertificateCorrection:
    """A map from what the model says of an instance to the probability that calibration brings its anchor nearer.

    Attributes:
        center: mean of each feature over the rehearsals.
        scale: their standard deviations; 1 where a feature does not vary.
        coefficients: a, one for each feature, on the scaled ones.
        intercept: b.
        options: that it was fitted with: its evidence, weight, distance, draws and seed are those of its promises.
        num_cases: how many rehearsals it learned from.
    """

    center: Tensor
    scale: Tensor
    coefficients: Tensor
    intercept: float
    options: CertificateOptions
    num_cases: int

    @property
    def weight(self) -> float:
        """Of an imputed modality in the calibrated anchor."""
        return self.options.weight

    @property
    def distance(self) -> ShiftDistance:
        """In which anchors lie near or far."""
        return self.options.distance

    @classmethod
    def fit(
        cls,
        linear_gaussian: LinearGaussian,
        representations: Tensor,
        observed_mask: Tensor,
        *,
        options: CertificateOptions | None = None,
        **settings: Any,
    ) -> CertificateCorrection:
        """Learn from rows whose modalities are hidden on purpose.

        Args:
            linear_gaussian: of M modalities of D features each.
            representations: (B, M, D), of rows that neither encoders nor model were fitted to; entries of absent
                modalities are arbitrary. At least 30 rows must have two modalities.
            observed_mask: (B, M) bool, True = PRESENT.
            options: which evidence, what is hidden, and how anchors are compared.
            **settings: single ones of these options, by keyword.

        Raises:
            ArgumentError: shapes or options do not fit.
            DataError: too few rows have two modalities.

        Example:
            >>> generator = torch.Generator().manual_seed(0)
            >>> directions = torch.randn(3, 4, 2, generator=generator)
            >>> names = ("image", "sound", "text")
            >>> lg = LinearGaussian(
            ...     dict(zip(names, directions)),
            ...     {name: torch.zeros(4) for name in names},
            ...     {name: torch.tensor(1.0) for name in names},
            ... )
            >>> x = torch.stack(list(lg.sample(200, generator).features.values()), dim=1)
            >>> everything = torch.ones(200, 3, dtype=torch.bool)
            >>> calibration = CertificateCorrection.fit(lg, x, everything)
            >>> missing = everything.clone()
            >>> missing[:, 2] = False
            >>> promised = calibration.probability(Completion.from_linear_gaussian(lg, x, missing))
            >>> promised.shape, bool(((promised > 0) & (promised < 1)).all())
            (torch.Size([200]), True)
        """
        from sklearn.linear_model import LogisticRegression

        options = CertificateOptions.of(options, settings, "CertificateCorrection.fit")
        rehearsals = rehearse(linear_gaussian, representations, observed_mask, times=options.times, seed=options.seed)
        rows = len(torch.cat([part.rows for part in rehearsals]).unique())
        if rows < _LEAST_ROWS:
            raise DataError(
                f"representations: expected at least {_LEAST_ROWS} rows with two modalities or more to calibrate a "
                f"certificate on, got {rows}; give more, or use the model's own probability_of_gain."
            )
        found, gained = [], []
        for part in rehearsals:
            found.append(_features(part.completion, options))
            calibrated = part.completion.anchors(options.weight).vector
            nearer = part.shift(calibrated, options.distance) < part.local_shift(options.distance)
            gained.append(nearer.double())
        features, outcome = torch.cat(found).cpu(), torch.cat(gained).cpu()
        center, spread = features.mean(0), features.std(0, correction=0)
        scale = torch.where(spread > 1e-9, spread, 1)
        # one gain and one loss at the center more, as in the rule of succession: never quite sure, and never one class
        inputs = torch.cat([(features - center) / scale, features.new_zeros(2, features.shape[1])])
        targets = np.append(outcome.numpy() > 0, [False, True])
        regression = LogisticRegression(C=1 / options.penalty, max_iter=1000).fit(inputs.numpy(), targets)
        return cls(
            center=center,
            scale=scale,
            coefficients=torch.from_numpy(regression.coef_[0].copy()),
            intercept=float(regression.intercept_[0]),
            options=options,
            num_cases=len(outcome),
        )

    @torch.no_grad()
    def probability(self, completion: Completion) -> Tensor:
        """That calibration brings the anchor nearer, shape (B,), float64; 0 where nothing is missing, so to gain.

        Args:
            completion: of the model that this was fitted with, or of some of its modalities.
        """
        features = _features(completion, self.options)
        center, scale, coefficients = (
            part.to(features.device) for part in (self.center, self.scale, self.coefficients)
        )
        promised = torch.sigmoid((features - center) / scale @ coefficients + self.intercept)
        return torch.where(completion.observed_mask.all(1), 0, promised)


@torch.no_grad()
def _features(completion: Completion, options: CertificateOptions) -> Tensor:
    """Evidence of B instances, shape (B, 7), or (B, 1) of the probability alone; float64."""
    mask, num_draws = completion.observed_mask, options.num_draws
    calibrated = completion.anchors(options.weight).vector.double()
    probability, expected = gain_over_draws(
        completion, calibrated, options.distance, num_draws=num_draws, seed=options.seed
    )
    smoothed = (probability * num_draws + 0.5) / (num_draws + 1)  # all draws, or none, have a finite logit too
    if options.evidence == "probability":
        return smoothed.logit()[:, None]
    local = leading_vector(completion.values, mask)
    largest = local.values[:, 0].double()
    gap = (largest - local.values[:, 1].double()) / torch.where(largest > 0, largest, 1)
    missing = (~mask).double().sum(1)
    share = (predicted_share(completion.linear_gaussian, completion.posterior).double() * ~mask).sum(1)
    moved = anchor_shift(local.vector.double(), calibrated, options.distance)
    return torch.stack(
        [smoothed.logit(), expected, moved, share / missing.clamp(min=1), missing, mask.double().sum(1), gap], dim=1
    )


#: The old name, for one release; the module's old name, by which it is imported, warns.
CertificateCalibration = CertificateCorrection
