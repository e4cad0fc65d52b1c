"""Mechanisms that remove modalities, as pure functions ``(data, ..., seed) -> observed_mask`` (N, M).

Use one as ``data.mask(mcar(data, rate=0.5, seed=0))``. A mechanism only removes cells that are present (a cell is one
modality of one instance), and never leaves an instance empty: before anything is removed, each instance has one of its
modalities, chosen uniformly at random and whatever its values, set aside to be kept.

Whether data are missing completely at random, at random or not at random is defined in Rubin, Inference and missing
data (1976).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calmrl_prob._support.arguments import real_number, whole_number
from calmrl_prob.data.multimodal import MultimodalData
from calmrl_prob.data.stream import require_data
from calmrl_prob.errors import ArgumentError, DataError

Mechanism = Callable[..., Tensor]


def mcar(data: MultimodalData, rate: float = 0.5, *, seed: int = 0) -> Tensor:
    """Missing completely at random: cells are removed whatever the values.

    Each instance keeps one modality, chosen uniformly; of the C present cells, round(rate * C) of those not set aside
    so are removed, chosen uniformly. The share removed is therefore exact, up to rounding to one cell; it can be at
    most (C - N) / C, which is 1 - 1/M for complete data.

    Args:
        data: N instances, M modalities.
        rate: the share of the present cells to remove, from 0 to the bound above.
        seed: the same seed removes the same cells.

    Returns:
        ``observed_mask`` (N, M) bool, True = PRESENT, on the device of the data.

    Raises:
        ArgumentError: ``rate`` is outside its bounds.
        ArgumentTypeError: ``data`` is not MultimodalData, or a setting is not a number (so of every mechanism here).

    Example:
        >>> data = MultimodalData({name: torch.ones(100, 2) for name in ("image", "text", "audio")})
        >>> mcar(data, rate=0.5, seed=0).double().mean().item()
        0.5
    """
    rng, present = _start(data, seed)
    removable = present & ~_set_aside(present, rng)
    count = int(np.rint(_target(rate, present, removable)))
    removed = rng.permutation(np.flatnonzero(removable))[:count]
    present.flat[removed] = False
    return _finish(present, data)


def mar(
    data: MultimodalData, rate: float = 0.5, *, driver: str | None = None, strength: float = 2.0, seed: int = 0
) -> Tensor:
    """Missing at random: removal depends on a modality (or covariate) that is itself always kept.

    With s_n the driver's score, standardised over the instances,

        P(cell (n, m) is removed) = sigmoid(a + strength * s_n)    for m other than the driver, a cell not set aside

    where s_n is the first principal component of the driver modality (or of a covariate), its sign such that the
    largest loading is positive, and 0 where an instance lacks it. The intercept a is solved for so that the expected
    number of cells removed is ``rate`` times the number of present cells outside the driver modality. With a modality
    as the driver, what is set aside in the instances that have it is that modality, so rates up to 1 can be met.

    Args:
        data: N instances, M modalities.
        rate: the expected share to remove of the present cells outside the driver.
        driver: a modality, or a numeric covariate (modalities come first); the first modality by default.
        strength: log odds of removal per standard deviation of the score; 0 gives MCAR.
        seed: the same seed removes the same cells.

    Returns:
        ``observed_mask`` (N, M) bool, True = PRESENT, on the device of the data.

    Raises:
        ArgumentError: ``driver`` is unknown or not numeric, or ``rate`` cannot be met.
        DataError: the driver covariate has entries that are not finite.

    Example:
        >>> x = torch.arange(100.0)[:, None]
        >>> data = MultimodalData({"image": x, "text": torch.ones(100, 2)})
        >>> observed = mar(data, rate=0.5, driver="image", strength=4.0, seed=0)
        >>> bool(observed[:50, 1].sum() > observed[50:, 1].sum())  # high image scores lose their text
        True
    """
    rng, present = _start(data, seed)
    name = data.names[0] if driver is None else driver
    candidates = present.copy()
    if name in data:
        score = _modality_score(data, name)
        column = data.names.index(name)
        candidates[:, column] = False
        aside = _set_aside(present, rng)
        aside[present[:, column]] = False  # they keep the driver
    elif name in data.covariates:
        score = _covariate_score(name, data.covariates[name])
        aside = _set_aside(present, rng)
    else:
        raise ArgumentError(
            f"driver: no modality or covariate is called {name!r}; the modalities are {list(data.names)}, "
            f"the covariates {list(data.covariates)}."
        )
    scores = np.broadcast_to(score[:, None], present.shape)
    return _remove_by_score(data, rate, present, candidates, candidates & ~aside, scores, strength, rng)


def mnar(data: MultimodalData, rate: float = 0.5, *, strength: float = 2.0, seed: int = 0) -> Tensor:
    """Missing not at random: whether a cell is removed depends on the very values that are removed.

        P(cell (n, m) is removed) = sigmoid(a + strength * s_nm)    for a cell not set aside

    with s_nm the first principal component of modality m, standardised over the instances that have it, its sign such
    that the largest loading is positive. The intercept a is solved for so that the expected number of cells removed is
    ``rate`` times the number of present cells, which can be at most as for :func:`mcar`.

    Args:
        data: N instances, M modalities.
        rate: the expected share of the present cells to remove.
        strength: log odds of removal per standard deviation of the score; 0 gives MCAR.
        seed: the same seed removes the same cells.

    Returns:
        ``observed_mask`` (N, M) bool, True = PRESENT, on the device of the data.

    Raises:
        ArgumentError: ``rate`` cannot be met.

    Example:
        >>> x = torch.arange(100.0)[:, None]
        >>> data = MultimodalData({"image": x, "text": -x})
        >>> observed = mnar(data, rate=0.4, strength=4.0, seed=0)
        >>> bool(x[observed[:, 0]].mean() < x.mean())  # high values go missing
        True
    """
    rng, present = _start(data, seed)
    scores = np.stack([_modality_score(data, name) for name in data.names], axis=1)
    removable = present & ~_set_aside(present, rng)
    return _remove_by_score(data, rate, present, present, removable, scores, strength, rng)


def pairs(data: MultimodalData, complete: float = 0.15, *, seed: int = 0) -> Tensor:
    """A share of the instances stays as it is; each of the others keeps two of its modalities, any two as likely.

    Args:
        data: N instances, M modalities.
        complete: the share of instances left as they are; round(complete * N) are, chosen uniformly.
        seed: the same seed removes the same cells.

    Returns:
        ``observed_mask`` (N, M) bool, True = PRESENT, on the device of the data.

    Raises:
        ArgumentError: ``complete`` is not in [0, 1].

    Example:
        >>> data = MultimodalData({name: torch.ones(20, 2) for name in ("image", "text", "audio")})
        >>> pairs(data, complete=0.1, seed=0).sum(dim=1).bincount().tolist()  # 18 have two, 2 have three
        [0, 0, 18, 2]
    """
    rng, present = _start(data, seed)
    priority = rng.random(present.shape)
    return _finish(_keep_first(present, priority, 2, complete, rng), data)


def hub(data: MultimodalData, hub: str | None = None, complete: float = 0.0, *, seed: int = 0) -> Tensor:
    """Pairs that all contain one modality, the hub: each instance keeps it and one other, any other as likely.

    An instance that lacks the hub keeps one modality.

    Args:
        data: N instances, M modalities.
        hub: the modality that all keep; the first by default.
        complete: the share of instances left as they are; round(complete * N) are, chosen uniformly.
        seed: the same seed removes the same cells.

    Returns:
        ``observed_mask`` (N, M) bool, True = PRESENT, on the device of the data.

    Raises:
        ArgumentError: ``hub`` is no modality, or ``complete`` is not in [0, 1].

    Example:
        >>> data = MultimodalData({name: torch.ones(20, 2) for name in ("image", "text", "audio")})
        >>> observed = hub(data, "image", seed=0)
        >>> observed[:, 0].all().item(), observed.sum(dim=1).unique().tolist()
        (True, [2])
    """
    rng, present = _start(data, seed)
    name = data.names[0] if hub is None else hub
    if name not in data:
        raise ArgumentError(f"hub: no modality is called {name!r}; the modalities are {list(data.names)}.")
    priority = rng.random(present.shape)
    priority[:, data.names.index(name)] = -1.0
    keep = 1 + present[:, data.names.index(name)]
    return _finish(_keep_first(present, priority, keep, complete, rng), data)


#: Every mechanism by name. One added here runs the contract tests by itself.
MECHANISMS: dict[str, Mechanism] = {"mcar": mcar, "mar": mar, "mnar": mnar, "pairs": pairs, "hub": hub}


def _start(data: MultimodalData, seed: int) -> tuple[np.random.Generator, np.ndarray]:
    """The generator, and what is present (a copy)."""
    require_data(data)
    return np.random.default_rng(whole_number("seed", seed)), data.observed_mask.cpu().numpy().copy()


def _finish(observed: np.ndarray, data: MultimodalData) -> Tensor:
    return torch.from_numpy(observed).to(data.device)


def _set_aside(present: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One present cell of each row, chosen uniformly."""
    chosen = np.where(present, rng.random(present.shape), -1.0).argmax(axis=1)
    aside: np.ndarray = np.arange(present.shape[1]) == chosen[:, None]
    return aside


def _target(rate: float, candidates: np.ndarray, removable: np.ndarray) -> float:
    """The number of cells to remove."""
    rate = real_number("rate", rate, 0.5)
    most = removable.sum() / max(int(candidates.sum()), 1)
    if not 0 <= rate <= most + 1e-12:
        raise ArgumentError(
            f"rate: expected a share from 0 to {most:.4g}, above which some instance would be left empty, got {rate}."
        )
    return float(rate * candidates.sum())


def _keep_first(
    present: np.ndarray, priority: np.ndarray, keep: int | np.ndarray, complete: float, rng: np.random.Generator
) -> np.ndarray:
    """In each row the ``keep`` present cells with the lowest priority numbers; whole rows for a share of them."""
    complete = real_number("complete", complete, 0.15)
    if not 0 <= complete <= 1:
        raise ArgumentError(f"complete: expected a share of the instances in [0, 1], got {complete}.")
    rank = np.where(present, priority, np.inf).argsort(axis=1).argsort(axis=1)
    kept: np.ndarray = present & (rank < np.broadcast_to(keep, len(present))[:, None])
    whole = rng.permutation(len(present))[: round(complete * len(present))]
    kept[whole] = present[whole]
    return kept


def _remove_by_score(
    data: MultimodalData,
    rate: float,
    present: np.ndarray,
    candidates: np.ndarray,
    removable: np.ndarray,
    scores: np.ndarray,
    strength: float,
    rng: np.random.Generator,
) -> Tensor:
    """Remove each removable cell with probability sigmoid(a + strength * score), a solved for to meet the rate."""
    target = _target(rate, candidates, removable)
    strength = real_number("strength", strength, 2.0)
    if not np.isfinite(strength):
        raise ArgumentError(f"strength: expected a finite number, got {strength}.")
    log_odds = strength * scores[removable]
    probability = np.zeros(present.shape)
    probability[removable] = _calibrated(log_odds, target)
    return _finish(present & (rng.random(present.shape) >= probability), data)


def _calibrated(log_odds: np.ndarray, target: float) -> np.ndarray:
    """sigmoid(a + log_odds) with a such that the sum is ``target``, by bisection (the sum rises with a)."""
    reach = 40.0 + float(np.abs(log_odds).max(initial=0.0))
    low, high = -reach, reach
    for _ in range(100):
        middle = (low + high) / 2
        total = _sigmoid(middle + log_odds).sum()
        low, high = (middle, high) if total < target else (low, middle)
    return _sigmoid(high + log_odds)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    result: np.ndarray = 0.5 * (1.0 + np.tanh(0.5 * x))  # the form that cannot overflow
    return result


def _modality_score(data: MultimodalData, name: str) -> np.ndarray:
    observed = data.observed(name).cpu().numpy()
    scores = np.zeros(len(data))
    if observed.any():
        scores[observed] = _first_component(data[name].detach()[data.observed(name)].double().cpu().numpy())
    return scores


def _covariate_score(name: str, column: np.ndarray) -> np.ndarray:
    if column.dtype.kind not in "fiub":
        raise ArgumentError(f"driver: expected a numeric covariate, but {name!r} is {column.dtype}.")
    values = column.reshape(len(column), -1).astype(np.float64)
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise DataError(f"covariates[{name!r}]: row {int(bad.argmax())} is not finite, so it cannot be the driver.")
    return _first_component(values)


def _first_component(values: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray:
    """The first principal component's score of each row, standardised: (n,); zeros if nothing varies."""
    if np.isnan(values).any():  # single features missing: they take the mean of their column, which adds nothing
        lacking = np.isnan(values)
        count = np.maximum((~lacking).sum(axis=0), 1)
        values = np.where(lacking, np.where(lacking, 0.0, values).sum(axis=0) / count, values)
    centred = values - values.mean(axis=0)
    n, d = centred.shape
    if d <= n:
        direction = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    else:
        direction = centred.T @ np.linalg.eigh(centred @ centred.T)[1][:, -1]
    direction *= np.sign(direction[np.abs(direction).argmax()]) or 1.0
    scores: np.ndarray = centred @ direction
    spread = scores.std()
    return scores / spread if spread > 1e-12 * (np.abs(values).max() + 1e-300) else np.zeros(n)
