"""Locks in a store: only one machine at a time writes below an address.

As `common.io.locks`, in objects of the same names beside the copies' own locks: a store makes an object where there is
none, for one of however many try, and its own clock tells how old they are.
"""

import contextlib
import dataclasses
import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path

from common.errors import UserError
from common.io.lock_holder import DIRECTORY_LOCK, Holder, is_alive, parse_holder, refusal, this_process
from common.io.mirror import address_text
from common.io.store_objects import Address, create, find_object, put_bytes, read_object, remove_objects, split_address
from common.io.stores import refetch
from common.process.stopping import end_now

BEAT_SECONDS = 30.0


@contextlib.contextmanager
def locked_object(lock: Path) -> Iterator[None]:
    """This machine alone writes what the lock of a copy is of; a lock that is of no copy needs nothing more.

    What another machine wrote before is copied first. Raises UserError naming who holds the lock.
    """
    text = address_text(lock)
    if text is None:
        yield
        return
    address = split_address(text)
    own = _acquire(address)
    ended = threading.Event()
    try:
        refetch(_what(address))
        threading.Thread(target=_keep, args=(address, own, ended), daemon=True).start()
        yield
    finally:
        ended.set()
        with contextlib.suppress(UserError):  # a store that fails: the lock will be old
            if (holder := _read(address)) is not None and holder.token == own.token:
                remove_objects(address, [address.key])


def _what(lock: Address) -> str:
    """The address that a lock is of."""
    folder, _, name = str(lock).rpartition("/")
    return folder if name == DIRECTORY_LOCK else f"{folder}/{name.removeprefix('.').removesuffix('.lock')}"


def _acquire(lock: Address) -> Holder:
    """Make the lock this process's."""
    own = this_process()
    content = json.dumps(dataclasses.asdict(own)).encode()
    while not create(lock, content):
        holder = _read(lock)
        if holder is None:  # it ended meanwhile
            continue
        marks = _claim(lock, lock, holder, content, _store_time(lock, own))
        try:
            present = _read(lock)
            if marks and present is not None and present.token == holder.token:
                put_bytes(lock, content)
                return own
            marks = marks[-1:]
        finally:
            remove_objects(lock, [mark.key for mark in marks])
    return own


def _claim(lock: Address, where: Address, dead: Holder, content: bytes, now: float) -> list[Address]:
    """Objects that together let this process alone take over from a dead one; the last is its own. [] if it is late.

    Who takes over may die of it: then its own object is the one whose holder is looked at. Raises UserError where one
    of them is alive.
    """
    about = find_object(where)
    if about is None:
        return []
    if is_alive(dead, now - about.written):
        raise UserError(refusal(_what(lock), dead, now - about.written))
    mark = dataclasses.replace(lock, key=f"{lock.key}.{dead.token}.taken")
    if create(mark, content):
        return [mark]
    following = _read(mark)
    rest = _claim(lock, mark, following, content, now) if following else []
    return [mark, *rest] if rest else []


def _store_time(lock: Address, own: Holder) -> float:
    """What time the store has now, in seconds."""
    probe = dataclasses.replace(lock, key=f"{lock.key}.{own.token}.partial")
    put_bytes(probe, b"")
    about = find_object(probe)
    remove_objects(probe, [probe.key])
    return about.written if about else 0.0


def _keep(lock: Address, own: Holder, ended: threading.Event) -> None:
    """Write a lock anew until `ended`; where another machine has taken it over, end this process."""
    content = json.dumps(dataclasses.asdict(own)).encode()
    while not ended.wait(BEAT_SECONDS):
        with contextlib.suppress(UserError):  # the next beat may succeed
            holder = _read(lock)
            if ended.is_set():
                return
            if holder is not None and holder.token != own.token:
                end_now(2, f"{lock}: this machine was not heard of for too long, and {holder} has taken over")
            put_bytes(lock, content)


def _read(lock: Address) -> Holder | None:
    content = read_object(lock)
    return None if content is None else parse_holder(content[:4096], lock, hashlib.md5(content).hexdigest())
