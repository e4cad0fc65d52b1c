"""calmrl_prob: exact probabilistic calibration of multimodal representations with missing modalities.

    import calmrl_prob as cal

    data = cal.MultimodalData({"image": X1, "text": X2})        # a NaN row is a missing modality
    model = cal.SharedLatentModel(data.dims)
    fit = cal.fit(model, data)                                  # chooses K, noise and prior: fit.choice
    imputed = cal.impute(fit, data)                             # mean, variance in parts, intervals, draws

The model and its closed forms: Liu et al., Calibrated Multimodal Representation Learning with Missing Modalities,
arXiv 2511.12034.

Importing the package costs next to nothing: each name loads its module, and what that needs, when first used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from calmrl_prob._moved import old_names

if TYPE_CHECKING:  # for mypy and editors; at run time ``_HOMES`` says the same, and a test that they agree
    from calmrl_prob import datasets, evaluation, plots
    from calmrl_prob.arviz.export import to_arviz
    from calmrl_prob.arviz.files import from_arviz
    from calmrl_prob.batch_effects import BatchEffects
    from calmrl_prob.classification import classify
    from calmrl_prob.conjugacy import discover
    from calmrl_prob.data import MultimodalData, missingness
    from calmrl_prob.data.stream import MultimodalStream
    from calmrl_prob.errors import CalmrlError, CalmrlWarning, ModelError, NotConjugateError
    from calmrl_prob.evaluation import masked_validation, retrieve, value_of_information
    from calmrl_prob.imputation import Imputation
    from calmrl_prob.index.retrieval_index import RetrievalIndex
    from calmrl_prob.inference import FitResult, PosteriorResult, marginalize, posterior
    from calmrl_prob.inference.parameters.about_a_fit import parameter_draws
    from calmrl_prob.io import load_npz, save_npz
    from calmrl_prob.linear_gaussian import LinearGaussian
    from calmrl_prob.model import SharedLatentModel
    from calmrl_prob.reading.read import read
    from calmrl_prob.recalibration import recalibrate
    from calmrl_prob.selection import fit
    from calmrl_prob.selection.latent_dim import choose_latent_dim
    from calmrl_prob.selection.shrinkage import choose_shrinkage
    from calmrl_prob.serialization import load, save
    from calmrl_prob.writing.impute import impute
    from calmrl_prob.writing.write import write

    __version__: str

__all__ = [
    "BatchEffects",
    "CalmrlError",
    "CalmrlWarning",
    "FitResult",
    "Imputation",
    "LinearGaussian",
    "ModelError",
    "MultimodalData",
    "MultimodalStream",
    "NotConjugateError",
    "PosteriorResult",
    "RetrievalIndex",
    "SharedLatentModel",
    "__version__",
    "choose_latent_dim",
    "choose_shrinkage",
    "classify",
    "datasets",
    "discover",
    "evaluation",
    "fit",
    "from_arviz",
    "impute",
    "load",
    "load_npz",
    "marginalize",
    "masked_validation",
    "missingness",
    "parameter_draws",
    "plots",
    "posterior",
    "read",
    "recalibrate",
    "retrieve",
    "save",
    "save_npz",
    "to_arviz",
    "value_of_information",
    "write",
]

#: The module of this package that each public name is imported from when it is first asked for.
_HOMES = MappingProxyType(
    {
        "BatchEffects": "batch_effects",
        "CalmrlError": "errors",
        "CalmrlWarning": "errors",
        "FitResult": "inference",
        "Imputation": "imputation",
        "LinearGaussian": "linear_gaussian",
        "ModelError": "errors",
        "MultimodalData": "data",
        "MultimodalStream": "data.stream",
        "NotConjugateError": "errors",
        "PosteriorResult": "inference",
        "RetrievalIndex": "index.retrieval_index",
        "SharedLatentModel": "model",
        "choose_latent_dim": "selection.latent_dim",
        "choose_shrinkage": "selection.shrinkage",
        "classify": "classification",
        "discover": "conjugacy",
        "fit": "selection",
        "from_arviz": "arviz.files",
        "impute": "writing.impute",
        "load": "serialization",
        "load_npz": "io",
        "marginalize": "inference",
        "masked_validation": "evaluation",
        "missingness": "data",
        "parameter_draws": "inference.parameters.about_a_fit",
        "posterior": "inference",
        "read": "reading.read",
        "recalibrate": "recalibration",
        "retrieve": "evaluation",
        "save": "serialization",
        "save_npz": "io",
        "to_arviz": "arviz.export",
        "value_of_information": "evaluation",
        "write": "writing.write",
    }
)

if not TYPE_CHECKING:  # else mypy would take any misspelt name for one that is found here

    def __getattr__(name: str) -> Any:  # noqa: ANN401 - it may be anything
        """A public name, a module of this package, or a name of the release before (PEP 562)."""
        if name in _HOMES:
            value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        elif name == "__version__":  # asked for last: what reads it is a third of what calmrl --help imports
            versions = import_module(f"{__name__}._support.versions")
            value = versions.installed_version("calmrl-prob", "0.0.0+checkout")
        elif not name.startswith("_") and find_spec(f"{__name__}.{name}"):
            value = import_module(f"{__name__}.{name}")
        else:
            return old_names(__name__)(name)
        globals()[name] = value  # found at once from now on
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
