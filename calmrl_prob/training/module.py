"""Step 2 of calibrated alignment: encoders are trained on what was observed and what the frozen model imputes.

    loss = E_views objective(views),   views = calibration(encoders(inputs), generative model)

The generative model itself is fitted in step 1, ``generative_step.py``, with the encoders frozen.

Source: Liu et al., Calibrated Multimodal Representation Learning with Missing Modalities, arXiv 2511.12034 (2025).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import lightning
import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.nn.functional import mse_loss, normalize

from calmrl_prob.alignment.calibration import Calibration
from calmrl_prob.alignment.views import Views
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, DataError, FileFormatError, NumericalError, SchemaError
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.training.batches import Batch
from calmrl_prob.training.input_imputation import InputImputation
from calmrl_prob.training.options import AlignOptions

_GENERATIVE, _SETTINGS = "generative_model", "settings"


def as_tensors(lg: LinearGaussian) -> dict[str, Any]:
    """Its parts as plain tensors, of which it can be made again."""
    return {
        "loadings": dict(lg.loadings),
        "intercepts": dict(lg.intercepts),
        "noise_variance": dict(lg.noise_variance),
        "prior_mean": lg.prior_mean,
        "prior_covariance": lg.prior_covariance,
        **({} if lg.noise_factor is None else {"noise_factor": dict(lg.noise_factor)}),
    }


def is_distributed() -> bool:
    """Whether there are other processes."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def require_all_modalities(seen: Mapping[str, bool]) -> None:
    """Refuse what nothing can be learned of.

    Args:
        seen: for each modality whether any training row has it.

    Raises:
        DataError: none has.
    """
    absent = [name for name, here in seen.items() if not here]
    if absent:
        raise DataError(
            f"data: no training row has the modality {absent[0]!r}, so nothing can be learned of it; leave out its "
            "encoder."
        )


def _like_weights(encoder: nn.Module, values: Tensor) -> Tensor:
    """Real inputs in the precision of the encoder's weights: numpy's arrays are float64, modules float32."""
    weights = next((part for part in encoder.parameters() if part.is_floating_point()), None)
    return values if weights is None or not values.is_floating_point() else values.to(weights.dtype)


class AlignmentModule(lightning.LightningModule):
    """Encoders, what they are trained by, and the generative model of their output.

    Args:
        encoders: for each modality a module from (n, ...) to (n, D).
        objective: a function of ``Views``, such as those of ``calmrl_prob.alignment.objectives``; a module's own
            parameters (a temperature) are trained too.
        calibration: completes what the objective sees.
        input_imputation: completes the inputs before they are encoded; None for not.
        settings: by name, what a checkpoint must have been made with to be gone on from; plain values.
        options: of the training; of them the module itself uses ``unit_norm``, ``reconstruction_weight``,
            ``learning_rate``, ``weight_decay`` and ``seed``.
        **changes: single ones of these options, by keyword.

    Raises:
        ArgumentError: both calibration and input imputation would impute, or there is no such option.

    Attributes:
        generative: the model of the representations; None before it was first fitted.
        representations: (B, M, D) of the last training batch, detached; None before it, and with imputed inputs.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module] | nn.ModuleDict,
        objective: Callable[[Views], Tensor],
        calibration: Calibration,
        *,
        input_imputation: InputImputation | None = None,
        settings: Mapping[str, Any] | None = None,
        options: AlignOptions | None = None,
        **changes: Any,
    ) -> None:
        super().__init__()
        self.options = AlignOptions.of(options, changes, "AlignmentModule")
        if input_imputation is not None and calibration.needs_model:
            raise ArgumentError(
                f"calibration: {calibration.name!r} imputes representations, and input_imputation their inputs, so "
                "that nothing is left to impute; use one of the two."
            )
        self.encoders = encoders if isinstance(encoders, nn.ModuleDict) else nn.ModuleDict(dict(encoders))
        self.names = tuple(self.encoders)
        self.objective, self.calibration, self.input_imputation = objective, calibration, input_imputation
        self.generative: LinearGaussian | None = None
        self.representations: Tensor | None = None
        self.settings = dict(settings or {})
        self._seen = torch.zeros(len(self.names), dtype=torch.bool)

    def encode(self, batch: Batch) -> Tensor:
        """Representations (B, M, D); 0 for what is absent.

        Raises:
            SchemaError: an encoder cannot take its inputs, its output is not (n, D), or they differ in D.
            DataError: no instance of the batch has anything.
            NumericalError: an encoder gives what is not finite; the message names the modality.
        """
        parts: dict[str, Tensor] = {}
        for name in self.names:
            values = batch.inputs[name]
            if len(values):
                parts[name] = self._encoded(name, values)
                self._require_rows(name, values, parts[name])
        widths = {name: part.shape[1:] for name, part in parts.items()}
        if len(set(widths.values())) > 1:
            shapes = {name: tuple(shape) for name, shape in widths.items()}
            raise SchemaError(f"encoders: their outputs have the shapes {shapes}; give all the same width D.")
        if not parts:
            raise DataError("data: no instance of a batch has any modality; leave out instances that have nothing.")
        types = {name: part.dtype for name, part in parts.items()}
        if len(set(types.values())) > 1:
            raise SchemaError(
                f"encoders: their outputs are of the types {types}; give all the same, such as by .float()."
            )
        like = next(iter(parts.values()))
        columns = []
        for m, name in enumerate(self.names):
            column = like.new_zeros(len(batch), like.shape[1])
            if name in parts:
                part = normalize(parts[name], dim=1) if self.options.unit_norm else parts[name]
                column = column.index_put((batch.observed_mask[:, m].nonzero().squeeze(1),), part)
            columns.append(column)
        return torch.stack(columns, dim=1)

    def _encoded(self, name: str, values: Tensor) -> Tensor:
        try:
            found: Tensor = self.encoders[name](_like_weights(self.encoders[name], values))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise SchemaError(
                f"encoder {name!r}: it fails on inputs of shape {tuple(values.shape)} and type {values.dtype}, "
                f"{error}; make it for inputs like these."
            ) from error
        return found

    def _require_rows(self, name: str, inputs: Tensor, values: Tensor) -> None:
        if values.ndim != 2 or len(values) != len(inputs):
            raise SchemaError(
                f"encoder {name!r}: of {len(inputs)} instances it makes the shape {tuple(values.shape)}; make it "
                f"({len(inputs)}, D), one vector each."
            )
        if not bool(values.isfinite().all()):
            raise NumericalError(
                f"encoder {name!r}: its output is not finite at step {self.global_step}; lower the learning rate "
                f"({self.options.learning_rate:g}), or look at its inputs."
            )

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """The loss of a batch."""
        generator = torch.Generator(device=self.device).manual_seed(self.stream(batch_index))
        if self.input_imputation is None:
            representations = self.encode(batch)
            self.representations = representations.detach()
            views = self.calibration(representations, batch.observed_mask, self.generative, generator)
        else:
            completed = self.input_imputation.complete(batch, self.names, generator)
            weights = self.input_imputation.weights(batch.observed_mask)
            values = self.encode(completed) * (weights > 0)[:, :, None]
            views = (Views(values, weights.to(values.dtype), batch.observed_mask),)
        loss = torch.stack([self._judged(view) for view in views]).mean()
        if self.options.reconstruction_weight:
            loss = loss + self.options.reconstruction_weight * self._reconstruction(batch)
        if not bool(loss.isfinite()):
            raise NumericalError(
                f"loss: it is {float(loss.detach())} at step {self.global_step}; lower the learning rate "
                f"({self.options.learning_rate:g}) or raise the objective's temperature."
            )
        self._seen |= batch.observed_mask.any(dim=0).cpu()
        self.log("loss", loss.detach(), on_step=False, on_epoch=True, batch_size=len(batch), prog_bar=True)
        return loss

    def _judged(self, view: Views) -> Tensor:
        loss = self.objective(view)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shape = f"the shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ArgumentTypeError(f"objective: expected a tensor of one number of it, got {shape}; return its mean.")
        return loss.reshape(())

    def on_train_epoch_end(self) -> None:
        """No encoder may have gone without anything to learn from.

        Raises:
            DataError: no row of a whole epoch, on any process, has some modality.
        """
        seen = self._seen.to(self.device, torch.int32)
        if is_distributed():
            distributed.all_reduce(seen, distributed.ReduceOp.MAX)
        self._seen.zero_()
        require_all_modalities(dict(zip(self.names, seen.bool().tolist(), strict=True)))

    def stream(self, batch_index: int) -> int:
        """A seed for each batch of each epoch and process, so that a run that resumes draws what it would have."""
        place = (self.options.seed * 1_000_003 + self.current_epoch) * 1_000_003 + batch_index
        return (place * 1_009 + self.global_rank) % 2**63

    def _reconstruction(self, batch: Batch) -> Tensor:
        losses = []
        for name, encoder in self.encoders.items():
            decode: Callable[[Tensor], Tensor] | None = getattr(encoder, "decode", None)
            if len(batch.inputs[name]) and decode is not None:
                values = _like_weights(encoder, batch.inputs[name])
                losses.append(mse_loss(decode(encoder(values)), values))
        return torch.stack(losses).mean() if losses else torch.zeros((), device=self.device)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; with no weight decay of what the objective learns."""
        groups: list[dict[str, Any]] = [{"params": list(self.encoders.parameters())}]
        if isinstance(self.objective, nn.Module) and any(True for _ in self.objective.parameters()):
            groups.append({"params": list(self.objective.parameters()), "weight_decay": 0.0})
        return torch.optim.AdamW(groups, lr=self.options.learning_rate, weight_decay=self.options.weight_decay)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The generative model goes with the weights, and what they were made with."""
        lg = self.generative
        checkpoint[_SETTINGS] = self.settings
        checkpoint[_GENERATIVE] = None if lg is None else as_tensors(lg)

    def require_settings(self, checkpoint: Mapping[str, Any]) -> None:
        """Refuse a checkpoint of another run.

        Raises:
            ArgumentError: it was made with another setting; the message names it.
        """
        recorded: Any = checkpoint.get(_SETTINGS)
        for name, value in self.settings.items():
            if isinstance(recorded, dict) and name in recorded and recorded[name] != value:
                raise ArgumentError(
                    f"resume: the checkpoint was made with {name}={recorded[name]!r:.300}, and this run has {value!r}; "
                    "go on with the same, or start anew without resume."
                )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """And comes back with them.

        Raises:
            FileFormatError: its generative model is of other modalities.
        """
        kept = checkpoint.get(_GENERATIVE)
        self.generative = LinearGaussian(**kept) if kept else None
        if self.generative is not None and tuple(self.generative.names) != self.names:
            raise FileFormatError("the generative model is of other modalities than the encoders")

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Lightning does not know our batches."""
        del dataloader_idx
        return batch.to(device)
