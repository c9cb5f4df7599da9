"""Every number of every config declares its bounds, and they hold on the command line, in files and in code."""

import argparse
import dataclasses
import typing

import pytest

from common.bounds import COUNT, FINITE, RATE, SEED, SHARE, Within, bounded, bounds_of, check_numbers
from common.clinical.labeler_config import LabelerRunConfig
from common.config import read_config, to_json
from common.config_options import parse
from common.errors import Parser, UserError
from common.io.text import json_text
from deer_jax.config import RlConfig, SampleConfig, SftConfig
from retsta_jax.config import RetstaConfig
from unicross_jax.config import RunConfig

CONFIGS = (RetstaConfig, RunConfig, SftConfig, RlConfig, SampleConfig, LabelerRunConfig)


def numbers(config, prefix=""):
    """(path, value, type with its bounds) of every number in a config and the configs within it."""
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from numbers(value, f"{prefix}{field.name}.")
        elif any(type(item) in (int, float) for item in (value if isinstance(value, tuple) else (value,))):
            yield f"{prefix}{field.name}", value, hints[field.name]


def replaced(config, path, value):
    first, _, rest = path.partition(".")
    old = getattr(config, first)
    new = replaced(old, rest, value) if rest else (value,) * len(old) if isinstance(old, tuple) else value
    return dataclasses.replace(config, **{first: new})


FIELDS = [(config, path, value, hint) for config in CONFIGS for path, value, hint in numbers(config())]


@pytest.mark.parametrize(("config", "path", "value", "hint"), FIELDS, ids=lambda value: getattr(value, "__name__", ""))
def test_every_number_of_a_config_is_bounded_on_both_sides(config, path, value, hint):
    bounds = bounds_of(hint)
    assert bounds is not None, path
    check_numbers(config())
    for bad in (10**31, -(10**31), float("nan")):
        if path.startswith("encoder."):  # a BERT refuses it when it is made
            assert bad not in bounds
            continue
        with pytest.raises(UserError, match=rf"{path} must be .*, found "):
            check_numbers(replaced(config(), path, bad))


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "words"),
    [
        (COUNT, [1, 1 << 20], [0, -1, 10**30], "at least 1 and at most 1,048,576"),
        (RATE, [0, 0.999], [1, -0.1, float("nan")], "at least 0 and below 1"),
        (SHARE, [1e-9, 1], [0, 1.1], "above 0 and at most 1"),
        (FINITE, [-5, 0.5], [float("inf"), float("nan"), 10**400], "a finite number"),
        (SEED, [0, 2**32 - 1], [2**32], "at least 0 and at most 4,294,967,295"),
        (Within(2), [2, 10**30], [1, float("inf")], "at least 2"),
    ],
)
def test_bounds_say_what_they_hold(bounds, inside, outside, words):
    assert all(value in bounds for value in inside)
    assert not any(value in bounds for value in outside)
    assert str(bounds) == words


@pytest.mark.parametrize("text", ["0", "-3", "1" + "0" * 30, "9" * 5000, "2.5", "x", ""])
def test_an_option_out_of_bounds_is_one_short_line_that_names_it(text):
    parser = Parser("command")
    parser.add_argument("--rows", type=bounded(COUNT))
    assert parser.parse_args(["--rows", "12"]).rows == 12
    with pytest.raises(
        UserError, match=r"command: argument --rows: (must be at least 1|expected a whole number)"
    ) as said:
        parser.parse_args([f"--rows={text}"])
    assert len(str(said.value)) < 200
    with pytest.raises(argparse.ArgumentTypeError, match="expected a number"):
        bounded(SHARE, float)("x")


def test_a_config_is_bounded_where_it_enters(tmp_path):
    with pytest.raises(UserError, match="batch_size must be at least 1 and at most"):
        parse(RetstaConfig, RetstaConfig(), ["--batch-size", "1" + "0" * 30], "retsta train")
    changed = dataclasses.replace(RetstaConfig(), buckets=(64, 10**15))
    (tmp_path / "config.json").write_text(json_text(to_json(changed), tmp_path))
    with pytest.raises(UserError, match=r"config\.json: buckets must be at least 1"):
        read_config(RetstaConfig, tmp_path)
