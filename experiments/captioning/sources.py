"""Data sets with captions: features of images and texts, what people wrote, and which rows are to be captioned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from calmrl_prob.data import MultimodalData
from calmrl_prob.datasets import load_emoji
from calmrl_prob.errors import ArgumentError, DataError, FileFormatError
from experiments.captioning.coco import read_coco
from experiments.captioning.words import normalized

Captions = list[list[str]]


@dataclass(frozen=True)
class Captioned:
    """Rows with captions, nothing removed yet.

    Attributes:
        name: what titles call it.
        train: N rows; any may lack modalities, such as those that are text alone.
        test: rows to be captioned.
        captions: of each training row, normalised, one at least.
        references: of each test row.
        human: of each test row one more caption, that is none of its references; empty where there is none.
        text: the modality that is imputed, and captions are found by.
        given: modalities that captions are made from.
        groups: of the training rows, (N,), such as the skin tones of one emoji, which are held out together; None for
            rows that stand alone.
    """

    name: str
    train: MultimodalData
    test: MultimodalData
    captions: Captions
    references: Captions
    human: list[str]
    text: str
    given: tuple[str, ...]
    groups: np.ndarray | None = None

    @property
    def sets(self) -> list[tuple[str, ...]]:
        """Every non-empty set of given modalities."""
        return [chosen for size in range(1, len(self.given) + 1) for chosen in combinations(self.given, size)]


def emoji() -> Captioned:
    """The bundled emoji, captioned from two drawings: by their English names, or their key words.

    The French and Spanish names are there as vectors alone, without their words; so the references of an emoji are two.
    """
    data = load_emoji()
    words = [
        [normalized(name), normalized(tags)]
        for name, tags in zip(data.covariates["caption"], data.covariates["tags_text"], strict=True)
    ]
    train, test = (np.flatnonzero(data.partition == part) for part in ("train", "test"))
    captions = [[text for text in words[row] if text] for row in train]
    references = [[text for text in words[row] if text] for row in test]
    return Captioned("emoji", data.train, data.test, captions, references, [], "name", ("image_noto", "image_twemoji"))


def flickr8k(data_root: str | None, text: str = "text_mean5") -> Captioned:
    """Flickr8k: 750 training rows of image, text and speech, 7,091 of text alone, 250 to caption.

    References are four of the five captions: the one that is spoken is left out, and is the "human" one.

    Args:
        data_root: folder of ``flickr8k.npz``.
        text: its array that is the text: "text_mean5", the mean vector of all five captions, which training rows have;
            or "x_text", that of the first.

    Raises:
        ArgumentError: ``data_root`` is not given.
        FileFormatError: the file is not there, or lacks an array.
    """
    if data_root is None:
        raise ArgumentError("data_root: must be given for flickr8k, such as data_root=/path/to/files.")
    held = _arrays(
        Path(data_root) / "flickr8k.npz",
        [text, "x_image", "x_speech", "captions", "spoken_caption", "train_idx", "test_idx"],
    )
    data = MultimodalData({"image": held["x_image"].astype(np.float32), "text": held[text].astype(np.float32),
                           "speech": held["x_speech"].astype(np.float32)})  # fmt: skip
    words = [[normalized(caption) for caption in row] for row in held["captions"]]
    train, test, spoken = held["train_idx"], held["test_idx"], held["spoken_caption"]
    references = [[text for place, text in enumerate(words[row]) if place != spoken[row]] for row in test]
    human = [words[row][spoken[row]] for row in test]
    captions = [words[row] for row in train]
    return Captioned(
        "flickr8k", data.subset(train), data.subset(test), captions, references, human, "text", ("image", "speech")
    )


def motion(data_root: str | None) -> Captioned:
    """Clips of moving emoji: a still and its motion, captioned by name or key words. Stills lack motion.

    Test rows are those that move. Skin tones and gender forms of one emoji are one group.

    Args:
        data_root: folder of ``fluent_motion.npz``.

    Raises:
        ArgumentError: ``data_root`` is not given.
        FileFormatError: the file is not there, or lacks an array.
    """
    if data_root is None:
        raise ArgumentError("data_root: must be given for motion, such as data_root=/path/to/files.")
    names = ["x_frame", "x_motion", "x_name", "name", "tags_text", "family", "train_idx", "test_idx"]
    held = _arrays(Path(data_root) / "fluent_motion.npz", names)
    data = MultimodalData({name: held[f"x_{name}"].astype(np.float32) for name in ("frame", "motion", "name")})
    words = [
        [text for text in (normalized(name), normalized(tags)) if text]
        for name, tags in zip(held["name"], held["tags_text"], strict=True)
    ]
    train, moves = held["train_idx"], data.observed("motion").numpy()
    test = held["test_idx"][moves[held["test_idx"]]]
    return Captioned("motion", data.subset(train), data.subset(test), [words[row] for row in train],
                     [words[row] for row in test], [], "name", ("frame", "motion"), held["family"][train])  # fmt: skip


def coco(annotations: str, features: str, text: str = "text", test_share: float = 0.2, seed: int = 0) -> Captioned:
    """Captions of a COCO file, with features of the same images that were computed before.

    Args:
        annotations: the JSON file.
        features: an .npz file with ``image_id`` (N,) and arrays ``x_<modality>``, NaN where missing.
        text: the modality that is a vector of the captions.
        test_share: of the images that have another modality.
        seed: decides those.

    Raises:
        FileFormatError: a file is not of the form, or no image is in both.
        DataError: there is no such modality, or no other.
    """
    images = read_coco(annotations)
    with np.load(features, allow_pickle=False) as file:
        names = [name for name in file.files if name.startswith("x_")]
    held = _arrays(Path(features), ["image_id", *names])
    place = {identity: row for row, identity in enumerate(held["image_id"].tolist())}
    both = [
        (place[identity], texts)
        for identity, texts in zip(images.ids, images.captions, strict=True)
        if identity in place
    ]
    if not both:
        raise FileFormatError(f"{features}: none of its image_id is an image of {annotations}; expected the same ids.")
    rows = np.array([row for row, _ in both])
    data = MultimodalData({name[2:]: held[name][rows].astype(np.float32) for name in names})
    given = tuple(name for name in data.names if name != text)
    if text not in data.names or not given:
        raise DataError(f"{features}: expected x_{text} and another modality, got {names}.")
    words = [[normalized(caption) for caption in texts] for _, texts in both]
    shown = np.flatnonzero(np.any([data.observed(name).numpy() for name in given], axis=0))
    test = np.sort(np.random.default_rng(seed).permutation(shown)[: max(1, round(test_share * len(shown)))])
    train = np.setdiff1d(np.arange(len(data)), test)
    return Captioned("coco", data.subset(train), data.subset(test), [words[row] for row in train],
                     [words[row] for row in test], [], text, given)  # fmt: skip


def removed(train: MultimodalData, mechanism: object, seed: int) -> MultimodalData:
    """Training rows after a mechanism removed modalities from those that have all of them; text alone stays.

    Args:
        train: the rows.
        mechanism: a function (data, *, seed) -> mask, True = PRESENT.
        seed: of what is removed.
    """
    whole = np.flatnonzero(train.complete_rows())
    observed = train.observed_mask.clone()
    observed[torch.from_numpy(whole)] = mechanism(train.subset(whole), seed=seed)  # type: ignore[operator]
    return train.mask(observed)


def projected(
    parts: Sequence[MultimodalData], components: int | None
) -> tuple[list[MultimodalData], dict[str, np.ndarray]]:
    """Principal axes of each modality, of the first part's rows, and one scale; what is 0 stays 0.

    Args:
        parts: training rows, and others of the same modalities.
        components: number of axes at most; None for the features themselves.

    Returns:
        The parts on these axes, and for each modality what leads back, (axes, D_m).
    """
    from sklearn.decomposition import PCA

    arrays: list[dict[str, torch.Tensor]] = [{} for _ in parts]
    back = {}
    for name, width in parts[0].dims.items():
        rows = parts[0][name][parts[0].observed(name)].double().numpy()
        axes = np.eye(width)
        if components is not None and components < min(rows.shape):
            axes = PCA(components, random_state=0).fit(rows).components_.T
        scale = float((rows @ axes).std(axis=0).mean()) or 1.0
        back[name] = scale * axes.T
        for part, found in zip(parts, arrays, strict=True):
            found[name] = torch.from_numpy(part[name].double().numpy() @ axes / scale).float()
    made = [MultimodalData(found, observed_mask=part.observed_mask) for part, found in zip(parts, arrays, strict=True)]
    return made, back


def _arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileFormatError(f"{path}: no such file; data_root must be the folder that holds it.")
    with np.load(path, allow_pickle=False) as file:
        lacking = [name for name in names if name not in file.files]
        if lacking:
            raise FileFormatError(f"{path}: expected an array {lacking[0]!r}, got {file.files}.")
        return {name: file[name] for name in names}
