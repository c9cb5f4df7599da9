"""What is recorded of a model or a tokenizer changes with every file that decides something, and with nothing else."""

import json
import shutil

import pytest

from common.io.fingerprints import tokenizer_record


@pytest.fixture
def directory(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "generation_config.json", "processor_config.json", "tokenizer.json"):
        (folder / name).write_text(json.dumps({"eos_token_id": 1}))
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "spiece.model").write_bytes(b"pieces")
    return folder


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json", "spiece.model"])
@pytest.mark.parametrize("by_file", [False, True])
def test_what_a_tokenizer_is_read_from_is_recorded(directory, name, by_file):
    named = directory / "tokenizer.json" if by_file else directory
    before = tokenizer_record(named)
    (directory / name).write_text(json.dumps({"eos_token_id": 2}))
    assert tokenizer_record(named) != before


def test_a_processor_is_recorded_where_images_are_read(directory):
    record = tokenizer_record(directory, "processor_config.json")
    (directory / "processor_config.json").write_text(json.dumps({"image_mean": [0.5]}))
    assert tokenizer_record(directory, "processor_config.json") != record


def test_where_a_tokenizer_lies_decides_nothing(directory, tmp_path):
    shutil.copytree(directory, tmp_path / "moved")
    assert tokenizer_record(tmp_path / "moved") == tokenizer_record(directory)
