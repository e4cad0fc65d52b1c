"""The exact posterior of a conjugate Pyro model as a Pyro guide."""

from __future__ import annotations

from dataclasses import replace

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from calmrl_prob._support.arguments import described
from calmrl_prob.conjugacy import ConjugateForm, discover
from calmrl_prob.data import MultimodalData
from calmrl_prob.data.stream import require_data
from calmrl_prob.errors import ArgumentTypeError, NotConjugateError
from calmrl_prob.inference.exact.discovered import form_posterior
from calmrl_prob.linear_gaussian import posterior
from calmrl_prob.model import SharedLatentModel
from calmrl_prob.posteriors.mixture import MixtureResult
from calmrl_prob.posteriors.posterior import PosteriorResult
from calmrl_prob.programs.bound import BoundModel, PyroModel
from calmrl_prob.programs.sites import PLATE

#: Sites of the guide alone, for what has no site of its own in the model.
_JOINT, _COMPONENT = "_latents_jointly", "_component"


class ConjugateGuide(nn.Module):
    """The exact posterior of a conjugate Pyro model as a guide; it has nothing to learn.

        q(z_n) = p(z_n | x_n), a Gaussian, or a mixture of Gaussians where the prior is one

    Since log p(x, z) - log q(z) = log p(x) whatever z is, the ELBO equals the log marginal likelihood for every single
    draw. For Gaussian posteriors so do the gradients, which run through the guide too: gradient steps on this ELBO are
    steps on the exact marginal likelihood. Draws and densities take N K^2 numbers; for many instances use
    ``calmrl_prob.posterior``.

    For posterior predictive draws take the model's observations away, but not the guide's::

        Predictive(pyro.poutine.uncondition(model), guide=ConjugateGuide(model), num_samples=500)(data)

    Args:
        model: a ``SharedLatentModel``, or any Pyro model whose linear-Gaussian form can be discovered; its current
            parameters are read at each call.

    Raises:
        ArgumentTypeError: it is no model.

    Example:
        >>> from pyro.infer import Trace_ELBO
        >>> model = SharedLatentModel({"image": 3, "text": 2}, latent_dim=2)
        >>> data = MultimodalData({"image": torch.ones(4, 3), "text": torch.ones(4, 2)})
        >>> elbo = -Trace_ELBO().loss(model, ConjugateGuide(model), data)
        >>> exact = posterior(model.linear_gaussian(), data.to(torch.float64).blocks).log_marginal.sum()
        >>> abs(elbo - exact.item()) < 1e-9
        True
    """

    def __init__(self, model: PyroModel) -> None:
        super().__init__()
        if not callable(model) or isinstance(model, type):
            raise ArgumentTypeError(f"model: expected a SharedLatentModel or a Pyro model, got {described(model)}.")
        self.model = model
        self._bound = model if isinstance(model, BoundModel) else BoundModel(model)

    def forward(self, data: MultimodalData) -> Tensor:
        """Sample the latents of all instances, (N, K), from the exact posterior.

        Raises:
            ArgumentTypeError: ``data`` is not MultimodalData.
            SchemaError: the data have a modality that the model does not know, or of another width.
            NotConjugateError: the model has no exact posterior; names the site and the reason.
        """
        require_data(data)
        model = self.model
        if isinstance(model, SharedLatentModel) and model.prior.gaussian() is not None and model.batch is None:
            return self._shared_latent(model, data)
        form = discover(self._bound, data)
        offsets, latent_offset = form.read_offsets()
        current = replace(form, structures=form.read(), offsets=offsets, latent_offset=latent_offset)
        # in double precision throughout, or rounding in the data's type would part guide and model
        result = form_posterior(current, data.to(dtype=torch.float64))
        with pyro.plate(PLATE, len(data), dim=-1):
            if form.prober.discrete:
                return self._by_component(form, result)
            return self._state(form, _joint(result, next(iter(form.latents))))

    def _shared_latent(self, model: SharedLatentModel, data: MultimodalData) -> Tensor:
        """Read, not discovered; in the model's type, for the same reason."""
        given = posterior(model.linear_gaussian(), data.conform(model.dims).to(dtype=model.dtype).blocks)
        factor = torch.linalg.cholesky(given.pattern_covariance)[given.pattern_index]
        with pyro.plate(PLATE, len(data), dim=-1):
            z: Tensor = pyro.sample("z", dist.MultivariateNormal(given.mean, scale_tril=factor))
        return z

    def _by_component(self, form: ConjugateForm, result: PosteriorResult) -> Tensor:
        """The discrete sites first, from the responsibilities; the latents given them."""
        site = next(iter(form.prober.discrete))
        values = list(form.prober.assignments())
        if not isinstance(result, MixtureResult) or len(result.exact.components) != len(values):
            raise NotConjugateError(
                site,
                "discrete site",
                "A guide for discrete sites together with mixture priors, or with structures that vary by instance, is "
                "not offered.",
                "cal.posterior, which has this posterior",
            )
        logits = result.exact.log_responsibilities
        single = len(form.prober.discrete) == 1 and values[0][site].shape == (1,)
        drawn = None
        if single:
            numbers = torch.cat([value[site] for value in values])
            if torch.equal(numbers, torch.arange(len(values), device=numbers.device, dtype=numbers.dtype)):
                drawn = pyro.sample(site, dist.Categorical(logits=logits))
        if drawn is None:
            drawn = pyro.sample(_COMPONENT, dist.Categorical(logits=logits), infer={"is_auxiliary": True})
            for name in form.prober.discrete:
                table = torch.stack([value[name] for value in values])
                chosen = table[drawn].squeeze(-1)
                pyro.sample(name, dist.Delta(chosen, event_dim=chosen.ndim - 1))
        rows, width = torch.arange(len(drawn), device=drawn.device), form.latent_dim
        means = torch.stack([part.mean[:, :width] for part in result.exact.components])
        factors = torch.stack(
            [
                torch.linalg.cholesky(part.pattern_covariance[:, :width, :width])[part.pattern_index]
                for part in result.exact.components
            ]
        )
        return self._state(form, dist.MultivariateNormal(means[drawn, rows], scale_tril=factors[drawn, rows]))

    def _state(self, form: ConjugateForm, joint: TorchDistribution) -> Tensor:
        """All continuous latents from their joint distribution, each at its own site."""
        names = list(form.latents)
        if len(names) == 1 and form.prober.event_shape(names[0]) == (form.latent_dim,):
            z: Tensor = pyro.sample(names[0], joint)
            return z
        z = pyro.sample(_JOINT, joint, infer={"is_auxiliary": True})
        for name, columns in form.latents.items():
            shape = form.prober.event_shape(name)
            if shape is None:
                raise NotConjugateError(
                    name,
                    "further plate",
                    f"It stands in a plate inside {PLATE!r}, which a guide would have to repeat.",
                    "cal.posterior, which has this posterior",
                )
            pyro.sample(name, dist.Delta(z[:, columns].reshape(len(z), *shape), event_dim=len(shape)))
        return z


def _joint(result: PosteriorResult, site: str) -> TorchDistribution:
    """p(z_n | x_n) of all instances as one batched distribution."""
    if isinstance(result, MixtureResult):
        width = result.mean.shape[1]
        means = torch.stack([part.mean[:, :width] for part in result.exact.components], dim=1)
        covariances = torch.stack([part.covariance[:, :width, :width] for part in result.exact.components], dim=1)
        weights = dist.Categorical(logits=result.exact.log_responsibilities)
        mixture: TorchDistribution = dist.MixtureSameFamily(
            weights, dist.MultivariateNormal(means, covariance_matrix=covariances)
        )
        return mixture
    if "mixture" in result.route:
        raise NotConjugateError(
            site,
            "mixture prior",
            "A guide for mixtures that vary by instance is not offered.",
            "cal.posterior, which has this posterior",
        )
    normal: TorchDistribution = dist.MultivariateNormal(result.mean, covariance_matrix=result.covariance)
    return normal
