"""Which platform JAX is to look for, and with which other hosts."""

import os
import sys
from glob import glob
from typing import Any

ACCELERATORS = ("/dev/accel*", "/dev/vfio/[0-9]*", "/dev/nvidia[0-9]*", "/dev/kfd")


def prefer_what_is_there() -> None:
    """Tell JAX to use the CPU where this machine has no accelerator and the user named no platform.

    Else an installed TPU compiler (`launch plan`) makes JAX search for a TPU, with pages of warnings.
    """
    if "JAX_PLATFORMS" in os.environ or any(glob(pattern) for pattern in ACCELERATORS):
        return
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_platforms", "cpu")


def join_hosts() -> None:
    """Make the processes of several hosts one run, where the environment says that there are several.

    The same command is started on every host, with MEDREPORT_HOSTS=auto where JAX knows the cluster by itself (Cloud
    TPU slices, Slurm, Open MPI, Kubernetes), else with MEDREPORT_HOSTS=ADDRESS:PORT,COUNT,NUMBER: where the first one
    listens, how many there are and which of them, from 0, this is. Raises ValueError for a value of another form and
    RuntimeError where the others cannot be reached, in words for the user.
    """
    hosts = os.environ.get("MEDREPORT_HOSTS", "")
    if not hosts:
        return
    import jax

    options: dict[str, Any] = {}
    if hosts != "auto":
        address, *numbers = hosts.split(",")
        if len(numbers) != 2 or not all(number.isdecimal() for number in numbers) or ":" not in address:
            raise ValueError(f"MEDREPORT_HOSTS={hosts}: expected auto, or ADDRESS:PORT,COUNT,NUMBER")
        options = {"coordinator_address": address, "num_processes": int(numbers[0]), "process_id": int(numbers[1])}
        if options["process_id"] >= options["num_processes"]:
            raise ValueError(f"MEDREPORT_HOSTS={hosts}: processes are numbered from 0, below their COUNT")
    try:
        jax.distributed.initialize(**options)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RuntimeError(f"MEDREPORT_HOSTS={hosts}: the hosts could not be joined ({reason})") from error
