"""Fits, recalibrations and draws come back from files with all that is asked of them, and bring no code."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from safetensors import safe_open
from torch import Tensor, nn

import calmrl_prob as cal
from calmrl_prob._support.archives import ModelToLoadError
from calmrl_prob.data.features import NamedDims
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, ModelError, ReliabilityWarning
from models.gaussian_process import GaussianProcessModel
from tests.cases.held_cases import FITS, GIVEN, answers, asked, data, fit, made, model, own_loadings, own_parameters

# what the small fits and few draws of these cases have to say of themselves
pytestmark = [
    pytest.mark.filterwarnings("ignore::calmrl_prob.errors.CalmrlWarning"),
    pytest.mark.filterwarnings("ignore:Shape validation failed"),
]

METHODS = ("scale", "conformal", "cv", "cv+")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fit.safetensors"


def there_and_back(thing: Any, path: Path, given: object = None) -> Any:  # noqa: ANN401
    cal.save(thing, path)
    return cal.load(path, model=given)


def content(path: Path) -> dict[str, str]:
    """The description, and the checksum of it and of all numbers; the order of a header is by chance."""
    with safe_open(path, framework="pt") as archive:
        found: dict[str, str] = archive.metadata()
        return found


def require_same(one: object, other: object) -> None:
    """The same bits, whatever is asked."""
    with torch.no_grad():
        for expected, found in zip(answers(one), answers(other), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def observe(z: Tensor, held: cal.MultimodalData, scale: Tensor) -> None:
    for name in held.names:
        features = dist.Normal(z.expand(-1, held.dims[name]), scale).to_event(1)
        pyro.sample(name, features.mask(held.observed(name)), obs=held.filled(name))


@pytest.mark.parametrize("name", FITS)
def test_every_fit_answers_as_before(name: str, path: Path) -> None:
    fitted, _, report, given, imputed = made(name)
    model_given = GIVEN.get(name, lambda: None)()
    loaded = there_and_back(fitted, path, model_given)
    assert repr(loaded) == repr(fitted)
    assert type(loaded.model) is type(fitted.model)
    assert repr(loaded.report) == repr(report) or type(report).__repr__ is object.__repr__
    require_same(fitted, loaded)
    require_same(given, loaded.posterior(asked()))
    require_same(given, cal.posterior(loaded, asked()))
    require_same(imputed, cal.impute(loaded, asked()))
    require_same(cal.retrieve(fitted, asked(), asked()), cal.retrieve(loaded, asked(), asked()))
    # nothing was lost on the way: what was loaded is written as the first was
    again = path.with_name("again.safetensors")
    cal.save(loaded, again)
    assert content(again) == content(path)
    cal.save(there_and_back(fitted, path, model_given), again)  # nor where it was never asked anything
    assert content(again) == content(path)


def test_a_chosen_fit_keeps_its_choice_and_intervals(path: Path) -> None:
    fitted = made("chosen")[0]
    loaded = there_and_back(fitted, path)
    pd.testing.assert_frame_equal(loaded.choice.table, fitted.choice.table)
    assert loaded.choice.setting == fitted.choice.setting
    assert repr(loaded.intervals) == repr(fitted.intervals)
    assert loaded.intervals is loaded.model.intervals
    assert loaded.model.requested == fitted.model.requested == (None, None)


def test_names_of_features_are_kept(path: Path) -> None:
    frames = {name: pd.DataFrame(data()[name].numpy()).add_prefix(f"{name}_") for name in ("image", "text")}
    held = cal.MultimodalData(frames, observed_mask=data().observed_mask[:, :2] | ~data().observed_mask[:, 2:])
    held = held.subset(held.observed_mask.any(1))
    for program in (None, own_loadings):
        fitted = cal.fit(program or cal.SharedLatentModel(held.dims, 1), held)
        loaded = there_and_back(fitted, path, program)
        turned = cal.MultimodalData({**frames, "image": frames["image"].iloc[:, ::-1]})
        for one in (loaded, loaded.model):
            torch.testing.assert_close(one.posterior(turned).mean if one is loaded else cal.posterior(one, turned).mean,
                                       fitted.posterior(turned).mean, rtol=0, atol=0)  # fmt: skip
    module = GaussianProcessModel(NamedDims(data().dims, {"image": ("r", "g", "b", "a")}), 2)
    module.dims = NamedDims(data().dims, {"image": ("r", "g", "b", "a")})
    fitted = dataclasses.replace(made("gaussian process")[0], model=module)
    loaded = there_and_back(fitted, path, GaussianProcessModel(data().dims, 2))
    assert loaded.model.dims.feature_names["image"] == ("r", "g", "b", "a")


class TestRowsOfTheFit:
    @pytest.mark.parametrize("what", ["fit", "model"])
    def test_they_are_recognised(self, what: str, path: Path) -> None:
        loaded = there_and_back(fit() if what == "fit" else fit().model, path)
        for call in (cal.masked_validation, cal.recalibrate):
            with pytest.warns(ReliabilityWarning, match="100% of these 60 instances are among those"):
                call(loaded, data())

    @pytest.mark.filterwarnings("error")
    def test_others_are_not(self, path: Path) -> None:
        loaded = there_and_back(fit(), path)
        complete = loaded.model.linear_gaussian().sample(80, torch.Generator().manual_seed(1)).features
        assert cal.masked_validation(loaded, cal.MultimodalData(complete), num_draws=0).num_instances == 80

    def test_of_a_pyro_model_too(self, path: Path) -> None:
        loaded = there_and_back(made("gradient")[0], path, own_parameters)
        for one in (loaded, loaded.model):
            assert one.rows_of_fit.share(data()) == 1.0


class TestRecalibrations:
    @pytest.mark.parametrize("method", METHODS)
    def test_they_recalibrate_as_before(self, method: Any, path: Path) -> None:  # noqa: ANN401
        found = cal.recalibrate(fit(), data(), method)
        loaded = there_and_back(found, path)
        assert repr(loaded) == repr(found)
        assert loaded.guarantee == found.guarantee
        pd.testing.assert_frame_equal(loaded.table(), found.table())
        before, after = (cal.impute(fit(), data(), recalibrated=by) for by in (found, loaded))
        require_same(before, after)
        if method != "scale":
            for name, ends in before.norm_interval(0.8).items():
                for one, other in zip(ends, after.norm_interval(0.8)[name], strict=True):
                    torch.testing.assert_close(other, one, rtol=0, atol=0)

    @pytest.mark.parametrize("method", METHODS)
    def test_they_know_their_model(self, method: Any, path: Path) -> None:  # noqa: ANN401
        loaded = there_and_back(cal.recalibrate(fit(), data(), method), path)
        mine = there_and_back(fit(), path)
        assert cal.impute(mine, data(), recalibrated=loaded).recalibrated is loaded
        other = cal.fit(model(), data().subset(slice(0, 50)))
        with pytest.raises(ArgumentError, match="made for other parameters"):
            cal.impute(other, data(), recalibrated=loaded)

    def test_of_a_pyro_model_with_its_folds(self, path: Path) -> None:
        fitted = made("gradient")[0]
        found = cal.recalibrate(fitted, data(), "cv+", folds=2)
        loaded = there_and_back(found, path, own_parameters)
        require_same(*(cal.impute(fitted, data(), recalibrated=by) for by in (found, loaded)))

    @pytest.mark.parametrize("what", ["fit", "model"])
    def test_attached_ones_go_with_the_model(self, what: str, path: Path) -> None:
        fitted = cal.fit(model(), data())
        found = cal.recalibrate(fitted, data(), "cv+", folds=2, attach=True)
        loaded = there_and_back(fitted if what == "fit" else fitted.model, path)
        require_same(cal.impute(fitted, data(), recalibrated=found), cal.impute(loaded, data(), recalibrated=True))
        with torch.no_grad():
            next(fitted.model.parameters()).mul_(1.5)  # the attached is of other parameters now, and stays so
        loaded = there_and_back(fitted.model, path)
        with pytest.raises(ArgumentError, match="made for other parameters"):
            cal.impute(loaded, data(), recalibrated=True)


def test_draws_about_a_fit_come_back(path: Path) -> None:
    draws = made("parameter draws")[0]
    loaded = there_and_back(draws, path)
    assert repr(loaded) == repr(draws)
    require_same(cal.posterior(draws, data()), cal.posterior(loaded, data()))


class Wide(nn.Module):
    """A decoder that a Pyro function closes over."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.linear = nn.Linear(2, width).double()

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.linear(z)
        return out


def program_of(decoder: nn.Module) -> Callable[[cal.MultimodalData], None]:
    def decoded(held: cal.MultimodalData) -> None:
        pyro.module("decoder", decoder)
        scale = pyro.param("scale", torch.tensor(1.0).double(), constraint=constraints.positive)
        with pyro.plate("instances", len(held)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            features = dist.Normal(decoder(z), scale).to_event(1)
            pyro.sample("image", features.mask(held.observed("image")), obs=held.filled("image"))

    return decoded


def scaled(held: cal.MultimodalData) -> None:
    scale = pyro.param("scale", torch.tensor(1.0).double(), constraint=constraints.positive)
    with pyro.plate("instances", len(held)):
        observe(pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1)), held, scale)


class TestModelsOfUsers:
    def test_modules_that_a_function_closes_over_get_their_parameters(self, path: Path) -> None:
        held = data().subset(data().rows_with("image")).select(["image"])
        fitted = cal.fit(program_of(Wide()), held, tolerance=1e-2)
        loaded = there_and_back(fitted, path, program_of(Wide()))
        require_same(fitted.posterior(held), loaded.posterior(held))
        again = path.with_name("again.safetensors")
        cal.save(loaded, again)
        assert content(again) == content(path)
        with pytest.raises(ModelError, match=r"saved with shape \(4, 2\), and the model given has \(5, 2\)"):
            cal.load(path, model=program_of(Wide(5))).posterior(held)

    def test_a_local_function_has_to_be_handed_over(self, path: Path) -> None:
        fitted = made("gradient")[0]
        anonymous = dataclasses.replace(fitted, model=type(fitted.model)(lambda held: own_parameters(held)))
        for thing, given, message in (
            (
                fitted,
                own_parameters,
                r"function 'own_parameters', from tests\.cases\.held_cases: pass it, as .*nothing is",
            ),
            (
                anonymous,
                anonymous.model.model,
                r"<lambda>', which has no name to import it by: pass the function itself",
            ),
        ):
            cal.save(thing, path)
            with pytest.raises(ModelToLoadError, match=message):
                cal.load(path)
            assert cal.load(path, model=given).model.model is given

    @pytest.mark.parametrize("given", [own_loadings, Wide(), GaussianProcessModel, "own_parameters", 3])
    def test_another_model_is_refused(self, given: object, path: Path) -> None:
        cal.save(made("gradient")[0], path)
        with pytest.raises(ModelToLoadError, match=r"function 'own_parameters'.*; got .*( called '|class .* itself)"):
            cal.load(path, model=given)
        assert issubclass(ModelToLoadError, ArgumentError)

    def test_a_module_of_other_settings_is_refused_and_the_one_given_stays(self, path: Path) -> None:
        cal.save(made("gaussian process")[0], path)
        given = GaussianProcessModel(data().dims, 2, seed=5)
        before = {name: value.clone() for name, value in given.state_dict().items()}
        loaded = cal.load(path, model=given)
        assert loaded.model is not given
        for name, value in given.state_dict().items():
            assert torch.equal(value, before[name])
        with pytest.raises(ModelToLoadError, match=r"GaussianProcessModel.*those of the one given are others"):
            cal.load(path, model=GaussianProcessModel(data().dims, 3))
        with pytest.raises(
            ModelToLoadError,
            match=r"model=GaussianProcessModel\(\.\.\.\)\); got the class .* itself\.",
        ):
            cal.load(path, model=GaussianProcessModel)

    def test_a_function_of_the_same_name_with_other_sites(self, path: Path) -> None:
        def decoy(held: cal.MultimodalData) -> None:
            with pyro.plate("instances", len(held)):
                z = pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
                observe(z, held, torch.tensor(1.0).double())

        for name, site in (("map", "w_audio"), ("gradient", "shift")):
            cal.save(made(name)[0], path)
            decoy.__qualname__ = f"elsewhere.<locals>.{GIVEN[name]().__qualname__}"
            loaded = cal.load(path, model=decoy)
            with pytest.raises(ModelError, match=f"'{site}': the file has a value for it, but the model given neither"):
                loaded.posterior(data())

    def test_a_function_with_another_constraint(self, path: Path) -> None:
        cal.save(cal.fit(scaled, data(), tolerance=1e-2), path)
        require_same(cal.load(path, model=scaled).posterior(data()), cal.load(path, model=scaled).posterior(data()))

        def narrow(held: cal.MultimodalData) -> None:
            scale = pyro.param("scale", torch.tensor(0.5).double(), constraint=constraints.unit_interval)
            with pyro.plate("instances", len(held)):
                observe(pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1)), held, scale)

        narrow.__qualname__ = "scaled"
        with pytest.raises(ModelError, match=r"saved with the constraint GreaterThan.*Interval"):
            cal.load(path, model=narrow).posterior(data())

    def test_nothing_is_imported(self, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = "def own(held):\n    from tests.cases.held_cases import own_parameters\n    own_parameters(held)\n"
        (tmp_path / "module_of_a_user.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        own = importlib.import_module("module_of_a_user").own
        fitted = cal.fit(own, data(), tolerance=1e-2)
        cal.save(fitted, path)
        del sys.modules["module_of_a_user"]
        with pytest.raises(ModelToLoadError, match="from module_of_a_user: pass it"):
            cal.load(path)
        assert "module_of_a_user" not in sys.modules
        assert b"own_parameters" not in path.read_bytes()  # of what the function does


class TestWhatIsNotKept:
    @pytest.mark.parametrize("option", [lambda held: held, {1, 2}, torch.nn.Linear(1, 1), complex(1, 2)])
    def test_options_of_other_kinds(self, option: object, path: Path) -> None:
        changed = dataclasses.replace(fit(), options={"refit": {"by": option}})
        with pytest.raises(
            ArgumentTypeError, match=r"FitResult/options/refit/by is .*which no file keeps; leave it out"
        ):
            cal.save(changed, path)
        assert not path.exists()

    def test_what_holds_itself(self, path: Path) -> None:
        options: dict[str, Any] = {}
        changed = dataclasses.replace(fit(), options=options)
        options["before"] = changed
        with pytest.raises(ArgumentTypeError, match="holds itself"):
            cal.save(changed, path)

    def test_options_of_many_kinds_are(self, path: Path) -> None:
        options = {
            "none": None,
            "numbers": (1, 2.5, float("nan"), float("-inf"), True),
            "cut": slice(None, 3),
            "names": ["a", {"b": {3: "c"}}],
            "start": fit().linear_gaussian(),
            "tensor": torch.tensor([1.0, torch.nan], dtype=torch.float32),
        }
        loaded = there_and_back(dataclasses.replace(fit(), options=options), path).options
        assert repr(loaded) == repr(options)
        assert loaded["tensor"].dtype == torch.float32
