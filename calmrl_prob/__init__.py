"""calmrl_prob: exact probabilistic calibration of multimodal representations with missing modalities.

    import calmrl_prob as cal

    data = cal.MultimodalData({"image": X1, "text": X2})        # a NaN row is a missing modality
    model = cal.SharedLatentModel(data.dims, latent_dim=16)
    cal.fit(model, data)
    imputed = cal.impute(model, data)                           # mean, variance in parts, intervals, draws

The model and its closed forms: Liu et al., Calibrated Multimodal Representation Learning with Missing Modalities,
arXiv 2511.12034.
"""

from importlib.metadata import PackageNotFoundError, version

from calmrl_prob import datasets, evaluation, plots
from calmrl_prob.arviz.export import to_arviz
from calmrl_prob.arviz.files import from_arviz
from calmrl_prob.conjugacy import ConjugateForm, discover, linear_gaussian
from calmrl_prob.data import MultimodalData, missingness
from calmrl_prob.errors import CalmrlError, CalmrlWarning, ModelError, NotConjugateError
from calmrl_prob.evaluation import MaskedValidation, cross_modal_recall, masked_validation, retrieve
from calmrl_prob.guide import ConjugateGuide
from calmrl_prob.imputation import Imputation, impute
from calmrl_prob.inference import FitResult, PosteriorResult, fit, marginalize, posterior
from calmrl_prob.inference.choose import LatentDimChoice, choose_latent_dim
from calmrl_prob.inference.parameters.about_a_fit import parameter_draws
from calmrl_prob.io import load_npz
from calmrl_prob.linear_gaussian import LinearGaussian, SufficientStatistics
from calmrl_prob.model import SharedLatentModel
from calmrl_prob.recalibration import Recalibration, ShrinkageChoice, choose_shrinkage, recalibrate
from calmrl_prob.serialization import load, save

try:
    __version__ = version("calmrl-prob")
except PackageNotFoundError:  # run from a checkout that was not installed
    __version__ = "0.0.0+checkout"

__all__ = [
    "CalmrlError",
    "CalmrlWarning",
    "ConjugateForm",
    "ConjugateGuide",
    "FitResult",
    "Imputation",
    "LatentDimChoice",
    "LinearGaussian",
    "MaskedValidation",
    "ModelError",
    "MultimodalData",
    "NotConjugateError",
    "PosteriorResult",
    "Recalibration",
    "SharedLatentModel",
    "ShrinkageChoice",
    "SufficientStatistics",
    "__version__",
    "choose_latent_dim",
    "choose_shrinkage",
    "cross_modal_recall",
    "datasets",
    "discover",
    "evaluation",
    "fit",
    "from_arviz",
    "impute",
    "linear_gaussian",
    "load",
    "load_npz",
    "marginalize",
    "masked_validation",
    "missingness",
    "parameter_draws",
    "plots",
    "posterior",
    "recalibrate",
    "retrieve",
    "save",
    "to_arviz",
]
