"""Commands that are started on several hosts are one run."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import run_cli
from tests.compile_flags import QUICK

ROOT = Path(__file__).parents[2]
COMMAND = """
from common.errors import run_cli
def main(arguments):
    import jax, numpy as np
    from jax.experimental import multihost_utils
    print(jax.process_count(), multihost_utils.process_allgather(np.int32(10 + jax.process_index())).tolist())
run_cli(main)
"""


def test_two_processes_find_each_other():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = {**os.environ, "XLA_FLAGS": QUICK, "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", COMMAND], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**environment, "MEDREPORT_HOSTS": f"{address},2,{number}"},
        )
        for number in (0, 1)
    ]  # fmt: skip
    for process in processes:
        output, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        assert "2 [10, 11]" in output.splitlines()  # gloo writes there too


@pytest.mark.parametrize("hosts", ["yes", "host:1,2", "host:1,2,2", "host,2,0", "host:1,two,0"])
def test_hosts_of_another_form_are_one_clear_line(monkeypatch, capsys, hosts):
    monkeypatch.setenv("MEDREPORT_HOSTS", hosts)
    with pytest.raises(SystemExit) as stopped:
        run_cli(lambda arguments: None, [])
    assert stopped.value.code == 2
    assert f"error: MEDREPORT_HOSTS={hosts}" in capsys.readouterr().err
