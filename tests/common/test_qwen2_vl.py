"""Qwen2.5-VL on the host: windows against a plain loop, counts of image tokens, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest

from common.errors import UserError
from common.models.qwen2 import Qwen2Config
from common.models.qwen2_vl import Qwen2VLConfig
from common.models.qwen2_vl_layout import (
    expand_images,
    image_tokens,
    rope_positions,
    study_rows,
    vision_layout,
)
from common.models.qwen2_vl_vision import VisionConfig
from common.models.qwen2_vl_weights import config_from_directory, published_config

VISION = VisionConfig(depth=2, hidden_size=32, num_heads=2, intermediate_size=48, out_hidden_size=32)
CONFIG = Qwen2VLConfig(
    Qwen2Config(173, 32, 48, 2, 2, 1, 16, mrope_section=(2, 3, 3)), VISION, 160, 161, 162, image_token_id=163
)
IMAGE = CONFIG.image_token_id


@pytest.mark.parametrize("grid", [(8, 8), (16, 24), (10, 18), (2, 2), (22, 6), (0, 0)])
def test_each_window_holds_a_square_of_the_image(grid):
    layout = vision_layout(VISION, grid)
    token_of = {}
    for token in range(image_tokens(VISION, grid)):
        row, column = divmod(token, grid[1] // 2)
        token_of[layout.slots[token]] = token
        for part in range(4):
            patch = 4 * layout.slots[token] + part
            assert layout.positions[patch].tolist() == [2 * row + part // 2, 2 * column + part % 2]
            assert patch // 64 == row // 4 * -(-grid[1] // 8) + column // 4
    assert len(token_of) == len(layout.slots)
    assert all(layout.order[slot] == token for slot, token in token_of.items())
    assert layout.mask.nonzero()[0].tolist() == sorted(4 * slot + part for slot in token_of for part in range(4))
    assert len(layout.mask) == 64 * (-(-grid[0] // 8) * -(-grid[1] // 8))


def test_images_stand_at_their_tokens():
    row = [1, 160, IMAGE, 161, 2, 160, IMAGE, 161]
    grids = [(4, 6), (2, 2)]
    expanded = expand_images(CONFIG, row, grids)
    assert expanded == [1, 160, *[IMAGE] * 6, 161, 2, 160, IMAGE, 161]
    study = study_rows(CONFIG, [expanded], [grids], length=14, left=True)
    assert study.image_index[0].tolist() == [-1, -1, -1, 0, 1, 2, 3, 4, 5, -1, -1, -1, 6, -1]
    assert study.positions[0, 1].tolist() == [0, 0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 7, 8, 9]
    assert study.positions[0, 2].tolist() == [0, 0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7, 8, 9]
    assert study.next_position.tolist() == [10]


def test_rows_that_lost_image_tokens_are_refused():
    expanded = expand_images(CONFIG, [1, IMAGE, 2, IMAGE, 3], [(4, 4), (4, 4)])
    for row in (expanded[:-2], expanded[2:]):
        with pytest.raises(UserError, match="was it truncated"):
            rope_positions(CONFIG, row, [(4, 4), (4, 4)])
    with pytest.raises(UserError, match="does not occupy 6 consecutive tokens"):
        rope_positions(CONFIG, expanded, [(4, 6), (2, 4)])
    with pytest.raises(UserError, match="image tokens for 2 images, but its study has 1"):
        expand_images(CONFIG, [IMAGE, IMAGE], [(4, 4)])
    with pytest.raises(UserError, match="11 tokens, expected at most 10"):
        study_rows(CONFIG, [expanded], [[(4, 4), (4, 4)]], length=10, left=True)
    with pytest.raises(UserError, match="3 x 4 patches, expected multiples of 2"):
        image_tokens(VISION, (3, 4))


def test_configs_that_do_not_fit_are_refused(tmp_path):
    file = tmp_path / "config.json"
    good = published_config(CONFIG)
    seen = good["vision_config"]
    file.write_text(json.dumps(good))
    assert config_from_directory(tmp_path) == CONFIG
    bad = {
        "model_type is 'qwen2', expected 'qwen2_5_vl'": {"model_type": "qwen2"},
        "vision_config is missing, expected that of": {"vision_config": None},
        "vision_config depth is 0, expected a whole number, at least 1": {"vision_config": {**seen, "depth": 0}},
        "hidden_act is 'gelu'": {"vision_config": {**seen, "hidden_act": "gelu"}},
        "sum is half of head_dim": {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 1]}},
        "out_hidden_size of the vision tower is 48": {"vision_config": {**seen, "out_hidden_size": 48}},
        "rotary type is 'yarn', expected 'default', or 'mrope'": {"rope_scaling": {"type": "yarn"}},
    }
    for message, change in bad.items():
        file.write_text(json.dumps({**good, **change}))
        with pytest.raises(UserError, match=message) as found:
            config_from_directory(tmp_path)
        assert str(file) in str(found.value)
    with pytest.raises(UserError, match="multiple of 4 x num_heads"):
        dataclasses.replace(VISION, num_heads=3)
    assert np.isin([160, 161, 162, 163], CONFIG.forbidden_ids).all()
