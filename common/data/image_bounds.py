"""How large an image may be, as its header claims it: checked before anything is decoded."""

from common.errors import UserError

MAXIMUM_PIXELS = 100_000_000  # a full-size radiograph has about 10 million
MAXIMUM_ASPECT = 20  # of the longer side to the shorter: beyond it, resizing the shorter side makes a giant
LARGEST_FILE = 1 << 30  # bytes of an image file, or of what one unpacks to


def check_size(width: int, height: int, where: str) -> None:
    """Raise UserError for an image that is too large or too narrow."""
    if width * height > MAXIMUM_PIXELS:
        raise UserError(
            f"{where}: {width} x {height} pixels; expected at most {MAXIMUM_PIXELS // 10**6} million, scale it down"
        )
    if max(width, height) > MAXIMUM_ASPECT * min(width, height):
        raise UserError(
            f"{where}: {width} x {height} pixels; expected an aspect ratio of at most {MAXIMUM_ASPECT}, crop it"
        )
