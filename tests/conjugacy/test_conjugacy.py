"""Conjugacy discovery over the zoo: exact where it can be, refused with the right reason where it cannot."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyro
import pytest
import torch

import calmrl_prob as cal
from calmrl_prob.conjugacy import linear_gaussian
from calmrl_prob.errors import CalmrlError, ModelError, NotConjugateError
from calmrl_prob.linear_gaussian import log_marginal
from tests.cases.pyro_zoo import BROKEN, CONJUGATE, NOT_CONJUGATE, Conjugate, Normal
from tests.cases.pyro_zoo.conjugate import loadings_with_priors
from tests.cases.zoo_densities import close

ONE = [name for name, build in CONJUGATE.items() if build().form == "one"]
#: What linear_gaussian says of a model that is exact, but not one LinearGaussian.
CONDITION = {"by instance": "structure varies by instance", "mixture": "mixture prior", "discrete": "discrete site"}


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Discovery enters nothing in the global parameter store and draws nothing from the global generators."""
    with pyro.get_param_store().scope():
        pyro.set_rng_seed(1)
        before = pyro.util.get_rng_state()
        yield
        assert not list(pyro.get_param_store().keys())
        after = pyro.util.get_rng_state()
        assert torch.equal(before["torch"], after["torch"])
        assert before["random"] == after["random"]
        assert all(np.array_equal(a, b) for a, b in zip(before["numpy"], after["numpy"], strict=True))


@pytest.mark.parametrize("name", ONE)
def test_parameters_are_read_off(name: str) -> None:
    case: Conjugate = CONJUGATE[name]()
    lg = cal.discover(case.model, case.data).linear_gaussian()
    truth = case.truth
    assert isinstance(truth, Normal)
    assert set(lg.names) == set(case.data.names)
    for modality in lg.names:
        close(lg.loadings[modality], truth.loadings[modality], case.tolerance)
        close(lg.intercepts[modality], truth.intercepts[modality], case.tolerance)
        close(torch.diag(lg.noise_variance[modality]), truth.noise_covariance(modality), case.tolerance)
    close(lg.prior_mean, truth.mean, case.tolerance)
    close(lg.prior_covariance, truth.covariance, case.tolerance)


@pytest.mark.parametrize("name", CONJUGATE)
def test_posterior_is_that_of_dense_conditioning(name: str) -> None:
    case: Conjugate = CONJUGATE[name]()
    got = cal.posterior(case.model, case.data)
    expected = [case.posterior(row) for row in case.rows]
    assert got.route.startswith("exact mixture" if case.form in ("mixture", "discrete") else "exact")
    close(got.mean[case.rows], np.stack([mean for mean, _, _ in expected]), case.tolerance)
    close(got.covariance[case.rows], np.stack([covariance for _, covariance, _ in expected]), case.tolerance)
    close(got.log_marginal[case.rows], np.array([evidence for _, _, evidence in expected]), case.tolerance)


@pytest.mark.parametrize("name", sorted(set(CONJUGATE) - set(ONE)))
def test_what_is_not_one_linear_gaussian_says_so_and_names_the_exact_route(name: str) -> None:
    case: Conjugate = CONJUGATE[name]()
    if case.form == "correlated noise":
        pytest.skip("whether a LinearGaussian with more latents stands for correlated noise is a matter of taste")
    with pytest.raises(NotConjugateError) as caught:
        cal.discover(case.model, case.data).linear_gaussian()
    assert caught.value.condition == CONDITION[case.form]
    assert caught.value.route.startswith("exact")


@pytest.mark.parametrize("name", NOT_CONJUGATE)
def test_what_is_not_conjugate_is_refused_with_site_condition_and_route(name: str) -> None:
    case = NOT_CONJUGATE[name]()
    with pytest.raises((NotConjugateError, ModelError)) as caught:
        cal.discover(case.model, case.data).linear_gaussian()
    error = caught.value
    assert repr(case.site) in str(error)
    if case.condition is not None:
        assert isinstance(error, NotConjugateError)
        assert (error.site, error.condition) == (case.site, case.condition)
    if isinstance(error, NotConjugateError):
        assert error.route
        assert error.route in str(error)
        assert not error.route.startswith("exact")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::calmrl_prob.errors.CalmrlWarning")  # three steps are few
@pytest.mark.parametrize("name", NOT_CONJUGATE)
def test_the_route_that_is_named_serves(name: str) -> None:
    """Where "svi" is named, ``posterior`` takes it; whatever cannot be served is refused by a typed error."""
    case = NOT_CONJUGATE[name]()
    data = case.data.subset(slice(0, 60))
    try:
        found = cal.posterior(case.model, data, max_iterations=3)
    except CalmrlError as error:
        assert name == "flow_prior" or getattr(error, "route", "") != "svi", error  # noqa: PT017  # no inverse
    else:
        assert bool(found.mean.isfinite().all())
        assert found.route in ("svi", "nuts", "scale mixture")


@pytest.mark.parametrize("ask", [linear_gaussian, cal.posterior], ids=["linear_gaussian", "posterior"])
@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_refused_with_what_to_do(name: str, ask: object) -> None:
    case = BROKEN[name]()
    with pytest.raises(ModelError) as caught:
        ask(case.model, case.data)
    message = str(caught.value)
    for word in case.words:
        options = (word,) if isinstance(word, str) else word
        assert any(option in message for option in options), message


@pytest.mark.parametrize("model", [None, 3, "model.py", torch.zeros(2)], ids=repr)
def test_what_is_no_model_is_refused(model: object) -> None:
    with pytest.raises((CalmrlError, TypeError), match="model"):
        cal.discover(model, CONJUGATE["closure"]().data).linear_gaussian()


def test_values_of_global_latents_are_given() -> None:
    """Loadings with priors have no one value; with values given, the form is that of these values."""
    case = CONJUGATE["conditioned_globals"]()
    with pytest.raises(NotConjugateError, match="W_image") as caught:
        cal.discover(loadings_with_priors, case.data).linear_gaussian()
    assert caught.value.condition == "global latents"
    assert isinstance(case.truth, Normal)
    values = {f"W_{name}": torch.from_numpy(case.truth.loadings[name]) for name in case.data.names}
    values |= {f"mu_{name}": torch.from_numpy(case.truth.intercepts[name]) for name in case.data.names}
    values |= {f"sigma_{name}": torch.tensor(0.9).double() for name in case.data.names}
    lg = cal.discover(loadings_with_priors, case.data, values).linear_gaussian(values)
    for modality in lg.names:
        close(lg.loadings[modality], case.truth.loadings[modality], 1e-9)


def test_gradients_reach_the_parameters_of_the_model() -> None:
    """The evidence of what was read off, differentiated, is the evidence of the native model, differentiated."""
    native = cal.SharedLatentModel({"image": 4, "text": 3, "audio": 2}, latent_dim=2, noise="diagonal", seed=3)
    data = CONJUGATE["closure"]().data

    gradients = []
    for lg in (native.linear_gaussian(), cal.discover(native, data).linear_gaussian()):
        native.zero_grad()
        log_marginal(lg, data.blocks).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in native.parameters()])
    for expected, got in zip(*gradients, strict=True):
        close(got, expected.numpy(), 1e-8)


def test_values_of_the_parameter_store_count() -> None:
    """pyro.param statements mean what SVI has made of them, not their initial values."""
    case = CONJUGATE["param_statements"]()
    cal.discover(case.model, case.data).linear_gaussian()
    trained = torch.full((4, 3), 0.25).double()
    with pyro.get_param_store().scope():
        pyro.param("W_image", trained)
        lg = cal.discover(case.model, case.data).linear_gaussian()
        assert set(pyro.get_param_store().keys()) == {"W_image"}
    close(lg.loadings["image"], trained.detach().numpy(), 1e-9)
