"""What is said to be held out is checked: rows of the fit, other models, too few rows."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

import calmrl_prob as cal
from calmrl_prob.errors import ArgumentError, DataError, ReliabilityWarning
from calmrl_prob.inference.fingerprint import fingerprint
from calmrl_prob.inference.seen import SeenRows
from calmrl_prob.priors import MixturePrior

NOT_HELD_OUT = "are among those that the model was fitted to"


def drawn(seed: int = 0, num_rows: int = 240) -> cal.MultimodalData:
    """Three modalities, the last a one-hot label, so that its rows coincide."""
    g = np.random.default_rng(seed)
    z = g.normal(size=(num_rows, 2))
    a, b = (z @ g.normal(size=(2, d)) + 0.3 * g.normal(size=(num_rows, d)) for d in (5, 4))
    return cal.MultimodalData({"a": a, "b": b, "label": np.eye(3)[g.integers(0, 3, num_rows)]})


def fitted(data: cal.MultimodalData) -> cal.SharedLatentModel:
    """A fit of two latents."""
    model = cal.SharedLatentModel(data.dims, 2)
    cal.fit(model, data)
    return model


def quiet() -> warnings.catch_warnings:
    """Let nothing be warned of."""
    return warnings.catch_warnings(action="error")


@pytest.mark.parametrize("method", ["conformal", "scale"])
@pytest.mark.parametrize("form", ["same", "some", "float32", "fewer modalities", "reordered"])
def test_rows_of_the_fit_are_told(method: str, form: str) -> None:
    data = drawn()
    model = fitted(data.subset(slice(0, 160)))
    rows = {
        "same": data.subset(slice(0, 160)),
        "some": data.subset(slice(130, 240)),
        "float32": data.subset(slice(0, 160)).to(dtype=torch.float32),
        "fewer modalities": data.subset(slice(0, 160)).select(["a", "b"]),
        "reordered": data.subset(np.arange(160)[::-1].copy()),
    }[form]
    share = {"some": 0.27}.get(form, 1.0)
    with pytest.warns(ReliabilityWarning, match=rf"about {share:.0%} of these {len(rows)} instances {NOT_HELD_OUT}"):
        cal.recalibrate(model, rows, method)
    with pytest.warns(ReliabilityWarning, match=NOT_HELD_OUT):
        cal.masked_validation(model, rows, num_draws=0)


def test_held_out_rows_are_not() -> None:
    data = drawn()
    rows = data.subset(slice(160, 240))
    model = fitted(data.subset(slice(0, 160)))
    with quiet():
        cal.recalibrate(model, rows, "conformal")
        cal.masked_validation(model, rows.select(["a", "label"]), num_draws=0)
        cal.masked_validation(model, data.subset(slice(0, 160)), num_draws=0, folds=2)


@pytest.mark.parametrize("how", ["chosen", "result", "pickled", "pyro", "draws"])
def test_every_fit_remembers_its_rows(how: str) -> None:
    data = drawn().select(["a", "b"]).subset(slice(0, 120))
    if how == "pyro":
        model = cal.fit(program, data, tolerance=1e-3)
    else:
        model = cal.SharedLatentModel(data.dims, None if how == "chosen" else 2)
        result = cal.fit(model, data)
        model = result if how == "result" else pickle.loads(pickle.dumps(model)) if how == "pickled" else model
        model = cal.parameter_draws(model, data, num_draws=4) if how == "draws" else model
    with pytest.warns(ReliabilityWarning, match=NOT_HELD_OUT):
        cal.masked_validation(model, data, num_draws=0)


def test_cross_validation_on_other_rows_is_told() -> None:
    data = drawn()
    model = fitted(data.subset(slice(0, 120)))
    with pytest.warns(ReliabilityWarning, match="method 'cv' takes the instances that the model was fitted to"):
        cal.recalibrate(model, data.subset(slice(120, 240)), "cv", folds=2)
    with quiet():
        cal.recalibrate(model, data.subset(slice(0, 120)), "cv", folds=2)


def test_rows_that_coincide_by_chance_tell_nothing() -> None:
    g = np.random.default_rng(0)
    bits = g.integers(0, 2, size=(2, 400, 6)).astype(float)
    seen = SeenRows.of(cal.MultimodalData({"bits": bits[0]}))
    assert seen.share(cal.MultimodalData({"bits": bits[1]})) in (None, 0.0)


def test_many_rows_are_known_by_a_share_of_their_hashes() -> None:
    x = np.random.default_rng(0).normal(size=(300_000, 2))
    seen = SeenRows.of(cal.MultimodalData({"x": x[:200_000]}))
    assert len(seen.modalities["x"].hashes) < 2**16
    # of about 37,000 hashes looked up; six standard errors of the share are 0.016
    assert abs(seen.share(cal.MultimodalData({"x": x[150_000:]})) - 1 / 3) < 0.016


def program(data: cal.MultimodalData) -> None:
    """A linear-Gaussian model with a prior of its own."""
    mean = pyro.param("mean", torch.zeros(2).double())
    noise = pyro.param("noise", torch.tensor(0.3).double(), constraint=constraints.positive)
    with pyro.plate("instances", len(data)):
        z = pyro.sample("z", dist.Normal(mean, 1.0).to_event(1))
        for name, width in data.dims.items():
            w = pyro.param(f"w_{name}", lambda width=width: torch.randn(width, 2).double())
            observed = dist.Normal(z @ w.T, noise).to_event(1).mask(data.observed(name))
            pyro.sample(name, observed, obs=data.filled(name))


def test_fingerprints_include_prior_and_parameters_of_pyro_models() -> None:
    data = drawn().select(["a", "b"])
    lg = fitted(data).linear_gaussian().detach()
    moved = type(lg)(lg.loadings, lg.intercepts, lg.noise_variance, lg.prior_mean + 1, lg.prior_covariance)
    assert fingerprint(lg) != fingerprint(moved)
    first, second = (cal.fit(program, data.subset(slice(0, n)), tolerance=1e-2) for n in (100, 120))
    assert fingerprint(first) is not None
    assert fingerprint(first) != fingerprint(second)
    mixed = cal.SharedLatentModel(data.dims, 2, prior=MixturePrior(2, 2))
    before = fingerprint(mixed)
    with torch.no_grad():
        next(mixed.prior.parameters()).add_(0.5)
    assert before is not None
    assert fingerprint(mixed) != before
    assert fingerprint(copy.deepcopy(mixed)) == fingerprint(mixed)


@pytest.mark.parametrize("kind", ["linear", "pyro"])
def test_a_posterior_of_another_model_is_refused(kind: str) -> None:
    data = drawn().select(["a", "b"])

    def made(rows: int) -> cal.FitResult | cal.SharedLatentModel:
        part = data.subset(slice(0, rows))
        return fitted(part) if kind == "linear" else cal.fit(program, part, tolerance=1e-2)

    one, other = made(100), made(90)
    by = cal.recalibrate(one, data.subset(slice(100, 240)), "scale")
    with pytest.raises(ArgumentError, match="made for other parameters"):
        cal.impute(cal.posterior(other, data), data, recalibrated=by)
    with pytest.raises(ArgumentError, match="made for other parameters"):
        cal.impute(other, data, recalibrated=by)
    direct, through = (cal.impute(m, data, recalibrated=by) for m in (one, cal.posterior(one, data)))
    torch.testing.assert_close(direct.variance["a"], through.variance["a"])


def test_a_factor_from_few_rows_is_refused_or_told() -> None:
    data = drawn().select(["a", "b"])
    model = fitted(data.subset(slice(0, 150)))
    with pytest.raises(DataError, match=r"hidden in 1 instance alone.*give 30 instances"):
        cal.recalibrate(model, data.subset(slice(150, 151)), "scale")
    with pytest.warns(ReliabilityWarning, match=r"known badly.*\+- .*2 instances"):
        cal.recalibrate(model, data.subset(slice(150, 152)), "scale")
    with quiet():
        cal.recalibrate(model, data.subset(slice(150, 240)), "scale")
