"""Fits to data that lack single features: groups of features that are missing together, against each by itself.

    python -m benchmarks.missing_features [--paired]

Three assays of 320 samples, 5,000 + 2,000 + 150 features: each lacks a share of the samples, and the smallest 3% of its
single values besides. K = 64, 200 pseudo-rows. ``--paired`` times steps of both forms in turn, which takes minutes.
"""

from __future__ import annotations

import argparse
import warnings

import torch
from torch import Tensor

import calmrl_prob as cal
from benchmarks.clock import cpu_seconds, paired
from calmrl_prob.errors import CalmrlWarning
from calmrl_prob.linear_gaussian import FeatureBlocks, LinearGaussian, fit_em, posterior
from calmrl_prob.linear_gaussian.grouping import Grouping

#: Width of each assay, and the share of samples that lack it.
ASSAYS = {"mrna": (5000, 0.1), "methylation": (2000, 0.3), "protein": (150, 0.4)}
NUM_SAMPLES, NUM_FACTORS, LATENT_DIM, PSEUDO_ROWS = 320, 6, 64, 200


def assays(scattered: float = 0.03, seed: int = 3) -> cal.MultimodalData:
    """Draws of six sparse factors; ``scattered`` is the share of the smallest assay's single values that is missing."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def coin(share: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) < share

    latents, found = normal(NUM_SAMPLES, NUM_FACTORS), {}
    for name, (width, lost) in ASSAYS.items():
        loadings = normal(NUM_FACTORS, width) * coin(0.4, NUM_FACTORS, width)
        values = latents @ loadings + (0.4 + 0.5 * normal(width)).exp() * normal(NUM_SAMPLES, width)
        values[coin(lost, NUM_SAMPLES)] = torch.nan
        if name == "protein":
            values[coin(scattered, NUM_SAMPLES, width)] = torch.nan
        found[name] = values
    return cal.MultimodalData(found, missing="features", empty="drop")


def by_feature(blocks: FeatureBlocks) -> FeatureBlocks:
    """The same data with every feature a group of its own."""
    alone = FeatureBlocks(blocks.dims, blocks.values, blocks.feature_mask)
    alone.__dict__["grouping"] = Grouping(torch.arange(len(blocks.grouping.feature_group)))
    return alone


def main() -> None:
    """Time fits, and steps of both forms."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--paired", action="store_true", help="time both forms in turn")
    paired_too = parser.parse_args().paired
    warnings.simplefilter("ignore", CalmrlWarning)
    torch.set_num_threads(1)
    data = assays()
    blocks = data.blocks
    assert isinstance(blocks, FeatureBlocks)
    print(f"{data}\n{len(blocks.grouping)} groups of features, {blocks.num_patterns} patterns of rows")
    for noise in ("isotropic", "diagonal"):
        model = cal.SharedLatentModel(data.dims, latent_dim=LATENT_DIM, noise=noise)
        fits: list[cal.FitResult] = []

        def work(model: cal.SharedLatentModel = model, fits: list[cal.FitResult] = fits) -> None:
            fits.append(cal.fit(model, data, pseudo_rows=PSEUDO_ROWS))

        seconds = cpu_seconds(work)
        print(f"fit, {noise}: {seconds:.1f} CPU seconds, {fits[0].num_iterations} iterations, {fits[0].stop_reason}")
    if not paired_too:
        return
    lg = model.linear_gaussian().detach()

    def step(given: FeatureBlocks, start: LinearGaussian = lg) -> None:
        fit_em(given, LATENT_DIM, start=start, noise="diagonal", pseudo_rows=PSEUDO_ROWS, max_iterations=2)

    alone = by_feature(blocks)
    for label, one, other in (
        ("two EM iterations and what comes before", lambda: step(blocks), lambda: step(alone)),
        ("posterior", lambda: posterior(lg, blocks), lambda: posterior(lg, alone)),
    ):
        found = paired({"grouped": one, "each feature": other}, rounds=3)
        parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in found.items())
        print(f"{label}: {parts} CPU seconds, ratio {found['each feature'] / found['grouped']:.0f}")


if __name__ == "__main__":
    main()
