"""A decoder of captions: a recurrent network conditioned on a text vector, trained on texts alone.

    h_0 = tanh(A c + a),   h_t = GRU(h_(t-1), [word t-1, c]),   p(word t) = softmax(E B h_t + b)

with the embeddings E of the words in and out. Since imputed vectors are other than real ones (they lie nearer to the
mean, and err), it is trained on what the generative model would impute: for a text x its posterior mean m given other
modalities that the model draws for that text. With C the covariance of texts and S that of the posterior predictive,

    m | x ~ N(mu + (C - S) C^-1 (x - mu),  (C - S) - (C - S) C^-1 (C - S))

which needs no row that has another modality: rows of text alone train it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import calmrl_prob as cal
from calmrl_prob.data import MultimodalData
from calmrl_prob.evaluation.captions import ngram_vectors
from calmrl_prob.linear_gaussian import LinearGaussian
from experiments.captioning.bank import Array
from experiments.captioning.words import END, PAD, START, Vocabulary

#: Words of a caption at most; longer ones are cut in training.
LONGEST = 20


class Decoder(nn.Module):
    """The network; see the file.

    Args:
        words: number of words V.
        condition: D, of the vectors.
        width: of the hidden state.
        embedding: of words.
        dropout: share of what comes out of the recurrence that is dropped in training.
    """

    def __init__(
        self, words: int, condition: int, width: int = 320, embedding: int = 192, dropout: float = 0.3
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, embedding, padding_idx=PAD)
        self.start = nn.Linear(condition, width)
        self.condition = nn.Linear(condition, embedding)
        self.recurrence = nn.GRU(2 * embedding, width, batch_first=True)
        self.back = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, embedding))
        self.bias = nn.Parameter(torch.zeros(words))
        self.register_buffer("centre", torch.zeros(condition))  # of the training texts, and their scale
        self.register_buffer("scale", torch.ones(()))

    def begin(self, condition: Tensor) -> Tensor:
        """The first hidden state, (1, n, width), of conditions (n, D)."""
        return torch.tanh(self.start((condition - self.centre) / self.scale))[None]

    def forward(self, words: Tensor, condition: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of the next words (n, T, V) after words (n, T), and the state then."""
        beside = self.condition((condition - self.centre) / self.scale)[:, None].expand(-1, words.shape[1], -1)
        hidden, state = self.recurrence(torch.cat([self.embedding(words), beside], dim=2), state)
        return self.back(hidden) @ self.embedding.weight.T + self.bias, state


@dataclass(frozen=True)
class Written:
    """Captions that a decoder wrote.

    Attributes:
        texts: n captions.
        confidence: geometric mean of the probabilities of its words, (n,), in [0, 1].
    """

    texts: list[str]
    confidence: Array


@torch.no_grad()
def write(decoder: Decoder, vocabulary: Vocabulary, condition: Array, beam: int = 3) -> Written:
    """Beam search: the caption of largest mean log probability of its words among those that the beam keeps.

    Args:
        decoder: trained.
        vocabulary: of it.
        condition: text vectors, (n, D).
        beam: number of beginnings that are kept; 1 is greedy.
    """
    decoder.eval()
    number = len(condition)
    given = torch.from_numpy(np.asarray(condition)).float().repeat_interleave(beam, dim=0)
    state, words = decoder.begin(given), torch.full((number * beam, 1), START)
    total = torch.full((number, beam), -torch.inf)
    total[:, 0] = 0.0
    ended, length = torch.zeros(number, beam, dtype=torch.bool), torch.zeros(number, beam)
    for _ in range(LONGEST):
        scores, state = decoder(words[:, -1:], given, state)
        scores = scores[:, -1].log_softmax(dim=1)
        scores[:, [PAD, START, 3]] = -torch.inf
        frozen = torch.full_like(scores, -torch.inf)
        frozen[:, PAD] = 0.0  # a caption that has ended stays as it is
        scores = torch.where(ended.view(-1, 1), frozen, scores).view(number, beam, -1)
        total, place = (total[:, :, None] + scores).flatten(1).topk(beam, dim=1)
        parent, word = place // scores.shape[2], place % scores.shape[2]
        rows = (torch.arange(number)[:, None] * beam + parent).view(-1)
        words, state = torch.cat([words[rows], word.view(-1, 1)], dim=1), state[:, rows]
        length = length.gather(1, parent) + (~ended.gather(1, parent)).float()
        ended = ended.gather(1, parent) | (word == END)
        if bool(ended.all()):
            break
    mean = total / length
    best = mean.argmax(dim=1)
    chosen = words.view(number, beam, -1)[torch.arange(number), best, 1:]
    texts = [vocabulary.decode(row.tolist()) for row in chosen]
    return Written(texts, mean.gather(1, best[:, None]).squeeze(1).exp().double().numpy())


def write_draws(decoder: Decoder, vocabulary: Vocabulary, conditions: Array, beam: int = 3) -> Written:
    """Write for each of S draws of a row's text; of the S captions the one that agrees most with all of them.

    The agreement is CIDEr / 10, mean over the draws, and the caption's confidence: that of least Bayes risk among them.

    Args:
        decoder: trained.
        vocabulary: of it.
        conditions: draws of text vectors, (S, n, D).
        beam: number of beginnings that are kept.
    """
    written = [write(decoder, vocabulary, part, beam).texts for part in conditions]
    by_row = [list(texts) for texts in zip(*written, strict=True)]
    if not any(text for own in by_row for text in own):
        return Written([own[0] for own in by_row], np.zeros(len(by_row)))
    vectors = ngram_vectors(by_row)[0].stacked()
    number, texts, confidence = len(conditions), [], np.zeros(len(by_row))
    for row, own in enumerate(by_row):
        part = vectors[row * number : (row + 1) * number]
        agreement = np.asarray((part @ part.T).mean(axis=1)).ravel()
        best = int(agreement.argmax())
        texts.append(own[best])
        confidence[row] = agreement[best]
    return Written(texts, confidence)


def train_decoder(
    texts: Array,
    captions: Sequence[Sequence[str]],
    vocabulary: Vocabulary,
    draw: Callable[[Tensor], Tensor],
    *,
    epochs: int,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
    **shape: int,
) -> Decoder:
    """Train on text vectors and captions of the same rows.

    Args:
        texts: (N, D).
        captions: of each row one or more, normalised.
        vocabulary: of the words.
        draw: what the decoder is shown for a batch of texts (B, D), drawn anew each time.
        epochs: passes over all captions.
        batch_size: captions a step.
        learning_rate: of Adam, falling to a tenth along a cosine.
        seed: of weights, order and draws.
        progress: called after each pass.
        **shape: of :class:`Decoder`.
    """
    encoded = [vocabulary.encode(" ".join(text.split()[: LONGEST - 1])) for own in captions for text in own]
    row = torch.from_numpy(np.repeat(np.arange(len(captions)), [len(own) for own in captions]))
    known = torch.from_numpy(np.asarray(texts)).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = Decoder(len(vocabulary), known.shape[1], **shape)
        decoder.centre.copy_(known.mean(dim=0))
        decoder.scale.copy_(known.std(dim=0).mean())
        optimizer = torch.optim.Adam(decoder.parameters(), lr=learning_rate)
        steps = epochs * -(-len(encoded) // batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, learning_rate / 10)
        for epoch in range(epochs):
            decoder.train()
            for batch in _batches(encoded, batch_size):
                condition = draw(known[row[batch]])
                target = nn.utils.rnn.pad_sequence([torch.tensor(encoded[n]) for n in batch], batch_first=True)
                before = torch.cat([torch.full((len(batch), 1), START), target[:, :-1]], dim=1)
                scores, _ = decoder(before, condition, decoder.begin(condition))
                loss = cross_entropy(scores.flatten(0, 1), target.flatten(), ignore_index=PAD)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
                optimizer.step()
                schedule.step()
            if progress is not None:
                progress(f"decoder, pass {epoch + 1} of {epochs}")
    return decoder.eval()


def imputed_draws(
    model: LinearGaussian, sets: Sequence[Sequence[str]], text: str, back: Array, clean: float = 0.25
) -> Callable[[Tensor], Tensor]:
    """What the model would impute for texts from sets of other modalities, drawn; of each text one set at random.

    Args:
        model: of all modalities.
        sets: of modalities to impute from.
        text: what is imputed, in the coordinates of ``back``.
        back: from these to features, (coordinates, D), orthogonal rows of one length.
        clean: share of the texts that is shown as it is.

    Returns:
        A function of texts (B, D).
    """
    centre = model.intercepts[text].double()
    loadings = model.loadings[text].double()
    factor = (model.noise_factor or {}).get(text, loadings[:, :0]).double()
    own = (factor @ factor.T).fill_diagonal_(0.0) + torch.diag(model.noise_variance[text].double())
    whole = loadings @ loadings.T + own
    maps = []
    for given in sets:
        row = MultimodalData({name: model.intercepts[name][None] for name in given})
        spread = cal.posterior(model, row).covariance[0].double()
        told = whole - (loadings @ spread @ loadings.T + own)
        pull = torch.linalg.solve(whole, told).T
        values, axes = torch.linalg.eigh(told - pull @ told)
        maps.append((pull.float(), (axes * values.clamp_min(0.0).sqrt()).float()))
    lead = torch.from_numpy(back).float()
    unit, middle = float(lead[0] @ lead[0]), centre.float()

    def draw(texts: Tensor) -> Tensor:
        kind = torch.randint(len(maps), (len(texts),))
        shown = texts @ lead.T / unit
        for place, (pull, root) in enumerate(maps):
            rows = (kind == place) & (torch.rand(len(texts)) >= clean)
            noise = torch.randn(int(rows.sum()), root.shape[1]) @ root.T
            shown[rows] = middle + (shown[rows] - middle) @ pull.T + noise
        return shown @ lead

    return draw


def _batches(encoded: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Batches of captions of about the same length, in random order."""
    order = torch.randperm(len(encoded)).tolist()
    chunk = 20 * size
    batches = []
    for start in range(0, len(order), chunk):
        part = sorted(order[start : start + chunk], key=lambda n: len(encoded[n]))
        batches += [part[first : first + size] for first in range(0, len(part), size)]
    return [batches[n] for n in torch.randperm(len(batches)).tolist()]
