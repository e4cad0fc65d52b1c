"""Values that the distribution of a site cannot take: fractions under a Poisson, a 2 under a Bernoulli."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from calmrl_prob._support.warnings import level_of_caller
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ReliabilityWarning
from calmrl_prob.programs.sites import Call


def edge_rows(data: MultimodalData) -> Tensor:
    """Rows of each modality that show whether its values can be a site's: its least, its largest, one of a fraction.

    Example:
        >>> edge_rows(MultimodalData({"x": torch.tensor([[1.0], [0.0], [7.0], [2.0], [0.5]])})).tolist()
        [1, 2, 4]
    """
    found = []
    for name in data.names:
        present = data.feature_mask(name)
        values = data.filled(name)
        found += [values.masked_fill(~present, torch.inf).amin(1).argmin()[None]]
        found += [values.masked_fill(~present, -torch.inf).amax(1).argmax()[None]]
        found += [((values != values.round()) & present).any(1).nonzero()[:1, 0]]
    rows: Tensor = torch.cat(found).cpu().unique()
    return rows


def warn_unsupported(call: Call, data: MultimodalData, rows: Tensor) -> None:
    """Warn of data that the distribution of their site cannot take, though it gives them a density.

    Args:
        call: of the model on the data.
        data: a few instances.
        rows: their numbers among all, for messages.

    Warns:
        ReliabilityWarning: there is a modality with such values; names the first, and its row.
    """
    for name, site in call.observed.items():
        taken = site.taken()
        wrong = None if taken is None else ~site.rows(taken) & data.feature_mask(name)
        if wrong is not None and bool(wrong.any()):
            row, feature = (int(number) for number in wrong.nonzero()[0])
            warnings.warn(
                f"site {name!r}: its distribution, {site.family()}, cannot take the value "
                f"{float(data[name][row, feature]):g} of row {int(rows[row])}, feature {feature}, so that its density "
                "there is none of it, and what is imputed are other values; observe the modality with a distribution "
                "that can, or mend the data.",
                ReliabilityWarning,
                stacklevel=level_of_caller(),
            )
