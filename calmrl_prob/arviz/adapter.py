"""Named arrays into what the installed ArviZ works with: an InferenceData (before 1.0) or an xarray DataTree (since).

This is the one place that knows the difference. It needs numpy, xarray and ArviZ alone, so that it can be tried beside
any ArviZ release, in an environment without the rest of the library's requirements.

What is written carries the version of its layout (``schema_version``), so that a reader can tell a layout that it does
not know yet. The layout changes where a name or a meaning does; a further variable is no change.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calmrl_prob.errors import ArgumentError

if TYPE_CHECKING:
    import xarray as xr

Variable = tuple[Sequence[str], NDArray[Any]]
#: Version of the layout of groups and variables that ``to_arviz`` makes, and the name of the attribute that holds it.
SCHEMA_VERSION = 1
VERSION_ATTRIBUTE = "schema_version"


@dataclass(frozen=True)
class Group:
    """Named arrays that share coordinates.

    Attributes:
        variables: for each name its dimensions and its array.
        coords: for each dimension the labels along it; dimensions without labels are numbered. Further names give
            labels along a dimension of another name, as a pair of that dimension and the labels.
        attributes: facts about the group: strings and numbers.
    """

    variables: Mapping[str, Variable]
    coords: Mapping[str, NDArray[Any] | tuple[str, NDArray[Any]]] = field(default_factory=dict)
    attributes: Mapping[str, str | int | float] = field(default_factory=dict)

    def dataset(self) -> xr.Dataset:
        """The group as an xarray Dataset.

        Raises:
            ArgumentError: a variable has the name of a coordinate.
            ValueError: a dimension is called "sample", which ArviZ itself uses for chain and draw stacked.
        """
        import xarray as xr

        variables: dict[Hashable, Any] = {}
        dims: dict[str, int] = {}
        for name, (own, values) in self.variables.items():
            if "sample" in own:
                raise ValueError(f"variable {name!r}: no dimension may be called 'sample'; ArviZ uses that name.")
            names = tuple(map(storable_name, own))
            variables[storable_name(name)] = (names, _storable(values))
            dims.update(zip(names, values.shape, strict=True))
        coords: dict[str, Any] = {dim: np.arange(size) for dim, size in dims.items()}
        for name, labels in ((storable_name(given), labels) for given, labels in self.coords.items()):
            if isinstance(labels, tuple):
                if storable_name(labels[0]) in dims:
                    coords[name] = (storable_name(labels[0]), _storable(labels[1]))
            elif name in dims:
                coords[name] = _storable(labels)
        if taken := sorted(variables.keys() & coords.keys(), key=str):
            raise ArgumentError(
                f"data: the name {taken[0]!r} is that of a coordinate of the export; rename the modality or site."
            )
        return xr.Dataset(variables, coords=coords, attrs=dict(self.attributes))


def storable_name(name: str) -> str:
    """A name as files have it: "/" parts the groups of a netCDF file, and becomes "_".

    Example:
        >>> storable_name("signal_rna/seq")
        'signal_rna_seq'
    """
    return name.replace("/", "_")


def to_container(groups: Mapping[str, Group], attributes: Mapping[str, str | int | float] | None = None) -> Any:  # noqa: ANN401
    """Put groups into the container of the installed ArviZ. Custom groups are kept.

    Args:
        groups: "posterior", "posterior_predictive", "observed_data" and so on; draws have the leading dimensions
            "chain" and "draw".
        attributes: facts about the whole, which every group gets too, with the version of the layout.

    Returns:
        An ``arviz.InferenceData`` before ArviZ 1.0, an ``xarray.DataTree`` since.

    Example:
        >>> z = np.zeros((2, 5, 3))
        >>> container = to_container({"posterior": Group({"z": (("chain", "draw", "latent"), z)})}, {"seed": 0})
        >>> dict(container["posterior"]["z"].sizes)
        {'chain': 2, 'draw': 5, 'latent': 3}
    """
    shared = {VERSION_ATTRIBUTE: SCHEMA_VERSION, **(attributes or {})}
    return container({name: group.dataset().assign_attrs(shared) for name, group in groups.items()}, shared)


def container(datasets: Mapping[str, Any], attributes: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """The container of the installed ArviZ around xarray Datasets, one for each group."""
    import arviz  # here, not above: it takes seconds
    import xarray as xr

    if int(arviz.__version__.split(".")[0]) < 1:  # asking for InferenceData would warn, and find a DataTree, since 1.0
        groups: dict[str, Any] = dict(datasets)
        return arviz.InferenceData(attrs=dict(attributes), **groups)
    tree = xr.DataTree.from_dict({f"/{name}": dataset for name, dataset in datasets.items()})
    tree.attrs.update(attributes)
    return tree


def read_groups(path: Path, check: Callable[[int], None] = lambda _: None) -> dict[str, xr.Dataset]:
    """The groups of a netCDF file (through h5netcdf) or of a zarr store, which is a folder; all in memory.

    Args:
        path: of either.
        check: told how many bytes all arrays will take, before one of them is read; may raise.

    Raises:
        OSError, ValueError, KeyError: it is neither.
    """
    import xarray as xr

    with xr.open_datatree(path, engine="zarr" if path.is_dir() else "h5netcdf") as tree:
        check(sum(node.to_dataset().nbytes for node in tree.subtree))
        return {name: child.to_dataset().load() for name, child in tree.children.items()}


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
    import xarray as xr

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
    return as_texts(array) if array.dtype.kind in "OS" else array


def as_texts(values: NDArray[Any]) -> NDArray[Any]:
    """Entries as texts: of a tuple its parts, separated by commas; of what is missing, None, nothing.

    Example:
        >>> labels = np.empty(2, dtype=object)
        >>> labels[:] = [("a", 1), None]
        >>> as_texts(labels).tolist()
        ['a, 1', '']
    """
    if values.dtype.kind != "O":
        return values.astype(str)
    texts = [
        ", ".join(map(str, entry)) if isinstance(entry, tuple) else "" if entry is None else str(entry)
        for entry in values.flat
    ]
    return np.array(texts, dtype=str).reshape(values.shape)
