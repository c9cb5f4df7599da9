"""What the compressed image within a DICOM file says of its own size, which decides how much memory a decoder takes."""

import struct
from typing import NamedTuple

_CODESTREAM = b"\xff\x4f\xff\x51"  # how a JPEG 2000 codestream begins: SOC and SIZ
_SIGNATURE = b"\x00\x00\x00\x0cjP  "  # of JPEG 2000 in its file format
_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # markers of JPEG and JPEG-LS that begin a frame
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a segment


class Frame(NamedTuple):
    """The size of an image and its number of components."""

    width: int
    height: int
    components: int


def frame_of(stream: bytes) -> Frame:
    """The size that a JPEG, JPEG-LS or JPEG 2000 stream claims. Raises ValueError or struct.error for anything else."""
    if stream.startswith(_SIGNATURE):
        stream = _contained(stream)
    if stream.startswith(_CODESTREAM):
        right, lower, left, upper = struct.unpack_from(">4I", stream, 8)
        (components,) = struct.unpack_from(">H", stream, 40)
        return Frame(right - left, lower - upper, components)
    if not stream.startswith(b"\xff\xd8"):
        raise ValueError("neither JPEG nor JPEG 2000")
    return _jpeg(stream)


def _jpeg(stream: bytes) -> Frame:
    """Of the one frame header; hierarchical streams, which have several, are refused."""
    at = 2
    while True:
        if stream[at] != 0xFF:
            raise ValueError("no marker")
        marker = stream[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in _ALONE:
            at += 2
        elif marker in _FRAME:
            height, width, components = struct.unpack_from(">HHB", stream, at + 5)
            return Frame(width, height, components)
        elif marker in (0xD9, 0xDA, 0xDE):  # the end, a scan or a hierarchy, before a frame
            raise ValueError("no frame header")
        else:
            at += 2 + struct.unpack_from(">H", stream, at + 2)[0]


def _contained(stream: bytes) -> bytes:
    """The codestream in the boxes of the file format."""
    at = 0
    while True:
        length, kind = struct.unpack_from(">I4s", stream, at)
        header = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", stream, at + 8)
            header = 16
        if kind == b"jp2c":
            return stream[at + header :]
        if length < header:  # 0: to the end of the stream
            raise ValueError("no codestream")
        at += length
