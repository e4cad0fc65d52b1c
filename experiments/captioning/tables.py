"""Tables of the captioning experiment: scores by missingness, paired differences, and captions to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from calmrl_prob.evaluation.captions import paired_bootstrap
from experiments.captioning.study import Caption

Found = Mapping[tuple[str, str, str], Sequence[Caption]]

#: What each variant is compared with.
REFERENCES = ("observed", "ridge")


def caption_table(results: pd.DataFrame) -> pd.DataFrame:
    """CIDEr-D as text: a line for each captioner and variant, a column for each missingness.

    Example:
        >>> rows = [{"captioner": "nearest", "label": "A", "missing": "half", "seed": seed, "CIDEr-D": 0.2 + 0.1 * seed}
        ...         for seed in (0, 1)]
        >>> caption_table(pd.DataFrame(rows)).values.tolist()
        [['nearest', 'A', '0.250±0.071']]
    """
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for (captioner, label, missing), group in results.groupby(["captioner", "label", "missing"], sort=False):
        seeds = (
            group["CIDEr-D"]
            if "seed" not in group or group["seed"].isna().all()
            else group.groupby("seed")["CIDEr-D"].mean()
        )
        spread = f"±{seeds.std(ddof=1):.3f}" if len(seeds) > 1 else ""
        lines.setdefault((captioner, label), {})[missing] = f"{seeds.mean():.3f}{spread}"
    columns = list(dict.fromkeys(results["missing"]))
    table = [
        {"captioner": captioner, "variant": label, **{name: cells.get(name, "") for name in columns}}
        for (captioner, label), cells in sorted(lines.items(), key=lambda item: item[0][0])
    ]
    return pd.DataFrame(table)


def paired_table(found: Found, labels: Mapping[str, str], level: float) -> pd.DataFrame:
    """Each variant of the generative model less each of ``REFERENCES``, over seeds and sets, by missingness.

    Args:
        found: captions by missingness, variant and captioner; of each in the same order of seeds and sets.
        labels: of the variants.
        level: of the intervals.
    """
    rows = []
    for (missing, key, captioner), captions in found.items():
        for reference in REFERENCES:
            others = found.get((missing, reference, captioner))
            if not key.startswith(("calmrl", "paper")) or others is None or len(others) != len(captions):
                continue
            gap = paired_bootstrap([c.scores for c in captions], [c.scores for c in others], level=level)
            percent = 100 * gap.difference / gap.second if gap.second > 0 else float("nan")
            rows.append(
                {"captioner": captioner, "missing": missing, "variant": labels[key], "less": labels[reference],
                 "difference": gap.difference, "lower": gap.lower, "upper": gap.upper, "percent": percent}
            )  # fmt: skip
    return pd.DataFrame(rows)


def examples(found: Found, references: Sequence[Sequence[str]], seed: int) -> pd.DataFrame:
    """Every caption of the first seed with its confidence, its CIDEr-D and two references."""
    rows = []
    for (missing, key, captioner), captions in found.items():
        sets = {caption.given: caption for caption in reversed(captions)}  # of each set the first seed
        for given, caption in sets.items():
            answered = caption.answered
            for row, text in enumerate(caption.texts):
                confidence = float("nan") if caption.confidence is None else float(caption.confidence[row])
                rows.append(
                    {"missing": missing, "variant": key, "captioner": captioner, "given": " + ".join(given),
                     "seed": seed, "row": row, "caption": text, "confidence": confidence, "abstains": not answered[row],
                     "CIDEr-D": float(caption.scores.by_image["CIDEr-D"].iloc[row]),
                     "references": " | ".join(references[row][:2])}
                )  # fmt: skip
    return pd.DataFrame(rows)
