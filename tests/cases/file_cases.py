"""Small well-formed files of every kind that the library reads, and ways of damaging them."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from hypothesis import strategies as st
from lightning.pytorch.callbacks import EarlyStopping
from safetensors import safe_open
from safetensors.torch import save_file

import calmrl_prob as cal
from calmrl_prob._support.archives import checksum
from calmrl_prob._support.trees import taken_apart
from calmrl_prob.priors import MixturePrior
from calmrl_prob.recalibration import Recalibration
from calmrl_prob.training import Alignment, AlignmentModule, GenerativeStep
from calmrl_prob.training.checkpoints import read_checkpoint
from calmrl_prob.training.resuming import require_restorable
from calmrl_prob.training.stored import kept_of
from calmrl_prob.training.trainer import make_trainer
from calmrl_prob.training.watch import RECALL, Watch
from tests.cases.held_cases import own_loadings
from tests.cases.model_cases import random_data, random_model
from tests.cases.training_cases import data as training_rows
from tests.cases.training_cases import run

Values = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: of a file of it.
        write: one small file.
        load: reads it.
        values: numbers of what was read; those of a damaged file are the same or it is refused. None where the format
            has no checksum, so that it cannot be told.
        sealed: whether it is a file of tensors with a checksum, which lies can be given anew.
        otherwise: how messages of another ``ArgumentError`` begin that a file which lies may cause: it is then a sound
            one of another training, or of a user's own modules.
    """

    name: str
    write: Callable[[Path], Any]
    load: Callable[[Path], Any]
    values: Callable[[Any], Values] | None
    sealed: bool = False
    otherwise: str | None = None


def _write_npz(path: Path) -> None:
    np.savez_compressed(
        path,
        x_image=np.arange(12.0).reshape(4, 3),
        x_text=np.ones((4, 2), np.float32),
        ids=np.array(["a", "b", "c", "d"]),
        train_idx=np.array([0, 2]),
        group=np.array([1, 2, 1, 2]),
    )


def _write_model(path: Path) -> None:
    cal.save(cal.SharedLatentModel({"image": 3, "text.title": 2}, 2, prior=MixturePrior(2, num_components=2)), path)


def _write_structure(path: Path) -> None:
    cal.save(random_model("diagonal").linear_gaussian(), path)


def _write_index(path: Path) -> None:
    cal.save(cal.RetrievalIndex.build(random_model("full").linear_gaussian(), random_data(6), queries=["image"]), path)


def _write_draws(path: Path) -> None:
    lg = random_model().linear_gaussian().detach()
    cal.to_arviz(lg, random_data(4), num_draws=4).to_netcdf(path, engine="h5netcdf")


def _numbers_of_data(data: cal.MultimodalData) -> Values:
    ids, partition = np.asarray(data.ids), np.asarray(data.partition)
    beside = {name: np.asarray(column) for name, column in data.covariates.items()}
    return {**{name: data[name].numpy() for name in data.names}, "ids": ids, "partition": partition, **beside}


def _numbers_of_model(model: cal.SharedLatentModel) -> Values:
    return {key: value.numpy() for key, value in model.state_dict().items()}


def _numbers_of_structure(lg: cal.LinearGaussian) -> Values:
    mean, covariance = lg.joint()
    return {"mean": mean.numpy(), "covariance": covariance.numpy(), "names": np.array(lg.names)}


def _numbers_of_index(index: cal.RetrievalIndex) -> Values:
    found = index.search(random_data(3, seed=1), len(index))
    return {"ids": found.ids, "log_ratios": found.log_ratios, **_numbers_of_structure(index.linear_gaussian)}


def _train(folder: Path | None) -> Alignment:
    """One epoch of all that a training keeps: statistics, draws, validation, early stopping."""
    return run(max_epochs=1, folder=folder, validation=training_rows(40, seed=1), em_options={"decay": 0.5})


def _write_alignment(path: Path) -> None:
    cal.save(_train(None), path)


def _numbers_of_alignment(found: Alignment) -> Values:
    kept = taken_apart(kept_of(found))
    return {"description": np.array(json.dumps(kept[0])), **{key: value.numpy() for key, value in kept[1].items()}}


def _write_checkpoint(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _train(Path(folder))
        shutil.copy(Path(folder) / "checkpoints/last.ckpt", path)


@cache
def _trainee() -> tuple[AlignmentModule, lightning.Trainer]:
    """What a checkpoint of :func:`_train` is to be taken over by."""
    module = _train(None).module
    step = GenerativeStep([], 4, module.options.generative())
    stopping = EarlyStopping(RECALL, mode="max", patience=10, check_on_train_epoch_end=True)
    return module, make_trainer(module.options, [step, Watch(None, step), stopping], None, None, None)


def _resume(path: Path) -> dict[str, Any]:
    checkpoint = read_checkpoint(path)
    require_restorable(path, checkpoint, *_trainee())
    return checkpoint


def _numbers_of_checkpoint(checkpoint: dict[str, Any]) -> Values:
    tree, tensors = taken_apart(checkpoint)
    return {"description": np.array(json.dumps(tree)), **{key: value.numpy() for key, value in tensors.items()}}


@cache
def _fit() -> cal.FitResult:
    data = random_data(40)
    return cal.fit(cal.SharedLatentModel(data.dims, 1), data, tolerance=1e-2)


@cache
def _program() -> cal.FitResult:
    """Draws of the loadings of a Pyro model."""
    data = random_data(40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cal.fit(own_loadings, data, method="nuts", num_draws=4, num_warmup=4, num_chains=1)


def _numbers_of_fit(fit: cal.FitResult) -> Values:
    held = random_data(5)
    with torch.no_grad():
        given = fit.posterior(held)
    rows = {f"seen/{name}": part.hashes for name, part in fit.rows_of_fit.modalities.items()}
    return {"mean": given.mean.numpy(), "evidence": given.log_marginal.numpy(), "text": np.array(repr(fit)), **rows}


def _numbers_of_recalibration(found: Recalibration) -> Values:
    return {"text": np.array(repr(found)), "table": found.table().to_numpy().astype(str)}


def _write_recalibration(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cal.save(cal.recalibrate(_fit(), random_data(40), "cv+", folds=2), path)


def _load_program(path: Path) -> Any:  # noqa: ANN401
    return cal.load(path, model=own_loadings)


KINDS = {
    "npz": Kind("data.npz", _write_npz, cal.load_npz, _numbers_of_data),
    "model": Kind("model.safetensors", _write_model, cal.load, _numbers_of_model, sealed=True),
    "structure": Kind("structure.safetensors", _write_structure, cal.load, _numbers_of_structure, sealed=True),
    "index": Kind("index.safetensors", _write_index, cal.load, _numbers_of_index, sealed=True),
    "alignment": Kind(
        "alignment.safetensors", _write_alignment, cal.load, _numbers_of_alignment, sealed=True, otherwise="encoders: "
    ),
    "checkpoint": Kind(
        "last.ckpt", _write_checkpoint, _resume, _numbers_of_checkpoint, sealed=True, otherwise="resume: "
    ),
    "fit": Kind("fit.safetensors", lambda path: cal.save(_fit(), path), cal.load, _numbers_of_fit, sealed=True),
    "program": Kind(
        "program.safetensors",
        lambda path: cal.save(_program(), path),
        _load_program,
        _numbers_of_fit,
        sealed=True,
        otherwise="model: ",
    ),
    "recalibration": Kind(
        "recalibration.safetensors", _write_recalibration, cal.load, _numbers_of_recalibration, sealed=True
    ),
    "draws": Kind("draws.nc", _write_draws, cal.from_arviz, None),
}


def damaged(whole: bytes, changes: list[tuple[str, float, int]]) -> bytes:
    """A file with bytes flipped, cut off, left out, doubled or zeroed, at shares of its length."""
    content = bytearray(whole)
    for how, share, byte in changes:
        at = min(int(share * len(content)), max(len(content) - 1, 0))
        if how == "cut":
            del content[at:]
        elif how == "drop":
            del content[at : at + byte]
        elif how == "zero":
            content[at : at + byte] = bytes(len(content[at : at + byte]))
        elif how == "double":
            content[at:at] = content[at : at + byte]
        elif content:
            content[at] = byte if how == "set" else content[at] ^ byte
    return bytes(content)


#: One to three changes: how, where as a share of the file, and by which byte or how many.
changes = st.lists(
    st.tuples(
        st.sampled_from(["flip", "flip", "set", "cut", "drop", "zero", "double"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(1, 255),
    ),
    min_size=1,
    max_size=3,
)


def rewritten(path: Path, target: Path, lies: list[tuple[str, float, object]]) -> None:
    """A file of tensors whose description or tensors are others, sealed anew as if it had been written so."""
    with safe_open(path, framework="pt") as archive:
        metadata = dict(archive.metadata())
        tensors = {key: archive.get_tensor(key) for key in archive.keys()}  # noqa: SIM118
    config = json.loads(metadata["config"])
    for how, share, value in lies:
        if how == "swap" and tensors:
            keys = sorted(tensors)
            one, other = keys[int(share * len(keys))], keys[int(share * 7919 * len(keys)) % len(keys)]
            tensors[one], tensors[other] = tensors[other], tensors[one]
        elif places := list(_places(config)):
            inside, key = places[int(share * len(places))]
            if how == "drop":
                del inside[key]
            else:
                inside[key] = copy.deepcopy(value)  # lies may lie within lies
    metadata["config"] = json.dumps(config)
    metadata["sha256"] = checksum(metadata["config"], tensors)
    save_file({key: value.clone() for key, value in tensors.items()}, target, metadata)


def _places(node: Any) -> Iterator[tuple[Any, Any]]:  # noqa: ANN401 - of JSON
    """All places in a description where something stands: what it stands in, and under which key."""
    for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield node, key
        yield from _places(node[key])


#: One to three lies: a value in the place of another, one left out, or two tensors in each other's places.
lies = st.lists(
    st.tuples(
        st.sampled_from(["set", "set", "drop", "swap"]),
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(
            [None, True, -1, 0, 1, 3, 10**6, 10**12, 10**30, 0.5, float("nan"), "", "MLPEncoder", [], [1], {},
             [[1, 2]], {"dict": []}, {"tuple": []}, {"dict": [["a", 1]]}, {"tensor": "0"}]
        ),
    ),
    min_size=1,
    max_size=3,
)  # fmt: skip
