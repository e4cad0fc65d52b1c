"""Other packages on the same data, in a process of their own: CPU seconds and held-out NLL.

mofapy2 (Argelaguet et al., MOFA+, 2020) is an optional extra. Its loadings and noise precisions, as posterior means,
are put into this package's predictive, so that all are scored by the same formula on the same masked values.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import sys

import torch

from benchmarks.clock import cpu_seconds
from benchmarks.fitting import held_out_nll
from benchmarks.problems import PROBLEMS, Problem, SyntheticProblem
from calmrl_prob.linear_gaussian import LinearGaussian


def available() -> bool:
    """Whether mofapy2 is installed."""
    return importlib.util.find_spec("mofapy2") is not None


def run_mofa(problem: Problem, iterations: int) -> dict[str, object]:
    """Fit with mofapy2's defaults but for its sparsity priors, which the truth does not have."""
    seconds, model = fit_mofapy2(
        problem.make(), iterations, factors=problem.latent_dim, ard_weights=True, ard_factors=False
    )
    return {
        "problem": problem.name,
        "package": "mofapy2",
        "cpu_s": seconds,
        "most_iterations": iterations,
        "nll": held_out_nll(model, problem.make().truth, problem.missing_rate),
    }


def fit_mofapy2(synthetic: SyntheticProblem, iterations: int, **model_options: object) -> tuple[float, LinearGaussian]:
    """CPU seconds of mofapy2's fit, and what it found; weights without spike and slab.

    Args:
        synthetic: the data.
        iterations: at most.
        **model_options: of ``set_model_options``.
    """
    from mofapy2.run.entry_point import entry_point  # an optional extra, so imported where it is used

    views = [synthetic.data[name].numpy() for name in synthetic.data.names]
    entry = entry_point()

    def fit() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            entry.set_data_options(scale_views=False)
            entry.set_data_matrix([[view] for view in views], likelihoods=["gaussian"] * len(views))
            entry.set_model_options(spikeslab_weights=False, **model_options)
            entry.set_train_options(iter=iterations, convergence_mode="fast", seed=0, verbose=False)
            entry.build()
            entry.run()

    seconds = cpu_seconds(fit)
    nodes = entry.model.nodes
    loadings = nodes["W"].getExpectation()
    taus = [torch.as_tensor(tau).double() for tau in nodes["Tau"].getExpectation()]
    model = LinearGaussian(
        {name: torch.as_tensor(loadings[m]).double() for m, name in enumerate(synthetic.data.names)},
        {name: synthetic.data[name].nanmean(0) for name in synthetic.data.names},
        {name: 1 / taus[m].nan_to_num().amax(0) for m, name in enumerate(synthetic.data.names)},
    )
    return seconds, model


if __name__ == "__main__":
    print(json.dumps(run_mofa(PROBLEMS[sys.argv[1]], int(sys.argv[2]))))  # its output is its result
