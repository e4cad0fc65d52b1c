"""Claims of the paper, and what the runs of this project found of each: one function for a claim, from its results.

The claims are those of Liu et al., Calibrated Multimodal Representation Learning with Missing Modalities, arXiv
2511.12034. A finding is about the data, sizes and seeds of the run that it was read from, none of which are the
paper's; "holds" means that the mean over seeds points the paper's way by more than twice its standard error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

Results = Mapping[str, pd.DataFrame]


@dataclass(frozen=True)
class Finding:
    """What a run says of a claim.

    Attributes:
        found: figures, in words.
        verdict: "holds", "holds in part", "not told apart" or "does not hold".
    """

    found: str
    verdict: str


@dataclass(frozen=True)
class Claim:
    """A statement of the paper.

    Attributes:
        about: a word or two.
        says: the statement.
        parts: of the run, whose results it is judged by.
        judge: from these, by name.
        why: what explains the finding, as far as it is understood.
        variants: that every part has to have run for that.
    """

    about: str
    says: str
    parts: tuple[str, ...]
    judge: Callable[[Results], Finding]
    why: str
    variants: tuple[str, ...] = ()

    def lacks(self, results: Results) -> str:
        """The parts or variants that it cannot be judged without, in words; empty if there are none."""
        parts = [part for part in self.parts if part not in results]
        if parts:
            return "not run"
        needed = set(self.variants)
        variants = {name for part in self.parts if needed for name in needed - set(results[part]["variant"])}
        return f"not run with {', '.join(sorted(variants))}" if variants else ""


def verdict(differences: pd.Series | np.ndarray) -> str:
    """Of differences over seeds, positive where the claim is right, what they say together.

    Example:
        >>> verdict(np.array([1.0, 1.2, 0.9])), verdict(np.array([1.0, -1.1])), verdict(np.array([-1.0, -1.1]))
        ('holds', 'not told apart', 'does not hold')
    """
    values = np.asarray(differences, dtype=float)
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return "not told apart"
    error = values.std(ddof=1) / np.sqrt(len(values))
    if abs(values.mean()) <= 2 * error:
        return "not told apart"
    return "holds" if values.mean() > 0 else "does not hold"


def together(verdicts: list[str]) -> str:
    """Several verdicts as one.

    Example:
        >>> together(["holds", "holds"]), together(["holds", "does not hold"]), together(["does not hold"] * 2)
        ('holds', 'holds in part', 'does not hold')
    """
    kinds = set(verdicts)
    return kinds.pop() if len(kinds) == 1 else "holds in part" if "holds" in kinds else "not told apart"


def spread(values: pd.Series | np.ndarray, digits: int = 1) -> str:
    """Mean ± standard deviation over seeds.

    Example:
        >>> spread(np.array([1.0, 2.0])), spread(np.array([1.0]))
        ('1.5±0.7', '1.0')
    """
    array = np.asarray(values, dtype=float)
    array = array[np.isfinite(array)]
    wide = f"±{array.std(ddof=1):.{digits}f}" if len(array) > 1 else ""
    return f"{array.mean():.{digits}f}{wide}" if len(array) else "-"


def _by_seed(rows: pd.DataFrame, column: str, values: str) -> pd.DataFrame:
    return rows.pivot_table(index="seed", columns=column, values=values, aggfunc="mean")


def imputation(results: Results) -> Finding:
    """Errors of imputed representations against those of other rows' and of the mean, one modality missing."""
    found = results["imputation"]
    rows = found[(found["variant"] == "observed") & (found["missing"] == found["missing"].min())]
    errors = _by_seed(rows, "imputed by", "rmse")
    ways = {name: spread(errors[name], 3) for name in ("model", "another row", "mean", "ridge") if name in errors}
    judged = [verdict(errors[other] - errors["model"]) for other in ("another row", "mean")]
    said = ", ".join(f"{way} {value}" for way, value in ways.items())
    return Finding(f"RMSE in standard deviations: {said}", together(judged))


def anchor_shift(results: Results) -> Finding:
    """Mean distance to the anchor of the complete row, as it is and calibrated, for each number missing."""
    found = results["anchor_shift"]
    rows = found[found["trained on"] == "incomplete rows"]
    said, judged = [], []
    for missing, some in rows.groupby("missing"):
        said.append(f"{missing} missing: {spread(some['local'], 3)} to {spread(some['calibrated'], 3)}")
        judged.append(verdict(some["local"] - some["calibrated"]))
    return Finding("; ".join(said), together(judged))


def retrieval(results: Results) -> Finding:
    """R@1 by cosine: encoders aligned with imputed means in the objective against the observed modalities alone."""
    reached = _by_seed(results["align"], "variant", "R@1 cosine")
    said = f"imputed means {spread(reached['imputed_mean'])}, observed only {spread(reached['observed'])}"
    others = reached.drop(columns=["observed", "imputed_mean", "oracle"], errors="ignore").mean()
    labels = results["align"].drop_duplicates("variant").set_index("variant")["label"]
    if len(others.dropna()):
        best = str(others.idxmax())
        said += f"; best of the other variants: {labels[best]} {spread(reached[best])}"
    return Finding(f"R@1 %: {said}", verdict(reached["imputed_mean"] - reached["observed"]))


def complete_data(results: Results) -> Finding:
    """The share of the way from observed modalities only to complete data that calibration goes."""
    closed = _by_seed(results["align"], "variant", "gap").drop(columns=["oracle"], errors="ignore")
    labels = results["align"].drop_duplicates("variant").set_index("variant")["label"]
    best = str(closed.mean().idxmax())
    paper, observed = closed["imputed_mean"], closed["observed"]
    said = f"paper {spread(paper, 0)}, observed only {spread(observed, 0)}, {labels[best]} {spread(closed[best], 0)}"
    return Finding(f"gap closed, %, by likelihood ratio: {said}", verdict(paper - observed))


def convergence(results: Results) -> Finding:
    """Falls of the evidence, iterations, and the distance between the ends of different starts."""
    found = results["convergence"]
    plain = found[found["variant"] == "EM"]
    fall, behind = 1e-12 * found["fall"].max(), found["behind"].max()
    said = (
        f"greatest fall {fall:.0e} of the evidence in {int(found['iterations'].sum()):,} iterations; at rest after "
        f"{spread(plain['iterations'], 0)} of plain EM; ends of all starts within {behind:.0e} nats a value"
    )
    return Finding(said, "holds" if fall < 1e-10 and bool((found["converged"] == 100).all()) else "does not hold")


def captions(results: Results) -> Finding:
    """CIDEr-D of consensus captions, mean over what is given: calibrated against observed modalities and ridge."""
    found = results["captions"]
    rows = found[found["captioner"] == "consensus"]
    said, judged = [], []
    for missing, some in rows.groupby("missing", sort=False):
        reached = _by_seed(some, "variant", "CIDEr-D")
        ours = "calmrl_retrieval" if "calmrl_retrieval" in reached else "calmrl"  # that fit is for it
        if not {ours, "observed"} <= set(reached):
            continue
        words = [f"{missing}: calibrated {spread(reached[ours], 3)}"]
        for name, label in (("observed", "observed only"), ("ridge", "ridge")):
            words += [f"{label} {spread(reached[name], 3)}"] if name in reached else []
        judged.append(verdict(reached[ours] - 1.05 * reached["observed"]))
        said.append(", ".join(words))
    return Finding("CIDEr-D: " + "; ".join(said), together(judged))


def classes(results: Results) -> Finding:
    """Accuracy of the exact classifier less that of the best rival of each set, one modality missing."""
    found = results["classes"]
    rows = found[found["missing"] == 1]
    said, judged = [], []
    for name, some in rows.groupby("set", sort=False):
        reached = _by_seed(some, "label", "accuracy")
        ours, rivals = reached["exact classes"], reached.drop(columns="exact classes")
        best = str(rivals.mean().idxmax())
        said.append(f"{name}: {spread(ours)}, {best} {spread(rivals[best])}")
        judged.append(verdict(ours - rivals[best]))
    return Finding("accuracy, %, one modality missing: " + "; ".join(said), together(judged))


CLAIMS = (
    Claim(
        "Imputation",
        "Imputed representations are nearer to the true ones than random ones are.",
        ("imputation",),
        imputation,
        "The model predicts what modalities share. Ridge regressions, one for each pair, do so too: both are linear.",
        ("observed",),
    ),
    Claim(
        "Anchor shift",
        "Calibration brings local anchors nearer to those of complete rows.",
        ("anchor_shift",),
        anchor_shift,
        "The model adds what the observed modalities tell of the missing ones. Most of the shift stays: what is "
        "private to a missing modality cannot be known.",
    ),
    Claim(
        "Retrieval",
        "Objectives that see imputed means beside observed modalities retrieve better than the observed alone.",
        ("align",),
        retrieval,
        "Imputed means hold nothing that the observed modalities of the row do not, and are too sure of themselves; "
        "what gains here is to start encoders from the model, and to score by its likelihood ratio.",
        ("observed", "imputed_mean"),
    ),
    Claim(
        "Complete data",
        "Calibrated training comes near to training on complete data.",
        ("align",),
        complete_data,
        "What a missing modality would have told beyond the others is not in the data.",
        ("observed", "imputed_mean", "oracle"),
    ),
    Claim(
        "Classification",
        "Calibrated representations classify rows with missing modalities better.",
        ("classes",),
        classes,
        "The exact probabilities and a regression on what the model imputes rest on the same latents; the exact ones "
        "need no imputation and know how sure they are.",
    ),
    Claim(
        "Captioning",
        "Captions from calibrated representations score more than 5% higher in CIDEr than uncalibrated ones.",
        ("captions",),
        captions,
        "Judged against encoders that were aligned on the observed modalities alone. Regressions on the observed pairs "
        "calibrate as well.",
        ("observed", "calmrl"),
    ),
    Claim(
        "Convergence",
        "The bi-step iteration converges: the evidence never falls (Corollary 4).",
        ("convergence",),
        convergence,
        "Each step is an exact EM step; acceleration keeps that, as a guess that loses is taken back.",
    ),
)


def findings(results: Results) -> pd.DataFrame:
    """A row for each claim: about, the paper says, found here, verdict, why.

    Args:
        results: of the parts that are finished, by name; claims whose part is not among them are "not run".
    """
    rows = []
    for claim in CLAIMS:
        lacking = claim.lacks(results)
        finding = Finding("-", lacking) if lacking else claim.judge(results)
        said = {"the paper says": claim.says, "found here": finding.found, "verdict": finding.verdict}
        rows.append({"about": claim.about, **said, "why": "-" if lacking else claim.why})
    return pd.DataFrame(rows)
