"""Whatever a user holds travels: through pickle, deepcopy and to another process, and answers there as it did here."""

from __future__ import annotations

import copy
import importlib
import inspect
import io
import multiprocessing
import pickle
import pkgutil
import re
import typing
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from types import ModuleType
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import torch

import calmrl_prob as cal
from calmrl_prob._support.frozen import FrozenMapping
from calmrl_prob._support.remote import Remote
from calmrl_prob.alignment.expected_scatter import ScatterFactor
from calmrl_prob.evaluation.captions import NgramVectors
from calmrl_prob.inference import Method, PosteriorResult, Route
from calmrl_prob.inference.copies import copy_to_fit
from calmrl_prob.linear_gaussian import SufficientStatistics
from calmrl_prob.linear_gaussian.em.batches import BatchMoves
from calmrl_prob.linear_gaussian.em.convergence import Traced
from calmrl_prob.posteriors.posterior import Draw
from calmrl_prob.posteriors.predictive import NormalPredictive, Predictive
from tests.cases.held_cases import FITS, RESULTS, answers, data, fit, found_in, made, model
from tests.cases.held_parts import PARTS

# what the small fits and few draws of these cases have to say of themselves
pytestmark = [
    pytest.mark.filterwarnings("ignore::calmrl_prob.errors.CalmrlWarning"),
    pytest.mark.filterwarnings("ignore:Shape validation failed"),
]


def through_joblib(thing: Any) -> Any:  # noqa: ANN401
    """As joblib.dump and joblib.load keep it, whose pickler knows arrays better than that of Python."""
    kept = io.BytesIO()
    joblib.dump(thing, kept)
    kept.seek(0)
    return joblib.load(kept)


WAYS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "deepcopy": copy.deepcopy,
    "joblib": through_joblib,
}
each_way = pytest.mark.parametrize("way", WAYS)
CASES = [*FITS, *RESULTS, *PARTS]
#: Where an object lies, in reprs of what has none of its own.
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
#: What annotations name that are imported for type checkers alone.
LATER: dict[str, Any] = {
    "SufficientStatistics": SufficientStatistics,
    "Tensor": torch.Tensor,
    "pd": pd,
    "np": np,
}
#: Nobody holds one: entries of the library's own lists, a step of an algorithm, a base class, a path.
NO_RESULTS: set[type] = {BatchMoves, Method, NgramVectors, Remote, Route, ScatterFactor, Traced}


@each_way
@pytest.mark.parametrize("name", CASES)
def test_everything_travels_and_answers_as_before(name: str, way: str) -> None:
    with torch.no_grad():
        for thing in made(name):
            there = WAYS[way](thing)
            assert type(there) is type(thing)
            assert ADDRESS.sub("", repr(there)) == ADDRESS.sub("", repr(thing))
            for one, other in zip(answers(thing), answers(there), strict=True):
                torch.testing.assert_close(other, one, rtol=0, atol=0, equal_nan=True)


def below(kind: type) -> set[type]:
    """The classes of the library that can be made and are of a kind, whatever is imported."""
    inner = {each for sub in kind.__subclasses__() for each in below(sub)}
    public = kind.__module__.startswith("calmrl_prob.") and not kind.__name__.startswith("_")
    own = {kind} if public and not inspect.isabstract(kind) else set()
    return own | inner


def exported() -> set[type]:
    """The classes that a package of the library names as its own, or that a function so named says it returns.

    Of alignment, which has no such list, all public ones are; of plots, which return axes, none.
    """
    packages = [
        cal,
        *(importlib.import_module(i.name) for i in pkgutil.walk_packages(cal.__path__, "calmrl_prob.") if i.ispkg),
    ]
    named = [
        (package, package.__all__) for package in packages if hasattr(package, "__all__") and package is not cal.plots
    ]
    named += [(module, public(module)) for module in files_of(cal.alignment)]
    found: set[type] = set()
    for module, names in named:
        for thing in (getattr(module, name) for name in names):
            hint = typing.get_type_hints(thing, localns=LATER).get("return") if inspect.isfunction(thing) else thing
            kinds = [typing.get_origin(each) or each for each in (hint, *typing.get_args(hint))]
            found |= {kind for kind in kinds if inspect.isclass(kind)}
    return {kind for kind in found if kind.__module__.startswith("calmrl_prob.")}


def files_of(package: ModuleType) -> list[ModuleType]:
    inside = pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
    return [importlib.import_module(info.name) for info in inside if not info.ispkg]


def public(module: ModuleType) -> list[str]:
    own = [name for name, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__]
    return [name for name in own if not name.startswith("_")]


def test_no_public_result_is_left_out() -> None:
    required = {
        kind
        for kind in exported() | below(PosteriorResult) | below(Predictive) | below(Traced)
        if not (inspect.isabstract(kind) or issubclass(kind, BaseException) or getattr(kind, "_is_protocol", False))
    }
    found: set[type] = set()
    for name in CASES:
        for thing in made(name):
            asked: list[Any] = [thing]
            if isinstance(thing, cal.Imputation):
                asked += [thing.predictive[each] for each in thing.names]
            found |= {type(each) for one in asked for each in found_in(one).values()}
    assert len(required) > 100  # the walk finds what there is
    assert not {f"{kind.__module__}.{kind.__name__}" for kind in required - found - NO_RESULTS}


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


@pytest.mark.parametrize("name", CASES)
def test_no_array_looks_into_a_tensor(name: str) -> None:
    """Torch moves the memory of a tensor that it sends to another process, and an array that looks into it is lost."""
    for thing in made(name):
        held = list(found_in(thing).values())
        tensors = [each.detach().numpy() for each in held if isinstance(each, torch.Tensor) and each.numel()]
        for array in held:
            if isinstance(array, np.ndarray) and array.size:
                assert not any(np.may_share_memory(array, each) for each in tensors), array.shape


def predicted(result: cal.FitResult, held: cal.MultimodalData) -> cal.Imputation:
    return cal.impute(result, held)


def as_it_is(things: tuple[Any, ...]) -> tuple[Any, ...]:
    return things


@pytest.mark.slow
def test_everything_goes_to_another_process_and_comes_back() -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        for name in CASES:
            things = made(name)
            for thing, there in zip(things, pool.submit(as_it_is, things).result(), strict=True):
                assert type(there) is type(thing)
                with torch.no_grad():
                    for one, other in zip(answers(thing), answers(there), strict=True):
                        # what is computed from tensors in shared memory may be rounded otherwise
                        torch.testing.assert_close(other, one, equal_nan=True, msg=f"{name}: {other} and {one}")


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
