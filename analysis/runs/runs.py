"""Files that a run of the experiments left in its folder, complete or not: read, and what is lacking told apart."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from analysis.runs.files import read_facts, read_table
from calmrl_prob.errors import FileFormatError

#: What makes a folder that of a run, or of one that was begun. Hydra writes the first when the run starts.
_SIGNS = (".hydra", "job.json", "results.csv", "results.parquet", "table.md", "run.json")
#: Columns of results that say whose row it is, the variant aside: a table keeps them apart.
_SETTINGS = ("dataset", "fit", "modality", "missing", "share", "pooled", "factor", "value", "imputed by")
#: The column of the variant, whatever an experiment calls it.
_VARIANTS = ("variant", "trained on", "method")


@dataclass(frozen=True)
class Run:
    """A run, finished or not.

    Attributes:
        folder: where it is.
        experiment: its name, such as "align"; "" if nothing tells.
        results: one row for each variant and seed (and whatever else was kept apart); empty if there are none.
        config, config_text: as it was composed, and as YAML; empty if it is not there.
        overrides: the settings given on the command line.
        facts: ``run.json``, which only ``experiments.compare`` writes; empty otherwise.
        job: ``job.json``: state, versions, seconds; empty for runs of older versions.
        table: ``table.md``, the experiment's own table; "" if it did not get that far.
        lacking: what it did not leave, in plain words; empty for a finished run.
    """

    folder: Path
    experiment: str
    results: pd.DataFrame
    config: Mapping[str, Any]
    config_text: str
    overrides: Sequence[str]
    facts: Mapping[str, Any]
    job: Mapping[str, Any]
    table: str
    lacking: Sequence[str]

    @property
    def variant_column(self) -> str | None:
        """The column of ``results`` with the variants."""
        return next((name for name in _VARIANTS if name in self.results), None)

    @property
    def group_columns(self) -> list[str]:
        """The columns that keep rows of one variant and seed apart, such as the number of missing modalities."""
        column = self.variant_column
        if column is None or "seed" not in self.results or not self.results.duplicated([column, "seed"]).any():
            return []
        return [name for name in _SETTINGS if name in self.results and self.results[name].nunique() > 1]

    @property
    def pictures(self) -> list[Path]:
        """PNG files of the run."""
        return sorted(self.folder.glob("*.png"))


def find_runs(folder: str | os.PathLike[str]) -> list[Path]:
    """The folders of runs: the folder itself, or, of a sweep, those below, runs 2 before 10.

    Raises:
        FileFormatError: there is no such folder, or nothing of a run in it or below.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileFormatError(f"{root}: there is no such folder; give that of a run, such as outputs/<date>/<time>.")
    # A sweep, and a run whose parts are runs, hold some of the signs themselves, and no results.
    found = [root] if _has_results(root) else sorted(_below(root), key=lambda path: _by_value(path.relative_to(root)))
    if not found and _is_run(root):
        found = [root]
    if not found:
        raise FileFormatError(
            f"{root}: nothing of a run is in it or below (no results.csv, results.parquet or .hydra); make one with "
            "python -m experiments.compare and give the folder that it prints."
        )
    return found


def read_run(folder: str | os.PathLike[str]) -> Run:
    """Read what there is; what is not there is named in ``lacking``.

    Raises:
        FileFormatError: a file is there and cannot be read.
    """
    root = Path(folder)
    job = read_facts(root / "job.json") if (root / "job.json").is_file() else {}
    facts = read_facts(root / "run.json") if (root / "run.json").is_file() else {}
    path = next((root / name for name in ("results.parquet", "results.csv") if (root / name).is_file()), None)
    results = pd.DataFrame() if path is None else read_table(path)
    composed = next((path for path in (root / "config.yaml", root / ".hydra" / "config.yaml") if path.is_file()), None)
    hydra = _yaml(root / ".hydra" / "hydra.yaml") or {}
    overrides = _yaml(root / ".hydra" / "overrides.yaml") or facts.get("overrides") or []
    experiment = hydra.get("hydra", {}).get("job", {}).get("name") or job.get("experiment") or _from_log(root)
    table = root / "table.md"
    run = Run(
        folder=root,
        experiment=experiment or ("compare" if facts else ""),
        results=results,
        config={} if composed is None else _yaml(composed),
        config_text="" if composed is None else composed.read_text(encoding="utf-8"),
        overrides=[str(word) for word in overrides],
        facts=facts,
        job=job,
        table=table.read_text(encoding="utf-8") if table.is_file() else "",
        lacking=[],
    )
    return Run(**{**vars(run), "lacking": list(_lacking(run))})


def _lacking(run: Run) -> Iterator[str]:
    if not len(run.results):
        last = _last_line(run.folder)
        yield (
            "There are no results: the run was refused, failed or was interrupted before the first of them."
            + f" The last line of its log: {last}" * bool(last)
        )
        return
    if run.job.get("state") == "failed":
        yield f"The run failed: {run.job.get('error')}"
    rows = missing_rows(run)
    if rows:
        yield (
            "The run was interrupted, or is still going on. What it was to measure and did not: "
            + "; ".join(f"{variant} (seeds {', '.join(map(str, seeds))})" for variant, seeds in rows.items())
            + ". All figures are of the rest. The same command, or the same with hydra.run.dir=<this folder> where the "
            "experiment goes on with what it has, makes it whole."
        )
    elif run.job.get("state") == "running":
        yield "It has not ended: interrupted, or still going on. All rows of its table were measured."
    if not run.config:
        yield "Its configuration is not there (config.yaml)."


def missing_rows(run: Run) -> dict[str, list[int]]:
    """For each variant the seeds that the configuration asks for and ``results`` do not have."""
    column, seeds = run.variant_column, list(run.config.get("seeds") or [])
    if column is None or "seed" not in run.results:
        return {}
    labels = run.results.drop_duplicates(column).set_index(column)
    wanted = _wanted_variants(run) or list(labels.index)
    groups = run.results["dataset"] if "dataset" in run.results else pd.Series("", index=run.results.index)
    sets = _chosen(run.config, "datasets", "only_data") if "dataset" in run.results else [""]
    there = set(zip(groups, run.results[column], run.results["seed"], strict=True))
    lacking: dict[str, list[int]] = {}
    for group, variant, seed in product(sets, wanted, seeds):
        if (group, variant, seed) not in there:
            known = labels["label"].get(variant, variant) if "label" in labels else variant
            lacking.setdefault(f"{known} on {group}" if group else str(known), []).append(seed)
    return lacking


def _wanted_variants(run: Run) -> list[str]:
    """The variants that the configuration asks for; none where it does not tell."""
    config = run.config
    if run.variant_column == "trained on" or run.group_columns == ["factor"] or "factors" in config:
        return []
    if "variants" in config:
        return _chosen(config, "variants", "only")
    if "models" in config:
        return _chosen(config, "models", "only_models")
    if "contender" in config:
        return list(config["contender"])
    if "calibration" in config:
        in_file = (config.get("model") or {}).get("file") is not None
        return [key for key in config["calibration"] if in_file or key != "model"]
    return []


def _chosen(config: Mapping[str, Any], known: str, only: str) -> list[str]:
    chosen = config.get(only)
    return [str(name) for name in (config.get(known) or [] if chosen is None else chosen)]


def _is_run(folder: Path) -> bool:
    return any((folder / sign).exists() for sign in _SIGNS) or any(folder.glob("*.log"))


def _has_results(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("results.csv", "results.parquet"))


def _below(folder: Path) -> Iterator[Path]:
    for child in folder.iterdir():
        if child.is_dir() and not child.name.startswith("."):
            if _has_results(child) or (_is_run(child) and not any(_below(child))):
                yield child
            else:
                yield from _below(child)


def _by_value(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.parts]


def _yaml(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    if not path.is_file():
        return None
    try:
        return OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:  # OmegaConf passes on what its parser raises, of many types
        raise FileFormatError(f"{path} cannot be read ({error}); is it the folder of a run?") from error


def _from_log(folder: Path) -> str:
    log = next(iter(sorted(folder.glob("*.log"))), None)
    return log.stem if log is not None else ""


def _last_line(folder: Path) -> str:
    log = next(iter(sorted(folder.glob("*.log"))), None)
    if log is None:
        return ""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return textwrap.shorten(lines[-1], 300, placeholder=" ...") if lines else ""
