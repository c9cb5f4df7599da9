"""Images: a PNG, JPEG or DICOM file to bytes, grey or in colour, and bytes to the square that CLIP sees.

Everything between file and model is uint8, height before width, colours last. Augmentation moves and brightens, but
does not flip, because reports say left and right.
"""

import io
import os
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from common.data.dicom import DicomContrast, is_dicom, read_dicom
from common.data.image_bounds import LARGEST_FILE, check_size
from common.errors import UserError
from common.io.inputs import read_bytes
from common.io.table_files import EncodedImage

GreyImage = UInt8[np.ndarray, "H W"]
Pixels = UInt8[np.ndarray, "H W *rgb"]  # grey, or three colours
Source = str | os.PathLike[str] | bytes | EncodedImage  # of an image: a file, its bytes, or where a table has them


class Reading(NamedTuple):
    """How files become pixels: in colour or grey, and what is made of the values of grey DICOM files."""

    colour: bool = False
    dicom_contrast: DicomContrast = "window"

    def image(self, source: Source, name: str = "image bytes") -> Pixels:
        """As `read_image`."""
        return read_image(source, colour=self.colour, dicom_contrast=self.dicom_contrast, name=name)


AS_GREY = Reading()
FORMATS = "a PNG, JPEG or DICOM image"  # what is read
SIGNATURES: dict[bytes, type[ImageFile.ImageFile]] = {
    b"\x89PNG\r\n\x1a\n": PngImageFile,
    b"\xff\xd8\xff": JpegImageFile,
}
# What Pillow's readers raise on damaged pictures and damaged EXIF.
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, struct.error, zlib.error)


def read_image(
    source: Source,
    *,
    colour: bool = False,
    dicom_contrast: DicomContrast = "window",
    name: str = "image bytes",
) -> Pixels:
    """The PNG, JPEG or DICOM at a path, in a table or in bytes, as 8-bit grey [H W], or as RGB [H W 3] with `colour`.

    Errors call bytes `name`.

    PNG and JPEG are turned as their EXIF orientation says. Colour becomes luma (ITU-R 601; equal channels keep their
    value) where grey is asked for, and grey three equal channels where colour is; transparency becomes black. 16-bit
    grey of a PNG is scaled by the range that it uses, smallest value to 0 and largest to 255: detectors deliver 10 to
    14 bits, which the full 16-bit range would show almost black. An image of one 16-bit value is black. Of 16-bit
    colour the upper eight bits count. What becomes of the values of a DICOM file: `common.data.dicom.read_dicom`.

    Raises UserError for a file that cannot be read, is no whole image of these kinds, moves (APNG, several frames), has
    more than 100 million pixels or is more than 20 times as long as wide, and as `read_dicom` does. Checksums of a PNG
    are verified.
    """
    where, data = _content(source, name)
    if is_dicom(data):
        pixels = Image.fromarray(read_dicom(data, where, dicom_contrast))
        return np.asarray(pixels.convert("RGB" if colour else "L"))
    reader = next((reader for signature, reader in SIGNATURES.items() if data.startswith(signature)), None)
    if reader is None:
        found = f"{len(data)} bytes of something else" if data else "an empty file"
        raise UserError(f"{where}: expected {FORMATS}, found {found}; convert it, or remove it")
    try:
        if reader is PngImageFile:
            reader(io.BytesIO(data)).verify()
        # The readers themselves, not Image.open: it warns about large images on its own terms.
        image = reader(io.BytesIO(data))
        _check_form(image, where)
        return _pixels(ImageOps.exif_transpose(image), colour)
    except DAMAGE as error:
        raise UserError(f"{where}: not a complete {reader.format} image ({error}); fetch it again") from error


def encode_png(image: Pixels) -> bytes:
    """A PNG from which `read_image` gives the same values again."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def resize_shorter(image: Pixels, size: int) -> UInt8[np.ndarray, "height width *rgb"]:
    """The shorter side becomes `size`, the longer one keeps the proportion (rounded down, as torchvision does).

    Bicubic with antialiasing (Pillow), as in CLIP's preprocessing.
    """
    height, width = image.shape[:2]
    shorter = min(height, width)
    if shorter == size:
        return image
    wanted = (size * width // shorter, size * height // shorter)
    return np.asarray(Image.fromarray(image).resize(wanted, Image.Resampling.BICUBIC))


def resize_crop(image: Pixels, resize: int = 256, crop: int = 224) -> UInt8[np.ndarray, "crop crop *rgb"]:
    """The central square of side `crop` after the shorter side became `resize`: for evaluation."""
    resized = resize_shorter(image, resize)
    top, left = ((side - crop) // 2 for side in resized.shape[:2])
    return _crop(resized, top, left, crop)


def augment(
    image: Pixels,
    rng: np.random.Generator,
    *,
    resize: int = 256,
    crop: int = 224,
    degrees: float = 5.0,
    brightness: float = 0.1,
    mirror: bool = False,
) -> UInt8[np.ndarray, "crop crop *rgb"]:
    """A random view for training, the same for the same state of `rng`.

    The shorter side becomes `resize`; the image turns by at most `degrees` about its centre (black comes in at the
    corners); a square of side `crop` is taken anywhere; values are multiplied by 1 +- `brightness`. `mirror` flips
    half of the images left to right, as published recipes do against their own reports; it is off.
    """
    resized = resize_shorter(image, resize)
    if degrees:
        turned = Image.fromarray(resized).rotate(rng.uniform(-degrees, degrees), Image.Resampling.BILINEAR)
        resized = np.asarray(turned)
    top, left = (int(rng.integers(side - crop + 1)) for side in resized.shape[:2])
    square = _crop(resized, top, left, crop)
    if brightness:
        scaled = square * np.float32(1 + rng.uniform(-brightness, brightness))
        square = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    if mirror and rng.random() < 0.5:
        square = square[:, ::-1]
    return square


def _content(source: Source, name: str) -> tuple[str, bytes]:
    if isinstance(source, bytes):
        return name, source
    if isinstance(source, EncodedImage):
        return str(source), source.read()
    return str(source), read_bytes(Path(source), FORMATS, LARGEST_FILE)


def _check_form(image: ImageFile.ImageFile, where: str) -> None:
    """What the header tells, before anything is decoded."""
    width, height = image.size
    check_size(width, height, where)
    if image.tile and image.tile[0][3] == "LA;16B":  # Pillow keeps the upper bytes, which are almost black
        raise UserError(f"{where}: 16-bit grey with transparency; expected no alpha channel, save it without")
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise UserError(
            f"{where}: {frames} frames; expected a single frame; save the one you need as an image of its own"
        )


def _pixels(image: Image.Image, colour: bool) -> Pixels:
    if image.mode.startswith("I"):
        image = Image.fromarray(_full_contrast(np.asarray(image)))
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        image = Image.new("RGBA", image.size, "black")
        image.alpha_composite(coloured)
    if image.mode not in ("L", "1"):
        image = image.convert("RGB")
    return np.asarray(image.convert("RGB" if colour else "L"))


def _full_contrast(values: np.ndarray) -> GreyImage:
    values = values.astype(np.int32)
    lowest, highest = int(values.min()), int(values.max())
    used = max(1, highest - lowest)
    return ((values - lowest) * 510 // used + 1 >> 1).astype(np.uint8)


def _crop(image: Pixels, top: int, left: int, side: int) -> UInt8[np.ndarray, "side side *rgb"]:
    return image[top : top + side, left : left + side]
