"""Kill -9 at random moments of fitting, imputing and indexing a stream: what is left, and what the resumed run ends in.

    python -m benchmarks.kills [--moments 10] [--rows 20000] [--seed 0]

Each task runs once in a process of its own, undisturbed; then, for each moment, it is begun anew in an empty folder,
killed when a share of its time drawn at random has passed, and called again. Told are the share, how many files there
were, whether each was whole, whether the resumed run ended in the same bits, and what it left
besides. Of fits everything in the file counts but the seconds that they took.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

import calmrl_prob as cal

_DIMS = {"image": 48, "text": 24}
_FILES, _CHUNK = 10, 500
_BEGUN = "begun"


def write_data(rows: int, folder: Path, seed: int = 0) -> None:
    """Parquet files of rows, a third of whose modalities are missing, and the fit that imputes and indexes them."""
    drawn = cal.datasets.make_synthetic(rows, _DIMS, latent_dim=6, seed=seed).data
    drawn = drawn.mask(cal.missingness.mcar(drawn, rate=0.3, seed=seed))
    named = cal.MultimodalData({name: drawn[name] for name in _DIMS}, ids=[f"row {n}" for n in range(rows)])
    (folder / "rows").mkdir(parents=True)
    for number, part in enumerate(np.array_split(np.arange(rows), _FILES)):
        cal.write(named.subset(part), folder / "rows" / f"part-{number:02d}.parquet")
    cal.save(cal.fit(cal.SharedLatentModel(_DIMS, 6), named.subset(slice(0, 1000))), folder / "a.fit")


def _fit(stream: cal.MultimodalStream, fit: Any, out: Path) -> None:  # noqa: ANN401 - a fit
    del fit
    found = cal.fit(
        cal.SharedLatentModel(stream.dims, 6, "diagonal"),
        stream,
        state=out / "pass.state",
        save_seconds=0,
        chunk_rows=_CHUNK,
    )
    cal.save(found, out / "found.fit")


def _impute(stream: cal.MultimodalStream, fit: Any, out: Path) -> None:  # noqa: ANN401
    cal.impute(fit, stream, out=out / "imputed", chunk_rows=_CHUNK)


def _index(stream: cal.MultimodalStream, fit: Any, out: Path) -> None:  # noqa: ANN401
    cal.RetrievalIndex.build(fit, stream, out=out / "an.index", queries=["text"], chunk_rows=_CHUNK)


#: What is killed: a stream, a fit and a folder to work in.
TASKS: dict[str, Callable[[cal.MultimodalStream, Any, Path], None]] = {"fit": _fit, "impute": _impute, "index": _index}


@dataclass(frozen=True)
class Killed:
    """A run that was killed and called again.

    Attributes:
        task: its name.
        share: of the time of an undisturbed run, when it was killed.
        done: files that were whole then.
        torn: files under their own names that were not.
        same: whether it ended in the same bits.
        left: names of files that an undisturbed run does not leave.
    """

    task: str
    share: float
    done: int
    torn: list[str]
    same: bool
    left: list[str]


def kills(task: str, data: Path, folder: Path, moments: int, seed: int) -> Iterator[Killed]:
    """Kill a task at random moments, and call it again after each.

    Args:
        task: of ``TASKS``.
        data: a folder of :func:`write_data`.
        folder: to work in.
        moments: how many.
        seed: of the moments.
    """
    chance = random.Random(f"{task} {seed}")
    seconds = _run(task, data, folder / "straight") or 0.0
    straight = contents(folder / "straight")
    for number in range(moments):
        while True:
            out, share = folder / f"{number}", chance.random()
            took = _run(task, data, out, kill_after=share * seconds)
            if took is None:
                break
            seconds = took  # it had ended: the machine is idler than it was
            shutil.rmtree(out)
        found = {path: _whole(path) for path in _files(out)}
        _run(task, data, out)
        ended = contents(out)
        yield Killed(
            task,
            share,
            sum(found.values()),
            [path.name for path, whole in found.items() if not whole],
            {name: ended.get(name) for name in straight} == straight,
            sorted(ended.keys() - straight.keys()),
        )


def contents(folder: Path) -> dict[str, str]:
    """A digest of what each file below a folder holds, by its name; hidden ones included."""
    return {str(path.relative_to(folder)): _digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _run(task: str, data: Path, out: Path, kill_after: float | None = None) -> float | None:
    """Seconds of a task in a process of its own, from when it begins its work on; None where it was killed."""
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.kills", "--task", task, str(data), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while (line := process.stdout.readline()).strip() != _BEGUN:
            if not line:
                raise RuntimeError(f"{task}: it ended before it began, with {process.wait()}")
        begun = time.monotonic()
        try:
            code = process.wait(kill_after)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            return None
        if code:
            raise RuntimeError(f"{task}: it ended with {code}")
        return time.monotonic() - begun


def _files(folder: Path) -> list[Path]:
    """Files under names of their own: not in the folders, with a dot, of what is being written."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in found if not any(part[0] == "." for part in path.relative_to(folder).parts))


def _whole(path: Path) -> bool:
    try:
        _digest(path)
        if path.suffix == ".parquet":
            cal.read(path)
    except Exception:  # whatever a reader makes of half a file
        return False
    return True


def _digest(path: Path) -> str:
    """Of the bytes; of an archive of tensors what it holds, for its header is in no order, without times."""
    content = path.read_bytes()
    if path.suffix in (".parquet", ".json", ".lock"):
        return hashlib.sha256(content).hexdigest()
    digest = hashlib.sha256()
    with safe_open(path, framework="np") as archive:
        about = dict(archive.metadata())
        about.pop("sha256")  # of the config with the times
        digest.update(repr(sorted((key, _untimed(text)) for key, text in about.items())).encode())
        for key in sorted(key for key in archive.keys() if "seconds" not in key):  # noqa: SIM118
            tensor = archive.get_tensor(key)
            digest.update(f"{key} {tensor.dtype} {tensor.shape}".encode() + np.ascontiguousarray(tensor).tobytes())
    return digest.hexdigest()


def _untimed(text: str) -> Any:  # noqa: ANN401 - whatever JSON holds
    def without(found: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in found.items() if "seconds" not in key}

    try:
        return json.loads(text, object_hook=without)
    except ValueError:
        return text


def main() -> None:
    """Kill, resume, compare and print; exits with 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=10)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--task", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        task, data, out = options.task
        stream, fit = cal.read(Path(data) / "rows", stream=True), cal.load(Path(data) / "a.fit")
        print(_BEGUN, flush=True)
        TASKS[task](stream, fit, Path(out))
        return
    wrong = 0
    with tempfile.TemporaryDirectory() as own:
        write_data(options.rows, Path(own) / "data", options.seed)
        print(f"{'task':8} {'killed at':>9} {'files':>6}  whole  same bits  left besides")
        for task in TASKS:
            for one in kills(task, Path(own) / "data", Path(own) / task, options.moments, options.seed):
                told = (
                    one.task,
                    one.share,
                    one.done,
                    "no " if one.torn else "yes",
                    "yes" if one.same else "NO",
                    one.left,
                )
                print("{:8} {:9.2f} {:6}  {:5}  {:9}  {}".format(*told), flush=True)
                wrong += bool(one.torn or one.left or not one.same)
    print(f"{wrong} of {options.moments * len(TASKS)} went wrong.")
    sys.exit(int(wrong > 0))


if __name__ == "__main__":
    main()
