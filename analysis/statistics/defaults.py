"""From the rows of ``experiments.defaults`` to its summary, and to whether the default reaches what it must."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

#: Files of a run besides ``results.csv``.
MODALITIES, VERDICTS = "modalities.csv", "verdicts.csv"
_TASK = ["dataset", "missing"]
#: For each nominal level, in percent, the range that a modality's coverage is to be in.
BOUNDS = {90: (88.0, 92.5), 50: (47.0, 53.0), 95: (92.0, 98.0)}
_MARGIN, _ORACLE_MARGIN, _ORACLE_RECALL, _TIMES, _SECONDS = 0.005, 0.01, 0.95, 15.0, 60.0


def summarize_defaults(results: pd.DataFrame, modalities: pd.DataFrame) -> pd.DataFrame:
    """One row for each data set and missingness: means over seeds, and the standard deviation of differences.

    Args:
        results: with columns dataset, missing, seed, variant, R2, R2 by pair, R@1, seconds, plain seconds.
        modalities: with columns dataset, missing, seed, variant, modality, coverage 50%, coverage 90%, coverage 95%.

    Returns:
        NaN where there is nothing to compare with. Columns ending in "sd" are spreads over seeds.

    Example:
        >>> rows = [{"dataset": "d", "missing": "mcar", "seed": s, "variant": v, "R2": r}
        ...         for s, v, r in ((0, "default", 0.3), (0, "ridge", 0.1), (1, "default", 0.3), (1, "ridge", 0.3))]
        >>> found = summarize_defaults(pd.DataFrame(rows), pd.DataFrame())
        >>> found[["R2", "R2 - ridge"]].round(3).values.tolist()
        [[0.3, 0.1]]
    """
    rows = []
    for (dataset, missing), part in results.groupby(_TASK, sort=False):
        wide = {name: _by_seed(part, name) for name in ("R2", "R2 by pair", "R@1", "seconds", "plain seconds")}
        recall = wide["R@1"].get("default_retrieval", wide["R@1"].get("default"))
        row = {"dataset": dataset, "missing": missing, "R2": _mean(wide["R2"].get("default"))}
        for name in ("R2", "R2 by pair"):
            for other in ("ridge", "oracle", "mofa"):
                row |= _gap(f"{name} - {other}", wide[name].get("default"), wide[name].get(other))
        row["R@1"] = _mean(recall)
        row |= _gap("R@1 - ridge", recall, wide["R@1"].get("ridge"))
        row["R@1 / oracle"] = _ratio(recall, wide["R@1"].get("oracle"))
        row |= _coverage(modalities, str(dataset), str(missing))
        row["seconds"], plain = _mean(wide["seconds"].get("default")), _mean(wide["plain seconds"].get("default"))
        row["times plain"] = row["seconds"] / max(plain, 1e-3) if plain == plain else np.nan
        rows.append(row)
    return pd.DataFrame(rows)


def formatted_defaults(summary: pd.DataFrame) -> pd.DataFrame:
    """The summary as text, spreads after the means."""
    shown: dict[str, list[str]] = {"data set": list(summary["dataset"]), "missing": list(summary["missing"])}
    for name, digits in _SHOWN.items():
        if name in summary and summary[name].notna().any():
            spread = summary.get(f"{name} sd")
            cells = [_number(value, digits, signed=" - " in name) for value in summary[name]]
            if spread is not None:
                cells = [c + f"±{s:.{digits}f}" * bool(s == s) for c, s in zip(cells, spread, strict=True)]
            shown[name] = cells
    for level in sorted(BOUNDS):
        if f"lowest {level}%" in summary:
            ends = zip(summary[f"lowest {level}%"], summary[f"highest {level}%"], strict=True)
            shown[f"{level}% covers"] = ["-" if low != low else f"{low:.1f} to {high:.1f}" for low, high in ends]
    return pd.DataFrame(shown)


_SHOWN = {
    "R2": 3,
    "R2 - ridge": 3,
    "R2 - oracle": 3,
    "R2 - mofa": 3,
    "R2 by pair - ridge": 3,
    "R@1": 1,
    "R@1 - ridge": 1,
    "R@1 / oracle": 2,
    "seconds": 1,
    "times plain": 1,
}


@dataclass(frozen=True)
class Demand:
    """Something that the default must reach on every data set and missingness.

    Attributes:
        text: what, in words.
        column: of the summary.
        limit: of its value.
        upper: whether the value must not be above the limit; otherwise it must not be below.
        most: whether it is enough that more than half of the values are strictly better than the limit.
    """

    text: str
    column: str
    limit: float
    upper: bool = False
    most: bool = False

    def verdict(self, summary: pd.DataFrame) -> dict[str, str]:
        """Row of the table of verdicts."""
        values = summary[self.column].dropna() if self.column in summary else pd.Series(dtype=float)
        if not len(values):
            return {"must reach": self.text, "holds": "not measured", "found": "-"}
        room = (self.limit - values) if self.upper else (values - self.limit)
        held = room > 0 if self.most else room >= 0
        holds = held.mean() > 0.5 if self.most else held.all()
        worst = summary.loc[room.idxmin()]
        found = (
            f"{int(held.sum())} of {len(held)}; worst {worst[self.column]:.3f}: {worst['dataset']}, {worst['missing']}"
        )
        lacking = len(summary) - len(values)
        return {
            "must reach": self.text,
            "holds": "yes" if holds else "no",
            "found": found + f"; not measured on {lacking}" * bool(lacking),
        }


def _demands() -> Iterator[Demand]:
    for name, text in (("R2", "R2 from all others"), ("R2 by pair", "R2 by pair")):
        yield Demand(f"{text}: at least ridge's - {_MARGIN}", f"{name} - ridge", -_MARGIN)
        yield Demand(f"{text}: above ridge's on most", f"{name} - ridge", 0.0, most=True)
    yield Demand(f"R2 from all others: within {_ORACLE_MARGIN} of the hand grid's best", "R2 - oracle", -_ORACLE_MARGIN)
    yield Demand("R2 from all others: at least mofapy2's, on assays", "R2 - mofa", 0.0)
    yield Demand("R@1: at least ridge's", "R@1 - ridge", 0.0)
    yield Demand(f"R@1: at least {_ORACLE_RECALL:.0%} of the hand grid's best", "R@1 / oracle", _ORACLE_RECALL)
    for level, (low, high) in BOUNDS.items():
        yield Demand(f"{level}% intervals hold at least {low:g}%, for every modality", f"lowest {level}%", low)
        yield Demand(
            f"{level}% intervals hold at most {high:g}%, for every modality", f"highest {level}%", high, upper=True
        )
    yield Demand(
        f"CPU seconds: at most {_TIMES:g} times one fit of the settings chosen", "times plain", _TIMES, upper=True
    )
    yield Demand(f"CPU seconds: at most {_SECONDS:g}", "seconds", _SECONDS, upper=True)


def verdicts(results: pd.DataFrame, modalities: pd.DataFrame) -> pd.DataFrame:
    """What the default must reach, whether it does, on how many data sets, and where it is worst.

    Args:
        results: as :func:`summarize_defaults` takes it.
        modalities: likewise.

    Returns:
        Text, with columns must reach, holds, found.

    Example:
        >>> rows = [{"dataset": "d", "missing": "mcar", "seed": 0, "variant": v, "R2": r, "note": ""}
        ...         for v, r in (("default", 0.3), ("ridge", 0.31))]
        >>> verdicts(pd.DataFrame(rows), pd.DataFrame()).iloc[1].tolist()
        ["R2 from all others: at least ridge's - 0.005", 'no', '0 of 1; worst -0.010: d, mcar']
    """
    summary = summarize_defaults(results, modalities)
    return pd.DataFrame([_fitted(results), *(demand.verdict(summary) for demand in _demands())])


def _fitted(results: pd.DataFrame) -> dict[str, str]:
    """Whether all default fits came to something: means over seeds leave out those that did not."""
    own = results[results["variant"].isin(["default", "default_retrieval"])]
    failed = own[own["R2"].isna()]
    first = "" if not len(failed) else f"; first {failed['dataset'].iloc[0]}: {failed['note'].iloc[0]}"
    return {
        "must reach": "the default fits everything",
        "holds": "no" if len(failed) else "yes",
        "found": f"{len(own) - len(failed)} of {len(own)}{first}",
    }


def _by_seed(part: pd.DataFrame, name: str) -> dict[str, pd.Series]:
    """For each method a measure by seed."""
    if name not in part:
        return {}
    return {str(key): rows.set_index("seed")[name].astype(float) for key, rows in part.groupby("variant")}


def _gap(name: str, own: pd.Series | None, other: pd.Series | None) -> dict[str, float]:
    """Mean of the differences seed by seed, and their standard deviation."""
    if own is None or other is None:
        return {name: np.nan, f"{name} sd": np.nan}
    gap = (own - other).dropna()
    return {name: _mean(gap), f"{name} sd": float(gap.std(ddof=1)) if len(gap) > 1 else np.nan}


def _ratio(own: pd.Series | None, other: pd.Series | None) -> float:
    """Of the means over the seeds that both have."""
    if own is None or other is None:
        return float("nan")
    both = pd.concat([own, other], axis=1, join="inner").dropna().mean()
    return float(both.iloc[0] / both.iloc[1]) if len(both) else float("nan")


def _coverage(modalities: pd.DataFrame, dataset: str, missing: str) -> dict[str, float]:
    """For each level the lowest and highest coverage of a modality, each the mean over seeds."""
    if not len(modalities):
        return {}
    same = (modalities["dataset"] == dataset) & (modalities["missing"] == missing)
    own = modalities[same & (modalities["variant"] == "default")].groupby("modality")
    found = {}
    for level in BOUNDS:
        if f"coverage {level}%" in modalities:
            means = own[f"coverage {level}%"].mean()
            found |= {f"lowest {level}%": float(means.min()), f"highest {level}%": float(means.max())}
    return found


def _mean(values: pd.Series | None) -> float:
    return float("nan") if values is None or not values.notna().any() else float(values.mean())


def _number(value: float, digits: int, *, signed: bool = False) -> str:
    return "-" if value != value else f"{value:{'+' if signed else ''}.{digits}f}"
