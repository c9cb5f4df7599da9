"""Images for Qwen2.5-VL, all of one size: resized on the host, split into patches on the device.

`Qwen2VLImageProcessorPil` of transformers makes patches on the host, which are 24 times the bytes of a grey image; so
it only serves the tests, to which `resize` and `common.models.qwen2_vl_vision.grey_patches` are equal.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from common.bounds import FINITE
from common.io.text import json_text
from common.models.clip import CLIP_MEAN, CLIP_STD
from common.models.published import read_entries
from common.models.qwen2_vl_vision import VisionConfig

FILES = ("preprocessor_config.json", "processor_config.json")
PIXELS = 3136, 12_845_056  # of an image, at least and at most, in the published file


def resize(image: UInt8[np.ndarray, "H W"], side: int) -> UInt8[np.ndarray, "side side"]:
    """The image as a square, bicubic with antialiasing (Pillow)."""
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))


def processor_files(directory: str | Path, vision: VisionConfig) -> dict[str, str]:
    """The published file of an image processor that makes the patches of `grey_patches`, where a model has none.

    Engines that serve an export read it; images between 56 x 56 and 3,584 x 3,584 pixels keep their size.
    """
    if any((Path(directory) / name).is_file() for name in FILES):
        return {}
    values = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "min_pixels": PIXELS[0],
        "max_pixels": PIXELS[1],
    }
    return {FILES[0]: json_text(values, FILES[0], 2) + "\n"}


def check_processor(directory: str | Path, vision: VisionConfig) -> None:
    """Raise UserError where a model's own processor, if it has one, makes patches other than `grey_patches` makes.

    That is its `preprocessor_config.json`, or its part of `processor_config.json`. How large images are is the caller's
    choice: its limits of pixels are not looked at.
    """
    file, joint = (Path(directory) / name for name in FILES)
    if not file.is_file() and not joint.is_file():
        return
    published = read_entries(file) if file.is_file() else read_entries(joint).part("image_processor")
    settings: dict[str, Any] = {
        **dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), True),
        "resample": Image.Resampling.BICUBIC.value,
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
    }
    for name, value in settings.items():
        found = published.values.get(name, value)
        if type(found) is not type(value) or found != value:
            raise published.error(name, f"{str(value).lower()}; is it the file of another model?")
    if not math.isclose(published.number("rescale_factor", default=1 / 255), 1 / 255):
        raise published.error("rescale_factor", "1 / 255")
    for name, values in (("image_mean", CLIP_MEAN), ("image_std", CLIP_STD)):
        if tuple(published.items(name, float, values, FINITE)) != values:
            raise published.error(name, f"{list(values)}; is it the file of another model?")
