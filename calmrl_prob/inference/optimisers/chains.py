"""Several chains of the No-U-Turn Sampler, one after another, and what they say about each other.

Each chain has a seed of its own and its own start. The sampler is Pyro's; this file adds what it leaves to the user:
seeds that do not touch the global generators, divergent transitions counted, R-hat and effective sample sizes, and one
warning if they say that the draws cannot be trusted.

Source: Hoffman & Gelman, The No-U-Turn Sampler (2014); Vehtari, Gelman, Simpson, Carpenter & Buerkner,
Rank-Normalization, Folding, and Localization: An Improved R-hat (2021).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pyro.infer import MCMC, NUTS
from torch import Tensor

from calmrl_prob._support.arguments import checked_seed, real_number, whole_number
from calmrl_prob._support.progress import Callback
from calmrl_prob._support.randomness import seeded, spread_seeds
from calmrl_prob.arviz.adapter import chain_diagnostics
from calmrl_prob.errors import ArgumentError, NumericalError
from calmrl_prob.linear_gaussian.options import Options

#: Above this R-hat, chains are taken to disagree (Vehtari et al., 2021).
MAX_R_HAT = 1.01

#: Draws of warm-up from which on the mass matrix adapts. After it has, Pyro looks for a step size anew, in the last
#: tenth of a short warm-up: of 25 draws that leaves two, and of 12 chains of one small model 4 then stood still.
_LEAST_FOR_MASS = 60

Potential = Callable[[dict[str, Tensor]], Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class Chains:
    """Draws of C chains of S draws each.

    Attributes:
        draws: for each site (C, S, ...), in the site's own (constrained) units, detached.
        diverging: which transitions after warm-up diverged, (C, S).
        acceptance: mean acceptance probability of each chain, (C,).
        step_size: what each chain's step size was adapted to, (C,).
        seeds: of each chain, (C,).
        seconds: wall-clock time of all.
    """

    draws: Mapping[str, Tensor]
    diverging: NDArray[np.bool_]
    acceptance: NDArray[np.float64]
    step_size: NDArray[np.float64]
    seeds: tuple[int, ...]
    seconds: float

    @property
    def divergences(self) -> NDArray[np.int64]:
        """Divergent transitions after warm-up of each chain, (C,)."""
        counts: NDArray[np.int64] = self.diverging.sum(axis=1)
        return counts

    @property
    def num_divergences(self) -> int:
        """Divergent transitions after warm-up, of all chains."""
        return int(self.diverging.sum())

    def stacked(self, name: str) -> Tensor:
        """The draws of a site with chains one after another, (C S, ...)."""
        return self.draws[name].flatten(0, 1)

    def diagnose(self, quantities: Mapping[str, Tensor] | None = None) -> ChainDiagnostics:
        """R-hat and effective sample sizes.

        Args:
            quantities: functions of the draws, (C, S, ...) each. Where the posterior does not change under a rotation
                of the latent, give quantities that do not either (W W^T, predictions): chains that sit in different
                rotations agree about those and about nothing else. By default the sites themselves.
        """
        chosen = self.draws if quantities is None else quantities
        found = chain_diagnostics({name: values.detach().cpu().numpy() for name, values in chosen.items()})
        return ChainDiagnostics(
            found["r_hat"], found["ess_bulk"], found["ess_tail"], self.num_divergences, self.draws_per_chain
        )

    @property
    def draws_per_chain(self) -> int:
        """S, draws of each chain after warm-up."""
        return int(next(iter(self.draws.values())).shape[1])

    def __repr__(self) -> str:
        sites = ", ".join(f"{name}: {tuple(values.shape[2:])}" for name, values in self.draws.items())
        return (
            f"Chains({len(self.seeds)} of {self.draws_per_chain} draws; {sites}; {self.num_divergences} divergences, "
            f"{self.seconds:.1f} s)"
        )


@dataclass(frozen=True, eq=False)
class ChainDiagnostics:
    """Whether chains agree.

    Attributes:
        r_hat, ess_bulk, ess_tail: of each entry of each quantity. NaN where a quantity is constant.
        num_divergences: of all chains.
        draws_per_chain: S.
    """

    r_hat: Mapping[str, NDArray[np.float64]]
    ess_bulk: Mapping[str, NDArray[np.float64]]
    ess_tail: Mapping[str, NDArray[np.float64]]
    num_divergences: int
    draws_per_chain: int

    @property
    def max_r_hat(self) -> float:
        """The largest R-hat of any entry; NaN where there is one chain, which has none to agree with."""
        return _extreme(np.fmax, self.r_hat)

    @property
    def min_ess(self) -> float:
        """The least effective sample size, of bulk or tails, of any entry."""
        return min(_extreme(np.fmin, self.ess_bulk), _extreme(np.fmin, self.ess_tail))

    def problems(self) -> list[str]:
        """Signs that the draws may be off; empty if there are none."""
        found = []
        if self.num_divergences:
            found.append(
                f"{self.num_divergences} divergent transitions: the sampler could not follow the density somewhere; "
                "raise target_accept, or reparametrise"
            )
        if np.isnan(self.max_r_hat):
            found.append("R-hat cannot be computed: run two chains or more, to see whether they agree")
        elif self.max_r_hat > MAX_R_HAT:
            worst = max(self.r_hat, key=lambda name: _extreme(np.fmax, {name: self.r_hat[name]}))
            found.append(
                f"R-hat is {self.max_r_hat:.3f} for {worst!r}, above {MAX_R_HAT}: the chains disagree; raise "
                "num_warmup and num_draws"
            )
        return found

    def summary(self) -> dict[str, Any]:
        """The numbers under the names that ``PosteriorResult.diagnostics`` uses."""
        return {
            "r_hat": self.max_r_hat,
            "ess": self.min_ess,
            "num_divergences": self.num_divergences,
            "r_hat_by_quantity": dict(self.r_hat),
            "ess_bulk_by_quantity": dict(self.ess_bulk),
            "ess_tail_by_quantity": dict(self.ess_tail),
        }


def _extreme(pick: np.ufunc, values: Mapping[str, NDArray[np.float64]]) -> float:
    """The largest (``np.fmax``) or least of all entries of all arrays that are not NaN; NaN if all are."""
    return float(pick.reduce(np.concatenate([np.ravel(array) for array in values.values()])))


@dataclass(frozen=True, kw_only=True)
class ChainOptions(Options):
    """Options of :func:`run_chains`.

    Attributes:
        num_draws: S, kept draws of each chain.
        num_warmup: draws of each chain before, in which step size and mass matrix adapt; of fewer than 60, the step
            size alone.
        num_chains: C.
        seed: the same seed gives the same draws; torch's global generators are left as they were.
        target_accept: acceptance probability that the step size is adapted to.
        max_tree_depth: a trajectory has at most 2^max_tree_depth steps.
        full_mass: adapt a dense mass matrix (or one for each of the groups of sites listed) instead of a diagonal.

    Raises:
        ArgumentError: a number out of range.
        ArgumentTypeError: a number that is none.
    """

    num_draws: int = 1000
    num_warmup: int = 500
    num_chains: int = 4
    seed: int = 0
    target_accept: float = 0.8
    max_tree_depth: int = 10
    full_mass: bool | list[tuple[str, ...]] = False

    def __post_init__(self) -> None:
        for name, least in (("num_draws", 1), ("num_warmup", 0), ("num_chains", 1)):
            whole_number(name, getattr(self, name), least)
        if not 0 < real_number("target_accept", self.target_accept, 0.8) < 1:
            raise ArgumentError(
                f"target_accept: expected a number between 0 and 1, both excluded, got {self.target_accept}."
            )
        checked_seed(self.seed)


@torch.enable_grad()
def run_chains(
    model: Callable[..., Any] | None = None,
    *args: Any,
    potential: Potential | None = None,
    initial: Mapping[str, Tensor] | None = None,
    options: ChainOptions | None = None,
    device: torch.device | str = "cpu",
    callback: Callback | None = None,
    **settings: Any,
) -> Chains:
    """Run NUTS on a Pyro model, or on a potential of unconstrained variables.

    Args:
        model: a Pyro model without parameters of its own in Pyro's store (fix them first); or None, with a potential.
        *args: what to call the model with.
        potential: -log density (up to a constant), a scalar, of a dictionary of unconstrained tensors.
        initial: unconstrained starts of each chain, (C, ...) for each site. A potential needs them; a model starts
            uniformly in (-2, 2) on the unconstrained scale without.
        options: how many draws and chains, the sampler's settings: :class:`ChainOptions`; its defaults if not given.
        device: where draws are made.
        callback: called after each draw, warm-up included, with its number over all chains and -potential (nats).
        **settings: fields of the options by name, such as ``num_draws=200``, in place of those in ``options``.

    Raises:
        ArgumentError: both or neither of model and potential; a potential without starts; an unknown option, or one
            out of range.
        ArgumentTypeError: a number that is none.
        NumericalError: the density is not finite where a chain starts.

    Example:
        >>> chains = run_chains(potential=lambda at: 0.5 * at["z"].square().sum(),
        ...                     initial={"z": torch.zeros(2, 3, dtype=torch.float64)},
        ...                     num_chains=2, num_draws=200, num_warmup=100)
        >>> tuple(chains.draws["z"].shape), chains.num_divergences
        ((2, 200, 3), 0)
    """
    options = ChainOptions.of(options, settings, "run_chains")
    if (model is None) == (potential is None):
        raise ArgumentError("model, potential: expected one of the two, got " + ("both." if model else "neither."))
    if potential is not None and not initial:
        raise ArgumentError("initial: a potential needs a start for each chain; pass {site: (C, ...) tensor}.")
    for name, start in (initial or {}).items():
        if len(start) != options.num_chains:
            raise ArgumentError(
                f"initial[{name!r}]: expected {options.num_chains} starts, got shape {tuple(start.shape)}."
            )
    started = time.perf_counter()
    seeds = spread_seeds(options.seed, options.num_chains)
    found = []
    for chain, chain_seed in enumerate(seeds):
        kernel = NUTS(
            model,
            potential_fn=potential,
            target_accept_prob=options.target_accept,
            max_tree_depth=options.max_tree_depth,
            full_mass=options.full_mass,
            adapt_mass_matrix=options.num_warmup >= _LEAST_FOR_MASS,
        )
        first = None if initial is None else {name: start[chain].detach() for name, start in initial.items()}
        before = chain * (options.num_warmup + options.num_draws)
        with seeded(chain_seed, device):
            found.append(_run_one(kernel, args, first, options, before, callback))
    draws = {name: torch.stack([one[0][name] for one in found]) for name in found[0][0]}
    return Chains(
        draws,
        diverging=np.array([one[1] for one in found]),
        acceptance=np.array([one[2] for one in found]),
        step_size=np.array([one[3] for one in found]),
        seeds=tuple(seeds),
        seconds=time.perf_counter() - started,
    )


def _run_one(
    kernel: NUTS,
    args: tuple[Any, ...],
    initial: dict[str, Tensor] | None,
    options: ChainOptions,
    before: int,
    callback: Callback | None,
) -> tuple[dict[str, Tensor], NDArray[np.bool_], float, float]:
    """Draws, which of them diverged, mean acceptance and step size of one chain."""
    num_draws, num_warmup = options.num_draws, options.num_warmup
    state: dict[str, float] = {}
    diverging = np.zeros(num_draws, dtype=bool)

    def watch(sampler: NUTS, _samples: object, stage: str, draw: int) -> None:
        warming = stage.lower().startswith("warm")
        if callback is not None:
            potential = sampler._fetch_from_cache()[1]
            callback(before + draw + 1 + (0 if warming else num_warmup), -float(potential))
        if not warming and draw == num_draws - 1:
            # read here, since the sampler forgets them when the run ends
            diverging[sampler.diagnostics()["divergences"]] = True
            state["acceptance"] = float(sampler.logging()["acc. prob"])
            state["step_size"] = float(sampler.step_size)

    mcmc = MCMC(kernel, num_draws, warmup_steps=num_warmup, initial_params=initial, hook_fn=watch, disable_progbar=True)
    try:
        mcmc.run(*args)
    except ValueError as error:
        if "cannot find valid initial params" not in str(error):
            raise
        raise NumericalError(
            "model: no start was found at which its density and gradient are finite; look for NaN in its parameters, "
            "or pass initial."
        ) from error
    samples = {name: values.detach().clone() for name, values in mcmc.get_samples().items()}
    if not samples:
        raise ArgumentError("model: it has no latent site to sample.")
    return samples, diverging, state["acceptance"], state["step_size"]
