"""The layout of images in Qwen2.5-VL, computed on the host: windows of patches, and positions in the text.

A grid is the (rows, columns) of an image's patches. Patches come as the published processor lists them: the
`spatial_merge_size`^2 patches of a token together, tokens in reading order.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from common.errors import UserError
from common.models.qwen2_vl import Qwen2VLConfig, StudyRows
from common.models.qwen2_vl_vision import VisionConfig, VisionLayout

Grid = tuple[int, int]


def image_tokens(config: VisionConfig, grid: Grid) -> int:
    """How many tokens an image takes. Raises UserError for a grid that does not divide into tokens."""
    merge = config.spatial_merge_size
    if min(grid) < 0 or grid[0] % merge or grid[1] % merge:
        raise UserError(f"image grid is {grid[0]} x {grid[1]} patches, expected multiples of {merge}")
    return grid[0] * grid[1] // merge**2


def vision_layout(config: VisionConfig, grid: Grid) -> VisionLayout:
    """The layout of images of one size, numpy. Windows at the right and lower edge may be cut."""
    image_tokens(config, grid)
    merge, side = config.spatial_merge_size, config.window_size // config.token_size
    rows, columns = (np.arange(patches // merge) for patches in grid)
    windows_across = -(-len(columns) // side)
    row, column = (part.reshape(-1) for part in np.meshgrid(rows, columns, indexing="ij"))
    window = row // side * windows_across + column // side
    slots = window * side**2 + row % side * side + column % side
    count = -(-len(rows) // side) * windows_across * side**2
    order = np.zeros(count, np.int32)
    order[slots] = np.arange(len(slots))
    within = np.stack(np.meshgrid(np.arange(merge), np.arange(merge), indexing="ij"), axis=-1).reshape(-1, 2)
    positions = np.zeros((count, merge**2, 2), np.int32)
    positions[slots] = np.stack([row, column], axis=-1)[:, None] * merge + within
    mask = np.zeros((count, merge**2), bool)
    mask[slots] = True
    arrays: tuple[Any, ...] = (order, slots.astype(np.int32), positions.reshape(-1, 2), mask.reshape(-1))
    return VisionLayout(*arrays)


def expand_images(config: Qwen2VLConfig, row: Sequence[int], grids: Sequence[Grid]) -> list[int]:
    """Tokens in which each image stands as one `<|image_pad|>`, with as many of them as the image takes.

    Raises UserError where the numbers of images differ.
    """
    if (found := row.count(config.image_token_id)) != len(grids):
        raise UserError(f"a prompt has image tokens for {found} images, but its study has {len(grids)}")
    counts = iter([image_tokens(config.vision, grid) for grid in grids])
    repeats = [next(counts) if token == config.image_token_id else 1 for token in row]
    return np.repeat(np.asarray(row, np.int32), repeats).tolist()


def rope_positions(
    config: Qwen2VLConfig, row: Sequence[int], grids: Sequence[Grid]
) -> tuple[Int[np.ndarray, "3 S"], Int[np.ndarray, " S"], int]:
    """M-RoPE positions of a row, the image token (counted over all images) at each index, and the next position.

    Text counts on in all three; an image keeps one time and counts its rows and columns from there; what follows
    starts after the larger of them (arXiv:2409.12191, section 2.1). Raises UserError where the row's image tokens are
    not those of its images, as after a truncation.
    """
    merge = config.vision.spatial_merge_size
    is_image = np.asarray(row) == config.image_token_id
    counts = [image_tokens(config.vision, grid) for grid in grids]
    if is_image.sum() != sum(counts):
        raise UserError(
            f"a row has {is_image.sum()} image tokens, and its images of {list(grids)} patches take {sum(counts)}; was "
            "it truncated?"
        )
    positions = np.zeros((3, len(row)), np.int32)
    done = position = 0
    for (rows, columns), count in zip(grids, counts, strict=True):
        start = done + int(np.argmax(is_image[done:])) if count else done
        if not is_image[start : start + count].all():
            raise UserError(f"an image of {rows} x {columns} patches does not occupy {count} consecutive tokens")
        positions[:, done:start] = position + np.arange(start - done)
        position += start - done
        image = np.indices((1, rows // merge, columns // merge)).reshape(3, -1)
        positions[:, start : start + count] = position + image
        position += max(rows, columns) // merge
        done = start + count
    positions[:, done:] = position + np.arange(len(row) - done)
    return positions, np.where(is_image, np.cumsum(is_image) - 1, -1), position + len(row) - done


def study_rows(
    config: Qwen2VLConfig,
    rows: Sequence[Sequence[int]],
    grids: Sequence[Sequence[Grid]],
    *,
    length: int,
    left: bool,
) -> StudyRows:
    """Rows of `length` columns, numpy, padded on the left (prompts) or on the right, with the grids of their images.

    Raises UserError for a row that is too long, and as `rope_positions` does.
    """
    shape = (len(rows), length)
    tokens, mask, index = np.zeros(shape, np.int32), np.zeros(shape, bool), np.full(shape, -1, np.int32)
    positions, next_position = np.zeros((len(rows), 3, length), np.int32), np.zeros(len(rows), np.int32)
    for number, (row, own) in enumerate(zip(rows, grids, strict=True)):
        if len(row) > length:
            raise UserError(f"a row has {len(row)} tokens, expected at most {length}")
        columns = slice(length - len(row), length) if left else slice(0, len(row))
        tokens[number, columns], mask[number, columns] = row, True
        positions[number, :, columns], index[number, columns], next_position[number] = rope_positions(config, row, own)
    arrays: tuple[Any, ...] = (tokens, mask, positions, index, next_position)
    return StudyRows(*arrays)
