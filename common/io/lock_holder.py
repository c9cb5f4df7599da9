"""Who holds a lock: what a lock says of its process, and whether that process is alive."""

import contextlib
import dataclasses
import functools
import os
import re
import socket
import uuid
from datetime import datetime
from pathlib import Path

from common.errors import UserError
from common.io.terminal import printable
from common.io.text import parse_json

STALE_SECONDS = 120.0
DIRECTORY_LOCK = ".lock"
_TOKEN = re.compile(r"[0-9a-f]{32}")


@dataclasses.dataclass(frozen=True)
class Holder:
    """The process that a lock names. `boot` and `namespace` tell the machine and the container, "" where unknown."""

    host: str
    boot: str
    namespace: str
    pid: int
    started: str  # in ticks since the machine was started; tells a process from a later one of the same number
    since: str
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} on {printable(self.host)}, since {printable(self.since)}"


def parse_holder(content: bytes, where: object, unknown: str) -> Holder:
    """What a lock says. One that says nothing yet, or is damaged, has an unknown holder, whose token is `unknown`."""
    try:
        holder = Holder(**parse_json(content, str(where)))
        if _TOKEN.fullmatch(holder.token) and isinstance(holder.pid, int):
            return holder
    except (UserError, TypeError):
        pass
    return Holder("an unknown machine", "", "", 0, "", "an unknown time", unknown)


def read_holder(lock: Path) -> Holder | None:
    """What a lock says; None where there is none."""
    try:
        with lock.open("rb") as file:
            content, inode = file.read(4096), os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return None
    return parse_holder(content, lock, f"{inode:032x}")


def lock_beside(file: Path) -> Path:
    """The lock of a file."""
    return file.parent / f".{file.name}.lock"


def writer_of(file: str | Path) -> Holder | None:
    """The other process that is writing a file, or in a directory; None where nobody is."""
    real = Path(os.path.realpath(file))
    lock = real / DIRECTORY_LOCK if real.is_dir() else lock_beside(real)
    try:
        holder = read_holder(lock)
        if holder is None or is_this_process(holder):
            return None
        now = datetime.now().timestamp()  # a reader may not write, and so not ask the file system
        return holder if is_alive(holder, now - lock.stat().st_mtime) else None
    except OSError:
        return None


def is_this_process(holder: Holder) -> bool:
    """Whether the holder is the process that asks."""
    return _is_here(holder) and (holder.pid, holder.started) == (os.getpid(), process_start(os.getpid()) or "")


def refusal(what: object, holder: Holder, age: float) -> str:
    """The message to who would write where a holder, of whom a sign was seen `age` seconds ago, is at work."""
    seen = ""
    if not _is_here(holder):
        seen = f" (last sign of life {max(age, 0):.0f} s ago; it counts as dead after {STALE_SECONDS:.0f} s)"
    return f"{what}: is being written by {holder}{seen}; wait for it to end, or stop it, and start again"


def this_process() -> Holder:
    """This process, as the holder of a lock of its own."""
    boot, namespace = _machine()
    now = datetime.now().astimezone().isoformat(" ", "seconds")
    pid = os.getpid()
    return Holder(socket.gethostname(), boot, namespace, pid, process_start(pid) or "", now, uuid.uuid4().hex)


@functools.cache
def _machine() -> tuple[str, str]:
    """What tells this start of this machine from others, and this container; "" where the system does not say."""
    boot = namespace = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    with contextlib.suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return boot, namespace


def _is_here(holder: Holder) -> bool:
    """Whether this process could see the holder: it runs, or ran, on this machine and in this container."""
    boot, namespace = _machine()
    return holder.boot == boot and holder.namespace == namespace and holder.host == socket.gethostname()


def is_alive(holder: Holder, age: float) -> bool:
    """Whether a holder is alive, whose lock was touched `age` seconds ago."""
    seen = is_seen(holder)
    return age < STALE_SECONDS if seen is None else seen


def is_seen(holder: Holder) -> bool | None:
    """Whether the system says that a holder is alive; None where it cannot say, as of another machine."""
    if _is_here(holder) and holder.started and (start := process_start(holder.pid)) is not None:
        return start == holder.started
    return None


def process_start(pid: int) -> str | None:
    """When a process started, "" where there is none (or a dead one that nobody has asked for its end); None: unknown.

    A system without /proc does not say; nor does one that hides the processes of other users.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except (OSError, OverflowError):
        return None
    return None
