"""Generated scenes, each as an image, a tone and a caption: raw inputs of three kinds, for encoders to be trained on.

What a scene is, and who can tell, exactly (=) or in words or steps only (~):

    attribute    values                  image                  tone                  caption
    shape        4 kinds                 = outline                                    ~ one of 2 words
    colour       6 hues                  ~ hue, jittered                              = word
    size         [0, 1]                  = extent               = pitch (low: large)  ~ 5 words
    place        [0, 1]                  = left to right        = when it begins      ~ 5 words
    height       [0, 1]                  = up and down                                ~ 3 words
    stripes      [0, 1]                  = density of stripes   = speed of tremolo    ~ 3 words
    brightness   [0, 1]                  = lightness            = overtones           ~ 3 words
    pulses       1 to 4                                         = how many            = word

So each pair of modalities shares some attributes, none shares all, and each has private variation besides: background
and pixel noise; phase, loudness and hiss; words that say the same, and their order. A caption leaves each of its
words out now and then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from calmrl_prob._support.arguments import real_number, whole_number
from calmrl_prob._support.arrays import own_array
from calmrl_prob.data import MultimodalData
from calmrl_prob.encoders import log_spectrogram
from calmrl_prob.errors import ArgumentError

#: The modalities, in the order of masks.
NAMES = ("image", "tone", "caption")
#: Samples of a tone, and how many of them are a second of it.
SAMPLES = SAMPLE_RATE = 1024
#: Words of an attribute's values, from its lowest to its highest; several of one value mean the same.
WORDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "shape": (("disc", "circle"), ("square", "box"), ("triangle", "wedge"), ("ring", "hoop")),
    "colour": (("red",), ("yellow",), ("green",), ("cyan",), ("blue",), ("magenta",)),
    "size": (("tiny",), ("small",), ("medium",), ("large",), ("huge",)),
    "place": (("leftmost",), ("left",), ("centre",), ("right",), ("rightmost",)),
    "height": (("high",), ("middle",), ("low",)),
    "stripes": (("plain",), ("striped",), ("hatched",)),
    "brightness": (("dark", "dull"), ("fair",), ("bright", "light")),
    "pulses": (("once",), ("twice",), ("thrice",), ("fourfold",)),
}
_WORD_LEFT_OUT = 0.05
#: Token 0 is padding.
VOCABULARY = ("", *(word for values in WORDS.values() for same in values for word in same))


@dataclass(frozen=True)
class Scenes(Dataset[Any]):
    """N scenes; items are dicts that leave out what the instance lacks.

    Attributes:
        images: (N, 3, H, H) float32, red, green and blue in about [0, 1].
        tones: (N, 1024) float32, one second in about [-1, 1].
        captions: (N, 8) int64 tokens, places in ``VOCABULARY``, padded with 0.
        attributes: for each name of ``WORDS`` its values (N,), whole numbers or shares.
        observed_mask: (N, 3) bool, True = PRESENT, modalities in the order image, tone, caption.
    """

    images: Tensor
    tones: Tensor
    captions: Tensor
    attributes: Mapping[str, Tensor]
    observed_mask: Tensor

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities."""
        return NAMES

    @property
    def inputs(self) -> dict[str, Tensor]:
        """For each modality all its inputs, those that the mask hides too."""
        return dict(zip(NAMES, (self.images, self.tones, self.captions), strict=True))

    def __len__(self) -> int:
        return len(self.observed_mask)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        here = zip(self.inputs.items(), self.observed_mask[row].tolist(), strict=True)
        return {name: values[row] for (name, values), present in here if present}

    def mask(self, observed_mask: Tensor) -> Scenes:
        """The same scenes with fewer modalities.

        Args:
            observed_mask: (N, 3) bool, True = PRESENT; what is absent already stays so.

        Raises:
            ArgumentError: another shape, or a scene that would have nothing.
        """
        if observed_mask.shape != self.observed_mask.shape:
            expected, got = tuple(self.observed_mask.shape), tuple(observed_mask.shape)
            raise ArgumentError(f"observed_mask: expected the shape {expected}, got {got}.")
        both = self.observed_mask & observed_mask
        if not bool(both.any(dim=1).all()):
            row = int((~both.any(dim=1)).nonzero()[0])
            raise ArgumentError(f"observed_mask: scene {row} would have no modality; leave it at least one.")
        return replace(self, observed_mask=both)

    def subset(self, rows: Sequence[int] | Tensor | np.ndarray) -> Scenes:
        """Some of the scenes, in the order given."""
        index = torch.as_tensor(rows)
        attributes = {name: values[index] for name, values in self.attributes.items()}
        return Scenes(
            self.images[index], self.tones[index], self.captions[index], attributes, self.observed_mask[index]
        )

    def text(self, row: int) -> str:
        """The caption of a scene in words."""
        return " ".join(VOCABULARY[token] for token in self.captions[row].tolist() if token)

    def features(self, dtype: torch.dtype = torch.float32) -> MultimodalData:
        """Flat features that need no training: pixels, log spectrogram and counts of words.

        Labels are the shapes; covariates the attributes.
        """
        counts = torch.nn.functional.one_hot(self.captions, len(VOCABULARY)).sum(dim=1)[:, 1:]
        arrays = (self.images.flatten(1), log_spectrogram(self.tones).flatten(1), counts)
        return MultimodalData(
            {name: array.to(dtype) for name, array in zip(NAMES, arrays, strict=True)},
            observed_mask=self.observed_mask,
            labels=self.attributes["shape"],
            covariates={name: own_array(values) for name, values in self.attributes.items()},
            attributes={"name": "scenes"},
        )


def make_scenes(num_instances: int = 2000, *, image_size: int = 32, noise: float = 0.05, seed: int = 0) -> Scenes:
    """Draw scenes and what is seen, heard and said of them; nothing is missing until :meth:`Scenes.mask`.

    Args:
        num_instances: N.
        image_size: H, pixels of each side, at least 8.
        noise: standard deviation of pixel noise and of hiss, in units of the full range.
        seed: the same seed gives the same scenes.

    Raises:
        ArgumentError: a size is too small, or the noise negative.
        ArgumentTypeError: an argument is of another type.

    Example:
        >>> from calmrl_prob.data.missingness import pairs
        >>> scenes = make_scenes(100, seed=0)
        >>> scenes.images.shape, scenes.tones.shape, scenes.captions.shape
        (torch.Size([100, 3, 32, 32]), torch.Size([100, 1024]), torch.Size([100, 8]))
        >>> scenes.text(0), int(scenes.attributes["pulses"][0])
        ('plain magenta twice dull medium circle left low', 2)
        >>> incomplete = scenes.mask(pairs(scenes.features(), complete=0.15))
        >>> sorted(incomplete[0])
        ['caption', 'tone']
    """
    number, size = whole_number("num_instances", num_instances, 1), whole_number("image_size", image_size, 8)
    if real_number("noise", noise, 0.05) < 0:
        raise ArgumentError(f"noise: expected at least 0, got {noise!r}.")
    generator = torch.Generator().manual_seed(whole_number("seed", seed))
    attributes: dict[str, Tensor] = {}
    for name in WORDS:
        if name in ("shape", "colour", "pulses"):
            attributes[name] = torch.randint(len(WORDS[name]), (number,), generator=generator) + int(name == "pulses")
        else:
            attributes[name] = torch.rand(number, generator=generator)
    return Scenes(
        _images(attributes, size, noise, generator),
        _tones(attributes, noise, generator),
        _captions(attributes, generator),
        attributes,
        torch.ones(number, len(NAMES), dtype=torch.bool),
    )


def load_scenes(
    *,
    num_instances: int = 1000,
    image_size: int = 16,
    noise: float = 0.05,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> MultimodalData:
    """Complete scenes as flat features, :meth:`Scenes.features`; arguments as :func:`make_scenes` has them.

    Example:
        >>> load_scenes(num_instances=10).dims
        {'image': 768, 'tone': 975, 'caption': 39}
    """
    return make_scenes(num_instances, image_size=image_size, noise=noise, seed=seed).features(dtype)


def _images(attributes: Mapping[str, Tensor], size: int, noise: float, generator: torch.Generator) -> Tensor:
    """One object on a shaded ground, its edges softened over a pixel, (N, 3, H, H)."""
    number = len(attributes["size"])
    grid = (torch.arange(size) + 0.5) / size
    radius = (0.12 + 0.16 * attributes["size"])[:, None, None]
    x = grid[None, None, :] - (0.25 + 0.5 * attributes["place"])[:, None, None]
    y = grid[None, :, None] - (0.25 + 0.5 * attributes["height"])[:, None, None]
    distance = (x.square() + y.square()).sqrt()
    outlines = (
        distance - radius,
        torch.maximum(x.abs(), y.abs()) - 0.85 * radius,
        torch.maximum(0.87 * x.abs() + 0.5 * y, -y) - 0.6 * radius,  # sides away from the middle: tip below
        (distance - 0.75 * radius).abs() - 0.25 * radius,
    )
    signed = torch.zeros(number, size, size)
    for kind, outline in enumerate(outlines):
        signed = torch.where((attributes["shape"] == kind)[:, None, None], outline, signed)
    inside = (-signed * size).sigmoid()
    periods = (8 * attributes["stripes"])[:, None, None]
    phase = 2 * math.pi * torch.rand(number, 1, 1, generator=generator)
    stripes = 1 - 0.35 * (1 + torch.cos(2 * math.pi * periods * (x + y) + phase)) / 2
    hue = attributes["colour"] / 6 + 0.02 * torch.randn(number, generator=generator)
    channels = torch.arange(3)[None] / 3  # red, green and blue are a third of the circle apart
    paint = (0.5 + torch.cos(2 * math.pi * (hue[:, None] - channels)) / 2) * (0.3 + 0.7 * attributes["brightness"])[
        :, None
    ]
    ground = 0.2 * torch.rand(number, 3, 1, 1, generator=generator)
    shade = 0.2 * torch.rand(number, 1, 1, 1, generator=generator) * grid[None, None, :, None]
    painted = paint[:, :, None, None] * stripes[:, None]
    images = torch.lerp((ground + shade).expand(-1, -1, size, size), painted, inside[:, None])
    return images + noise * torch.randn(images.shape, generator=generator)


def _tones(attributes: Mapping[str, Tensor], noise: float, generator: torch.Generator) -> Tensor:
    """Pulses of a tone with overtones and tremolo, after a silence, (N, T)."""
    number = len(attributes["size"])
    time = torch.arange(SAMPLES)[None] / SAMPLE_RATE
    pitch = 40 * 2 ** (2 * (1 - attributes["size"]))[:, None]  # two octaves, cycles a second
    start = 0.35 * attributes["place"][:, None]
    since = time - start
    tone = torch.zeros(number, SAMPLES)
    for overtone in range(1, 4):
        phase = 2 * math.pi * torch.rand(number, 1, generator=generator)
        share = attributes["brightness"][:, None] ** (overtone - 1) if overtone > 1 else torch.ones(number, 1)
        tone += share * torch.sin(2 * math.pi * overtone * pitch * since + phase)
    tremolo = 1 + 0.8 * torch.sin(2 * math.pi * (2 + 18 * attributes["stripes"])[:, None] * since)
    beat = since * attributes["pulses"][:, None] / 0.65
    pulse = torch.exp(-2 * beat.remainder(1.0)) * (since >= 0) * (since < 0.65)
    loudness = 0.2 + 0.1 * torch.rand(number, 1, generator=generator)
    return loudness * tone * tremolo * pulse + 0.5 * noise * torch.randn(number, SAMPLES, generator=generator)


def _captions(attributes: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
    """One word for each attribute, some left out, in any order, (N, 8) tokens with padding last."""
    number = len(attributes["size"])
    columns = []
    for name, values in WORDS.items():
        found = attributes[name]
        steps = (found * len(values)).long() if found.is_floating_point() else found - int(name == "pulses")
        choices = torch.rand(number, generator=generator)
        tokens = torch.zeros(number, dtype=torch.int64)
        for step, same in enumerate(values):
            first = VOCABULARY.index(same[0])
            tokens = torch.where(steps == step, first + (choices * len(same)).long(), tokens)
        columns.append(torch.where(torch.rand(number, generator=generator) < _WORD_LEFT_OUT, 0, tokens))
    captions = torch.stack(columns, dim=1)
    order = torch.rand(captions.shape, generator=generator) + 2.0 * (captions == 0)
    return captions.gather(1, order.argsort(dim=1))
