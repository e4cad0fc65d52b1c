"""The normalizing-flow prior: a density of any shape, learned with the model."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from calmrl_prob._arguments import checked_dtype, checked_seed, whole_number
from calmrl_prob._randomness import seeded
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import MissingDependencyError
from calmrl_prob.priors.prior import Prior


class FlowPrior(Prior):
    """z = f(e), e ~ N(0, I), with f a masked autoregressive flow of zuko's; its posterior takes the route "svi".

    Source: Papamakarios, Pavlakou & Murray, Masked autoregressive flow for density estimation (2017).

    Args:
        latent_dim: K.
        num_transforms: autoregressive transforms, one after the other.
        hidden: width of the two hidden layers of each one's network.
        seed: of the networks that it starts from.
        dtype: of its parameters.

    Raises:
        ArgumentError: a number is below 1.
        ArgumentTypeError: an argument is of another type.
        MissingDependencyError: zuko is not installed.

    Example:
        >>> prior = FlowPrior(2, num_transforms=2, hidden=8)
        >>> prior.distribution().sample().shape
        torch.Size([2])
    """

    name: ClassVar[str] = "flow"

    def __init__(
        self,
        latent_dim: int,
        num_transforms: int = 3,
        hidden: int = 64,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__(whole_number("latent_dim", latent_dim, least=1))
        self.num_transforms = whole_number("num_transforms", num_transforms, least=1)
        self.hidden = whole_number("hidden", hidden, least=1)
        zuko = _zuko()
        with seeded(checked_seed(seed), torch.device("cpu")):
            flow = zuko.flows.MAF(self.latent_dim, transforms=self.num_transforms, hidden_features=(self.hidden,) * 2)
        self.flow = flow.to(checked_dtype(dtype))

    def distribution(self, data: MultimodalData | None = None) -> TorchDistribution:
        """The flow's density, the same for all instances."""
        del data
        return FlowDistribution(self.flow())

    def config(self) -> dict[str, Any]:
        """The shape of the flow."""
        return {"num_transforms": self.num_transforms, "hidden": self.hidden}

    def __repr__(self) -> str:
        """One line."""
        return f"FlowPrior(latent_dim={self.latent_dim}, num_transforms={self.num_transforms}, hidden={self.hidden})"


class FlowDistribution(TorchDistribution):
    """A zuko flow as Pyro needs it: with a batch shape that plates can expand.

    Args:
        flow: what a zuko flow gives when called.
        batch_shape: independent copies.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, flow: Any, batch_shape: Any = ()) -> None:  # noqa: ANN401 - zuko has no annotations
        self._flow = flow
        super().__init__(torch.Size(batch_shape), flow.event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: object = None) -> FlowDistribution:  # noqa: ANN401 - sizes
        """The same, more often."""
        return FlowDistribution(self._flow, torch.Size(batch_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:  # noqa: ANN401 - sizes of several types
        """Draws with gradients."""
        draws: Tensor = self._flow.rsample(torch.Size(sample_shape) + self.batch_shape)
        return draws

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, nats."""
        density: Tensor = self._flow.log_prob(value)
        return density


def _zuko() -> Any:  # noqa: ANN401 - a module without annotations that mypy need not have
    try:
        import zuko
    except ImportError as error:
        raise MissingDependencyError(
            "priors.FlowPrior: it needs zuko, which is not installed; pip install 'calmrl-prob[flow]'."
        ) from error
    return zuko
