"""The exact linear-Gaussian engine: torch alone, nothing of Pyro."""

from __future__ import annotations

import sys

from calmrl_prob._moved import CalledAsFunction
from calmrl_prob.linear_gaussian.blocks import FeatureBlocks, ObservedBlocks
from calmrl_prob.linear_gaussian.by_instance import StructuresByInstance
from calmrl_prob.linear_gaussian.curvature.evidence import Evidence, log_evidence
from calmrl_prob.linear_gaussian.em.batches import BatchMoves, improved_moves, start_moves
from calmrl_prob.linear_gaussian.em.convergence import Trace
from calmrl_prob.linear_gaussian.em.em import EMResult, fit_em
from calmrl_prob.linear_gaussian.em.links import FewLinks
from calmrl_prob.linear_gaussian.em.options import NOISES, EMOptions, NoiseForm, checked_ranks
from calmrl_prob.linear_gaussian.em.statistics import SufficientStatistics
from calmrl_prob.linear_gaussian.mixture.em import MixtureEMOptions, fit_mixture_em, split_by_labels
from calmrl_prob.linear_gaussian.mixture.model import LinearGaussianMixture
from calmrl_prob.linear_gaussian.mixture.posterior import MixturePosterior, mixture_posterior
from calmrl_prob.linear_gaussian.noise import CorrelatedNoise
from calmrl_prob.linear_gaussian.posterior import Posterior, log_marginal, posterior
from calmrl_prob.linear_gaussian.scale_mixture.draws import scale_draws
from calmrl_prob.linear_gaussian.scale_mixture.em import fit_scale_em
from calmrl_prob.linear_gaussian.scale_mixture.model import ScaleMixture
from calmrl_prob.linear_gaussian.scale_mixture.options import ScaleEMOptions, StudentTEMOptions
from calmrl_prob.linear_gaussian.scale_mixture.posterior import ScalePosterior, has_one_scale, scale_posterior
from calmrl_prob.linear_gaussian.scale_mixture.shared_scale import (
    StudentTModel,
    StudentTPosterior,
    student_t_posterior,
)
from calmrl_prob.linear_gaussian.scale_mixture.shared_scale_em import fit_student_t_em
from calmrl_prob.linear_gaussian.structure import (
    LinearGaussian,
    Sample,
    draw_noise,
    require_diagonal_noise,
    solve_noise,
)

#: A closed form of instances, of whatever family: all have names, dims, latent_dim, dtype, device, to, detach, select
#: and sample.
Structure = LinearGaussian | LinearGaussianMixture | ScaleMixture | StudentTModel

__all__ = [
    "NOISES",
    "BatchMoves",
    "CorrelatedNoise",
    "EMOptions",
    "EMResult",
    "Evidence",
    "FeatureBlocks",
    "FewLinks",
    "LinearGaussian",
    "LinearGaussianMixture",
    "MixtureEMOptions",
    "MixturePosterior",
    "NoiseForm",
    "ObservedBlocks",
    "Posterior",
    "Sample",
    "ScaleEMOptions",
    "ScaleMixture",
    "ScalePosterior",
    "Structure",
    "StructuresByInstance",
    "StudentTEMOptions",
    "StudentTModel",
    "StudentTPosterior",
    "SufficientStatistics",
    "Trace",
    "checked_ranks",
    "draw_noise",
    "fit_em",
    "fit_mixture_em",
    "fit_scale_em",
    "fit_student_t_em",
    "has_one_scale",
    "improved_moves",
    "log_evidence",
    "log_marginal",
    "mixture_posterior",
    "posterior",
    "require_diagonal_noise",
    "scale_draws",
    "scale_posterior",
    "solve_noise",
    "split_by_labels",
    "start_moves",
    "student_t_posterior",
]

# For one release: cal.linear_gaussian(model, data) was a function, and hid this package.
sys.modules[__name__].__class__ = CalledAsFunction
