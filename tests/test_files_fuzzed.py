"""Files damaged anywhere are refused by the one typed error, or read as they were written; never otherwise."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from calmrl_prob.errors import ArgumentError, FileFormatError
from tests.cases.file_cases import KINDS, changes, damaged, lies, rewritten


@pytest.fixture(scope="module", params=KINDS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    path = tmp_path_factory.mktemp("fuzz") / KINDS[request.param].name
    KINDS[request.param].write(path)
    return request.param, path


def check(name: str, path: Path, whole: bytes, content: bytes) -> None:
    kind = KINDS[name]
    target = path.with_name(f"damaged-{path.name}")
    target.write_bytes(content)
    refusal, found = "", None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy and h5py warn of what they are about to refuse
        try:
            found = kind.load(target)
        except FileFormatError as error:
            refusal = str(error)
    if refusal:
        assert content != whole
        assert str(target) in refusal
        return
    if kind.values is not None:
        expected = kind.values(kind.load(path))
        got = kind.values(found)
        assert list(got) == list(expected)
        for key, value in expected.items():
            np.testing.assert_array_equal(got[key], value)


def fuzz(written: tuple[str, Path], examples: int) -> None:
    name, path = written
    whole = path.read_bytes()
    check(name, path, whole, whole)

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(changes)
    def run(how: list[tuple[str, float, int]]) -> None:
        check(name, path, whole, damaged(whole, how))

    run()


def test_some_damage(written: tuple[str, Path]) -> None:
    fuzz(written, 25 if written[0] == "draws" else 300)


@pytest.mark.slow
def test_much_damage(written: tuple[str, Path]) -> None:
    fuzz(written, 2_000 if written[0] == "draws" else 20_000)  # HDF5 takes a tenth of a second each


def lie(written: tuple[str, Path], examples: int) -> None:
    name, path = written
    kind, target = KINDS[name], path.with_name(f"lying-{path.name}")
    if not kind.sealed:
        pytest.skip("it has no description of its own")
    rewritten(path, target, [])
    kind.load(target)

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(lies)
    def run(how: list[tuple[str, float, object]]) -> None:
        rewritten(path, target, how)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                kind.load(target)
                return
            except FileFormatError as error:
                refusal = str(error)
            except ArgumentError as error:
                refusal = str(error)
                if kind.otherwise is None or not refusal.startswith(kind.otherwise):
                    raise
        assert str(target) in refusal or refusal.startswith(kind.otherwise or str(target))

    run()


def test_some_lies(written: tuple[str, Path]) -> None:
    lie(written, 100)


@pytest.mark.slow
def test_many_lies(written: tuple[str, Path]) -> None:
    lie(written, 20_000)


@pytest.mark.parametrize("bit", range(8))
def test_every_bit_of_the_directory_of_an_archive(tmp_path: Path, bit: int) -> None:
    """Its entries have no checksum of their own: none may be lost to a comment that grew, or to a name that changed."""
    path = tmp_path / "data.npz"
    KINDS["npz"].write(path)
    whole = path.read_bytes()
    for at in range(whole.index(b"PK\x01\x02"), len(whole)):
        check("npz", path, whole, whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
