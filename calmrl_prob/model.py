"""SharedLatentModel, the generative model of CalMRL in Pyro.

    z_n     ~ N(m0, S0)                               in plate "instances", n = 1 .. N
    x_n^m   ~ N(W^m z_n + mu^m, diag(psi^m))          for each modality m that instance n has

Source: Liu et al., Calibrated Multimodal Representation Learning with Missing Modalities, arXiv 2511.12034 (2025), with
psi^m the same for all features of a modality; with psi^m free it is factor analysis in groups.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.nn import PyroModule
from pyro.poutine.runtime import effectful
from torch import Tensor, nn

from calmrl_prob._support.arguments import checked_dtype, checked_seed, described, whole_number
from calmrl_prob.batch_effects import BatchEffects
from calmrl_prob.data import MultimodalData
from calmrl_prob.data.features import names_of, with_names
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, ModelError, NotConjugateError, SchemaError
from calmrl_prob.linear_gaussian import (
    NOISES,
    LinearGaussian,
    LinearGaussianMixture,
    NoiseForm,
    ScaleMixture,
    Structure,
    StructuresByInstance,
    require_diagonal_noise,
)
from calmrl_prob.noise_parameters import NoiseParameters, with_noise
from calmrl_prob.noise_parameters import parameter_key as _key
from calmrl_prob.priors import NormalPrior, Prior

#: Names of Pyro sites that no modality may take.
LATENT_SITE, PLATE = "z", "instances"
#: Standard deviation of the loadings that a new model starts from.
_START_SCALE = 0.1


class SharedLatentModel(PyroModule):
    """The shared-latent model of M modalities as a Pyro model that owns its parameters.

    Calling it with data runs the generative model: a plate "instances" of size N, in it the latent site "z" with
    event shape (K,), and one observed site per modality, named as the modality, with event shape (D_m,). What an
    instance lacks is masked, so it adds nothing to any density or gradient. Calling it with a number N samples N
    complete instances from the prior. The parameters are plain ``torch.nn.Parameter`` objects: nothing is entered in
    Pyro's global parameter store, ``state_dict`` holds all there is, and two models never share anything.

    To fit it use ``calmrl_prob.fit``, which has closed-form steps. Gradients work too, and with
    :class:`calmrl_prob.guide.ConjugateGuide` they have no sampling noise: best with a plain torch optimiser on
    ``Trace_ELBO().differentiable_loss(model, guide, data)``; ``pyro.infer.SVI`` with a ``pyro.optim`` optimiser does
    the same.

    Args:
        dims: number of features D_m of each modality; ``data.dims`` knows their names too, where data came as frames.
        latent_dim: K; None leaves it to ``calmrl_prob.fit``, which chooses it by held-out imputations. Until then the
            model has no parameters.
        noise: "isotropic", one noise variance per modality (the paper), "diagonal", one per feature, or noise that is
            correlated within a modality: "full", a covariance of its features, or "low_rank", factors of its own
            besides a variance per feature. The latter two carry what a modality shares with no other; they take the
            normal prior. "auto" is chosen by the fit where ``latent_dim`` is, and isotropic where that is given.
        prior: p(z); the standard normal if not given.
        seed: of the small random loadings it starts from (intercepts 0, noise variances 1).
        dtype: of the parameters and all K-dimensional algebra.
        noise_rank: how many factors "low_rank" noise has, for all modalities or by name; by default K, or a third of
            the features where that is less.
        batch: instances come in batches whose measurements are shifted, as a ``BatchEffects`` says, or the name of the
            covariate that tells them apart. It takes the normal prior and whole modalities.

    Raises:
        ArgumentError: no modality, a width or K below 1, an unknown kind of noise, a prior for another K, a modality
            named as one of the model's own sites, a negative seed, or a type other than float32 and float64.
        ArgumentTypeError: an argument is of another type.

    Example:
        >>> model = SharedLatentModel({"image": 3, "text": 2}, latent_dim=2)
        >>> model
        SharedLatentModel(image: 3, text: 2; latent_dim=2, noise='isotropic', prior=normal)
        >>> trace = pyro.poutine.trace(model).get_trace(5)
        >>> tuple(trace.nodes["z"]["value"].shape), tuple(trace.nodes["text"]["value"].shape)
        ((5, 2), (5, 2))
        >>> model.num_parameters  # 5 loadings of 2 latents, 5 intercepts, 2 noise variances
        17
        >>> SharedLatentModel({"image": 3, "text": 2})
        SharedLatentModel(image: 3, text: 2; latent_dim and noise to be chosen by cal.fit, prior=normal)
    """

    prior: Prior
    batch: BatchEffects | None

    def __init__(
        self,
        dims: Mapping[str, int],
        latent_dim: int | None = None,
        noise: NoiseForm | Literal["auto"] = "auto",
        prior: Prior | None = None,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        noise_rank: int | Mapping[str, int] | None = None,
        batch: str | BatchEffects | None = None,
    ) -> None:
        super().__init__()
        self.dims = _checked_dims(dims)
        for name in self.dims:
            if name in (LATENT_SITE, PLATE):
                raise ArgumentError(
                    f"dims: the modality name {name!r} is taken by a site of the model; rename the modality."
                )
        self._seed, self._start_dtype = checked_seed(seed), checked_dtype(dtype)
        if noise not in ("auto", *NOISES):
            raise ArgumentError(f"noise: expected one of {['auto', *NOISES]}, got {noise!r}.")
        if prior is not None and not isinstance(prior, Prior):
            raise ArgumentTypeError(f"prior: expected a calmrl_prob.priors.Prior, got {described(prior)}.")
        self.batch = _checked_batch(batch, prior)
        if latent_dim is None and prior is not None:
            latent_dim = prior.latent_dim
        #: What was asked for, None for what a fit is to choose: (latent_dim, noise).
        self.requested: tuple[int | None, NoiseForm | None] = (latent_dim, None if noise == "auto" else noise)
        self.requested_rank = noise_rank
        self.latent_dim: int = 0
        self.intervals: Any = None  # of a fit that chose; cal.impute uses them
        self.rows_of_fit: Any = None  # by which held-out rows are checked to be so
        self.noise: NoiseForm = "isotropic"
        self._noise_parameters = NoiseParameters.of("isotropic", None, self.dims, 1)
        if latent_dim is not None:
            self.settle(latent_dim, "isotropic" if noise == "auto" else noise, prior, noise_rank)
        elif noise == "low_rank":  # refuses ranks that do not go with the widths
            NoiseParameters.of(noise, noise_rank, self.dims, 1)

    @property
    def settled(self) -> bool:
        """Whether K and the form of the noise are known, so that there are parameters."""
        return self.latent_dim > 0

    def settle(
        self,
        latent_dim: int,
        noise: NoiseForm,
        prior: Prior | None = None,
        noise_rank: int | Mapping[str, int] | None = None,
    ) -> None:
        """Give a model of open K its parameters, all at their starts; ``calmrl_prob.fit`` does so with what it chose.

        Args:
            latent_dim: K.
            noise: its form.
            prior: p(z); the standard normal if not given.
            noise_rank: of "low_rank" noise.

        Raises:
            ArgumentError: K is below 1, the noise or the prior is not one that serves, or a parameter would have the
                name of a modality.

        Example:
            >>> model = SharedLatentModel({"image": 3})
            >>> model.settle(2, "isotropic")
            >>> model
            SharedLatentModel(image: 3; latent_dim=2, noise='isotropic', prior=normal)
        """
        latent_dim = whole_number("latent_dim", latent_dim, least=1)
        dtype = self._start_dtype
        prior = NormalPrior(latent_dim, dtype=dtype) if prior is None else prior
        if prior.latent_dim != latent_dim:
            raise ArgumentError(
                f"prior: it has {prior.latent_dim} latents, the model {latent_dim}; use the same number."
            )
        self._noise_parameters = NoiseParameters.of(noise, noise_rank, self.dims, latent_dim)
        if self._noise_parameters.ranks is not None and not isinstance(prior, NormalPrior):
            raise ArgumentError(
                f"noise: {noise!r} goes with a normal prior, and the prior is {prior.name}; use noise='isotropic' or "
                "'diagonal', and more latents for what modalities do not share."
            )
        self.latent_dim, self.noise = latent_dim, noise
        self.prior = copy.deepcopy(prior).to(dtype)
        self._parameters.clear()  # those of another form, where it was fitted before
        generator = torch.Generator().manual_seed(self._seed)
        for name, width in self.dims.items():
            loadings = _start(width, latent_dim, generator, dtype)
            noise_shape = self._noise_parameters.log_shape(width)
            self.register_parameter(_key("loadings", name), nn.Parameter(loadings))
            self.register_parameter(_key("intercepts", name), nn.Parameter(torch.zeros(width, dtype=dtype)))
            self.register_parameter(_key("log_noise", name), nn.Parameter(torch.zeros(noise_shape, dtype=dtype)))
            if self._noise_parameters.ranks is not None:
                factor = _start(width, self._noise_parameters.ranks[name], generator, dtype)
                self.register_parameter(_key("noise_factor", name), nn.Parameter(factor))
        taken = {name for name, _ in self.named_parameters()}
        for name in self.dims:
            if name in taken:
                raise ArgumentError(
                    f"dims: the modality name {name!r} is taken by a site of the model; rename the modality."
                )

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        # PyroModule would enter every parameter that is read during a call in Pyro's global store. This model keeps
        # its own, and states them as sites in forward.
        return nn.Module.__getattr__(self, name)

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities."""
        return tuple(self.dims)

    @property
    def noise_rank(self) -> dict[str, int] | None:
        """The number of factors that the noise of each modality has, if "low_rank"; None of any other form."""
        return dict(self._noise_parameters.ranks or {}) if self.noise == "low_rank" else None

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the parameters."""
        return next((parameter.dtype for parameter in self.parameters()), self._start_dtype)

    @property
    def num_parameters(self) -> int:
        """Number of parameters: (K + 1) for each feature, and the noise variances.

        Rotating the latent changes no density, so K (K - 1) / 2 of them are redundant.
        """
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    @torch.no_grad()
    def unfitted(self) -> bool:
        """Whether all parameters are those that a new model of this seed starts from: nothing was fitted or loaded.

        Intercepts of 0, noise variances of 1 and the random loadings of the first modality tell. It is seen from the
        parameters themselves, so it holds however they were changed. ``posterior``, ``impute``, ``retrieve`` and the
        others that ask a model about data warn of it; sampling from the model and gradient steps do not.

        Example:
            >>> model = SharedLatentModel({"image": 3}, latent_dim=2)
            >>> model.unfitted
            True
        """
        if not self.settled:
            return True
        if any(bool(getattr(self, _key(kind, n)).any()) for n in self.names for kind in ("intercepts", "log_noise")):
            return False
        loadings: Tensor = getattr(self, _key("loadings", self.names[0]))
        start = _start(len(loadings), self.latent_dim, torch.Generator().manual_seed(self._seed), self._start_dtype)
        return torch.equal(loadings.cpu(), start.to(loadings.dtype))

    def __repr__(self) -> str:
        widths = ", ".join(f"{name}: {width}" for name, width in self.dims.items())
        if self.settled:
            rank = "" if self.noise_rank is None else f", noise_rank={self.noise_rank}"
            settings = f"latent_dim={self.latent_dim}, noise={self.noise!r}{rank}, prior={self.prior.name}"
        else:
            known = "latent_dim and noise" if self.requested[1] is None else f"noise={self.requested[1]!r}, latent_dim"
            settings = f"{known} to be chosen by cal.fit, prior=normal"
        batch = "" if self.batch is None else f", batch={self.batch.column!r}"
        return f"SharedLatentModel({widths}; {settings}{batch})"

    def linear_gaussian(self) -> LinearGaussian:
        """The parameters in the form that the exact engine takes; gradients flow through to them.

        Of a model with batches it is what they share, without their shifts and scales.

        Example:
            >>> model = SharedLatentModel({"image": 3}, latent_dim=2)
            >>> tuple(model.linear_gaussian().loadings["image"].shape)
            (3, 2)
        """
        self._require_gaussian("state one linear-Gaussian form")
        return self._assemble(dict(self.named_parameters()))

    def structure(self, data: MultimodalData | None = None) -> Structure | StructuresByInstance | None:
        """The closed form under the prior, differentiable; None where it has none, as under a flow.

        Args:
            data: the instances, for priors that look at them, such as a ``GroupPrior``.

        Example:
            >>> from calmrl_prob.priors import MixturePrior
            >>> SharedLatentModel({"image": 3}, 2, prior=MixturePrior(2, num_components=4)).structure()
            LinearGaussianMixture(4 components of image: 3; latent_dim=2, dtype=torch.float64)
        """
        if self.batch is not None and self.batch.names:
            return self.batch.structure(self.linear_gaussian(), data)
        likelihood = self._assemble(dict(self.named_parameters()))
        return self.prior.structure(likelihood, data)

    @torch.no_grad()
    def load(self, structure: Structure | StructuresByInstance) -> None:
        """Take over the parameters of a structure of the prior's family, as a fit by EM leaves it.

        Raises:
            ArgumentTypeError, ArgumentError: it is of another family or shape.
        """
        if isinstance(structure, LinearGaussian):
            self.load_linear_gaussian(structure)
            return
        if isinstance(structure, LinearGaussianMixture):
            likelihood = structure.components[0]
        elif isinstance(structure, ScaleMixture):
            likelihood = structure.linear_gaussian
        else:
            raise ArgumentTypeError(f"structure: expected one of the prior's family, got {described(structure)}.")
        self.prior.load(structure)
        self.load_likelihood(likelihood)

    @torch.no_grad()
    def load_linear_gaussian(self, linear_gaussian: LinearGaussian) -> None:
        """Take over parameters.

        The model keeps its own prior. Where that differs from the other's, N(m1, S1), the latent is moved by the
        affine map between the two, which leaves every density of the data as it is: with S1 = L1 L1^T, S0 = L0 L0^T,

            W = W1 L1 L0^-1,    mu = mu1 + W1 m1 - W m0

        Raises:
            ArgumentTypeError: it is not a LinearGaussian.
            SchemaError: the modalities or their widths differ.
            ArgumentError: K differs, or this model's form of the noise cannot say what the other's is.

        Example:
            >>> source = SharedLatentModel({"image": 3}, latent_dim=2, seed=1)
            >>> model = SharedLatentModel({"image": 3}, latent_dim=2)
            >>> model.load_linear_gaussian(source.linear_gaussian())
            >>> torch.equal(model.linear_gaussian().loadings["image"], source.linear_gaussian().loadings["image"])
            True
        """
        self.rows_of_fit = None
        if not isinstance(linear_gaussian, LinearGaussian):
            raise ArgumentTypeError(
                f"linear_gaussian: expected a LinearGaussian, got {described(linear_gaussian)}; of another model give "
                "model.linear_gaussian()."
            )
        if linear_gaussian.dims != self.dims:  # equal mappings, in any order
            raise SchemaError(
                f"linear_gaussian: expected the modalities {self.dims}, got {linear_gaussian.dims}; "
                "make a model with its dims."
            )
        if linear_gaussian.latent_dim != self.latent_dim:
            raise ArgumentError(
                f"linear_gaussian: expected {self.latent_dim} latents, got {linear_gaussian.latent_dim}; "
                f"make a model with latent_dim={linear_gaussian.latent_dim}."
            )
        self._noise_parameters.own(linear_gaussian)  # refused before anything is changed
        given = linear_gaussian.to(dtype=self.dtype, device=next(self.parameters()).device)
        mean, covariance = self._require_gaussian("take over another model's coordinates of z")
        same_prior = torch.equal(given.prior_mean, mean) and torch.equal(given.prior_covariance, covariance)
        for name in self.dims:
            loadings, intercept = given.loadings[name], given.intercepts[name]
            if not same_prior:
                scaled = loadings @ torch.linalg.cholesky(given.prior_covariance)
                moved = torch.linalg.solve_triangular(
                    torch.linalg.cholesky(covariance), scaled, upper=False, left=False
                )
                intercept = intercept + loadings @ given.prior_mean - moved @ mean
                loadings = moved
            getattr(self, _key("loadings", name)).copy_(loadings)
            getattr(self, _key("intercepts", name)).copy_(intercept)
        self._load_noise(given)

    @torch.no_grad()
    def load_likelihood(self, linear_gaussian: LinearGaussian) -> None:
        """Take over loadings, intercepts and noise as they are, in the coordinates of this model's own prior.

        Raises:
            ArgumentError: this model's form of the noise cannot say what the other's is.
        """
        given = linear_gaussian.to(dtype=self.dtype, device=next(self.parameters()).device)
        self._noise_parameters.own(given)  # refused before anything is changed
        for name in self.dims:
            getattr(self, _key("loadings", name)).copy_(given.loadings[name])
            getattr(self, _key("intercepts", name)).copy_(given.intercepts[name])
        self._load_noise(given)

    def _load_noise(self, given: LinearGaussian) -> None:
        for name, (specific, factor) in self._noise_parameters.own(given).items():
            getattr(self, _key("log_noise", name)).copy_(specific.log())
            if factor is not None:
                getattr(self, _key("noise_factor", name)).copy_(factor)

    def forward(self, data: MultimodalData | int) -> Tensor:
        """The generative process, for Pyro.

        Args:
            data: N instances to condition on, or their number N to sample complete ones. Modalities of the model that
                the data do not have count as missing everywhere.

        Returns:
            The latents (N, K).

        Raises:
            ArgumentTypeError: ``data`` is neither.
            ArgumentError: the number is below 1.
            SchemaError: the data have a modality that the model does not know, or of another width.
            ArgumentError: single features are missing, and noise is correlated within a modality.
        """
        if not isinstance(data, MultimodalData):
            if isinstance(data, bool) or not isinstance(data, Integral):
                raise ArgumentTypeError(
                    f"data: expected MultimodalData, or how many instances to sample, got {described(data)}; "
                    "wrap arrays in MultimodalData."
                )
            data = whole_number("data, as a number of instances to sample", data, least=1)
        parameters = {
            name: _parameter_site(self._pyro_get_fullname(name), parameter)
            for name, parameter in self.named_parameters()
        }
        lg = self._assemble(parameters)
        if isinstance(data, int):
            lg.require_room(data)
        given = None if isinstance(data, int) else data.conform(self.dims)
        num_instances = data if isinstance(data, int) else len(data)
        effects = self.batch if self.batch is not None and self.batch.names and given is not None else None
        batch = None if effects is None or given is None else effects.index(given)
        with pyro.plate(PLATE, num_instances, dim=-1):
            z: Tensor = pyro.sample(LATENT_SITE, self.prior.distribution(given))
            for name in self.names:
                location = z @ lg.loadings[name].mT + lg.intercepts[name]
                if effects is None or batch is None:
                    features = _features(lg, name, location)
                else:
                    features = effects.distribution(lg, name, location, batch)
                if given is None:
                    pyro.sample(name, features)
                    continue
                # A finite value first, then the mask: masking NaN would give a finite density with NaN gradients.
                values = given.filled(name).to(location.dtype)
                if given.missing == "features":
                    require_diagonal_noise(lg, "data")
                    observed = features.base_dist.mask(given.feature_mask(name)).to_event(1)
                else:
                    observed = features.mask(given.observed(name))
                pyro.sample(name, observed, obs=values)
        return z

    def _assemble(self, parameters: Mapping[str, Tensor]) -> LinearGaussian:
        self.require_settled()

        def of(kind: str) -> dict[str, Tensor]:
            return {name: parameters[_key(kind, name)] for name in self.dims}

        noise = {name: value.exp() for name, value in of("log_noise").items()}
        gaussian: tuple[Any, Any] = self.prior.gaussian() or (None, None)  # None: standard normal
        mean, covariance = gaussian
        names = names_of(self.dims) or None
        form = LinearGaussian(of("loadings"), of("intercepts"), noise, mean, covariance, feature_names=names)
        return with_noise(form, None if self._noise_parameters.ranks is None else of("noise_factor"))

    def require_settled(self) -> None:
        """Refuse a model whose K is still to be chosen by a fit.

        Raises:
            ModelError: it is.
        """
        if not self.settled:
            raise ModelError(
                "model: it has no parameters yet, since latent_dim is to be chosen by a fit; call cal.fit(model, data) "
                "first, or give latent_dim."
            )

    def _require_gaussian(self, purpose: str) -> tuple[Tensor, Tensor]:
        self.require_settled()
        found = self.prior.gaussian()
        if found is None:
            raise NotConjugateError(
                LATENT_SITE,
                f"{self.prior.name} prior",
                f"The prior is not one Gaussian for all instances, which the model would need to {purpose}.",
                "cal.posterior, which finds the route of the prior by itself",
            )
        return found


def _checked_dims(dims: Mapping[str, int]) -> dict[str, int]:
    if not isinstance(dims, Mapping):
        raise ArgumentTypeError(f"dims: expected a mapping of modality names to widths, got {described(dims)}.")
    if not dims:
        raise ArgumentError("dims: expected at least one modality, got none.")
    for name in dims:
        if not isinstance(name, str) or not name:
            raise ArgumentTypeError(f"dims: expected modality names that are not empty, got {name!r}.")
    widths = {name: whole_number(f"dims[{name!r}]", width, least=1) for name, width in dims.items()}
    return with_names(widths, names_of(dims))


def _checked_batch(batch: object, prior: Prior | None) -> BatchEffects | None:
    if batch is None:
        return None
    if not isinstance(batch, str | BatchEffects):
        raise ArgumentTypeError(f"batch: expected the name of a covariate or BatchEffects, got {described(batch)}.")
    if prior is not None and not isinstance(prior, NormalPrior):
        raise ArgumentError(
            f"batch: it goes with a normal prior, and the prior is {prior.name}; leave one of them out."
        )
    return BatchEffects(batch) if isinstance(batch, str) else copy.deepcopy(batch)


def _features(lg: LinearGaussian, name: str, location: Tensor) -> TorchDistribution:
    """The distribution of one modality's features, an event of D_m, given their location (N, D_m)."""
    correlated = lg.correlated_noise(name)
    if correlated is None:
        features: TorchDistribution = dist.Normal(location, lg.noise_variance[name].sqrt()).to_event(1)
    elif correlated.dense:
        features = dist.MultivariateNormal(location, covariance_matrix=correlated.covariance())
    else:
        features = dist.LowRankMultivariateNormal(location, correlated.factor, correlated.specific)
    return features


def _start(width: int, latent_dim: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """The small random loadings (D_m, K) that a new model starts from."""
    return _START_SCALE * torch.randn(width, latent_dim, generator=generator, dtype=dtype)


def _parameter_site(name: str, parameter: nn.Parameter) -> Tensor:
    """State a parameter to Pyro's handlers (SVI collects what to optimise from them) without its global store."""
    value: Any = parameter.view_as(parameter)
    value.unconstrained = weakref.ref(parameter)
    state: Callable[..., Tensor] = effectful(lambda *_, **__: value, type="param")
    return state(name, parameter, constraint=constraints.real, name=name)
