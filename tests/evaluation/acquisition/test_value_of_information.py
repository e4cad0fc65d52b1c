"""The value of information against dense covariances, integrals and draws that share no code with it, and its laws."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import calmrl_prob as cal
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, SchemaError
from calmrl_prob.evaluation import ValueOfInformation
from calmrl_prob.linear_gaussian import LinearGaussian, ScaleMixture
from calmrl_prob.linear_gaussian.scale_mixture.shared_scale import StudentTModel
from tests.cases.acquisition_cases import DIMS, incomplete, mixture_of, random_model

EXACT = {"rtol": 1e-9, "atol": 1e-11}  # float64 algebra of a few dimensions; the worst seen is 1e-13


def joint_covariance(lg: LinearGaussian) -> Tensor:
    """Of all features, then the latents, dense."""
    loadings, noise = torch.cat(list(lg.loadings.values())), torch.cat(list(lg.noise_variance.values()))
    both = torch.cat([loadings, torch.eye(lg.latent_dim, dtype=torch.float64)])
    covariance = both @ lg.prior_covariance @ both.mT
    covariance[: len(noise), : len(noise)] += noise.diag()
    return covariance


def columns(lg: LinearGaussian, *names: str) -> list[int]:
    starts = dict(zip(lg.names, np.cumsum([0, *lg.dims.values()])[:-1].tolist(), strict=True))
    return [starts[name] + d for name in names for d in range(lg.dims[name])]


def conditional(covariance: Tensor, of: list[int], given: list[int]) -> Tensor:
    if not given:
        return covariance[of][:, of]
    cross = covariance[of][:, given]
    return covariance[of][:, of] - cross @ torch.linalg.solve(covariance[given][:, given], cross.mT)


def dense_information(covariance: Tensor, one: list[int], other: list[int], given: list[int]) -> float:
    """1/2 (logdet Cov[one | given] - logdet Cov[one | other, given])."""
    before, after = conditional(covariance, one, given), conditional(covariance, one, [*other, *given])
    return 0.5 * float(torch.logdet(before) - torch.logdet(after))


@pytest.mark.parametrize("target", [None, "text"])
def test_it_is_what_dense_covariances_say(target: str | None) -> None:
    lg = random_model()
    data = incomplete(lg)
    found, covariance = cal.value_of_information(lg, data, target), joint_covariance(lg)
    latents = list(range(sum(DIMS.values()), len(covariance)))
    about = latents if target is None else columns(lg, target)
    for n, row in enumerate(data.observed_mask.tolist()):
        given = columns(lg, *(name for name, has in zip(lg.names, row, strict=True) if has))
        for m, name in enumerate(lg.names):
            if row[m] or name == target or (target is not None and row[lg.names.index(target)]):
                assert math.isnan(found.gain[n, m])
                continue
            expected = dense_information(covariance, about, columns(lg, name), given)
            assert found.gain[n, m] == pytest.approx(expected, rel=1e-9, abs=1e-11)
            if found.trace_drop is not None:
                drop = conditional(covariance, about, given) - conditional(covariance, about, columns(lg, name) + given)
                assert found.trace_drop[n, m] == pytest.approx(float(drop.trace()), rel=1e-9)
    assert found.method == "exact"
    assert np.nanmax(found.standard_error) == 0
    assert np.isnan(found.gain[0]).all()  # it has everything


@pytest.mark.parametrize("target", [None, "text"])
def test_it_is_the_mean_log_density_ratio_of_draws(target: str | None) -> None:
    """log p(x | z) - log p(x), or log p(x, t) - log p(x) p(t), of draws given what the instance has: six errors."""
    lg = random_model(seed=3)
    data = incomplete(lg).subset([1])  # it has "image" alone
    gain = cal.value_of_information(lg, data, target).gain[0]
    covariance = joint_covariance(lg)
    given = columns(lg, "image")
    about = list(range(sum(DIMS.values()), len(covariance))) if target is None else columns(lg, target)
    for m, name in enumerate(lg.names):
        if np.isnan(gain[m]):
            continue
        seen = columns(lg, name)
        both = torch.distributions.MultivariateNormal(
            torch.zeros(len(about) + len(seen)).double(), conditional(covariance, about + seen, given)
        )
        torch.manual_seed(m)
        draws = both.sample((20_000,))
        parts = [both.log_prob(draws)]
        for place, some in ((slice(None, len(about)), about), (slice(len(about), None), seen)):
            alone = torch.distributions.MultivariateNormal(
                torch.zeros(len(some)).double(), conditional(covariance, some, given)
            )
            parts.append(-alone.log_prob(draws[:, place]))
        ratio = torch.stack(parts).sum(0)
        assert abs(float(ratio.mean()) - gain[m]) < 6 * float(ratio.std()) / 20_000**0.5


def test_the_drop_of_the_trace_is_what_imputation_then_loses_of_its_variance() -> None:
    lg = random_model()
    complete = cal.MultimodalData(lg.sample(5, torch.Generator().manual_seed(0)).features)
    before, after = complete.select(["image"]), complete.select(["image", "audio"])
    found = cal.value_of_information(lg, before, "text")
    assert found.trace_drop is not None
    lost = cal.impute(lg, before).variance["text"].sum(1) - cal.impute(lg, after).variance["text"].sum(1)
    np.testing.assert_allclose(found.trace_drop[:, lg.names.index("audio")], lost.numpy(), **EXACT)


def test_chain_rule() -> None:
    """I(z; a, b) = I(z; a) + I(z; b | a): what two modalities tell together is what one tells, then the other."""
    lg = random_model()
    merged = LinearGaussian(
        *(
            {"image": part["image"], "both": torch.cat([part["text"], part["audio"]])}
            for part in (lg.loadings, lg.intercepts, lg.noise_variance)
        ),
        lg.prior_mean,
        lg.prior_covariance,
    )
    complete = cal.MultimodalData(lg.sample(3, torch.Generator().manual_seed(0)).features)
    together = cal.value_of_information(merged, complete.select(["image"])).gain[:, 1]
    first = cal.value_of_information(lg, complete.select(["image"])).gain[:, 1]
    second = cal.value_of_information(lg, complete.select(["image", "text"])).gain[:, 2]
    np.testing.assert_allclose(together, first + second, **EXACT)


@pytest.mark.parametrize("target", [None, "text"])
@pytest.mark.parametrize("family", ["gaussian", "student-t", "mixture", "prior"])
def test_order_of_rows_and_modalities_changes_nothing_and_no_gain_is_negative(family: str, target: str | None) -> None:
    lg = random_model()
    data = incomplete(lg)
    model = {
        "gaussian": lg,
        "student-t": StudentTModel(lg, torch.tensor(5.0).double()),
        "mixture": mixture_of(lg, 2.0),
        "prior": ScaleMixture(lg, {}, [(slice(0, 3), torch.tensor(5.0).double())]),
    }[family]
    found = cal.value_of_information(model, data, target)
    assert (found.gain[~np.isnan(found.gain)] >= 0).all()
    rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    moved = cal.value_of_information(model, data.subset(rows), target)
    error = 6 * np.hypot(moved.standard_error, found.standard_error[rows]) + 1e-9
    apart = np.abs(moved.gain - found.gain[rows])
    assert ((apart <= error) | np.isnan(apart)).all()
    assert (np.isnan(moved.gain) == np.isnan(found.gain[rows])).all()
    order = ["depth", "text", "image", "audio"]
    turned = cal.value_of_information(model.select(order), data.select(order), target)
    places = [lg.names.index(name) for name in order]
    error = 6 * np.hypot(turned.standard_error, found.standard_error[:, places]) + 1e-9
    apart = np.abs(turned.gain - found.gain[:, places])
    assert ((apart <= error) | np.isnan(apart)).all()


def test_a_modality_that_no_instance_has_counts_as_missing_everywhere() -> None:
    lg = random_model()
    data = incomplete(lg)
    rows = data.rows_with("image")
    few = data.subset(rows).select(["image"])
    found = cal.value_of_information(lg, few)
    assert found.gain.shape == (len(few), 4)
    assert not np.isnan(found.gain[:, 1:]).any()
    assert np.isnan(found.gain[:, 0]).all()
    np.testing.assert_array_equal(found.gain, np.repeat(found.gain[:1], len(few), axis=0))


def test_an_instance_with_nothing_is_asked_from_the_prior() -> None:
    lg = random_model()
    data = incomplete(lg).subset([0, 1])
    bare = data._derive(observed_mask=torch.zeros_like(data.observed_mask))
    gain = cal.value_of_information(cal.posterior(lg, bare), bare).gain
    covariance = joint_covariance(lg)
    latents = list(range(sum(DIMS.values()), len(covariance)))
    expected = [dense_information(covariance, latents, columns(lg, name), []) for name in lg.names]
    np.testing.assert_allclose(gain, [expected, expected], **EXACT)


@pytest.mark.parametrize("target", [None, "text"])
def test_where_single_features_are_missing_it_is_of_those(target: str | None) -> None:
    lg = random_model()
    features = lg.sample(12, torch.Generator().manual_seed(0)).features
    generator = torch.Generator().manual_seed(2)
    holes = {name: torch.rand(x.shape, generator=generator) < 0.4 for name, x in features.items()}
    holes["image"][:, 0] = False
    holes["audio"][:6] = True
    data = cal.MultimodalData(
        {name: x.masked_fill(holes[name], torch.nan) for name, x in features.items()}, missing="features"
    )
    found, covariance = cal.value_of_information(lg, data, target), joint_covariance(lg)
    missing = torch.cat([holes[name] for name in lg.names], dim=1)
    latents = list(range(sum(DIMS.values()), len(covariance)))
    for n in range(len(data)):
        absent = missing[n].nonzero().flatten().tolist()
        given = [d for d in range(missing.shape[1]) if d not in absent]
        about = latents if target is None else [d for d in columns(lg, target) if d in absent]
        for m, name in enumerate(lg.names):
            rest = [d for d in columns(lg, name) if d in absent]
            if not rest or not about or name == target:
                assert math.isnan(found.gain[n, m])
            else:
                expected = dense_information(covariance, about, rest, given)
                assert found.gain[n, m] == pytest.approx(expected, rel=1e-9, abs=1e-11)


def shared_loadings(name: str) -> tuple[Tensor, Tensor]:
    """Loadings of a modality, and the factor of its correlated noise."""
    parts = random_model(seed=7).loadings[name]
    return parts[:, :2], 0.5 * parts[:, 2:]


def correlated_noise(data: cal.MultimodalData) -> None:
    with pyro.plate("instances", len(data)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
        for name in data.names:
            own, factor = shared_loadings(name)
            noise = dist.LowRankMultivariateNormal(z @ own.T, factor, torch.full((len(own),), 0.4).double())
            pyro.sample(name, noise.mask(data.observed(name)), obs=data.filled(name))


def test_noise_that_is_correlated_between_features_tells_nothing_of_the_latents() -> None:
    """K is the model's own, against dense covariances with that noise."""
    lg = random_model()
    mask = torch.tensor([[True, False, False, True]] * 2 + [[False, False, True, True], [True] * 4])
    data = cal.MultimodalData({name: x[:4] for name, x in incomplete(lg)._values.items()}, observed_mask=mask)
    found = cal.value_of_information(correlated_noise, data)
    own, factors = zip(*map(shared_loadings, DIMS), strict=True)
    noise = torch.block_diag(*(factor @ factor.mT for factor in factors)) + 0.4 * torch.eye(sum(DIMS.values()))
    both = torch.cat([*own, torch.eye(2).double()])
    covariance = both @ both.mT
    covariance[: len(noise), : len(noise)] += noise
    latents = [len(noise), len(noise) + 1]
    for n, given in ((0, ["image", "depth"]), (2, ["audio", "depth"])):
        for m, name in enumerate(DIMS):
            if name not in given:
                expected = dense_information(covariance, latents, columns(lg, name), columns(lg, *given))
                assert found.gain[n, m] == pytest.approx(expected, rel=1e-6)  # discovery rounds


def test_ranking_best_and_tables_say_the_same() -> None:
    lg = random_model()
    bare = incomplete(lg)
    data = cal.MultimodalData({name: bare[name] for name in bare.names}, ids=[f"case {n}" for n in range(len(bare))])
    found = cal.value_of_information(lg, data)
    table = found.ranking()
    assert table["gain"].is_monotonic_decreasing
    assert len(table) == int((~data.observed_mask).sum())
    assert data.ids is not None
    places = {identity: n for n, identity in enumerate(data.ids)}
    for line in table.itertuples():
        assert line.gain == found.gain[places[line.instance], lg.names.index(line.modality)]
    assert found.ranking(3).equals(table.head(3))
    about = cal.value_of_information(lg, data, "text").ranking(by="trace_drop")
    assert about["trace_drop"].is_monotonic_decreasing
    assert not about["gain"].is_monotonic_decreasing
    assert found.best["case 0"] is None
    firsts = table.drop_duplicates("instance").set_index("instance")["modality"]
    assert found.best[found.best.notna()].to_dict() == firsts.to_dict()
    patterns = found.by_pattern
    assert patterns["rows"].sum() == len(table)
    assert (patterns["rows"] * patterns["gain"]).sum() == pytest.approx(table["gain"].sum())
    assert repr(found).startswith(f"ValueOfInformation(24 instances, {len(table)} cells to acquire, about the latents")
    nothing = cal.value_of_information(lg, data.subset([0]))
    assert nothing.ranking().empty
    assert nothing.by_pattern.empty
    assert repr(nothing) == "ValueOfInformation(1 instances, 0 cells to acquire, about the latents)"


def test_a_fit_and_its_posterior_can_be_asked() -> None:
    made = cal.datasets.make_synthetic(200, {"image": 4, "text": 3, "audio": 2}, missing_rate=0.4, seed=0)
    fit = cal.fit(cal.SharedLatentModel(made.data.dims, latent_dim=2), made.data)
    found = cal.value_of_information(fit, made.data)
    assert isinstance(found, ValueOfInformation)
    again = cal.value_of_information(cal.posterior(fit, made.data), made.data)
    np.testing.assert_array_equal(found.gain, again.gain)
    np.testing.assert_array_equal(found.gain, cal.value_of_information(fit.model, made.data).gain)


def test_single_precision_models_are_asked_in_double() -> None:
    lg = random_model()
    data = incomplete(lg)
    rounded = lg.to(torch.float32)
    one = cal.value_of_information(rounded, data.to(torch.float32)).gain
    np.testing.assert_allclose(one, cal.value_of_information(rounded.to(torch.float64), data).gain, **EXACT)


def test_what_cannot_be_asked_is_refused() -> None:
    lg = random_model()
    data = incomplete(lg)
    with pytest.raises(SchemaError, match="target: the model has no modality 'smell'"):
        cal.value_of_information(lg, data, "smell")
    with pytest.raises(ArgumentTypeError, match="data: expected MultimodalData"):
        cal.value_of_information(lg, torch.ones(2, 2))  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="num_draws"):
        cal.value_of_information(lg, data, num_draws=1)
    with pytest.raises(ArgumentError, match="expected the 24 instances of the posterior"):
        cal.value_of_information(cal.posterior(lg, data), data.subset([0, 1]))
    with pytest.raises(ArgumentError, match="k"):
        cal.value_of_information(lg, data).ranking(0)
    with pytest.raises(ArgumentError, match="there is none; pass target="):
        cal.value_of_information(lg, data).ranking(by="trace_drop")
    with pytest.raises(ArgumentError, match="by: expected 'gain'"):
        cal.value_of_information(lg, data).ranking(by="drop")  # type: ignore[arg-type]
