"""Parquet on other file systems: read, streamed, imputed into, and what does not take URLs."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import calmrl_prob as cal
from calmrl_prob.errors import ArgumentError, FileFormatError, MissingDependencyError

pytest.importorskip("pyarrow", reason="parquet is written by pyarrow, of the extra arrow")
fsspec = pytest.importorskip("fsspec", reason="of the extra arrow")

DATA = cal.datasets.make_synthetic(90, {"image": 5, "text": 4}, latent_dim=2, seed=0).data
DATA = DATA.mask(cal.missingness.mcar(DATA, rate=0.3, seed=0))
DATA = cal.MultimodalData({name: DATA[name] for name in DATA.names}, ids=[f"row {i}" for i in range(90)])
FIT = cal.fit(cal.SharedLatentModel(DATA.dims, 2), DATA)


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A folder with three files of thirty rows and a hidden one, by its URL."""
    if request.param == "file":
        found = f"file://{tmp_path / 'rows'}"
        (tmp_path / "rows").mkdir()
    else:
        found = "memory://of_a_test/rows"
    for number in range(3):
        cal.write(DATA.subset(range(30 * number, 30 * number + 30)), f"{found}/part-{number}.parquet")
    with fsspec.open(f"{found}/_SUCCESS", "w") as hidden:
        hidden.write("")
    yield found
    if request.param == "memory":
        fsspec.filesystem("memory").rm("/of_a_test", recursive=True)


@pytest.mark.parametrize("where", ["", "/part-*.parquet"])
def test_a_folder_and_a_glob_are_read(url: str, where: str) -> None:
    back = cal.read(url + where)
    assert back.ids.tolist() == DATA.ids.tolist()
    assert torch.equal(back["image"].nan_to_num(9), DATA["image"].nan_to_num(9))
    assert len(cal.read(f"{url}/part-1.parquet")) == 30


def test_a_stream_is_fitted_and_imputed_by_url(url: str) -> None:
    stream = cal.read(url, stream=True)
    assert [len(chunk) for chunk in stream.chunks(20)] == [20, 10] * 3
    fit = cal.fit(cal.SharedLatentModel(stream.dims, 2, "diagonal"), stream)
    out = cal.impute(fit, stream, out=f"{url}-imputed", chunk_rows=30)
    files = sorted(entry.name for entry in out.iterdir())
    assert files[0] == "_about.json"
    assert len(files) == 4
    expected = cal.impute(fit, cal.read(url)).completed["text"]
    torch.testing.assert_close(cal.read(f"{url}-imputed", modalities=["text"])["text"], expected)
    with pytest.raises(ArgumentError, match="files of another chunk_rows"):
        cal.impute(fit, stream, out=f"{url}-imputed", chunk_rows=20)


def test_what_was_written_to_a_url_is_not_written_again() -> None:
    chunks = [DATA.subset(range(45)), DATA.subset(range(45, 90))]

    def broken() -> Iterator[cal.MultimodalData]:
        yield chunks[0]
        raise OSError("the disk went away")

    system = fsspec.filesystem("memory")
    out = "memory://of_a_test/imputed"
    try:
        with pytest.raises(OSError, match="went away"):
            cal.impute(FIT, cal.MultimodalStream.from_chunks(broken), out=out)
        there = sorted(name.rpartition("/")[2] for name in system.ls("/of_a_test/imputed", detail=False))
        assert [name[:11] for name in there] == ["_about.json", "part-000000"]
        system.pipe_file("/of_a_test/imputed/.calmrl-unfinished-part-000000-x.parquet", b"half")
        cal.impute(FIT, cal.MultimodalStream.from_chunks(lambda: chunks), out=out)
        times = {name: system.info(name)["created"] for name in system.glob("/of_a_test/imputed/part-*")}
        assert len(times) == 2
        cal.impute(FIT, cal.MultimodalStream.from_chunks(lambda: chunks), out=out)
        assert {name: system.info(name)["created"] for name in times} == times
        assert len(cal.read(out)) == 90
    finally:
        system.rm("/of_a_test", recursive=True)


def test_a_damaged_file_is_named_by_its_url() -> None:
    system = fsspec.filesystem("memory")
    try:
        cal.write(DATA, "memory://of_a_test/whole.parquet")
        content = system.cat_file("/of_a_test/whole.parquet")
        system.pipe_file("/of_a_test/cut.parquet", content[: len(content) // 2])
        with pytest.raises(FileFormatError, match=r"memory://.*of_a_test/cut\.parquet: it cannot be read"):
            cal.read("memory://of_a_test", stream=True)
        system.pipe_file("/of_a_test/cut.parquet", b"")
        with pytest.raises(FileFormatError, match="an empty file"):
            cal.read("memory://of_a_test/cut.parquet")
    finally:
        system.rm("/of_a_test", recursive=True)


def test_a_file_of_the_machine_is_read_in_any_format(tmp_path: Path) -> None:
    cal.write(DATA, f"file://{tmp_path}/data.npz")
    assert len(cal.read(f"file://{tmp_path}/data.npz")) == 90


def test_what_takes_no_urls_says_so() -> None:
    stream = cal.MultimodalStream.from_chunks(lambda: [DATA])
    url = "memory://of_a_test/here"
    for call in (
        lambda: cal.save(FIT, url),
        lambda: cal.load(url),
        lambda: cal.RetrievalIndex.build(FIT, stream, out=url),
        lambda: cal.fit(cal.SharedLatentModel(DATA.dims, 2), stream, state=url),
        lambda: cal.load_npz(url),
    ):
        with pytest.raises(ArgumentError, match="is a URL, which only"):
            call()
    with pytest.raises(ArgumentError, match="parquet alone is written"):
        cal.write(DATA, "memory://of_a_test/data.npz")
    system = fsspec.filesystem("memory")
    system.pipe_file("/of_a_test/data.npz", b"x")
    with pytest.raises(ArgumentError, match="parquet alone is read"):
        cal.read("memory://of_a_test/data.npz")
    system.rm("/of_a_test", recursive=True)
    with pytest.raises(FileNotFoundError, match="there is nothing at memory://"):
        cal.read("memory://of_a_test/none.parquet")
    with pytest.raises(ArgumentError, match="no file system that fsspec knows"):
        cal.read("nowhere://of_a_test")
    with pytest.raises(ArgumentError, match="no file system that fsspec knows"):
        cal.impute(FIT, stream, out="nowhere://of_a_test")
    if find_spec("s3fs") is None:
        with pytest.raises(MissingDependencyError, match="s3fs"):
            cal.read("s3://bucket/rows")
