"""Old places of modules and names: they work for one release, and a DeprecationWarning says where each is now.

``MODULES``, ``NAMES`` and the calls of ``old_names`` go with the next release, and this file with them.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import MappingProxyType, ModuleType
from typing import Any

_ROOT = __name__.partition(".")[0]
#: Modules, old: new, without the name of the package. Where the old name is a package now, its ``__init__`` calls
#: :func:`old_names`; all others are found by the finder below.
MODULES = MappingProxyType(
    {
        "alignment.certificate_calibration": "alignment.certificate_correction",
        "arviz_adapter": "arviz.adapter",
        "arviz_draws": "arviz.draws",
        "arviz_files": "arviz.files",
        "convolutional": "encoders.convolutional",
        "data": "data.multimodal",
        "diagnostics": "arviz.export",
        "encoders": "encoders.dense",
        "evaluation.calibration": "evaluation.imputation.coverage",
        "evaluation.exact_forms": "evaluation.retrieval.exact_forms",
        "evaluation.held_out": "evaluation.imputation.held_out",
        "evaluation.imputation": "evaluation.imputation.imputation",
        "evaluation.latent_rows": "evaluation.retrieval.latent_rows",
        "evaluation.masked_validation": "evaluation.imputation.masked_validation",
        "evaluation.masking": "evaluation.imputation.masking",
        "evaluation.pairs": "evaluation.retrieval.pairs",
        "evaluation.ranking": "evaluation.retrieval.ranking",
        "evaluation.representations": "evaluation.retrieval.representations",
        "evaluation.retrieval": "evaluation.retrieval.retrieval",
        "evaluation.sampled_pairs": "evaluation.retrieval.sampled_pairs",
        "evaluation.scores": "evaluation.retrieval.scores",
        "evaluation.sides": "evaluation.retrieval.instance_sets",
        "evaluation.uncertainty": "evaluation.imputation.uncertainty",
        "inference.ascent": "inference.optimisers.ascent",
        "inference.chains": "inference.optimisers.chains",
        "inference.choose": "selection.latent_dim",
        "inference.collapsed": "inference.parameters.collapsed",
        "inference.collapsed_map": "inference.parameters.map",
        "inference.collapsed_nuts": "inference.parameters.nuts",
        "inference.collapsed_svi": "inference.parameters.svi",
        "inference.discovered": "inference.exact.discovered",
        "inference.draws_predictive": "posteriors.draws_predictive",
        "inference.em": "inference.exact.em",
        "inference.evidence": "inference.exact.evidence",
        "inference.exact": "posteriors.gaussian",
        "inference.gaussian_process": "inference.exact.process",
        "inference.gaussian_process_fit": "inference.exact.process_fit",
        "inference.gaussian_process_start": "inference.exact.process_start",
        "inference.gradient": "inference.exact.gradient",
        "inference.guides": "inference.approximate.guides",
        "inference.importance": "posteriors.importance",
        "inference.instances": "posteriors.instances",
        "inference.linearize": "inference.approximate.linearize",
        "inference.mixture": "posteriors.mixture",
        "inference.mixture_fit": "inference.exact.mixture",
        "inference.nuts": "inference.approximate.nuts",
        "inference.parameter_draws": "inference.parameters.parameter_draws",
        "inference.places": "inference.exact.process_places",
        "inference.predictive": "posteriors.predictive",
        "inference.prior_draws": "inference.parameters.prior_draws",
        "inference.progress": "_support.progress",
        "inference.rescaled": "posteriors.rescaled",
        "inference.results": "posteriors.posterior",
        "inference.sampled": "posteriors.sampled",
        "inference.scale_fit": "inference.exact.scale_mixture_fit",
        "inference.scale_mixture": "inference.exact.scale_mixture",
        "inference.scale_predictive": "posteriors.scale_mixture",
        "inference.starts": "inference.parameters.starts",
        "inference.structured": "posteriors.structured",
        "inference.student_t": "posteriors.student_t",
        "inference.svi": "inference.approximate.svi",
        "inference.unbounded": "inference.parameters.unbounded",
        "inference.uncertainty": "inference.parameters.about_a_fit",
        "inference.variational": "inference.approximate.variational",
        "linear_gaussian.acceleration": "linear_gaussian.em.acceleration",
        "linear_gaussian.convergence": "linear_gaussian.em.convergence",
        "linear_gaussian.cost": "linear_gaussian.em.cost",
        "linear_gaussian.degrees_of_freedom": "linear_gaussian.scale_mixture.degrees_of_freedom",
        "linear_gaussian.em": "linear_gaussian.em.em",
        "linear_gaussian.evidence": "linear_gaussian.curvature.evidence",
        "linear_gaussian.expectation": "linear_gaussian.em.expectation",
        "linear_gaussian.forms": "linear_gaussian.em.forms",
        "linear_gaussian.information": "linear_gaussian.curvature.information",
        "linear_gaussian.laplace": "linear_gaussian.curvature.laplace",
        "linear_gaussian.latent_likelihood": "linear_gaussian.process.latent_likelihood",
        "linear_gaussian.maximization": "linear_gaussian.em.maximization",
        "linear_gaussian.mixture": "linear_gaussian.mixture.model",
        "linear_gaussian.mixture_em": "linear_gaussian.mixture.em",
        "linear_gaussian.mixture_expectation": "linear_gaussian.mixture.expectation",
        "linear_gaussian.mixture_maximization": "linear_gaussian.mixture.maximization",
        "linear_gaussian.mixture_posterior": "linear_gaussian.mixture.posterior",
        "linear_gaussian.parameters": "linear_gaussian.em.parameters",
        "linear_gaussian.penalties": "linear_gaussian.em.penalties",
        "linear_gaussian.pivoted_cholesky": "linear_gaussian.process.pivoted_cholesky",
        "linear_gaussian.preparation": "linear_gaussian.em.preparation",
        "linear_gaussian.process": "linear_gaussian.process.posterior",
        "linear_gaussian.process_em": "linear_gaussian.process.expectation",
        "linear_gaussian.pseudo_rows": "linear_gaussian.em.pseudo_rows",
        "linear_gaussian.rotation": "linear_gaussian.em.rotation",
        "linear_gaussian.rowwise": "linear_gaussian.em.rowwise",
        "linear_gaussian.scale_draws": "linear_gaussian.scale_mixture.draws",
        "linear_gaussian.scale_em": "linear_gaussian.scale_mixture.em",
        "linear_gaussian.scale_expectation": "linear_gaussian.scale_mixture.expectation",
        "linear_gaussian.scale_factors": "linear_gaussian.scale_mixture.factors",
        "linear_gaussian.scale_mixture": "linear_gaussian.scale_mixture.model",
        "linear_gaussian.scale_posterior": "linear_gaussian.scale_mixture.posterior",
        "linear_gaussian.scale_quadrature": "linear_gaussian.scale_mixture.quadrature",
        "linear_gaussian.scale_updates": "linear_gaussian.scale_mixture.updates",
        "linear_gaussian.spectral": "linear_gaussian.em.spectral",
        "linear_gaussian.statistics": "linear_gaussian.em.statistics",
        "linear_gaussian.student_t": "linear_gaussian.scale_mixture.shared_scale",
        "linear_gaussian.student_t_em": "linear_gaussian.scale_mixture.shared_scale_em",
        "linear_gaussian.student_t_expectation": "linear_gaussian.scale_mixture.shared_scale_expectation",
        "linear_gaussian.support": "linear_gaussian.em.support",
        "missingness": "data.missingness",
        "process_decoder": "decoders",
        "recalibration.shrinkage": "selection.shrinkage",
        "sites": "programs.sites",
        "tracing": "programs.bound",
    }
)
#: Names that left a module which still stands: module: {name: new module}.
NAMES = MappingProxyType(
    {
        "": {
            "ConjugateForm": "conjugacy",
            "ConjugateGuide": "guide",
            "LatentDimChoice": "selection.latent_dim",
            "MaskedValidation": "evaluation",
            "Recalibration": "recalibration",
            "ShrinkageChoice": "selection.shrinkage",
            "SufficientStatistics": "linear_gaussian",
            "cross_modal_recall": "evaluation",
        },
        "io": {
            "file_path": "_support.files",
            "write_atomically": "_support.files",
        },
        "recalibration": {
            "ShrinkageChoice": "selection.shrinkage",
            "choose_shrinkage": "selection.shrinkage",
        },
    }
)


def old_names(module: str) -> Callable[[str], Any]:
    """A module's ``__getattr__`` that finds what used to be in it, and warns where it is now.

    Example:
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     _ = old_names("calmrl_prob")("cross_modal_recall")
        >>> str(caught[0].message).partition(";")[0]
        'calmrl_prob.cross_modal_recall is now calmrl_prob.evaluation.cross_modal_recall'
    """
    place = module.partition(".")[2]

    def find(name: str) -> Any:  # noqa: ANN401 - it may be anything
        new = NAMES.get(place, {}).get(name)
        # What is a module of the package itself is left to the import system, which asks here first.
        if new is None and not name.startswith("_") and place in MODULES and find_spec(f"{module}.{name}") is None:
            new = MODULES[place]
        if new is None or not hasattr(import_module(f"{_ROOT}.{new}"), name):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        _warn(f"{module}.{name}", f"{_ROOT}.{new}.{name}")
        return getattr(import_module(f"{_ROOT}.{new}"), name)

    return find


class KeepsItsFunctions(ModuleType):
    """A package whose functions are not hidden by an old module of the same name, as importing that would do."""

    def __setattr__(self, name: str, value: object) -> None:
        """Set what is no module in the place of a function."""
        if not (isinstance(value, ModuleType) and callable(vars(self).get(name))):
            super().__setattr__(name, value)


class CalledAsFunction(KeepsItsFunctions):
    """The package ``calmrl_prob.linear_gaussian``, which hides the function that ``cal.linear_gaussian`` used to be."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - as the function takes them
        """As :func:`calmrl_prob.conjugacy.linear_gaussian`."""
        _warn(f"{_ROOT}.linear_gaussian(model, data)", f"{_ROOT}.discover(model, data).linear_gaussian()")
        return import_module(f"{_ROOT}.conjugacy").linear_gaussian(*arguments, **options)


class _OldModule(Loader):
    """Puts the module of the new name in the place of the old one."""

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        parent, new = sys.modules[old.rpartition(".")[0]], f"{_ROOT}.{MODULES[old.partition('.')[2]]}"
        _warn(old, new)
        if type(parent) is ModuleType:
            parent.__class__ = KeepsItsFunctions
        sys.modules[old] = import_module(new)


class _OldModules(MetaPathFinder):
    """Finds the old modules whose names no file has any more."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        root, _, inner = fullname.partition(".")
        return ModuleSpec(fullname, _OldModule()) if root == _ROOT and inner in MODULES else None


def _warn(old: str, new: str) -> None:
    """Warn at the line outside of this package that used the old name."""
    frame = sys._getframe(1)
    inside = (_ROOT, "importlib", "_frozen_importlib")
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in inside:
        frame = frame.f_back
    warnings.warn_explicit(
        f"{old} is now {new}; the old name goes with the next release.",
        DeprecationWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=str(frame.f_globals.get("__name__")),
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )


sys.meta_path.append(_OldModules())  # last: whatever has a file of its own is found before
