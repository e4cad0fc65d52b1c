"""The text of diagnostics is short; what they hold is as it was. Warnings name a remedy that is not in use already."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import calmrl_prob as cal
from calmrl_prob.errors import ReliabilityWarning
from calmrl_prob.inference.approximate.svi import svi_posterior
from tests.cases.heavy_tails import heavy_data, student_t, tanh


def test_the_text_of_long_diagnostics_is_short_and_the_arrays_stay_whole() -> None:
    data = heavy_data(500)
    with pytest.warns(ReliabilityWarning):
        found = cal.posterior(student_t, data).diagnostics
    assert found["k_hat"].shape == (500,)
    assert len(repr(found)) < 300
    assert f"worst {found['k_hat'].max():.3g} of 500" in str(found)
    assert f"{(found['k_hat'] > 0.7).mean():.0%} above 0.7" in str(found)
    for other in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        np.testing.assert_array_equal(other["k_hat"], found["k_hat"])
        assert repr(other) == repr(found)


def test_for_heavy_tails_more_draws_are_not_advised_as_they_do_not_help() -> None:
    data = heavy_data(100)
    for num_draws in (200, 4000):
        with pytest.warns(ReliabilityWarning, match=r"more draws seldom help; use method 'nuts'"):
            found = cal.posterior(student_t, data, num_draws=num_draws)
        assert found.diagnostics["max_k_hat"] > 1


@pytest.mark.parametrize(
    ("guide", "remedy"),
    [("full", "not normal enough for a guide: use method 'nuts'"), ("diagonal", "use guide='full', or method 'nuts'")],
)
def test_svi_advises_no_guide_that_is_in_use(guide: str, remedy: str) -> None:
    with pytest.warns(ReliabilityWarning, match="k-hat") as caught:
        svi_posterior(tanh, heavy_data(40), guide=guide, num_draws=100)  # type: ignore[arg-type]
    assert remedy in str(caught[0].message)
    assert "full covariance" not in str(caught[0].message)


def test_a_family_is_named_by_its_own_name_behind_masks_and_events() -> None:
    def model(data: cal.MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            features = dist.Laplace(z @ torch.ones(2, 12).double(), 1.0).to_event(1).mask(data.observed("a"))
            pyro.sample("a", features, obs=data.filled("a"))

    with pytest.raises(cal.NotConjugateError, match="distributed as Laplace;"):
        cal.discover(model, cal.MultimodalData({"a": heavy_data(10)["a"]}))
