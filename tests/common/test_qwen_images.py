"""Images for Qwen2.5-VL against the published processor of transformers."""

import json

import jax
import numpy as np
import pytest
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from common.data.qwen_images import check_processor, resize
from common.errors import UserError
from common.models.clip import CLIP_MEAN, CLIP_STD
from common.models.qwen2_vl_vision import VisionConfig, grey_patches


def noise(side, seed=0):
    """Noise on a gradient, so that resizing has to interpolate and to clip."""
    gradient = np.linspace(0, 255, side)
    return np.clip(gradient + np.random.default_rng(seed).normal(0, 120, (side, side)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("side", [28, 112, 336])
def test_equal_to_the_published_processor(side):
    theirs = Qwen2VLImageProcessorPil(min_pixels=side**2, max_pixels=side**2)
    made = jax.jit(grey_patches, static_argnums=0)
    for size in (28, 97, 448, 513):
        image = noise(size)
        expected = theirs(np.repeat(image[..., None], 3, axis=-1), return_tensors="np")
        assert tuple(expected["image_grid_thw"][0]) == (1, side // 14, side // 14)
        found = made(VisionConfig(), resize(image, side)[None])[0]
        np.testing.assert_allclose(found, expected["pixel_values"], atol=1e-6, err_msg=f"{size} to {side}")


def test_an_image_of_other_proportions_is_squeezed_into_the_square():
    gradient = np.tile(np.linspace(0, 255, 300), (300, 1)).astype(np.uint8)
    np.testing.assert_array_equal(resize(gradient[:90], 112), resize(gradient, 112))


def test_a_processor_that_makes_other_patches_is_refused(tmp_path):
    check_processor(tmp_path, VisionConfig())  # a model without one
    Qwen2VLImageProcessorPil(min_pixels=50_000, max_pixels=90_000).save_pretrained(tmp_path)
    check_processor(tmp_path, VisionConfig())
    hub = {"min_pixels": 3136, "max_pixels": 12_845_056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
    hub |= {"image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD)}
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(hub))
    check_processor(tmp_path, VisionConfig())
    for name, value in {
        "image_mean": [0.5, 0.5, 0.5],
        "patch_size": 16,
        "merge_size": 4,
        "resample": 2,
        "do_rescale": False,
        "rescale_factor": 1 / 127.5,
    }.items():
        file.write_text(json.dumps({**hub, name: value}))
        with pytest.raises(UserError, match=rf"preprocessor_config\.json: {name} is .*, expected "):
            check_processor(tmp_path, VisionConfig())
    file.unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {**hub, "patch_size": 16}}))
    with pytest.raises(UserError, match=r"processor_config\.json: image_processor patch_size is 16, expected 14"):
        check_processor(tmp_path, VisionConfig())
