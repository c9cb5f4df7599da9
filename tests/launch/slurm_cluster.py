"""A Slurm cluster of two nodes on loopback addresses, with slurm-wlm and munge from Debian."""

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
# Nodes are named by their addresses, so that their names resolve.
CONFIG = """
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SchedulerType=sched/builtin
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
KillWait=5
NodeName=127.0.0.1 Port={first} CPUs=1
NodeName=127.0.0.2 Port={second} CPUs=1
PartitionName=main Nodes=ALL Default=YES State=UP
"""


def missing() -> list[str]:
    """The daemons that are not installed. Debian has them in /usr/sbin, which PATH of a user may lack."""
    return [name for name in DAEMONS if shutil.which(name, path=PATH) is None]


PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"


class Cluster:
    """Runs the commands of Slurm."""

    def __init__(self, folder: Path) -> None:
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}

    def run(self, *words: str, **environment: str) -> str:
        """What a command prints."""
        ran = subprocess.run(
            words, env=self.environment | environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    def fields(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says of a job."""
        shown = self.run("scontrol", "show", "job", job).split()
        return dict(word.split("=", 1) for word in shown if "=" in word)

    def wait_for(self, job: str, *states: str, seconds: float = 300.0) -> dict[str, str]:
        """The job's fields, once it is in one of the states."""
        return waited(lambda: (found := self.fields(job))["JobState"] in states and found, seconds)


def waited(ask: Callable[[], object], seconds: float) -> object:
    """What `ask` returns, once that is something."""
    deadline = time.monotonic() + seconds
    while not (found := ask()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)
    return found


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A cluster that is ready, and ended afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="slurm"))  # a socket's path must be short
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    ports = dict(zip(("controller", "first", "second"), free_ports(3), strict=True))
    (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, user=getpass.getuser(), **ports))
    here = Cluster(folder)
    files = {name: f"{folder}/munge.{name}" for name in ("socket", "pid-file", "log-file", "seed-file")}
    munged = ["munged", "--foreground", "--force", f"--key-file={key}", *(f"--{n}={f}" for n, f in files.items())]
    nodes = [["slurmd", "-D", "-N", f"127.0.0.{number}"] for number in (1, 2)]
    started = []
    try:
        for command in (munged, ["slurmctld", "-D", "-c"], *nodes):
            log = (folder / "daemons.log").open("a")
            started.append(subprocess.Popen(command, env=here.environment, stdout=log, stderr=log))
            if command is munged:
                waited((folder / "munge.socket").exists, 30.0)
        waited(lambda: here.environment and ready(here), 60.0)
        yield here
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(timeout=30)
        shutil.rmtree(folder)


def ready(here: Cluster) -> bool:
    """Whether both nodes are idle."""
    asked = subprocess.run(["sinfo", "-hNo", "%t"], env=here.environment, capture_output=True, text=True, check=False)
    return asked.stdout.split() == ["idle", "idle"]


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports
