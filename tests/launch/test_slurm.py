"""The recipe for Slurm on a real cluster of two nodes: it trains, and what is stopped is requeued and continues."""

import os
import re
import signal
import sys

import pytest

from common.process.stopping import EXIT_CODES
from tests.compile_flags import QUICK
from tests.launch.recipes import recipe
from tests.launch.slurm_cluster import cluster, missing, waited
from tests.runs import ROOT

pytestmark = pytest.mark.skipif(
    bool(missing()), reason=f"not installed: {', '.join(missing())}; Debian has them in slurm-wlm and munge"
)
OPTIONS = f"slurm --nodes 2 --gpus 0 --time 10 --join-timeout 60 --directory {ROOT}".split()
STEPS = 16


@pytest.fixture(scope="module")
def slurm():
    with cluster() as running:
        yield running


def submit(slurm, tmp_path, command: list[str], **environment: str) -> str:
    """The number of a job that a recipe started; its output is `job.log`."""
    text = recipe(OPTIONS, command)
    assert "#SBATCH --output=medreport-%j.log\n" in text
    file = tmp_path / "job.sh"
    file.write_text(text.replace("medreport-%j.log", f"{tmp_path}/job.log"))
    return re.search(r"\d+", slurm.run("sbatch", str(file), **environment))[0]


def train(slurm, tmp_path, material) -> tuple[str, object]:
    """A job that trains on two nodes with two devices each, and its run directory."""
    run_dir = tmp_path / "run"
    words = material.train(run_dir, parallel="pmap", micro_batch=1, max_steps=STEPS, epochs=8, evaluate_every=STEPS)
    environment = {"XLA_FLAGS": QUICK, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
    return submit(slurm, tmp_path, [sys.executable, "-m", "retsta_jax.cli", *words], **environment), run_dir


def test_a_job_that_is_stopped_is_requeued_and_ends_with_the_same_bits(slurm, tmp_path, material):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    stopped.mkdir()
    job, undisturbed = train(slurm, whole, material)
    slurm.wait_for(job, "COMPLETED")
    job, run_dir = train(slurm, stopped, material)
    log = run_dir / "metrics.jsonl"
    waited(lambda: log.exists() and log.read_bytes().count(b"\n") >= 3, 60.0)
    slurm.run("scancel", "--signal=TERM", job)  # as Slurm does ahead of the time limit
    requeued = slurm.wait_for(job, "PENDING")
    assert requeued["Restarts"] == "1"
    assert f"exit code {EXIT_CODES[signal.SIGTERM]}: requeued" in (stopped / "job.log").read_text()
    assert log.read_bytes().count(b"\n") < STEPS
    slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now")  # Slurm itself would wait for two minutes
    assert slurm.wait_for(job, "COMPLETED")["Restarts"] == "1"
    assert log.read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()
    adapter = os.path.join("adapter", "adapter_model.safetensors")
    assert (run_dir / adapter).read_bytes() == (undisturbed / adapter).read_bytes()


def test_a_command_that_fails_is_not_requeued(slurm, tmp_path):
    job = submit(slurm, tmp_path, [sys.executable, "-m", "retsta_jax.cli", "train", "--preset", "dmo"])
    found = slurm.wait_for(job, "FAILED")
    assert (found["ExitCode"], found["Restarts"]) == ("2:0", "0")
    assert "--preset dmo: unknown" in (tmp_path / "job.log").read_text()


def test_a_job_that_is_cancelled_stays_cancelled(slurm, tmp_path):
    job = submit(slurm, tmp_path, ["bash", "-c", "trap 'exit 75' TERM; echo begun; while :; do sleep 0.1; done"])
    waited(lambda: (tmp_path / "job.log").exists() and (tmp_path / "job.log").read_text().count("begun") == 2, 30.0)
    slurm.run("scancel", job)
    found = slurm.wait_for(job, "CANCELLED")
    assert found["Restarts"] == "0"
    waited(lambda: slurm.run("squeue", "-h") == "", 30.0)


def test_a_node_that_does_not_join_is_named(slurm, tmp_path):
    script = '[[ $MEDREPORT_HOSTS == *,1 ]] && exit 0; export MEDREPORT_JOIN_TIMEOUT=2; exec "$@"'
    command = [sys.executable, "-m", "retsta_jax.cli", "train", "--preset", "demo"]
    job = submit(slurm, tmp_path, ["bash", "-c", script, "bash", *command])
    assert slurm.wait_for(job, "FAILED")["ExitCode"] == "2:0"
    assert "1 of 2 hosts joined in time; missing: 1" in (tmp_path / "job.log").read_text()
