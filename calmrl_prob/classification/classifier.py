"""The classifier that comes of a fitted model and labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calmrl_prob._support.arguments import checked_seed, whole_number
from calmrl_prob._support.arrays import own_array
from calmrl_prob.batch_effects import BatchEffects
from calmrl_prob.classification.acquisition import class_gain
from calmrl_prob.classification.options import ClassSetting
from calmrl_prob.data import MultimodalData
from calmrl_prob.data.stream import require_data
from calmrl_prob.errors import ArgumentError
from calmrl_prob.inference.feature_names import aligned
from calmrl_prob.linear_gaussian import LinearGaussian, LinearGaussianMixture, mixture_posterior, posterior
from calmrl_prob.linear_gaussian.mixture.expectation import LatentComponents
from calmrl_prob.linear_gaussian.mixture.labelled import DirectionEvidence
from calmrl_prob.posteriors.mixture import MixtureResult

if TYPE_CHECKING:
    import pandas as pd

    from calmrl_prob.evaluation.acquisition.result import ValueOfInformation


@dataclass(frozen=True, eq=False, repr=False)
class Classifier:
    """p(class | observed modalities), whatever an instance lacks.

        log p(c | x) = log pi_c + t log p(x | c) + const,   then (1 - e) of it and e of pi_c

    p(x | c) is exact: the fitted model with a Gaussian of class c along U. The temperature t of each missing pattern, 1
    where the model is right, and the share e of instances that it knows nothing of are those that held-out labels ask
    for.

    Attributes:
        classes: (C,) the labels, sorted.
        linear_gaussian: the fitted model, all correlation as latents, prior N(0, I); of a model with batches that of
            rows whose shifts and scales are taken off.
        latent_dim: K of the fitted model; its latents are the first.
        directions: U, (K', R), orthonormal; latent units.
        components: weights, and means and covariances along U, as new instances have them.
        temperature: t, of missing patterns that no held-out label was of.
        patterns, pattern_temperatures: (P, M) bool, True = PRESENT, and (P,): t of the others.
        floor: e.
        setting: what was chosen.
        table: settings tried, with ``log_score`` (mean log probability of held-out labels, nats), ``temperature``,
            ``floor`` and ``chosen``.
        batch: of a model with batches their shifts and scales; None of another.
    """

    classes: NDArray[Any]
    linear_gaussian: LinearGaussian
    latent_dim: int
    directions: Tensor
    components: LatentComponents
    temperature: float
    patterns: Tensor
    pattern_temperatures: Tensor
    floor: float
    setting: ClassSetting
    table: pd.DataFrame
    batch: BatchEffects | None = None

    @torch.no_grad()
    def probabilities(self, data: MultimodalData) -> NDArray[np.float64]:
        """p(c | what each instance has), (N, C); rows sum to 1.

        Args:
            data: N instances with modalities of the model, any of them missing; of a model with batches they bring
                their column, as for ``cal.impute``.

        Raises:
            ArgumentTypeError: ``data`` is of another type.
            SchemaError: a modality is not the model's, or of another width, or its features have other names.
            DataError: the column of batches is not there, or has a batch that was not in the fit.
        """
        data = self._conformed(data)
        stated: NDArray[np.float64] = self._stated(self._ratios(data), data.observed_mask).exp().cpu().numpy()
        return stated

    def _stated(self, ratios: Tensor, observed_mask: Tensor) -> Tensor:
        """log p(c | x), (N, C), of log p(x | c) up to a constant of each instance."""
        return tempered(ratios, self.components.log_weights, self.temperatures(observed_mask), self.floor)

    def _ratios(self, data: MultimodalData) -> Tensor:
        """log p(x | c) up to a constant of each instance, (N, C)."""
        if self.batch is None:
            return self._ratios_under(self.linear_gaussian, data)
        index = torch.where(self.batch.lacks_intercept(data), self.batch.index(data), -1)
        found = self.components.log_weights.new_empty(len(data), len(self.classes))
        for b in index.unique().tolist():  # -1: all rows that are those of the model, once their batch is taken off
            rows = (index == b).nonzero().squeeze(1)
            part = data.subset(rows)
            found[rows] = (
                self._ratios_under(self.linear_gaussian, self.batch.adjusted(part))
                if b < 0
                else self._ratios_under(self.batch.moves.structure(self.linear_gaussian, b), part)
            )
        return found

    def _ratios_under(self, lg: LinearGaussian, data: MultimodalData) -> Tensor:
        return DirectionEvidence.of(posterior(lg, data.blocks), self.directions).log_ratios(self.components)

    def temperatures(self, observed_mask: Tensor) -> Tensor:
        """t of instances with an observed mask (N, M), True = PRESENT; (N, 1)."""
        same = (observed_mask[:, None] == self.patterns).all(2)
        own = same.to(self.pattern_temperatures) @ self.pattern_temperatures
        return torch.where(same.any(1), own, self.temperature)[:, None]

    @torch.no_grad()
    def predict(self, data: MultimodalData) -> NDArray[Any]:
        """The likeliest class of each instance, (N,)."""
        named: NDArray[Any] = self.classes[self.probabilities(data).argmax(1)]
        return named

    def mixture(self) -> LinearGaussianMixture:
        """All of it as one mixture, of which classes are the components; without temperature and floor.

        Its responsibilities are p(c | x) at t = 1, e = 0; of R directions m_c is U m_c, S_c is I + U (S_c - I) U^T.
        """
        axes, parts = self.directions, self.components
        inner = torch.eye(axes.shape[1], dtype=axes.dtype, device=axes.device)
        outer = torch.eye(len(axes), dtype=axes.dtype, device=axes.device)
        covariances = outer + axes @ (parts.covariances - inner) @ axes.mT
        return LinearGaussianMixture.from_prior(
            self.linear_gaussian, parts.log_weights, parts.means @ axes.mT, covariances
        )

    @torch.no_grad()
    def posterior(self, data: MultimodalData, *, seed: int = 0, **options: Any) -> MixtureResult:
        """The exact posterior of the latents under :meth:`mixture`, for imputations and the value of information.

        Of a model with batches that of rows whose shifts and scales are taken off: imputations are without them too.

        Args:
            data: N instances with modalities of the model.
            seed: of no account, for it is exact; ``cal.posterior`` and all that stands on it hand one on.
            **options: none.

        Raises:
            DataError: an instance has a modality of which its batch has no intercept.
            ArgumentError: options.
        """
        del seed
        if options:
            raise ArgumentError(f"options: the posterior of a classifier has none, got {list(options)}.")
        data = self._conformed(data)
        if self.batch is not None:
            data = self.batch.require_adjusted(data)
        return MixtureResult(mixture_posterior(self.mixture(), data.blocks), self.latent_dim)

    @torch.no_grad()
    def value_of_information(self, data: MultimodalData, *, num_draws: int = 64, seed: int = 0) -> ValueOfInformation:
        """Gains about the class by each modality that an instance lacks altogether, instance by instance.

            H(c | x_O) - E[H(c | x_O, x^m)],    of c as :meth:`probabilities` states it

        by draws of the class, the directions and what the modality would say of them (``acquisition.py``). At t = 1 and
        e = 0 it is the mutual information I(c; x^m | x_O). Where temperatures of patterns differ it may be below 0: one
        expects to be less sure.

        Of a model with batches rows whose shifts and scales are taken off.

        Args:
            data: N instances with modalities of the model; those that they do not have at all count as missing.
            num_draws: S, for each cell.
            seed: of draws.

        Returns:
            Gains (N, M) in nats with standard errors, a ranking, and tables; ``target`` is "class".

        Raises:
            DataError: an instance has a modality of which its batch has no intercept.
            ArgumentError: ``num_draws`` is below 2, or the seed out of range.
            ArgumentTypeError, SchemaError: as :meth:`probabilities`.

        Example:
            >>> import calmrl_prob as cal
            >>> made = cal.datasets.make_synthetic(90, {"a": 3, "b": 2}, latent_dim=2, missing_rate=0.3, seed=0)
            >>> kind = (made.latents[:, 0] > 0).numpy()
            >>> classifier = cal.classify(made.truth, made.data, kind, folds=2)
            >>> found = classifier.value_of_information(made.data)
            >>> found.ranking(1)["modality"].item() in ("a", "b")
            True
        """
        from calmrl_prob.evaluation.acquisition.result import ValueOfInformation  # it needs pandas

        num_draws, seed = whole_number("num_draws", num_draws, least=2), checked_seed(seed)
        data = self._conformed(data)
        own = data if self.batch is None else self.batch.require_adjusted(data)
        given, generator = posterior(self.linear_gaussian, own.blocks), torch.Generator().manual_seed(seed)
        gains, errors = zip(
            *(
                class_gain(
                    given, self.directions, self.components, own.observed_mask, m, self._stated, num_draws, generator
                )
                for m in range(len(own.names))
            ),
            strict=True,
        )
        return ValueOfInformation(
            gain=torch.stack(gains, 1).cpu().numpy(),
            names=own.names,
            observed_mask=own_array(own.observed_mask),
            target="class",
            trace_drop=None,
            standard_error=torch.stack(errors, 1).cpu().numpy(),
            trace_drop_error=None,
            ids=np.arange(len(data)) if data.ids is None else data.ids,
            route="classes",
            method="draws",
        )

    def _conformed(self, data: MultimodalData) -> MultimodalData:
        """The data with all modalities of the model, features in its order."""
        require_data(data)
        return aligned(self.linear_gaussian, data).conform(self.linear_gaussian.dims)

    def __repr__(self) -> str:
        """One line."""
        best = self.table["log_score"].max() if len(self.table) else float("nan")
        return (
            f"Classifier({len(self.classes)} classes, {self.directions.shape[1]} directions of "
            f"{self.linear_gaussian.latent_dim} latents, temperature {self.temperature:g}, floor {self.floor:g}; "
            f"held-out log score {best:.3f})"
        )


def tempered(ratios: Tensor, log_weights: Tensor, temperature: float | Tensor, floor: float) -> Tensor:
    """log p(c | x), (N, C), of log p(x | c) up to a constant of each row, (N, C), and log pi, (C,) or (N, C)."""
    found = (log_weights + temperature * ratios).log_softmax(1)
    if not floor:
        return found
    return torch.logaddexp(found + math.log1p(-floor), log_weights.log_softmax(-1) + math.log(floor))
