"""Places of instances that a Gaussian process couples: its covariate as numbers, checked."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from calmrl_prob._support.arguments import brief
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, DataError
from calmrl_prob.priors.gaussian_process import GaussianProcessPrior


def places_of(data: MultimodalData, prior: GaussianProcessPrior) -> Tensor:
    """The covariate of the instances, (N, d), in the prior's type and on its device.

    Raises:
        DataError: the data lack it, or it is not made of finite numbers.
    """
    name = prior.covariate
    if name not in data.covariates:
        raise DataError(
            f"data: they have no covariate {name!r}, which the Gaussian process is over; there are "
            f"{sorted(data.covariates)}. Pass MultimodalData(..., covariates={{{name!r}: ...}})."
        )
    column = data.covariates[name]
    if column.dtype.kind not in "fiu" or column.ndim > 2 or 0 in column.shape[1:]:
        raise DataError(
            f"covariates[{name!r}]: expected numbers of shape (N,) or (N, d), got {column.dtype} of shape "
            f"{column.shape}; encode it as numbers first."
        )
    numbers = column.astype(np.float64).reshape(len(column), -1)
    broken = np.nonzero(~np.isfinite(numbers).all(axis=1))[0]
    if len(broken):
        raise DataError(
            f"covariates[{name!r}]: {len(broken)} rows are not finite, first row {broken[0]}; the place of every "
            "instance has to be known: fill it in, or leave those instances out."
        )
    return torch.from_numpy(numbers).to(prior.nugget_logit)


def new_places(covariates: object, name: str, width: int) -> Tensor:
    """Covariates of new instances, (n, d) float64, if they fit those of the data.

    Raises:
        ArgumentTypeError: they are not numbers.
        ArgumentError: they are not finite, or of another width.
    """
    if isinstance(covariates, Mapping):
        if name not in covariates:
            raise ArgumentError(f"covariates: expected an entry {name!r}, got {sorted(covariates)}.")
        covariates = covariates[name]
    try:
        numbers = np.asarray(covariates, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ArgumentTypeError(f"covariates: expected numbers (n,) or (n, d), got {brief(covariates)}.") from error
    numbers = numbers.reshape(len(numbers), -1) if numbers.ndim in (1, 2) else numbers
    if numbers.ndim != 2 or len(numbers) == 0 or numbers.shape[1] != width:
        shape = "(n,)" if width == 1 else f"(n, {width})"
        raise ArgumentError(f"covariates: expected shape {shape}, as in the data, got {numbers.shape}.")
    if not np.isfinite(numbers).all():
        raise ArgumentError("covariates: expected finite numbers; a place that is not known cannot be predicted at.")
    return torch.from_numpy(numbers)
