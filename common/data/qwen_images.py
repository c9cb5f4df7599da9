"""Images as Qwen2.5-VL takes them: resized to whole tokens, normalised and cut into patches, on the host.

Equal, number for number, to the published processor (`Qwen2VLImageProcessor` on Pillow). Grey images have three equal
channels. A grid is the (rows, columns) of an image's patches.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from common.bounds import FINITE, Within
from common.errors import UserError
from common.models.clip import CLIP_MEAN, CLIP_STD
from common.models.published import SIZE, read_entries
from common.models.qwen2_vl_vision import VisionConfig

MAXIMUM_ASPECT = 200
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
BICUBIC = 3  # as Pillow numbers it, and processor files with it
PIXELS = Within(1, 1 << 40)  # that an image is given at most or at least

Pixels = UInt8[np.ndarray, "H W"] | UInt8[np.ndarray, "H W 3"]


@dataclasses.dataclass(frozen=True)
class ImageProcessor:
    """The entries of the published `preprocessor_config.json`, and `fixed`, which sets one size for all images.

    Raises UserError for a fixed size that is not made of whole tokens.
    """

    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    image_mean: tuple[float, float, float] = CLIP_MEAN
    image_std: tuple[float, float, float] = CLIP_STD
    # Height and width of every image, whatever its own: (448, 448) keeps shapes static, and multiples of 112 fill every
    # attention window.
    fixed: tuple[int, int] | None = None

    def __post_init__(self):
        if self.fixed and (min(self.fixed) < 1 or any(side % self.token_size for side in self.fixed)):
            raise UserError(f"fixed image size is {self.fixed}, expected multiples of {self.token_size} (best of 112)")

    @property
    def token_size(self) -> int:
        """Pixels along a side of the square that becomes one token."""
        return self.patch_size * self.merge_size


def processor_from_directory(directory: str | Path, fixed: tuple[int, int] | None = None) -> ImageProcessor:
    """The processor of a published model: `preprocessor_config.json`, or its part of `processor_config.json`.

    Raises UserError where both are missing, and for steps other than those of Qwen2.5-VL.
    """
    file, joint = (Path(directory) / name for name in PROCESSOR_FILES)
    if not file.is_file() and not joint.is_file():
        raise UserError(f"{directory}: no {file.name}; expected the image processor of Qwen2.5-VL beside the weights")
    published = read_entries(file) if file.is_file() else read_entries(joint).part("image_processor")
    if published.whole("resample", Within(0, 5), BICUBIC) != BICUBIC:
        raise published.error("resample", f"{BICUBIC} (bicubic)")
    for name in ("do_resize", "do_rescale", "do_normalize"):
        if not published.flag(name, default=True):
            raise published.error(name, "true")
    if not math.isclose(published.number("rescale_factor", default=1 / 255), 1 / 255):
        raise published.error("rescale_factor", "1 / 255")
    size, given = published.part("size"), dict[str, Any]()
    for name, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        places = ((published, name), (size, edge), (size, name))
        given |= next(({name: place.whole(entry, PIXELS)} for place, entry in places if entry in place), {})
    for name in ("patch_size", "temporal_patch_size", "merge_size"):
        given |= {name: published.whole(name, SIZE)} if name in published else {}
    for name in ("image_mean", "image_std"):
        if name in published:
            given[name] = tuple(published.items(name, float, bounds=FINITE))
            if len(given[name]) != 3:
                raise published.error(name, "a list of three numbers")
    return ImageProcessor(**given, fixed=fixed)


def check_processor(directory: str | Path, vision: VisionConfig) -> None:
    """Raise UserError where a model's own processor, if it has one, makes patches other than `grey_patches` makes.

    How large images are is the caller's choice: its limits of pixels are not looked at.
    """
    if not any((Path(directory) / name).is_file() for name in PROCESSOR_FILES):
        return
    found = processor_from_directory(directory)
    expected = {
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    }
    for name, value in expected.items():
        if getattr(found, name) != value:
            raise UserError(
                f"{directory}: the image processor's {name} is {getattr(found, name)}, expected {value}; is it the "
                "file of another model?"
            )


def target_size(processor: ImageProcessor, height: int, width: int) -> tuple[int, int]:
    """Height and width to resize an image to: multiples of `token_size`, its own proportions as nearly as they allow.

    Their product lies between `min_pixels` and `max_pixels`. Raises UserError for an image that is more than 200 times
    as long as wide.
    """
    if processor.fixed:
        return processor.fixed
    if min(height, width) < 1 or max(height, width) > MAXIMUM_ASPECT * min(height, width):
        raise UserError(
            f"image of {height} x {width} pixels; expected sides that differ at most {MAXIMUM_ASPECT} times"
        )
    unit = processor.token_size
    rows, columns = round(height / unit), round(width / unit)  # half to even, as in the published code
    if rows * columns * unit**2 > processor.max_pixels:
        shrink = math.sqrt(height * width / processor.max_pixels)
        rows = max(1, math.floor(height / shrink / unit))
        columns = max(1, math.floor(width / shrink / unit))
    elif rows * columns * unit**2 < processor.min_pixels:
        grow = math.sqrt(processor.min_pixels / (height * width))
        rows, columns = math.ceil(height * grow / unit), math.ceil(width * grow / unit)
    return rows * unit, columns * unit


def resize(processor: ImageProcessor, image: Pixels) -> Pixels:
    """The image in its `target_size`, bicubic with antialiasing (Pillow)."""
    height, width = target_size(processor, *image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def patches(processor: ImageProcessor, image: Pixels) -> tuple[Float[np.ndarray, "N C"], tuple[int, int]]:
    """Patches of an image, float32, and its grid.

    The patches of a token stand together, tokens in reading order; in a patch, channels come first, then frames (the
    image, repeated), rows and columns.
    """
    resized = resize(processor, image)
    size, merge = processor.patch_size, processor.merge_size
    rows, columns = (side // size for side in resized.shape[:2])
    # Every value there is, in the published order of operations and precisions.
    scaled = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    mean, std = (np.array(values, np.float32)[:, None] for values in (processor.image_mean, processor.image_std))
    levels = (scaled - mean) / std  # [3 256]
    if resized.ndim == 2:
        channels = levels[:, resized]
    else:
        channels = np.stack([level[resized[..., place]] for place, level in enumerate(levels)])
    cut = channels.reshape(3, rows // merge, merge, size, columns // merge, merge, size)
    cut = cut.transpose(1, 4, 2, 5, 0, 3, 6)[:, :, :, :, :, None]
    frames = np.broadcast_to(cut, (*cut.shape[:5], processor.temporal_patch_size, size, size))
    return frames.reshape(rows * columns, -1), (rows, columns)
