"""Measures of what a fitted model is worth: retrieval, imputation, calibration, classification."""

from calmrl_prob.evaluation.acquisition.result import ValueOfInformation
from calmrl_prob.evaluation.acquisition.value import value_of_information
from calmrl_prob.evaluation.class_probabilities import score_probabilities
from calmrl_prob.evaluation.classification import ProbeResult, linear_probe
from calmrl_prob.evaluation.explained import factor_weights, variance_explained
from calmrl_prob.evaluation.imputation.coverage import coverage_curve, pit_values
from calmrl_prob.evaluation.imputation.imputation import IMPUTATION_METRICS, INTERVAL_METRICS, score_imputation
from calmrl_prob.evaluation.imputation.masked_validation import MaskedValidation, masked_validation
from calmrl_prob.evaluation.retrieval.ranking import RETRIEVAL_METRICS, Retrieval
from calmrl_prob.evaluation.retrieval.retrieval import cross_modal_recall, mean_over_pairs, retrieve
from calmrl_prob.evaluation.retrieval.scores import SCORES
from calmrl_prob.evaluation.simulation import SimulationRanks, simulate_model, simulation_ranks

__all__ = [
    "IMPUTATION_METRICS",
    "INTERVAL_METRICS",
    "RETRIEVAL_METRICS",
    "SCORES",
    "MaskedValidation",
    "ProbeResult",
    "Retrieval",
    "SimulationRanks",
    "ValueOfInformation",
    "coverage_curve",
    "cross_modal_recall",
    "factor_weights",
    "linear_probe",
    "masked_validation",
    "mean_over_pairs",
    "pit_values",
    "retrieve",
    "score_imputation",
    "score_probabilities",
    "simulate_model",
    "simulation_ranks",
    "value_of_information",
    "variance_explained",
]
