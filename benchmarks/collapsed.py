"""Collapsed inference: what a leapfrog step costs, and group ARD against mofapy2 and mofaflex.

A leapfrog step is that of NUTS over loadings, intercepts, noise and ARD precisions: one gradient of the log joint
density, latents integrated out. The larger data have the same patterns, and come as statistics gathered chunk by chunk.

Group ARD is judged on data where it is known which latent serves which modality: 3 serve all four, 3 serve two, and
each modality has one to itself, 10 in all, and 16 are allowed for. A latent counts as serving a modality if it explains
more than 0.2% of its variance. mofapy2 and mofaflex run in processes of their own.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import sys
import tempfile

import torch
from pyro.ops.integrator import velocity_verlet
from torch import Tensor

import calmrl_prob as cal
from benchmarks.clock import cpu_seconds, paired
from benchmarks.problems import Made, Problem
from calmrl_prob.inference.collapsed import CollapsedModel
from calmrl_prob.linear_gaussian import LinearGaussian, SufficientStatistics, predict
from calmrl_prob.linear_gaussian import posterior as exact_posterior
from calmrl_prob.missingness import mcar
from models.calmrl import CalMRL
from models.group_ard import GroupARD

Row = dict[str, object]

#: Share of a modality's variance above which a latent serves it.
_SERVES = 2e-3
#: For each latent the modalities that it serves.
_PATTERN = [(0, 1, 2, 3)] * 3 + [(0, 1), (1, 2), (2, 3)] + [(0,), (1,), (2,), (3,)]


# ---- leapfrog steps -------------------------------------------------------------------------------------------------


def repeated(model: LinearGaussian, like: cal.MultimodalData, times: int) -> SufficientStatistics:
    """Statistics of many instances drawn from a model, which lack what those of ``like`` lack, chunk by chunk."""
    statistics = SufficientStatistics(like.dims)
    for chunk in range(times):
        _, features = model.sample(len(like), torch.Generator().manual_seed(chunk))
        statistics.update(cal.MultimodalData(features, observed_mask=like.observed_mask).blocks)
    return statistics


def leapfrog(problem: Problem, times: int = 100) -> list[Row]:
    """CPU milliseconds of a leapfrog step on the problem's data and on ``times`` as many rows."""
    made = problem.make()
    program = GroupARD(made.data.dims, problem.latent_dim)
    models = {
        problem.num_instances: cal.marginalize(program, made.data),
        times * problem.num_instances: cal.marginalize(
            program, made.data, statistics=repeated(made.truth, made.data, times)
        ),
    }
    costs = paired({str(count): _step(model) for count, model in models.items()})
    few = costs[str(problem.num_instances)]
    return [
        {
            "rows": count,
            "patterns": made.data.patterns.shape[0],
            "unknowns": model.dim,
            "form": model._evidence._prepared[0].form,  # type: ignore[attr-defined]  # an Evidence
            "leapfrog_ms": 1e3 * costs[str(count)],
            "ratio": costs[str(count)] / few,
        }
        for count, model in models.items()
    ]


def _step(model: CollapsedModel):  # noqa: ANN202 - a function of nothing
    position = {"theta": model.draw(0)}
    momentum = {"theta": torch.zeros_like(position["theta"])}

    def run() -> None:
        velocity_verlet(position, momentum, lambda at: -model.log_joint(at["theta"]), dict, 1e-6)

    return run


# ---- group ARD ------------------------------------------------------------------------------------------------------


def grouped(num_instances: int = 2000, width: int = 64, seed: int = 0) -> Made:
    """Data of four modalities whose latents serve what ``_PATTERN`` says, a third of the modalities missing."""
    generator = torch.Generator().manual_seed(seed)
    names = [f"m{i}" for i in range(4)]
    loadings = {name: torch.randn(width, len(_PATTERN), generator=generator, dtype=torch.float64) for name in names}
    for k, served in enumerate(_PATTERN):
        for m, name in enumerate(names):
            loadings[name][:, k] *= m in served
    zero = {name: torch.zeros(width, dtype=torch.float64) for name in names}
    noise = {name: torch.tensor(2.0, dtype=torch.float64) for name in names}
    truth = LinearGaussian(loadings, zero, noise)
    _, features = truth.sample(num_instances, generator)
    complete = cal.MultimodalData(features)
    return Made(complete.mask(mcar(complete, 0.3, seed=seed)), truth)


def recovered(model: LinearGaussian) -> str:
    """How many of the true columns (which modalities a latent serves) were found, and how many others."""
    shares = []
    for name, part in model.loadings.items():
        total = float(part.square().sum() + model.noise_variance[name].sum())
        shares.append(part.square().sum(0) / total)
    found = [tuple(m for m in range(4) if bool(column[m])) for column in (torch.stack(shares) > _SERVES).mT]
    wanted, extra = list(_PATTERN), 0
    for column in found:
        if column in wanted:
            wanted.remove(column)
        elif column:
            extra += 1
    return f"{len(_PATTERN) - len(wanted)} of {len(_PATTERN)}, {extra} other"


def held_out(model: LinearGaussian, truth: LinearGaussian, num_rows: int = 2000) -> float:
    """Negative log density of masked values of new rows, nats for each value, by the predictive of each feature."""
    _, features = truth.sample(num_rows, torch.Generator().manual_seed(10**6))
    complete = cal.MultimodalData(features)
    seen = complete.mask(mcar(complete, 0.3, seed=10**6))
    predicted = predict(model, exact_posterior(model, seen.blocks))
    losses: list[Tensor] = []
    for m, name in enumerate(complete.names):
        hidden = ~seen.observed_mask[:, m]
        variance = predicted.latent_variance[name] + predicted.noise_variance[name]
        normal = torch.distributions.Normal(predicted.mean[name], variance.sqrt())
        losses.append(-normal.log_prob(features[name])[hidden].flatten())
    return float(torch.cat(losses).mean())


def scored(package: str, seconds: float, model: LinearGaussian, made: Made) -> Row:
    """A row of the table."""
    return {
        "method": package,
        "cpu_s": seconds,
        "serving": recovered(model),
        "nll": held_out(model, made.truth),
    }


def ard(made: Made, latent_dim: int = 16) -> list[Row]:
    """This package: EM without and with ARD, and the mode of the Pyro model."""
    arrays = {name: made.data[name].numpy() for name in made.data.names}
    rows = [scored("true parameters", 0.0, made.truth, made)]
    for method, options in (("EM", {}), ("EM, loadings_prior='ard'", {"loadings_prior": "ard"})):
        kept: list[LinearGaussian] = []

        def fit(options: dict[str, str] = options, kept: list[LinearGaussian] = kept) -> None:
            data = cal.MultimodalData(arrays)
            model = CalMRL(data.dims, latent_dim)
            cal.fit(model, data, **options)
            kept.append(cal.linear_gaussian(model, data))

        seconds = min(cpu_seconds(fit) for _ in range(3))
        rows.append(scored(method, seconds, kept[-1].detach(), made))
    data = cal.MultimodalData(arrays)
    modes: list[cal.FitResult] = []
    program = GroupARD(data.dims, latent_dim, scale=float(made.data["m0"].nan_to_num().std()))
    seconds = cpu_seconds(lambda: modes.append(cal.fit(program, data, "map")))
    mode = cal.linear_gaussian(modes[0].model, data).detach()
    rows.append(scored("GroupARD, map", seconds, mode, made))
    return rows


def run_mofapy2(made: Made, latent_dim: int = 16, iterations: int = 1000) -> Row:
    """MOFA+ with ARD by view and factor (Argelaguet et al., 2020), its defaults otherwise."""
    from mofapy2.run.entry_point import entry_point  # an optional extra, so imported where it is used

    views = [made.data[name].numpy() for name in made.data.names]
    entry = entry_point()

    def fit() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            entry.set_data_options(scale_views=False)
            entry.set_data_matrix([[view] for view in views], likelihoods=["gaussian"] * len(views))
            entry.set_model_options(factors=latent_dim, spikeslab_weights=False, ard_weights=True, ard_factors=False)
            entry.set_train_options(iter=iterations, convergence_mode="fast", seed=0, verbose=False)
            entry.build()
            entry.run()

    seconds = cpu_seconds(fit)
    nodes = entry.model.nodes
    loadings = nodes["W"].getExpectation()
    taus = [torch.as_tensor(tau).double() for tau in nodes["Tau"].getExpectation()]
    model = LinearGaussian(
        {name: torch.as_tensor(loadings[m]).double() for m, name in enumerate(made.data.names)},
        {name: made.data[name].nanmean(0) for name in made.data.names},
        {name: 1 / taus[m].nan_to_num().amax(0) for m, name in enumerate(made.data.names)},
    )
    return scored("mofapy2", seconds, model, made)


def run_mofaflex(made: Made, latent_dim: int = 16, epochs: int = 2000) -> Row:
    """MOFA-FLEX by SVI, with its horseshoe prior of the weights; at ten times its rate, so that the epochs suffice."""
    import pandas as pd

    pd.set_option("future.infer_string", False)  # its dependencies cannot write the strings of pandas 3
    import anndata
    import mofaflex

    views, scale = {}, {}
    for name in made.data.names:
        rows = made.data.observed(name).nonzero().squeeze(1)
        values = made.data[name][rows]
        scale[name] = (values - values.mean(0)).std()  # what it divides a view by
        labels = pd.DataFrame(index=[f"s{row}" for row in rows.tolist()])
        views[name] = anndata.AnnData(values.numpy(), obs=labels)
        views[name].var_names = [f"{name}_{d}" for d in range(values.shape[1])]
    fitted = []

    def fit() -> None:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            options = (
                mofaflex.DataOptions(plot_data_overview=False, scale_per_group=False),
                mofaflex.ModelOptions(
                    n_factors=latent_dim, weight_prior="Horseshoe", likelihoods="Normal", init_factors="pca"
                ),
                mofaflex.TrainingOptions(
                    device="cpu", max_epochs=epochs, lr=0.01, seed=0, save_path=f"{folder}/model.h5"
                ),
            )
            fitted.append(mofaflex.MOFAFLEX({"all": views}, *options))

    seconds = cpu_seconds(fit)
    weights, dispersion = fitted[0].get_weights("numpy"), fitted[0].get_dispersion("numpy")
    model = LinearGaussian(
        {name: torch.as_tensor(weights[name]).double().mT * scale[name] for name in views},
        {name: made.data[name].nanmean(0) for name in views},
        {name: (scale[name] / torch.as_tensor(dispersion[name]).double()).square() for name in views},
    )
    return scored("mofaflex", seconds, model, made)


def measure_ard() -> list[Row]:
    """CPU seconds, which latents serve which modality, and held-out NLL."""
    return ard(grouped())


PEERS = {"mofapy2": run_mofapy2, "mofaflex": run_mofaflex}


def available_peers() -> list[str]:
    """Those of the other packages that are installed."""
    return [package for package in PEERS if importlib.util.find_spec(package) is not None]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(PEERS[sys.argv[1]](grouped())))  # its output is its result
