"""Emoji as pictures in colour, from the font for them that most systems have."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

#: Files of fonts in colour, and the size at which each has its pictures.
_FILES = {"notocoloremoji.ttf": 109, "apple color emoji.ttc": 160, "seguiemj.ttf": 109}


def picture_of(text: str) -> NDArray[np.uint8] | None:
    """One emoji, a sequence of characters or one, as pixels (H, W, 4); None where no font of the system has it.

    Example:
        >>> found = picture_of("smile")  # letters are no emoji
        >>> found is None
        True
    """
    font = _font()
    if font is None or not text:
        return None
    box = font.getbbox(text)
    if font.getlength(text) > 1.5 * _one_emoji(font):  # several beside each other: the font has no such sequence
        return None
    from PIL import Image, ImageDraw

    image = Image.new("RGBA", (int(box[2]) + 1, int(box[3]) + 1))
    ImageDraw.Draw(image).text((0, 0), text, font=font, embedded_color=True)
    inked = image.getbbox()
    return None if inked is None else np.asarray(image.crop(inked))


def _one_emoji(font: FreeTypeFont) -> float:
    return font.getlength("\N{GRINNING FACE}")


@cache
def _font() -> Any:  # noqa: ANN401 - a FreeTypeFont, whose module is loaded only where there is one
    """The first font of emoji in colour that the system has, if any."""
    from matplotlib import font_manager
    from PIL import ImageFont

    for file in sorted(font_manager.findSystemFonts()):
        size = _FILES.get(Path(file).name.lower())
        if size is not None:
            return ImageFont.truetype(file, size)
    return None
