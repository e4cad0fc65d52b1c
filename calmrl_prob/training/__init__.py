"""Calibrated alignment: encoders and a generative model of their output, trained in turn. Needs Lightning.

options           settings: of the training, and of the generative model between its epochs
batches           instances that lack modalities, put together
rows              the training rows of data in memory, or of a dataset
streamed          those of a stream, each process and worker its own chunks
module            step 2: encoders, with the generative model frozen
generative_step   step 1: the generative model, with the encoders frozen
input_imputation  inputs imputed before they are encoded
trainer           Lightning's trainer, and its logs
checkpoints       files that a training goes on from
resuming          what a checkpoint must have for a training to go on from it
stored            what files keep of an alignment
alignment         ``align``: both in turn, with validation and early stopping
"""

from __future__ import annotations

from calmrl_prob.errors import MissingDependencyError

try:
    import lightning as _lightning  # noqa: F401
except ImportError as error:
    raise MissingDependencyError(
        "calmrl_prob.training: it needs Lightning, which is not installed; pip install 'calmrl-prob[train]'."
    ) from error

from calmrl_prob.training.alignment import Alignment, align
from calmrl_prob.training.batches import Batch, Collate
from calmrl_prob.training.generative_step import GenerativeStep
from calmrl_prob.training.input_imputation import InputImputation
from calmrl_prob.training.module import AlignmentModule
from calmrl_prob.training.options import AlignOptions, GenerativeOptions

__all__ = [
    "AlignOptions",
    "Alignment",
    "AlignmentModule",
    "Batch",
    "Collate",
    "GenerativeOptions",
    "GenerativeStep",
    "InputImputation",
    "align",
]
