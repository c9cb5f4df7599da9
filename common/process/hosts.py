"""Several hosts as one run: joining them within a time limit, and refusing commands that run on one host only.

The same command is started on every host, with MEDREPORT_HOSTS=auto where JAX knows the cluster by itself (Cloud TPU
slices, Slurm, Open MPI, Kubernetes), otherwise with MEDREPORT_HOSTS=ADDRESS:PORT,COUNT,NUMBER: where host 0 listens,
how many hosts there are, and the number of this one, from 0. JAX would wait in silence and abort, so the hosts first
meet at that port, and each can say who is missing. `common.process.host_watch` is what happens afterwards.

Each process uses all devices of its node, unless the cluster starts several on a node: then each uses one GPU.
"""

import contextlib
import dataclasses
import errno
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from common.errors import UserError
from common.process.host_watch import LOST_CODE, begin_watch, say_on_abort

VARIABLE, JOIN_VARIABLE = "MEDREPORT_HOSTS", "MEDREPORT_JOIN_TIMEOUT"
LOST_VARIABLE, LOST_SECONDS = "MEDREPORT_HOST_TIMEOUT", 60.0
WORK_SECONDS = 7 * 86_400  # that hosts may wait while one of them works; one that is lost is noticed long before
JOIN_SECONDS, SAY_EVERY, RETRY_SECONDS = 120.0, 10.0, 0.3
LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
GO = "go"
EXPLICIT = "set it to ADDRESS:PORT,COUNT,NUMBER on each host"


@dataclasses.dataclass(frozen=True)
class Hosts:
    """What MEDREPORT_HOSTS says, or JAX finds."""

    address: str
    port: int
    count: int
    number: int
    gpus: tuple[int, ...] = ()  # of this node that this process uses; all where there are none


def named_hosts() -> Hosts | None:
    """The hosts that the environment names; None for none, or where JAX is to find them. Raises UserError."""
    text = os.environ.get(VARIABLE, "")
    if text in ("", "auto"):
        return None
    host, *numbers = text.split(",")
    address, _, port = host.rpartition(":")
    if len(numbers) != 2 or not address or not all(part.isascii() and part.isdecimal() for part in (port, *numbers)):
        raise UserError(f"{VARIABLE}={text}: expected auto, or ADDRESS:PORT,COUNT,NUMBER")
    hosts = Hosts(address, int(port), int(numbers[0]), int(numbers[1]))
    if hosts.number >= hosts.count:
        raise UserError(f"{VARIABLE}={text}: processes are numbered from 0, below their COUNT")
    if not 0 < hosts.port < 65536:
        raise UserError(f"{VARIABLE}={text}: the port must be from 1 to 65535")
    return hosts


def detected_hosts(within: float) -> Hosts:
    """The hosts as JAX knows them from Cloud TPU, Slurm, Open MPI or Kubernetes. Raises UserError where it does not."""
    from jax._src.clusters import ClusterEnv  # what `jax.distributed.initialize` asks; it has no public name

    given = os.environ.get("JAX_COORDINATOR_ADDRESS")
    try:
        address, count, number, gpus = ClusterEnv.auto_detect_unset_distributed_params(
            given, None, None, None, None, round(within)
        )
    except (ImportError, LookupError, OSError, RuntimeError, ValueError) as error:  # as each kind of cluster has it
        raise UserError(f"{VARIABLE}=auto: JAX cannot find the hosts ({error}); {EXPLICIT}") from error
    if address is None or count is None or number is None:
        raise UserError(f"{VARIABLE}=auto: JAX detects no cluster here; {EXPLICIT}")
    host, _, port = address.rpartition(":")
    # JAX would give each process one GPU, even where a process has the node to itself.
    return Hosts(host, int(port), count, number, () if one_process_a_node(os.environ) else tuple(gpus or ()))


def one_process_a_node(environment: Mapping[str, str]) -> bool:
    """Whether Slurm or Open MPI starts one process on each node."""
    nodes, processes = environment.get("SLURM_STEP_NUM_NODES"), environment.get("SLURM_NTASKS")
    return (nodes is not None and nodes == processes) or environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"


def initialize_distributed(arguments: Collection[str], commands: Collection[str]) -> bool:
    """Join the hosts that the environment names into one run. Returns whether there are several.

    Raises UserError at once for a command that is not among `commands`, and where the others do not arrive in time.
    """
    hosts = named_hosts()
    if not os.environ.get(VARIABLE) or (hosts is not None and hosts.count == 1):
        return False
    if {"-h", "--help"} & set(arguments):
        return False
    command = next(iter(arguments), "")
    if command not in commands:
        others = f" (on several hosts run {', '.join(commands)})" if commands else ""
        raise UserError(
            f"{VARIABLE}={os.environ[VARIABLE]}: this command runs on one host only; start it on one, "
            f"without {VARIABLE}{others}"
        )
    within = seconds_of(JOIN_VARIABLE, JOIN_SECONDS)
    if os.environ.get(LOG_LEVEL, "1") in ("1", "2", "3"):  # unless the user asked for all messages; JAX sets 1
        if "jaxlib" in sys.modules:
            # XLA reads its log level once. Where a host is lost, it would print a stack beside our one line.
            os.environ[LOG_LEVEL] = "4"
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
        os.environ[LOG_LEVEL] = "4"
    hosts = hosts or detected_hosts(within)
    if hosts.count == 1:
        return False
    with progress(f"waiting for the hosts of {VARIABLE}={os.environ[VARIABLE]}", within) as say:
        (gather if hosts.number == 0 else report)(hosts, time.monotonic() + within, say)
    failed = f"{VARIABLE}={os.environ[VARIABLE]}: not all hosts joined within {within:g} s"
    with progress(f"waiting for JAX to join the hosts of {VARIABLE}={os.environ[VARIABLE]}", within):
        initialize(hosts_options(hosts), within, failed)
    return True


def initialize(options: Mapping[str, Any], within: float, failed: str) -> None:
    """Join JAX's own service and begin to watch. If JAX gives up, it aborts with `failed` as the last line."""
    import jax
    from jax._src import distributed  # the client has no public name; Orbax takes it from there, too

    lost_after = seconds_of(LOST_VARIABLE, LOST_SECONDS)
    # JAX's handler of SIGTERM would replace ours, and notice the signal in a training loop only.
    jax.config.update("jax_enable_preemption_service", False)
    say_on_abort(2, failed)
    try:
        jax.distributed.initialize(
            **options,
            initialization_timeout=max(round(within), 1),
            heartbeat_timeout_seconds=round(lost_after) * 2,  # after our own
            shutdown_timeout_seconds=WORK_SECONDS,  # 300 by default, after which JAX aborts
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{failed} ({reason})") from error
    state = distributed.global_state
    number, count = int(state.process_id), int(state.num_processes)
    coordinator = f"host 0 of {count}, which coordinates the run at {state.coordinator_address},"
    say_on_abort(LOST_CODE, f"{coordinator} was lost; start the same command again on all hosts")
    if count > 1:
        begin_watch(state.client, number, count, lost_after)


def meet(name: str) -> None:
    """Wait until all hosts have called this, however long one of them works. A single process does not wait.

    Not a collective, which may time out: on CPUs after half an hour.
    """
    from jax._src import distributed

    client = distributed.global_state.client
    if client is not None and (distributed.global_state.num_processes or 1) > 1:
        client.wait_at_barrier(f"medreport/{name}", WORK_SECONDS * 1000)


def hosts_options(hosts: Hosts) -> dict[str, Any]:
    """The arguments of `jax.distributed.initialize`."""
    return {
        "coordinator_address": f"{hosts.address}:{hosts.port}",
        "num_processes": hosts.count,
        "process_id": hosts.number,
        "local_device_ids": list(hosts.gpus) or None,
        "cluster_detection_method": "deactivate",  # within Slurm, JAX would fill in the one GPU of SLURM_LOCALID
    }


def seconds_of(variable: str, default: float) -> float:
    """A bound in seconds from the environment. Raises UserError."""
    text = os.environ.get(variable) or str(default)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 86_400:
        raise UserError(f"{variable}={text}: expected a number of seconds from 1 to 86400")
    return seconds


@contextlib.contextmanager
def progress(doing: str, within: float) -> Iterator[Callable[[str], None]]:
    """Report on standard error every few seconds what is waited for. Yields a function that sets the details."""
    ended, told = threading.Event(), [""]

    def say() -> None:
        started = time.monotonic()
        while not ended.wait(SAY_EVERY):
            print(f"{doing}{told[0]}: {time.monotonic() - started:.0f} of {within:g} s", file=sys.stderr, flush=True)

    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    try:
        yield lambda particulars: told.__setitem__(0, f" ({particulars})")
    finally:
        ended.set()
        thread.join()


def gather(hosts: Hosts, deadline: float, say: Callable[[str], None]) -> None:
    """On host 0: wait until all others have reported, and let them go. Raises UserError naming those that have not."""
    there: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(_listener(hosts))
        while len(there) < hosts.count - 1:
            missing = [number for number in range(1, hosts.count) if number not in there]
            say(f"{len(there) + 1} of {hosts.count} joined, missing: {_numbers(missing)}")
            if time.monotonic() > deadline:
                problem = (
                    f"{VARIABLE}: {len(there) + 1} of {hosts.count} hosts joined in time; missing: "
                    f"{_numbers(missing)}; start them, or allow more time with {JOIN_VARIABLE}"
                )
                _tell(there, problem)
                raise UserError(problem)
            with contextlib.suppress(TimeoutError, OSError):
                other, _ = listener.accept()
                sockets.enter_context(other)
                count, number = _reported(other)
                if count != hosts.count:
                    problem = f"{VARIABLE}: host 0 expects {hosts.count} hosts, host {number} expects {count}"
                    _tell(there | {number: other}, problem)
                    raise UserError(problem)
                there[number] = other  # one that was restarted replaces itself
        _tell(there, GO)


def report(hosts: Hosts, deadline: float, say: Callable[[str], None]) -> None:
    """On every other host: report to host 0 and wait for its word. Raises UserError where there is none in time."""
    where = f"host 0 at {hosts.address}:{hosts.port}"
    reason = "no answer"
    while time.monotonic() < deadline:
        say(f"{where}: {reason}")
        try:
            with socket.create_connection((hosts.address.strip("[]"), hosts.port), timeout=1.0) as host0:
                host0.sendall(f"medreport {hosts.count} {hosts.number}\n".encode())
                reason = "joined, waiting for others"
                say(f"{where}: {reason}")
                host0.settimeout(max(deadline + 2 - time.monotonic(), 1.0))
                with host0.makefile("r", encoding="utf-8", errors="replace") as lines:
                    word = lines.readline(2_000).strip()
            if word == GO:
                return
            if word:
                raise UserError(word)
            reason = "it ended, or is not a host of this run"
        except OSError as error:
            reason = error.strerror or str(error)
        time.sleep(RETRY_SECONDS)
    raise UserError(
        f"{VARIABLE}={os.environ[VARIABLE]}: {where} could not be joined in time ({reason}); "
        f"start it, or allow more time with {JOIN_VARIABLE}"
    )


def _listener(hosts: Hosts) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    try:
        listener = socket.create_server(
            ("", hosts.port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both
        )
    except OSError as error:
        why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise UserError(f"{VARIABLE}: port {hosts.port} of this host {why}; choose another on all hosts") from error
    listener.settimeout(RETRY_SECONDS)
    return listener


def _reported(other: socket.socket) -> tuple[int, int]:
    """The count and the number that a host reports. Raises OSError for whatever else connects."""
    other.settimeout(2.0)
    words = other.recv(100).decode("ascii", "replace").split()
    if len(words) != 3 or words[0] != "medreport" or not all(word.isdecimal() for word in words[1:]):
        raise OSError("not a host of this run")
    return int(words[1]), int(words[2])


def _tell(there: dict[int, socket.socket], word: str) -> None:
    for other in there.values():
        with contextlib.suppress(OSError):
            other.sendall(f"{word}\n".encode())


def _numbers(numbers: Collection[int]) -> str:
    shown = ", ".join(map(str, [*numbers][:10]))
    return shown if len(numbers) <= 10 else f"{shown} and {len(numbers) - 10} more"
