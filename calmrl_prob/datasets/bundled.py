"""The data sets that come with the library."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import as_file, files

import torch

from calmrl_prob.data import MultimodalData
from calmrl_prob.io import load_npz


def load_emoji(
    *,
    modalities: Sequence[str] = ("image_noto", "image_twemoji", "name", "tags"),
    dtype: torch.dtype = torch.float32,
) -> MultimodalData:
    """1,906 emoji, each drawn twice and described in words four times, every modality with 64 features.

    Modalities: ``image_noto`` and ``image_twemoji`` are EfficientNet-Lite0 features of two artists' drawings; ``name``,
    ``name_fr``, ``name_es`` (the short name in English, French, Spanish) and ``tags`` (English key words) are
    MiniLM-L6-v2 sentence embeddings. Each was reduced to 64 principal components of the training rows, so features
    have no unit. All modalities are complete; remove some with :mod:`calmrl_prob.data.missingness`.

    Labels are the 9 groups of emoji. The partition is 1,431 rows to train and 475 to test, variants of one emoji on
    the same side. Covariates, all text: ``caption`` (the English name), ``tags_text``, ``emoji`` (the character),
    ``subgroup``. Ids are the code points in hexadecimal.

    Source: Noto Emoji, Twemoji, emojibase and Unicode CLDR; see ATTRIBUTION.md.

    Args:
        modalities: which of the six, in this order.
        dtype: torch.float32 or torch.float64; stored with 16 bits.

    Raises:
        ArgumentError: a modality is not one of the six.

    Example:
        >>> load_emoji()
        MultimodalData: 1,906 instances, 4 modalities, 1 missing pattern, float32
          image_noto     64 features  100.0% observed
          image_twemoji  64 features  100.0% observed
          name           64 features  100.0% observed
          tags           64 features  100.0% observed
          ids: 1F600 .. 1F3F4-E0067-E0062-E0077-E006C-E0073-E007F
          labels: 9 distinct
          partition: test 475, train 1,431
          covariates: subgroup, caption, tags_text, emoji
    """
    return _load("emoji_small.npz", modalities, dtype, ids="hexcode", name="emoji")


def load_leaves(
    *, modalities: Sequence[str] = ("margin", "shape", "texture"), dtype: torch.dtype = torch.float32
) -> MultimodalData:
    """1,600 leaves of 100 plant species, each described by its margin, shape and texture, 64 features each.

    Margin and texture are histograms (shares that sum to about 1); shape is a contour signature of much smaller scale.
    All modalities are complete. Labels are the species, 0 .. 99, 16 leaves each; the partition is 1,200 rows to train
    and 400 to test.

    Source: Mallah, Cope, Orwell, Plant leaf classification using probabilistic integration of shape, texture and
    margin features (2013); the UCI data set "One-hundred plant species leaves". See ATTRIBUTION.md.

    Args:
        modalities: which of the three, in this order.
        dtype: torch.float32 or torch.float64; stored with 32 bits.

    Raises:
        ArgumentError: a modality is not one of the three.

    Example:
        >>> data = load_leaves()
        >>> data.dims, len(data.train), len(data.test)
        ({'margin': 64, 'shape': 64, 'texture': 64}, 1200, 400)
    """
    return _load("leaves100.npz", modalities, dtype, ids="ids", name="leaves")


def _load(file: str, modalities: Sequence[str], dtype: torch.dtype, *, ids: str, name: str) -> MultimodalData:
    with as_file(files("calmrl_prob.datasets") / file) as path:
        data = load_npz(path, modalities, dtype=dtype, ids=ids)
    data.attributes["name"] = name
    return data
