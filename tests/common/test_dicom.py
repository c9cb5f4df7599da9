"""DICOM files as pixels: against pydicom's own lookups, and against what DCMTK and OpenCV made of the same files."""

import hashlib
import io

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from common.data import dicom
from common.data.dicom_levels import equalizing_table
from common.data.images import read_image
from tests.dicom_files import (
    SHIPPED,
    big_endian,
    dicom_bytes,
    dicom_dataset,
    gradient,
    lookup_table,
    written,
)

# Mean level of each quarter of the files that ship with pydicom, as DCMTK 3.6.7 shows them: `dcmj2pnm -O` (`dcml2pnm`
# for JPEG-LS), grey ones with +Wi 1 where they have a window and otherwise with +Wm. It cuts where we round.
DCMTK = {
    "CT_small.dcm": (77.1, 79.3, 114.8, 111.0),
    "ExplVR_BigEnd.dcm": (222.3, 222.6, 220.2, 224.9),
    "JPEGLSNearLossless_08.dcm": (109.3, 109.3, 4.1, 4.1),
    "JPEGLSNearLossless_16.dcm": (92.6, 92.6, 0.0, 0.0),
    "JPGExtended.dcm": (16.3, 24.4, 6.0, 5.8),
    "MR_small.dcm": (94.1, 111.1, 78.5, 166.7),
    "MR_small_RLE.dcm": (94.1, 111.1, 78.5, 166.7),
    "MR_small_bigendian.dcm": (94.1, 111.1, 78.5, 166.7),
    "MR_small_expb.dcm": (94.1, 111.1, 78.5, 166.7),
    "MR_small_implicit.dcm": (94.1, 111.1, 78.5, 166.7),
    "MR_small_jpeg_ls_lossless.dcm": (94.1, 111.1, 78.5, 166.7),
    "MR_small_padded.dcm": (94.1, 111.1, 78.5, 166.7),
    "SC_jpeg_no_color_transform.dcm": (244.0, 244.0, 244.0, 244.0),
    "SC_jpeg_no_color_transform_2.dcm": (245.7, 245.4, 245.7, 245.2),
    "SC_rgb_dcmtk_+eb+cr.dcm": (124.8, 124.8, 130.7, 130.7),
    "SC_rgb_dcmtk_+eb+cy+n1.dcm": (124.5, 124.5, 130.7, 130.7),
    "SC_rgb_dcmtk_+eb+cy+n2.dcm": (124.8, 124.8, 130.7, 130.7),
    "SC_rgb_dcmtk_+eb+cy+np.dcm": (124.5, 124.5, 130.7, 130.7),
    "SC_rgb_dcmtk_+eb+cy+s2.dcm": (124.8, 124.8, 130.7, 130.7),
    "SC_rgb_dcmtk_+eb+cy+s4.dcm": (124.8, 124.8, 130.7, 130.7),
    "SC_rgb_jls_lossy_line.dcm": (125.0, 125.0, 130.8, 130.8),
    "SC_rgb_jls_lossy_sample.dcm": (125.0, 125.0, 130.8, 130.8),
    "SC_rgb_jpeg_app14_dcmd.dcm": (245.7, 245.4, 245.7, 245.2),
    "SC_rgb_jpeg_dcmd.dcm": (244.0, 244.0, 244.0, 244.0),
    "SC_rgb_jpeg_dcmtk.dcm": (124.8, 124.8, 130.7, 130.7),
    "SC_rgb_jpeg_gdcm.dcm": (124.8, 124.8, 130.6, 130.6),
    "SC_rgb_jpeg_lossy_gdcm.dcm": (124.6, 124.6, 130.6, 130.6),
    "SC_rgb_rle.dcm": (124.8, 124.8, 130.6, 130.6),
    "SC_rgb_rle_16bit.dcm": (124.8, 124.8, 130.6, 130.6),
    "SC_rgb_small_odd.dcm": (138.0, 138.0, 124.0, 124.0),
    "SC_rgb_small_odd_big_endian.dcm": (138.0, 138.0, 124.0, 124.0),
    "SC_rgb_small_odd_jpeg.dcm": (138.0, 138.0, 124.0, 124.0),
    "SC_ybr_full_422_uncompressed.dcm": (124.4, 124.4, 129.8, 129.8),
    "examples_overlay.dcm": (36.3, 36.4, 54.9, 63.4),
    "examples_palette.dcm": (33.3, 40.2, 2.9, 1.4),
    "examples_rgb_color.dcm": (48.8, 45.3, 21.8, 25.3),
    "image_dfl.dcm": (127.4, 127.2, 126.9, 126.9),
    "liver_1frame.dcm": (58.2, 34.1, 47.7, 1.0),
    "liver_expb_1frame.dcm": (58.2, 34.1, 47.7, 1.0),
}
# Mean stored value of each quarter of those that DCMTK does not decode, by SimpleITK 2.5.7 (GDCM), before rescaling.
GDCM = {
    "693_J2KI.dcm": (-119.9, -73.3, 39.3, 120.6),
    "J2K_pixelrep_mismatch.dcm": (-655.3, -672.8, -622.3, -683.4),
    "JPEG2000.dcm": (17.1, 25.0, 5.9, 5.9),
    "MR_small_jp2klossless.dcm": (394.8, 500.0, 299.5, 881.1),
}
GDCM_COLOURS = {
    "GDCMJ2K_TextGBR.dcm": (120.2, 126.7, 122.9, 128.0),
    "SC_rgb_gdcm_KY.dcm": (119.1, 119.1, 136.3, 136.3),
    "SC_rgb_jpeg.dcm": (244.0, 244.0, 243.9, 244.0),
    "examples_jpeg2k.dcm": (46.7, 44.0, 21.9, 25.5),
}
# SHA-256 of what MIMIC-CXR-JPG's conversion with OpenCV 4 makes of `radiograph()`, by whether it is MONOCHROME1.
OPENCV = {
    False: "116d6cc4d662976fea0a875a40511117ae1c13d0d3e51047e22e4c55cffff318",
    True: "9e5e89e931a0c033f8aa058c000267e0b15e746018806dd9429cbb6bc3fd7637",
}


def radiograph() -> np.ndarray:
    values = np.random.default_rng(5).normal(1800, 500, (48, 40))
    return np.clip(values, 3, 4000).astype(np.uint16)


def quarters(image: np.ndarray) -> list[float]:
    top, left = image.shape[0] // 2, image.shape[1] // 2
    parts = image[:top, :left], image[:top, left:], image[top:, :left], image[top:, left:]
    return [float(part.mean()) for part in parts]


def eight_bits(shares: np.ndarray) -> np.ndarray:
    return np.floor(np.clip(shares, 0, 1) * 255 + 0.5)


def windowed_by_pydicom(content: bytes) -> np.ndarray:
    """pydicom's whole chain, scaled from the range that its window or lookup table gives to 0 ... 255."""
    dataset = pydicom.dcmread(io.BytesIO(content))
    values = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset).astype(float)
    ends = apply_voi_lut(np.array([-30000, 100_000], np.int64), dataset).astype(float)
    return eight_bits((values - ends[0]) / (ends[1] - ends[0]))


@pytest.fixture(autouse=True)
def said_anew():
    dicom._say_overlays.cache_clear()


@pytest.mark.parametrize("name", DCMTK)
def test_shipped_files_look_as_dcmtk_shows_them(name):
    np.testing.assert_allclose(quarters(read_image(SHIPPED / name)), DCMTK[name], atol=1)


@pytest.mark.parametrize("name", GDCM)
def test_stored_values_of_jpeg_2000_are_those_of_gdcm(name):
    library = dicom._pydicom("")
    dataset = dicom._dataset(library, (SHIPPED / name).read_bytes(), "")
    np.testing.assert_allclose(quarters(dicom._pixels(library, dataset, "")[0]), GDCM[name], atol=0.051)


@pytest.mark.parametrize("name", GDCM_COLOURS)
def test_colours_are_those_of_gdcm(name):
    image = read_image(SHIPPED / name, colour=True)
    assert image.shape[2:] == (3,)
    np.testing.assert_allclose(quarters(image), GDCM_COLOURS[name], atol=0.151)


@pytest.mark.parametrize("name", ["MR_small.dcm", "693_J2KI.dcm", "examples_overlay.dcm"])
def test_shipped_files_go_the_way_of_pydicom(name):
    assert np.abs(read_image(SHIPPED / name) - windowed_by_pydicom((SHIPPED / name).read_bytes())).max() <= 1


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_are_those_of_pydicom(dtype, function):
    lowest, highest = (-1000, 3000) if dtype == "int16" else (0, 255 if dtype == "uint8" else 4095)
    pixels = gradient(dtype, lowest=lowest, highest=highest)
    middle, width = (lowest + highest) / 2, (highest - lowest) / 3
    for more in (
        {},
        {"RescaleSlope": "2.5", "RescaleIntercept": "-30"},
        {"RescaleSlope": "1", "RescaleIntercept": "0"},
    ):
        slope, intercept = float(more.get("RescaleSlope", 1)), float(more.get("RescaleIntercept", 0))
        window = {
            "WindowCenter": [round(middle * slope + intercept, 1), 7],
            "WindowWidth": [round(width * slope, 1), 9],
        }
        content = dicom_bytes(pixels, VOILUTFunction=function, **window, **more)
        np.testing.assert_array_equal(read_image(content), windowed_by_pydicom(content))
        inverse = dicom_bytes(
            pixels, VOILUTFunction=function, PhotometricInterpretation="MONOCHROME1", **window, **more
        )
        assert np.abs(read_image(inverse).astype(int) + read_image(content) - 255).max() <= 1


def test_lookup_tables_are_those_of_pydicom():
    pixels = gradient(highest=1500)
    voi = lookup_table(np.rint(4095 * np.linspace(0, 1, 1000) ** 2), 200, 12)
    content = dicom_bytes(pixels, VOILUTSequence=[voi], WindowCenter="5", WindowWidth="3")
    np.testing.assert_array_equal(read_image(content), windowed_by_pydicom(content))
    modality = lookup_table(np.linspace(0, 60000, 1500).astype(int), 0, 16)
    content = dicom_bytes(pixels, ModalityLUTSequence=[modality], WindowCenter="30000", WindowWidth="20000")
    np.testing.assert_array_equal(read_image(content), windowed_by_pydicom(content))
    turned = np.frombuffer(voi.LUTData, "<u2").astype(">u2").tobytes()
    voi.LUTData = turned
    other = big_endian(pixels, VOILUTSequence=[voi])
    assert (read_image(other) == read_image(dicom_bytes(pixels, VOILUTSequence=[lookup_table(
        np.frombuffer(turned, ">u2"), 200, 12)]))).all()  # fmt: skip


def test_tables_of_8_bits_for_values_of_12_and_of_12_bits_are_read_where_pydicom_wraps_or_refuses():
    pixels = gradient()
    entries = np.linspace(0, 255, 4096).astype(int)
    shown = read_image(dicom_bytes(pixels, VOILUTSequence=[lookup_table(entries, 0, 8)]))
    np.testing.assert_array_equal(shown, entries[pixels])
    inverse = np.arange(4095, -1, -1)
    shown = read_image(dicom_bytes(pixels, ModalityLUTSequence=[lookup_table(inverse, 0, 12)]))
    np.testing.assert_array_equal(shown, eight_bits((4095 - pixels.astype(int)) / 4095))


def test_without_a_window_the_values_in_use_are_spread_and_padding_is_black():
    pixels = gradient(lowest=100, highest=1123)
    np.testing.assert_array_equal(read_image(dicom_bytes(pixels)), eight_bits((pixels.astype(int) - 100) / 1023))
    for impossible in ({"WindowWidth": "0"}, {"WindowWidth": "-4"}, {"WindowWidth": "5", "VOILUTFunction": "OTHER"}):
        shown = read_image(dicom_bytes(pixels, WindowCenter="600", **impossible))
        np.testing.assert_array_equal(shown, read_image(dicom_bytes(pixels)))
    padded = pixels.copy()
    padded[:, :3] = 60000
    shown = read_image(dicom_bytes(padded, PixelPaddingValue=60000))
    assert not shown[:, :3].any()
    assert shown[:, 3:].max() > 200
    inverse = read_image(dicom_bytes(padded, PixelPaddingValue=59000, PixelPaddingRangeLimit=61000,
        PhotometricInterpretation="MONOCHROME1"))  # fmt: skip
    assert not inverse[:, :3].any()
    np.testing.assert_allclose(inverse[:, 3:].astype(int) + shown[:, 3:], 255, atol=1)
    assert not read_image(dicom_bytes(np.full((4, 4), 9, np.uint16), PixelPaddingValue=9)).any()


def test_bits_that_are_not_of_the_image_do_not_count():
    pixels = gradient(highest=1023)
    overlaid = pixels | np.uint16(1 << 12)
    expected = read_image(dicom_bytes(pixels, BitsStored=10))
    np.testing.assert_array_equal(read_image(dicom_bytes(overlaid, BitsStored=10)), expected)


def test_every_plain_way_of_writing_gives_the_same_pixels(tmp_path):
    pixels = gradient("int16", lowest=-900, highest=2000)
    expected = read_image(dicom_bytes(pixels))
    implicit, deflated, packed = (dicom_dataset(pixels) for _ in range(3))
    implicit.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    deflated.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    packed.compress(RLELossless, encoding_plugin="pydicom")
    bare = dicom_dataset(pixels)
    del bare.file_meta
    contents = [
        written(implicit),
        written(deflated),
        written(packed),
        big_endian(pixels),
        written(bare, enforce_file_format=False, implicit_vr=True, little_endian=True),
        written(bare, enforce_file_format=False, implicit_vr=False, little_endian=True),
    ]
    for number, content in enumerate(contents):
        path = tmp_path / f"{number} 肺"  # no suffix is needed
        path.write_bytes(content)
        np.testing.assert_array_equal(read_image(path), expected)


def test_colours_stay_or_become_luma_and_grey_becomes_three_equal_channels():
    colours = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    content = dicom_bytes(colours)
    np.testing.assert_array_equal(read_image(content, colour=True), colours)
    np.testing.assert_array_equal(read_image(content), np.asarray(Image.fromarray(colours).convert("L")))
    deep = dicom_bytes(colours.astype(np.uint16) << 4, BitsStored=12)
    np.testing.assert_array_equal(read_image(deep, colour=True), colours)
    grey = read_image(dicom_bytes(gradient()), colour=True)
    assert grey.shape == (24, 32, 3)
    assert (grey == read_image(dicom_bytes(gradient()))[..., None]).all()


@pytest.mark.parametrize("inverted", [False, True])
def test_mimic_cxr_jpg_is_made_again_as_opencv_made_it(inverted):
    content = dicom_bytes(radiograph(), PhotometricInterpretation=f"MONOCHROME{2 - inverted}", WindowCenter="9",
        WindowWidth="5")  # fmt: skip
    made = read_image(content, dicom_contrast="mimic-cxr-jpg")
    assert hashlib.sha256(made.tobytes()).hexdigest() == OPENCV[inverted]


def test_an_image_of_one_level_is_not_equalized():
    for value, photometric in ((5, 2), (5, 1)):
        content = dicom_bytes(np.full((4, 4), value, np.uint16), PhotometricInterpretation=f"MONOCHROME{photometric}")
        assert (read_image(content, dicom_contrast="mimic-cxr-jpg") == (0 if photometric == 2 else 255)).all()
    assert equalizing_table(np.bincount([7] * 9, minlength=256)).tolist() == list(range(256))


def test_overlays_are_left_out_and_said_once(capsys):
    for _ in range(2):
        read_image(SHIPPED / "examples_overlay.dcm")
    assert capsys.readouterr().err == (
        "note: overlays of DICOM files (drawings and text above an image) are left out\n"
    )
