"""A missing modality imputed by this package and by peers: ``python -m benchmarks.compared``.

Bundled data, columns standardised. Of the training rows 40% of all modality cells are removed, never all of a row;
each test row lacks one modality at random, which is imputed from those that it has. R^2 is about the training mean,
over all hidden values of a modality, mean over modalities. A peer with several settings chooses among them by a fifth
of its training rows, treated as test rows are; the choice is in the CPU seconds. Each is fitted in a process of its
own, and left out where it is not installed (``pip install -e '.[bench,peers]'``).
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch

import argparse
import importlib.util
import json
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from rich.console import Console

import calmrl_prob as cal
from benchmarks import peer_imputers as peers
from benchmarks.clock import cpu_seconds
from benchmarks.tables import Row, in_own_process, show
from calmrl_prob.data.missingness import mcar

SETS, SEEDS, RATE = ("leaves", "emoji"), (0, 1, 2), 0.4
Setting = TypeVar("Setting")


class Task(NamedTuple):
    """Rows to learn from, rows to impute, and the truth of these; ``hidden`` (N,) is the modality that each lacks."""

    train: cal.MultimodalData
    test: cal.MultimodalData
    truth: cal.MultimodalData
    hidden: np.ndarray


class Contender(NamedTuple):
    """Imputes the test rows of a task, ``impute(task, setting) -> {modality: (N, D)}``, by the best of its settings."""

    impute: Callable[..., peers.Values]
    settings: Sequence[object]
    package: str = ""


CONTENDERS = {
    "calmrl-prob, default": Contender(lambda task, _: peers.default(task.train, task.test), [None]),
    "cca-zoo, MCCA": Contender(
        lambda task, setting: peers.mcca(task.train, task.test, *setting),
        [(k, shrinkage) for k in (1, 4, 16) for shrinkage in (0.1, 0.5, 0.9, 0.99)],
        "cca_zoo",
    ),
    "cca-zoo, GFA": Contender(lambda task, k: peers.gfa(task.train, task.test, k), [32], "cca_zoo"),
    "MuVI": Contender(lambda task, k: peers.muvi(task.train, task.test, k), [16], "muvi"),
}


def make(name: str, seed: int) -> Task:
    """The task of a data set: its own split, or half of the rows."""
    whole = {"leaves": cal.datasets.load_leaves, "emoji": cal.datasets.load_emoji}[name]()
    train, test = (whole.train, whole.test) if name == "emoji" else whole.split([800, 800], seed=seed)
    train = train.mask(mcar(train, RATE, seed=seed))
    moments = {m: (train[m].nanmean(0), train[m][train.observed(m)].std(0)) for m in train.names}
    parts = (
        cal.MultimodalData({m: (part[m] - mean) / sd for m, (mean, sd) in moments.items()}).to(dtype=torch.float64)
        for part in (train, test)
    )
    return hide(*parts, seed)


def hide(train: cal.MultimodalData, complete: cal.MultimodalData, seed: int) -> Task:
    """Of each row to impute one modality that it has is hidden; rows that have but one are left out."""
    truth = complete.subset(complete.observed_mask.sum(1).numpy() > 1)
    there = truth.observed_mask.numpy()
    draws = np.random.default_rng(seed).random(there.shape)
    hidden = np.where(there, draws, -1).argmax(1)
    kept = there & (np.arange(there.shape[1]) != hidden[:, None])
    return Task(train, truth.mask(torch.as_tensor(kept)), truth, hidden)


def r2(task: Task, imputed: peers.Values) -> dict[str, float]:
    """R^2 of each modality where it was hidden, about the training mean."""
    found = {}
    for number, name in enumerate(task.truth.names):
        rows = task.hidden == number
        truth, mean = task.truth[name].numpy()[rows], task.train[name].nanmean(0).numpy()
        found[name] = float(1 - np.square(truth - imputed[name][rows]).sum() / np.square(truth - mean).sum())
    return found


def chosen(task: Task, contender: Contender) -> object:
    """The setting that imputes a fifth of the training rows best, learned from the others."""
    if len(contender.settings) == 1:
        return contender.settings[0]
    most = int(0.8 * len(task.train))
    trial = hide(*task.train.split([most, len(task.train) - most], seed=0), seed=0)
    scores = [np.mean(list(r2(trial, contender.impute(trial, setting)).values())) for setting in contender.settings]
    return contender.settings[int(np.argmax(scores))]


def measure(name: str, seed: int, title: str) -> Row:
    """One contender on one task."""
    task, contender = make(name, seed), CONTENDERS[title]
    found: dict[str, object] = {}

    def work() -> None:
        found["setting"] = chosen(task, contender)
        found["r2"] = r2(task, contender.impute(task, found["setting"]))

    seconds = cpu_seconds(work)
    return {"data": name, "seed": seed, "contender": title, "cpu_s": seconds, **found}


def summary(rows: list[Row]) -> Row:
    """Mean and standard deviation over the seeds of one contender on one data set."""
    scores = [float(np.mean(list(row["r2"].values()))) for row in rows]  # type: ignore[attr-defined]
    seconds = [row["cpu_s"] for row in rows]
    return {
        "data": rows[0]["data"],
        "contender": rows[0]["contender"],
        "R^2": f"{np.mean(scores):.3f}±{np.std(scores):.3f}",
        "CPU s": f"{np.mean(seconds):.1f}",
        "settings": ", ".join(dict.fromkeys(str(row["setting"]) for row in rows)),
    }


def main() -> None:
    """Measure those that are installed, and print; of one run its row as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compared", description=__doc__)
    parser.add_argument("one", nargs="*", help="data set, seed and contender of one run")
    one = parser.parse_args().one
    torch.set_num_threads(1)
    if one:
        print(json.dumps(measure(one[0], int(one[1]), one[2])))
        return
    there = [title for title, c in CONTENDERS.items() if not c.package or importlib.util.find_spec(c.package)]
    table = [
        summary([in_own_process("benchmarks.compared", name, str(seed), title) for seed in SEEDS])
        for name in SETS
        for title in there
    ]
    show(Console(width=120), "One modality of each test row imputed from the others", table)


if __name__ == "__main__":
    main()
