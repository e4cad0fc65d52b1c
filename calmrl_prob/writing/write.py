"""Entry point of writing: data and imputations to a file, in chunks of rows, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from calmrl_prob._support.arguments import brief
from calmrl_prob._support.remote import Remote, place_of
from calmrl_prob.data import MultimodalData
from calmrl_prob.data.stream import MultimodalStream
from calmrl_prob.errors import ArgumentError, ArgumentTypeError
from calmrl_prob.imputation import Imputation, checked_level
from calmrl_prob.io import save_npz
from calmrl_prob.writing.contents import Contents, contents_of
from calmrl_prob.writing.into import is_mudata, write_into
from calmrl_prob.writing.mudata import write_h5mu
from calmrl_prob.writing.npz import write_npz
from calmrl_prob.writing.parquet import write_parquet
from calmrl_prob.writing.zarr import write_zarr

#: What writes a file, by its ending: ``(contents, path)``.
FORMATS: Mapping[str, Callable[[Contents, Path], None]] = MappingProxyType(
    {".parquet": write_parquet, ".npz": write_npz, ".zarr": write_zarr, ".h5mu": write_h5mu}
)


def write(
    what: Imputation | MultimodalData | MultimodalStream,
    path: Any,  # noqa: ANN401 - a path, or a MuData
    *,
    level: float = 0.9,
    into: str | os.PathLike[str] | None = None,
) -> Any:  # noqa: ANN401 - what ``path`` is
    """Write an imputation, data or a stream to a file, by the ending of its name, or into a MuData; the path, or that.

    Of an imputation are written, of each modality, the values ``completed`` (as observed, the mean where missing), and
    ``mean``, ``sd``, the ends ``lower`` and ``upper`` of the interval, and ``imputed``: whether the value was missing.
    With them go ids, labels, parts, covariates, and names of features; and of the latents ``latent`` and ``latent_sd``.

    - .h5mu (omics): MuData; X is what is completed, all else are layers of each assay, latents are in ``obsm``
    - .parquet (arrow): columns of lists, ``protein`` for what is completed, ``protein.sd`` and so on
    - .zarr (zarr): as xarray reads it: a group for each modality, in it an array for each of these
    - .npz: arrays ``x_protein`` for what is completed, ``sd_protein`` and so on

    ``cal.read`` reads all of them. Rows are computed and written in chunks, so that memory is bounded where the
    posterior was found by the exact route. A file stands at ``path`` once it is whole, and replaces one that was there.

    Into a MuData an imputation is written beside what is there: the same quantities as layers of each assay that has
    all instances, else in ``obsm`` of the whole as "protein.mean" and so on, with the columns of the assay; the latents
    in ``obsm`` too.

    Args:
        what: an imputation, data, or a stream, whose chunks are written as they come.
        path: where; parquet also at a URL of fsspec, s3://bucket/imputed.parquet. Or a MuData in memory, which is added
            to.
        level: probability that the intervals are to hold.
        into: an .h5mu file; ``path`` is to be a copy of it with the imputation added, and may be the same.

    Raises:
        ArgumentError: the ending is not one of these, ``path`` is a folder, or ``level`` is out of range; or a MuData
            has something under one of the names already.
        ArgumentTypeError: ``what`` or ``path`` is of another type.
        FileNotFoundError: the folder to write into does not exist.
        DataError: a covariate has more than one number for an instance, which tables do not hold; or a MuData lacks
            instances.
        SchemaError: an assay of a MuData lacks features.
        MissingDependencyError: a package is not installed; says what to install.
        OSError: it cannot be written; what was at ``path`` before still is.

    Example:
        >>> import tempfile, torch
        >>> data = MultimodalData({"text": torch.ones(2, 3)}, ids=["a", "b"])
        >>> write(data, Path(tempfile.mkdtemp()) / "data.npz").name
        'data.npz'
    """
    level = checked_level(level)
    if is_mudata(path):
        write_into(what, path, level)
        return path
    if not isinstance(path, str | os.PathLike):
        raise ArgumentTypeError(
            f"path: expected a str, a Path or a MuData, got {brief(path)}; pass one such as 'imputed.h5mu', and wrap "
            "an AnnData as mudata.MuData({'protein': it})."
        )
    place = place_of(path)
    writer = FORMATS.get(place.suffix.lower())
    if writer is None:
        raise ArgumentError(
            f"path: expected a name that ends with one of {list(FORMATS)}, got {place.name!r}; take one of these. "
            "For other formats imputed.frame(name) is a table, as in imputed.frame('text').to_csv('text.csv')."
        )
    if into is not None:
        if writer is not write_h5mu or isinstance(place, Remote):
            raise ArgumentError(f"path: expected a local .h5mu file, as into= is, got {brief(path)}.")
        write_into(what, into, level, place)
    elif isinstance(place, Remote):
        if writer is not write_parquet:
            raise ArgumentError(f"path: to URLs parquet alone is written, got {path}; write a local file, and copy it.")
        write_parquet(contents_of(what, level), place)
    elif isinstance(what, MultimodalData) and writer is write_npz:
        return save_npz(what, place)
    else:
        writer(contents_of(what, level), place)
    return place
