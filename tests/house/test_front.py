"""The front of the package: public names, what importing it loads, and old names that work for one release."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import types
from importlib import import_module
from pathlib import Path

import pytest

import calmrl_prob as cal
from calmrl_prob._moved import MODULES, NAMES

# Installed here, or not: what none of the following may load.
HEAVY = {
    *(
        "anndata",
        "arviz",
        "gpytorch",
        "h5py",
        "lightning",
        "linear_operator",
        "matplotlib",
        "mudata",
        "pandas",
        "polars",
    ),
    *("pyarrow", "rich", "safetensors", "scipy", "scoringrules", "sklearn", "xarray", "zarr", "zuko"),
}
FIT = """
data = cal.MultimodalData({"image": torch.randn(60, 4), "text": torch.randn(60, 3)})
model = cal.SharedLatentModel(data.dims, latent_dim=2)
cal.fit(model, data, seed=0)
cal.impute(model, data).interval(0.9)
"""


def loaded(code: str) -> set[str]:
    """Packages that a new process has loaded when it has run this."""
    report = "import json, sys; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_import_loads_neither_torch_nor_anything_heavy() -> None:
    assert not loaded("import calmrl_prob") & {"numpy", "pyro", "torch", *HEAVY}


def test_the_engine_loads_torch_alone() -> None:
    assert not loaded("import calmrl_prob.linear_gaussian") & {"pyro", *HEAVY}


def test_a_fit_and_imputation_load_nothing_heavy() -> None:
    assert not loaded(f"import torch\nimport calmrl_prob as cal\n{FIT}") & HEAVY


def test_rooms_load_nothing_heavy_before_it_is_used() -> None:
    # together: a process each takes seconds
    rooms = ["alignment", "cli.main", "conjugacy", "inference", "posteriors", "priors", "reading.read", "writing.write"]
    assert not loaded("; ".join(f"import calmrl_prob.{room}" for room in rooms)) & HEAVY


def test_plots_load_pandas_alone_before_they_are_used() -> None:
    # it draws tables that pandas holds, which loads pyarrow where it is installed
    assert not loaded("import calmrl_prob.plots") & (HEAVY - {"pandas", "pyarrow"})


def test_what_mypy_sees_is_what_is_loaded() -> None:
    tree = ast.parse(Path(cal.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and "not" not in ast.unparse(node.test))
    seen = {
        alias.name: statement.module.partition(".")[2]
        for statement in block.body
        if isinstance(statement, ast.ImportFrom) and statement.module
        for alias in statement.names
    }
    assert {name: home for name, home in seen.items() if home} == dict(cal._HOMES)
    assert {*seen, "__version__"} == set(cal.__all__)
    assert len(cal.__all__) <= 39  # the last is classify: a question of its own, whose probabilities nothing else gives


def test_every_public_name_is_there_without_a_warning() -> None:
    assert set(cal.__all__) <= set(dir(cal))
    for name in cal.__all__:
        assert getattr(cal, name) is not None
    assert isinstance(cal.missingness, types.ModuleType)
    assert isinstance(cal.priors, types.ModuleType)
    with pytest.raises(AttributeError, match="has no attribute 'imputate'"):
        _ = cal.imputate


@pytest.mark.parametrize("module", NAMES)
def test_names_that_left_a_module_say_where_they_are(module: str) -> None:
    old = f"calmrl_prob.{module}".rstrip(".")
    for name, home in NAMES[module].items():
        with pytest.warns(DeprecationWarning, match=rf"{name} is now calmrl_prob\.{home}\.{name};") as caught:
            found = getattr(import_module(old), name)
        assert found is getattr(import_module(f"calmrl_prob.{home}"), name)
        assert caught[0].filename == __file__


@pytest.mark.parametrize("old", MODULES)
def test_old_modules_say_where_they_are(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    new = import_module(f"calmrl_prob.{MODULES[old]}")
    name = f"calmrl_prob.{old}"
    if is_package(old):  # a package of that name stands there: it finds what was in the module
        package = import_module(name)
        left = {key for key, value in vars(new).items() if getattr(value, "__module__", None) == new.__name__}
        left -= {key for key in left if key.startswith("_")} | set(vars(package))
        for key in left:
            with pytest.warns(DeprecationWarning, match=rf"{key} is now {new.__name__}\.{key};"):
                assert getattr(package, key) is getattr(new, key)
        return
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.warns(DeprecationWarning, match=rf"{name} is now {new.__name__};") as caught:
        assert import_module(name) is new
    assert caught[0].filename == __file__
    assert new.__name__ == new.__spec__.name == f"calmrl_prob.{MODULES[old]}"


def is_package(old: str) -> bool:
    return Path(cal.__file__).parent.joinpath(*old.split("."), "__init__.py").is_file()


@pytest.mark.parametrize(
    "function", ["evaluation.masked_validation", "linear_gaussian.mixture_posterior", "linear_gaussian.scale_posterior"]
)
def test_an_old_module_does_not_hide_the_function_of_its_name(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package, _, name = f"calmrl_prob.{function}".rpartition(".")
    before = getattr(import_module(package), name)
    monkeypatch.delitem(sys.modules, f"{package}.{name}", raising=False)
    with pytest.warns(DeprecationWarning, match="is now"):
        import_module(f"{package}.{name}")
    assert getattr(import_module(package), name) is before
    assert isinstance(before, types.FunctionType)


def test_linear_gaussian_is_the_engine_and_may_be_called_for_one_release() -> None:
    import calmrl_prob.linear_gaussian as lg

    assert isinstance(lg, types.ModuleType)
    assert lg is cal.linear_gaussian
    data = cal.datasets.make_synthetic(20, {"image": 3, "text": 2}, latent_dim=2, seed=0).data
    model = cal.SharedLatentModel(data.dims, latent_dim=2)
    with pytest.warns(DeprecationWarning, match=r"is now calmrl_prob\.discover\(model, data\)\.linear_gaussian\(\)"):
        old = cal.linear_gaussian(model, data)
    new = cal.discover(model, data).linear_gaussian()
    assert all(new.loadings[name].equal(old.loadings[name]) for name in data.names)


def test_misspelt_names_in_packages_are_refused() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'fit_emm'"):
        _ = import_module("calmrl_prob.linear_gaussian.em").fit_emm
    with pytest.raises(ImportError):
        import_module("calmrl_prob.tracings")
