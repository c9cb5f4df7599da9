"""`medreport launch local --submit` trains on several processes; what was stopped continues to the same bits."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.compile_flags import QUICK
from tests.hosts import free_address
from tests.launch.slurm_cluster import waited
from tests.runs import ROOT, Material

STEPS = 12


def launch(material: Material, run_dir: Path) -> subprocess.Popen[str]:
    """A training on two processes of two devices each, whose logs are in `logs` beside the run."""
    shape = ["--processes", "2", "--cpu-devices", "2", "--port", free_address().rpartition(":")[2]]
    words = material.train(run_dir, parallel="pmap", micro_batch=1, max_steps=STEPS, evaluate_every=STEPS)
    return subprocess.Popen(
        [sys.executable, "-m", "launch.cli", "launch", "local", *shape, "--logs", str(run_dir.parent / "logs"),
         "--submit", "--", "retsta", *words],
        cwd=ROOT, env=os.environ | {"XLA_FLAGS": QUICK}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_launched_training_that_is_stopped_continues_to_the_same_bits(material, tmp_path):
    whole, stopped = tmp_path / "whole" / "run", tmp_path / "stopped" / "run"
    running = launch(material, whole)
    assert running.communicate(timeout=300) == (None, "")
    assert running.returncode == 0
    running, log = launch(material, stopped), stopped / "metrics.jsonl"
    waited(lambda: running.poll() is not None or (log.exists() and log.read_bytes().count(b"\n") >= 2), 120.0)
    running.send_signal(signal.SIGTERM)
    said = running.communicate(timeout=120)[1]
    assert running.returncode == 75, said
    assert all("terminated" in (stopped.parent / "logs" / f"{number}.log").read_text() for number in (0, 1))
    running = launch(material, stopped)
    assert running.communicate(timeout=300) == (None, "")
    assert running.returncode == 0
    for file in ("metrics.jsonl", "adapter/adapter_model.safetensors"):
        assert (stopped / file).read_bytes() == (whole / file).read_bytes()
