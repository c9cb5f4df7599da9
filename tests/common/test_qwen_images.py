"""Images for Qwen2.5-VL against the published processor of transformers."""

import json

import jax
import numpy as np
import pytest
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from common.data.qwen_images import (
    ImageProcessor,
    check_processor,
    patches,
    processor_from_directory,
    resize,
    target_size,
)
from common.errors import UserError
from common.models.clip import CLIP_MEAN, CLIP_STD
from common.models.qwen2_vl_vision import VisionConfig, grey_patches

SIZES = [(28, 28), (29, 57), (97, 333), (448, 448), (513, 391), (40, 1600), (1211, 977), (13, 20), (70, 42), (1, 150)]


def image(height, width, colours=True, seed=0):
    """Noise on a gradient, so that resizing has to interpolate and to clip."""
    random = np.random.default_rng(seed)
    shape = (height, width, 3) if colours else (height, width)
    gradient = np.linspace(0, 255, width).reshape(1, width, *[1] * (len(shape) - 2))
    return np.clip(gradient + random.normal(0, 120, shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("limits", [{}, {"min_pixels": 200_000, "max_pixels": 400_000}, {"max_pixels": 40_000}])
def test_equal_to_the_published_processor(limits):
    theirs = Qwen2VLImageProcessorPil(**limits)
    ours = ImageProcessor(**limits)
    for height, width in SIZES:
        for colours in (True, False):
            pixels = image(height, width, colours)
            coloured = pixels if colours else np.repeat(pixels[..., None], 3, axis=-1)
            expected = theirs(coloured, return_tensors="np", input_data_format="channels_last")
            found, grid = patches(ours, pixels)
            assert (1, *grid) == tuple(expected["image_grid_thw"][0]), (height, width)
            np.testing.assert_array_equal(found, expected["pixel_values"], err_msg=f"{height} x {width}")
            assert found.dtype == np.float32


def test_a_fixed_size_is_a_resize_to_it():
    ours = ImageProcessor(fixed=(336, 448))
    pixels = image(301, 517)
    resized = resize(ours, pixels)
    assert resized.shape == (336, 448, 3)
    found, grid = patches(ours, pixels)
    assert grid == (24, 32)
    expected = Qwen2VLImageProcessorPil()(resized, return_tensors="np")  # which has nothing left to resize
    np.testing.assert_array_equal(found, expected["pixel_values"])
    with pytest.raises(UserError, match="multiples of 28"):
        ImageProcessor(fixed=(336, 450))


def test_grey_patches_on_the_device_are_those_of_the_host():
    ours = ImageProcessor(fixed=(112, 224))
    grey = np.stack([[resize(ours, image(90, 200, False, seed))] for seed in range(3)])
    expected = np.stack([[patches(ours, study[0])[0]] for study in grey])
    np.testing.assert_allclose(jax.jit(grey_patches, static_argnums=0)(VisionConfig(), grey), expected, atol=1e-6)


def test_sizes():
    random = np.random.default_rng(0)
    for _ in range(3000):
        height, width = (int(side) for side in np.exp(random.uniform(0, 8.5, 2)))
        low, high = sorted(int(area) for area in np.exp(random.uniform(8, 14, 2)))
        if max(height, width) <= 200 * min(height, width):
            expected = smart_resize(height, width, 28, low, high)
            assert target_size(ImageProcessor(low, high), height, width) == expected
    with pytest.raises(UserError, match="1 x 201"):
        target_size(ImageProcessor(), 1, 201)


def test_processor_files(tmp_path):
    theirs = Qwen2VLImageProcessorPil(min_pixels=50_000, max_pixels=90_000)
    theirs.save_pretrained(tmp_path)
    assert processor_from_directory(tmp_path) == ImageProcessor(50_000, 90_000)
    hub = {"min_pixels": 3136, "max_pixels": 12_845_056, "patch_size": 14, "merge_size": 2, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(hub))
    expected = ImageProcessor(3136, 12_845_056, image_std=(0.5, 0.5, 0.5), fixed=(448, 448))
    assert processor_from_directory(tmp_path, fixed=(448, 448)) == expected
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**hub, "resample": 2}))
    with pytest.raises(UserError, match=r"resample is 2, expected 3 \(bicubic\)"):
        processor_from_directory(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"no preprocessor_config\.json"):
        processor_from_directory(tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": hub}))
    assert processor_from_directory(tmp_path).max_pixels == 12_845_056


def test_a_processor_that_makes_other_patches_is_refused(tmp_path):
    check_processor(tmp_path, VisionConfig())  # a model without one
    hub = {"min_pixels": 3136, "max_pixels": 12_845_056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
    hub |= {"image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD)}

    def write(**changed):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({**hub, **changed}))

    write()
    check_processor(tmp_path, VisionConfig())
    for name, value in {"image_mean": [0.5, 0.5, 0.5], "patch_size": 16, "merge_size": 4}.items():
        write(**{name: value})
        with pytest.raises(UserError, match=f"the image processor's {name} is"):
            check_processor(tmp_path, VisionConfig())
