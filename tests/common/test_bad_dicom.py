"""DICOM files that are refused, in one line without a word of their headers."""

import builtins
import io
import os
import re
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    RLELossless,
)

from common.data import dicom
from common.data.dicom_codestream import frame_of
from common.data.images import read_image
from common.errors import UserError
from tests.dicom_files import (
    IDENTIFIERS,
    PATIENT,
    SHIPPED,
    dicom_bytes,
    dicom_dataset,
    gradient,
    written,
)


def jpeg(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, height), 60).save(buffer, "JPEG")
    return buffer.getvalue()


def compressed(stream: bytes, uid: str = JPEGBaseline8Bit, **elements) -> bytes:
    """A file of 8 x 8 grey pixels that holds this stream."""
    dataset = dicom_dataset(np.zeros((8, 8), np.uint8), **elements)
    dataset.file_meta.TransferSyntaxUID = uid
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].VR = "OB"
    return written(dataset)


def many(pixels: np.ndarray, count: int) -> bytes:
    dataset = dicom_dataset(pixels, NumberOfFrames=count)
    dataset.PixelData = dataset.PixelData * count
    return written(dataset)


def without(*names: str) -> bytes:
    dataset = dicom_dataset(gradient())
    for name in names:
        del dataset[name]
    return written(dataset)


REFUSED = {
    "multi-frame": (many(gradient(), 3), "3 frames; expected a single frame"),
    "giant": (dicom_bytes(gradient(), Rows=60000, Columns=60000), "60000 x 60000 pixels; expected at most 100 million"),
    "strip": (dicom_bytes(gradient(), Rows=1, Columns=768), "expected an aspect ratio of at most 20"),
    "no size": (dicom_bytes(gradient(), Rows=0), "0 pixels|not a complete DICOM"),
    "text": (without("PixelData"), "a DICOM file with no image"),
    "no rows": (without("Rows"), r"not a complete DICOM image \(AttributeError\)"),
    "no bits": (without("BitsAllocated"), "not a complete DICOM image"),
    "short": (dicom_bytes(gradient())[:-40], "not a complete DICOM image"),
    "32 bits": (dicom_bytes(gradient("uint32")), "32 bits a value; expected 8 or 16"),
    "burned in": (dicom_bytes(gradient(), BurnedInAnnotation="YES"), "text is burned into the pixels"),
    "video": (compressed(b"video", MPEG2MPML), "a video or compressed in a way that is not supported"),
    "other size": (compressed(jpeg(9000, 9000)), r"not a complete DICOM image \(ValueError\)"),
    "no jpeg": (compressed(b"not an image at all"), "not a complete DICOM image"),
    "not finite": (dicom_bytes(gradient(), RescaleSlope="nan", RescaleIntercept="0"), "not a complete DICOM image"),
    "four": (dicom_bytes(gradient(), SamplesPerPixel=4), "4 channels; expected 1 or 3"),
    "no palette": (dicom_bytes(gradient(), PhotometricInterpretation="PALETTE COLOR"), "not a complete DICOM image"),
    "unknown colours": (
        dicom_bytes(np.zeros((4, 4, 3), np.uint8), PhotometricInterpretation="HSV"), "not a complete DICOM image"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_single_image_of_usable_size_is_refused_by_name_in_one_line(tmp_path, content, message):
    path = tmp_path / "x.dcm"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(UserError, match=rf"x\.dcm: .*({message})") as refusal:
        read_image(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in str(refusal.value)
    assert peak < 20 << 20
    assert not any(value in str(refusal.value) for value in IDENTIFIERS.values())


def test_a_deflated_file_that_unpacks_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(dicom, "LARGEST_FILE", 100_000)
    dataset = dicom_dataset(np.zeros((600, 600), np.uint16))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    content = written(dataset)
    assert len(content) < 5000
    with pytest.raises(UserError, match="unpacks to more than 100,000 bytes"):
        read_image(content)
    with pytest.raises(UserError, match="not a complete DICOM image"):
        read_image(written(dicom_dataset_deflated())[:-30])


def dicom_dataset_deflated():
    dataset = dicom_dataset(gradient())
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    return dataset


def test_runs_that_go_on_beyond_the_image_are_cut_or_refused():
    """Decoders of RLE trust the runs; one that was tried before ends the process here."""
    dataset = dicom_dataset(gradient())
    expected = read_image(written(dataset))
    dataset.compress(RLELossless, encoding_plugin="pydicom")
    stream = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    for runs in (1, 90):
        dataset.PixelData = encapsulate([stream + b"\x81\x07" * runs])
        np.testing.assert_array_equal(read_image(written(dataset)), expected)
    dataset.PixelData = encapsulate([stream + b"\x81\x07" * 90_000])
    with pytest.raises(UserError, match="not a complete DICOM image"):
        read_image(written(dataset))


def test_streams_tell_their_own_size():
    assert frame_of(jpeg(40, 30)) == (40, 30, 1)
    for name, size in (("JPEG2000.dcm", (256, 1024, 1)), ("JPEGLSNearLossless_08.dcm", (10, 45, 1)),
                       ("examples_jpeg2k.dcm", (640, 480, 3)), ("SC_rgb_jpeg_gdcm.dcm", (100, 100, 3))):  # fmt: skip
        data = pydicom.dcmread(SHIPPED / name).PixelData
        stream = pydicom.encaps.get_frame(data, 0, number_of_frames=1)
        assert frame_of(stream) == size
        boxed = b"\0\0\0\x0cjP  \r\n\x87\n" + struct.pack(">I4s", len(stream) + 8, b"jp2c") + stream
        if stream.startswith(b"\xff\x4f"):
            assert frame_of(boxed) == size
    for damaged in (b"", b"\xff\xd8", b"\xff\xd8\xff\xda\0\0", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  "):
        with pytest.raises((ValueError, IndexError, struct.error)):
            frame_of(damaged)


def test_no_identifier_of_a_header_is_warned_of_or_logged(tmp_path):
    """pydicom warns of values that break the rules of their kind, and repeats them: here those that are decoded."""
    dataset = dicom_dataset(gradient(), WindowCenter="11111111", WindowWidth="300", NumberOfFrames="1")
    whole = written(dataset).replace(b"19610417", b"17 Apr61")
    (tmp_path / "a.dcm").write_bytes(whole)
    (tmp_path / "b.dcm").write_bytes(whole.replace(b"11111111", b"MRN77319"))
    (tmp_path / "c.dcm").write_bytes(whole.replace(b"MONOCHROME2", b"Doe^Jane77 "))
    (tmp_path / "d.dcm").write_bytes((SHIPPED / "JPEG-lossy.dcm").read_bytes())  # of which pydicom logs a traceback
    program = """
import logging, sys
from common.data.images import read_image
from common.errors import UserError
logging.basicConfig(level=0)
for name in "abcd":
    try:
        print(read_image(f"{name}.dcm").shape)
    except UserError as error:
        print(error)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONWARNINGS": "default"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.splitlines()[0] == "(24, 32)"
    assert done.stdout.count("not a complete DICOM image") == 3
    assert not re.search(rf"Apr61|7731|MRN|Doe|{re.escape(PATIENT)}|Traceback|libjpeg", done.stdout + done.stderr)


def test_without_the_extra_one_line_names_the_command_that_installs_it(monkeypatch, tmp_path):
    actual = builtins.__import__

    def absent(name, *rest):
        if name.split(".")[0] == "libjpeg":
            raise ImportError(f"No module named {name!r}", name=name)
        return actual(name, *rest)

    dicom._import_pydicom.cache_clear()
    monkeypatch.setattr(builtins, "__import__", absent)
    (tmp_path / "x.dcm").write_bytes(dicom_bytes(gradient()))
    with pytest.raises(UserError) as refusal:
        read_image(tmp_path / "x.dcm")
    assert str(refusal.value) == (
        f"{tmp_path}/x.dcm: is a DICOM file, and libjpeg is not installed: pip install 'medreport-jax[dicom]'"
    )
