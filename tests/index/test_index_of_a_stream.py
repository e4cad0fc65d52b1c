"""An index over a stream: as over rows in memory, in files that a build that broke off goes on with, and refusals."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

import calmrl_prob as cal
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, DataError, FileFormatError, SchemaError

DATA = cal.datasets.make_synthetic(300, {"image": 5, "text": 4}, latent_dim=2, seed=0).data
DATA = DATA.mask(cal.missingness.mcar(DATA, rate=0.3, seed=0))
DATA = cal.MultimodalData({name: DATA[name] for name in DATA.names}, ids=[f"row {i}" for i in range(300)])
FIT = cal.fit(cal.SharedLatentModel(DATA.dims, 2), DATA)
QUERIES = {"text": DATA["text"][DATA.observed("text")][:7].numpy()}


class Chunks:
    """Chunks of rows; the reading of one may fail, and what is read is counted."""

    def __init__(self, fails: int | None = None, data: cal.MultimodalData = DATA) -> None:
        self.fails, self.read, self.data = fails, 0, data

    def __call__(self, size: int) -> Iterator[tuple[str, Any]]:
        size = min(size, 60)
        return (
            (f"rows from {start}", self.loader(number, start, size)) for number, start in enumerate(range(0, 300, size))
        )

    def loader(self, number: int, start: int, size: int) -> Callable[[], cal.MultimodalData]:
        def load() -> cal.MultimodalData:
            if number == self.fails:
                raise OSError("the disk went away")
            self.read += 1
            return self.data.subset(range(start, start + size))

        return load


def stream_of(chunks: Chunks) -> cal.MultimodalStream:
    return cal.MultimodalStream(chunks.data.dims, chunks, num_rows=300)


def held(path: Path) -> dict[str, Any]:
    """What a file holds to the bit; the order of its header is by chance."""
    with safe_open(path, framework="np") as archive:
        return {"": archive.metadata(), **{key: archive.get_tensor(key).tobytes() for key in archive.keys()}}  # noqa: SIM118


def test_a_stream_is_indexed_as_rows_in_memory_are() -> None:
    whole, passed = cal.RetrievalIndex.build(FIT, DATA), cal.RetrievalIndex.build(FIT, stream_of(Chunks()))
    assert passed.ids.tolist() == whole.ids.tolist()
    mine, theirs = passed.search(QUERIES, 20, probabilities=True), whole.search(QUERIES, 20, probabilities=True)
    np.testing.assert_array_equal(mine.ids, theirs.ids)
    np.testing.assert_allclose(mine.log_ratios, theirs.log_ratios, rtol=1e-9, atol=1e-9)
    passed.remove(["row 3"])
    passed.add(DATA.subset([3]))
    with pytest.raises(DataError, match="has 'row 5' already"):
        passed.add(DATA.subset([5]))


def test_an_index_is_saved_where_it_was_asked_for(tmp_path: Path) -> None:
    index = cal.RetrievalIndex.build(FIT, stream_of(Chunks()), out=tmp_path / "an.index", queries=["text"])
    assert [path.name for path in tmp_path.iterdir()] == ["an.index"]
    there = cal.RetrievalIndex.load(tmp_path / "an.index")
    np.testing.assert_array_equal(there.search(QUERIES).ids, index.search(QUERIES).ids)
    assert len(there) == 300
    bare = cal.MultimodalData({name: DATA[name] for name in DATA.names})
    assert cal.RetrievalIndex.build(FIT, stream_of(Chunks(data=bare))).ids.tolist() == list(range(300))


@pytest.mark.parametrize("task", ["index in memory", "index", "impute"])
def test_no_more_than_a_chunk_is_held(task: str, tmp_path: Path) -> None:
    given: list[weakref.ref[cal.MultimodalData]] = []

    def chunks() -> Iterator[cal.MultimodalData]:
        for start in range(0, 300, 30):
            # the one that is worked on may still be there when the next is made
            assert sum(one() is not None for one in given) <= 1
            chunk = DATA.subset(range(start, start + 30))
            given.append(weakref.ref(chunk))
            yield chunk
            del chunk

    stream = cal.MultimodalStream.from_chunks(chunks, DATA.dims)
    if task == "impute":
        cal.impute(FIT, stream, out=tmp_path / "imputed")
    else:
        cal.RetrievalIndex.build(FIT, stream, **({"out": tmp_path / "an.index"} if task == "index" else {}))
    assert len(given) == 11  # the first one is looked at once more, for the schema


@pytest.mark.parametrize("fails", [0, 2, 4])
def test_a_build_that_broke_off_goes_on_and_ends_in_the_same_bytes(tmp_path: Path, fails: int) -> None:
    cal.RetrievalIndex.build(FIT, stream_of(Chunks()), out=tmp_path / "straight")
    with pytest.raises(OSError, match="went away"):
        cal.RetrievalIndex.build(FIT, stream_of(Chunks(fails)), out=tmp_path / "broken")
    assert len(list((tmp_path / "broken.parts").glob("part-*"))) == fails
    again = Chunks()
    cal.RetrievalIndex.build(FIT, stream_of(again), out=tmp_path / "broken")
    assert again.read == 5 - fails  # what was measured is not read again
    assert held(tmp_path / "broken") == held(tmp_path / "straight")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "straight"]


def test_parts_of_something_else_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "an.index"
    with pytest.raises(OSError, match="went away"):
        cal.RetrievalIndex.build(FIT, stream_of(Chunks(3)), out=out)
    other = cal.fit(cal.SharedLatentModel(DATA.dims, 1), DATA)
    with pytest.raises(ArgumentError, match="files of another model"):
        cal.RetrievalIndex.build(other, stream_of(Chunks()), out=out)
    with pytest.raises(ArgumentError, match="files of another chunk_rows"):
        cal.RetrievalIndex.build(FIT, stream_of(Chunks()), out=out, chunk_rows=10)
    part = sorted((tmp_path / "an.index.parts").glob("part-*"))[1]
    content = bytearray(part.read_bytes())
    content[-5] ^= 0x40
    part.write_bytes(content)
    with pytest.raises(FileFormatError, match=f"{part.name}.*checksum"):
        cal.RetrievalIndex.build(FIT, stream_of(Chunks()), out=out)
    part.unlink()  # which is what the message says to do
    assert len(cal.RetrievalIndex.build(FIT, stream_of(Chunks()), out=out)) == 300


def test_what_is_wrong_is_said_with_the_chunk(tmp_path: Path) -> None:
    twice = cal.MultimodalStream.from_chunks(lambda: [DATA.subset(range(100)), DATA.subset(range(90, 200))])
    for options in ({}, {"out": tmp_path / "x"}):
        with pytest.raises(DataError, match="'row 90' stands in chunk 0 and in chunk 1"):
            cal.RetrievalIndex.build(FIT, twice, **options)
    half = cal.MultimodalStream.from_chunks(
        lambda: [DATA.subset(range(100)), {name: DATA[name][100:200] for name in DATA.names}]
    )
    with pytest.raises(DataError, match="chunk 1: expected ids"):
        cal.RetrievalIndex.build(FIT, half)
    with pytest.raises(SchemaError, match="no modality 'sound'"):
        cal.RetrievalIndex.build(FIT, cal.MultimodalStream.from_chunks(lambda: [{"sound": np.ones((2, 2))}]))
    with pytest.raises(ArgumentError, match="out: it is of streams"):
        cal.RetrievalIndex.build(FIT, DATA, out=tmp_path / "x")
    with pytest.raises(ArgumentError, match="build has no option 'path'"):
        cal.RetrievalIndex.build(FIT, stream_of(Chunks()), path=tmp_path / "x")
    with pytest.raises(ArgumentError, match="pass out="):
        cal.RetrievalIndex.build(FIT, stream_of(Chunks()), client=object())
    with pytest.raises(ArgumentTypeError, match="or a stream"):
        cal.RetrievalIndex.build(FIT, [1])  # type: ignore[arg-type]  # that is the test
    with pytest.raises(FileNotFoundError, match="no folder"):
        cal.RetrievalIndex.build(FIT, stream_of(Chunks()), out=tmp_path / "nowhere" / "x")


@pytest.mark.slow  # starts a cluster, which takes seconds
def test_the_workers_of_a_cluster_make_the_same_index(tmp_path: Path) -> None:
    distributed = pytest.importorskip("dask.distributed", reason="of the extra dask")
    cal.RetrievalIndex.build(FIT, stream_of(Chunks()), out=tmp_path / "here")
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0")
    with cluster, distributed.Client(cluster) as client:
        cal.RetrievalIndex.build(FIT, stream_of(Chunks()), out=tmp_path / "there", client=client)
    assert held(tmp_path / "here") == held(tmp_path / "there")


def test_files_of_candidates_that_no_index_can_be_made_of_are_removed(tmp_path: Path) -> None:
    parts = [DATA.subset(range(60)), DATA.subset(range(50, 90))]
    with pytest.raises(DataError, match="stands in chunk 0 and in chunk 1"):
        cal.RetrievalIndex.build(FIT, cal.MultimodalStream.from_chunks(lambda: parts), out=tmp_path / "an.index")
    assert not list(tmp_path.iterdir())
    parts[1] = DATA.subset(range(60, 90))  # the same call, the data put right
    index = cal.RetrievalIndex.build(FIT, cal.MultimodalStream.from_chunks(lambda: parts), out=tmp_path / "an.index")
    assert len(index) == 90
