"""Generated scenes: what each modality tells of the attributes, and what it does not."""

from __future__ import annotations

import math

import pytest
import torch

from calmrl_prob.data.missingness import pairs
from calmrl_prob.datasets import make_scenes
from calmrl_prob.datasets.scenes import NAMES, SAMPLE_RATE, VOCABULARY, WORDS
from calmrl_prob.encoders import log_spectrogram
from calmrl_prob.errors import ArgumentError, ArgumentTypeError
from calmrl_prob.training import Collate


def test_seed_decides_and_more_scenes_have_the_same_shapes() -> None:
    first, again, other = (make_scenes(20, image_size=16, seed=seed) for seed in (0, 0, 1))
    for name in NAMES:
        assert torch.equal(first.inputs[name], again.inputs[name])
        assert not torch.equal(first.inputs[name], other.inputs[name])
    assert first.images.shape == (20, 3, 16, 16)
    assert first.images.dtype == first.tones.dtype == torch.float32


def test_the_image_is_brighter_where_the_object_is() -> None:
    scenes = make_scenes(400, noise=0.0)
    bright = (scenes.attributes["brightness"] > 0.8) & (scenes.attributes["shape"] < 3)  # a ring has a hole
    place = scenes.attributes["place"][bright]
    height = scenes.attributes["height"][bright]
    vivid = scenes.images[bright].amax(dim=1) - scenes.images[bright].amin(dim=1)
    vivid = (vivid - 0.3).clamp(min=0)  # above what the ground's colour can be
    grid = (torch.arange(32) + 0.5) / 32
    x = (vivid.sum(dim=1) * grid).sum(dim=1) / vivid.sum(dim=(1, 2))
    y = (vivid.sum(dim=2) * grid).sum(dim=1) / vivid.sum(dim=(1, 2))
    for found, told in ((x, place), (y, height)):
        assert float(torch.corrcoef(torch.stack([found, told]))[0, 1]) > 0.95


def test_the_tone_has_the_pitch_that_the_size_gives() -> None:
    scenes = make_scenes(2000, image_size=8, noise=0.0)
    steady = (scenes.attributes["brightness"] < 0.1) & (scenes.attributes["pulses"] == 1)
    spectrum = torch.fft.rfft(scenes.tones[steady]).abs()
    peak = spectrum.argmax(dim=1) * SAMPLE_RATE / scenes.tones.shape[1]
    pitch = 40 * 2 ** (2 * (1 - scenes.attributes["size"][steady]))
    assert len(peak) > 20
    assert float((peak.log() - pitch.log()).abs().median()) < 0.02
    before = torch.arange(SAMPLE_RATE)[None] < 0.34 * SAMPLE_RATE * scenes.attributes["place"][:, None]
    assert float(scenes.tones[before].abs().max()) == 0


def test_the_caption_says_what_is_so_in_any_order() -> None:
    scenes = make_scenes(500, seed=3)
    said = 0
    for row in range(len(scenes)):
        words = set(scenes.text(row).split())
        for name, values in WORDS.items():
            value = scenes.attributes[name][row]
            step = int(value) - (name == "pulses") if not value.is_floating_point() else int(value * len(values))
            here = words & {word for same in values for word in same}
            assert here <= set(values[step])
            assert len(here) <= 1
            said += len(here)
    expected = 0.95 * 500 * len(WORDS)
    assert abs(said - expected) < 6 * math.sqrt(expected * 0.05)
    assert len({tuple(row) for row in scenes.captions[:, :1].tolist()}) > 20
    assert int(scenes.captions.max()) == len(VOCABULARY) - 1
    padded = (scenes.captions == 0).int()
    assert bool((padded.diff(dim=1) >= 0).all())  # last


def test_scenes_that_are_alike_are_seen_heard_and_described_differently() -> None:
    scenes = make_scenes(4000, image_size=8, noise=0.0, seed=5)
    alike = (scenes.attributes["pulses"] == 1) & (scenes.attributes["shape"] == 0) & (scenes.attributes["colour"] == 0)
    assert scenes.captions[alike].unique(dim=0).shape[0] == int(alike.sum())
    away = scenes.attributes["place"] > 0.7  # of the object, which then does not reach the corner
    corners = scenes.images[away, :, 0, 0]
    for told in scenes.attributes.values():  # the ground is private: nothing tells of it
        share = torch.corrcoef(torch.cat([corners.mT, told[None, away].to(corners.dtype)]))[3, :3].abs()
        assert float(share.max()) < 6 / len(corners) ** 0.5


def test_items_leave_out_what_the_mask_hides() -> None:
    scenes = make_scenes(60, image_size=8)
    incomplete = scenes.mask(pairs(scenes.features(), complete=0.2, seed=0))
    batch = Collate(NAMES)([incomplete[row] for row in range(60)])
    assert torch.equal(batch.observed_mask, incomplete.observed_mask)
    assert torch.equal(batch.inputs["tone"], scenes.tones[incomplete.observed_mask[:, 1]])
    part = incomplete.subset([3, 5])
    assert torch.equal(part.observed_mask, incomplete.observed_mask[[3, 5]])
    assert torch.equal(part.attributes["size"], scenes.attributes["size"][[3, 5]])
    twice = incomplete.mask(torch.ones(60, 3, dtype=torch.bool))
    assert torch.equal(twice.observed_mask, incomplete.observed_mask)


def test_features_are_flat_and_lack_what_the_scenes_lack() -> None:
    scenes = make_scenes(30, image_size=8)
    mask = torch.ones(30, 3, dtype=torch.bool)
    mask[:7, 1] = False
    features = scenes.mask(mask).features(torch.float64)
    assert torch.equal(features.observed_mask, mask)
    assert features.dims == {"image": 192, "tone": 975, "caption": len(VOCABULARY) - 1}
    assert torch.equal(features["tone"][7:], log_spectrogram(scenes.tones[7:]).flatten(1).double())
    assert torch.equal(features["caption"].sum(dim=1), (scenes.captions > 0).sum(dim=1).double())


def test_refusals() -> None:
    with pytest.raises(ArgumentError, match="image_size: expected a whole number of at least 8, got 4"):
        make_scenes(3, image_size=4)
    with pytest.raises(ArgumentError, match="noise: expected at least 0"):
        make_scenes(3, noise=-1.0)
    with pytest.raises(ArgumentTypeError, match="num_instances"):
        make_scenes("x")  # type: ignore[arg-type]
    scenes = make_scenes(3, image_size=8)
    with pytest.raises(ArgumentError, match=r"observed_mask: expected the shape \(3, 3\), got \(3, 2\)"):
        scenes.mask(torch.ones(3, 2, dtype=torch.bool))
    with pytest.raises(ArgumentError, match="scene 0 would have no modality"):
        scenes.mask(torch.zeros(3, 3, dtype=torch.bool))
