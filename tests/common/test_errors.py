"""What is said where something goes wrong: one line and a code of its own."""

import subprocess
import sys

import jax.numpy as jnp
import pytest

from common.command import out_of_memory, run_cli
from common.devices import GPU_MEMORY


def test_a_device_without_memory_is_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        run_cli(lambda arguments: jnp.zeros(2**46).sum().item(), [])  # 256 TiB, more than any process can address
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: not enough memory (281474976710656 bytes requested); lower micro_batch")
    assert said.count("\n") == 1


def test_what_compilers_say_of_memory(monkeypatch):
    of_tpu = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Used 20.5G of 15.7G hbm. Exceeded by 4.8G."
    assert "(20.5G requested)" in out_of_memory(of_tpu)
    assert "XLA does not say how much" in out_of_memory("RESOURCE_EXHAUSTED: full")
    monkeypatch.setenv(GPU_MEMORY, "0.9")
    assert "(20.5G requested, and XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 of a GPU's memory" in out_of_memory(of_tpu)


def test_a_full_disk_behind_standard_output_is_one_line():
    code = "from common.command import run_cli; run_cli(lambda arguments: print('x'), [])"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: a file or standard output: cannot be written (No space left on device); make room\n"


def test_a_name_that_is_too_long_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run_cli(lambda arguments: (tmp_path / ("x" * 300)).write_text(""), [])
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith("is too long for a file name; give a shorter one\n")


def test_other_errors_keep_their_traceback():
    def fail(arguments):
        raise RuntimeError("INTERNAL: a mistake of ours")

    with pytest.raises(RuntimeError, match="a mistake of ours"):
        run_cli(fail, [])


def test_an_interrupted_command_is_one_line(capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        run_cli(interrupted, [])
    assert ended.value.code == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_words_that_only_hold_an_address_are_left_alone():
    words = ["--setup", "gsutil cp gs://bucket/x .", "--endpoint", "https://host/v1", "--", "echo", "gs://x"]
    with pytest.raises(SystemExit) as ended:
        run_cli(lambda arguments: 7 if arguments == words else 0, words)
    assert ended.value.code == 7
