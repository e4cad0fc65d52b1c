"""Small well-formed files of every kind that the library reads, and ways of damaging them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

import calmrl_prob as cal
from calmrl_prob.priors import MixturePrior
from calmrl_prob.recalibration import Recalibration
from tests.cases.held_cases import own_loadings
from tests.cases.model_cases import random_data, random_model

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
    """

    name: str
    write: Callable[[Path], Any]
    load: Callable[[Path], Any]
    values: Callable[[Any], Values] | None


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
    "model": Kind("model.safetensors", _write_model, cal.load, _numbers_of_model),
    "structure": Kind("structure.safetensors", _write_structure, cal.load, _numbers_of_structure),
    "index": Kind("index.safetensors", _write_index, cal.load, _numbers_of_index),
    "fit": Kind("fit.safetensors", lambda path: cal.save(_fit(), path), cal.load, _numbers_of_fit),
    "program": Kind("program.safetensors", lambda path: cal.save(_program(), path), _load_program, _numbers_of_fit),
    "recalibration": Kind("recalibration.safetensors", _write_recalibration, cal.load, _numbers_of_recalibration),
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
