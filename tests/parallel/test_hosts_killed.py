"""Four hosts of which one is killed: the others end soon, and other numbers of hosts continue the run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.training.logs import read_metrics
from tests.compile_flags import QUICK
from tests.hosts import free_address
from tests.runs import ROOT, Material

STEPS, DEVICES = 8, 4
MODES = {"pmap": {"parallel": "pmap"}, "fsdp": {"parallel": "mesh", "mesh__data": 1, "mesh__fsdp": -1}}


def start(material: Material, run_dir: Path, mode: str, hosts: int) -> list[subprocess.Popen[str]]:
    """A training on so many hosts, of four devices in all."""
    options = {"max_steps": STEPS, "micro_batch": 1, "checkpoint_every": 2, "evaluate_every": 4, "lora__dropout": 0.0}
    words = material.train(run_dir, **options, **MODES[mode])
    address = free_address()
    return [
        subprocess.Popen(
            [sys.executable, "-m", "retsta_jax.cli", *words],
            cwd=ROOT,
            env={
                **os.environ,
                "XLA_FLAGS": QUICK,
                "JAX_NUM_CPU_DEVICES": str(DEVICES // hosts),
                "MEDREPORT_HOSTS": f"{address},{hosts},{number}",
                "MEDREPORT_HOST_TIMEOUT": "10",
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(hosts)
    ]


def ended(processes: list[subprocess.Popen[str]]) -> tuple[list[int], list[str]]:
    """Their exit codes and what they said last."""
    try:
        said = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], [text.strip().rpartition("\n")[2] for text in said]


@pytest.fixture(scope="module")
def whole(material, tmp_path_factory) -> list[dict]:
    """The log of a run that nothing interrupts, on one host."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert ended(start(material, run_dir, "pmap", 1))[0] == [0]
    return read_metrics(run_dir / "metrics.jsonl")


@pytest.mark.parametrize("mode", MODES)
def test_a_run_that_lost_a_host_is_continued_by_others(material, whole, tmp_path, mode):
    hosts = start(material, tmp_path / "run", mode, 4)
    while not (tmp_path / "run" / "checkpoints" / "latest" / "2").exists():
        assert [process.poll() for process in hosts] == [None] * 4
        time.sleep(0.01)
    hosts[2].send_signal(signal.SIGKILL)
    codes, said = ended(hosts)
    assert codes == [75, 75, -signal.SIGKILL, 75], "\n".join(said)
    assert any("host 2 of 4 was lost" in line for line in said), "\n".join(said)
    assert all("of 4 " in said[number] for number in (0, 1, 3)), "\n".join(said)  # or who ended because of that
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) < STEPS
    codes, said = ended(start(material, tmp_path / "run", mode, 2))
    assert codes == [0, 0], said
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [row["step"] for row in whole]
    for row, expected in zip(rows, whole, strict=True):
        assert row.keys() == expected.keys()
        for name in {"loss", "grad_norm", "weight", "learning_rate", "val/loss"} & row.keys():
            # Hosts add in another order than the devices of one host.
            assert row[name] == pytest.approx(expected[name], rel=1e-6)
