"""Errors of imputed representations: ``python -m experiments.align_imputation``.

    python -m experiments.align_imputation                     # emoji, encoders trained on observed pairs
    python -m experiments.align_imputation missingness=mcar only=[observed,imputed_mean,oracle]

Encoders are trained on incomplete rows. Test rows, which are complete, lose one, two ... modalities; their
representations are imputed from those of the rest: by the generative model of the representations, its prior chosen on
validation rows by squared error, as the penalties of ridge regressions are, or by retrieval; by ridge; by the mean of
the modality; by the representation of another row. Leaves ``results.csv`` and ``table.md``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import hydra
import numpy as np
import pandas as pd
from omegaconf import DictConfig
from rich.console import Console

import calmrl_prob as cal
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError
from calmrl_prob.evaluation import score_imputation
from calmrl_prob.linear_gaussian import LinearGaussian, fit_em
from experiments.alignment.runs import Row, chosen_variants, collect, heading, lacking, tabulate, task_of
from experiments.alignment.training import Settings, Variant, run_variant
from experiments.comparison.imputers import Array, Imputer, Mean, RidgePairs
from experiments.comparison.measures import modality_scale
from experiments.harness.command import finish, run_in_folder
from experiments.harness.settings import build
from experiments.harness.split import Split

CAPTION = (
    "Representations of test rows that lost modalities, imputed from those of the rest; mean ± standard deviation over "
    "seeds. RMSE in standard deviations of the modality's representations (root mean square over features), cosine "
    "distance 1 - cos, coverage of 90% intervals: of the model by its own predictive variance, of ridge and the mean "
    "by their squared errors on validation rows."
)
#: Imputed means and variances of each modality; no variances where a rule states none.
Imputed = tuple[Mapping[str, Array], Mapping[str, Array] | None]


@hydra.main(config_path="conf", config_name="align_imputation", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Make one table."""
    run_in_folder(run, cfg)


def run(cfg: DictConfig, folder: Path, console: Console | None = None) -> pd.DataFrame:
    """Train, impute, print the table, and write the files of the run.

    Returns:
        One row for each seed, variant, number of missing modalities and way to impute.
    """
    out = console or Console()
    split: Split = build(cfg, "data")
    variants = chosen_variants(cfg)
    for key, variant in variants.items():
        if variant.start == "none":
            raise ArgumentError(f"only: {key!r} has no encoders, so no representations to impute; leave it out.")
    results = collect(_rows(cfg, split, variants), len(variants) * len(cfg.seeds), folder, out)
    measures = [
        ("rmse", "RMSE", 3),
        ("cosine distance", "cosine distance", 3),
        ("coverage", "coverage %", 1),
        ("seconds", "training s", 0),
    ]
    text = tabulate(results, ["label", "missing", "imputed by"], measures)
    finish(cfg, text, heading(cfg, split.name), CAPTION, folder, out)
    return results


def _rows(cfg: DictConfig, split: Split, variants: Mapping[str, Variant]) -> Iterator[tuple[str, list[Row]]]:
    settings = Settings.of(cfg)
    for seed in cfg.seeds:
        task = task_of(cfg, split, seed)
        for key, variant in variants.items():
            found = run_variant(variant, task, settings)
            assert found.alignment is not None
            fit, validation, test = (
                found.alignment.represent(part) for part in (*task.rows(variant.complete), task.test)
            )
            rules: dict[str, Imputer] = {
                name: rule.choose(fit, validation) for name, rule in (("ridge", RidgePairs()), ("mean", Mean()))
            }
            scale = modality_scale(fit)
            weight, chosen = choose_model(fit, validation, settings.latent_dim, cfg.imputation_pseudo_rows, seed)
            models = {"model": chosen, "model, prior chosen by retrieval": found.ratio_model}
            rows = []
            for missing in range(1, len(test.names)):
                given = lacking(test, missing, seed)
                for way, imputed in imputations(given, models, rules, fit, seed).items():
                    named = {"variant": key, "label": variant.label, "seed": seed, "missing": missing}
                    facts = {"seconds": found.row["seconds"], "pseudo_rows": weight} | score(
                        imputed, given, test, scale
                    )
                    rows.append(named | {"imputed by": way} | facts)
            yield f"{variant.label}, seed {seed}", rows


def choose_model(
    fit: MultimodalData, validation: MultimodalData, latent_dim: int, pseudo_rows: Sequence[float], seed: int
) -> tuple[float, LinearGaussian]:
    """The weight of the prior that imputes validation rows best, each modality from the row's others; and its model.

    Retrieval asks for a weaker prior than imputation: encoders fit the rows that they were trained on more closely than
    others, so a model of those rows' representations is too sure of what is missing elsewhere.
    """
    scale, most = modality_scale(fit), min(latent_dim, sum(fit.dims.values()) - 1, len(fit) - 1)
    tried = []
    for weight in pseudo_rows:
        lg = fit_em(fit.blocks, most, tolerance=1e-3, pseudo_rows=weight, seed=seed).linear_gaussian
        errors = []
        for column, name in enumerate(fit.names):
            rows = validation.observed(name) & (validation.observed_mask.sum(dim=1) > 1)
            if not bool(rows.any()):
                continue
            seen = validation.subset(rows)
            others = seen.observed_mask.clone()
            others[:, column] = False
            given = seen.mask(others)
            errors.append(score(_predicted(given, lg), given, seen, scale)["rmse"])
        tried.append((float(np.mean(errors)) if errors else 0.0, weight, lg))
    _, weight, lg = min(tried, key=lambda found: found[0])
    return weight, lg


def imputations(
    given: MultimodalData,
    models: Mapping[str, LinearGaussian],
    rules: Mapping[str, Imputer],
    donors: MultimodalData,
    seed: int,
) -> dict[str, Imputed]:
    """All modalities of all rows, by each way.

    Args:
        given: (N, D) each, rows that lack some.
        models: of the representations, by name.
        rules: fitted ones, by name.
        donors: rows whose representations are taken at random.
        seed: of that.
    """
    found = {key: _predicted(given, model) for key, model in models.items()}
    for key, rule in rules.items():
        found[key] = ({name: rule.predict(given, name) for name in given.names}, rule.residual_variance)
    rng = np.random.default_rng(seed)
    others = {name: donors[name][donors.observed(name)].double().numpy() for name in given.names}
    taken = {name: rows[rng.integers(len(rows), size=len(given))] for name, rows in others.items()}
    return found | {"another row": (taken, None)}


def _predicted(given: MultimodalData, model: LinearGaussian) -> Imputed:
    predicted = cal.impute(model, given)
    means = {name: predicted.mean[name].double().numpy() for name in given.names}
    return means, {name: predicted.variance[name].double().numpy() for name in given.names}


def score(
    imputed: Imputed, given: MultimodalData, truth: MultimodalData, scale: Mapping[str, float]
) -> dict[str, float]:
    """Errors of the cells that ``given`` lacks and ``truth`` has, mean over modalities.

    Args:
        imputed: all cells.
        given: what the imputation could see.
        truth: the same rows, complete.
        scale: for each modality the unit of its error.
    """
    hidden = truth.observed_mask & ~given.observed_mask
    table = score_imputation(*imputed, truth, hidden)
    errors = table["rmse"] / table["modality"].map(dict(scale))
    return {
        "rmse": float(errors.mean()),
        "cosine distance": float(1 - table["cosine"].mean()),
        "coverage": 100 * float(table["coverage"].mean()),
    }


if __name__ == "__main__":
    main()
