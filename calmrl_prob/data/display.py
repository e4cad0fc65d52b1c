"""Multimodal data in words, as text and as HTML."""

from __future__ import annotations

from html import escape

import numpy as np

from calmrl_prob.data.entries import grouped
from calmrl_prob.data.stored import StoredModalities


def text(data: StoredModalities) -> str:
    """A few lines: the size, then each modality, then what else is known of the instances."""
    kind = "of entries observed" if data.missing == "features" else "observed"
    table = [(name, f"{width} features", f"{share:.1%} {kind}") for name, width, share in _modalities(data)]
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    lines = [f"  {name:<{widths[0]}}  {dim:>{widths[1]}}  {share:>{widths[2]}}" for name, dim, share in table]
    return "\n".join([f"MultimodalData: {_summary(data)}", *lines, *(f"  {line}" for line in _beside(data))])


def html(data: StoredModalities) -> str:
    """The same as a small HTML table, for notebooks."""
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{width}</td><td>{share:.1%}</td></tr>"
        for name, width, share in _modalities(data)
    )
    kind = "entries observed" if data.missing == "features" else "observed"
    beside = "".join(f"<br>{escape(line)}" for line in _beside(data))
    return (
        f"<div><strong>MultimodalData</strong>: {escape(_summary(data))}"
        f"<table><thead><tr><th>modality</th><th>features</th><th>{kind}</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>{beside}</div>"
    )


def _summary(data: StoredModalities) -> str:
    counts = [(len(data), "instance"), (len(data.names), "modality"), (len(data.patterns), "missing pattern")]
    words = [f"{count:,} {_plural(word) if count != 1 else word}" for count, word in counts]
    kind = ["single features may be missing"] if data.missing == "features" else []
    device = [str(data.device)] if data.device.type != "cpu" else []
    return ", ".join([*words, str(data.dtype).removeprefix("torch."), *device, *kind])


def _plural(word: str) -> str:
    return f"{word[:-1]}ies" if word.endswith("y") else f"{word}s"


def _modalities(data: StoredModalities) -> list[tuple[str, int, float]]:
    if data.missing == "features":  # of entries: where only some features of a row are there, its mask says too much
        shares = [int(data.feature_mask(name).sum()) / (len(data) * width) for name, width in data.dims.items()]
    else:
        shares = data.observed_mask.double().mean(dim=0).tolist()
    return [(name, width, share) for (name, width), share in zip(data.dims.items(), shares, strict=True)]


def _beside(data: StoredModalities) -> list[str]:
    lines = []
    if data.ids is not None:
        lines.append(f"ids: {data.ids[0]} .. {data.ids[-1]}")
    if data.labels is not None:
        kinds, index = grouped(data.labels)
        missing = int((index == len(kinds) - 1).sum()) if kinds[-1] is None else 0
        lines.append(f"labels: {len(kinds) - bool(missing):,} distinct" + (f", {missing:,} missing" if missing else ""))
    if data.partition is not None:
        parts, index = grouped(data.partition)
        counts = np.bincount(index)
        lines.append("partition: " + ", ".join(f"{n or '(none)'} {c:,}" for n, c in zip(parts, counts, strict=True)))
    if data.covariates:
        lines.append("covariates: " + ", ".join(data.covariates))
    return lines
