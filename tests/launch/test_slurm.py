"""The recipe for Slurm on a real cluster of two nodes: it trains, and what is stopped is requeued and continues."""

import contextlib
import re
import signal
import sys

import psutil
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


def submit(slurm, folder, command: list[str], **environment: str) -> str:
    """The number of a job that a recipe started; its output is `job.log`."""
    text = recipe(OPTIONS, command)
    for long, short in {"medreport-%j.log": f"{folder}/job.log", "sleep 30": "sleep 5"}.items():
        assert long in text
        text = text.replace(long, short)
    (folder / "job.sh").write_text(text)
    return re.search(r"\d+", slurm.run("sbatch", str(folder / "job.sh"), **environment))[0]


def train(slurm, folder, material) -> str:
    """A job that trains in `folder/run`, on two nodes with two devices each."""
    options = {"parallel": "pmap", "micro_batch": 1, "max_steps": STEPS, "epochs": 8, "evaluate_every": STEPS}
    environment = {
        "XLA_FLAGS": QUICK,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "2",
        "MEDREPORT_HOST_TIMEOUT": "5",
    }
    command = [sys.executable, "-m", "retsta_jax.cli", *material.train(folder / "run", **options)]
    return submit(slurm, folder, command, **environment)


@pytest.fixture(scope="module")
def undisturbed(slurm, material, tmp_path_factory):
    """The run directory of a job that nothing interrupts."""
    folder = tmp_path_factory.mktemp("undisturbed")
    slurm.wait_for(train(slurm, folder, material), "COMPLETED")
    return folder / "run"


def terminate(slurm, job: str) -> None:
    """As Slurm does ahead of the time limit."""
    slurm.run("scancel", "--signal=TERM", job)


def freeze(slurm, job: str) -> None:
    """The command on the second node stands still."""
    own = {"SLURM_JOB_ID": job, "SLURM_PROCID": "1"}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name().startswith("python") and own.items() <= process.environ().items():
                process.suspend()


@pytest.mark.parametrize(
    ("disturb", "said", "code"),
    [(terminate, "terminated", EXIT_CODES[signal.SIGTERM]), (freeze, "host 1 of 2 was lost", 128 + signal.SIGKILL)],
)
def test_a_job_that_is_disturbed_is_requeued_and_ends_with_the_same_bits(
    slurm, undisturbed, material, tmp_path, disturb, said, code
):
    job, log = train(slurm, tmp_path, material), tmp_path / "run" / "metrics.jsonl"
    waited(lambda: log.exists() and log.read_bytes().count(b"\n") >= 3, 60.0)
    disturb(slurm, job)
    assert slurm.wait_for(job, "PENDING")["Restarts"] == "1"
    output = (tmp_path / "job.log").read_text()
    assert said in output
    assert f"exit code {code}: requeued" in output
    assert log.read_bytes().count(b"\n") < STEPS
    slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now")  # Slurm itself would wait for two minutes
    assert slurm.wait_for(job, "COMPLETED")["Restarts"] == "1"
    for file in ("metrics.jsonl", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "run" / file).read_bytes() == (undisturbed / file).read_bytes()


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
