"""Captions in COCO's format: a JSON file of images and annotations, and a folder with the images.

<root>/annotations/captions_<split>.json    {"images": [{"id": 9, "file_name": "000000000009.jpg", ...}],
                                             "annotations": [{"image_id": 9, "caption": "A dog runs.", ...}]}
<root>/<images>/000000000009.jpg
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calmrl_prob.errors import DataError, FileFormatError


@dataclass(frozen=True)
class CaptionedImages:
    """Images with what people wrote of them.

    Attributes:
        ids: of the images, as in the file, in its order.
        paths: of the image files; they need not exist.
        captions: for each image those that are not empty, as they were written; repeated ones are kept.
        without_captions: ids of images that are left out, since they have none.
        without_files: ids of images whose file is not in the folder; they are kept.
    """

    ids: tuple[Any, ...]
    paths: tuple[Path, ...]
    captions: tuple[tuple[str, ...], ...]
    without_captions: tuple[Any, ...]
    without_files: tuple[Any, ...]

    def __len__(self) -> int:
        """Number of images with captions."""
        return len(self.ids)


def read_coco(annotations: str | Path, images: str | Path | None = None) -> CaptionedImages:
    """Read captions in COCO's format.

    Args:
        annotations: the JSON file.
        images: the folder that file names are in; by default the one beside ``annotations/`` of the same name as the
            split: of ``captions_val2017.json`` it is ``val2017``.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: it is not JSON, or not COCO's; what is wrong is named.
        DataError: no image has a caption.
    """
    path = Path(annotations)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path}: not a JSON file: {error}.") from error
    listed, said = (
        _entries(path, content, "images", ("id",)),
        _entries(path, content, "annotations", ("image_id", "caption")),
    )
    folder = Path(images) if images is not None else path.parent.parent / path.stem.removeprefix("captions_")
    names = {image["id"]: str(image.get("file_name", image["id"])) for image in listed}
    if len(names) < len(listed):
        raise FileFormatError(f"{path}: two entries of 'images' have the same id; give each image one.")
    captions: dict[Any, list[str]] = defaultdict(list)
    for entry in said:
        if entry["image_id"] not in names:
            raise FileFormatError(f"{path}: a caption is of image {entry['image_id']!r}, which 'images' does not list.")
        if not isinstance(entry["caption"], str):
            raise FileFormatError(f"{path}: the caption of image {entry['image_id']!r} is no text.")
        if entry["caption"].strip():
            captions[entry["image_id"]].append(entry["caption"])
    kept = [identity for identity in names if captions[identity]]
    if not kept:
        raise DataError(f"{path}: none of {len(names)} images has a caption; 'annotations' may be of another split.")
    paths = tuple(folder / names[identity] for identity in kept)
    return CaptionedImages(
        tuple(kept),
        paths,
        tuple(tuple(captions[identity]) for identity in kept),
        tuple(identity for identity in names if not captions[identity]),
        tuple(identity for identity, file in zip(kept, paths, strict=True) if not file.is_file()),
    )


def _entries(path: Path, content: object, key: str, fields: tuple[str, ...]) -> list[Mapping[str, Any]]:
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list):
        raise FileFormatError(
            f"{path}: expected COCO's captions, an object with a list {key!r}; other files have no captions."
        )
    for entry in found:
        lacking = [field for field in fields if not isinstance(entry, dict) or field not in entry]
        if lacking:
            raise FileFormatError(f"{path}: an entry of {key!r} lacks {lacking[0]!r}; COCO's captions have it.")
        if any(isinstance(entry[field], list | dict) for field in fields):
            raise FileFormatError(f"{path}: an entry of {key!r} has a list or an object where a value belongs.")
    return found
