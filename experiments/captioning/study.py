"""One seed of one missingness: contenders learn, settings are chosen on validation rows, test rows are captioned."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import CalmrlError
from calmrl_prob.evaluation.captions import CaptionScores, score_captions
from calmrl_prob.evaluation.captions.cider import cider_by_image
from experiments.captioning.bank import Array, CaptionBank, Ranked
from experiments.captioning.contenders import Fitted, Learning
from experiments.captioning.decoder import Decoder, write, write_draws
from experiments.captioning.sources import Captioned, projected
from experiments.captioning.words import Vocabulary
from experiments.comparison.imputers import values

logger = logging.getLogger(__name__)

#: Temperatures of the consensus to choose from: of cosines, and of log-likelihood ratios in nats.
TEMPERATURES: Mapping[str, Sequence[float]] = {
    "cosine": (0.02, 0.05, 0.1, 0.2),
    "ratio": (1.0, 2.0, 4.0, 8.0, 16.0),
}
#: Validation captions below which nothing is chosen.
_LEAST = 10


@dataclass(frozen=True)
class Trained:
    """A decoder with its words, of the seed.

    Attributes:
        decoder: the network.
        vocabulary: its words.
        beam: beginnings that are kept as it writes.
        draws: of a row's imputed text for which it writes besides; 0 for none.
    """

    decoder: Decoder
    vocabulary: Vocabulary
    beam: int
    draws: int = 0


@dataclass(frozen=True)
class Chosen:
    """A contender with the settings that validation rows chose.

    Attributes:
        fitted: one of its fits.
        score: of the rows of the bank.
        temperature: of the consensus.
        recalled: whether the decoder is shown the mean of the likely rows' texts, not the predicted text.
        thresholds: confidence of consensus and decoder, below which the share of validation captions that was asked
            for lies: rows below abstain.
    """

    fitted: Fitted
    score: str
    temperature: float
    recalled: bool = True
    thresholds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Caption:
    """Captions of all test rows by one contender from one set of modalities.

    Attributes:
        given: the set.
        captioner: "nearest", "consensus", "decoder" or "decoder, draws".
        texts: the captions.
        confidence: of each; None where there is none.
        scores: against the references.
        threshold: confidence below which a row abstains; NaN where none was found.
    """

    given: tuple[str, ...]
    captioner: str
    texts: list[str]
    confidence: Array | None
    scores: CaptionScores
    threshold: float = float("nan")

    @property
    def answered(self) -> NDArray[np.bool_]:
        """Rows that do not abstain, (n,)."""
        if self.confidence is None or np.isnan(self.threshold):
            return np.ones(len(self.texts), dtype=bool)
        return self.confidence >= self.threshold

    def of_answered(self) -> float:
        """CIDEr-D of the rows that do not abstain; NaN where all do, or there is no threshold."""
        if np.isnan(self.threshold) or not self.answered.any():
            return float("nan")
        return float(self.scores.by_image["CIDEr-D"].to_numpy()[self.answered].mean())


class Study:
    """Rows of one seed and one missingness.

    Args:
        source: the data.
        incomplete: its training rows after removal.
        validation_share: of the training rows that have more than one modality.
        components: principal axes of each modality.
        seed: of the validation rows and of fits.
        abstain: share of the validation captions that thresholds of confidence are to keep back.
    """

    def __init__(
        self,
        source: Captioned,
        incomplete: MultimodalData,
        validation_share: float,
        components: int | None,
        seed: int,
        abstain: float = 0.5,
    ) -> None:
        self.source, self.abstain = source, abstain
        own = held_out_rows(source, validation_share, seed)
        others = np.setdiff1d(np.arange(len(incomplete)), own)
        parts = [incomplete.subset(others), incomplete.subset(own), source.test]
        (fit, validation, self.test), back = projected(parts, components)
        self.back = back[source.text]
        self.learning = Learning(fit, validation, source.text, seed)
        place = np.flatnonzero(fit.observed(source.text).numpy())
        self.bank_captions = [source.captions[row] for row in others[place]]
        self.bank = CaptionBank(self.bank_captions)
        self.texts = fit.subset(place).select([source.text])
        self._validation = self._grouped(validation, own)

    def run(self, make: Callable[[Learning], Sequence[Fitted]], trained: Trained | None) -> Iterator[Caption]:
        """Learn, choose, and caption the test rows from each set of modalities."""
        options = make(self.learning)
        if not options:
            return
        chosen = self._choose(options, trained)
        logger.info("chosen: %s at %g, recalled %s", chosen.score, chosen.temperature, chosen.recalled)
        for given in self.source.sets:
            queries = self.test.select(list(given))
            ranked = chosen.fitted.ranked(queries, self.texts)[chosen.score]
            ((texts, agreement),) = self.bank.consensus(ranked, [chosen.temperature])
            yield self._scored(given, "nearest", self.bank.nearest(ranked), None)
            yield self._scored(given, "consensus", texts, agreement, chosen)
            if trained is not None:
                found = write(
                    trained.decoder, trained.vocabulary, self._condition(chosen, queries, ranked), trained.beam
                )
                yield self._scored(given, "decoder", found.texts, found.confidence, chosen)
                drawn = chosen.fitted.drawn(queries, trained.draws, self.learning.seed) if trained.draws else None
                if drawn is not None:
                    found = write_draws(trained.decoder, trained.vocabulary, drawn @ self.back, trained.beam)
                    yield self._scored(given, "decoder, draws", found.texts, found.confidence)

    def _scored(
        self,
        given: tuple[str, ...],
        captioner: str,
        texts: list[str],
        confidence: Array | None,
        chosen: Chosen | None = None,
    ) -> Caption:
        threshold = float("nan") if chosen is None else chosen.thresholds.get(captioner, float("nan"))
        return Caption(given, captioner, texts, confidence, score_captions(texts, self.source.references), threshold)

    def _condition(self, chosen: Chosen, queries: MultimodalData, ranked: Ranked) -> Array:
        if not chosen.recalled:
            predicted = chosen.fitted.predicted(queries)
            assert predicted is not None
            return predicted @ self.back
        weights, texts = ranked.probabilities(chosen.temperature), values(self.texts, self.source.text)
        found: Array = np.einsum("nk,nkd->nd", weights, texts[ranked.places])
        return found @ self.back

    def _choose(self, options: Sequence[Fitted], trained: Trained | None) -> Chosen:
        """The fit, score and temperature of highest CIDEr-D of consensus captions of validation rows."""
        rows = [reference for _, own in self._validation for reference in own]
        found: list[tuple[float, Chosen]] = []
        for fitted in options:
            ranked = [fitted.ranked(queries, self.texts) for queries, _ in self._validation]
            names = ranked[0] if ranked else fitted.ranked(self.test.select([self.source.given[0]]), self.texts)
            for score in names:
                temperatures = TEMPERATURES[score]
                captions = [self.bank.consensus(part[score], temperatures) for part in ranked]
                for place, temperature in enumerate(temperatures):
                    texts = [text for part in captions for text in part[place][0]]
                    sure = [value for part in captions for value in part[place][1]]
                    value = float(cider_by_image(texts, rows)[1].mean()) if len(rows) >= _LEAST else 0.0
                    kept = {"consensus": float(np.quantile(sure, self.abstain))} if len(rows) >= _LEAST else {}
                    found.append((value, Chosen(fitted, score, temperature, thresholds=kept)))
        best = max(found, key=lambda item: item[0])[1]
        if trained is None or len(rows) < _LEAST:
            return best
        shown = (True, False) if best.fitted.predicted(self._validation[0][0]) is not None else (True,)
        tried = [self._written(replace(best, recalled=recalled), trained, rows) for recalled in shown]
        return max(tried, key=lambda item: item[0])[1]

    def _written(self, chosen: Chosen, trained: Trained, rows: list[list[str]]) -> tuple[float, Chosen]:
        """CIDEr-D of what the decoder writes for validation rows, and the setting with the threshold that it has."""
        texts: list[str] = []
        sure: list[float] = []
        for queries, _ in self._validation:
            ranked = chosen.fitted.ranked(queries, self.texts)[chosen.score]
            found = write(trained.decoder, trained.vocabulary, self._condition(chosen, queries, ranked), trained.beam)
            texts += found.texts
            sure += found.confidence.tolist()
        kept = {**chosen.thresholds, "decoder": float(np.quantile(sure, self.abstain))}
        return float(cider_by_image(texts, rows)[1].mean()), replace(chosen, thresholds=kept)

    def _grouped(
        self, validation: MultimodalData, rows: NDArray[np.int64]
    ) -> list[tuple[MultimodalData, list[list[str]]]]:
        """Validation rows that have the text, by which of the given modalities they have besides, with captions."""
        observed = {name: validation.observed(name).numpy() for name in validation.names}
        parts = []
        for given in self.source.sets:
            here = observed[self.source.text].copy()
            for name in self.source.given:
                here &= observed[name] if name in given else ~observed[name]
            if here.any():
                captions = [self.source.captions[row] for row in rows[here]]
                parts.append((validation.subset(here).select(list(given)), captions))
        return parts


def held_out_rows(source: Captioned, share: float, seed: int) -> NDArray[np.int64]:
    """Numbers of the validation rows, rising: a share of those of several modalities; of whole groups where there are.

    Args:
        source: the data.
        share: of them.
        seed: decides which.
    """
    several = np.flatnonzero(source.train.observed_mask.sum(dim=1).numpy() > 1)
    rng = np.random.default_rng(seed)
    if source.groups is None:
        return np.sort(rng.permutation(several)[: round(share * len(several))])
    names = rng.permutation(np.unique(source.groups[several]))
    return several[np.isin(source.groups[several], names[: max(1, round(share * len(names)))])]


def attempt(what: str, steps: Iterator[Caption]) -> list[Caption]:
    """All captions of a contender; none where its data cannot be learned from, with the reason in the log."""
    started = time.process_time()
    try:
        found = list(steps)
    except CalmrlError as error:
        logger.warning("left out: %s: %s", what, error)
        return []
    logger.info("%s: %.1f CPU s", what, time.process_time() - started)
    return found
