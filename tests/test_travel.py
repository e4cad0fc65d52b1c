"""Whatever a user holds travels: through pickle, deepcopy and to another process, and answers there as it did here."""

from __future__ import annotations

import copy
import inspect
import multiprocessing
import pickle
import typing
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import calmrl_prob as cal
from calmrl_prob._support.frozen import FrozenMapping
from calmrl_prob.inference import PosteriorResult
from calmrl_prob.inference.copies import copy_to_fit
from calmrl_prob.posteriors.posterior import Draw
from calmrl_prob.posteriors.predictive import NormalPredictive, Predictive
from tests.cases.held_cases import FITS, RESULTS, data, fit, found_in, model

# what the small fits and few draws of these cases have to say of themselves
pytestmark = [
    pytest.mark.filterwarnings("ignore::calmrl_prob.errors.CalmrlWarning"),
    pytest.mark.filterwarnings("ignore:Shape validation failed"),
]

WAYS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "deepcopy": copy.deepcopy,
}
each_way = pytest.mark.parametrize("way", WAYS)


@cache
def made(name: str) -> tuple[Any, ...]:
    """The things of a case, made once: a result; or a fit with its model, its report and what is asked of it."""
    if name in RESULTS:
        return (RESULTS[name](),)
    result = FITS[name]()
    return result, result.model, result.report, result.posterior(data()), cal.impute(result, data())


def answers(thing: Any) -> list[Tensor]:  # noqa: ANN401
    """Numbers that a thing gives when asked, by attribute and by modality."""
    found: list[Tensor] = []
    for name in ("mean", "covariance", "log_marginal", "variance", "log_likelihood", "hidden_count", "ranks", "values"):
        value = getattr(thing, name, None)
        values = [value[key] for key in value] if isinstance(value, Mapping) else [value]
        found += [torch.as_tensor(np.asarray(v)) for v in values if isinstance(v, Tensor | np.ndarray)]
    if isinstance(thing, torch.nn.Module):
        found += [parameter.detach() for parameter in thing.parameters()]
    if isinstance(thing, PosteriorResult):
        found.append(thing.sample(2, seed=1))
    if isinstance(thing, cal.Imputation):
        found += [end for name in thing.names for end in thing.interval(0.8)[name]]
    return found


@each_way
@pytest.mark.parametrize("name", [*FITS, *RESULTS])
def test_everything_travels_and_answers_as_before(name: str, way: str) -> None:
    with torch.no_grad():
        for thing in made(name):
            there = WAYS[way](thing)
            assert type(there) is type(thing)
            if type(thing).__repr__ is not object.__repr__:
                assert repr(there) == repr(thing)
            for one, other in zip(answers(thing), answers(there), strict=True):
                torch.testing.assert_close(other, one, rtol=0, atol=0, equal_nan=True)


def below(kind: type) -> set[type]:
    """The classes of the library that can be made and are of a kind, whatever is imported."""
    inner = {each for sub in kind.__subclasses__() for each in below(sub)}
    public = kind.__module__.startswith("calmrl_prob.") and not kind.__name__.startswith("_")
    own = {kind} if public and not inspect.isabstract(kind) else set()
    return own | inner


def test_no_public_result_is_left_out() -> None:
    required = below(PosteriorResult) | below(Predictive)
    for name in cal.__all__:
        thing = getattr(cal, name)
        kind = typing.get_type_hints(thing).get("return") if inspect.isfunction(thing) else thing
        if inspect.isclass(kind) and kind.__module__.startswith("calmrl_prob."):
            required.add(kind)
    required = {kind for kind in required if not issubclass(kind, BaseException) and not inspect.isabstract(kind)}
    found: set[type] = set()
    for name in (*FITS, *RESULTS):
        for thing in made(name):
            asked: list[Any] = [thing]
            if isinstance(thing, cal.Imputation):
                asked += [thing.predictive[each] for each in thing.names]
            found |= {type(each) for one in asked for each in found_in(one).values()}
    assert not {f"{kind.__module__}.{kind.__name__}" for kind in required - found}


@each_way
def test_what_an_imputation_hands_out_travels_by_itself(way: str) -> None:
    imputed = made("recalibrated")[0]
    parts: list[Mapping[str, Any]] = [
        imputed.mean,
        imputed.completed,
        imputed.interval(0.5),
        imputed.norm_interval(0.5),
    ]
    for part in parts:
        there = WAYS[way](part)
        assert list(there) == list(part)
        assert there.dims == part.dims  # type: ignore[attr-defined]  # lazy ones have them
        for name in part:
            for one, other in zip(part[name], there[name], strict=True):
                torch.testing.assert_close(other, one, rtol=0, atol=0)


def predicted(result: cal.FitResult, held: cal.MultimodalData) -> cal.Imputation:
    return cal.impute(result, held)


@pytest.mark.slow
def test_fits_go_to_a_process_and_imputations_come_back() -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        there = pool.submit(predicted, fit(), data()).result()
    for name, mean in cal.impute(fit(), data()).mean.items():
        torch.testing.assert_close(there.mean[name], mean)  # threads of another process may add in another order


class TestFrozenMapping:
    def test_it_is_a_mapping_that_nobody_changes(self) -> None:
        frozen = FrozenMapping({"b": 1, "a": 2})
        assert dict(frozen) == {"b": 1, "a": 2} == frozen
        assert list(frozen) == ["b", "a"]
        assert frozen | {"c": 3} == {"b": 1, "a": 2, "c": 3}
        assert {"a": 0, "c": 3} | frozen == {"a": 2, "c": 3, "b": 1}
        with pytest.raises(TypeError):
            frozen["a"] = 3  # type: ignore[index]

    def test_it_keeps_no_hold_of_what_it_was_made_from(self) -> None:
        given = {"a": 1}
        frozen = FrozenMapping(given)
        given["a"] = 2
        assert frozen["a"] == 1

    @each_way
    def test_things_that_were_frozen_stay_so(self, way: str) -> None:
        there = WAYS[way](fit().linear_gaussian())
        assert type(there.loadings) is FrozenMapping
        assert not there.loadings["text"].requires_grad


class TestCopiesToFit:
    def test_refits_of_a_model_with_attachments(self) -> None:
        result = cal.fit(cal.SharedLatentModel(data().dims, 2), data())
        by = cal.recalibrate(result, data(), "cv+", attach=True)
        found = cal.masked_validation(result, data(), folds=2, num_draws=0)
        assert not any(hasattr(each.model, "recalibration") for each in found.models)
        assert result.model.recalibration is by
        cal.choose_shrinkage(result.model, data(), {"pseudo_rows": [0.0, 10.0]}, tolerance=1e-2)
        assert result.model.recalibration is by

    def test_intervals_of_a_choice_stay_with_the_chosen(self) -> None:
        chosen = made("chosen")[0]
        assert chosen.model.intervals is not None
        assert copy_to_fit(chosen).intervals is None
        assert copy.deepcopy(chosen.model).intervals.fits(chosen.model)

    def test_a_function_is_not_copied(self) -> None:
        def program(held: cal.MultimodalData) -> None:
            del held

        program.recalibration = "kept"  # type: ignore[attr-defined]
        assert copy_to_fit(program) is program
        assert program.recalibration == "kept"  # type: ignore[attr-defined]


def test_draws_and_predictives_made_by_hand_travel() -> None:
    draw = Draw(torch.zeros(2, 1), FrozenMapping({"x": torch.ones(2, 1)}), {"x": torch.ones(1)})
    predictive = NormalPredictive(torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1))
    for way in WAYS.values():
        assert way(draw).location["x"].tolist() == [[1.0], [1.0]]
        assert way(predictive).variance.tolist() == [[2.0]]


def test_a_model_that_was_not_fitted_travels() -> None:
    for way in WAYS.values():
        assert way(model()).unfitted
        assert repr(way(model(latent_dim=None))) == repr(model(latent_dim=None))
