"""Real radiographs of three collections: every file reads, and lies the way the source shows it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data.images import augment, encode_png, read_image, resize_crop
from common.models.clip import normalise


@pytest.fixture(scope="module")
def radiographs(real_data: Path) -> list[Path]:
    folders = [real_data / name for name in ("iu_xray/images", "covid_chestxray/images", "nih_chestxray14")]
    files = [file for folder in folders for file in sorted(folder.glob("*.[pj][np]g"))]
    if not files:
        pytest.skip(f"no radiographs under {real_data}")
    return files


def test_every_radiograph_becomes_a_square_with_contrast(radiographs):
    assert len(radiographs) == 143
    shapes = set()
    for file in radiographs:
        image = read_image(file)
        shapes.add(image.shape)
        square = resize_crop(image)
        assert square.shape == (224, 224)
        assert square.std() > 10, file.name
    assert (2496, 2048) in shapes
    assert any(height > width for height, width in shapes)
    assert any(height < width for height, width in shapes)


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "CMYK", "I;16", "portrait"])
def test_a_radiograph_in_another_form_is_the_same_radiograph(radiographs, tmp_path, kind):
    file = next(file for file in radiographs if file.name == "1000_IM-0003-1001.dcm.png")
    grey = read_image(file)
    stored = tmp_path / ("x.jpg" if kind == "CMYK" else "x.png")
    if kind == "I;16":  # 12 bits in 16, the way detectors deliver
        Image.fromarray(grey.astype(np.uint16) * 16).save(stored)
        lowest, highest = int(grey.min()), int(grey.max())
        grey = np.rint((grey.astype(float) - lowest) * 255 / (highest - lowest)).astype(np.uint8)
    elif kind == "portrait":
        grey = grey[:, 600:1400]
        Image.fromarray(grey).save(stored)
    else:
        rgb = Image.fromarray(grey).convert("RGB").convert(kind)
        rgb.save(stored, **({"quality": 95} if kind == "CMYK" else {}))
    read = read_image(stored).astype(int)
    assert np.abs(read - grey).max() <= (40 if kind == "CMYK" else 1)
    assert np.abs(read - grey).mean() < 2


def test_a_stored_radiograph_is_read_back_bit_by_bit_and_normalised_to_about_unit_range(radiographs):
    image = read_image(radiographs[0])
    np.testing.assert_array_equal(read_image(encode_png(image)), image)
    [values] = normalise(augment(image, np.random.default_rng(0))[None])
    assert values.shape == (224, 224, 3)
    assert -2 < values.min() < values.max() < 3
