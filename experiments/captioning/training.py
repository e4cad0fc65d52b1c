"""The decoder of a seed: trained on texts alone where there are such rows, so that one serves all missingnesses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import calmrl_prob as cal
from experiments.captioning.decoder import imputed_draws, train_decoder
from experiments.captioning.sources import Captioned
from experiments.captioning.study import Study, Trained
from experiments.captioning.words import Vocabulary
from experiments.comparison.imputers import has, values

#: Rows of text alone that are enough to train a decoder on.
_ENOUGH = 1000
_LATENTS, _PSEUDO_ROWS = 64, 300


def text_alone(source: Captioned) -> np.ndarray:
    """Numbers of the training rows that are text alone; none where they are too few to train a decoder on."""
    rows = np.flatnonzero(has(source.train, source.text) & (source.train.observed_mask.sum(dim=1).numpy() == 1))
    return rows if len(rows) >= _ENOUGH else rows[:0]


def trained_decoder(
    study: Study, settings: Mapping[str, Any], progress: Callable[[str], None] | None = None
) -> Trained:
    """Train on rows of text alone, or where there are none on those that have the text after removal.

    What it is shown are draws of a model of the study's rows: :func:`imputed_draws`.

    Args:
        study: of the seed; of any missingness where rows of text alone are enough.
        settings: of the decoder and its training, as the configuration has them.
        progress: called after each pass.
    """
    source, fit, text = study.source, study.learning.fit, study.source.text
    alone = text_alone(source)
    captions = [source.captions[row] for row in alone] if len(alone) else study.bank_captions
    texts = values(source.train.subset(alone), text) if len(alone) else values(study.texts, text) @ study.back
    options = dict(settings)
    beam, least, draws = (options.pop(name) for name in ("beam", "min_count", "draws"))
    vocabulary = Vocabulary.learn((caption for own in captions for caption in own), least)
    latents = min(_LATENTS, min(fit.dims.values()))
    found = cal.fit(cal.SharedLatentModel(fit.dims, latents), fit, pseudo_rows=_PSEUDO_ROWS, progress=False)
    draw = imputed_draws(found.linear_gaussian(), source.sets, text, study.back)
    seed = study.learning.seed
    decoder = train_decoder(texts, captions, vocabulary, draw, seed=seed, progress=progress, **options)
    return Trained(decoder, vocabulary, beam, draws)
