"""Words of captions: one normalisation for references, training and what is written, and a vocabulary.

Normalised: lower case; words are runs of letters and digits of any script, with an apostrophe inside ("don't"); a
possessive 's is a word of its own, as in the Penn Treebank; all punctuation is dropped, and a hyphen parts words.
COCO's tokenizer does about the same (it keeps words with a hyphen whole); it is a Java program.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from calmrl_prob.errors import DataError

_WORD = re.compile(r"'s\b|[^\W_]+(?:'(?!s\b)[^\W_]+)*")

#: Numbers of what is no word: filling after the end, the start, the end, a word outside the vocabulary.
PAD, START, END, UNKNOWN = range(4)


def normalized(caption: str) -> str:
    """The caption's words, parted by single spaces.

    Example:
        >>> normalized("A man's T-shirt , isn't it ?")
        "a man 's t shirt isn't it"
    """
    return " ".join(_WORD.findall(caption.lower().replace("\u2019", "'")))


@dataclass(frozen=True)
class Vocabulary:
    """Words by number, the commonest first, after the four of what is no word.

    Attributes:
        words: of the training captions.
    """

    words: tuple[str, ...]

    @classmethod
    def learn(cls, captions: Iterable[str], least: int = 1) -> Vocabulary:
        """All words of normalised captions that occur at least ``least`` times.

        Raises:
            DataError: there is none.

        Example:
            >>> vocabulary = Vocabulary.learn(["a dog", "a cat", "the dog"], least=2)
            >>> vocabulary.words, vocabulary.encode("a red dog"), vocabulary.decode([4, 5, 2, 4])
            (('a', 'dog'), [4, 3, 5, 2], 'a dog')
        """
        counts = Counter(word for caption in captions for word in caption.split())
        words = sorted(
            (word for word, count in counts.items() if count >= least), key=lambda word: (-counts[word], word)
        )
        if not words:
            raise DataError(f"captions: no word occurs {least} times; give more captions, or lower min_count.")
        return cls(tuple(words))

    def __len__(self) -> int:
        """Number of words, with those of what is no word."""
        return UNKNOWN + 1 + len(self.words)

    def encode(self, caption: str) -> list[int]:
        """Numbers of the words of a normalised caption, then the end."""
        if not hasattr(self, "_numbers"):
            numbers = {word: n for n, word in enumerate(self.words, start=UNKNOWN + 1)}
            object.__setattr__(self, "_numbers", numbers)  # made once, when first needed
        return [*(self._numbers.get(word, UNKNOWN) for word in caption.split()), END]

    def decode(self, numbers: Sequence[int]) -> str:
        """Words up to the end."""
        found = []
        for number in numbers:
            if number == END:
                break
            if number > UNKNOWN:
                found.append(self.words[number - UNKNOWN - 1])
        return " ".join(found)
