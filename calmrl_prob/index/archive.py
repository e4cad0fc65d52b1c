"""An index in files: tensors and a description, as ``_support/archives.py`` writes them; candidates are mapped.

Shelves stand one after another in "high", "low", "rows" and "alive", as many of each as "counts" says; what is prepared
is under "asked/<number>/". Structures of faiss are the bytes that faiss writes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calmrl_prob._support.arguments import brief
from calmrl_prob.data.entries import entries
from calmrl_prob.data.features import from_lists, names_of
from calmrl_prob.errors import ArgumentError, FileFormatError
from calmrl_prob.file_contents import Shapes, require_structure_contents, structure_from_tensors, structure_tensors
from calmrl_prob.index.approximate import Approximate
from calmrl_prob.index.measured import Floats, Instrument
from calmrl_prob.index.neighbours import STRUCTURES, Neighbours
from calmrl_prob.index.pairs import Asked
from calmrl_prob.index.shelves import Shelf
from calmrl_prob.linear_gaussian import LinearGaussian

KIND = "RetrievalIndex"
_MODEL = "model/"
#: Kinds of ids that are numbers to a file, and those that are counted from a date.
_NUMBERS, _DATES = "iufb", "mM"
#: What a shelf has of each candidate, and the types of the entries.
_OF_SHELVES = {"rows": "l", "high": "f", "low": "f", "alive": "?"}


@dataclass(eq=False)
class Contents:
    """All that an index is.

    Attributes:
        engine: "exact" or "faiss".
        dims: of the modalities, with the names of features where they are known.
        linear_gaussian: the model, float64.
        scale: L of ``pairs.py``, (K, K).
        shelves: the candidates.
        ids: of all that ever were, by number.
        numbered: whether they came without.
        prepared: the patterns of queries that were prepared by name, and their structures.
    """

    engine: str
    dims: dict[str, int]
    linear_gaussian: LinearGaussian
    scale: Floats
    shelves: list[Shelf]
    ids: NDArray[Any]
    numbered: bool
    prepared: list[tuple[Asked, Approximate | None]]


def index_tensors(contents: Contents) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description and the tensors of an index.

    Raises:
        ArgumentError: ids are neither texts nor numbers nor dates.
    """
    kind, ids = packed_ids(contents.ids)
    arrays = {"scale": contents.scale, **packed_shelves(contents.shelves), **ids}
    asked = []
    for number, (about, approximate) in enumerate(contents.prepared):
        start = f"asked/{number}"
        arrays[f"{start}/pattern"], arrays[f"{start}/terms"] = about.pattern, np.concatenate(about.terms)
        asked.append(None if approximate is None else _described(approximate))
        for j, part in (approximate.parts if approximate else {}).items():
            arrays[f"{start}/{j}/forth"], arrays[f"{start}/{j}/back"] = part.forth, part.back
            arrays[f"{start}/{j}/faiss"] = part.to_bytes()
    config = {
        "kind": KIND,
        "engine": contents.engine,
        "names": contents.linear_gaussian.names,
        **({"feature_names": names_of(contents.dims)} if names_of(contents.dims) else {}),
        "ids": kind,
        "numbered": contents.numbered,
        "asked": asked,
    }
    model = {f"{_MODEL}{key}": tensor for key, tensor in structure_tensors(contents.linear_gaussian).items()}
    return config, as_tensors(arrays, model)


def require_index_contents(config: Mapping[str, Any], shapes: Shapes) -> None:
    """Refuse the description of an index whose numbers are not all in the file.

    Raises:
        FileFormatError: a tensor is missing or of another shape.
        ArgumentError, KeyError: the description says what no index is.
    """
    model = {key.removeprefix(_MODEL): shape for key, shape in shapes.items() if key.startswith(_MODEL)}
    require_structure_contents(config, model)
    if config["engine"] not in ("exact", "faiss") or not isinstance(config["numbered"], bool):
        raise ArgumentError("engine: expected 'exact' or 'faiss', and whether candidates are numbered")
    width = sum(model[f"loadings/{name}"][0] for name in config["names"])
    latent_dim = model[f"loadings/{config['names'][0]}"][1]
    (total,), (patterns,) = shapes["rows"], shapes["counts"]
    expected = {
        "scale": (latent_dim, latent_dim),
        "patterns": (patterns, width),
        "high": (total, latent_dim),
        "low": (total, latent_dim),
        "alive": (total,),
    }
    if not isinstance(config["asked"], list):
        raise ArgumentError(f"asked: expected what was prepared, got {brief(config['asked'])}")
    for number in range(len(config["asked"])):
        expected |= {f"asked/{number}/pattern": (width,), f"asked/{number}/terms": (total,)}
    for key, shape in expected.items():
        if shapes.get(key) != shape:
            raise FileFormatError(f"tensor {key!r}: expected shape {shape}, got {shapes.get(key, 'none')}")


def index_contents(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Contents:
    """The contents that :func:`index_tensors` packed; large arrays stay where the tensors are.

    Raises:
        FileFormatError, ArgumentError, KeyError: they do not fit together.
    """
    model = {key.removeprefix(_MODEL): tensor for key, tensor in tensors.items() if key.startswith(_MODEL)}
    lg = structure_from_tensors(config["names"], model)
    arrays = {key: tensor.numpy() for key, tensor in tensors.items() if not key.startswith(_MODEL)}
    if arrays["scale"].dtype.char != "d":
        raise FileFormatError(f"tensor 'scale': expected entries of type float64, got {arrays['scale'].dtype}")
    ids, shelves = unpacked_ids(config["ids"], arrays), unpacked_shelves(arrays)
    stops = np.cumsum([len(shelf) for shelf in shelves]).tolist()
    places = [slice(start, stop) for start, stop in itertools.pairwise([0, *stops])]
    if len(ids) != stops[-1]:
        raise FileFormatError(f"ids: expected those of {stops[-1]} candidates, got {len(ids)}")
    instrument = Instrument(lg)
    prepared = []
    for number, described in enumerate(config["asked"]):
        start = f"asked/{number}"
        about = Asked(instrument, arrays["scale"], arrays[f"{start}/pattern"], kept=True)
        about.take_terms([arrays[f"{start}/terms"][place] for place in places])
        found = None if described is None else _approximate(start, described, arrays, shelves)
        prepared.append((about, found))
    dims = from_lists(lg.dims, config.get("feature_names"))
    return Contents(config["engine"], dims, lg, arrays["scale"], shelves, ids, config["numbered"], prepared)


def packed_shelves(shelves: list[Shelf]) -> dict[str, np.ndarray]:
    """The arrays that shelves become, one after another."""
    found = {name: [getattr(shelf, name) for shelf in shelves] for name in _OF_SHELVES}
    return {
        "patterns": np.stack([shelf.pattern for shelf in shelves]),
        "counts": np.array([len(shelf) for shelf in shelves]),
        **{name: parts[0] if len(parts) == 1 else np.concatenate(parts) for name, parts in found.items()},
    }


def unpacked_shelves(arrays: Mapping[str, np.ndarray]) -> list[Shelf]:
    """The shelves of :func:`packed_shelves`, as views of the arrays.

    Raises:
        FileFormatError: they do not fit together.
    """
    for key, kind in {"patterns": "?", "counts": "l", **_OF_SHELVES}.items():
        if arrays[key].dtype.char != kind:
            raise FileFormatError(f"tensor {key!r}: expected entries of type {np.dtype(kind)}, got {arrays[key].dtype}")
    total, rows = len(arrays["rows"]), arrays["rows"]
    if (arrays["counts"] < 1).any() or arrays["counts"].sum() != total:
        raise FileFormatError(f"counts: expected those of {total} candidates")
    if not np.array_equal(np.sort(rows), np.arange(total)):
        raise FileFormatError(f"rows: expected each number below {total} once")
    stops = np.cumsum(arrays["counts"]).tolist()
    return [
        Shelf(pattern, *(arrays[name][start:stop] for name in _OF_SHELVES))
        for pattern, (start, stop) in zip(arrays["patterns"], itertools.pairwise([0, *stops]), strict=True)
    ]


def as_tensors(arrays: Mapping[str, np.ndarray], beside: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Arrays as the tensors of an archive, with others beside them; what need not be is not copied."""
    return _apart({**beside, **{key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in arrays.items()}})


def _described(approximate: Approximate) -> dict[str, Any]:
    return {
        "structure": approximate.structure,
        "effort": approximate.effort,
        "recall": approximate.recall,
        "parts": list(approximate.parts),
    }


def _approximate(
    start: str, described: Mapping[str, Any], arrays: Mapping[str, np.ndarray], shelves: list[Shelf]
) -> Approximate:
    if described["structure"] not in STRUCTURES:
        raise FileFormatError(f"structure: expected one of {list(STRUCTURES)}, got {brief(described['structure'])}")
    found = Approximate(described["structure"], {}, int(described["effort"]), float(described["recall"]))
    for j in described["parts"]:
        forth, back, written = (arrays[f"{start}/{j}/{name}"] for name in ("forth", "back", "faiss"))
        found.parts[j] = Neighbours.from_bytes(forth, back, written)
        if len(found.parts[j]) > len(shelves[j]):
            raise FileFormatError(f"structure {j}: it has {len(found.parts[j])} candidates of {len(shelves[j])}")
    return found


def packed_ids(ids: NDArray[Any]) -> tuple[str, dict[str, np.ndarray]]:
    """The type of ids, and the arrays that they become: texts their bytes, side by side, and how many each has.

    Raises:
        ArgumentError: they are neither texts nor numbers nor dates.
    """
    ids = entries(ids)
    if ids.dtype.kind == "U":
        texts = [text.encode("utf-8", "surrogatepass") for text in ids.tolist()]
        sizes = np.array([len(text) for text in texts], np.int64)
        return "text", {"ids": np.frombuffer(b"".join(texts), np.uint8).copy(), "ids/sizes": sizes}
    if ids.dtype.kind in _NUMBERS:
        return "number", {"ids": ids}
    if ids.dtype.kind in _DATES:
        return ids.dtype.str, {"ids": ids.view(np.int64)}
    raise ArgumentError(
        f"index: its ids are of type {ids.dtype}, and files hold texts, numbers and dates; build it with such ids, as "
        "MultimodalData(..., ids=[str(one) for one in ids])."
    )


def unpacked_ids(kind: str, arrays: Mapping[str, np.ndarray]) -> NDArray[Any]:
    """The ids of :func:`packed_ids`.

    Raises:
        FileFormatError: they do not fit together.
    """
    if kind == "number":
        return arrays["ids"]
    if kind == "text":
        stops, whole = np.cumsum(arrays["ids/sizes"]).tolist(), arrays["ids"].tobytes()
        if (arrays["ids/sizes"] < 0).any() or (stops or [0])[-1] != len(whole):
            raise FileFormatError("ids: expected as many bytes as their sizes say")
        texts = [whole[a:b].decode("utf-8", "surrogatepass") for a, b in itertools.pairwise([0, *stops])]
        return np.array(texts, dtype=np.str_)
    found: NDArray[Any] = arrays["ids"].view(np.dtype(kind))
    if found.dtype.kind not in _DATES:
        raise FileFormatError(f"ids: expected texts, numbers or dates, got {brief(kind)}")
    return found


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share no memory, as the format wants them; those that share none already are not copied."""
    seen: set[int] = set()
    found = {}
    for key, tensor in tensors.items():
        whole = tensor.untyped_storage()
        if whole.data_ptr() in seen or whole.nbytes() != tensor.nbytes or not tensor.is_contiguous():
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        seen.add(tensor.untyped_storage().data_ptr())
        found[key] = tensor
    return found
