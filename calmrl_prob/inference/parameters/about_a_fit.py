"""Draws of the parameters about a fit by EM: what not knowing them adds to predictions, in seconds.

Two ways that share nothing but the fit they start from:

- "laplace": normal about the fit, with the curvature of the exact evidence there (``linear_gaussian/laplace.py``). It
  reads sufficient statistics alone, so its cost does not grow with N; it grows with the cube of the unknowns.
- "bootstrap": EM again, from the fit, on instances drawn with replacement. It asks nothing of the model and holds for
  wrong models too; its cost is that of a few E-steps a draw.

Both are about the spread of what EM finds, and not about where that is off: noise variances by maximum likelihood are
too small, since K + 1 numbers for each feature have taken up a part of the noise of its n_d rows. Over the posterior of
these numbers, log psi_d lies higher by (K + 1) / n_d to first order (as residual degrees of freedom have it in
regression), and so do the draws here. The bootstrap's own are too small twice over, as a resample has fewer distinct
rows; they are scaled, by modality, to the fit's on average first.

Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993); see ``laplace.py`` for the other.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calmrl_prob._support.arguments import checked_seed, described, require_known_options, whole_number
from calmrl_prob._support.sizes import require_memory
from calmrl_prob._support.warnings import level_of_caller
from calmrl_prob.data import MultimodalData, require_fittable
from calmrl_prob.data.features import NamedDims
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, ConvergenceWarning, DataError
from calmrl_prob.inference.exact.em import EM_OPTIONS
from calmrl_prob.inference.feature_names import aligned, named_dims
from calmrl_prob.inference.parameters.nuts import Picks
from calmrl_prob.inference.parameters.parameter_draws import ParameterDraws
from calmrl_prob.inference.posterior import as_linear_gaussian
from calmrl_prob.inference.protocols import Fittable, HasLinearGaussian
from calmrl_prob.inference.result import FitResult
from calmrl_prob.inference.seen import SeenRows
from calmrl_prob.linear_gaussian import Evidence, LinearGaussian, SufficientStatistics, fit_em
from calmrl_prob.linear_gaussian.curvature.laplace import laplace_draws

logger = logging.getLogger(__name__)

#: Options of a fit that say how to climb, not to where: draws take no notice of them.
_OF_THE_CLIMB = frozenset(("start", "form", "max_iterations", "tolerance", "expand", "anderson_memory"))
#: Options that change where the top is, and that Laplace's approximation knows the curvature of.
_CURVED = frozenset(
    ("noise_pseudo_count", "noise_floor", "loadings_prior", "loadings_precision", "pseudo_rows", "pseudo_row_pooling")
)
#: Gain still to be expected at which a refit stops, in nats for each unknown: far below a draw's own fall of 1/2.
_REST = 1e-4
#: Resamples tried for each that has all modalities.
_TRIES = 100


@torch.no_grad()
def parameter_draws(
    model: FitResult | Fittable | HasLinearGaussian | LinearGaussian,
    data: MultimodalData | SufficientStatistics,
    method: str = "laplace",
    *,
    num_draws: int = 50,
    seed: int = 0,
    **options: Any,
) -> ParameterDraws:
    """Draw loadings, intercepts and noise variances about a fit by EM, as uncertain as the data leave them.

    The result stands in for a model in ``posterior``, ``impute``, ``retrieve`` and ``to_arviz``: predictions are then
    mixtures over the draws, exact given each, and ``impute(...).parameter_variance`` is what not knowing the parameters
    adds. Each draw is turned to where its loadings are nearest to the fit's (``ParameterDraws``).

    - "laplace": theta ~ N(theta_hat, J^-1) with J the observed information of the evidence, latents integrated out.
      From sufficient statistics; for up to some 9,000 unknowns, whole modalities missing. Knows the priors that
      ``noise_pseudo_count``, ``loadings_prior="normal"`` and ``pseudo_rows`` put in.
    - "bootstrap": EM from the fit on N instances drawn with replacement, once for each draw, whatever the options.

    Noise variances are those of the fit times exp((K + 1) / n_d) on average, n_d the rows that have the feature: what
    the other parameters have taken up of the noise.

    Args:
        model: the result of ``fit(model, data)`` by "em", whose options are kept; or a fitted model, with the options
            given here.
        data: what it was fitted to, N instances; or, for "laplace", their sufficient statistics.
        method: "laplace" or "bootstrap".
        num_draws: S.
        seed: the same seed gives the same draws.
        **options: of EM, as in :func:`calmrl_prob.fit`; those of a ``FitResult`` where not given.

    Returns:
        S draws; ``values`` holds ``loadings_<name>`` (S, D_m, K), ``intercepts_<name>`` and ``noise_variance_<name>``
        (S, D_m).

    Raises:
        ArgumentError: an unknown method or option; or one that the method does not serve: more unknowns than "laplace"
            takes, single features missing, ARD or ``support``.
        ArgumentTypeError: ``model`` was not fitted by EM, or ``data`` is of another type.
        NotConjugateError: the model is not linear-Gaussian.
        SchemaError: modalities or widths are not those of the model.
        DataError: resamples lack a modality.
        NumericalError: for "laplace", the model is not at a maximum.

    Warns:
        ConvergenceWarning: refits stopped before they had arrived.
        UnfittedWarning: the model still has the random parameters that it started from.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> z = torch.randn(80, 1, generator=generator)
        >>> x = {name: z + 0.5 * torch.randn(80, 3, generator=generator) for name in ("image", "text")}
        >>> x["text"][:20] = torch.nan
        >>> data = MultimodalData(x)
        >>> from calmrl_prob import SharedLatentModel, fit, impute
        >>> result = fit(SharedLatentModel(data.dims, latent_dim=1), data)
        >>> draws = parameter_draws(result, data, "bootstrap", num_draws=20)
        >>> tuple(draws.values["loadings_image"].shape)
        (20, 3, 1)
        >>> parts = impute(draws, data, names=["text"])
        >>> bool((parts.parameter_variance["text"] < parts.noise_variance["text"]).all())
        True
    """
    seed, num_draws = checked_seed(seed), whole_number("num_draws", num_draws, least=1)
    if not isinstance(method, str) or method not in METHODS:
        raise ArgumentError(f"method: expected one of {list(METHODS)}, got {method!r}.")
    if not isinstance(data, MultimodalData | SufficientStatistics):
        raise ArgumentTypeError(f"data: expected MultimodalData, got {described(data)}; wrap arrays in MultimodalData.")
    require_known_options(options, EM_OPTIONS, "method 'em', whose fit the draws are about,")
    fitted, isotropic, kept = _fitted(model)
    left_out = {*_OF_THE_CLIMB, "prior_mean", "prior_covariance"}  # the last two are in the fitted form
    kept = {name: value for name, value in {**kept, **options}.items() if name not in left_out}
    known = named_dims(model)
    if isinstance(data, MultimodalData):
        data.require_schema(fitted.dims)
        data = aligned(model, data)
        known = known or (data.dims if isinstance(data.dims, NamedDims) else None)
        data = data.conform(fitted.dims)
        require_fittable(data)
    elif list(data.dims.items()) != list(fitted.dims.items()):
        raise ArgumentError(f"data: expected statistics of {fitted.dims} in this order, got {data.dims}.")
    numbers = sum(fitted.dims.values()) * (fitted.latent_dim + 2)
    require_memory("num_draws", num_draws, numbers, 8, "ask for fewer")
    drawn, diagnostics = METHODS[method](fitted, isotropic, data, num_draws, seed, kept)
    taken = _taken_up(fitted, isotropic, data, float(kept.get("noise_pseudo_count", 0) + kept.get("pseudo_rows", 0)))
    drawn = [_scaled(draw, taken) for draw in drawn]
    evidence = Evidence(data.blocks if isinstance(data, MultimodalData) else data, fitted.latent_dim)
    picks = Picks.of(fitted)
    entries = [{"log_evidence": evidence(draw), **picks.quantities(draw)} for draw in drawn]
    quantities = {name: torch.stack([entry[name] for entry in entries]) for name in entries[0]}
    logger.info("parameter_draws: %d draws by %s", num_draws, method)
    found = ParameterDraws.about(
        fitted, drawn, method, quantities, diagnostics, statistics={"lp": quantities["log_evidence"]}
    )
    return replace(found, dims=known, rows_of_fit=SeenRows.of(data) if isinstance(data, MultimodalData) else None)


def _fitted(model: Any) -> tuple[LinearGaussian, bool, Mapping[str, Any]]:  # noqa: ANN401 - refused if nothing fits
    """The fitted form in double precision, whether its noise is isotropic, and the options that it was fitted with."""
    options: Mapping[str, Any] = {}
    if isinstance(model, FitResult):
        if model.method != "em":
            raise ArgumentTypeError(
                f"model: expected a fit by 'em', got one by {model.method!r}. Fits by 'nuts' and 'svi' have draws of "
                "the parameters already: pass the result itself. For others give the parameters priors in a Pyro "
                "model, and fit it by 'nuts' or 'svi'."
            )
        model, options = model.model, model.options
    if getattr(model, "batch", None) is not None:
        raise ArgumentError(
            "model: draws are about one form for all instances, and this one differs by batch; pass "
            "model.linear_gaussian() and the rows model.batch.adjusted(data)."
        )
    fitted = as_linear_gaussian(model).to(torch.float64)
    noise = getattr(model, "noise", None)
    if noise is None:
        same = all(bool((variance == variance[0]).all()) for variance in fitted.noise_variance.values())
        noise = "isotropic" if same else "diagonal"
    return fitted, noise == "isotropic", options


def _laplace(
    fitted: LinearGaussian,
    isotropic: bool,
    data: MultimodalData | SufficientStatistics,
    num_draws: int,
    seed: int,
    options: Mapping[str, Any],
) -> tuple[list[LinearGaussian], dict[str, Any]]:
    unknown = [name for name in options if name not in _CURVED]
    if fitted.noise_factor is not None:
        raise ArgumentError(
            "method: 'laplace' has no curvature of noise that is correlated within a modality; use 'bootstrap'."
        )
    if unknown or options.get("loadings_prior") not in (None, "normal"):
        which = unknown[0] if unknown else f"loadings_prior={options['loadings_prior']!r}"
        raise ArgumentError(f"method: 'laplace' does not know what {which} does to the curvature; use 'bootstrap'.")
    settings = {name: value for name, value in options.items() if name not in ("noise_floor", "loadings_prior")}
    if options.get("loadings_prior") == "normal" and settings.get("loadings_precision") is None:
        settings["loadings_precision"] = float(fitted.latent_dim)
    generator = torch.Generator().manual_seed(seed)
    given = data.blocks if isinstance(data, MultimodalData) else data
    return laplace_draws(given, fitted, num_draws, generator, isotropic=isotropic, **settings), {}  # type: ignore[arg-type]  # it refuses FeatureBlocks


def _bootstrap(
    fitted: LinearGaussian,
    isotropic: bool,
    data: MultimodalData | SufficientStatistics,
    num_draws: int,
    seed: int,
    options: Mapping[str, Any],
) -> tuple[list[LinearGaussian], dict[str, Any]]:
    if not isinstance(data, MultimodalData):
        raise ArgumentTypeError(
            "data: the bootstrap draws instances, which sufficient statistics cannot tell apart; pass MultimodalData, "
            "or use method='laplace'."
        )
    rng = np.random.default_rng(seed)
    num_values = float(sum(int(data.feature_mask(name).sum()) for name in data.names))
    unknowns = sum(part.numel() + len(part) for part in fitted.loadings.values())
    bare = MultimodalData({name: data[name] for name in data.names}, missing=data.missing)
    found = []
    late = 0
    for _ in range(num_draws):
        result = fit_em(
            bare.subset(_resample(bare, rng)).blocks,
            fitted.latent_dim,
            **_noise_form(fitted, isotropic),
            start=fitted,
            prior_mean=fitted.prior_mean,
            prior_covariance=fitted.prior_covariance,
            tolerance=_REST * unknowns / num_values,
            **options,
        )
        late += not result.converged
        found.append(result.linear_gaussian)
    if late:
        warnings.warn(
            f"{late} of {num_draws} refits stopped before they had arrived, so that the draws are nearer to the fit "
            "than they should be. Use fewer latents, or a prior such as noise_pseudo_count.",
            ConvergenceWarning,
            stacklevel=level_of_caller(),
        )
    return _centred(fitted, found), {"num_unconverged": late}


def _resample(data: MultimodalData, rng: np.random.Generator) -> Tensor:
    """N row numbers with replacement, among whose rows every modality is."""
    for _ in range(_TRIES):
        rows = torch.as_tensor(rng.integers(len(data), size=len(data)))
        if bool(data.observed_mask[rows].any(dim=0).all()):
            return rows
    rarest = min(data.names, key=lambda name: int(data.observed(name).sum()))
    raise DataError(
        f"modality {rarest!r}: only {int(data.observed(rarest).sum())} of {len(data)} instances have it, and resamples "
        "keep losing it; use method='laplace', or leave it out with select."
    )


def _centred(fitted: LinearGaussian, draws: list[LinearGaussian]) -> list[LinearGaussian]:
    """The draws with their noise variances scaled, by modality, to the fit's on (geometric) average."""
    factors = {}
    for name, noise in fitted.noise_variance.items():
        logs = torch.stack([draw.noise_variance[name].log() for draw in draws])
        factors[name] = (noise.log() - logs).mean().exp()
    return [_scaled(draw, factors) for draw in draws]


def _taken_up(
    fitted: LinearGaussian, isotropic: bool, data: MultimodalData | SufficientStatistics, pseudo_count: float
) -> dict[str, Tensor]:
    """exp((K + 1) / n_d) of each modality, () or (D_m,), with pseudo-observations among the n_d."""
    found = {}
    for m, name in enumerate(fitted.names):
        if isinstance(data, MultimodalData):
            count = data.feature_mask(name).sum(dim=0).double()
        else:
            count = torch.stack([scatter[-1, -1] for present, scatter in data.scatters.items() if present[m]]).sum()
        count = count.mean() if isotropic else count
        found[name] = ((fitted.latent_dim + 1) / (count + pseudo_count)).exp()
    return found


def _scaled(draw: LinearGaussian, factors: Mapping[str, Tensor]) -> LinearGaussian:
    """The draw with noise in other units, feature by feature: of correlated noise too."""
    noise = {name: factors[name] * variance for name, variance in draw.noise_variance.items()}
    shared = None
    if draw.noise_factor is not None:
        roots = {name: factors[name].sqrt().expand(len(noise[name])) for name in noise}
        shared = {name: roots[name][:, None] * factor for name, factor in draw.noise_factor.items()}
    return replace(draw, noise_variance=noise, noise_factor=shared)


def _noise_form(fitted: LinearGaussian, isotropic: bool) -> dict[str, Any]:
    """Options of ``fit_em`` that make noise of the fit's form."""
    if fitted.noise_factor is None:
        return {"noise": "isotropic" if isotropic else "diagonal"}
    ranks = {name: factor.shape[1] for name, factor in fitted.noise_factor.items()}
    return {"noise": "full"} if ranks == dict(fitted.dims) else {"noise": "low_rank", "noise_rank": ranks}


#: Name -> function of (fitted form, isotropic, data, number of draws, seed, options).
METHODS: dict[str, Callable[..., tuple[list[LinearGaussian], dict[str, Any]]]] = {
    "laplace": _laplace,
    "bootstrap": _bootstrap,
}
