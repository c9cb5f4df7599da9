"""Patterns and pickles from files end: within bounded time and memory, with the outcome they would have without."""

import pickle
import random
import re
import zipfile

import numpy as np
import pytest

from common.errors import UserError
from common.io import bounded, torch_archive, torch_pickle
from common.io.patterns import full_matches
from common.io.torch_archive import read_archive
from common.models.lora import LoraConfig, init_lora

MODULES = [f"model.layers.{layer}.self_attn.{name}_proj" for layer in (0, 11) for name in "qkvo"]
ENDLESS = r"(model\.)?((\w+\.?)+)+!"


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setattr(bounded, "SECONDS", 1)


def is_pattern(text):
    try:
        return bool(re.compile(text))
    except re.error:
        return False


def test_a_pattern_matches_what_python_says():
    pieces = [
        *("model", r"\.", ".*", r"\d+", "(q|k)", "_proj", "(?!.*visual)", "layers", "{1,2}", "^", "$", "(?i:Q)"),
        *(r"model\.layers\.(0|11)", r"(?<=attn)", r"self_attn\.", r"\w+"),
    ]
    draw = random.Random(0)
    drawn = ["".join(draw.choices(pieces, k=draw.randrange(1, 6))) for _ in range(400)]
    patterns = [*filter(is_pattern, drawn), r".*\.(?:layers)\.0\..*(q|v)_proj", r"(?:.*?(?:self_attn).*?(?:q|k)_proj)"]
    expected = [[re.fullmatch(pattern, module) is not None for module in MODULES] for pattern in patterns]
    assert full_matches(patterns, MODULES, "file") == expected
    assert sum(map(any, expected)) > 5
    with pytest.raises(UserError, match=r"file: '\(' is not a valid regular expression"):
        full_matches(["q", "("], MODULES, "file")
    with pytest.raises(UserError, match=r"file: a pattern of 20,000 characters"):
        full_matches(["q" * 20_000], MODULES, "file")


def test_a_pattern_that_never_ends_is_one_line(hurried):
    with pytest.raises(UserError, match=r"file: matching .* takes more than 1 seconds of processor time"):
        full_matches(["q_proj", ENDLESS], [*MODULES, "a" * 60], "file")
    with pytest.raises(UserError, match=r"lora\.targets: matching"):
        init_lora({"layers": {"a" * 60: {"kernel": np.zeros((1, 2, 2))}}}, LoraConfig(targets="(a+)+b"), None, None)


def archive(path, content):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", content)
    return path


def nested(depth, kind):
    """Containers that hold the one below twice: 2 ** depth ways to the innermost."""
    held = kind(1, 1)
    for _ in range(depth):
        held = kind(held, held)
    return held


def memo_of(index):
    """A pickle of an empty dict that the unpickler is to remember at a far index, for which it makes room."""
    return b"\x80\x02}r" + index.to_bytes(4, "little") + b"."


CONTAINERS = {
    "shared dicts": lambda: pickle.dumps(nested(60, lambda a, b: {"a": a, "b": b})),
    "a deep dict": lambda: deep(b"}X\x01\x00\x00\x00a", b"s", 20_000),
    "a far memo": lambda: memo_of(2**32 - 1),
    "a dict that holds itself": lambda: b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",
    "a tuple that is hashed for ever": lambda: b"\x80\x02}" + b"K\x01" + b"q\x00h\x00\x86" * 60 + b"K\x01s.",
}


def deep(opening, closing, depth):
    return b"\x80\x02" + opening * depth + b"}" + closing * depth + b"."


@pytest.mark.parametrize("make", CONTAINERS.values(), ids=CONTAINERS)
def test_a_pickle_that_unfolds_without_end_is_one_line(hurried, tmp_path, make):
    with pytest.raises(UserError, match=r"m\.pth: .*(takes more than|contain one another|not a complete|no tensors)"):
        read_archive(archive(tmp_path / "m.pth", make()))


def test_a_tensor_is_not_larger_than_its_storage_by_far(tmp_path):
    def repeated(size):
        return (
            b"}Vweight\nctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI4\ntQI0\n"
            b"(I%d\nt(I0\ntI00\nNtRs." % size
        )

    assert read_archive(archive(tmp_path / "m.pth", repeated(1000)))["weight"].shape == (1000,)
    with pytest.raises(UserError, match=r"m\.pth: not a complete PyTorch file .*repeats its storage of 4 too often"):
        read_archive(archive(tmp_path / "m.pth", repeated(10**12)))


def test_a_pickle_is_not_unpacked_where_it_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_pickle, "MOST_BYTES", 1 << 20)
    found = torch_pickle.read(str(archive(tmp_path / "m.pth", bytes(2 << 20))))
    assert found == {"refused": "archive/data.pkl unpacks to more than 1 MB"}


def test_a_storage_that_unpacks_to_far_more_than_it_is_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_archive, "ALWAYS_UNPACKED", 1000)
    length = 10_000
    content = (
        b"}Vweight\nctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI%d\ntQI0\n"
        b"(I%d\nt(I1\ntI00\nNtRs." % (length, length)
    )
    path = archive(tmp_path / "m.pth", content)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data/0", bytes(4 * length))
    with pytest.raises(UserError, match=r"m\.pth: tensor weight cannot be read \(\d+ bytes unpack to"):
        read_archive(path)["weight"].read((slice(None),))
