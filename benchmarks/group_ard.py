"""Group ARD against mofapy2 and mofaflex.

It is judged on data where it is known which latent serves which modality: 3 serve all four, 3 serve two, and each
modality has one to itself, 10 in all, and 16 are allowed for. A latent counts as serving a modality if it explains more
than 0.2% of its variance. mofapy2 and mofaflex run in processes of their own.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import sys
import tempfile

import torch

import calmrl_prob as cal
from benchmarks.clock import cpu_seconds
from benchmarks.fitting import held_out_nll
from benchmarks.peers import fit_mofapy2
from benchmarks.problems import SyntheticProblem
from benchmarks.tables import Row
from calmrl_prob.data.missingness import mcar
from calmrl_prob.linear_gaussian import LinearGaussian
from models.calmrl import CalMRL
from models.group_ard import GroupARD

#: Share of a modality's variance above which a latent serves it.
_SERVES = 2e-3
#: For each latent the modalities that it serves.
_PATTERN = [(0, 1, 2, 3)] * 3 + [(0, 1), (1, 2), (2, 3)] + [(0,), (1,), (2,), (3,)]


def grouped(num_instances: int = 2000, width: int = 64, seed: int = 0) -> SyntheticProblem:
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
    return SyntheticProblem(complete.mask(mcar(complete, 0.3, seed=seed)), truth)


def recovered(model: LinearGaussian) -> str:
    """Number of true columns (which modalities a latent serves) that were found, and of others."""
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


def scored(package: str, seconds: float, model: LinearGaussian, synthetic: SyntheticProblem) -> Row:
    """A row of the table."""
    return {
        "method": package,
        "cpu_s": seconds,
        "serving": recovered(model),
        "nll": held_out_nll(model, synthetic.truth),
    }


def ard(synthetic: SyntheticProblem, latent_dim: int = 16) -> list[Row]:
    """This package: EM without and with ARD, and the mode of the Pyro model."""
    arrays = {name: synthetic.data[name].numpy() for name in synthetic.data.names}
    rows = [scored("true parameters", 0.0, synthetic.truth, synthetic)]
    for method, options in (("EM", {}), ("EM, loadings_prior='ard'", {"loadings_prior": "ard"})):
        kept: list[LinearGaussian] = []

        def fit(options: dict[str, str] = options, kept: list[LinearGaussian] = kept) -> None:
            data = cal.MultimodalData(arrays)
            model = CalMRL(data.dims, latent_dim)
            cal.fit(model, data, **options)
            kept.append(cal.discover(model, data).linear_gaussian())

        seconds = min(cpu_seconds(fit) for _ in range(3))
        rows.append(scored(method, seconds, kept[-1].detach(), synthetic))
    data = cal.MultimodalData(arrays)
    modes: list[cal.FitResult] = []
    program = GroupARD(data.dims, latent_dim, scale=float(synthetic.data["m0"].nan_to_num().std()))
    seconds = cpu_seconds(lambda: modes.append(cal.fit(program, data, "map")))
    mode = cal.discover(modes[0].model, data).linear_gaussian().detach()
    rows.append(scored("GroupARD, map", seconds, mode, synthetic))
    return rows


def run_mofapy2(synthetic: SyntheticProblem, latent_dim: int = 16, iterations: int = 1000) -> Row:
    """MOFA+ with ARD by view and factor (Argelaguet et al., 2020), its defaults otherwise."""
    seconds, model = fit_mofapy2(synthetic, iterations, factors=latent_dim, ard_weights=True, ard_factors=False)
    return scored("mofapy2", seconds, model, synthetic)


def run_mofaflex(synthetic: SyntheticProblem, latent_dim: int = 16, epochs: int = 2000) -> Row:
    """MOFA-FLEX by SVI, with its horseshoe prior of the weights; at ten times its rate, so that the epochs suffice."""
    import pandas as pd

    pd.set_option("future.infer_string", False)  # its dependencies cannot write the strings of pandas 3
    import anndata
    import mofaflex

    views, scale = {}, {}
    for name in synthetic.data.names:
        rows = synthetic.data.observed(name).nonzero().squeeze(1)
        values = synthetic.data[name][rows]
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
        {name: synthetic.data[name].nanmean(0) for name in views},
        {name: (scale[name] / torch.as_tensor(dispersion[name]).double()).square() for name in views},
    )
    return scored("mofaflex", seconds, model, synthetic)


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
