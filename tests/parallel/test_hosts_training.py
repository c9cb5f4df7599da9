"""A run that two processes train together is the run of one process with as many devices."""

import os
import socket
import subprocess
import sys

import pytest

from common.training.logs import read_metrics
from tests.compile_flags import QUICK
from tests.runs import ROOT

STEPS = 4
OPTIONS = {"pmap": {"parallel": "pmap"}, "mesh": {"parallel": "mesh", "mesh__data": 1, "mesh__fsdp": -1}}


def trained(material, run_dir, mode: str, devices: int, hosts: list[str]) -> list[dict]:
    """The log of a run of one process for each of `hosts`."""
    shared = {"max_steps": STEPS, "micro_batch": 1, "evaluate_every": STEPS, "lora__dropout": 0.0}
    words = material.train(run_dir, **shared, **OPTIONS[mode])
    environment = {**os.environ, "XLA_FLAGS": QUICK, "JAX_NUM_CPU_DEVICES": str(devices)}
    processes, errors = [], [run_dir.with_name(f"{number}.err") for number in range(len(hosts))]
    for host, file in zip(hosts, errors, strict=True):
        with file.open("w") as error:
            command = [sys.executable, "-m", "retsta_jax.cli", *words]
            own = {**environment, "MEDREPORT_HOSTS": host}
            processes.append(subprocess.Popen(command, cwd=ROOT, env=own, stdout=subprocess.DEVNULL, stderr=error))
    try:
        for process, file in zip(processes, errors, strict=True):
            assert process.wait(timeout=300) == 0, file.read_text()
    finally:
        for process in processes:
            process.kill()
    return read_metrics(run_dir / "metrics.jsonl")


@pytest.fixture(scope="module")
def alone(material, tmp_path_factory):
    return trained(material, tmp_path_factory.mktemp("alone") / "run", "pmap", 4, [""])


@pytest.mark.parametrize("mode", OPTIONS)
def test_two_processes_train_one_run(material, alone, tmp_path, mode):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    rows = trained(material, tmp_path / "run", mode, 2, [f"{address},2,{number}" for number in (0, 1)])
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for row, expected in zip(rows, alone, strict=True):
        for name in ("loss", "grad_norm", "weight"):
            assert row[name] == pytest.approx(expected[name], rel=1e-4)
        assert row["tokens"] == expected["tokens"]
    assert rows[-1]["val/loss"] == pytest.approx(alone[-1]["val/loss"], rel=1e-4)
    assert len(rows[-1]["weights_sha256"]) == 64
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
