"""Parameters of Pyro programs, kept out of the global store however they are stated."""

from __future__ import annotations

from collections.abc import Iterator

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

from calmrl_prob.errors import ArgumentError
from calmrl_prob.inference.parameters import ParameterKeeper


@pytest.fixture(autouse=True)
def store_stays_as_it_is() -> Iterator[None]:
    pyro.clear_param_store()
    pyro.param("someone's", torch.tensor(1.0))
    yield
    assert list(pyro.get_param_store().keys()) == ["someone's"]
    pyro.clear_param_store()


def program(data: Tensor) -> Tensor:
    mean = pyro.param("mean", lambda: torch.zeros(2))
    scale = pyro.param("scale", torch.tensor(2.0), constraint=constraints.positive)
    return pyro.sample("x", dist.Normal(mean, scale).to_event(1), obs=data)


def test_two_keepers_of_one_program_share_nothing() -> None:
    first, second = ParameterKeeper(), ParameterKeeper()
    for keeper in (first, second):
        keeper(program)(torch.ones(2))
        assert list(keeper) == ["mean", "scale"]
    with torch.no_grad():
        first.parameters["scale"].add_(1.0)
    assert float(second.values()["scale"]) == 2.0
    torch.testing.assert_close(first.values()["scale"], torch.tensor(2.0) * torch.tensor(1.0).exp())
    third = ParameterKeeper(first.values())
    third(program)(torch.ones(2))
    torch.testing.assert_close(third.values()["scale"], first.values()["scale"])


def test_gradients_reach_what_is_kept() -> None:
    keeper = ParameterKeeper()
    density = poutine.trace(keeper(program)).get_trace(torch.ones(2)).log_prob_sum()
    by_mean, by_scale = torch.autograd.grad(density, list(keeper.parameters.values()))
    torch.testing.assert_close(by_mean, torch.full((2,), 0.25))  # (x - mean) / scale^2
    torch.testing.assert_close(by_scale, torch.tensor(2 * (1 / 4 - 1)))  # by log scale: sum of r^2 / scale^2 - 1


class Stated(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.free = nn.Parameter(torch.zeros(2))
        self.scale = PyroParam(torch.tensor(2.0), constraint=constraints.positive)
        self.inner = nn.Linear(2, 2)

    def forward(self, data: Tensor) -> Tensor:
        extra = pyro.param("extra", torch.zeros(2))
        return pyro.sample("x", dist.Normal(self.inner(self.free) + extra, self.scale).to_event(1), obs=data)


def test_parameters_of_modules_stay_the_modules_own() -> None:
    module, keeper = Stated(), ParameterKeeper()
    density = poutine.trace(keeper(module)).get_trace(torch.ones(2)).log_prob_sum()
    assert list(keeper.values()) == ["extra"]
    density.backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert {id(p) for p in module.parameters()} < {id(p) for p in keeper.parameters.values()}


def test_what_someone_else_keeps_under_the_same_name_is_neither_read_nor_changed() -> None:
    module = Stated()
    pyro.param("scale", torch.tensor(7.0), constraint=constraints.positive)
    poutine.trace(ParameterKeeper()(module)).get_trace(torch.ones(2))
    assert float(module.scale.detach()) == pytest.approx(2.0)
    assert float(pyro.param("scale").detach()) == pytest.approx(7.0)
    del pyro.get_param_store()["scale"]


def test_a_start_that_is_the_callers_own_tensor_is_left_as_it_is() -> None:
    start, keeper = torch.zeros(2), ParameterKeeper()
    keeper(lambda: pyro.param("mean", start))()
    with torch.no_grad():
        keeper.parameters["mean"].add_(1.0)
    assert not start.requires_grad
    assert not start.any()


def test_a_module_stated_by_a_function_is_found() -> None:
    network = nn.Linear(2, 2)

    def with_network(data: Tensor) -> Tensor:
        pyro.module("network", network)
        return pyro.sample("x", dist.Normal(network(data), 1.0).to_event(1), obs=data)

    keeper = ParameterKeeper()
    with keeper:
        with_network(torch.ones(2))
    assert {id(p) for p in keeper.parameters.values()} == {id(p) for p in network.parameters()}
    assert not keeper.values()


def test_what_is_stated_wrongly_is_refused_by_name() -> None:
    with pytest.raises(ArgumentError, match="'later' before"):
        ParameterKeeper()(lambda: pyro.param("later"))()
    with pytest.raises(ArgumentError, match="start of the parameter 'scale' is not finite"):
        ParameterKeeper()(lambda: pyro.param("scale", torch.tensor(-1.0), constraint=constraints.positive))()
