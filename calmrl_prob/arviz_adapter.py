"""Named arrays into what the installed ArviZ works with: an InferenceData (before 1.0) or an xarray DataTree (since).

This is the one place that knows the difference. It needs numpy, xarray and ArviZ alone, so that it can be tried beside
any ArviZ release, in an environment without the rest of the library's requirements.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

Variable = tuple[Sequence[str], NDArray[Any]]


@dataclass(frozen=True)
class Group:
    """Named arrays that share coordinates.

    Attributes:
        variables: for each name its dimensions and its array.
        coords: for each dimension the labels along it; dimensions without labels are numbered.
        attributes: facts about the group: strings and numbers.
    """

    variables: Mapping[str, Variable]
    coords: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    attributes: Mapping[str, str | int | float] = field(default_factory=dict)

    def dataset(self) -> xr.Dataset:
        """The group as an xarray Dataset.

        Raises:
            ValueError: a dimension is called "sample", which ArviZ itself uses for chain and draw stacked.
        """
        variables: dict[Hashable, Any] = {}
        dims: dict[str, int] = {}
        for name, (names, values) in self.variables.items():
            if "sample" in names:
                raise ValueError(f"variable {name!r}: no dimension may be called 'sample'; ArviZ uses that name.")
            variables[name] = (tuple(names), _storable(values))
            dims.update(zip(names, values.shape, strict=True))
        coords = {
            dim: _storable(self.coords[dim]) if dim in self.coords else np.arange(size) for dim, size in dims.items()
        }
        return xr.Dataset(variables, coords=coords, attrs=dict(self.attributes))


def to_container(groups: Mapping[str, Group], attributes: Mapping[str, str | int | float] | None = None) -> Any:  # noqa: ANN401
    """Put groups into the container of the installed ArviZ. Custom groups are kept.

    Args:
        groups: "posterior", "posterior_predictive", "observed_data" and so on; draws have the leading dimensions
            "chain" and "draw".
        attributes: facts about the whole, which every group gets too.

    Returns:
        An ``arviz.InferenceData`` before ArviZ 1.0, an ``xarray.DataTree`` since.

    Example:
        >>> z = np.zeros((2, 5, 3))
        >>> container = to_container({"posterior": Group({"z": (("chain", "draw", "latent"), z)})}, {"seed": 0})
        >>> dict(container["posterior"]["z"].sizes)
        {'chain': 2, 'draw': 5, 'latent': 3}
    """
    import arviz  # here, not above: it takes seconds, and only this function needs it

    shared = dict(attributes or {})
    datasets: dict[str, Any] = {name: group.dataset().assign_attrs(shared) for name, group in groups.items()}
    if int(arviz.__version__.split(".")[0]) < 1:  # asking for InferenceData would warn, and find a DataTree, since 1.0
        return arviz.InferenceData(attrs=shared, **datasets)
    tree = xr.DataTree.from_dict({f"/{name}": dataset for name, dataset in datasets.items()})
    tree.attrs.update(shared)
    return tree


def chain_diagnostics(draws: Mapping[str, NDArray[Any]]) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Rank-normalised split R-hat and effective sample sizes, of bulk and tails, of each entry of each quantity.

    Source: Vehtari, Gelman, Simpson, Carpenter & Buerkner, Rank-Normalization, Folding, and Localization (2021).

    Args:
        draws: quantities of shape (C, S, ...), C chains of S draws.

    Returns:
        "r_hat", "ess_bulk" and "ess_tail", each with an array (...) for every quantity.

    Example:
        >>> found = chain_diagnostics({"z": np.random.default_rng(0).normal(size=(4, 200, 3))})
        >>> found["r_hat"]["z"].shape, bool((found["ess_bulk"]["z"] > 400).all())
        ((3,), True)
    """
    import arviz  # here, not above: it takes seconds

    dims = {name: ("chain", "draw", *(f"{name}_{i}" for i in range(array.ndim - 2))) for name, array in draws.items()}
    dataset = xr.Dataset({name: (dims[name], array) for name, array in draws.items()})
    found = {
        "r_hat": arviz.rhat(dataset),
        "ess_bulk": arviz.ess(dataset, method="bulk"),
        "ess_tail": arviz.ess(dataset, method="tail"),
    }
    return {measure: {name: np.asarray(values[name]) for name in draws} for measure, values in found.items()}


def _storable(values: NDArray[Any]) -> NDArray[Any]:
    """The array as netCDF can store it: objects become texts."""
    array: NDArray[Any] = np.asarray(values)
    return array.astype(str) if array.dtype.kind in "OS" else array
