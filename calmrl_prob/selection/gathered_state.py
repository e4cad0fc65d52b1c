"""Statistics of a stream so far in a file, so that a pass that was killed goes on where it stood."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from calmrl_prob._support.archives import save_tensors
from calmrl_prob._support.files import existing_file, file_path, said, write_atomically
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, FileFormatError
from calmrl_prob.linear_gaussian import SufficientStatistics
from calmrl_prob.selection.gathering import Gathered
from calmrl_prob.selection.sample import SmallestKeys

_FORMAT = "calmrl-prob gathered statistics 2"
_REMEDY = "delete it to gather the stream from its beginning"


class StateFile:
    """The file of one pass.

    Args:
        path: where.
        about: what has to be the same for a pass to go on: the stream's fingerprint, size of chunks, seed, folds.

    Raises:
        ArgumentError, ArgumentTypeError: ``path`` is a folder, or no path.
    """

    def __init__(self, path: Any, about: Mapping[str, Any]) -> None:  # noqa: ANN401 - a path, checked
        self.path: Path = file_path(path)
        self._about = json.dumps(dict(about), sort_keys=True)

    def save(self, gathered: Gathered) -> None:
        """Write the file, in one step.

        Raises:
            OSError: it cannot be written.
        """
        tensors: dict[str, Tensor] = {}
        for k, (fold, sample) in enumerate(zip(gathered.folds, gathered.samples, strict=True)):
            kept = fold.to_tensors()
            tensors |= {f"{k}/shift/{name}": shift for name, shift in kept["shift"].items()}
            tensors |= {f"{k}/scatter/{_bits(pattern)}": scatter for pattern, scatter in kept["scatters"].items()}
            tensors[f"{k}/keys"] = torch.from_numpy(sample.keys.view(np.int64).copy())
            if sample.data is not None:
                tensors |= {f"{k}/sample/{name}": sample.data[name] for name in sample.data.names}
        tensors = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
        # in their order, which the file does not keep, and in which a fit adds them up
        patterns = [[_bits(pattern) for pattern in fold.scatters] for fold in gathered.folds]
        place = json.dumps({"token": gathered.token, "num_rows": gathered.num_rows, "patterns": patterns})
        metadata = {"format": _FORMAT, "about": self._about, "place": place}
        metadata["sha256"] = _checksum(metadata, tensors)
        with write_atomically(self.path) as temporary:
            save_tensors(tensors, temporary, metadata, self.path)

    def load(self, empty: Gathered) -> Gathered:
        """Statistics so far; ``empty`` where there is no file yet.

        Raises:
            ArgumentError: the file is of another stream, or of other settings.
            FileFormatError: it is damaged, or something else.
        """
        if not self.path.exists():
            return empty
        path = existing_file(self.path)
        try:
            with safe_open(path, framework="pt") as archive:
                metadata = archive.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise FileFormatError(f"{path}: expected what a pass over a stream had gathered; {_REMEDY}.")
                tensors = {key: archive.get_tensor(key) for key in archive.keys()}  # noqa: SIM118
            if metadata.get("sha256") != _checksum(metadata, tensors):
                raise FileFormatError(f"{path}: damaged (the sha256 checksum differs); {_REMEDY}.")
            if metadata["about"] != self._about:
                raise ArgumentError(
                    f"state: {path} was gathered of another stream, or with other settings (it has "
                    f"{metadata['about']}, this pass {self._about}); pass those, or {_REMEDY}."
                )
            return _rebuilt(empty, json.loads(metadata["place"]), tensors)
        except SafetensorError as error:
            raise FileFormatError(f"{path}: not a file of this kind, or damaged ({said(error)}); {_REMEDY}.") from error


def _rebuilt(empty: Gathered, place: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Gathered:
    found = Gathered(empty.dims, len(empty.folds), empty.seed, empty.groups)
    for k in range(len(found.folds)):
        parts: dict[str, dict[str, Tensor]] = {"shift": {}, "scatter": {}, "sample": {}}
        for key, tensor in tensors.items():
            number, kind, *name = key.split("/", 2)
            if number == str(k) and kind in parts:
                parts[kind][name[0]] = tensor
        scatters = {tuple(bit == "1" for bit in bits): parts["scatter"][bits] for bits in place["patterns"][k]}
        names = found.folds[k].feature_names
        kept = {"dims": dict(found.dims), "shift": parts["shift"], "scatters": scatters}
        found.folds[k] = SufficientStatistics.from_tensors(kept)
        found.folds[k].feature_names = names
        sample = SmallestKeys(found.samples[k].size)
        sample.keys = tensors[f"{k}/keys"].numpy().view(np.uint64)
        if parts["sample"]:
            sample.data = MultimodalData({name: parts["sample"][name] for name in found.dims})
        found.samples[k] = sample
    found.token, found.num_rows = place["token"], place["num_rows"]
    return found


def _bits(pattern: tuple[bool, ...]) -> str:
    return "".join("1" if here else "0" for here in pattern)


def _checksum(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(f"{metadata['about']}\n{metadata['place']}".encode())
    for key in sorted(tensors):
        digest.update(f"\n{key} {tensors[key].dtype} {tuple(tensors[key].shape)}\n".encode())
        digest.update(tensors[key].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
