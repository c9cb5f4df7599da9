"""Commands that are started on several hosts are one run, or refuse; no host waits for another without a bound."""

import importlib
import inspect
import os
import re
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import pytest

from common.command import run_cli
from common.errors import UserError
from common.process.hosts import GO, LOST_SECONDS, Hosts, detected_hosts, gather, hosts_options, initialize, report
from launch.cli import COMMANDS
from tests.compile_flags import QUICK
from tests.hosts import free_address

ROOT = Path(__file__).parents[2]
COMMAND = """
import pathlib, sys
from common.command import run_cli
def main(arguments):
    import jax, numpy as np
    from jax.experimental import multihost_utils
    from common.process.hosts import meet
    file = pathlib.Path(sys.argv[-1])
    for turn in ("1", "2") if len(arguments) > 1 else ():  # the other sees what the first did before they met
        if jax.process_index() == 0:
            file.write_text(turn)
        meet("written")
        assert file.read_text() == turn
        meet("read")
    print(jax.process_count(), multihost_utils.process_allgather(np.int32(10 + jax.process_index())).tolist())
run_cli(main, hosts=["all"])
"""


def test_two_processes_find_each_other_and_meet(tmp_path):
    address = free_address()
    environment = {**os.environ, "XLA_FLAGS": QUICK, "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", COMMAND, "all", str(tmp_path / "file")], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, env={**environment, "MEDREPORT_HOSTS": f"{address},2,{number}"},
        )
        for number in (0, 1)
    ]  # fmt: skip
    for process in processes:
        output, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        assert "2 [10, 11]" in output.splitlines()  # gloo writes there too


def slurm(port: int, number: int, tasks: int, nodes: int) -> dict[str, str]:
    """What `srun` tells a task; JAX reckons the port from the job's number."""
    job = {"SLURM_JOB_ID": str(port - (65536 - 4096)), "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": str(tasks)}
    own = {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number % (tasks // nodes))}
    return {**job, **own, "SLURM_STEP_NUM_NODES": str(nodes), "MEDREPORT_HOSTS": "auto"}


@pytest.mark.parametrize(("nodes", "gpus"), [(1, [(0,), (1,)]), (2, [(), ()])])
def test_a_task_of_slurm_uses_one_gpu_only_where_it_has_not_the_node_for_itself(monkeypatch, nodes, gpus):
    for number in (0, 1):
        for name, value in slurm(61_441, number, 2, nodes).items():
            monkeypatch.setenv(name, value)
        found = detected_hosts(1.0)
        assert found == Hosts("127.0.0.1", 61_441, 2, number, gpus[number])
        options = hosts_options(found)
        assert options["local_device_ids"] == (list(gpus[number]) or None)
        assert options["cluster_detection_method"] == "deactivate"


def test_hosts_are_found_and_join_within_slurm():
    environment = {**os.environ, "XLA_FLAGS": QUICK, "PYTHONPATH": str(ROOT), "MEDREPORT_JOIN_TIMEOUT": "60"}
    port = next(port for port in range(61_440 + os.getpid() % 2_000, 65_536) if is_free(port))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", COMMAND, "all"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**environment, **slurm(port, number, 2, 2)},
        )
        for number in (0, 1)
    ]  # fmt: skip
    for process in processes:
        output, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        assert "2 [10, 11]" in output.splitlines()


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_auto_where_there_is_no_cluster_is_one_clear_line(monkeypatch, capsys):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    monkeypatch.setenv("MEDREPORT_HOSTS", "auto")
    line = (
        "error: MEDREPORT_HOSTS=auto: JAX detects no cluster here; set it to ADDRESS:PORT,COUNT,NUMBER on each host\n"
    )
    assert refused(["train"], ["train"], capsys) == line


@pytest.mark.parametrize("hosts", ["yes", "host:1,2", "host:1,2,2", "host,2,0", "host:1,two,0"])
def test_hosts_of_another_form_are_one_clear_line(monkeypatch, capsys, hosts):
    monkeypatch.setenv("MEDREPORT_HOSTS", hosts)
    with pytest.raises(SystemExit) as stopped:
        run_cli(lambda arguments: None, [])
    assert stopped.value.code == 2
    assert f"error: MEDREPORT_HOSTS={hosts}" in capsys.readouterr().err


def refused(arguments, commands, capsys) -> str:
    with pytest.raises(SystemExit) as stopped:
        run_cli(lambda arguments: None, arguments, hosts=commands)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize("hosts", ["auto", "nowhere.invalid:1,2,1"])
@pytest.mark.parametrize("commands", [(), ("train", "label")])
def test_a_command_for_one_host_refuses_before_it_joins(monkeypatch, capsys, hosts, commands):
    monkeypatch.setenv("MEDREPORT_HOSTS", hosts)
    said = refused(["evaluate", "--run-dir", "x"], commands, capsys)
    assert said.startswith(f"error: MEDREPORT_HOSTS={hosts}: this command runs on one host only; start it on one")
    assert ("on several hosts run train, label" in said) == bool(commands)


@pytest.mark.parametrize(
    ("module", "several"),
    [
        ("launch.cli", {"decode"}),
        ("retsta_jax.cli", {"train", "standardize", "evaluate", "label", "paradigm"}),
        ("unicross_jax.cli", {"train", "evaluate", "report"}),
        ("deer_jax.cli", {"sft", "rl", "train-labeler", "label", "sample", "evaluate"}),
    ],
)
def test_which_commands_run_on_several_hosts(module, several, monkeypatch, capsys):
    monkeypatch.setenv("MEDREPORT_HOSTS", "127.0.0.1:1,2,1")
    asked = []
    monkeypatch.setattr(
        "common.process.hosts.progress", lambda *_: asked.append(0) or (_ for _ in ()).throw(UserError("join"))
    )
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    commands = {*several, "evaluate", "standardize", "demo", "report", "ablation", "weights", "analyse", "select"}
    for command in commands:
        monkeypatch.setattr(sys, "argv", [module, command])
        with pytest.raises(SystemExit):
            importlib.import_module(module).main()
        said = capsys.readouterr().err
        assert ("runs on one host only" in said) == (command not in several), said
    assert len(asked) == len(several)


def test_hosts_wait_for_one_that_works_for_days_and_not_for_one_that_is_lost(monkeypatch):
    given = {}

    def begin(*args, **kwargs):
        given.update(signature.bind(*args, **kwargs).arguments)
        raise RuntimeError("no further")

    signature = inspect.signature(jax.distributed.initialize)
    monkeypatch.setattr("common.process.hosts.say_on_abort", lambda *_: None)
    monkeypatch.setattr(jax.distributed, "initialize", begin)
    with pytest.raises(UserError, match="no further"):
        initialize({}, 1.0, "failed")
    assert signature.parameters["shutdown_timeout_seconds"].default < 3600 < given["shutdown_timeout_seconds"]
    assert given["heartbeat_timeout_seconds"] == 2 * LOST_SECONDS


def test_a_command_that_runs_on_each_host_by_itself_joins_nobody(monkeypatch):
    for hosts in ("auto", "nowhere.invalid:1,2,1"):
        monkeypatch.setenv("MEDREPORT_HOSTS", hosts)
        with pytest.raises(SystemExit) as ended:
            run_cli(lambda arguments: 7, ["doctor"], hosts=["train"], apart=["doctor"])
        assert ended.value.code == 7
    assert not COMMANDS["doctor"].joins


def test_one_host_and_a_question_for_help_join_nobody(monkeypatch):
    for hosts, arguments in (("nowhere.invalid:1,1,0", ["x"]), ("nowhere.invalid:1,2,1", ["x", "--help"])):
        monkeypatch.setenv("MEDREPORT_HOSTS", hosts)
        with pytest.raises(SystemExit) as ended:
            run_cli(lambda arguments: 7, arguments)
        assert ended.value.code == 7


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def met(monkeypatch, port: int, counts: dict[int, int], within: float) -> dict[int, str]:
    """What hosts that meet for a while are told, by number; `counts` is how many each expects."""
    monkeypatch.setenv("MEDREPORT_HOSTS", f"127.0.0.1:{port},N,N")
    deadline = time.monotonic() + within

    def one(number: int) -> str:
        hosts = Hosts("127.0.0.1", port, counts[number], number)
        try:
            (report if number else gather)(hosts, deadline, lambda particulars: None)
        except UserError as error:
            return str(error)
        return GO

    with ThreadPoolExecutor(len(counts)) as pool:
        return dict(zip(counts, pool.map(one, counts), strict=True))


def test_hosts_meet_in_any_order(monkeypatch, port):
    assert met(monkeypatch, port, {2: 3, 1: 3, 0: 3}, 30.0) == dict.fromkeys((0, 1, 2), GO)


def test_all_are_told_which_host_is_missing(monkeypatch, port):
    told = met(monkeypatch, port, {0: 4, 2: 4}, 0.5)
    line = "MEDREPORT_HOSTS: 2 of 4 hosts joined in time; missing: 1, 3; start them, or allow more time with "
    assert told == dict.fromkeys((0, 2), f"{line}MEDREPORT_JOIN_TIMEOUT")


def test_hosts_that_differ_about_their_number_are_told(monkeypatch, port):
    told = met(monkeypatch, port, {0: 3, 1: 2}, 30.0)
    assert told == dict.fromkeys((0, 1), "MEDREPORT_HOSTS: host 0 expects 3 hosts, host 1 expects 2")


def test_a_first_host_that_is_not_there_is_named(monkeypatch, port):
    told = met(monkeypatch, port, {1: 2}, 0.3)
    assert f"host 0 at 127.0.0.1:{port} could not be joined in time (Connection refused)" in told[1]


def test_a_port_that_is_taken_is_said_at_once(monkeypatch):
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as other:
        port = other.getsockname()[1]
        assert f"port {port} of this host is taken" in met(monkeypatch, port, {0: 2}, 30.0)[0]


def test_a_stranger_at_the_port_is_nobody(monkeypatch, port):
    def connect():
        for _ in range(200):
            try:
                with socket.create_connection(("127.0.0.1", port)) as stranger:
                    stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
                return
            except OSError:
                time.sleep(0.01)  # until host 0 listens

    thread = threading.Thread(target=connect)
    thread.start()
    told = met(monkeypatch, port, {0: 2}, 1.0)
    thread.join()
    assert "missing: 1" in told[0]


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "1e9"])
def test_bounds_are_checked(monkeypatch, capsys, value):
    monkeypatch.setenv("MEDREPORT_HOSTS", "127.0.0.1:1,2,1")
    monkeypatch.setenv("MEDREPORT_JOIN_TIMEOUT", value)
    assert f"MEDREPORT_JOIN_TIMEOUT={value}: expected a number of seconds" in refused(["x"], ["x"], capsys)


LOST = """
import os, signal, sys
from common.command import run_cli
from common.process import host_watch
host_watch.BEAT_SECONDS = 0.25
def main(arguments):
    import jax, numpy as np
    from jax.experimental import multihost_utils
    multihost_utils.process_allgather(np.int32(0))
    if jax.process_index() == int(arguments[1]):
        if arguments[2] == "error":
            from common.errors import UserError
            raise UserError("a full disk")
        os.kill(os.getpid(), getattr(signal, arguments[2]))
    multihost_utils.process_allgather(np.int32(1))
run_cli(main, hosts=["all"])
"""


@pytest.mark.parametrize(
    ("victim", "how", "level", "codes", "words"),
    [
        (1, "SIGKILL", "1", (75, -9), "host 1 of 2 was lost"),
        (0, "SIGKILL", "2", (-9, 75), "host 0 of 2"),
        (1, "error", "3", (2, 2), "host 1 of 2 ended with exit code 2"),
        (0, "SIGINT", "1", (130, 130), "interrupted|host 0 of 2 ended with exit code 130"),
    ],
)
def test_a_host_that_is_gone_ends_the_others_in_one_line(port, victim, how, level, codes, words):
    environment = {**os.environ, "XLA_FLAGS": QUICK, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": level}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", LOST, "all", str(victim), how], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, env={**environment, "MEDREPORT_HOSTS": f"127.0.0.1:{port},2,{number}"},
        )
        for number in (0, 1)
    ]  # fmt: skip
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert tuple(process.returncode for process in processes) == codes, said
    lines = [line for line in said[1 - victim].splitlines() if not line.startswith("waiting for")]
    assert len(lines) == 1, lines
    [other] = lines
    assert other.startswith("error: ")
    assert re.search(words, other)
