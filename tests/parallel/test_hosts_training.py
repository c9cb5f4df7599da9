"""A run that two processes train together is the run of one process with as many devices."""

import os
import socket
import subprocess
import sys

import pytest

from common.logs import read_rows
from tests.compile_flags import QUICK
from tests.runs import ROOT

STEPS = 4
OPTIONS = {"pmap": {"parallel": "pmap"}, "mesh": {"parallel": "mesh", "mesh__data": 1, "mesh__fsdp": -1}}


def start(material, run_dir, devices: int, hosts: str, mode: str) -> subprocess.Popen[str]:
    words = material.train(run_dir, max_steps=STEPS, micro_batch=1, evaluate_every=STEPS, **OPTIONS[mode])
    environment = {**os.environ, "XLA_FLAGS": QUICK, "JAX_NUM_CPU_DEVICES": str(devices), "MEDREPORT_HOSTS": hosts}
    return subprocess.Popen(
        [sys.executable, "-m", "retsta_jax.cli", *words],
        cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finished(process: subprocess.Popen[str]) -> None:
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error


@pytest.fixture(scope="module")
def alone(material, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    finished(start(material, run_dir, 4, "", "pmap"))
    return read_rows(run_dir / "metrics.jsonl")


@pytest.mark.parametrize("mode", OPTIONS)
def test_two_processes_train_one_run(material, alone, tmp_path, mode):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    for process in [start(material, tmp_path / "run", 2, f"{address},2,{number}", mode) for number in (0, 1)]:
        finished(process)
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for row, expected in zip(rows, alone, strict=True):
        for name in ("loss", "grad_norm", "weight"):
            assert row[name] == pytest.approx(expected[name], rel=1e-4)
    assert rows[-1]["val/loss"] == pytest.approx(alone[-1]["val/loss"], rel=1e-4)
    assert len(rows[-1]["weights_sha256"]) == 64
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
