"""Sections of the page of ``experiments.defaults``: verdicts, summary, figure, every method, every modality."""

from __future__ import annotations

import pandas as pd

from analysis.figures.defaults import explained_dots
from analysis.runs.files import read_table
from analysis.runs.runs import Run
from analysis.statistics.defaults import MODALITIES, formatted_defaults, summarize_defaults, verdicts
from calmrl_prob.report.page import Picture, Section, Table

LEAD = (
    "What a user gets who chooses nothing, against ridge regression, the best of a hand grid that was chosen on the "
    "test rows, and others. Training rows lose modalities; all methods learn from the same rows, in the same units, "
    "and are measured on the same complete test rows."
)
_MEANINGS = {
    "R2": "of imputing each modality from all others, against the mean of the training rows, which has 0; mean over "
    "modalities.",
    "R2 - ridge": "of the default less ridge regression, paired by seed; ± standard deviation over seeds. Likewise "
    "oracle: the hand grid's best on the test rows; mofa: mofapy2.",
    "R2 by pair": "each modality imputed from one other alone, mean over pairs.",
    "R@1": "percent, mean over ordered pairs; of the default with criterion retrieval, by likelihood ratio; of ridge "
    "by cosine.",
    "90% covers": "percent of true values within intervals, of the modality with the least and the most, means over "
    "seeds.",
    "times plain": "CPU seconds of the default, over those of one fit with the settings that it chose.",
}
_MEASURES = {"R2": 3, "R2 by pair": 3, "R@1": 1, "coverage 50%": 1, "coverage 90%": 1, "coverage 95%": 1, "seconds": 1}


def is_of_defaults(run: Run) -> bool:
    """Whether a run is one of ``experiments.defaults``."""
    return {"dataset", "missing", "variant", "R2 by pair"} <= set(run.results.columns)


def defaults_sections(run: Run, figures: bool = True) -> list[Section]:
    """All but the rows, the configuration and the versions, which every run has."""
    results, path = run.results, run.folder / MODALITIES
    modalities = read_table(path) if path.is_file() else pd.DataFrame()
    seeds = results["seed"].nunique()
    said = f"Data sets: {results['dataset'].nunique()}. Seeds, each of which removes other modalities: {seeds}."
    sections = [
        Section("Must reach", readings=[said], tables=[Table.of(verdicts(results, modalities))]),
        Section(
            "Summary",
            tables=[Table.of(formatted_defaults(summarize_defaults(results, modalities)))],
            meanings=_MEANINGS,
        ),
    ]
    if figures:
        alternative = "R2 of each method on each data set"
        pictures = [
            Picture.of(explained_dots(part, str(missing)), f"{alternative}, {missing}")
            for missing, part in results.groupby("missing", sort=False)
            if part["R2"].notna().any()
        ]
        sections.append(Section("Figures", pictures=pictures))
    sections.append(Section("Every method", tables=[Table.of(_means(results, ["dataset", "missing", "label"]))]))
    if len(modalities):
        keys = ["dataset", "missing", "variant", "modality"]
        sections.append(Section("Every modality", tables=[Table.of(_means(modalities, keys))], folded=True))
    return sections


def _means(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Means ± standard deviations over seeds, as text; what failed, or was left out, has its reason."""
    names = [name for name in _MEASURES if name in rows]
    groups = rows.groupby(keys, sort=False)
    mean, spread = groups[names].mean(), groups[names].std(ddof=1)
    for name in names:
        digits = _MEASURES[name]
        spreads = spread[name].map(lambda value, d=digits: "" if pd.isna(value) else f"±{value:.{d}f}")
        mean[name] = mean[name].map(lambda value, d=digits: "-" if pd.isna(value) else f"{value:.{d}f}") + spreads
    for name in ("setting", "note"):
        if name in rows:
            mean[name] = groups[name].first().fillna("")
    return mean.reset_index()
