"""The E-step in the form that suits the data: by modality, by pattern, by feature, or from sufficient statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from calmrl_prob.errors import ArgumentError
from calmrl_prob.linear_gaussian.blocks import FeatureBlocks, ObservedBlocks
from calmrl_prob.linear_gaussian.em.cost import EM_ITERATIONS, choose_form
from calmrl_prob.linear_gaussian.em.expectation import ExpectationStep
from calmrl_prob.linear_gaussian.em.preparation import mean_variance
from calmrl_prob.linear_gaussian.em.rowwise import FeatureStep, ModalityStep, PatternStep, RowwiseStep
from calmrl_prob.linear_gaussian.em.scatter import Scatter, scatters_of_rows, scatters_of_statistics
from calmrl_prob.linear_gaussian.em.spectral import PairwiseCovariance
from calmrl_prob.linear_gaussian.em.statistics import FromStatistics, SufficientStatistics

#: What can be asked for.
FORMS = ("modality", "pattern", "statistics")
#: Those that go over the rows.
ROW_FORMS = ("modality", "pattern")


@dataclass(frozen=True)
class Prepared:
    """Data made ready for many E-steps.

    Attributes:
        step: the E-step.
        shift: (D,) float64, the point that it takes the data about.
        form: "modality", "pattern", "statistics" or "features".
        data: what it was made from: rows about the shift, or statistics.
    """

    step: ExpectationStep
    shift: Tensor
    form: str
    data: ObservedBlocks | FeatureBlocks | SufficientStatistics

    def rows(self) -> RowwiseStep:
        """The E-step, of a form that goes over the rows.

        Raises:
            ArgumentError: it was made from statistics.
        """
        if not isinstance(self.step, RowwiseStep):
            raise ArgumentError("data: expected rows, got sufficient statistics, which cannot tell instances apart.")
        return self.step

    def scatters(self, *, dense: bool) -> tuple[Scatter, ...]:
        """Second moments of each modality about the shift, for noise that is correlated within.

        Args:
            dense: whether the matrices are needed whatever they cost.

        Raises:
            ArgumentError: single features are missing.
        """
        if isinstance(self.data, FeatureBlocks):
            raise ArgumentError(
                "noise: where single features are missing, expected 'isotropic' or 'diagonal': noise that is "
                "correlated within a modality needs whole modalities, present or missing. Leave out the rows that lack "
                "single features, fill them in first, or take noise='diagonal' and more latents."
            )
        if isinstance(self.data, SufficientStatistics):
            return scatters_of_statistics(self.data.dims, self.data.scatters)
        return scatters_of_rows(self.data.values.values(), dense=dense)

    def covariance(self) -> PairwiseCovariance:
        """The covariance of features, as far as a spectral start needs it."""
        if isinstance(self.data, SufficientStatistics):
            return PairwiseCovariance.from_statistics(self.data)
        mean, variance = mean_variance(self.step)
        if isinstance(self.data, FeatureBlocks):
            return PairwiseCovariance.from_features(self.data, mean, variance)
        return PairwiseCovariance.from_blocks(self.data, mean, variance)


def prepare(
    data: ObservedBlocks | FeatureBlocks | SufficientStatistics,
    latent_dim: int,
    form: str = "auto",
    iterations: int = EM_ITERATIONS,
    forms: Sequence[str] = FORMS,
) -> Prepared:
    """Choose a form of the E-step and make the data ready for it.

    Args:
        data: the observed rows, or their sufficient statistics.
        latent_dim: K.
        form: "modality", "pattern", "statistics", or "auto" to choose by cost.
        iterations: how many E-steps to expect, which weighs the one pass that statistics take.
        forms: those that the caller can use.

    Raises:
        ArgumentError: an unknown form, or one that the data do not admit.
    """
    if form not in ("auto", *forms):
        raise ArgumentError(f"form: expected one of {('auto', *forms)}, got {form!r}.")
    if isinstance(data, FeatureBlocks):
        if form != "auto":
            raise ArgumentError(f"form: data that lack single features have one form only, 'auto'; got {form!r}.")
        features, shift = data.centred()
        return Prepared(FeatureStep(features, latent_dim), shift, "features", features)
    if isinstance(data, ObservedBlocks):
        form = choose_form(data, latent_dim, iterations, forms) if form == "auto" else form
        if form != "statistics":
            blocks, shift = data.centred()
            step = ModalityStep(blocks, latent_dim) if form == "modality" else PatternStep(blocks, latent_dim)
            return Prepared(step, shift, form, blocks)
        data = SufficientStatistics.from_blocks(data)
    from_statistics = FromStatistics(data)
    return Prepared(from_statistics, data.shift.to(from_statistics.totals.total.device), "statistics", data)
