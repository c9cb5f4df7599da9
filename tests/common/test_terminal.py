"""Foreign text is shown, never obeyed: in messages, in JSON, in warnings and on pages."""

import json
import subprocess
import sys

import pytest

from common.command import LONGEST_MESSAGE, run_cli
from common.errors import UserError
from common.io.terminal import printable, say
from common.io.text import json_text, parse_json

HOSTILE = "a\x1b[2J\x07b\x9bc\u202ed\u2066e\u200bf\ud800g\u2028h\r\ni"
ESCAPED = r"a\x1b[2J\x07b\x9bc\u202ed\u2066e\u200bf\ud800g\u2028h\r\ni"


def test_what_does_not_show_is_escaped():
    assert printable(HOSTILE) == ESCAPED
    assert printable("视盘 é ü \u0627") == "视盘 é ü \u0627"


def test_long_values_keep_both_ends_and_say_what_was_left_out():
    shown = printable("begin" + "x" * 10_000_000 + "end", limit=30)
    assert shown.startswith("begin")
    assert shown.endswith("end")
    assert "9,999,978 more characters" in shown
    assert len(shown) < 100


def test_an_error_that_names_foreign_text_is_one_harmless_line(capsys):
    def fail(arguments):
        raise UserError(f"archive: member {HOSTILE}{'y' * 10_000_000}: give another archive")

    with pytest.raises(SystemExit):
        run_cli(fail, [])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.removesuffix("\n").isprintable()
    assert said.endswith("give another archive\n")  # the remedy is not cut off
    assert len(said) < LONGEST_MESSAGE + 100


def test_tables_keep_their_lines(capsys):
    say("one \x1b[2J\ntwo", error=True)
    assert capsys.readouterr().err == "one \\x1b[2J\ntwo\n"


def test_json_keeps_its_value_and_shows_every_character():
    value = {"name": HOSTILE.replace("\ud800", ""), "report": "视盘\U000e0041"}
    text = json_text(value, "here", indent=1)
    assert parse_json(text, "here") == value
    assert text.replace("\n", "").isprintable()
    assert "视盘" in text
    assert json.loads(json_text("\ud800", "here")) == "\ud800"


def test_a_library_that_warns_takes_one_line():
    code = (
        "import warnings; from common.command import run_cli;"
        "run_cli(lambda arguments: warnings.warn('broken EXIF\\x1b[2J\\nof x.png'), [])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "warning: broken EXIF\\x1b[2J of x.png\n"
