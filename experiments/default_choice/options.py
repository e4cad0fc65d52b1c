"""Options of ``experiments.defaults``, checked: which sets are there, which are to be measured, and how."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from analysis.runs.files import read_table
from calmrl_prob.errors import ArgumentError
from experiments.default_choice.oracle import Grid, Oracle
from experiments.default_choice.removal import MISSINGNESS
from experiments.default_choice.sources import DataSet
from experiments.harness.settings import build


@dataclass(frozen=True)
class Options:
    """What is to be measured.

    Attributes:
        datasets: by name, those that are there.
        absent: why the others are not.
        missing: ways in which training rows lose modalities, see ``removal.remove``.
        seeds: each removes others.
        oracle: None where it is left out.
        oracle_seeds: those that it is sought for.
    """

    datasets: dict[str, DataSet]
    absent: dict[str, str]
    missing: list[str]
    seeds: list[int]
    oracle: Oracle | None
    oracle_seeds: list[int]

    @classmethod
    def of(cls, cfg: DictConfig) -> Options:
        """From the composed configuration.

        Raises:
            ArgumentError: an option has a value that cannot work, or none of the sets is there; the message names it.
            FileFormatError: the file of an earlier oracle cannot be read.
        """
        missing = list(cfg.missing) if isinstance(cfg.missing, ListConfig) else [cfg.missing]
        if not missing or not set(missing) <= set(MISSINGNESS):
            raise ArgumentError(f"missing: expected some of {list(MISSINGNESS)}, got {cfg.missing}.")
        asked = {name: _dataset(cfg, name) for name in _wanted(cfg)}
        absent = {name: why for name, found in asked.items() if (why := found.lacking(cfg.data_root))}
        datasets = {name: found for name, found in asked.items() if name not in absent}
        if not datasets:
            raise ArgumentError(f"sets: none of them is there: {'; '.join(absent.values())}.")
        seeds, some = _seeds(cfg.seeds), cfg.oracle_seeds
        if some is not None and not (isinstance(some, int) and some >= 1):
            raise ArgumentError(f"oracle_seeds: expected a number from 1 up, or null for all, got {some!r}.")
        return cls(datasets, absent, missing, seeds, _oracle(cfg), seeds[:some])


def _wanted(cfg: DictConfig) -> list[str]:
    known = [str(name) for name in cfg.datasets]
    wanted = known if cfg.sets is None else [cfg.sets] if isinstance(cfg.sets, str) else list(cfg.sets)
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        raise ArgumentError(f"sets: expected some of {known}, got {wanted}.")
    return wanted


def _dataset(cfg: DictConfig, name: str) -> DataSet:
    given = build(cfg, f"datasets.{name}")
    known = [field.name for field in fields(DataSet)]
    unknown = [str(key) for key in given if key not in known]
    if unknown:
        raise ArgumentError(f"datasets.{name}: expected some of {known}, got {unknown}.")
    try:
        return DataSet(**given)
    except ArgumentError as error:
        raise ArgumentError(f"datasets.{name}.{error}") from error


def _seeds(seeds: object) -> list[int]:
    if isinstance(seeds, int) and not isinstance(seeds, bool) and seeds >= 1:
        return list(range(seeds))
    listed = list(seeds) if isinstance(seeds, ListConfig) else []
    if not listed or not all(isinstance(seed, int) and seed >= 0 for seed in listed) or len(set(listed)) < len(listed):
        raise ArgumentError(
            f"seeds: expected a number from 1 up, or different whole numbers such as [0,1], got {seeds}."
        )
    return listed


def _oracle(cfg: DictConfig) -> Oracle | None:
    if cfg.oracle is False:
        return None
    grid = Grid(**{str(key): list(v) if isinstance(v, ListConfig) else v for key, v in cfg.oracle_grid.items()})
    if cfg.oracle is True:
        return Oracle(grid)
    if not isinstance(cfg.oracle, str):
        raise ArgumentError(f"oracle: expected true, false, or the oracle.csv of an earlier run, got {cfg.oracle!r}.")
    return Oracle(grid, read_table(Path(cfg.oracle)))
