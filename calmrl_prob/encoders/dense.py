"""Encoders: from what a modality is measured in to representations of one width, in which modalities are aligned.

Any ``nn.Module`` that turns (n, ...) into (n, D) serves; these are the usual ones, and those that start from a fitted
generative model, whose posterior-mean maps align modalities before any training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from calmrl_prob._support.arguments import constructed, described, whole_number
from calmrl_prob._support.randomness import seeded
from calmrl_prob.errors import ArgumentError, ArgumentTypeError
from calmrl_prob.linear_gaussian import LinearGaussian, solve_noise
from calmrl_prob.linear_gaussian.posterior import factorize


class LinearEncoder(nn.Linear):
    """x -> A x + b, (n, D_m) to (n, D).

    Args:
        in_features: D_m.
        out_features: D.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(whole_number("in_features", in_features, 1), whole_number("out_features", out_features, 1))


class MLPEncoder(nn.Sequential):
    """Linear maps with GELU between them, (n, D_m) to (n, D).

    Args:
        in_features: D_m.
        out_features: D.
        hidden: widths of the layers between.
        dropout: share of the hidden units dropped in training, in [0, 1).

    Raises:
        ArgumentError: a width is below 1, or ``dropout`` out of range.

    Example:
        >>> MLPEncoder(8, 3, hidden=(16,))(torch.zeros(5, 8)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self, in_features: int, out_features: int, hidden: Sequence[int] = (256,), dropout: float = 0.0
    ) -> None:
        if not 0 <= dropout < 1:
            raise ArgumentError(f"dropout: expected a share from 0 to below 1, got {dropout!r}.")
        if isinstance(hidden, int | str) or not isinstance(hidden, Sequence):
            raise ArgumentTypeError(f"hidden: expected widths of layers such as (256,), got {described(hidden)}.")
        layers_of = (("in_features", in_features), *(("hidden", width) for width in hidden), ("width", out_features))
        widths = [whole_number(argument, width, least=1) for argument, width in layers_of]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.GELU(), nn.Dropout(dropout)]
        super().__init__(*layers[:-2])


class Autoencoder(nn.Module):
    """An encoder with a decoder back to its input, for objectives that reconstruct.

    Args:
        in_features: D_m.
        out_features: D.
        hidden: widths of the layers between, in the decoder the other way round.

    Example:
        >>> model = Autoencoder(8, 3, hidden=(16,))
        >>> model.decode(model(torch.zeros(5, 8))).shape
        torch.Size([5, 8])
    """

    def __init__(self, in_features: int, out_features: int, hidden: Sequence[int] = (256,)) -> None:
        super().__init__()
        self.encoder = MLPEncoder(in_features, out_features, hidden)
        self.decoder = MLPEncoder(out_features, in_features, tuple(hidden)[::-1])

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, D_m) to (n, D)."""
        encoded: Tensor = self.encoder(inputs)
        return encoded

    def decode(self, representations: Tensor) -> Tensor:
        """(n, D) to (n, D_m)."""
        decoded: Tensor = self.decoder(representations)
        return decoded


class ResidualEncoder(nn.Module):
    """A linear map that a network bends, starting as the map alone: its last layer starts at zero.

    Args:
        start: the linear map, such as one of :func:`posterior_mean_encoders`.
        hidden: widths of the network's layers between; () for none, and then only the map is trained.
        dropout: share of the hidden units dropped in training.

    Example:
        >>> start = LinearEncoder(8, 3)
        >>> x = torch.randn(5, 8)
        >>> bool((ResidualEncoder(start, (16,))(x) == start(x)).all())
        True
    """

    def __init__(self, start: nn.Linear, hidden: Sequence[int] = (256,), dropout: float = 0.0) -> None:
        super().__init__()
        self.start = start
        self.network = MLPEncoder(start.in_features, start.out_features, hidden, dropout) if hidden else None
        if self.network is not None:
            last = self.network[-1]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, D_m) to (n, D)."""
        mapped: Tensor = self.start(inputs)
        return mapped if self.network is None else mapped + self.network(inputs)


#: Encoders by name, for ``build_encoders`` and configurations.
ENCODERS: dict[str, Callable[..., nn.Module]] = {
    "linear": LinearEncoder,
    "mlp": MLPEncoder,
    "autoencoder": Autoencoder,
}


def build_encoders(
    kind: str, dims: Mapping[str, int], width: int, *, seed: int = 0, **options: object
) -> nn.ModuleDict:
    """One encoder for each modality, all to the same width.

    Args:
        kind: a name in ``ENCODERS``.
        dims: number of features D_m of each modality.
        width: D.
        seed: of the weights that they start from; the global random state is left as it is.
        **options: of the encoder.

    Raises:
        ArgumentError: the kind or an option is unknown.
        ArgumentTypeError: ``dims`` is no dict.

    Example:
        >>> sorted(build_encoders("mlp", {"image": 8, "text": 4}, 3, hidden=(16,)))
        ['image', 'text']
    """
    if kind not in ENCODERS:
        raise ArgumentError(f"kind: expected one of {sorted(ENCODERS)}, got {kind!r}.")
    if not isinstance(dims, Mapping) or not dims:
        raise ArgumentTypeError(
            f"dims: expected a dict from modality to its number of features, got {described(dims)}; of MultimodalData "
            "it is data.dims."
        )
    with seeded(seed):
        return nn.ModuleDict(
            {n: constructed(ENCODERS[kind], kind, features, width, **options) for n, features in dims.items()}
        )


@torch.no_grad()
def posterior_mean_encoders(
    linear_gaussian: LinearGaussian, *, whiten: bool = True, dtype: torch.dtype = torch.float32
) -> nn.ModuleDict:
    """The linear maps from each modality alone to the posterior mean of the latent, E[z | x^m].

        E[z | x^m] = V_m (W^mT Psi^m^-1 (x^m - mu^m) + S0^-1 m0),   V_m = (S0^-1 + W^mT Psi^m^-1 W^m)^-1

    Two modalities of one instance have posterior means that point the same way, so encoders that start here start
    aligned, for modalities too that never met in one instance.

    Args:
        linear_gaussian: the fitted model of the inputs.
        whiten: about the prior's mean and in units of its standard deviations, S0^-1/2 (E[z | x^m] - m0).
        dtype: of the weights.

    Returns:
        For each modality an ``nn.Linear`` from D_m to K.

    Example:
        >>> lg = LinearGaussian({"x": torch.ones(1, 1)}, {"x": torch.zeros(1)}, {"x": torch.ones(1)})
        >>> posterior_mean_encoders(lg)["x"](torch.tensor([[4.0]]))  # shrunk by half: signal and noise are alike
        tensor([[2.]], grad_fn=...)
    """
    linear_gaussian = linear_gaussian.to(torch.float64)
    prior = factorize(linear_gaussian.prior_covariance)
    precision = torch.cholesky_inverse(prior)
    encoders = nn.ModuleDict()
    for name, loadings in linear_gaussian.loadings.items():
        weighted = solve_noise(linear_gaussian, name, loadings)
        factor = factorize(precision + loadings.mT @ weighted)
        weight = torch.cholesky_solve(weighted.mT, factor)
        mean = linear_gaussian.prior_mean
        offset = torch.cholesky_solve((precision @ mean)[:, None], factor).squeeze(1)
        if whiten:
            weight = torch.linalg.solve_triangular(prior, weight, upper=False)
            offset = torch.linalg.solve_triangular(prior, (offset - mean)[:, None], upper=False).squeeze(1)
        encoder = nn.Linear(weight.shape[1], weight.shape[0], dtype=dtype)
        encoder.weight.copy_(weight)
        encoder.bias.copy_(offset - weight @ linear_gaussian.intercepts[name])
        encoders[name] = encoder
    return encoders
