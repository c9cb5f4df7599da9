"""Logs: exact rows, exact continuation after a kill, and the places they go to."""

import json
import math
import resource
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from common.errors import UserError
from common.training.logs import Logs, open_logs, read_metrics
from deer_jax.cli import dispatch as deer
from retsta_jax.cli import dispatch as retsta
from unicross_jax.cli import dispatch as unicross


def write_steps(logs: Logs, steps: range) -> None:
    for step in steps:
        metrics: dict[str, float | str] = {"loss": math.sin(step), "tokens": 10 * step}
        if step == 8:
            metrics["weights_sha256"] = "ab12"
        logs.write(step, metrics, {"tokens_per_second": 1000.0 / step})


@pytest.mark.parametrize("torn", [b"", b'{"step": 7, "lo', b'{"step": 7, "loss": 0.5}', b"\x00\x00\x00"])
def test_a_continued_run_has_the_same_bytes_as_an_uninterrupted_one(tmp_path: Path, torn: bytes) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    with open_logs(whole, total_steps=8) as logs:
        write_steps(logs, range(1, 9))
    with open_logs(stopped, total_steps=8) as logs:
        write_steps(logs, range(1, 7))
    with (stopped / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    with open_logs(stopped, total_steps=8, resume_step=4) as logs:
        write_steps(logs, range(5, 9))
    assert (stopped / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert [row["step"] for row in read_metrics(stopped / "timings.jsonl")] == list(range(1, 9))
    assert read_metrics(stopped / "metrics.jsonl")[-1]["weights_sha256"] == "ab12"
    assert not list(stopped.glob("*.partial"))


def test_a_row_is_on_disk_as_soon_as_it_is_written(tmp_path: Path) -> None:
    with open_logs(tmp_path, total_steps=2, tensorboard=False) as logs:
        logs.write(1, {"loss": 1.0})
        assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 1.0}]


def test_a_run_from_the_beginning_drops_all_old_rows(tmp_path: Path) -> None:
    for _ in range(2):
        with open_logs(tmp_path, total_steps=8, tensorboard=False) as logs:
            logs.write(0, {"val/loss": 2.0})
            write_steps(logs, range(1, 4))
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3]


def test_numbers_read_back_to_the_same_bits(tmp_path: Path) -> None:
    doubles = np.random.default_rng(0).standard_normal(50) * 10.0 ** np.arange(-25, 25)
    values = {f"v{index}": value for index, value in enumerate(doubles)}
    with open_logs(tmp_path, total_steps=1, tensorboard=False) as logs:
        logs.write(1, {**values, "single": np.float32(0.1), "device": jnp.bfloat16(0.3), "count": np.int64(2**60)})
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert [row[name] for name in values] == doubles.tolist()
    assert np.float32(row["single"]) == np.float32(0.1)
    assert row["device"] == float(jnp.bfloat16(0.3))
    assert row["count"] == 2**60


def test_what_is_not_finite_is_null_and_the_row_stays_strict_json(tmp_path: Path) -> None:
    with open_logs(tmp_path, total_steps=1, tensorboard=False) as logs:
        logs.write(1, {"loss": math.nan, "grad_norm": np.float32(np.inf), "skipped": 1})

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert row == {"step": 1, "loss": None, "grad_norm": None, "skipped": 1}


def test_a_step_has_one_row(tmp_path: Path) -> None:
    with open_logs(tmp_path, total_steps=9, resume_step=4, tensorboard=False) as logs:
        with pytest.raises(ValueError, match="step 4 is already logged"):
            logs.write(4, {"loss": 1.0})


def test_a_log_damaged_in_the_middle_is_refused_by_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    damaged = b'{"step": 1, "loss": 2.0}\nnot a row\n{"step": 3, "loss": 1.0}\n'
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: expected a JSON row"):
        open_logs(tmp_path, total_steps=5, resume_step=3)
    assert path.read_bytes() == damaged


def test_an_unwritable_run_directory_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file, not a directory")
    with pytest.raises(UserError, match=r"cannot write the logs of .*choose another directory"):
        open_logs(tmp_path / "run", total_steps=1)


def test_a_full_disk_is_named_at_the_row_that_it_refuses(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_logs(tmp_path, total_steps=9) as logs:
        logs.write(1, {"loss": 1.0})
        (events,) = (tmp_path / "tensorboard").iterdir()
        for step, file in ((2, tmp_path / "metrics.jsonl"), (3, events)):
            try:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size, limits[1]))
                with pytest.raises(UserError, match=rf"cannot write .*{file.name}: File too large; make room"):
                    logs.write(step, {"loss": 0.5})
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 3]


def test_processes_other_than_the_first_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with open_logs(tmp_path / "run", total_steps=8) as logs:
        write_steps(logs, range(1, 9))
    assert not (tmp_path / "run").exists()


def tensorboard_events(path: Path) -> list[Event]:
    """Records of a TFRecord file: length (8 bytes), its checksum (4), the event, its checksum (4)."""
    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


def test_tensorboard_gets_the_scalars_and_hides_those_of_an_earlier_attempt(tmp_path: Path) -> None:
    with open_logs(tmp_path, total_steps=8, resume_step=4) as logs:
        logs.write(5, {"loss": 0.25, "val/f1": 0.5, "weights_sha256": "ab"}, {"tokens_per_second": 7.0})
    (file,) = (tmp_path / "tensorboard").iterdir()
    events = tensorboard_events(file)
    scalars = {(value.tag, event.step): value.simple_value for event in events for value in event.summary.value}
    assert scalars == {("train/loss", 5): 0.25, ("val/f1", 5): 0.5, ("timings/tokens_per_second", 5): 7.0}
    assert [event.step for event in events if event.session_log.status == SessionLog.START] == [5]


def test_files_of_tensorboard_are_in_the_order_of_their_steps_whatever_the_clock(tmp_path: Path, monkeypatch) -> None:
    for start, now in ((0, 2e9), (4, 2e9), (6, 1e9)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        with open_logs(tmp_path, total_steps=8, resume_step=start) as logs:
            logs.write(start + 1, {"loss": 1.0}, {})
    files = sorted((tmp_path / "tensorboard").iterdir(), key=lambda file: file.name)
    assert [max(event.step for event in tensorboard_events(file)) for file in files] == [1, 5, 7]


def test_weights_and_biases_not_installed_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'medreport-jax\[wandb\]'"):
        open_logs(tmp_path, total_steps=1, wandb_project="reports")


TRAINERS = {
    "retsta train": (retsta, ["train", "--preset", "demo", "--run-dir"]),
    "unicross train": (unicross, ["train", "--preset", "demo", "--run-dir"]),
    "deer sft": (deer, ["sft", "--preset", "demo", "--run-dir"]),
    "deer rl": (deer, ["rl", "--preset", "demo", "--run-dir"]),
    "deer train-labeler": (deer, ["train-labeler", "--preset", "phantom", "--output"]),
}


@pytest.mark.parametrize(("command", "words"), TRAINERS.values(), ids=TRAINERS)
def test_every_trainer_refuses_it_before_it_writes(
    command: Callable[[list[str]], None], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="wandb_project: reports: Weights & Biases is not installed"):
        command([*words, str(tmp_path / "run"), "--wandb-project", "reports"])
    assert not (tmp_path / "run").exists()


def test_off_a_terminal_there_are_few_plain_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_logs(tmp_path, total_steps=100, tensorboard=False) as logs:
        for step in range(1, 101):
            metrics = {"loss": 0.5, "val/f1": 0.75} if step == 50 else {"loss": 0.5}
            parts = {"seconds/rollout": 1.25} if step == 1 else {}
            logs.write(step, metrics, {"tokens_per_second": 12345.0, **parts})
    first, middle, last = capsys.readouterr().err.splitlines()
    assert first == "step 1/100  loss 0.5  12,345 tokens/s  rollout 1.2 s"
    assert middle.startswith("step 50/100  loss 0.5  12,345 tokens/s  ETA 0:00:0")
    assert middle.endswith("val/f1 0.75")
    assert last == "step 100/100  loss 0.5  12,345 tokens/s"


def test_on_a_terminal_there_is_a_progress_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "140")
    with open_logs(tmp_path, total_steps=8, resume_step=6, tensorboard=False) as logs:
        logs.write(7, {"loss": 0.125, "val/f1": 0.75}, {"tokens_per_second": 12345.0, "seconds/host": 0.5})
    shown = capsys.readouterr().err
    assert "step 7  val/f1 0.75" in shown
    for part in ("7/8", "loss 0.125", "12,345 tokens/s", "host 0.5 s", "ETA"):
        assert part in shown
