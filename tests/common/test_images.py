"""Reading pictures of every kind as grey bytes, and the square that the model sees, against loops over pixels."""

import io
import math
import random
import struct
import zlib
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from common.data.images import augment, encode_png, read_image, resize_crop, resize_shorter
from common.errors import UserError
from common.models.clip import normalise


def picture(height=30, width=40, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.uint8)


def smooth_picture(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return (127.5 + 60 * np.sin(rows / 17) + 60 * np.cos(columns / 23)).astype(np.uint8)


def encoded(image: Image.Image, kind="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_with_size(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, with a right checksum."""
    data = bytearray(encoded(Image.new("L", (3, 3))))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def png_of_16_bits_with_alpha() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + struct.pack(">4H", 700, 65535, 4900, 65535)
    parts = (b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, 4, 0, 0, 0)), (b"IDAT", zlib.compress(row * 2)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def test_a_grey_png_is_read_bit_by_bit_from_path_or_bytes(tmp_path):
    path = tmp_path / "眼 1.png"
    path.write_bytes(encode_png(picture()))
    for source in (path, str(path), path.read_bytes()):
        image = read_image(source)
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, picture())


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_grey_stored_as_colour_keeps_its_values(mode):
    np.testing.assert_array_equal(read_image(encoded(Image.fromarray(picture()).convert(mode))), picture())


def test_colours_become_luma():
    colours = {(255, 0, 0): 76, (0, 255, 0): 150, (0, 0, 255): 29, (255, 255, 0): 226}
    for colour, luma in colours.items():
        assert read_image(encoded(Image.new("RGB", (2, 2), colour))).tolist() == [[luma] * 2] * 2


def test_transparency_becomes_black():
    grey = Image.fromarray(picture())
    grey.putalpha(Image.fromarray(np.repeat(np.array([[0, 128, 255, 255]], np.uint8), 30, 0).repeat(10, 1)))
    image = read_image(encoded(grey))
    assert not image[:, :10].any()
    np.testing.assert_allclose(image[:, 10:20], picture()[:, 10:20] * (128 / 255), atol=1)
    np.testing.assert_array_equal(image[:, 20:], picture()[:, 20:])


def test_a_transparent_palette_entry_becomes_black():
    indexed = Image.new("P", (2, 1))
    indexed.putpalette([200, 200, 200, 90, 90, 90])
    indexed.putpixel((1, 0), 1)
    assert read_image(encoded(indexed)).tolist() == [[200, 90]]
    assert read_image(encoded(indexed, transparency=0)).tolist() == [[0, 90]]


def test_one_bit_is_black_and_white():
    assert read_image(encoded(Image.fromarray(np.array([[True, False]])))).tolist() == [[255, 0]]


@pytest.mark.parametrize(("lowest", "highest"), [(0, 4095), (100, 1123), (0, 65535), (32768, 32769), (7, 9)])
def test_sixteen_bits_are_scaled_by_the_range_in_use(lowest, highest):
    values = np.random.default_rng(1).integers(lowest, highest + 1, (20, 30)).astype(np.uint16)
    values[0, :2] = lowest, highest
    share = [[Fraction((int(value) - lowest) * 255, highest - lowest) for value in row] for row in values]
    expected = [[math.floor(value + Fraction(1, 2)) for value in row] for row in share]
    assert read_image(encoded(Image.fromarray(values))).tolist() == expected


def test_sixteen_bits_of_one_value_are_black():
    assert not read_image(encoded(Image.fromarray(np.full((3, 3), 4000, np.uint16)))).any()


def test_jpeg_is_read_in_grey_colour_and_cmyk():
    smooth = smooth_picture(64, 48)
    for mode in ("L", "RGB"):
        read = read_image(encoded(Image.fromarray(smooth).convert(mode), "JPEG", quality=95))
        assert np.abs(read.astype(int) - smooth).max() <= 6
    cmyk = Image.fromarray(smooth).convert("RGB").convert("CMYK")
    assert np.abs(read_image(encoded(cmyk, "JPEG", quality=95)).astype(int) - smooth).max() <= 12


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the row shown first is the column stored first, read upwards
    data = encoded(Image.fromarray(picture()), exif=exif)
    np.testing.assert_array_equal(read_image(data), np.rot90(picture(), -1))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "found an empty file"),
        (b"no picture at all", "found 17 bytes of something else; convert it"),
        (encoded(Image.new("L", (3, 3)), "GIF"), "expected a PNG, JPEG or DICOM"),
        (encoded(Image.new("L", (3, 3)), "BMP"), "expected a PNG, JPEG or DICOM"),
        (png_with_size(0, 0), "not a complete PNG"),
        (png_with_size(0, 5), "not a complete PNG"),
        (png_with_size(20_000, 20_000), "20000 x 20000 pixels; expected at most 100 million"),
        (png_with_size(2**31 - 1, 2**31 - 1), "expected at most 100 million"),
        (png_with_size(100, 2001), "100 x 2001 pixels; expected an aspect ratio of at most 20"),
        (
            encoded(Image.new("L", (3, 3)), save_all=True, append_images=[Image.new("L", (3, 3), 9)]),
            "2 frames; expected a single frame",
        ),
        (png_of_16_bits_with_alpha(), "16-bit grey with transparency"),
    ],
    ids=[
        "empty",
        "text",
        "gif",
        "bmp",
        "no size",
        "no width",
        "large",
        "giant",
        "strip",
        "moving",
        "16 bits and alpha",
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_is_no_still_image_of_usable_size_is_refused_by_name(tmp_path, data, message):
    path = tmp_path / "x.png"
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"x\.png: .*{message}") as refusal:
        read_image(path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["absent.png", ".", "nul\0.png", "n" * 300])
def test_a_path_that_is_no_readable_file_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="cannot be read"):
        read_image(tmp_path / name)


def test_a_cut_file_is_refused_wherever_it_was_cut():
    for data in (encode_png(picture()), encoded(Image.fromarray(picture()), "JPEG")):
        for length in range(0, len(data) - 4, 7):
            with pytest.raises(UserError):
                read_image(data[:length])


def test_a_png_with_a_wrong_byte_is_refused_or_unchanged():
    whole = encode_png(picture())
    generator = random.Random(0)
    refused = 0
    for index in generator.sample(range(len(whole)), 200):
        damaged = bytearray(whole)
        damaged[index] ^= 1 << generator.randrange(8)
        try:
            np.testing.assert_array_equal(read_image(bytes(damaged)), picture())
        except UserError:
            refused += 1
    assert refused > 190


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_jpeg_with_wrong_bytes_is_read_or_refused_and_nothing_else():
    exif = Image.Exif()
    exif[0x0112] = 3
    whole = encoded(Image.fromarray(picture()), "JPEG", exif=exif)
    generator = random.Random(0)
    for _ in range(500):
        damaged = bytearray(whole)
        for index in generator.sample(range(len(whole)), 3):
            damaged[index] = generator.randrange(256)
        try:
            image = read_image(bytes(damaged))
        except UserError:
            continue
        assert image.dtype == np.uint8
        assert image.ndim == 2


@pytest.mark.parametrize("shape", [(300, 400), (400, 300), (256, 256), (100, 333), (2500, 2048)])
def test_the_shorter_side_is_resized_and_the_middle_kept(shape):
    image = smooth_picture(*shape)
    resized = resize_shorter(image, 256)
    height, width = shape
    assert resized.shape == ((256, 256 * width // height) if height <= width else (256 * height // width, 256))
    top, left = (resized.shape[0] - 224) // 2, (resized.shape[1] - 224) // 2
    np.testing.assert_array_equal(resize_crop(image), resized[top : top + 224, left : left + 224])


def test_resizing_is_the_bicubic_average_over_the_area_of_a_pixel():
    """One row, 400 -> 100, by the definition: Keys' kernel (a = -1/2) widened four times, normalised."""

    def keys(x: float) -> float:
        x = abs(x)
        if x < 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    row = picture(1, 400, seed=3)[0].astype(float)
    expected = []
    for index in range(100):
        weights = np.array([keys((column + 0.5 - (index + 0.5) * 4) / 4) for column in range(400)])
        expected.append(float((weights * row).sum() / weights.sum()))
    resized = resize_shorter(np.repeat(picture(1, 400, seed=3), 400, 0), 100)
    np.testing.assert_allclose(resized[50], np.clip(expected, 0, 255), atol=1)


def test_augmentation_repeats_with_its_seed_and_differs_otherwise():
    image = smooth_picture(300, 340)
    first, again, other = (augment(image, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert first.shape == (224, 224)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_without_turning_and_brightening_augmentation_is_a_crop_and_reaches_every_place():
    image = smooth_picture(20, 22)
    rng = np.random.default_rng(0)
    corners = set()
    corner_of = {image[y : y + 16, x : x + 16].tobytes(): (y, x) for y in range(5) for x in range(7)}
    for _ in range(600):
        square = augment(image, rng, resize=20, crop=16, degrees=0, brightness=0)
        corners.add(corner_of[square.tobytes()])
    assert corners == {(y, x) for y in range(5) for x in range(7)}


def test_brightness_and_turning_stay_within_their_bounds():
    rng = np.random.default_rng(0)
    grey = np.full((256, 256), 200, np.uint8)
    levels = [int(augment(grey, rng, degrees=0)[0, 0]) for _ in range(200)]
    assert 180 <= min(levels) < 185
    assert 215 < max(levels) <= 220
    bar = np.zeros((256, 256), np.uint8)
    bar[:, 120:136] = 255
    for _ in range(50):
        turned = augment(bar, rng, brightness=0, degrees=5)
        centres = (turned * np.arange(224.0)).sum(1) / turned.sum(1)
        assert abs(centres[-1] - centres[0]) <= 223 * math.tan(math.radians(5)) + 1


def test_left_stays_left_unless_mirroring_is_asked_for():
    image = np.zeros((256, 256), np.uint8)
    image[:, :128] = 200
    rng = np.random.default_rng(0)
    sides = [augment(image, rng)[112, 10] > augment(image, rng)[112, -10] for _ in range(100)]
    assert all(sides)
    mirrored = [bool(augment(image, rng, mirror=True)[112, 10] > 100) for _ in range(100)]
    assert 25 < sum(mirrored) < 75


def test_normalised_values_are_those_of_the_formula():
    images = np.stack([picture(), picture(seed=1)])
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    values = normalise(images)
    assert values.shape == (2, 30, 40, 3)
    assert values.dtype == np.float32
    for channel in range(3):
        expected = (images.astype(np.float64) / 255 - mean[channel]) / std[channel]
        np.testing.assert_allclose(values[..., channel], expected, rtol=1e-5, atol=1e-6)
