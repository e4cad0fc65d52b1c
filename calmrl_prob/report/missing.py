"""Schema of data and what is missing in them, counted in one pass over rows in memory or a stream, and as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from calmrl_prob.data import MultimodalData
from calmrl_prob.data.features import Names
from calmrl_prob.data.stream import MultimodalStream

if TYPE_CHECKING:
    import pandas as pd

#: Patterns that a text shows, characters of the longest bar, and names of features that are told.
_MOST_PATTERNS, _BAR, _MOST_NAMES = 20, 24, 5


@dataclass(frozen=True)
class Described:
    """Data by what they hold and lack.

    Attributes:
        num_instances: N.
        dtype: of the values, such as "float32".
        dims: D_m of each modality.
        feature_names: of each modality, None where they are not known.
        instances: of each modality the number of instances that have it.
        entries: of each modality the number of values that are there.
        patterns: how many instances have just these modalities, the most frequent first, by the flags of all M.
        columns: "ids", "labels", "partition" and covariates: what else is known of the instances.
        labels: how many instances each label has; empty where there are none.

    Example:
        >>> x = np.array([[1.0], [2.0], [np.nan]])
        >>> found = Described.of(MultimodalData({"image": np.ones((3, 2)), "text": x}))
        >>> found.instances, found.patterns
        ({'image': 3, 'text': 2}, {(True, True): 2, (True, False): 1})
        >>> print(found.map())
         instances  share  image  text
                 2    67%    ##    ##   ########################
                 1    33%    ##    ..   ############
    """

    num_instances: int
    dtype: str
    dims: Mapping[str, int]
    feature_names: Mapping[str, Names | None]
    instances: Mapping[str, int]
    entries: Mapping[str, int]
    patterns: Mapping[tuple[bool, ...], int]
    columns: Sequence[str]
    labels: Mapping[str, int]

    @classmethod
    def of(cls, data: MultimodalData | MultimodalStream) -> Described:
        """Count what data have; a stream is gone through once, chunk by chunk."""
        patterns: Counter[tuple[bool, ...]] = Counter()
        entries: Counter[str] = Counter()
        labels: Counter[str] = Counter()
        columns: dict[str, None] = {}
        dtype = ""
        for chunk in [data] if isinstance(data, MultimodalData) else data:
            chunk = chunk.conform(data.dims)
            flags, counts = np.unique(chunk.observed_mask.cpu().numpy(), axis=0, return_counts=True)
            for pattern, count in zip(flags.tolist(), counts.tolist(), strict=True):
                patterns[tuple(pattern)] += count
            for name in chunk.names:
                entries[name] += int(chunk.feature_mask(name).sum())
            labels.update("(none)" if label is None else str(label) for label in _listed(chunk.labels))
            known = {"ids": chunk.ids, "labels": chunk.labels, "partition": chunk.partition, **chunk.covariates}
            columns |= dict.fromkeys(name for name, column in known.items() if column is not None)
            dtype = str(chunk.dtype).removeprefix("torch.")
        instances = {
            name: sum(count for pattern, count in patterns.items() if pattern[m]) for m, name in enumerate(data.names)
        }
        return cls(
            sum(patterns.values()),
            dtype,
            dict(data.dims),
            data.feature_names,
            instances,
            {name: entries[name] for name in data.names},
            dict(sorted(patterns.items(), key=lambda item: (item[1], item[0]), reverse=True)),
            tuple(columns),
            dict(sorted(labels.items(), key=lambda item: (-item[1], item[0]))),
        )

    @property
    def single_features_missing(self) -> bool:
        """Whether instances lack single features of modalities that they have."""
        return any(self.entries[name] < self.instances[name] * width for name, width in self.dims.items())

    def schema(self) -> pd.DataFrame:
        """One row for each modality: ``modality``, ``features``, ``instances`` that have it, shares, first names."""
        import pandas as pd

        rows = []
        for name, width in self.dims.items():
            named = [str(feature) for feature in (self.feature_names.get(name) or ())[:_MOST_NAMES]]
            row = {
                "modality": name,
                "features": width,
                "instances": self.instances[name],
                "share": self.instances[name] / max(self.num_instances, 1),
                "entries there": self.entries[name] / max(self.num_instances * width, 1),
                "first features": ", ".join(named) + ", ..." * (width > len(named) > 0),
            }
            rows.append(row)
        table = pd.DataFrame(rows)
        return table if any(table["first features"]) else table.drop(columns="first features")

    def map(self) -> str:
        """The missingness map as text: a line for each pattern, the most frequent first, and a bar of its share."""
        widths = [max(len(name), 2) for name in self.dims]
        heading = "  ".join(name.center(width) for name, width in zip(self.dims, widths, strict=True)).rstrip()
        lines = [f" {'instances':>9}  share  {heading}"]
        most = max(self.patterns.values(), default=1)
        for pattern, count in list(self.patterns.items())[:_MOST_PATTERNS]:
            cells = "  ".join(
                ("##" if there else "..").center(width) for there, width in zip(pattern, widths, strict=True)
            )
            bar = "#" * max(1, round(_BAR * count / most))
            lines.append(f" {count:>9,}  {count / self.num_instances:>5.0%}  {cells}  {bar}")
        left = list(self.patterns.values())[_MOST_PATTERNS:]
        if left:
            lines.append(f" {sum(left):>9,}  {sum(left) / self.num_instances:>5.0%}  in {len(left):,} other patterns")
        return "\n".join(lines)

    def facts(self) -> dict[str, Any]:
        """All of it as what JSON holds."""
        return {
            "instances": self.num_instances,
            "dtype": self.dtype,
            "modalities": self.schema().drop(columns="first features", errors="ignore").to_dict("records"),
            "first_features": {
                name: None if names is None else [str(each) for each in names[:_MOST_NAMES]]
                for name, names in self.feature_names.items()
            },
            "patterns": [
                {
                    "present": [name for name, there in zip(self.dims, pattern, strict=True) if there],
                    "instances": count,
                    "share": count / self.num_instances,
                }
                for pattern, count in self.patterns.items()
            ],
            "single_features_missing": self.single_features_missing,
            "columns": list(self.columns),
            "labels": dict(self.labels),
        }

    def readings(self) -> list[str]:
        """Readings of the counts, in sentences: complete instances, modalities that never meet, single features."""
        complete = self.patterns.get((True,) * len(self.dims), 0)
        lines = [f"{complete:,} of {self.num_instances:,} instances ({_share(complete, self)}) have all modalities."]
        for name, count in self.instances.items():
            if count < self.num_instances:
                lines.append(f"{name} is there in {count:,} instances ({_share(count, self)}).")
        for one, other in self._never_together():
            lines.append(
                f"No instance has both {one} and {other}: what links them goes through other modalities, and rests on "
                "the model alone."
            )
        if self.single_features_missing:
            lines.append("Some instances lack single features of a modality that they have.")
        return lines

    def _never_together(self) -> list[tuple[str, str]]:
        names = list(self.dims)
        pairs = [(a, b) for a in range(len(names)) for b in range(a + 1, len(names))]
        return [(names[a], names[b]) for a, b in pairs if not any(has[a] and has[b] for has in self.patterns)]


def _listed(column: np.ndarray | None) -> list[Any]:
    return [] if column is None else list(column.tolist())


def _share(count: int, described: Described) -> str:
    return f"{100 * count / max(described.num_instances, 1):.3g}%"
