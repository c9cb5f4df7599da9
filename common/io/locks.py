"""Locks: only one command at a time writes to a directory or a file.

A lock is a small JSON file that says which process holds it and since when: `.lock` in a directory, `.NAME.lock` beside
a file. It is written under a name of its own and then linked to the lock's, which succeeds for one process however many
try, also on NFS. The lock of a killed process is taken over:

- on the same machine as soon as no process of that number and start time is alive;
- on another machine, or in another container, when the lock has not been touched for STALE_SECONDS. Its holder touches
  it every BEAT_SECONDS. Ages are differences of times that the file system itself gave, so that clocks need not agree;
  as its clock may have jumped, the lock is also watched for LISTEN_SECONDS by this process's own, which never does.

Of several that would take one lock over, one succeeds: the lock of each process has a token of its own, and a process
takes over by making the file that is named for the dead one's token, which can be made once.
"""

import contextlib
import dataclasses
import errno
import functools
import inspect
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ParamSpec, TypeVar

from common.errors import UserError
from common.io.lock_holder import (
    DIRECTORY_LOCK,
    STALE_SECONDS,
    Holder,
    is_alive,
    is_seen,
    lock_beside,
    read_holder,
    refusal,
    this_process,
    writer_of,
)
from common.io.store_locks import locked_object
from common.io.terminal import say
from common.process.first import has_several_processes, is_first_process
from common.process.stopping import end_now

BEAT_SECONDS = 10.0
LISTEN_SECONDS = 15.0  # for a touch of a lock that is old, or of the future, by its times
# Names of a lock, of what is linked to it, and of what marks that it is being taken over.
LOCK_NAME = re.compile(r"\.(?P<of>.+\.)?lock(\.[0-9a-f]{32}\.(partial|taken))?")
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_held: set[Path] = set()  # locks of this process, which may ask for them again


def is_lock(name: str) -> bool:
    """Whether a file of this name is a lock, or left over from taking one."""
    return lock_of(name) is not None


def lock_of(name: str) -> str | None:
    """The name of the file beside it that a lock of this name is of, "" of its directory; None: it is no lock."""
    found = LOCK_NAME.fullmatch(name)
    return found and (found["of"] or "").removesuffix(".")


@contextlib.contextmanager
def locked_directory(directory: Path) -> Iterator[None]:
    """This process alone writes in `directory` meanwhile. It is made, and removed again where nothing was written.

    What this process holds already it may ask for again. Raises UserError naming the process that holds the lock, and
    where the folder refuses.
    """
    real = Path(os.path.realpath(directory))
    made = [folder for folder in (real, *real.parents) if not folder.exists()]
    try:
        with _disk_errors(directory):
            real.mkdir(parents=True, exist_ok=True)
        with _locked(real / DIRECTORY_LOCK, directory):
            yield
    finally:
        with contextlib.suppress(OSError):  # not empty
            for folder in made:
                folder.rmdir()


@contextlib.contextmanager
def locked_run(directory: Path) -> Iterator[None]:
    """`locked_directory` of a run that is there already; where there is none, nothing is made."""
    with locked_directory(directory) if directory.is_dir() else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def locked_file(file: Path | None) -> Iterator[None]:
    """This process alone writes `file`, or a directory of that name, meanwhile. Raises UserError as `locked_directory`.

    None, devices and pipes need no lock, and where there is no folder there is nothing to lock.
    """
    if file is None:
        yield
        return
    real = Path(os.path.realpath(file))
    free = not real.parent.is_dir() or (real.exists() and not (real.is_file() or real.is_dir()))
    with contextlib.nullcontext() if free else _locked(lock_beside(real), file):
        yield


def owning(
    argument: str, lock: Callable[..., AbstractContextManager[None]] = locked_directory
) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """A decorator: while the function runs, the path that is its `argument` is locked.

    With several processes, all must call the function: the first one locks, and the others wait for the outcome.
    """

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            with locked_by_first(signature.bind(*args, **kwargs).arguments.get(argument), lock):
                return function(*args, **kwargs)

        return run

    return decorate


@contextlib.contextmanager
def locked_by_first(
    path: Path | None, lock: Callable[..., AbstractContextManager[None]] = locked_directory
) -> Iterator[None]:
    """`lock` of a path by the first of several processes; all must call it. Raises UserError in all."""
    if not has_several_processes():
        with lock(path):
            yield
        return
    import numpy as np
    from jax.experimental import multihost_utils

    with contextlib.ExitStack() as stack:
        problem: UserError | None = None
        if is_first_process():
            try:
                stack.enter_context(lock(path))
            except UserError as error:
                problem = error
        if not multihost_utils.broadcast_one_to_all(np.int32(problem is None)):
            raise problem or UserError(f"{path}: is in use; see the message of the first process")
        yield


def warn_of_writer(path: str | Path) -> None:
    """Warn on standard error, in the first of several processes, if another process is writing what this one reads."""
    if is_first_process() and (holder := writer_of(path)) is not None:
        say(f"warning: {path} is still being written by {holder}; what it holds by now is read", error=True)


@contextlib.contextmanager
def _locked(lock: Path, what: Path) -> Iterator[None]:
    if lock in _held:
        yield
        return
    with _disk_errors(what):
        token = _acquire(lock, what)
    _held.add(lock)
    ended = threading.Event()
    threading.Thread(target=_keep, args=(lock, what, token, ended), daemon=True).start()
    try:
        with locked_object(lock):
            yield
    finally:
        ended.set()
        _held.discard(lock)
        with contextlib.suppress(OSError):  # such as its directory having been removed
            holder = read_holder(lock)
            if holder is not None and holder.token == token:
                lock.unlink()


@contextlib.contextmanager
def _disk_errors(what: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{what}: cannot be written ({error.strerror}); choose another path") from error


def _acquire(lock: Path, what: Path) -> str:
    """Make the lock this process's. Returns its token."""
    own = this_process()
    aside = lock.with_name(f"{lock.name}.{own.token}.partial")
    try:
        aside.write_text(json.dumps(dataclasses.asdict(own)), encoding="utf-8")
        while not _linked(aside, lock):
            holder = read_holder(lock)
            if holder is not None and _takes_over(lock, aside, holder, what):
                _sweep(lock)
                break
    finally:
        aside.unlink(missing_ok=True)
    return own.token


def _linked(aside: Path, name: Path) -> bool:
    """Give a file a second name; False where that is taken. Where a file can have one name only, it is copied."""
    try:
        os.link(aside, name)
    except FileExistsError:
        # A server that answered too late was asked twice, and the second time found what the first had made.
        return aside.stat().st_nlink > 1 and os.path.samefile(aside, name)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        try:
            with name.open("xb") as file:
                file.write(aside.read_bytes())
        except FileExistsError:
            return False
    return True


def _takes_over(lock: Path, aside: Path, holder: Holder, what: Path) -> bool:
    """Put `aside` in the place of a lock whose holder is dead; False where somebody else was faster.

    Who takes over may die of it: then the file that it made is the one whose holder is looked at. Raises UserError
    where one of them is alive.
    """
    now = aside.stat().st_mtime
    marks: list[Path] = []
    file, last = lock, holder
    while True:
        with contextlib.suppress(FileNotFoundError):
            age = now - file.stat().st_mtime
            seen = is_seen(last)
            if seen or (seen is None and (abs(age) < STALE_SECONDS or _touched_meanwhile(file))):
                raise UserError(refusal(what, last, age))
        marks.append(lock.with_name(f"{lock.name}.{last.token}.taken"))
        if _linked(aside, marks[-1]):
            break
        file, following = marks[-1], read_holder(marks[-1])
        if following is None:
            return False
        last = following
    try:
        # Making a file has also made NFS look at the folder anew. Whoever changes the lock has made one of the marks.
        present = read_holder(lock)
        if present is None or present.token != holder.token:
            marks = marks[-1:]
            return False
        os.replace(aside, lock)
        return True
    finally:
        for mark in marks:
            mark.unlink(missing_ok=True)


def _touched_meanwhile(file: Path) -> bool:
    """Whether the holder of a lock gives a sign of life: a clock that jumps makes what is new old, or not yet made."""
    before, deadline = file.stat().st_mtime_ns, time.monotonic() + LISTEN_SECONDS
    while time.monotonic() < deadline:
        time.sleep(min(LISTEN_SECONDS / 10, BEAT_SECONDS))
        with file.open("rb") as opened:  # which makes NFS ask its server
            if os.fstat(opened.fileno()).st_mtime_ns != before:
                return True
    return False


def _sweep(lock: Path) -> None:
    """Remove what others that are dead have left beside a lock that is this process's."""
    now = lock.stat().st_mtime
    for left in lock.parent.iterdir():
        if left.name.startswith(f"{lock.name}.") and is_lock(left.name):
            with contextlib.suppress(OSError):
                holder = read_holder(left)
                if holder is not None and not is_alive(holder, now - left.stat().st_mtime):
                    left.unlink()


def _keep(lock: Path, what: Path, token: str, ended: threading.Event) -> None:
    """Touch a lock until `ended`; where another process has taken it over, end this one before it writes more."""
    while not ended.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):  # the next beat may succeed
            holder = read_holder(lock)
            if holder is not None and holder.token != token:
                end_now(2, f"{what}: this process gave no sign of life for too long, and {holder} has taken over")
            os.utime(lock)
