"""The normalizing-flow prior: z = f(u), u ~ N(0, I), with f an invertible network; for latents of any shape."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn

from calmrl_prob._support.arguments import checked_dtype, checked_seed, whole_number
from calmrl_prob._support.global_state import kept_validation
from calmrl_prob._support.randomness import seeded
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, MissingDependencyError
from calmrl_prob.priors.prior import Prior


class FlowPrior(Prior):
    """z = f(u), u ~ N(0, I), with f a neural spline flow, learned with the model.

        log p(z) = log N(f^-1(z); 0, I) + log |det df^-1/dz|

    f is a chain of autoregressive transforms, each monotone in one latent by rational-quadratic splines on [-5, 5],
    whose knots a network computes from the latents before it. It starts as the identity, so that the model starts as
    the one with a standard normal prior. No posterior is exact under it: the routes are "svi" and "nuts".

    Source: Durkan, Bekasov, Murray & Papamakarios, Neural Spline Flows (2019), by the package zuko.

    Args:
        latent_dim: K.
        num_transforms: length of the chain; the order of latents turns around from each to the next.
        hidden: widths of the hidden layers of each network.
        num_bins: pieces of each spline.
        seed: of the networks.
        dtype: of its parameters.

    Raises:
        MissingDependencyError: zuko is not installed.
        ArgumentError: a number is below 1.
        ArgumentTypeError: an argument is of another type.

    Example:
        >>> prior = FlowPrior(2, num_transforms=2)
        >>> z = torch.tensor([[0.0, 0.0], [1.0, -2.0]], dtype=torch.float64)
        >>> prior.distribution().log_prob(z).detach()  # as yet N(0, I)
        tensor([-1.8379, -4.3379], dtype=torch.float64)
    """

    name: ClassVar[str] = "flow"

    def __init__(
        self,
        latent_dim: int,
        num_transforms: int = 3,
        hidden: Sequence[int] = (64,),
        num_bins: int = 8,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__(whole_number("latent_dim", latent_dim, least=1))
        self.num_transforms = whole_number("num_transforms", num_transforms, least=1)
        self.hidden = tuple(whole_number("hidden", width, least=1) for width in hidden)
        self.num_bins = whole_number("num_bins", num_bins, least=2)
        if not self.hidden:
            raise ArgumentError("hidden: expected the width of at least one hidden layer, got none.")
        kind = checked_dtype(dtype)
        try:
            with kept_validation():  # zuko switches it off for the whole process
                import zuko  # here, not above: an optional extra
        except ImportError as error:
            raise MissingDependencyError(
                "prior: normalizing flows need zuko, which is not installed; pip install 'calmrl-prob[flow]'."
            ) from error
        with seeded(checked_seed(seed)):
            self.flow: nn.Module = zuko.flows.NSF(
                self.latent_dim,
                transforms=self.num_transforms,
                bins=self.num_bins,
                hidden_features=self.hidden,
                activation=nn.SiLU,
            ).to(kind)
        for transform in self.flow.transform.transforms:
            # what sets the knots: of one latent alone parameters, else the last layer of a network; 0 is the identity
            network = getattr(transform, "hyper", None)
            layers = [layer for layer in (network or transform).modules() if isinstance(layer, nn.Linear)]
            for parameter in (layers[-1] if layers else transform).parameters():
                nn.init.zeros_(parameter)

    def distribution(self, data: MultimodalData | None = None) -> TorchDistribution:
        """p(z), the same for all instances."""
        del data
        return FlowDistribution(self.flow())

    @classmethod
    def least_numbers(
        cls, latent_dim: int, num_transforms: int = 3, hidden: Sequence[int] = (64,), num_bins: int = 8, **config: Any
    ) -> int:
        """Weights of the networks of all transforms; of one latent alone, which needs none, the knots."""
        del config
        knots = latent_dim * (3 * whole_number("num_bins", num_bins, least=2) - 1)
        widths = [latent_dim, *(whole_number("hidden", width, least=1) for width in hidden), knots]
        weights = sum(one * other for one, other in pairwise(widths)) if latent_dim > 1 else knots
        return whole_number("num_transforms", num_transforms, least=1) * weights

    def config(self) -> dict[str, Any]:
        """The sizes of the networks."""
        return {"num_transforms": self.num_transforms, "hidden": list(self.hidden), "num_bins": self.num_bins}

    def __repr__(self) -> str:
        """One line."""
        return (
            f"FlowPrior(latent_dim={self.latent_dim}, num_transforms={self.num_transforms}, hidden={self.hidden}, "
            f"num_bins={self.num_bins})"
        )


class FlowDistribution(TorchDistribution):
    """A distribution of zuko as Pyro wants it: with a support, expansion, and arguments that need no validation.

    (``pyro.contrib.zuko`` has the like, without a support, which samplers need.)

    Args:
        flow: what a zuko flow returns when called.
        batch_shape: of independent copies.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = True

    def __init__(self, flow: torch.distributions.Distribution, batch_shape: Sequence[int] = ()) -> None:
        self._flow = flow
        super().__init__(torch.Size(batch_shape), flow.event_shape, validate_args=False)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        """All of R^K."""
        return constraints.real_vector

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> FlowDistribution:
        """Independent copies."""
        del _instance
        return FlowDistribution(self._flow, batch_shape)

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Draws, sample shape + batch shape + (K,); differentiable."""
        draws: Tensor = self._flow.rsample(torch.Size(sample_shape) + self.batch_shape)
        return draws

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(z), nats."""
        density: Tensor = self._flow.log_prob(value)
        return density.expand(torch.broadcast_shapes(density.shape, self.batch_shape))
