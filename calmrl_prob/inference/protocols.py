"""Protocols of models and fits: what a model may offer, so that a call takes it without knowing its class."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from calmrl_prob._support.progress import Callback
from calmrl_prob.data import MultimodalData
from calmrl_prob.linear_gaussian import LinearGaussian, NoiseForm, Structure, StructuresByInstance, SufficientStatistics
from calmrl_prob.posteriors.posterior import PosteriorResult
from calmrl_prob.programs.bound import PyroModel


@runtime_checkable
class HasStructure(Protocol):
    """A model that states its closed form, such as ``SharedLatentModel``: nothing has to be discovered."""

    def structure(self, data: MultimodalData | None = None) -> Structure | StructuresByInstance | None:
        """The closed form, differentiable; None if it has none. ``data`` is for forms that depend on the instances."""
        ...


@runtime_checkable
class HasLinearGaussian(Protocol):
    """A model that states its one linear-Gaussian form."""

    def linear_gaussian(self) -> LinearGaussian:
        """The parameters, as a LinearGaussian."""
        ...


@runtime_checkable
class Loads(Protocol):
    """A model that takes over a structure of its family, so that closed-form EM can fit it."""

    dims: dict[str, int]
    latent_dim: int
    noise: NoiseForm

    def load(self, structure: Any) -> None:  # noqa: ANN401 - a structure of the family that it states
        """Take over parameters."""
        ...


@runtime_checkable
class Fittable(Protocol):
    """A model whose form is that of a ``LinearGaussian`` with every parameter free."""

    dims: dict[str, int]
    latent_dim: int
    noise: NoiseForm

    def load_linear_gaussian(self, linear_gaussian: LinearGaussian) -> None:
        """Take over parameters."""
        ...


@runtime_checkable
class HasFit(Protocol):
    """A model with a way of its own to be fitted."""

    def fit_to(
        self, data: MultimodalData | SufficientStatistics, seed: int, callback: Callback | None, **options: Any
    ) -> FitReport:
        """Fit to data, in place."""
        ...


@runtime_checkable
class HasPosterior(Protocol):
    """A model with a route of its own, such as one whose latents are coupled between instances."""

    def posterior(self, data: MultimodalData, **options: Any) -> PosteriorResult:
        """The posterior of the latents of some instances."""
        ...


class FitReport(Protocol):
    """Report of a method of fitting; the attributes mean what those of :class:`FitResult` do.

    A report that also has a method ``posterior(data)`` answers for it (draws of parameters, a guide); otherwise the
    fitted model does. ``diagnostics``, if it has them, are handed on.
    """

    @property
    def log_likelihood(self) -> Tensor:
        """(T,), nats."""

    @property
    def objective(self) -> Tensor:
        """(T,), nats."""

    @property
    def num_iterations(self) -> int:
        """Steps tried."""

    @property
    def converged(self) -> bool:
        """Whether the criterion was met."""

    @property
    def stop_reason(self) -> str:
        """Why it stopped."""

    @property
    def criterion(self) -> float:
        """Its last value."""

    @property
    def tolerance(self) -> float:
        """Tolerance that the criterion was compared with."""

    @property
    def form(self) -> str:
        """Form by which the evidence was computed."""


#: What every function that takes a model takes: a Pyro callable, or something that states its own form.
Model = Structure | HasStructure | HasLinearGaussian | HasPosterior | PyroModel
