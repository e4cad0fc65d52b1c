"""Instance by instance, whether what is imputed helps: certificates with the names of those that should do without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from calmrl_prob._support.arguments import real_number
from calmrl_prob.alignment.anchors import ShiftDistance
from calmrl_prob.alignment.certificate import gain_over_draws
from calmrl_prob.alignment.certificate_correction import CertificateCorrection
from calmrl_prob.alignment.completion import Completion
from calmrl_prob.errors import ArgumentError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class InstanceCertificates:
    """For N instances the probability that calibration reduces their anchor shift.

    Attributes:
        ids: (N,) of the instances; their numbers where the data have none.
        names: of the M modalities.
        observed_mask: (N, M) bool, True = PRESENT.
        probability: (N,) float64, that the calibrated anchor lies nearer to the full one than the local anchor does:
            calibrated on held-out rows where ``is_calibrated``, else under the model, which promises too much where the
            model is wrong. 0 where nothing is missing, so nothing to gain.
        expected_gain: (N,) float64, local shift less calibrated shift, expected under the model.
        threshold: probabilities below it advise against imputing.
        is_calibrated: whether the probabilities were calibrated.
    """

    ids: NDArray[np.generic]
    names: tuple[str, ...]
    observed_mask: Tensor
    probability: Tensor
    expected_gain: Tensor
    threshold: float
    is_calibrated: bool

    @property
    def is_missing(self) -> Tensor:
        """Whether the instance lacks any modality, (N,) bool."""
        return ~self.observed_mask.all(dim=1)

    @property
    def refused(self) -> NDArray[np.generic]:
        """The ids of instances that should not be imputed, the least probable gain first."""
        rows = (self.is_missing & (self.probability < self.threshold)).nonzero().flatten()
        refused: NDArray[np.generic] = self.ids[rows[self.probability[rows].argsort(stable=True)].cpu().numpy()]
        return refused

    def table(self) -> pd.DataFrame:
        """One row for each instance that lacks something: id, missing, probability, expected_gain, impute."""
        import pandas as pd

        lacking = [
            "+".join(name for name, here in zip(self.names, row, strict=True) if not here)
            for row in self.observed_mask.tolist()
        ]
        table = pd.DataFrame(
            {
                "id": self.ids,
                "missing": lacking,
                "probability": self.probability.cpu().numpy(),
                "expected_gain": self.expected_gain.cpu().numpy(),
            }
        ).assign(impute=lambda frame: frame["probability"] >= self.threshold)
        return table[self.is_missing.cpu().numpy()].reset_index(drop=True)

    def __repr__(self) -> str:
        return f"InstanceCertificates({int(self.is_missing.sum())} with something missing, {len(self.refused)} refused)"


def certify_instances(
    completion: Completion,
    ids: NDArray[np.generic] | None = None,
    calibration: CertificateCorrection | None = None,
    *,
    threshold: float = 0.5,
    distance: ShiftDistance | None = None,
    num_draws: int = 100,
    seed: int = 0,
) -> InstanceCertificates:
    """Certificates of all instances of a completion.

    Args:
        completion: what is known of N instances.
        ids: (N,) of them; their numbers if not given.
        calibration: of the probabilities, on held-out rows. Its weight and its distance are taken then.
        threshold: in [0, 1]; probabilities below it advise against imputing.
        distance: in which anchors lie near or far; "vector" if not given.
        num_draws: S, for the probabilities under the model and the expected gain.
        seed: of the draws.

    Raises:
        ArgumentError: the threshold is out of range, there is another number of ids, or a distance is given beside a
            calibration that has another.

    Example:
        >>> import torch
        >>> from calmrl_prob.linear_gaussian import LinearGaussian
        >>> lg = LinearGaussian(
        ...     {"image": torch.eye(2), "text": torch.tensor([[0.8, -0.6], [0.6, 0.8]])},
        ...     {"image": torch.zeros(2), "text": torch.zeros(2)},
        ...     {"image": torch.tensor(0.01), "text": torch.tensor(0.01)},
        ... )
        >>> x = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]]])
        >>> completion = Completion.from_linear_gaussian(lg, x, torch.tensor([[True, False], [True, True]]))
        >>> certify_instances(completion, np.array(["cat", "dog"])).table()[["id", "missing", "impute"]].values.tolist()
        [['cat', 'text', True]]
    """
    threshold = real_number("threshold", threshold, 0.5)
    if not 0 <= threshold <= 1:
        raise ArgumentError(f"threshold: expected a probability, between 0 and 1, got {threshold!r}.")
    mask = completion.observed_mask
    ids = np.arange(len(mask)) if ids is None else ids
    if len(ids) != len(mask):
        raise ArgumentError(f"ids: expected {len(mask)}, one for each instance, got {len(ids)}.")
    if calibration is not None and distance not in (None, calibration.distance):
        raise ArgumentError(
            f"distance: the calibration is of the distance {calibration.distance!r}, got {distance!r}; leave it out."
        )
    chosen: ShiftDistance = calibration.distance if calibration is not None else distance or "vector"
    anchors = completion.anchors(1.0 if calibration is None else calibration.weight).vector
    probability, expected = gain_over_draws(completion, anchors, chosen, num_draws=num_draws, seed=seed)
    if calibration is not None:
        probability = calibration.probability(completion)
    return InstanceCertificates(
        ids, completion.linear_gaussian.names, mask, probability, expected, threshold, calibration is not None
    )
