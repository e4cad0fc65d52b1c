"""Values that the distribution of a site cannot take: fractions under a Poisson, a 2 under a Bernoulli."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ModelError
from calmrl_prob.programs.sites import Call, Site


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


def require_supported(call: Call, data: MultimodalData, rows: Tensor) -> None:
    """Refuse data that the distribution of their site cannot take, entry by entry, as Pyro's own validation does.

    Args:
        call: of the model on the data.
        data: a few instances.
        rows: their numbers among all, for messages.

    Raises:
        ModelError: there is a modality with such values; names the first, and its row.
    """
    for name, site in call.observed.items():
        taken = _taken(site)
        if taken is None:
            continue
        wrong = ~site.rows(taken) & data.feature_mask(name)
        if bool(wrong.any()):
            row, feature = (int(number) for number in wrong.nonzero()[0])
            raise ModelError(
                f"site {name!r}: its distribution cannot take the value {float(data[name][row, feature]):g} of row "
                f"{int(rows[row])}, feature {feature}; observe it with one that can, or mend the data. A distribution "
                "made with validate_args=False takes what it is given."
            )


def _taken(site: Site) -> Tensor | None:
    """Which entries of a site's value its distribution takes, in the value's shape; None where that is not asked.

    Constraints on several entries together, such as that they sum to 1, are left out: they are a matter of rounding.
    """
    fn: Any = site.fn
    while hasattr(fn, "base_dist"):
        if hasattr(fn, "transforms"):
            return None
        fn = fn.base_dist
    if vars(fn).get("_validate_args") is False:
        return None
    try:
        support: Any = fn.support
        while hasattr(support, "base_constraint"):
            support = support.base_constraint
        taken: Tensor = support.check(site.value)
    except (NotImplementedError, AttributeError, RuntimeError):
        return None
    return taken if support.event_dim == 0 and taken.shape == site.value.shape else None
