"""Who may import whom: the one table of it, which test_repository.py holds and docs/make_floors.py draws."""

from __future__ import annotations

from pathlib import Path

from tests.house.imports import ROOT, imports, is_package, module_name

#: The rooms of the repository, and which of the others a room may import. Tests may import all.
ROOMS = {
    "calmrl_prob": "",
    "models": "calmrl_prob",
    "analysis": "calmrl_prob",
    "experiments": "calmrl_prob models analysis",
    "benchmarks": "calmrl_prob models",
}

#: The floors of calmrl_prob, from the ground up: of each its packages (a file beside them counts as one), and what
#: these may import besides themselves, always from floors below, so that no two packages of a floor know each other.
#: Lazy imports and those for annotations count. On the left the narrowest name has a file: ``a/*`` has the files of a
#: folder but its ``__init__`` and inner folders, ``a`` what no other row has of it. On the right ``a`` is all of it.
#: ``calmrl_prob/__init__.py`` stands above all floors, and hands on what users call.
# fmt: off
FLOORS: dict[str, dict[str, str]] = {
    "errors and old names": {
        "_moved":                        "",
        "errors":                        "",
        "_support/frozen":               "",
    },
    "what fits in memory": {
        "_support/sizes":                "errors",
    },
    "the engine: one model": {
        "_support":                      "errors _support/sizes",
        "linear_gaussian/*":             "errors _support/frozen _support/sizes",
    },
    "the engine: EM": {
        "linear_gaussian/em":            "_moved errors linear_gaussian/*",
    },
    "the engine: families": {
        "linear_gaussian/curvature":     "errors linear_gaussian/* linear_gaussian/em",
        "linear_gaussian/mixture":       "_moved errors _support/frozen linear_gaussian/* linear_gaussian/em",
        "linear_gaussian/scale_mixture": "_moved errors _support/frozen linear_gaussian/* linear_gaussian/em",
        "linear_gaussian/process":       "_moved errors linear_gaussian/* linear_gaussian/em",
    },
    "the engine: what it offers": {
        "linear_gaussian":               "_moved linear_gaussian/* linear_gaussian/em linear_gaussian/curvature "
                                         "linear_gaussian/mixture linear_gaussian/scale_mixture",
    },
    "data and representations": {
        "data":                          "_moved errors _support linear_gaussian",
        "alignment":                     "errors _support linear_gaussian",
        "encoders":                      "_moved errors _support linear_gaussian",
        "decoders":                      "errors _support",
        "noise_parameters":              "errors linear_gaussian",
        "arviz/adapter":                 "errors",
    },
    "parts of models": {
        "programs":                      "errors _support data",
        "priors":                        "errors _support linear_gaussian data",
        "io":                            "_moved errors _support data",
        "batch_effects":                 "errors _support linear_gaussian data noise_parameters",
    },
    "models and their closed forms": {
        "reading":                       "errors _support data io",
        "conjugacy":                     "errors _support linear_gaussian data programs",
        "file_contents":                 "errors _support linear_gaussian noise_parameters priors batch_effects",
        "model":                         "errors _support linear_gaussian data noise_parameters priors batch_effects",
        "datasets":                      "errors _support linear_gaussian data encoders io",
    },
    "results": {
        "posteriors":                    "errors _support linear_gaussian data programs conjugacy",
        "inference/optimisers":          "errors _support linear_gaussian arviz/adapter",
    },
    "routes for any model": {
        "inference/approximate":         "errors _support linear_gaussian data programs conjugacy posteriors "
                                         "inference/optimisers",
    },
    "fit and posterior": {
        "inference":                     "_moved errors _support linear_gaussian arviz/adapter data programs priors "
                                         "batch_effects "
                                         "conjugacy posteriors inference/optimisers inference/approximate",
    },
    "what is asked of a fit": {
        "imputation":                    "errors _support data alignment posteriors inference",
        "selection":                     "errors _support linear_gaussian data priors batch_effects model posteriors "
                                         "inference",
        "guide":                         "errors _support linear_gaussian data programs conjugacy model posteriors "
                                         "inference",
        "arviz":                         "errors _support linear_gaussian arviz/adapter data programs posteriors "
                                         "inference",
    },
    "what it is worth": {
        "writing":                       "errors _support linear_gaussian data io posteriors inference imputation",
        "evaluation":                    "_moved errors _support linear_gaussian data batch_effects posteriors "
                                         "inference imputation",
    },
    "on top": {
        "plots":                         "errors _support data alignment posteriors inference selection evaluation",
        "recalibration":                 "_moved errors _support data posteriors inference evaluation",
        "classification":                "errors _support linear_gaussian data programs batch_effects model posteriors "
                                         "inference selection evaluation",
        "sklearn":                       "errors _support linear_gaussian data model posteriors inference imputation "
                                         "selection",
        "training":                      "errors _support linear_gaussian data alignment encoders evaluation",
        "index":                         "errors _support linear_gaussian data file_contents posteriors inference "
                                         "evaluation",
    },
    "what files keep": {
        "files":                         "errors _support linear_gaussian data priors programs batch_effects "
                                         "file_contents model "
                                         "inference selection recalibration classification",
    },
    "kept in files": {
        "report":                        "errors _support data posteriors inference selection evaluation plots",
        "serialization":                 "errors _support linear_gaussian data programs file_contents model "
                                         "inference recalibration classification training files index",
    },
    "the command line": {
        "cli":                           "errors _support data reading inference plots report",
    },
}
# fmt: on

#: The floors row by row: for each package the names of what it may import.
MAY_IMPORT = {package: allowed.split() for floor in FLOORS.values() for package, allowed in floor.items()}


def covers(name: str, module: str) -> bool:
    """Whether a name of the table stands for a module of the library."""
    path = module.removeprefix("calmrl_prob.").replace(".", "/")
    if name.endswith("/*"):
        return path.rpartition("/")[0] == name[:-2] and not is_package(module)
    return path == name or path.startswith(f"{name}/")


def package_of(module: str) -> str | None:
    """The package of a module of the library: the narrowest row that stands for it; None where no row does."""
    return max((package for package in MAY_IMPORT if covers(package, module)), key=len, default=None)


def library_imports(path: Path) -> set[str]:
    """The modules of the library that one of its files imports, in whatever way."""
    return {name for name in imports(path, for_annotations=True) if name.startswith("calmrl_prob.")}


def arrows() -> set[tuple[str, str]]:
    """Which package imports which, as the files are."""
    pairs = {
        (package_of(module_name(path)), package_of(module))
        for path in (ROOT / "calmrl_prob").rglob("*.py")
        for module in library_imports(path)
    }
    return {(start, end) for start, end in pairs if start and end and start != end}
