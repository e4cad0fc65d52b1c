"""Texts of forms and of posteriors say whether they are exact, and agree with what is done."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import calmrl_prob as cal
from calmrl_prob._support.exactness import route_in_words
from calmrl_prob.inference.routes import ROUTES
from tests.cases.heavy_tails import heavy_data, student_t


def joint_t(data: cal.MultimodalData) -> None:
    """A Student-t prior of one scale for each instance, and normal noise."""
    with pyro.plate("instances", len(data)):
        z = pyro.sample("z", dist.MultivariateStudentT(5.0, torch.zeros(2).double(), torch.eye(2).double()))
        for name, width in data.dims.items():
            features = dist.Normal(z @ torch.ones(2, width).double(), 1.0).to_event(1).mask(data.observed(name))
            pyro.sample(name, features, obs=data.filled(name))


def with_globals(data: cal.MultimodalData) -> None:
    """Normal, but for a slope that has a prior of its own."""
    slope = pyro.sample("slope", dist.Normal(torch.tensor(0.0).double(), 1.0))
    with pyro.plate("instances", len(data)):
        z = pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
        for name, width in data.dims.items():
            features = dist.Normal((slope * z).expand(-1, width), 1.0).to_event(1).mask(data.observed(name))
            pyro.sample(name, features, obs=data.filled(name))


@pytest.mark.filterwarnings("ignore::calmrl_prob.errors.ReliabilityWarning")
@pytest.mark.parametrize(("model", "how"), [(student_t, "by weighted draws"), (joint_t, "by quadrature")])
def test_of_student_t_form_and_posterior_say_how_they_are_approximate(model: object, how: str) -> None:
    data = heavy_data(12)
    for text in (repr(cal.discover(model, data)), str(cal.posterior(model, data))):
        assert text.endswith(f"route='scale mixture', approximate: {how})")


def test_a_form_that_is_exact_given_global_latents_names_them() -> None:
    text = repr(cal.discover(with_globals, heavy_data(12)))
    assert text.endswith("route='exact', given slope)")


def test_every_route_that_can_be_asked_for_says_that_it_is_approximate() -> None:
    for route in ROUTES:
        assert route.name in ("own", "exact") or ", approximate: by " in route_in_words(route.name)
