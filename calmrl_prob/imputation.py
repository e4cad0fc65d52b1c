"""Imputation: the posterior predictive of modalities, with the parts of its uncertainty apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from calmrl_prob._support.arguments import chosen_names, described, real_number, whole_number
from calmrl_prob.alignment.certificate_correction import CertificateCorrection
from calmrl_prob.alignment.completion import Completion
from calmrl_prob.alignment.instances import InstanceCertificates, certify_instances
from calmrl_prob.data import MultimodalData
from calmrl_prob.data.stream import require_data
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, SchemaError
from calmrl_prob.inference.posterior import posterior
from calmrl_prob.inference.protocols import Model
from calmrl_prob.inference.seen import require_rows
from calmrl_prob.posteriors.by_modality import ByModality
from calmrl_prob.posteriors.gaussian import GaussianPosterior
from calmrl_prob.posteriors.posterior import PosteriorResult, checked_draws, drawn_modality, seeded_generator
from calmrl_prob.posteriors.predictive import Predictive
from calmrl_prob.posteriors.rescaled import Rescaled

if TYPE_CHECKING:
    import pandas as pd


@runtime_checkable
class Recalibrator(Protocol):
    """Protocol of ``impute``'s argument ``recalibrated``: :class:`calmrl_prob.recalibration.Recalibration` is one."""

    def fits(self, model: object) -> bool:
        """Whether it was made for this model, as far as can be seen."""

    def require_model(self, model: object) -> None:
        """Refuse a model that it was not made for."""

    def predictive(self, name: str, base: Predictive, data: MultimodalData) -> Predictive:
        """The predictive of one modality, put right for the pattern that each instance has."""

    def norm_interval(self, name: str, base: Predictive, data: MultimodalData, level: float) -> tuple[Tensor, Tensor]:
        """Intervals of the norm of one modality's representations, (N,) each."""


class Imputation:
    """The posterior predictive of modalities for N instances, in the data's units and type, on the data's device.

        x_n^m | x_n ~ N(W^m E[z_n] + mu^m,  W^m V_n W^mT + Psi^m)        (by the exact route)

    By other routes it is a mixture of such normals: over the components of the prior, draws of parameters, or draws
    of latents; of a site of another family, a mixture of what the site is (Poisson, Bernoulli ...) given draws of
    latents. Made by :func:`impute`. Each mapping below goes from modality names to tensors that are computed when
    first asked for, and kept: N D_m numbers each, so ask for what is needed (or impute a subset of the instances).
    For a modality that the instance has, mean and variance are those of a second, independent measurement of it.

    Attributes:
        names: the modalities imputed.
        posterior: of the latents, given what each instance has.
        recalibrated: the recalibration that intervals, variances, draws and densities went through; None if
            they are the model's own.
        observed_mask: (N, M) bool over ``names``, True = PRESENT in the data.
        mean: E[x_n^m | x_n], shape (N, D_m): the predictive mean for all rows, the paper's imputation.
        completed: shape (N, D_m): the data where observed, ``mean`` where missing.
        latent_variance: shape (N, D_m), diag(W^m V_n W^mT): what seeing more modalities could remove.
        noise_variance: diag(Psi^m), shape (D_m,), or (N, D_m) where it differs by instance: what it could not.
        parameter_variance: from not knowing the parameters, shape (N, D_m); None where they were fitted as one value.
        variance: the sum of these, shape (N, D_m), data units squared.
    """

    def __init__(
        self,
        data: MultimodalData,
        given: PosteriorResult,
        names: Sequence[str],
        recalibrated: Recalibrator | None = None,
    ) -> None:
        self.names = tuple(names)
        self.posterior = given
        self.recalibrated = recalibrated
        self._data = data
        self._own: Mapping[str, Predictive] = ByModality(self.names, lambda name: given.predictive(name, data.dtype))
        self._predictive = self._own
        if recalibrated is not None:
            self._predictive = ByModality(self.names, lambda name: recalibrated.predictive(name, self._own[name], data))

    def __reduce__(self) -> tuple[Any, ...]:
        # what is computed lazily is computed anew: the posterior is small, the (N, D_m) numbers are not
        return type(self), (self._data, self.posterior, self.names, self.recalibrated)

    @property
    def predictive(self) -> Mapping[str, Predictive]:
        """The predictive distribution of each modality, feature by feature: all else here comes from these."""
        return self._predictive

    @property
    def mean(self) -> Mapping[str, Tensor]:
        """E[x_n^m | x_n], shape (N, D_m)."""
        return ByModality(self.names, lambda name: self._predictive[name].mean, self._data.dims)

    @property
    def latent_variance(self) -> Mapping[str, Tensor]:
        """The part of the variance that seeing more modalities could remove, shape (N, D_m)."""
        return ByModality(self.names, lambda name: self._predictive[name].latent_variance)

    @property
    def noise_variance(self) -> Mapping[str, Tensor]:
        """The part that they could not, shape (D_m,), or (N, D_m) where it depends on the instance."""
        return ByModality(self.names, lambda name: self._predictive[name].noise_variance)

    @property
    def parameter_variance(self) -> Mapping[str, Tensor] | None:
        """The part from not knowing the parameters, shape (N, D_m); None where they were fitted as one value."""
        parts = ByModality(self.names, lambda name: self._predictive[name].parameter_variance)
        return None if parts[self.names[0]] is None else parts  # type: ignore[return-value]  # all or none

    @property
    def variance(self) -> Mapping[str, Tensor]:
        """The sum of the parts, shape (N, D_m)."""
        return ByModality(self.names, lambda name: self._predictive[name].variance)

    @cached_property
    def completed(self) -> Mapping[str, Tensor]:
        """The data where observed, ``mean`` where missing, shape (N, D_m)."""

        def complete(name: str) -> Tensor:
            return torch.where(self._data.feature_mask(name), self._data[name], self.mean[name])

        return ByModality(self.names, complete)

    @property
    def observed_mask(self) -> Tensor:
        """(N, M) bool over ``names``, True = PRESENT in the data."""
        return torch.stack([self._data.observed(name) for name in self.names], dim=1)

    def parts(self, size: int) -> Iterator[tuple[slice, Imputation]]:
        """The imputation taken apart into rows, so that what is computed of one part can be let go before the next.

        By the exact route; other posteriors stay whole, as one part.

        Args:
            size: rows of a part, at most.

        Yields:
            The rows, and the imputation of them.

        Raises:
            ArgumentError: ``size`` is below 1.
            ArgumentTypeError: it is no whole number.

        Example:
            >>> from calmrl_prob.linear_gaussian import LinearGaussian
            >>> lg = LinearGaussian({"x": torch.ones(2, 1)}, {"x": torch.zeros(2)}, {"x": torch.tensor(2.0)})
            >>> [rows for rows, _ in impute(lg, MultimodalData({"x": torch.ones(3, 2)})).parts(2)]
            [slice(0, 2, None), slice(2, 3, None)]
        """
        count, given = len(self._data), self.posterior
        step = whole_number("size", size, least=1)
        if not isinstance(given, GaussianPosterior):
            yield slice(0, count), self
            return
        for start in range(0, count, step):
            rows = slice(start, min(start + step, count))
            yield rows, Imputation(self._data.subset(rows), given.subset(rows), self.names, self.recalibrated)

    @property
    def data(self) -> MultimodalData:
        """The data that were imputed, with the modalities of the model."""
        return self._data

    def frame(
        self, name: str, of: Literal["mean", "completed", "variance"] = "mean", level: float | None = None
    ) -> pd.DataFrame:
        """One modality as a table, with the ids of the instances and the names of the features where they are known.

        Args:
            name: the modality.
            of: what is in the table: the mean, the data completed by it, or the variance.
            level: of intervals; given, the columns are (feature, "lower") and (feature, "upper") instead.

        Returns:
            (N, D_m), in data units (squared, of variances); (N, 2 D_m) of intervals.

        Raises:
            SchemaError: the modality was not imputed.
            ArgumentError: ``of`` is another word, or ``level`` is not strictly between 0 and 1.

        Example:
            >>> import pandas as pd
            >>> from calmrl_prob.linear_gaussian import LinearGaussian
            >>> lg = LinearGaussian({"x": torch.ones(2, 1)}, {"x": torch.zeros(2)}, {"x": torch.tensor(2.0)})
            >>> x = pd.DataFrame({"u": [4.0], "v": [4.0]}, index=["cat"], dtype="float32")
            >>> impute(lg, MultimodalData({"x": x})).frame("x")
                   u    v
            cat  2.0  2.0
        """
        import pandas as pd

        if of not in ("mean", "completed", "variance"):
            raise ArgumentError(f"of: expected 'mean', 'completed' or 'variance', got {of!r}.")
        names = self._data.feature_names.get(name)
        known: dict[str, Any] = {"index": None if self._data.ids is None else pd.Index(self._data.ids)}
        if level is None:
            table: Mapping[str, Tensor] = getattr(self, of)
            return pd.DataFrame(
                table[name].numpy(force=True), **known, columns=None if names is None else pd.Index(list(names))
            )
        lower, upper = self.interval(level)[name]
        values = torch.stack([lower, upper], dim=2).flatten(1).numpy(force=True)
        features = range(lower.shape[1]) if names is None else names
        return pd.DataFrame(values, **known, columns=pd.MultiIndex.from_product([list(features), ["lower", "upper"]]))

    def interval(self, level: float = 0.9) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Central predictive intervals of each feature: the quantiles of its predictive at (1 -/+ level) / 2.

        Where that is normal, mean -/+ q sqrt(variance) with q the normal quantile.

        Args:
            level: probability that the interval is to hold, between 0 and 1.

        Returns:
            For each modality the lower and the upper ends, each (N, D_m), in data units.

        Raises:
            ArgumentError: ``level`` is not strictly between 0 and 1.
            ArgumentTypeError: it is not one number.
        """
        level = checked_level(level)

        def ends(name: str) -> tuple[Tensor, Tensor]:
            predictive = self._predictive[name]
            return predictive.quantile((1 - level) / 2), predictive.quantile((1 + level) / 2)

        return ByModality(self.names, ends)

    def norm_interval(self, level: float = 0.9) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Intervals of the norm |x_n^m| of each whole imputed representation, calibrated on held-out rows.

        Args:
            level: probability that the interval is to hold, between 0 and 1.

        Returns:
            For each modality the lower and the upper ends, each (N,), in data units.

        Raises:
            ArgumentError: ``level`` is not strictly between 0 and 1, there are too few calibration rows for it, or
                nothing was recalibrated by a conformal method.
            ArgumentTypeError: it is not one number.
        """
        level, by = checked_level(level), self.recalibrated
        if by is None:
            raise ArgumentError(
                "norm_interval: it needs impute(..., recalibrated=...); without, take quantiles over draws of "
                "imputed.sample(500)[name].norm(dim=2)."
            )
        return ByModality(self.names, lambda name: by.norm_interval(name, self._own[name], self._data, level))

    def log_density(self, truth: MultimodalData) -> Mapping[str, Tensor]:
        """log p(x_nd | x_n) of what ``truth`` has, feature by feature, shape (N, D_m), nats; NaN where it has nothing.

        Args:
            truth: the same N instances with modalities that were hidden from the model.

        Raises:
            SchemaError: it lacks a modality that was imputed, or has another number of instances.
            ArgumentTypeError: it is not MultimodalData.
        """
        require_data(truth, "truth")
        if len(truth) != len(self._data):
            raise SchemaError(f"truth: expected the {len(self._data)} instances that were imputed, got {len(truth)}.")
        truth = truth.in_order_of(self._data.dims, "truth", "what was imputed")
        lacking = [name for name in self.names if name not in truth]
        if lacking:
            raise SchemaError(f"truth: it lacks the modalities {lacking}; impute with names={list(truth.names)}.")
        return ByModality(self.names, lambda name: self._predictive[name].log_density(truth[name].to(self._data.dtype)))

    @torch.no_grad()
    def sample(self, num_draws: int, seed: int = 0, *, keep_observed: bool = False) -> dict[str, Tensor]:
        """Joint draws: one latent for each draw and instance, through which all modalities are drawn together.

        Args:
            num_draws: S.
            seed: the same seed gives the same draws.
            keep_observed: put the data where they are observed (multiple imputation), instead of draws of a second
                measurement.

        Returns:
            For each modality (S, N, D_m), in data units: S N D_m numbers.

        Raises:
            ArgumentError: ``num_draws`` is below 1 or takes more than the memory, or ``seed`` is negative.
            ArgumentTypeError: one of them is not a whole number.
        """
        out: dict[str, Tensor] = {}
        widths = sum(self._data.dims[name] for name in self.names)
        checked_draws(num_draws, len(self._data) * widths, self._data.dtype)
        for s, draw in enumerate(self.draws(num_draws, seed)):
            for name, values in draw.items():
                if name not in out:
                    out[name] = values.new_empty(num_draws, *values.shape)
                out[name][s] = values
        if keep_observed:
            out = {n: torch.where(self._data.feature_mask(n), self._data[n], drawn) for n, drawn in out.items()}
        return out

    @torch.no_grad()
    def draws(self, num_draws: int, seed: int = 0) -> Iterator[dict[str, Tensor]]:
        """The draws of :meth:`sample` one at a time: for each modality (N, D_m), S times."""
        generator = seeded_generator(seed, self.posterior.mean.device)
        for draw in self.posterior.draws(checked_draws(num_draws), generator, self.names):
            out = {}
            for name in self.names:
                values = drawn_modality(draw, name, generator, self._data.dtype)
                spread = self._predictive[name]
                out[name] = spread.spread(values) if isinstance(spread, Rescaled) else values
            yield out

    def certificate(
        self,
        calibration: CertificateCorrection | None = None,
        *,
        threshold: float = 0.5,
        num_draws: int = 100,
        seed: int = 0,
    ) -> InstanceCertificates:
        """For each instance the probability that what is imputed brings its anchor nearer to where it belongs.

        The anchor is the leading vector of an instance's representations; that of what it has is off by its anchor
        shift, which calibration with imputed means is to reduce. All modalities have to be representations in one
        space, as encoders align them: those of the model are certified, whichever were imputed.

        Args:
            calibration: of the probabilities, on rows that lost modalities on purpose; without it they are the model's
                own, which promises too much where it is wrong.
            threshold: in [0, 1]; instances below it should not be imputed, and are named by ``refused``.
            num_draws: S.
            seed: of the draws.

        Raises:
            SchemaError: the modalities have different widths.
            ArgumentError: the posterior is of another route than the exact one, or an option is out of range.

        Example:
            >>> from calmrl_prob.linear_gaussian import LinearGaussian
            >>> lg = LinearGaussian(
            ...     {"image": torch.eye(2), "text": torch.eye(2), "sound": 0.1 * torch.eye(2)},
            ...     {"image": torch.zeros(2), "text": torch.zeros(2), "sound": torch.tensor([3.0, 0.0])},
            ...     {"image": torch.tensor(0.01), "text": torch.tensor(0.01), "sound": torch.tensor(9.0)},
            ... )
            >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
            >>> data = MultimodalData({"image": x, "text": x[[0, 0]]}, ids=["cat", "dog"])
            >>> found = impute(lg, data).certificate()
            >>> found.table()["missing"].tolist(), found.probability.shape
            (['sound', 'sound'], torch.Size([2]))
        """
        given, widths = self.posterior, dict(self.posterior.dims)
        if not isinstance(given, GaussianPosterior):
            raise ArgumentError(
                f"certificate: expected an imputation by the exact route, got one by {given.route!r}; build a "
                "Completion from a linear Gaussian and call calmrl_prob.alignment.instances.certify_instances."
            )
        if len(set(widths.values())) != 1:
            raise SchemaError(
                f"certificate: expected modalities of one width, representations in one space, got {widths}; align "
                "encoders (calmrl_prob.training.align), then impute their representations."
            )
        lg = given.linear_gaussian
        mask = torch.stack([self._data.observed(name) for name in lg.names], dim=1)
        representations = torch.stack([self._data[name] for name in lg.names], dim=1).to(given.mean.dtype)
        completion = Completion.from_linear_gaussian(lg, representations, mask)
        return certify_instances(
            completion, self._data.ids, calibration, threshold=threshold, num_draws=num_draws, seed=seed
        )

    def __repr__(self) -> str:
        missing = (~self.observed_mask).sum(dim=0).tolist()
        counts = ", ".join(f"{name}: {count}" for name, count in zip(self.names, missing, strict=True))
        how = "" if self.recalibrated is None else ", recalibrated"
        return f"Imputation of {len(self._data)} instances (missing: {counts}){how}"


def checked_level(level: object) -> float:
    """A probability that an interval is to hold.

    Raises:
        ArgumentError: it is not strictly between 0 and 1.
        ArgumentTypeError: it is not one number.
    """
    number = real_number("level", level, 0.9)
    if not 0 < number < 1:
        raise ArgumentError(f"level: expected a number between 0 and 1, both excluded, got {level!r}.")
    return number


@torch.no_grad()
def impute(
    model: Model | PosteriorResult,
    data: MultimodalData,
    names: Sequence[str] | None = None,
    *,
    recalibrated: Recalibrator | bool | None = None,
    **options: Any,
) -> Imputation:
    """Imputation of rows in memory; arguments, errors and warnings are those of :func:`calmrl_prob.impute`.

    Example:
        >>> from calmrl_prob.linear_gaussian import LinearGaussian
        >>> one, zero, noise = torch.ones(1, 1), torch.zeros(1), torch.tensor(1.0)
        >>> lg = LinearGaussian({"a": one, "b": one}, {"a": zero, "b": zero}, {"a": noise, "b": noise})
        >>> impute(lg, MultimodalData({"a": torch.tensor([[4.0]])})).mean["b"].tolist()
        [[2.0]]
    """
    by = None if recalibrated is None else _recalibrator(model, recalibrated)
    if isinstance(model, PosteriorResult) and options:
        raise ArgumentError(
            f"options: {sorted(options)} are of finding a posterior, but one was given; pass them to cal.posterior."
        )
    given = model if isinstance(model, PosteriorResult) else posterior(model, data, **options)
    require_data(data)
    data = require_rows(given, data) if given is model else data.conform(given.dims)
    if recalibrated is None:
        by = _own_intervals(model, given)
    known = tuple(given.dims)
    chosen = known if names is None else chosen_names(names, known)
    return Imputation(data, given, chosen, by)


def _recalibrator(model: object, recalibrated: Recalibrator | bool) -> Recalibrator | None:
    """The recalibration that is meant, checked to be the model's."""
    if recalibrated is False:
        return None
    # a FitResult stands for its model
    found = getattr(getattr(model, "model", model), "recalibration", None) if recalibrated is True else recalibrated
    if not isinstance(found, Recalibrator) or isinstance(found, type):
        if recalibrated is True:
            raise ArgumentError(
                "recalibrated: True stands for a recalibration attached to the model, which has none; pass what "
                "cal.recalibrate(model, held_out_rows) returns, or call it with attach=True first."
            )
        raise ArgumentTypeError(
            f"recalibrated: expected True, False or what cal.recalibrate returns, got {described(recalibrated)}."
        )
    found.require_model(model)
    return found


def _own_intervals(model: object, given: PosteriorResult) -> Recalibrator | None:
    """Intervals that a fit which chose its settings learned of its errors; None once its parameters have changed.

    Args:
        model: the fit, or its model.
        given: its posterior, which knows what parameters it is of.
    """
    found: Any = getattr(model, "intervals", None)
    if found is None:
        model = getattr(model, "model", model)  # a FitResult stands for its model
        found = getattr(model, "intervals", None)
    return found if isinstance(found, Recalibrator) and not isinstance(found, type) and found.fits(given) else None
