"""A full disk: whatever is written tells so with the name of the file, and leaves nothing behind."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import calmrl_prob as cal

ROOT = Path(__file__).resolve().parents[2]
DATA = cal.datasets.make_synthetic(200, {"image": 5, "text": 4}, latent_dim=2, seed=0).data
DATA = DATA.mask(cal.missingness.mcar(DATA, rate=0.3, seed=0))
FIT = cal.fit(cal.SharedLatentModel(DATA.dims, 2), DATA)
STREAM = cal.MultimodalStream.from_chunks(lambda: [DATA])


@contextmanager
def full_disk(most: int = 2000) -> Iterator[None]:
    """No file of this process can be longer, by the error that a full disk gives but for its number."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


WRITES: dict[str, Callable[[Path], object]] = {
    "imputed.npz": lambda path: cal.write(cal.impute(FIT, DATA), path),
    "imputed.parquet": lambda path: cal.write(cal.impute(FIT, DATA), path),
    "imputed.zarr": lambda path: cal.write(cal.impute(FIT, DATA), path),
    "data.npz": lambda path: cal.save_npz(DATA, path),
    "a.fit": lambda path: cal.save(FIT, path),
    "an.index": lambda path: cal.RetrievalIndex.build(FIT, DATA).save(path),
    "pass.state": lambda path: cal.fit(cal.SharedLatentModel(DATA.dims, 2), STREAM, state=path),
}


@pytest.mark.parametrize("name", WRITES)
def test_the_file_is_named_and_nothing_is_left(name: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=f"File too large: '{tmp_path / name}'"), full_disk():
        WRITES[name](tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("out", ["imputed", "an.index"])
def test_a_pass_goes_on_when_there_is_room_again(out: str, tmp_path: Path) -> None:
    def make() -> object:
        if out == "imputed":
            return cal.impute(FIT, STREAM, out=tmp_path / out)
        return cal.RetrievalIndex.build(FIT, STREAM, out=tmp_path / out)

    with pytest.raises(OSError, match=r"File too large: .*part-000000"), full_disk():
        make()
    make()
    assert (tmp_path / out).exists()


H5MU = """
import sys
import calmrl_prob as cal
from tests.writing.test_no_space import DATA, FIT, full_disk
try:
    with full_disk():
        cal.write(cal.impute(FIT, DATA), sys.argv[1])
except OSError as error:
    print(error)
"""


@pytest.mark.slow  # HDF5 cannot close what it cannot write, and says so when Python ends: in a process of its own
def test_a_file_of_hdf5_is_named(tmp_path: Path) -> None:
    pytest.importorskip("h5py", reason="of the extra omics")
    command = [sys.executable, "-c", H5MU, str(tmp_path / "imputed.h5mu")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert f"File too large: '{tmp_path / 'imputed.h5mu'}'" in done.stdout
    assert not list(tmp_path.iterdir())
