"""One pass over a stream: the same statistics, folds and fits as of rows in memory, however the stream is cut."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import calmrl_prob as cal
from calmrl_prob.data.row_keys import row_keys
from calmrl_prob.data.stream import MultimodalStream
from calmrl_prob.errors import ArgumentError, DataError, FileFormatError, SchemaError
from calmrl_prob.selection.folds import FoldedStatistics
from calmrl_prob.selection.gathered_state import StateFile
from calmrl_prob.selection.gathering import Gathered, GatherOptions, shift_of
from calmrl_prob.selection.sample import SmallestKeys
from calmrl_prob.selection.stream_pass import gather

ROOT = Path(__file__).parents[2]


def rows(count: int = 600, dtype: torch.dtype = torch.float64) -> cal.MultimodalData:
    data = cal.datasets.make_synthetic(count, {"image": 6, "text": 5, "audio": 4}, latent_dim=2, seed=0).data
    data = data.mask(cal.missingness.mcar(data, rate=0.3, seed=0))
    ids = [f"row {i}" for i in range(count)]
    arrays = {name: data[name].to(dtype) for name in data.names}
    return cal.MultimodalData(arrays, ids=ids, covariates={"subject": np.arange(count) // 5})


DATA = rows()


def stream_of(data: cal.MultimodalData, size: int) -> MultimodalStream:
    def chunks() -> Iterator[cal.MultimodalData]:
        return (data.subset(range(start, min(start + size, len(data)))) for start in range(0, len(data), size))

    return MultimodalStream.from_chunks(chunks)


def as_dense(statistics: cal.linear_gaussian.SufficientStatistics) -> dict[tuple[bool, ...], torch.Tensor]:
    zero = {name: torch.zeros(width, dtype=torch.float64) for name, width in statistics.dims.items()}
    return statistics.shifted(zero).scatters


def require_same(one: FoldedStatistics, other: FoldedStatistics) -> None:
    for mine, theirs in zip(one.folds, other.folds, strict=True):
        mine_dense, theirs_dense = as_dense(mine), as_dense(theirs)
        assert mine_dense.keys() == theirs_dense.keys()
        for pattern, scatter in mine_dense.items():
            # sums of 600 products of about 10 in another order: 1e-13 of the largest; 1e-10 is what users are told
            torch.testing.assert_close(scatter, theirs_dense[pattern], rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize("size", [600, 250, 7])
def test_statistics_do_not_depend_on_the_size_of_chunks(size: int) -> None:
    whole = gather(stream_of(DATA, 600), 3, 0, GatherOptions())
    parts = gather(stream_of(DATA, size), 3, 0, GatherOptions(chunk_rows=100))
    require_same(whole, parts)
    for mine, theirs in zip(whole.samples, parts.samples, strict=True):
        assert torch.equal(mine["image"].nan_to_num(9), theirs["image"].nan_to_num(9))


def test_parts_gathered_about_one_point_add_up_to_the_whole_in_float32_too() -> None:
    # products of float32 round by 1e-7: the same about the same point, so that only sums in float64 may differ
    stream = stream_of(rows(dtype=torch.float32), 200)
    whole = gather(stream, 2, 0, GatherOptions())
    parts = list(stream.parts())
    base = Gathered(stream.dims, 2, 0).about(shift_of(parts[0][1]()))
    added = []
    for token, load in parts:
        added.append(base.about(base.folds[0].to_tensors()["shift"]))
        added[-1].add(token, load())
    require_same(whole, added[0].merge(added[1]).merge(added[2]).statistics())


def test_the_folds_are_a_partition_of_even_sizes() -> None:
    folded = gather(stream_of(DATA, 100), 3, 0, GatherOptions())
    counts = [fold.num_instances for fold in folded.folds]
    assert sum(counts) == len(DATA)
    assert min(counts) > 200 - 6 * np.sqrt(600 * 2 / 9)  # binomial: 6 standard deviations
    total = cal.linear_gaussian.SufficientStatistics.from_blocks(DATA.blocks)
    summed, expected = as_dense(folded.total), as_dense(total)
    for pattern, scatter in expected.items():
        torch.testing.assert_close(summed[pattern], scatter, rtol=1e-10, atol=1e-8)


def test_another_seed_deals_other_folds() -> None:
    first, second = (gather(stream_of(DATA, 100), 3, seed, GatherOptions()) for seed in (0, 1))
    assert [f.num_instances for f in first.folds] != [f.num_instances for f in second.folds]


def test_rows_of_a_group_share_a_fold() -> None:
    for groups in ("subject", lambda chunk: chunk.covariates["subject"]):
        gathered = Gathered(DATA.dims, 3, 0, groups)
        keys = []
        for token, chunk in stream_of(DATA, 100).items():
            gathered.add(token, chunk)
            keys.append(row_keys(chunk, token, 0, chunk.covariates["subject"]) % np.uint64(3))
        fold = np.concatenate(keys).reshape(-1, 5)
        assert (fold == fold[:, :1]).all()
        sizes = np.bincount(fold.reshape(-1).astype(int), minlength=3).tolist()
        assert [f.num_instances for f in gathered.folds] == sizes


def test_the_sample_is_of_the_rows_with_the_smallest_keys_in_any_order() -> None:
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 2**63, 500).astype(np.uint64)
    data = cal.MultimodalData({"x": torch.arange(500.0)[:, None]})
    expected = np.argsort(keys)[:40]
    whole, cut, merged = SmallestKeys(40), SmallestKeys(40), SmallestKeys(40)
    whole.add(data, keys)
    other = SmallestKeys(40)
    for start in range(0, 500, 30):
        here = slice(start, start + 30)
        cut.add(data.subset(here), keys[here])
        (merged if start < 200 else other).add(data.subset(here), keys[here])
    for sample in (whole, cut, merged.merge(other)):
        assert sample.data is not None
        assert sample.data["x"].flatten().tolist() == expected.tolist()


def test_a_default_fit_to_a_stream_is_as_good_as_to_rows() -> None:
    streamed = cal.fit(cal.SharedLatentModel(DATA.dims), stream_of(DATA, 150))
    in_memory = cal.fit(cal.SharedLatentModel(DATA.dims), DATA)
    # other folds, so that the choice may differ by a step: 0.05 is three times the spread over seeds of the folds
    assert streamed.choice.r2["text"] == pytest.approx(in_memory.choice.r2["text"], abs=0.05)
    assert "errors of held-out" in repr(streamed.intervals)
    test = rows(900).subset(range(600, 900))
    test = test.subset(test.rows_with("text")).subset(test.subset(test.rows_with("text")).rows_with("image", "audio"))
    low, high = cal.impute(streamed, test.select(["image", "audio"]), ["text"]).interval(0.9)["text"]
    held = ((low <= test["text"]) & (test["text"] <= high)).double().mean()
    assert 0.85 < float(held) < 0.95  # about 800 numbers in 160 rows: 6 standard errors of clustered rows


def test_plain_likelihood_of_a_stream_is_that_of_the_rows() -> None:
    streamed = cal.fit(cal.SharedLatentModel(DATA.dims, 2), stream_of(DATA, 150), tolerance=1e-9)
    in_memory = cal.fit(cal.SharedLatentModel(DATA.dims, 2), DATA, tolerance=1e-9)
    assert float(streamed.log_likelihood[-1]) == pytest.approx(float(in_memory.log_likelihood[-1]), rel=1e-8)


def test_a_chunk_may_lack_a_modality_and_have_another_order() -> None:
    first, second = DATA.subset(range(300)), DATA.subset(range(300, 600))
    lacking = second.subset(second.rows_with("text", "image")).select(["text", "image"])
    stream = MultimodalStream.from_chunks(lambda: [first, lacking])
    assert gather(stream, 2, 0, GatherOptions()).dims == DATA.dims
    reordered = gather(stream, 2, 0, GatherOptions(), like=cal.SharedLatentModel({"text": 5, "image": 6, "audio": 4}))
    assert list(reordered.dims) == ["text", "image", "audio"]


def broken_stream(kill_at: int) -> MultimodalStream:
    def chunks() -> Iterator[cal.MultimodalData]:
        for number, start in enumerate(range(0, 600, 50)):
            if number == kill_at:
                raise OSError("the disk went away")
            yield DATA.subset(range(start, start + 50))

    return MultimodalStream.from_chunks(chunks, DATA.dims)


@pytest.mark.parametrize("kill_at", [1, 5, 11])
def test_a_pass_that_broke_off_goes_on_and_ends_in_the_same_bits(tmp_path: Path, kill_at: int) -> None:
    state = tmp_path / "pass.state"
    options = GatherOptions(state=state, save_seconds=0, chunk_rows=50)
    with pytest.raises(OSError, match="went away"):
        gather(broken_stream(kill_at), 3, 0, options)
    assert state.exists()
    resumed = gather(broken_stream(99), 3, 0, options)
    straight = gather(broken_stream(99), 3, 0, GatherOptions(chunk_rows=50))
    again = gather(broken_stream(99), 3, 0, options)  # no row is added twice where what follows the pass is killed
    assert again.num_instances == resumed.num_instances == 600
    for mine, theirs in zip(resumed.folds, straight.folds, strict=True):
        assert list(mine.scatters) == list(theirs.scatters)  # a fit adds them up in this order, and rounds accordingly
        assert all(torch.equal(mine.scatters[p], s) for p, s in theirs.scatters.items())
        assert mine.feature_names == theirs.feature_names
    for mine, theirs in zip(resumed.samples, straight.samples, strict=True):
        assert torch.equal(mine["audio"].nan_to_num(9), theirs["audio"].nan_to_num(9))


KILLED = """
import sys, time
from tests.selection.test_gathering import DATA, broken_stream
from calmrl_prob.selection.gathering import GatherOptions
from calmrl_prob.selection import gathering, stream_pass
add = gathering.Gathered.add
def slow(self, token, chunk):
    add(self, token, chunk)
    print(token, flush=True)
    time.sleep(0.05)
gathering.Gathered.add = slow
stream_pass.gather(broken_stream(99), 3, 0, GatherOptions(state=sys.argv[1], save_seconds=0, chunk_rows=50))
"""


@pytest.mark.slow  # starts Python, which takes seconds
@pytest.mark.parametrize("chunks", [1, 4, 9])
def test_a_process_that_is_killed_leaves_a_state_to_go_on_from(tmp_path: Path, chunks: int) -> None:
    state = tmp_path / "pass.state"
    command = [sys.executable, "-c", KILLED, str(state)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(chunks):
            assert process.stdout.readline()
        time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    resumed = gather(broken_stream(99), 3, 0, GatherOptions(state=state, chunk_rows=50))
    straight = gather(broken_stream(99), 3, 0, GatherOptions(chunk_rows=50))
    for mine, theirs in zip(resumed.folds, straight.folds, strict=True):
        assert all(torch.equal(mine.scatters[p], s) for p, s in theirs.scatters.items())


def test_a_state_of_something_else_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "pass.state"
    options = GatherOptions(state=state, save_seconds=0, chunk_rows=50)
    with pytest.raises(OSError, match="went away"):
        gather(broken_stream(5), 3, 0, options)
    for changed in ({"num_folds": 2}, {"seed": 1}):
        with pytest.raises(ArgumentError, match=r"state: .* with other settings"):
            gather(broken_stream(99), **{"num_folds": 3, "seed": 0, "options": options, **changed})
    content = bytearray(state.read_bytes())
    for place in (3, len(content) // 2, len(content) - 5):
        damaged = content.copy()
        damaged[place] ^= 0x40
        state.write_bytes(damaged)
        with pytest.raises((FileFormatError, ArgumentError), match="delete it to gather"):
            gather(broken_stream(99), 3, 0, options)
    state.write_bytes(b"")
    with pytest.raises(FileFormatError, match="delete it"):
        gather(broken_stream(99), 3, 0, options)


def test_nothing_is_written_where_no_state_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    gather(stream_of(DATA, 100), 2, 0, GatherOptions())
    assert not list(tmp_path.iterdir())


def test_what_does_not_serve_is_refused_with_the_chunk_named() -> None:
    single = DATA["image"].clone()
    single[3, 2] = torch.nan
    partial = cal.MultimodalData({"image": single, "text": DATA["text"]}, missing="features", empty="drop")
    with pytest.raises(DataError, match=r"chunk 0: rows lack single features"):
        gather(MultimodalStream.from_chunks(lambda: [partial]), 2, 0, GatherOptions())
    other = cal.MultimodalData({"image": torch.ones(3, 9)})
    with pytest.raises(SchemaError, match="chunk 1"):
        gather(MultimodalStream.from_chunks(lambda: [DATA, other]), 2, 0, GatherOptions())
    with pytest.raises(ArgumentError, match="no covariate 'person'"):
        gather(stream_of(DATA, 100), 2, 0, GatherOptions(), groups="person")
    with pytest.raises(ArgumentError, match="one for each of the 100 rows"):
        gather(stream_of(DATA, 100), 2, 0, GatherOptions(), groups=lambda chunk: [1])
    with pytest.raises(ArgumentError, match="groups: of a stream expected"):
        cal.fit(cal.SharedLatentModel(DATA.dims), stream_of(DATA, 100), groups=DATA.covariates["subject"])


def test_patterns_whose_statistics_do_not_fit_are_refused_with_the_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calmrl_prob.selection.gathering._MOST_BYTES", 5e3)
    with pytest.raises(ArgumentError, match=r"\d missing patterns, whose statistics in 2 folds take 0\.0 GB"):
        gather(stream_of(DATA, 100), 2, 0, GatherOptions())


@pytest.mark.parametrize(
    "options",
    [
        {"chunk_rows": 0},
        {"save_seconds": -1},
        {"engine": "spark"},
        {"client": object()},
        {"engine": "dask", "state": "s"},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(set(options) - {"engine"}), "engine")):
        cal.fit(cal.SharedLatentModel(DATA.dims), stream_of(DATA, 100), **options)


@pytest.mark.parametrize("latent_dim", [None, 2])
def test_the_state_outlives_the_pass_and_goes_with_the_fit(
    tmp_path: Path, latent_dim: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "pass.state"

    def killed(*given: object, **settings: object) -> None:
        raise KeyboardInterrupt

    module, stream = sys.modules["calmrl_prob.selection.fit"], broken_stream(99)
    with monkeypatch.context() as patch:
        patch.setattr(module, "ChosenFit", killed)
        patch.setattr(module, "fit_settled", killed)
        with pytest.raises(KeyboardInterrupt):
            cal.fit(cal.SharedLatentModel(DATA.dims, latent_dim), stream, state=state, chunk_rows=50)
    assert state.exists()
    found = cal.fit(cal.SharedLatentModel(DATA.dims, latent_dim), broken_stream(99), state=state, chunk_rows=50)
    assert not state.exists()
    straight = cal.fit(cal.SharedLatentModel(DATA.dims, latent_dim), broken_stream(99), chunk_rows=50)
    assert found.log_likelihood.tolist() == straight.log_likelihood.tolist()


def test_a_state_file_that_is_not_there_begins_anew(tmp_path: Path) -> None:
    empty = Gathered(DATA.dims, 2, 0)
    assert StateFile(tmp_path / "none", {}).load(empty) is empty


def test_options_of_a_stream_are_refused_for_rows() -> None:
    with pytest.raises(ArgumentError, match=r"^state: .* in memory; leave it out"):
        cal.fit(cal.SharedLatentModel(DATA.dims), DATA, state="file")
    with pytest.raises(ArgumentError, match=r"did you mean 'state'\?"):
        cal.fit(cal.SharedLatentModel(DATA.dims), stream_of(DATA, 100), sate="file")
