"""Captions against what people wrote: CIDEr, BLEU and ROUGE-L as COCO defines them, and paired differences."""

from __future__ import annotations

from calmrl_prob.evaluation.captions.difference import PairedDifference, paired_bootstrap
from calmrl_prob.evaluation.captions.ngrams import NgramVectors, ngram_vectors
from calmrl_prob.evaluation.captions.scores import CAPTION_METRICS, CaptionScores, score_captions

__all__ = [
    "CAPTION_METRICS",
    "CaptionScores",
    "NgramVectors",
    "PairedDifference",
    "ngram_vectors",
    "paired_bootstrap",
    "score_captions",
]
