"""A stream imputed into a folder: the numbers of rows in memory, whole files, and passes that go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import calmrl_prob as cal
from calmrl_prob.errors import (
    ArgumentError,
    ArgumentTypeError,
    DataError,
    DistributedError,
    FileFormatError,
    SchemaError,
)

pytest.importorskip("pyarrow", reason="parquet is written by pyarrow, of the extra arrow")

DATA = cal.datasets.make_synthetic(300, {"image": 5, "text": 4}, latent_dim=2, seed=0).data
DATA = DATA.mask(cal.missingness.mcar(DATA, rate=0.3, seed=0))
DATA = cal.MultimodalData({name: DATA[name] for name in DATA.names}, ids=[f"row {i}" for i in range(300)])
FIT = cal.fit(cal.SharedLatentModel(DATA.dims, 2), DATA)


class Chunks:
    """Chunks of 60 rows; the reading of one may fail, and what is read is counted."""

    def __init__(self, fails: int | None = None) -> None:
        self.fails, self.read = fails, 0

    def __call__(self, size: int) -> Iterator[tuple[str, Any]]:
        return ((f"rows from {start}", self.loader(number, start)) for number, start in enumerate(range(0, 300, 60)))

    def loader(self, number: int, start: int) -> Callable[[], cal.MultimodalData]:
        def load() -> cal.MultimodalData:
            if number == self.fails:
                raise OSError("the disk went away")
            self.read += 1
            return DATA.subset(range(start, start + 60))

        return load


def stream_of(chunks: Chunks) -> cal.MultimodalStream:
    return cal.MultimodalStream(DATA.dims, chunks, num_rows=300)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def straight(tmp_path: Path) -> Path:
    return cal.impute(FIT, stream_of(Chunks()), out=tmp_path / "straight")


def test_files_hold_what_rows_in_memory_have(straight: Path) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table([str(path) for path in sorted(straight.glob("part-*"))])
    expected = cal.impute(FIT, DATA)
    assert table["ids"].to_pylist() == DATA.ids.tolist()
    low, high = expected.interval(0.9)["text"]
    for column, value in (("text", expected.completed["text"]), ("text.lower", low), ("text.upper", high)):
        np.testing.assert_allclose(np.stack(table[column].to_numpy()), value.numpy(), rtol=1e-9, atol=1e-12)
    back = cal.read(straight)
    assert len(back) == 300
    torch.testing.assert_close(back["image"], expected.completed["image"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("fails", [0, 2, 4])
def test_a_pass_that_broke_off_goes_on_and_ends_in_the_same_bytes(tmp_path: Path, straight: Path, fails: int) -> None:
    out = tmp_path / "broken"
    with pytest.raises(OSError, match="went away"):
        cal.impute(FIT, stream_of(Chunks(fails)), out=out)
    assert len(list(out.glob("part-*"))) == fails
    again = Chunks()
    assert cal.impute(FIT, stream_of(again), out=out) == out
    assert again.read == 5 - fails  # what was written is not read again
    assert contents(out) == contents(straight)


def test_a_stream_that_changes_between_passes_is_told(tmp_path: Path) -> None:
    chunks = [DATA.subset(range(60)), DATA.subset(range(60, 120))]
    stream = cal.MultimodalStream.from_chunks(lambda: chunks)
    assert sum(map(len, stream)) == 120
    chunks.pop()
    with pytest.raises(DataError, match="this pass had 60 rows, the one before 120"):
        cal.impute(FIT, stream, out=tmp_path / "imputed")
    with pytest.raises(DataError, match="this pass had 60 rows, the one before 120"):
        cal.RetrievalIndex.build(FIT, stream, out=tmp_path / "an.index")
    assert not (tmp_path / "an.index").exists()


def test_a_folder_of_something_else_is_refused(tmp_path: Path, straight: Path) -> None:
    other = cal.fit(cal.SharedLatentModel(DATA.dims, 1), DATA)
    with pytest.raises(ArgumentError, match="files of another model"):
        cal.impute(other, stream_of(Chunks()), out=straight)
    with pytest.raises(ArgumentError, match="files of another names, level"):
        cal.impute(FIT, stream_of(Chunks()), ["text"], out=straight, level=0.5)
    with pytest.raises(ArgumentError, match="files of another stream"):
        cal.impute(FIT, cal.MultimodalStream(DATA.dims, Chunks(), num_rows=299), out=straight)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ArgumentError, match="holds other files"):
        cal.impute(FIT, stream_of(Chunks()), out=tmp_path / "mine")
    with pytest.raises(ArgumentError, match="is a file"):
        cal.impute(FIT, stream_of(Chunks()), out=tmp_path / "mine" / "letter.txt")
    for damage in ("{", "[]", "{}", "[" * 100_000):
        (straight / "_about.json").write_text(damage)
        with pytest.raises(FileFormatError, match="damaged"):
            cal.impute(FIT, stream_of(Chunks()), out=straight)


def test_what_is_not_asked_for_rightly_is_refused(tmp_path: Path) -> None:
    stream = stream_of(Chunks())
    with pytest.raises(ArgumentError, match="pass the folder to write to"):
        cal.impute(FIT, stream)
    with pytest.raises(ArgumentError, match="out: only streams"):
        cal.impute(FIT, DATA, out=tmp_path / "x")
    with pytest.raises(ArgumentTypeError, match="out: expected a folder's name"):
        cal.impute(FIT, stream, out=3)
    with pytest.raises(ArgumentError, match="a posterior is of rows in memory"):
        cal.impute(cal.posterior(FIT, DATA), stream, out=tmp_path / "x")  # type: ignore[call-overload]
    with pytest.raises(ArgumentError, match="level"):
        cal.impute(FIT, stream, out=tmp_path / "x", level=2)
    with pytest.raises(ArgumentError, match="client"):
        cal.impute(FIT, stream, out=tmp_path / "x", client=object())
    with pytest.raises(SchemaError, match="sound"):
        cal.impute(FIT, stream, ["sound"], out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_only_the_modalities_asked_for_are_written(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    out = cal.impute(FIT, stream_of(Chunks()), ["text"], out=tmp_path / "texts", recalibrated=False)
    columns = pq.read_schema(next(out.glob("part-*"))).names
    assert "text.sd" in columns
    assert not [name for name in columns if name.startswith("image")]


@pytest.mark.slow  # starts a cluster, which takes seconds
def test_the_workers_of_a_cluster_write_the_same_files(tmp_path: Path, straight: Path) -> None:
    distributed = pytest.importorskip("dask.distributed", reason="of the extra dask")
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0")
    with cluster, distributed.Client(cluster) as client:
        out = cal.impute(FIT, stream_of(Chunks()), out=tmp_path / "by dask", engine="dask", client=client)
        assert contents(out) == contents(straight)
        fitted = cal.fit(cal.SharedLatentModel(DATA.dims, 2), stream_of(Chunks()), engine="dask", client=client)
        here = cal.fit(cal.SharedLatentModel(DATA.dims, 2), stream_of(Chunks()))
        assert float(fitted.log_likelihood[-1]) == pytest.approx(float(here.log_likelihood[-1]), rel=1e-10)
        with pytest.raises(OSError, match="went away"):
            cal.impute(FIT, stream_of(Chunks(1)), out=tmp_path / "fails", engine="dask", client=client)
    with pytest.raises(DistributedError, match="closed"):
        cal.impute(FIT, stream_of(Chunks()), out=tmp_path / "closed", engine="dask", client=client)
    with pytest.raises(ArgumentTypeError, match=r"dask\.distributed\.Client"):
        cal.impute(FIT, stream_of(Chunks()), out=tmp_path / "none", engine="dask", client="tcp://here")
