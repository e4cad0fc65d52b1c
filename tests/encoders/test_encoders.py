"""Encoders: shapes, seeds, and posterior-mean maps against the engine's own posterior."""

from __future__ import annotations

import pytest
import torch

from calmrl_prob.encoders import (
    ENCODERS,
    Autoencoder,
    MLPEncoder,
    ResidualEncoder,
    build_encoders,
    posterior_mean_encoders,
)
from calmrl_prob.errors import ArgumentError
from calmrl_prob.linear_gaussian import LinearGaussian, ObservedBlocks, posterior

DIMS = {"image": 6, "text": 4}


def model(seed: int = 0) -> LinearGaussian:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    root = normal(3, 3)
    return LinearGaussian(
        {name: normal(width, 3) for name, width in DIMS.items()},
        {name: normal(width) for name, width in DIMS.items()},
        {name: normal(width).exp() for name, width in DIMS.items()},
        normal(3),
        root @ root.mT + 0.1 * torch.eye(3).double(),
    )


@pytest.mark.parametrize("kind", ENCODERS)
def test_every_encoder_gives_the_width_asked_for_and_depends_on_its_seed_alone(kind: str) -> None:
    state = torch.random.get_rng_state()
    first, again, other = (build_encoders(kind, DIMS, 3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, width in DIMS.items():
        x = torch.ones(5, width)
        assert first[name](x).shape == (5, 3)
        assert torch.equal(first[name](x), again[name](x))
        assert not torch.equal(first[name](x), other[name](x))


def test_posterior_mean_maps_are_the_posterior_means_given_one_modality() -> None:
    lg = model()
    maps = posterior_mean_encoders(lg, whiten=False, dtype=torch.float64)
    for m, name in enumerate(DIMS):
        x = torch.randn(7, DIMS[name], dtype=torch.float64, generator=torch.Generator().manual_seed(m))
        mask = torch.zeros(7, 2, dtype=torch.bool)
        mask[:, m] = True
        values = {other: x if other == name else torch.empty(0, DIMS[other]).double() for other in DIMS}
        expected = posterior(lg, ObservedBlocks(values, mask)).mean
        assert torch.allclose(maps[name](x), expected, atol=1e-10)


def test_whitened_maps_have_the_prior_for_origin_and_unit() -> None:
    lg = model()
    plain, white = (posterior_mean_encoders(lg, whiten=w, dtype=torch.float64) for w in (False, True))
    root = torch.linalg.cholesky(lg.prior_covariance)
    x = torch.randn(4, DIMS["text"], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(white["text"](x) @ root.mT + lg.prior_mean, plain["text"](x), atol=1e-10)


def test_a_residual_encoder_starts_as_its_map_and_learns_beyond_it() -> None:
    start = torch.nn.Linear(4, 3)
    encoder = ResidualEncoder(start, (8,))
    x = torch.randn(6, 4)
    assert torch.equal(encoder(x), start(x))
    encoder(x).square().sum().backward()
    last = encoder.network[-1]  # type: ignore[index]
    assert float(last.weight.grad.abs().max()) > 0
    assert torch.equal(ResidualEncoder(start, ())(x), start(x))


def test_an_autoencoder_decodes_to_its_input_shape() -> None:
    encoder = Autoencoder(6, 2, (5, 4))
    assert encoder.decode(encoder(torch.zeros(3, 6))).shape == (3, 6)


def test_what_cannot_work_is_refused_by_name() -> None:
    with pytest.raises(ArgumentError, match=r"kind: expected one of .*'mlp'"):
        build_encoders("mpl", DIMS, 3)
    with pytest.raises(ArgumentError, match="dropout"):
        MLPEncoder(4, 2, dropout=1.0)
    with pytest.raises(ArgumentError, match="width"):
        MLPEncoder(4, 0)
