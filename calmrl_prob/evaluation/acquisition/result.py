"""The value of information as a result: of each cell that is missing, by pattern, by instance, as a ranking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calmrl_prob._support.arguments import whole_number
from calmrl_prob.errors import ArgumentError


@dataclass(frozen=True, eq=False, repr=False)
class ValueOfInformation:
    """Value of observing each modality that an instance lacks: what it is expected to tell.

    Attributes:
        gain: (N, M), nats, at least 0; NaN for what is there already (with a target: for itself, and throughout for
            instances that have it). The mutual information of the modality and the latents, or the target. About a
            class the expected drop of its entropy, which draws, temperatures or a floor may put below 0.
        names: the M modalities.
        observed_mask: (N, M) bool, True = PRESENT.
        target: the modality that the gain is about; None for the latents; "class" of a classifier's.
        trace_drop: (N, M), the expected drop of the trace of the target's predictive covariance, in its squared units;
            None without a target, and of a classifier.
        standard_error: (N, M), of the gain, nats; 0 where it is in closed form.
        trace_drop_error: the same of ``trace_drop``; None without a target.
        ids: (N,) of the instances; their numbers if they have none.
        route: of the posterior.
        method: "exact" or "draws".
    """

    gain: NDArray[np.float64]
    names: tuple[str, ...]
    observed_mask: NDArray[np.bool_]
    target: str | None
    trace_drop: NDArray[np.float64] | None
    standard_error: NDArray[np.float64]
    trace_drop_error: NDArray[np.float64] | None
    ids: NDArray[np.generic]
    route: str
    method: str

    def ranking(self, k: int | None = None, by: Literal["gain", "trace_drop"] = "gain") -> pd.DataFrame:
        """Observations to acquire next, one cell a row, best first; of cells that tell as much the first instance.

        Each gain is that of one observation alone: after a modality of an instance is acquired, the gains of its other
        modalities change (by the chain rule, they fall in all that both would have told).

        Args:
            k: how many rows; all by default.
            by: "gain", in nats, to which features that are known well already count as much as any; or "trace_drop",
                the squared error that imputation of the target stands to lose.

        Returns:
            Columns "instance" (its id), "modality", "gain", with a target "trace_drop", and "standard_error" if any.

        Raises:
            ArgumentError: ``k`` is below 1, ``by`` is neither, or it is "trace_drop" and there is no target.
            ArgumentTypeError: ``k`` is no whole number.
        """
        scores = {"gain": self.gain, "trace_drop": self.trace_drop}.get(by)
        if scores is None and by == "trace_drop":
            raise ArgumentError("by: 'trace_drop' is of a target, and there is none; pass target=, or order by 'gain'.")
        if scores is None:
            raise ArgumentError(f"by: expected 'gain' or, of results with a target, 'trace_drop', got {by!r}.")
        rows, columns = np.nonzero(~np.isnan(self.gain))
        order = np.argsort(-scores[rows, columns], kind="stable")
        if k is not None:
            order = order[: whole_number("k", k, least=1)]
        rows, columns = rows[order], columns[order]
        table = {
            "instance": self.ids[rows],
            "modality": np.asarray(self.names, dtype=object)[columns],
            "gain": self.gain[rows, columns],
        }
        if self.trace_drop is not None:
            table["trace_drop"] = self.trace_drop[rows, columns]
        if self.method != "exact":
            table["standard_error"] = self.standard_error[rows, columns]
        return pd.DataFrame(table)

    @property
    def best(self) -> pd.Series[Any]:
        """The modality that tells most, by instance id; None of instances for which there is nothing to acquire."""
        some = ~np.isnan(self.gain).all(axis=1)
        found = np.full(len(self.gain), None, dtype=object)
        if some.any():
            found[some] = np.asarray(self.names, dtype=object)[np.nanargmax(self.gain[some], axis=1)]
        return pd.Series(found, index=pd.Index(self.ids, name="instance"), name="best", dtype=object)

    @property
    def by_pattern(self) -> pd.DataFrame:
        """Mean gain by missing pattern and modality to acquire, the most frequent pattern first, best first in it.

        Returns:
            Columns "pattern" (what is there, "image + text"), "modality", "rows" (instances of the pattern that the
            gain is of), "gain" and, with a target, "trace_drop". Under a Gaussian model all rows
            of a pattern have its gain.
        """
        distinct, index, counts = np.unique(self.observed_mask, axis=0, return_inverse=True, return_counts=True)
        index, found = index.reshape(-1), []
        for p in np.argsort(-counts, kind="stable"):
            there = " + ".join(name for name, has in zip(self.names, distinct[p], strict=True) if has) or "nothing"
            members = self.gain[index == p]
            lines = []
            for m, name in enumerate(self.names):
                asked = ~np.isnan(members[:, m])
                if asked.any():
                    line = {
                        "pattern": there,
                        "modality": name,
                        "rows": int(asked.sum()),
                        "gain": members[asked, m].mean(),
                    }
                    if self.trace_drop is not None:
                        line["trace_drop"] = self.trace_drop[index == p][asked, m].mean()
                    lines.append(line)
            found += sorted(lines, key=lambda line: -line["gain"])
        columns = ["pattern", "modality", "rows", "gain"] + ["trace_drop"] * (self.trace_drop is not None)
        return pd.DataFrame(found, columns=columns)

    def __repr__(self) -> str:
        about = "the latents" if self.target is None else repr(self.target)
        cells = int((~np.isnan(self.gain)).sum())
        most = ""
        if cells:
            top = self.ranking(1).iloc[0]
            most = f"; most: {top['gain']:.3g} nats by {top['modality']!r} of {top['instance']}"
        return f"ValueOfInformation({len(self.gain)} instances, {cells} cells to acquire, about {about}{most})"
