"""Records: values come back as they were, and descriptions of what nothing is made of are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import calmrl_prob as cal
from calmrl_prob._support.archives import checksum
from calmrl_prob._support.frozen import FrozenMapping
from calmrl_prob.errors import ArgumentTypeError, FileFormatError
from calmrl_prob.files.records import Packer, Unpacker
from calmrl_prob.inference.approximate.guides import AmortizedGuide, PerInstanceGuide
from tests.cases.file_cases import KINDS
from tests.cases.linear_gaussian_cases import random_model


def there_and_back(value: object) -> Any:  # noqa: ANN401
    packer = Packer({})
    packed = json.loads(json.dumps(packer.pack(value, "value"), allow_nan=False))
    return Unpacker({}, packer.tensors).unpack(packed)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        -(2**70),
        0.1 + 0.2,
        float("inf"),
        "Ärger/µ",
        (),
        [1, (2, [3])],
        {"a": {1: "b", None: (), ("x", 2): 0.5}},
        slice(1, None, 2),
    ],
    ids=repr,
)
def test_plain_values(value: object) -> None:
    found = there_and_back(value)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3).T,
        np.array([2**63 + 1], np.uint64),
        np.array(3, np.int16),
        np.zeros((0, 2), bool),
        np.array([np.nan, -0.0], np.float32),
        np.arange(3, dtype=">i4"),
        np.array([["a", "Ärger"]]),
        np.array([], dtype="U3"),
        np.array([None, "a", 0.5], dtype=object),
    ],
    ids=lambda array: str(array.dtype),
)
def test_arrays(array: np.ndarray) -> None:
    found = there_and_back(array)
    assert found.shape == array.shape
    assert found.dtype.kind == array.dtype.kind
    np.testing.assert_array_equal(found, array)


def test_mappings_frames_and_scalars_keep_their_kinds() -> None:
    frame = pd.DataFrame({"n": [1, 2], "x": [0.5, np.nan], "s": ["a", None], "b": [True, False]})
    pd.testing.assert_frame_equal(there_and_back(frame), frame)
    assert type(there_and_back(FrozenMapping({"a": 1}))) is FrozenMapping
    assert there_and_back(np.float64(0.1)) == 0.1


def test_what_is_one_thing_stays_one() -> None:
    tensor, array = torch.ones(2), np.ones(2)
    found = there_and_back({"a": tensor, "b": tensor, "c": array, "d": array, "a/b": torch.zeros(1)})
    assert found["a"] is found["b"]
    assert found["c"] is found["d"]
    clash = there_and_back({"a": {"b": torch.ones(1)}, "a/b": torch.zeros(1)})
    assert (float(clash["a"]["b"]), float(clash["a/b"])) == (1.0, 0.0)


@pytest.mark.parametrize("value", [{1}, object(), 1j, np.array([1j]), np.array(["2020"], "M8[Y]"), int, json])
def test_values_that_no_file_keeps(value: object) -> None:
    with pytest.raises(ArgumentTypeError, match=r"value/0.*no file keeps; leave it out"):
        there_and_back([value])


# --- descriptions that lie


def rewritten(path: Path, change: Callable[[Any], None], drop: str = "") -> None:
    """The same file with another description, or without a tensor, and the checksum of what it is now."""
    with safe_open(path, framework="pt") as archive:
        tensors = {key: archive.get_tensor(key) for key in archive.keys() if key != drop}  # noqa: SIM118
        metadata = dict(archive.metadata())
    config = json.loads(metadata["config"])
    change(config)
    described = json.dumps(config)
    save_file(tensors, path, metadata | {"config": described, "sha256": checksum(described, tensors)})


def fields(config: Any, *names: str) -> dict[str, Any]:  # noqa: ANN401
    """The fields of the object that some fields lead to."""
    here = config["record"]
    for name in names:
        here = here["object"][1][name]
    found: dict[str, Any] = here["object"][1]
    return found


def putting(value: object, *names: str) -> Callable[[Any], None]:
    def change(config: Any) -> None:  # noqa: ANN401
        fields(config, *names[:-1])[names[-1]] = value

    return change


def renaming(name: object) -> Callable[[Any], None]:
    def change(config: Any) -> None:  # noqa: ANN401
        config["record"]["object"][0] = name

    return change


LIES: dict[str, Callable[[Any], None]] = {
    "a number is text": putting("many", "num_iterations"),
    "a flag is a number": putting(1, "converged"),
    "an array is a list": putting([1.0], "log_likelihood"),
    "an array of nothing": putting({"array": ["nowhere", False]}, "objective"),
    "a tensor of nothing": putting({"tensor": "nowhere"}, "report", "trace", "objective"),
    "a field too many": putting(3, "nobody"),
    "a field too many within": putting(3, "report", "trace", "nobody"),
    "no class": renaming("os.system"),
    "a list for a class": renaming(["FitResult"]),
    "another class": renaming("Trace"),
    "what was never made": putting({"same": 10**9}, "rows_of_fit"),
    "itself": putting({"same": 0}, "model"),
    "two kinds at once": putting({"dict": [], "tuple": []}, "options"),
    "no kind": putting({"pickle": "gASVDQAAAAAAAACMAm9zlIwGc3lzdGVtlJOULg=="}, "options"),
    "no pairs": putting({"dict": [1]}, "options"),
    "keys that are none": putting({"dict": [[["a"], 1]]}, "options"),
    "a shape that is not": putting({"items": [["a"], [10**9, 10**9], True]}, "options"),
    "a model that is larger": putting(
        '{"dims": {"image": 4}, "latent_dim": 90000, "noise": "isotropic", "prior": "normal", "dtype": "float64"}',
        "model", "settings",
    ),
    "settings that are none": putting("{", "model", "settings"),
    "a state that is none": putting({"dict": []}, "model", "state"),
    "not a record": lambda config: config.pop("record"),
    "what is no thing of its own": lambda config: config.update(record={"dict": []}),
    "brackets": lambda config: config.update(record=json.loads("[" * 900 + "]" * 900)),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_fits_that_lie(lie: str, tmp_path: Path) -> None:
    path = tmp_path / "fit.safetensors"
    KINDS["fit"].write(path)
    rewritten(path, lambda config: None)
    assert isinstance(cal.load(path), cal.FitResult)  # as it was it is one
    rewritten(path, LIES[lie])
    with pytest.raises(FileFormatError, match="save the model again") as caught:
        cal.load(path)
    assert str(path) in str(caught.value)


RECALIBRATIONS: dict[str, Callable[[Any], None]] = {
    "a method of no name": putting("magic", "method"),
    "a method of other scores": putting("conformal", "method"),
    "no folds": putting([], "models"),
    "names of others": putting(["x", "y", "z"], "names"),
    "groups of none": putting({"dict": [["image", []]]}, "groups"),
    "groups of another": putting({"dict": [["image", [None]]]}, "groups"),
}


@pytest.mark.parametrize("lie", RECALIBRATIONS)
def test_recalibrations_that_lie(lie: str, tmp_path: Path) -> None:
    path = tmp_path / "recalibration.safetensors"
    KINDS["recalibration"].write(path)
    rewritten(path, RECALIBRATIONS[lie])
    with pytest.raises(FileFormatError, match="save the model again"):
        cal.load(path)


def test_parts_that_are_missing(tmp_path: Path) -> None:
    for name in ("fit", "recalibration", "program"):
        path = tmp_path / KINDS[name].name
        KINDS[name].write(path)
        whole = path.read_bytes()
        with safe_open(path, framework="pt") as archive:
            keys = list(archive.keys())
        for key in keys[:: max(1, len(keys) // 8)]:
            path.write_bytes(whole)
            rewritten(path, lambda config: None, drop=key)
            with pytest.raises(FileFormatError, match="save the model again"):
                KINDS[name].load(path)


class TestGuides:
    def test_they_are_no_larger_than_the_file(self) -> None:
        guide = AmortizedGuide(random_model({"image": 3, "text": 2}, 2, 0), (4,))
        parts = guide.parts()
        assert AmortizedGuide.from_parts(parts).state_dict().keys() == guide.state_dict().keys()
        for name in ("experts.0.network.0.weight", "experts.1.network.2.weight", "experts.1.linear"):
            wide = torch.zeros(1, 1).double().expand(10**6, 1)  # which takes no memory, but what is made of it would
            with pytest.raises(ValueError, match="widths"):
                AmortizedGuide.from_parts({**parts, "state": parts["state"] | {name: wide}})

    @pytest.mark.parametrize("kind", ["full", "diagonal"])
    def test_those_by_instance(self, kind: Any) -> None:  # noqa: ANN401
        guide = PerInstanceGuide(torch.ones(3, 2), torch.tensor([[2.0, 0.0], [0.5, 3.0]]), kind)
        found = PerInstanceGuide.from_parts(guide.parts())
        rows = torch.tensor([2, 0])
        assert torch.equal(found(rows).scale_tril, guide(rows).scale_tril)
        state = guide.parts()["state"]
        with pytest.raises(ValueError, match="not of the same"):
            PerInstanceGuide.from_parts({"state": {"mean": state["mean"], "below": torch.ones(3, 2)}})
