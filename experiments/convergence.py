"""Convergence of the closed-form EM, the generative half of the bi-step method: ``python -m experiments.convergence``.

    python -m experiments.convergence                            # emoji, 15% of the rows complete, the rest pairs
    python -m experiments.convergence missingness=mcar latent_dim=32
    python -m experiments.convergence data=npz data.source.path=multi30k_lsa.npz components=64

Maximum likelihood of the paper's form, isotropic noise and no prior, from the spectral start and from random ones, as
plain EM and with Anderson acceleration. Measured is what Corollary 4 of the paper states (the evidence never falls), in
how many iterations it comes to rest, and how far apart the ends of different starts lie. Leaves ``results.csv`` (a row
for each start and way), ``trace.csv`` (the evidence of each iteration), ``table.md``, ``convergence.png``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import hydra
import pandas as pd
import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig
from rich.console import Console

from analysis.figures.style import line, style
from analysis.runs.files import write_table
from calmrl_prob.linear_gaussian import LinearGaussian, ObservedBlocks, fit_em
from experiments.alignment.runs import Row, collect, heading, tabulate, task_of
from experiments.harness.command import finish, run_in_folder
from experiments.harness.settings import build
from experiments.harness.split import Split

CAPTION = (
    "Evidence in nats for each observed value, mean ± standard deviation over seeds. Greatest fall: in one iteration, "
    "as a share of the evidence; rounding is some 1e-13. Behind the best: of all starts and ways of a seed."
)
_WAYS = {"EM": 0, "EM, accelerated": 10}


@hydra.main(config_path="conf", config_name="convergence", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Make one table and one figure."""
    run_in_folder(run, cfg)


def run(cfg: DictConfig, folder: Path, console: Console | None = None) -> pd.DataFrame:
    """Fit from each start in each way, print the table, and write the files of the run.

    Returns:
        One row for each seed, way and start: iterations, whether it converged, its evidence, the greatest fall.
    """
    out = console or Console()
    split: Split = build(cfg, "data")
    traces: list[pd.DataFrame] = []
    steps = len(cfg.seeds) * len(_WAYS) * (1 + cfg.random_starts)
    results = collect(_rows(cfg, split, traces), steps, folder, out)
    results["behind"] = results.groupby("seed")["evidence"].transform("max") - results["evidence"]
    write_table(results, folder / "results.csv")
    trace = pd.concat(traces, ignore_index=True)
    write_table(trace, folder / "trace.csv")
    measures = [
        ("iterations", "iterations", 0),
        ("converged", "converged %", 0),
        ("fall", "greatest fall, 1e-12", 2),
        ("evidence", "evidence", 4),
        ("behind", "behind the best", 4),
        ("seconds", "CPU s", 2),
    ]
    figures = {"convergence": drawn(trace, f"{split.name}: the evidence on its way")}
    finish(
        cfg, tabulate(results, ["label", "start"], measures), heading(cfg, split.name), CAPTION, folder, out, figures
    )
    return results


def _rows(cfg: DictConfig, split: Split, traces: list[pd.DataFrame]) -> Iterator[tuple[str, list[Row]]]:
    for seed in cfg.seeds:
        blocks = task_of(cfg, split, seed).fit.blocks
        assert isinstance(blocks, ObservedBlocks)  # whole modalities are missing here, not single features
        values = sum(value.numel() for value in blocks.values.values())
        starts = [None, *(random_start(blocks, cfg.latent_dim, 1000 * seed + n) for n in range(cfg.random_starts))]
        for label, memory in _WAYS.items():
            for number, start in enumerate(starts):
                begun = time.process_time()
                options = {"max_iterations": cfg.max_iterations, "tolerance": cfg.tolerance, "anderson_memory": memory}
                found = fit_em(blocks, cfg.latent_dim, start=start, **options)
                seconds = time.process_time() - begun
                kind = "random" if number else "spectral"
                named = {"variant": label, "label": label, "start": kind, "number": number, "seed": seed}
                evidence = found.log_likelihood.double() / values
                trace = {"iteration": range(len(evidence)), "evidence": evidence.numpy()}
                traces.append(pd.DataFrame(trace).assign(**named))
                fall = (-evidence.diff()).clamp(min=0).max() / evidence[-1].abs()
                facts = {"iterations": found.num_iterations, "converged": 100.0 * found.converged}
                facts |= {"fall": 1e12 * float(fall), "evidence": float(evidence[-1]), "seconds": seconds}
                yield f"{label}, {kind} start, seed {seed}", [named | facts]


def random_start(blocks: ObservedBlocks, latent_dim: int, seed: int) -> LinearGaussian:
    """A model of means of the data whose loadings are drawn: half of each modality's variance on average."""
    generator = torch.Generator().manual_seed(seed)
    loadings, intercepts, noise = {}, {}, {}
    for name, values in blocks.values.items():
        rows = values.double()
        half = rows.var(dim=0).mean() / 2
        drawn = torch.randn(rows.shape[1], latent_dim, generator=generator, dtype=torch.float64)
        loadings[name] = drawn * (half / latent_dim).sqrt()
        intercepts[name], noise[name] = rows.mean(dim=0), half
    return LinearGaussian(loadings, intercepts, noise)


def drawn(trace: pd.DataFrame, title: str) -> Figure:
    """What each iteration still lacks of its seed's best evidence, on logarithmic axes: straight lines converge.

    Args:
        trace: variant, label, start, number, seed, iteration, evidence.
        title: of the figure.
    """
    behind = trace.groupby("seed")["evidence"].transform("max") - trace["evidence"]
    shown = trace.assign(behind=behind.clip(lower=1e-9), at=trace["iteration"] + 1)
    with style():
        figure = Figure(figsize=(6.4, 3.8))
        axes = figure.subplots()
        for (variant, start), rows in shown.groupby(["variant", "start"], sort=False):
            label, look = f"{variant}, {start} start", line(str(variant)) | {"marker": ""}
            for _, one in rows.groupby(["seed", "number"]):
                axes.plot(
                    one["at"], one["behind"], label=label, **(look | {"linestyle": ":" if start == "random" else "-"})
                )
                label = "_nolegend_"
        axes.set(title=title, xscale="log", yscale="log", xlabel="iteration", ylabel="nats per value behind the best")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return figure


if __name__ == "__main__":
    main()
