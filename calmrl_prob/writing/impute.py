"""Imputing rows in memory, or a stream of them into files: the function that users call as ``calmrl_prob.impute``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

from calmrl_prob._support.remote import Remote
from calmrl_prob.data import MultimodalData
from calmrl_prob.data.stream import MultimodalStream
from calmrl_prob.errors import ArgumentError
from calmrl_prob.imputation import Imputation, Recalibrator
from calmrl_prob.imputation import impute as impute_rows
from calmrl_prob.inference.protocols import Model
from calmrl_prob.posteriors.posterior import PosteriorResult
from calmrl_prob.writing.parts import PART_OPTIONS, PartOptions, impute_parts


@overload
def impute(
    model: Model | PosteriorResult,
    data: MultimodalData,
    names: Sequence[str] | None = None,
    *,
    recalibrated: Recalibrator | bool | None = None,
    **options: Any,
) -> Imputation: ...


@overload
def impute(
    model: Model,
    data: MultimodalStream,
    names: Sequence[str] | None = None,
    *,
    recalibrated: Recalibrator | bool | None = None,
    **options: Any,
) -> Path | Remote: ...


def impute(
    model: Model | PosteriorResult,
    data: MultimodalData | MultimodalStream,
    names: Sequence[str] | None = None,
    *,
    recalibrated: Recalibrator | bool | None = None,
    **options: Any,
) -> Imputation | Path | Remote:
    """Predict modalities of each instance from those that it has, with uncertainty.

    Args:
        model: whatever :func:`calmrl_prob.posterior` takes, or a result of it for the same data.
        data: N instances, or a stream of them. Modalities of the model that they do not have at all are imputed for
            everyone.
        names: which modalities; all of the model by default.
        recalibrated: what :func:`calmrl_prob.recalibrate` returned for this model: intervals, variances, draws and
            densities are then those that were right on held-out rows. True stands for the last one attached to the
            model (``recalibrate(..., attach=True)``). By default the intervals of a fit that chose its settings, which
            come from its own held-out folds (``fit.intervals``), where there are some; False for the model's own. The
            means are the same in any case, but of a modality whose held-out imputations were no better than its mean.
        **options: of :func:`calmrl_prob.posterior`: ``method``, ``seed`` and those of the route. Of a stream those of
            :class:`~calmrl_prob.writing.parts.PartOptions` besides: ``out``, the folder to write to, and such as
            ``level`` and ``engine="dask"``.

    Returns:
        Means, variances by part, intervals and joint draws; see :class:`Imputation`. Of a stream the folder, with a
        parquet file for each chunk, as :func:`calmrl_prob.write` writes them and :func:`calmrl_prob.read` reads them:
        no more than a chunk is in memory, and files that are there already are not written again, so that a pass that
        was killed goes on.

    Raises:
        SchemaError: a modality that the model does not know, or one of another width.
        ArgumentTypeError: ``model``, ``data`` or ``names`` is of another type (``names`` a string, say).
        ArgumentError: a stream without ``out``, or into a folder that holds something else; data and model are on
            different devices, or ``names`` has none or one twice; or the
            recalibration was made for other parameters than the model has now, or True finds none.

    Warns:
        UnfittedWarning: the model still has the random parameters that it started from.

    Example:
        >>> import tempfile, torch
        >>> from calmrl_prob.linear_gaussian import LinearGaussian
        >>> lg = LinearGaussian(
        ...     {"image": torch.ones(2, 1), "text": 3 * torch.ones(1, 1)},
        ...     {"image": torch.zeros(2), "text": torch.zeros(1)},
        ...     {"image": torch.tensor(2.0), "text": torch.tensor(0.5)},
        ... )
        >>> data = MultimodalData({"image": torch.tensor([[4.0, 4.0]])})
        >>> result = impute(lg, data)
        >>> result
        Imputation of 1 instances (missing: image: 0, text: 1)
        >>> result.mean["text"].tolist()  # E[z] = 2 and Var[z] = 1/2
        [[6.0]]
        >>> result.latent_variance["text"].tolist(), result.noise_variance["text"].tolist()
        ([[4.5]], [0.5])
        >>> tuple(result.sample(10, seed=1)["image"].shape)
        (10, 1, 2)
        >>> folder = tempfile.mkdtemp()
        >>> [path.suffix for path in impute(lg, MultimodalStream.from_chunks(lambda: [data]), out=folder).glob("part*")]
        ['.parquet']
    """
    if not isinstance(data, MultimodalStream):
        if "out" in options:
            raise ArgumentError(
                "out: only streams are imputed into a folder; leave it out, and pass the result to cal.write."
            )
        return impute_rows(model, data, names, recalibrated=recalibrated, **options)
    if isinstance(model, PosteriorResult):
        raise ArgumentError("model: a posterior is of rows in memory; impute a stream with the model.")
    if "out" not in options:
        raise ArgumentError("out: a stream is imputed into files; pass the folder to write to, such as out='imputed'.")
    of_parts = {key: options.pop(key) for key in [*options] if key in PART_OPTIONS}
    how = PartOptions.of(None, of_parts, "a stream")
    if recalibrated is not None:
        options["recalibrated"] = recalibrated
    return impute_parts(model, data, names, how, **options)
