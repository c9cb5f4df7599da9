"""Radiographs and attention maps as data URIs, so that a page needs no other file.

An image is written once, as the background of a CSS class; the attention for a word is a picture with one pixel per
attention cell, which the browser scales smoothly over that background.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from common.data.images import Pixels

LONGEST_SIDE = 320  # pixels; shown at about 200, or twice as fine on a dense screen
LARGEST_FILE = 30_000  # bytes; 320 x 320 pixels of a phantom take about 23 kB at quality 90
QUALITIES = (95, 90, 80, 65, 50, 35)
FAINT, STRONG = (255, 77, 0), (255, 196, 64)  # colours of the least and the most attention

WordAttention = tuple[str, Float[np.ndarray, "V h w"]]


@dataclass(frozen=True)
class Picture:
    """An image as a page shows it; the proportion is that of the image, the pixels may be fewer."""

    width: int
    height: int
    uri: str


@dataclass(frozen=True)
class Look:
    """A word, and for each view the data URI of what to lay over it."""

    word: str
    overlays: Sequence[str]


def check_attention(where: str, images: Sequence[Pixels], attention: Sequence[WordAttention]) -> None:
    """Raises ValueError unless each word has one finite map for each image."""
    for word, maps in attention:
        shape = np.shape(maps)
        if len(shape) != 3 or shape[0] != len(images) or 0 in shape:
            expected = f"({len(images)}, h, w), one map for each image"
            raise ValueError(f"{where}: attention of {word!r} has shape {shape}; expected {expected}")
        if not np.isfinite(maps).all():
            raise ValueError(f"{where}: attention of {word!r} is not finite; expected weights of 0 or more")


def picture(image: Pixels, longest: int = LONGEST_SIDE, largest: int = LARGEST_FILE) -> Picture:
    """The image as JPEG, at most `longest` pixels long and, noise excepted, `largest` bytes large."""
    small = Image.fromarray(image)
    small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    for quality in QUALITIES:
        data = _file(small, "JPEG", quality=quality)
        if len(data) <= largest:
            break
    return Picture(small.width, small.height, _uri("jpeg", data))


def looks(attention: Sequence[WordAttention]) -> list[Look]:
    """The words with their attention drawn."""
    return [Look(word, overlay_maps(maps)) for word, maps in attention]


def overlay_maps(maps: Float[np.ndarray, "V h w"]) -> list[str]:
    """Data URIs of one RGBA PNG of h x w pixels for each view.

    Alpha is the attention on a scale of its own, 0 at the lowest value over all views and 255 at the highest; 0
    everywhere where all are equal.
    """
    above = np.asarray(maps, np.float64) - np.min(maps)
    greatest = above.max()
    return [_overlay(view / greatest if greatest > 0 else view) for view in above]


def _overlay(intensity: Float[np.ndarray, "h w"]) -> str:
    faint, strong = np.array(FAINT), np.array(STRONG)
    colour = faint + (strong - faint) * intensity[..., None]
    pixels: UInt8[np.ndarray, "h w 4"] = np.rint(np.dstack([colour, 255 * intensity])).astype(np.uint8)
    return _uri("png", _file(Image.fromarray(pixels), "PNG", optimize=True))


def _file(image: Image.Image, form: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _uri(form: str, data: bytes) -> str:
    return f"data:image/{form};base64,{base64.b64encode(data).decode('ascii')}"
