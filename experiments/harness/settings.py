"""From a composed configuration to checked objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException
from omegaconf import DictConfig, ListConfig, OmegaConf

from calmrl_prob.errors import ArgumentError, CalmrlError, FileFormatError

#: Options that not every choice of their group has, and that are numbers where they are there.
_NUMBERS = ("missingness.rate", "missingness.complete", "missingness.strength", "data.test_share")


def build(cfg: DictConfig, option: str) -> Any:  # noqa: ANN401 - whatever its _target_ makes
    """Instantiate one part of the configuration.

    Raises:
        CalmrlError: a value cannot work, or a file cannot be read; the message names the option.
        hydra.errors.InstantiationException: anything else.
    """
    try:
        return hydra.utils.instantiate(OmegaConf.select(cfg, option))
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, CalmrlError | OSError):
            cause = cause.__cause__
        if isinstance(cause, CalmrlError):
            raise type(cause)(f"in the option {option}: {cause}") from error
        if isinstance(cause, OSError):
            why = f"{cause.filename} cannot be read: {cause.strerror}." if cause.filename else str(cause)
            raise FileFormatError(f"in the option {option}: {why}") from error
        raise


def check(cfg: DictConfig) -> None:
    """Refuse values that cannot work before anything is computed.

    Raises:
        ArgumentError: naming the option, what was expected and what came.
    """
    _check_common(cfg)
    _check_share(cfg, "validation_share")
    if not cfg.get("calibration"):
        raise ArgumentError("calibration: expected at least one variant, such as 'calibration=[calmrl,oracle]'.")
    for option in ("interval_rows", "posterior_draws", "posterior_rows"):
        _check_whole(cfg, f"report.{option}", 1)
    shares = cfg.report.shares
    if len(shares) and not (_list_of(shares, float | int) and all(0 <= share < 1 for share in shares)):
        raise ArgumentError(f"report.shares: expected shares of missing cells in [0, 1), got {shares}.")


def check_small_data(cfg: DictConfig) -> None:
    """The same for the configuration ``small_data``.

    Raises:
        ArgumentError: naming the option, what was expected and what came.
    """
    _check_common(cfg)
    if cfg.test_share is not None:
        _check_share(cfg, "test_share")
    _check_whole(cfg, "rows", 2, optional=True)
    _check_whole(cfg, "folds", 2)
    if not cfg.get("contender"):
        raise ArgumentError("contender: expected at least one, such as 'contender=[ridge,pseudo_rows]'.")


def check_recalibration(cfg: DictConfig, methods: Sequence[str]) -> None:
    """The same for the configuration ``recalibration``.

    Args:
        cfg: the configuration.
        methods: those that there are.

    Raises:
        ArgumentError: naming the option, what was expected and what came.
    """
    _check_common(cfg)
    for option in ("level", "calibration_share"):
        _check_share(cfg, option)
    _check_whole(cfg, "rows", 10, optional=True)
    for option in ("test_rows", "folds"):
        _check_whole(cfg, option, 2)
    for option in ("latent_dim", "repeats", "min_rows", "pattern_rows"):
        _check_whole(cfg, option, 1)
    for option, known in (("methods", methods), ("fits", ["likelihood", "shrunk"])):
        if not _list_of(cfg[option], str) or not set(cfg[option]) <= set(known):
            raise ArgumentError(f"{option}: expected some of {list(known)}, got {cfg[option]}.")


def check_models(cfg: DictConfig) -> None:
    """The same for the configuration ``models``.

    Raises:
        ArgumentError: naming the option, what was expected and what came.
    """
    _check_common(cfg)
    _check_share(cfg, "validation_share")
    if cfg.select_by not in ("NLL", "R@1"):
        raise ArgumentError(f"select_by: expected 'NLL' or 'R@1', got {cfg.select_by!r}.")
    for option in ("only_data", "only_models"):
        if cfg[option] is not None and not _list_of(cfg[option], str):
            raise ArgumentError(f"{option}: expected a list of names, or null for all, got {cfg[option]!r}.")


def flatten(cfg: DictConfig) -> dict[str, str | int | float | bool | None]:
    """The configuration as one flat row, ``missingness.rate`` and the like; lists as text.

    What is not a setting of the run as a whole (the variants, the report) is left out.
    """
    flat: dict[str, str | int | float | bool | None] = {}

    def visit(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                if key != "_partial_":
                    visit(f"{prefix}.{key}" if prefix else str(key), inner)
        elif isinstance(value, list):
            flat[prefix] = " ".join(map(str, value))
        elif prefix.endswith("._target_"):
            flat[prefix.removesuffix("._target_")] = str(value).rpartition(".")[2]
        else:
            flat[prefix] = value  # type: ignore[assignment]  # configurations hold plain values

    content = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(content, dict)
    visit(
        "", {key: value for key, value in content.items() if key not in ("calibration", "contender", "report", "seeds")}
    )
    return flat


def _check_common(cfg: DictConfig) -> None:
    lacking = list(_missing(OmegaConf.to_container(cfg, resolve=False)))
    if lacking:
        example = "my.npz" if lacking[0].endswith("path") else "..."
        raise ArgumentError(f"{', '.join(lacking)}: must be given, such as {lacking[0]}={example}.")
    for option in _NUMBERS:
        value = OmegaConf.select(cfg, option)
        if value is not None and not _is_number(value):
            raise ArgumentError(f"{option}: expected a number, got {value!r}.")
    seeds = cfg.seeds
    if not _list_of(seeds, int) or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ArgumentError(f"seeds: expected different whole numbers from 0 up, such as [0,1,2], got {seeds}.")
    _check_share(cfg, "interval_level")


def _check_share(cfg: DictConfig, option: str) -> None:
    value = cfg[option]
    if not _is_number(value) or not 0 < value < 1:
        raise ArgumentError(f"{option}: expected a number between 0 and 1, both excluded, got {value!r}.")


def _check_whole(cfg: DictConfig, option: str, least: int, *, optional: bool = False) -> None:
    value = OmegaConf.select(cfg, option)
    if optional and value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ArgumentError(f"{option}: expected a whole number from {least} up, got {value!r}.")


def _missing(value: object, prefix: str = "") -> Iterator[str]:
    """The options that still are "???"; OmegaConf's own search fails where another option repeats one of them."""
    if value == "???":
        yield prefix
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _missing(inner, f"{prefix}.{key}" if prefix else str(key))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _list_of(value: object, kind: Any) -> bool:  # noqa: ANN401 - a class or a union of classes
    return (
        isinstance(value, list | tuple | ListConfig)
        and len(value) > 0
        and all(isinstance(item, kind) and not isinstance(item, bool) for item in value)
    )
