"""Models, fits and indexes in files: one safetensors file each, with a JSON description in its header, no pickles.

The tensors are the model's ``state_dict``, or the parameters of a ``LinearGaussian`` as "loadings/<name>" and so on.
What is attached to a model goes with it, as tensors "attached/...". The file itself is that of
``_support/archives.py``, an index's contents are in ``index/archive.py``, those of an ``Alignment`` in
``training/stored.py``; everything else, a fit say, is a record (``files/records.py``).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeGuard

from torch import Tensor, nn

from calmrl_prob._support.archives import Kind, read_archive, separate, write_archive
from calmrl_prob._support.arguments import described
from calmrl_prob._support.trees import put_together, taken_apart
from calmrl_prob.classification import Classifier
from calmrl_prob.data.features import from_lists, names_of
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, FileFormatError
from calmrl_prob.file_contents import (
    require_model_contents,
    require_structure_contents,
    structure_from_tensors,
    structure_tensors,
)
from calmrl_prob.files.models import build_model, describe_model, table
from calmrl_prob.files.records import Packer, Unpacker
from calmrl_prob.index.archive import KIND as _INDEX
from calmrl_prob.index.archive import require_index_contents
from calmrl_prob.index.retrieval_index import RetrievalIndex
from calmrl_prob.inference.parameters.parameter_draws import ParameterDraws
from calmrl_prob.inference.result import FitResult
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.model import SharedLatentModel
from calmrl_prob.programs.bound import BoundModel
from calmrl_prob.recalibration import Recalibration

if TYPE_CHECKING:  # it needs Lightning
    from calmrl_prob.training.alignment import Alignment
    from calmrl_prob.training.stored import StoredAlignment
else:
    Alignment = StoredAlignment = Any  # for whoever looks up annotations at run time

_MODEL, _STRUCTURE, _RECORD, _ALIGNMENT = "SharedLatentModel", "LinearGaussian", "record", "Alignment"
#: What is kept as a record.
Recorded = FitResult | Recalibration | ParameterDraws | BoundModel | Classifier
#: What is saved and loaded, but for an ``Alignment``.
Savable = SharedLatentModel | LinearGaussian | RetrievalIndex | Recorded


def save(model: Savable | Alignment, path: str | os.PathLike[str]) -> None:
    """Write a model, a fit, a classifier, a recalibration, draws, an index or an alignment to a file.

    :func:`load` gives it back. The file is written beside ``path`` and then moved there, so that ``path`` never holds
    half a model.

    Of a fit everything is kept: the model, the course of the fit, the choice with its table, intervals, draws and
    guides, and hashes of the rows that it was fitted to, by which held-out rows are checked; with a model, what ``fit``
    and ``recalibrate(..., attach=True)`` left at it. No data are. Of a Pyro model or a module of your own the file has
    the parameters and the name; the model itself is handed to :func:`load`.

    Args:
        model: what to save. Gradients and the device are not kept. Of an ``Alignment`` the encoders, the generative
            model and the history are, but nothing that only training needs: checkpoints have that.
        path: where; an existing file is replaced.

    Raises:
        ArgumentTypeError: ``model`` is of another type, or holds what no file keeps, in its options say; or ``path`` is
            no path, or an encoder has a state of no tensors.
        ArgumentError: ``path`` is empty or a folder.
        FileNotFoundError: the folder of ``path`` does not exist.
        OSError: the file cannot be written, as on a full disk.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> save(SharedLatentModel({"image": 3}, latent_dim=2), path)
        >>> load(path)
        SharedLatentModel(image: 3; latent_dim=2, noise='isotropic', prior=normal)
    """
    if isinstance(model, RetrievalIndex):
        return model.save(path)
    config: dict[str, Any]
    if isinstance(model, SharedLatentModel):
        config, tensors = describe_model(model)
    elif isinstance(model, LinearGaussian):
        names = {} if model.feature_names is None else {"feature_names": dict(model.feature_names)}
        config, tensors = {"kind": _STRUCTURE, "names": model.names, **names}, structure_tensors(model)
    elif isinstance(model, Recorded):
        packer = Packer(table())
        config = {"kind": _RECORD, "record": packer.pack(model, type(model).__name__)}
        tensors = packer.tensors
    elif _is_alignment(model):
        from calmrl_prob.training.stored import kept_of  # it needs Lightning

        content, tensors = taken_apart(kept_of(model))
        config = {"kind": _ALIGNMENT, "content": content}
    else:
        raise ArgumentTypeError(
            "model: expected a SharedLatentModel, a LinearGaussian, a FitResult, a Classifier, a Recalibration, draws "
            f"of parameters, a fitted Pyro model, a RetrievalIndex or an Alignment, got {type(model).__name__}; "
            "imputations and data go to cal.write, and of another torch module save its state_dict with safetensors."
        )
    write_archive(path, config, separate(tensors))


def load(path: str | os.PathLike[str], model: object = None, *, encoders: Mapping[str, nn.Module] | None = None) -> Any:  # noqa: ANN401 - what was saved
    """Read what :func:`save` wrote.

    Args:
        path: where it is.
        model: of a fit of a Pyro model or of a module of your own that model: the function, which gets the parameters
            and draws of the file, or a module made with the same settings, of which a copy gets them. Files hold no
            code, and nothing is imported by a name that stands in one. A parameter of a module that the function closes
            over is set at the first call.
        encoders: of an ``Alignment``, by modality: modules of your own, built as those were that were saved. They take
            over the saved parameters, in place. Those of ``calmrl_prob.encoders`` need not be given: no file can name
            code that is imported or run, so that it can bring only what this package has.

    Returns:
        The same kind of thing that was saved, on the CPU, in the floating-point type that it was saved in.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: the file is damaged, of another origin, or from a newer version.
        ArgumentError: ``model`` is needed and was not given, or is another than that of the file, by its name or its
            parameters; of other files it is not looked at. A function with other sites is refused by ModelError at its
            first call.
        ArgumentError: the file has an encoder that is neither of this package nor given, or one of other parameters
            than the one given; or ``encoders`` are given and it has none.
        ArgumentError, ArgumentTypeError: ``path`` is a folder, or no path, or an encoder no module.
        MissingDependencyError: it is an ``Alignment``, and Lightning is not installed.

    Example:
        >>> from pathlib import Path
        >>> import tempfile, torch, pyro, pyro.distributions as dist
        >>> import calmrl_prob as cal
        >>> def pixels(data):
        ...     scale = pyro.param("scale", torch.tensor(1.0).double(), constraint=dist.constraints.positive)
        ...     with pyro.plate("instances", len(data)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z.expand(-1, 2), scale).to_event(1), obs=data.filled("x"))
        >>> fit = cal.fit(pixels, cal.MultimodalData({"x": torch.arange(8.0).double().reshape(4, 2)}))
        >>> path = Path(tempfile.mkdtemp()) / "fit.safetensors"
        >>> save(fit, path)
        >>> load(path, model=pixels).model.model is pixels
        True
        >>> load(path)
        Traceback (most recent call last):
        calmrl_prob.errors.ModelToLoadError: model: the file holds parameters of a Pyro model, ...
    """

    def build_record(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Recorded:
        found = Unpacker(table(model), tensors).unpack(config["record"])
        if not isinstance(found, Recorded):
            raise FileFormatError(f"it holds {described(found)}, which is not saved by itself")
        return found

    # a record is checked part by part: it is no larger than what stands in it
    kinds: dict[str, Kind[Any]] = {**_KINDS, _RECORD: (lambda config, shapes: None, build_record)}
    found = read_archive(path, kinds, unchecked=(_RECORD,))
    if isinstance(found, Savable):
        if encoders is not None:
            raise ArgumentError(
                f"encoders: {os.fspath(path)} holds a {type(found).__name__}, which has none; leave them out."
            )
        return found
    return found.alignment(encoders)


def _build_structure(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LinearGaussian:
    found = structure_from_tensors(config["names"], tensors)
    named = names_of(from_lists(found.dims, config.get("feature_names")))
    return replace(found, feature_names=named) if named else found


def _build_alignment(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> StoredAlignment:
    from calmrl_prob.training.stored import StoredAlignment  # it needs Lightning

    return StoredAlignment.of(put_together(config["content"], tensors))


def _require_content(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Nothing yet: encoders are first built without memory, and then compared with the tensors."""


def _is_alignment(model: object) -> TypeGuard[Alignment]:
    """Whether it is an ``Alignment``: there is none where training was never imported, which takes long."""
    training = sys.modules.get("calmrl_prob.training.alignment")
    return training is not None and isinstance(model, training.Alignment)


_KINDS: dict[str, Kind[Savable | StoredAlignment]] = {
    _MODEL: (require_model_contents, build_model),
    _STRUCTURE: (require_structure_contents, _build_structure),
    _INDEX: (require_index_contents, RetrievalIndex.from_tensors),
    _ALIGNMENT: (_require_content, _build_alignment),
}
