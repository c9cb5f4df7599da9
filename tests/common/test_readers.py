"""Readers of JSON: what is not UTF-8 JSON is one short line that names the file; how it was saved changes nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.config import check_run_directory, claim_run_directory, read_config
from common.data.qwen_images import check_processor
from common.data.readers import read_annotation, read_image_rows
from common.data.records import Quarantine
from common.data.tokenizers import load_tokenizer
from common.errors import UserError
from common.io.jsonl import read_jsonl
from common.io.resumable import claim_output
from common.io.safetensors import open_tensors
from common.models.peft import load_peft
from common.models.qwen2_vl_vision import VisionConfig
from common.models.qwen2_weights import config_from_directory
from common.training.logs import read_metrics
from deer_jax.select import read_ids
from retsta_jax.config import PRESETS, RetstaConfig
from retsta_jax.reports import read_reports
from unicross_jax.data import annotation_reports

DEEP = b'{"a":' * 100_000

READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "rows": ("rows.jsonl", lambda file: read_jsonl(file, {})),
    "reports": ("reports.jsonl", lambda file: read_reports(str(file))),
    "image rows": ("rows.json", lambda file: read_image_rows(file, file.parent, Quarantine())),
    "image lines": ("rows.jsonl", lambda file: read_image_rows(file, file.parent, Quarantine())),
    "annotation": ("annotation.json", lambda file: read_annotation(file, file.parent, Quarantine())),
    "second corpus": ("annotation.json", lambda file: annotation_reports(str(file))),
    "chosen ids": ("chosen.json", read_ids),
    "run": ("config.json", lambda file: read_config(RetstaConfig, file.parent)),
    "run to continue": ("config.json", lambda file: check_run_directory(file.parent, PRESETS["demo"])),
    "output to continue": ("out.jsonl.config.json", lambda file: claim_output(file.parent / "out.jsonl", {"a": 1})),
    "model": ("config.json", lambda file: config_from_directory(file.parent)),
    "images": ("preprocessor_config.json", lambda file: check_processor(file.parent, VisionConfig())),
    "adapter": ("adapter_config.json", lambda file: load_peft(file.parent, {})),
    "shards": ("model.safetensors.index.json", lambda file: open_tensors(file.parent, "model")),
    "words": ("words.json", load_tokenizer),
}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (DEEP, "nested more than 100 deep"),
        (b"[" * 100_000 + b"]" * 100_000, "nested more than 100 deep"),
        ('{"id": "é"}'.encode("latin-1"), "line 1: not UTF-8 at byte 9"),
        ('{"id": "a"}'.encode("utf-16"), "is UTF-16; save the file as UTF-8"),
        ('{"id": "a"}'.encode("utf-16-le"), "contains a NUL character"),
        (b'{"id": NaN}', "NaN is not a JSON number"),
        (b'{"id": 1e999}', "the number 1e999 is too large"),
        (b'{"id": ' + b"1" * 10_000 + b"}", "is too large"),
        (b'{"id": "a"', "not JSON"),
        (b'{"id": "a", "x": [{"b": 1, "b": 2}]}', "the key 'b' is there twice"),
    ],
    ids=["objects", "arrays", "latin-1", "utf-16", "unmarked", "nan", "infinite", "digits", "cut", "twice"],
)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_not_utf8_json_is_one_short_line(tmp_path, reader, content, message):
    name, read = READERS[reader]
    (tmp_path / "out.jsonl").write_text('{"id": "a"}\n')
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as refusal:
        read(tmp_path / name)
    assert name in str(refusal.value)
    assert len(str(refusal.value)) < 400
    assert str(refusal.value).isprintable()


def saved_otherwise(content: bytes) -> list[bytes]:
    return [
        b"\xef\xbb\xbf" + content,
        content.replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + content.replace(b"\n", b"\r"),
    ]


@pytest.mark.parametrize("reader", ["rows", "reports", "chosen ids", "run", "words", "second corpus"])
def test_marks_and_line_ends_change_nothing(tmp_path, reader):
    name, read = READERS[reader]
    claim_run_directory(tmp_path / "run", PRESETS["demo"])
    contents = {
        "rows": '{"id": 1, "report": "a"}\n\n{"id": 2, "report": "b"}\n',
        "reports": '{"id": 1, "report": "a"}\n\n{"id": 2, "report": "b"}\n',
        "chosen ids": json.dumps({"ids": ["a", 2]}, indent=1),
        "run": (tmp_path / "run" / "config.json").read_text(),
        "words": json.dumps({"words": ["a", "b"]}, indent=1),
        "second corpus": json.dumps({"train": [{"id": 1, "report": "a"}], "val": [], "test": []}, indent=1),
    }
    file = tmp_path / name
    file.write_text(contents[reader])
    expected, content = read(file), file.read_bytes()
    for saved in saved_otherwise(content):
        file.write_bytes(saved)
        assert vars(read(file)) == vars(expected) if reader == "words" else read(file) == expected


def test_a_log_is_read_in_any_form_but_for_its_torn_last_line(tmp_path):
    log = tmp_path / "metrics.jsonl"
    rows = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None}]
    content = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    for saved in (content, *saved_otherwise(content)[:2]):
        for torn in (b"", b'{"step": 3, "lo', b'{"step": 3}', b'{"step": 3, "a": "\xe7', b"\0\0\0", DEEP):
            log.write_bytes(saved + torn)
            assert read_metrics(log) == rows
    for damage in (DEEP, b'{"step": 3, "loss": NaN}', b'{"step": true}', b"\xff", b"\0"):
        log.write_bytes(damage + b"\n" + content)
        with pytest.raises(UserError, match=r"metrics\.jsonl:1: expected a JSON row with a step"):
            read_metrics(log)
