"""Several processes of one machine that work together as several hosts do."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence

from tests.compile_flags import QUICK
from tests.runs import ROOT


def free_address() -> str:
    """An address of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def on_hosts(
    module: str, commands: list[list[str]], devices: int = 2, variables: Sequence[Mapping[str, str]] = ()
) -> tuple[list[int], list[str]]:
    """The exit codes and standard errors of a command on as many hosts, each with words, devices and environment."""
    address = free_address()
    environment = {**os.environ, "XLA_FLAGS": QUICK, "JAX_NUM_CPU_DEVICES": str(devices)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", module, *words],
            cwd=ROOT,
            env={**environment, **own, "MEDREPORT_HOSTS": f"{address},{len(commands)},{number}"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, (words, own) in enumerate(zip(commands, variables or [{}] * len(commands), strict=True))
    ]
    try:
        said = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], said
