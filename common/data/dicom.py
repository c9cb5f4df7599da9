"""The image in a DICOM file as 8-bit pixels. No message repeats what its header says, or what a library says of it.

The bytes of an image are decoded by pydicom with pylibjpeg's plugins; what its values mean is read in
`common.data.dicom_levels`.
"""

import functools
import io
import logging
import warnings
import zlib
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from common.data.dicom_codestream import Frame, frame_of
from common.data.dicom_levels import equalized_levels, to_grey, window_levels
from common.data.image_bounds import LARGEST_FILE, check_size
from common.errors import MissingPackage, UserError
from common.io.locks import is_first_process
from common.io.terminal import say

DicomContrast = Literal["window", "mimic-cxr-jpg"]

INSTALL = "pip install 'medreport-jax[dicom]'"
DEFLATED = "1.2.840.10008.1.2.1.99"
RLE = "1.2.840.10008.1.2.5"
GREY = {"MONOCHROME1": True, "MONOCHROME2": False}  # whether the lowest value is white
LEVELS = {"window": window_levels, "mimic-cxr-jpg": equalized_levels}
_MARK = slice(128, 132)  # of the preamble
# Without a preamble: the first elements that come first, as a file of either byte order writes their tags.
_FIRST = tuple(
    tag.to_bytes(2, order) + element.to_bytes(2, order)
    for order in ("little", "big")
    for tag, elements in ((2, (0, 1, 2)), (8, (0, 1, 5, 8)))
    for element in elements
)  # fmt: skip


def is_dicom(content: bytes) -> bool:
    """Whether a file is DICOM: by the mark after its preamble or, without one, by its first element."""
    return content[_MARK] == b"DICM" or content.startswith(_FIRST)


def read_dicom(
    content: bytes, where: str, contrast: DicomContrast = "window"
) -> UInt8[np.ndarray, "H W"] | UInt8[np.ndarray, "H W 3"]:
    """8-bit grey, or RGB where the file has colours.

    With `window` grey is as a viewer first shows it: by the first VOI LUT, else by the first window, else (or where
    that is impossible) the values in use, padding apart, from 0 to 255. Padding is black. A model thereby sees what the
    radiologist saw who wrote the report.

    With `mimic-cxr-jpg` it is as in MIMIC-CXR-JPG, but for the loss of JPEG, so that MIMIC-CXR's own DICOM files look
    as models that were trained on its JPEG files know them: stored values over the range in use, truncated to 0 to 255,
    inverted where they are MONOCHROME1, then equalized by their histogram as OpenCV does. Source: Johnson et al.,
    MIMIC-CXR-JPG 2.1.0, PhysioNet, 2024, Methods, "Chest radiographs" (doi 10.13026/jsn5-t979; arXiv:1901.07042).

    Colours are the same with both; of more than eight bits the upper eight count. Overlays are left out, and it is
    said once. Raises UserError where pydicom or its plugins are not installed, the file is damaged or holds no image or
    several, is too large, has more than 16 bits a value, or says that text is burned into its pixels.
    """
    library = _pydicom(where)
    try:
        with np.errstate(all="ignore"):
            dataset = _dataset(library, content, where)
            _check(dataset, where)
            pixels, photometric = _pixels(library, dataset, where)
            if photometric in GREY:
                image = to_grey(dataset, pixels, GREY[photometric], LEVELS[contrast])
            else:
                image = _colours(library, dataset, pixels, photometric)
    except UserError:
        raise
    except Exception as error:  # pydicom and its plugins have no closed list of what damaged files raise
        raise UserError(
            f"{where}: not a complete DICOM image ({type(error).__name__}); fetch it again, or convert it to PNG"
        ) from None
    if any(tag >> 24 == 0x60 for tag in map(int, dataset.keys())):
        _say_overlays()
    return image


@functools.cache
def _say_overlays() -> None:
    if is_first_process():
        say("note: overlays of DICOM files (drawings and text above an image) are left out", error=True)


def _pydicom(where: str) -> Any:
    try:
        return _import_pydicom()
    except ImportError as error:
        raise MissingPackage(f"{where}: is a DICOM file, and {error.name} is not installed: {INSTALL}") from None


@functools.cache
def _import_pydicom() -> Any:
    """pydicom and its plugins, silent: what they log and warn of repeats the values of headers."""
    names = ("pydicom", "pylibjpeg", "libjpeg", "openjpeg")
    for name in names:
        logger = logging.getLogger(name)
        logger.propagate = False  # what its modules log comes by way of it
        logger.handlers = [logging.NullHandler()]
    warnings.filterwarnings("ignore", module=rf"({'|'.join(names)}|{__name__})(\.|$)")
    import libjpeg  # noqa: F401 - imported so that its absence is said here; pydicom finds the plugins itself
    import openjpeg  # noqa: F401 - likewise
    import pydicom
    import pydicom.encaps
    import pydicom.filereader
    import pydicom.pixels

    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    return pydicom


def _dataset(library: Any, content: bytes, where: str) -> Any:
    """The elements of a file; a deflated one is inflated here, within bounds."""
    if content[_MARK] != b"DICM":
        return library.dcmread(io.BytesIO(content), force=True)
    file = io.BytesIO(content)
    file.seek(_MARK.stop)
    meta = library.filereader.read_dataset(file, False, True, stop_when=lambda tag, *_: tag.group != 2)
    if meta.get("TransferSyntaxUID") != DEFLATED:
        return library.dcmread(io.BytesIO(content))
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(file.read(), LARGEST_FILE)
    if inflater.unconsumed_tail:
        raise UserError(f"{where}: unpacks to more than {LARGEST_FILE:,} bytes; expected a single image")
    if not inflater.eof:
        raise EOFError
    dataset = library.filereader.read_dataset(io.BytesIO(inflated), False, True)
    dataset.set_original_encoding(False, True)
    dataset.file_meta = library.dataset.FileMetaDataset(meta)
    return dataset


def _check(dataset: Any, where: str) -> None:
    """What the header tells, before anything is decoded."""
    if "PixelData" not in dataset:
        kind = (
            "floating-point values" if {"FloatPixelData", "DoubleFloatPixelData"} & set(dataset.dir()) else "no image"
        )
        raise UserError(f"{where}: a DICOM file with {kind}; expected a radiograph or photograph, leave it out")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise UserError(
            f"{where}: {frames} frames; expected a single frame; save the one you need as an image of its own"
        )
    if str(dataset.get("BurnedInAnnotation") or "").upper() == "YES":
        raise UserError(
            f"{where}: its header says that text is burned into the pixels, which may name the patient; black the text "
            "out and set BurnedInAnnotation to NO, or leave the image out"
        )
    bits = int(dataset.BitsAllocated)
    if bits not in (1, 8, 16):
        raise UserError(f"{where}: {bits} bits a value; expected 8 or 16, convert it")
    check_size(int(dataset.Columns), int(dataset.Rows), where)
    if int(dataset.SamplesPerPixel) not in (1, 3):
        raise UserError(f"{where}: {int(dataset.SamplesPerPixel)} channels; expected 1 or 3, convert it")


def _pixels(library: Any, dataset: Any, where: str) -> tuple[np.ndarray, str]:
    """The stored values, or colours as RGB, and what they are: a photometric interpretation."""
    uid = _transfer_syntax(library, dataset)
    try:
        decoder = library.pixels.get_decoder(uid)
    except NotImplementedError:  # what pydicom raises for a transfer syntax without a decoder
        raise UserError(
            f"{where}: is a video or compressed in a way that is not supported; expected JPEG, JPEG-LS, JPEG 2000, RLE "
            "or no compression, convert it"
        ) from None
    plugin = ""
    if decoder.is_encapsulated:
        plugin = "pydicom" if uid == RLE else "pylibjpeg"  # the RLE of pylibjpeg panics on damaged streams
        frame = library.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
        expected = Frame(int(dataset.Columns), int(dataset.Rows), int(dataset.SamplesPerPixel))
        if uid == RLE:
            whole = expected.width * expected.height * expected.components * int(dataset.BitsAllocated) // 8
            if len(frame) > 2 * whole + 1024:
                raise ValueError("more than the image can be")
        elif frame_of(frame) != expected:
            raise ValueError("the header and the image in it differ in size")
        for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
            dataset.pop(name, None)
        dataset.PixelData = library.encaps.encapsulate([frame])  # what is decoded is what was checked
    pixels, found = decoder.as_array(dataset, index=0, decoding_plugin=plugin)
    return pixels, str(found["photometric_interpretation"])


def _transfer_syntax(library: Any, dataset: Any) -> Any:
    """That of the file or, where it does not say, the plain one in which it was found to be written."""
    named = getattr(dataset, "file_meta", {}).get("TransferSyntaxUID")
    if named:
        return library.uid.UID(str(named))
    implicit, little = dataset.original_encoding
    if implicit:
        return library.uid.ImplicitVRLittleEndian
    return library.uid.ExplicitVRLittleEndian if little else library.uid.ExplicitVRBigEndian


def _colours(library: Any, dataset: Any, pixels: np.ndarray, photometric: str) -> UInt8[np.ndarray, "H W 3"]:
    """Colours of eight bits."""
    bits = int(dataset.BitsStored)
    if photometric == "PALETTE COLOR":
        pixels = library.pixels.apply_color_lut(pixels, dataset)
        bits = 8 * pixels.dtype.itemsize
    elif photometric not in ("RGB", "YBR_RCT", "YBR_ICT"):
        raise ValueError("colours that are not known")
    if pixels.dtype.kind != "u" or pixels.shape[2:] != (3,):
        raise ValueError("not three unsigned channels")
    return (pixels >> max(bits - 8, 0)).astype(np.uint8)
