"""Page of a run of ``experiments.compare``: its table, what the columns mean, and the figures."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis.figures import comparison as figures
from analysis.pages.readings import modality_readings, variant_readings
from analysis.runs.files import TABLES, read_table
from analysis.runs.runs import Run
from analysis.statistics.tables import best_rows, formatted, summarize
from calmrl_prob.report.page import Picture, Section, Table

#: Tables of a run by name.
Tables = dict[str, pd.DataFrame]
#: Heading, caption and figure.
Illustration = tuple[str, str, Figure]

_REMEDY = (
    "Where intervals are too narrow, cal.recalibrate(model, held_out_rows) puts them right, for each modality and each "
    "pattern of missing ones; python -m experiments.recalibration compares the ways to do so on the same data."
)

_RECALIBRATED = (
    "Recalibrated: fitted anew without the validation rows, whose errors set the widths (split conformal, "
    "cal.recalibrate)."
)


def comparison_lead(facts: dict[str, Any]) -> str:
    """The first paragraph."""
    return (
        f"{facts['num_train']} training rows with the modalities {', '.join(facts['modalities'])}; "
        f"{100 * facts['missing_share']:.1f}% of these cells were missing (mechanism: {facts['missingness']}). "
        "Each row of the table is one way to deal with that. Each ends in a linear Gaussian model with latents that "
        f"the modalities share, and all were measured on the same {facts['num_test']} test rows."
    )


def comparison_sections(run: Run) -> list[Section]:
    """The table with its meanings, and a section for each figure whose table is there.

    Raises:
        FileFormatError: a table is there and cannot be read.
    """
    facts, results = dict(run.facts), run.results
    paths = {name: run.folder / "tables" / f"{name}.csv" for name in TABLES}
    tables = {name: read_table(path) for name, path in paths.items() if path.is_file()}
    summary = summarize(results)
    variants = set(summary["variant"])
    table = Table.of(
        formatted(summary),
        best_rows(summary),
        f"{table_caption(facts)} Bold: best of its column{', the oracle aside' * ('oracle' in variants)}.",
    )
    lacking = [
        f"tables/{name}.csv is not there, so that its figure is left out." for name in TABLES if name not in tables
    ]
    whole = Section(
        warnings=[*facts.get("warnings", []), *lacking],
        tables=[table],
        meanings=column_notes(facts, variants),
        notes=_notes(results),
    )
    readings = variant_readings(results, facts["interval_level"]) if "coverage" in results else []
    modalities = tables.get("modalities", pd.DataFrame())
    if len(modalities):
        focus = modalities[modalities["label"] == facts["focus"]]
        readings += [f"{facts['focus']}. {line}" for line in modality_readings(focus)]
        if "recalibrated" in focus and focus["recalibrated"].notna().any():
            readings.append(_RECALIBRATED)
    if any("too narrow" in line for line in readings):
        readings.append(_REMEDY)
    return [whole, Section("What the diagnostics say", readings=readings), *_illustrations(facts, summary, tables)]


def column_notes(facts: dict[str, Any], variants: Collection[str]) -> dict[str, str]:
    """Meanings of the table's columns, in plain words, by heading; of the variants that it shows."""
    several = len(facts["seeds"]) > 1
    ridge = " (ridge may score by the cosine of its own prediction, if that was better on validation rows)"
    calmrl = " At any other weight CalMRL isotropic is the model of the paper with this prior added."
    level = f"{100 * facts['interval_level']:.0f}%"
    scoring = facts["scoring"].replace("_", " ")
    default = "calmrl_default" in variants
    own = (
        " CalMRL (default) chooses for itself, within all training rows, by how well it imputes held-out ones "
        "(cal.fit); the K of its first seed is shown."
    )
    whole = " CalMRL (default) has a prior of the whole covariance in its place."
    held_out = " The intervals of CalMRL (default) are those that its held-out folds set."
    return {
        "K": "number of latents, chosen by each variant: the highest R@1 on validation rows"
        + " over all seeds" * several
        + f".{own * default} No test row takes part in any choice.",
        "Noise prior": "weight, in observations of each feature, of a prior that keeps noise variances from "
        "collapsing, chosen like K. 0 is no prior: the paper's own form."
        + calmrl * ("calmrl" in variants)
        + whole * default,
        "R@1, R@10": "one modality of a test row asks for another modality of the same row among those of all test "
        "rows: the share of queries whose answer comes first, or among the first ten, averaged over all ordered pairs "
        f"of modalities. Scored by the {scoring} of the fitted model{ridge * ('ridge' in variants)}.",
        "RMSE, NLL, coverage": "each modality of each test row is hidden in turn and imputed from the others. RMSE in "
        "standard deviations of the modality (root mean square over its features), NLL in nats per feature in the same "
        f"unit, coverage the share of true values inside the {level} interval, best at {level}. Rows fitted after "
        "filling in impute by their own rule, with the variance per feature that it had on validation rows; all others "
        "by the exact posterior predictive of their model." + held_out * default,
        "Probe": "accuracy of a logistic regression on the representation (posterior mean), learned from the training "
        "rows with what they have and tested on test rows with modalities removed by the same mechanism, by a fixed "
        "seed.",
        "Fit s": "wall-clock seconds of the final fit, filling in included, the choice of settings not"
        + ("; of CalMRL (default) all of cal.fit, its choice included." if default else "."),
    }


def table_caption(facts: dict[str, Any]) -> str:
    """Caption of the table as a whole."""
    seeds = facts["seeds"]
    spread = (
        f"Mean ± standard deviation over {len(seeds)} seeds; each seed removes other modalities from the "
        f"{facts['num_train']} training rows and holds out other validation rows."
        if len(seeds) > 1
        else f"One seed ({seeds[0]}), so that nothing is known of the spread; {facts['num_train']} training rows."
    )
    return f"{spread} All scores are on the same {facts['num_test']} test rows."


def short_caption(facts: dict[str, Any], variants: Collection[str] = ()) -> str:
    """Caption of the printed table, with these variants; the page has it at length."""
    default = "; by CalMRL (default), within its seconds, on all training rows by held-out imputations"
    level, seeds = f"{100 * facts['interval_level']:.0f}%", facts["seeds"]
    spread = f"Mean ± sd over {len(seeds)} seeds" if len(seeds) > 1 else f"One seed ({seeds[0]})"
    return (
        f"{spread}, {facts['num_train']} training and {facts['num_test']} test "
        f"rows. R@1, R@10: over all ordered pairs of modalities, by {facts['scoring'].replace('_', ' ')}. RMSE (in "
        f"sd), NLL (nats per feature) and coverage of {level} intervals: each modality of each test row imputed from "
        "the others. Probe: tested on test rows masked by the same mechanism, by a fixed seed. Noise prior: its weight "
        "in observations (the paper has none). K, this weight and all other settings were chosen on validation rows, "
        f"held out of the training rows{default * ('calmrl_default' in variants)}. The report says more."
    )


def _notes(results: pd.DataFrame) -> list[str]:
    notes = results.loc[results["note"].fillna("") != "", ["label", "note"]].drop_duplicates()
    notes_text = [f"{label}: left out. {note}" for label, note in notes.to_numpy()]
    if "scoring_used" in results:
        direct = results.loc[results["scoring_used"] == "cosine of prediction", "label"].unique()
        notes_text += [f"{label}: retrieved by the cosine of its own prediction." for label in direct]
    return notes_text


def _illustrations(facts: dict[str, Any], summary: pd.DataFrame, tables: dict[str, pd.DataFrame]) -> list[Section]:
    """A section for each figure whose table has rows."""
    drawings = [_retrieval(facts, summary)]
    for needed, illustrate in _ILLUSTRATIONS:
        if all(len(tables.get(name, ())) for name in needed):
            drawings.append(illustrate(facts, tables))
    return [
        Section(heading, pictures=[Picture.of(figure, f"{heading}: {caption}", caption)])
        for heading, caption, figure in drawings
    ]


def _retrieval(facts: dict[str, Any], summary: pd.DataFrame) -> Illustration:
    oracle = (
        "The oracle was fitted before anything was removed: the gap to it is what the missing modalities cost."
        if "oracle" in set(summary["variant"])
        else ""
    )
    figure = figures.recall_bars(summary, f"{facts['data']}: retrieval after calibration")
    return "Retrieval", f"R@1 of each variant. {oracle}".strip(), figure


def _recall_by_share(facts: dict[str, Any], tables: Tables) -> Illustration:
    return (
        "Recall against share missing",
        f"Training modalities are removed {facts['share_mechanism']}. Settings are not chosen anew for each "
        f"share: K, the noise prior and the way to score are those of the table, chosen at the share of the "
        f"run ({100 * facts['missing_share']:.0f}%) and kept, so that away from it a variant may do worse, and "
        "variants may change places, for that reason alone. One seed, the first. Where a line ends, too few "
        "rows were left to fit to.",
        figures.recall_by_share(tables["shares"], f"{facts['data']}: recall as more goes missing"),
    )


def _intervals(facts: dict[str, Any], tables: Tables) -> Illustration:
    focus, level = facts["focus"], facts["interval_level"]
    return (
        "Imputation intervals against truth",
        f"{focus}: one feature (the first) of some test rows, each modality imputed from the row's others, in "
        f"standard deviations of the modality (root mean square over its features). Bars are "
        f"{100 * level:.0f}% intervals of the posterior predictive, latent and noise variance together; about "
        f"{100 * (1 - level):.0f}% of the true values should lie outside. Where the first feature varies more "
        "than the others, as the leading one of principal components does, one noise variance for all features "
        "is too small for it; the coverage below is over all features.",
        figures.intervals(tables["intervals"], level, f"{focus}: imputed and true values"),
    )


def _recall_by_pair(facts: dict[str, Any], tables: Tables) -> Illustration:
    focus, pairs = facts["focus"], tables["pairs"]
    return (
        "Recall by pair of modalities",
        f"{focus}: R@1 from each modality to each other, mean over seeds. Blank: no test row has both.",
        figures.recall_matrix(pairs[pairs["label"] == focus], f"{focus}: R@1 from rows to columns"),
    )


def _coverage(facts: dict[str, Any], tables: Tables) -> Illustration:
    return (
        "Coverage",
        "Of the intervals that should hold a given share of true values, the share that they did hold, over "
        "all features, modalities and test rows; on the right, the difference between the two. Below the grey "
        "line, the stated uncertainty is too small. Rules that fill in had their variance measured on "
        "validation rows; models state theirs, which a default fit has put right by its held-out folds.",
        figures.coverage(tables["coverage"], f"{facts['data']}: are the intervals as wide as they should be?"),
    )


def _evidence(facts: dict[str, Any], tables: Tables) -> Illustration:
    return (
        "Evidence trace",
        "How much the evidence of the training data still had to rise at each EM iteration of each final fit "
        "(one line for each seed): the log-likelihood, plus the log prior of the noise variances where the "
        "table gives it a weight. It never falls. tables/evidence.csv has it, and the log-likelihood alone.",
        figures.evidence(tables["evidence"], f"{facts['data']}: convergence of EM"),
    )


#: The tables that a figure needs, and what draws it; in the order of the page.
_ILLUSTRATIONS: tuple[tuple[tuple[str, ...], Callable[[dict[str, Any], Tables], Illustration]], ...] = (
    (("shares",), _recall_by_share),
    (("intervals",), _intervals),
    (("intervals", "pairs"), _recall_by_pair),
    (("coverage",), _coverage),
    (("evidence",), _evidence),
)
