"""Addresses of stores (`gs://`, `s3://`) in the place of paths, in every command.

A command works on copies on this disk (`common.io.mirror`). What lies at an address is copied here before the command
begins; what the command writes below it is written to the store every `PUSH_SECONDS`, where a caller asks for it, and
when the command ends, however it does. Appending, renaming and locking need a disk, and stores offer none of them.

The files of tables have no copy: `common.io.table_files` reads of them what it needs (`common.io.stored_files`).

Of a run, the logs reach the store before the checkpoint that they belong to, and a checkpoint of `s3://` file by file,
with the one that makes it whole last. Those of `gs://` are written and read there by Orbax itself, by each host its own
part, and have no copy.

Of what differs, the store is right where somebody else has written to it since; otherwise what this disk has is newer,
such as the rows of a command that was killed before it could write them there.
"""

import contextlib
import dataclasses
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.io.files import atomic_file
from common.io.lock_holder import writer_of
from common.io.mirror import VARIABLE, mirror_path, mirror_root
from common.io.store_objects import (
    Address,
    Found,
    get_files,
    is_plain,
    list_objects,
    parse_address,
    put_file,
    remove_objects,
)
from common.io.stored_files import stays_in_store, write_notes
from common.io.text import read_json_object
from common.process.first import is_first_process
from common.process.stopping import held

PUSH_SECONDS = 30.0
AT_ONCE = 64  # objects that are asked for together
ROOM_BYTES = 100_000_000  # that stay free on the disk of the copies
SAY_BYTES = 100_000_000  # from which on it is said that objects are copied
CHECKPOINT = re.compile(r"(?P<step>(?:.*/)?checkpoints/(?:latest|best)/\d+)/.+", re.DOTALL)
ORBAX = re.compile(r"(?:.*/)?checkpoints/(?:latest|best)/.+", re.DOTALL)  # also what is being written
WHOLE = "_CHECKPOINT_METADATA"  # of a checkpoint: the last to be written and the first to be removed


@dataclasses.dataclass
class _Staged:
    """An address, and of each key that this disk and the store have the same: the tag, and the copy's size and time."""

    address: Address
    known: dict[str, list[Any]]

    def is_same(self, key: str, file: Path) -> bool:
        """Whether a copy is as it was when it was the same as the object."""
        return self.known.get(key, [])[1:] == _state(file)

    def note(self, key: str, file: Path, found: Found, state: list[int]) -> None:
        """Record that an object is a file as it was in this state."""
        if _state(file) == state:
            written = round(found.written * 1e9)
            os.utime(file, ns=(written, written))  # all who copy an object see the same time
            state = [state[0], written]
        self.known[key] = [found.tag, *state]


_staged: dict[Address, _Staged] = {}  # of this command
_pushing = threading.Lock()


@contextlib.contextmanager
def staging(arguments: Sequence[str]) -> Iterator[list[str]]:
    """The arguments of a command, with copies in the place of addresses up to `--`. Raises UserError.

    At the end what was written is in the store. Where that fails, it stays here, and the next command writes it there.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    ended, failed = threading.Event(), False
    try:
        words = [*map(_copied, arguments[:end]), *arguments[end:]]
        if _staged:
            threading.Thread(target=_push_regularly, args=(ended,), daemon=True).start()
        yield words
    except BaseException:
        failed = True
        raise
    finally:
        ended.set()
        try:
            _push_at_end(failed)
        finally:
            _staged.clear()


def stage(text: str) -> str:
    """The path of an address's copy, made now unless this command has it; other text as it is. Raises UserError."""
    address = parse_address(text)
    if address is None:
        return text
    if not any(f"{address}/".startswith(f"{known}/") for known in _staged):
        _fetch(address)
    return str(mirror_path(str(address)))


def publish() -> None:
    """Write to the store what has changed here, apart from checkpoints, which follow. Raises UserError."""
    if _staged and is_first_process():
        _push(checkpoints=False)


def refetch(within: str = "") -> None:
    """Copy what another host has written since, of all addresses or of the one that `within` lies in. UserError."""
    for address in list(_staged):
        if not within or f"{within}/".startswith(f"{address}/"):
            _fetch(address)


def _copied(word: str) -> str:
    """A word of a command line, also `--option=ADDRESS`."""
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return f"{option}{equals}{stage(value)}"


def _fetch(address: Address) -> None:
    """Make the copy of an address the same as the store, but for what is newer here."""
    index = _index(address)
    try:
        mirror_root().parent.mkdir(parents=True, exist_ok=True)
        mirror_root().mkdir(mode=0o700, exist_ok=True)  # copies may hold reports
        index.parent.mkdir(exist_ok=True)
        mirror_path(str(address)).parent.mkdir(parents=True, exist_ok=True)  # in a store, every folder exists
        with index.with_suffix(".lock").open("w") as alone:
            fcntl.flock(alone, fcntl.LOCK_EX)  # one process of this machine copies, the others find it done
            staged = _Staged(address, read_json_object(index)["known"] if index.exists() else {})
            if writer_of(mirror_path(str(address))) is None:  # or the copy is what another command is writing
                _make_same(staged, _whole(address, list_objects(address)))
            _staged[address] = staged
            _save(staged)
    except OSError as error:
        name = error.filename or mirror_root()
        raise UserError(f"{address}: cannot be copied to {name} ({error.strerror}); set {VARIABLE}") from error


def _make_same(staged: _Staged, found: Mapping[str, Found]) -> None:
    address, here = staged.address, _files(staged.address)
    in_store = {
        key: about
        for key, about in found.items()
        if stays_in_store(key, about, address.scheme) and (key not in here or staged.is_same(key, here[key]))
    }
    write_notes(address, in_store)
    for key in in_store:
        if staged.known.pop(key, None) and key in here:  # a copy of an earlier version of this package
            here.pop(key).unlink()
    found = {key: about for key, about in found.items() if key not in in_store}
    if {key: about.tag for key, about in found.items()} != {key: about[0] for key, about in staged.known.items()}:
        # Somebody else has written there, or removed it.
        for key in here.keys() - found.keys():
            _remove(here[key], address)
        same = {key for key, about in found.items() if about.tag == staged.known.get(key, [""])[0]}
        wanted = {key for key in found if key not in same or not staged.is_same(key, _file(address, key))}
        staged.known = {key: staged.known[key] for key in same}
    else:
        wanted = found.keys() - here.keys()
    size = sum(found[key].size for key in wanted)
    free = shutil.disk_usage(mirror_root()).free
    if size > free - ROOM_BYTES:
        raise UserError(
            f"{address}: is {size / 1e9:.1f} GB, and {mirror_root()} has {free / 1e9:.1f} GB free; set {VARIABLE} to a "
            "folder on a larger disk, or mount the bucket"
        )
    if size > SAY_BYTES and is_first_process():
        print(f"copying {len(wanted):,} files, {size / 1e9:.1f} GB, from {address}", file=sys.stderr, flush=True)
    ordered = sorted(wanted)
    for start in range(0, len(ordered), AT_ONCE):
        _copy(staged, {key: found[key] for key in ordered[start : start + AT_ONCE]})


def _copy(staged: _Staged, found: Mapping[str, Found]) -> None:
    """Read these objects into files, each whole or not at all."""
    with contextlib.ExitStack() as block:
        aside: dict[str, Path] = {}
        for key in found:
            file = _file(staged.address, key)
            file.parent.mkdir(parents=True, exist_ok=True)
            aside[key] = block.enter_context(atomic_file(file))
        get_files(staged.address, aside)
    for key, about in found.items():
        file = _file(staged.address, key)
        staged.note(key, file, about, _state(file))


def _push(checkpoints: bool) -> None:
    with _pushing:
        for staged in list(_staged.values()):
            _push_files(staged, checkpoints)


def _push_files(staged: _Staged, checkpoints: bool) -> None:
    """Write what has changed to the store: logs before the checkpoints that were there when their listing began."""
    changed: list[tuple[str, Path]] = []
    steps: dict[str, dict[str, Path]] = {}
    for key, file in _files(staged.address).items():
        if step := CHECKPOINT.fullmatch(key):
            steps.setdefault(step["step"], {})[key] = file
        elif not ORBAX.fullmatch(key) and not staged.is_same(key, file):
            changed.append((key, file))
    before = dict(staged.known)
    try:
        for key, file in sorted(changed, key=lambda item: _state(item[1])[1:]):
            _put(staged, key, file)
        if checkpoints:
            _push_checkpoints(staged, steps)
    finally:
        if staged.known != before:
            _save(staged)


def _push_checkpoints(staged: _Staged, steps: Mapping[str, Mapping[str, Path]]) -> None:
    for step, files in steps.items():
        mark = f"{step}/{WHOLE}"
        if mark not in files or staged.is_same(mark, files[mark]):
            continue
        if all(_put(staged, key, file) for key, file in files.items() if key != mark):
            _put(staged, mark, files[mark])
    known = {found["step"] for key in staged.known if (found := CHECKPOINT.fullmatch(key))}
    for step in known - steps.keys():
        # Orbax has removed it here. Where the whole folder is gone, somebody has cleared the disk.
        if any(other.rpartition("/")[0] == step.rpartition("/")[0] for other in steps):
            mark = f"{step}/{WHOLE}"
            keys = [mark, *(key for key in staged.known if key.startswith(f"{step}/") and key != mark)]
            remove_objects(staged.address, keys)
            for key in keys:
                staged.known.pop(key, None)


def _put(staged: _Staged, key: str, file: Path) -> bool:
    """Write an object; False where the file is no longer there."""
    state = _state(file)
    try:
        found = put_file(dataclasses.replace(staged.address, key=key), file)
    except UserError:
        if file.exists():
            raise
        return False
    staged.note(key, file, found, state)
    return True


def _push_regularly(ended: threading.Event) -> None:
    failing = False
    while not ended.wait(PUSH_SECONDS):
        try:
            if is_first_process():
                _push(checkpoints=True)
            failing = False
        except (UserError, OSError) as error:
            if not failing and not ended.is_set():
                print(f"warning: {error}; the command goes on", file=sys.stderr, flush=True)
            failing = True


def _push_at_end(failed: bool) -> None:
    """Raises UserError where it fails, unless the command has `failed` anyway, whose own line is the last."""
    if not _staged or not is_first_process():
        return
    try:
        with held("the store"):
            _push(checkpoints=True)
    except (UserError, OSError) as error:
        kept = f"{error}; what is not there yet is kept on this machine: start the same command again"
        if not failed:
            raise UserError(kept) from error
        print(f"warning: {kept}", file=sys.stderr, flush=True)


def _whole(address: Address, found: Mapping[str, Found]) -> dict[str, Found]:
    """What of a listing is copied: names that can be files here, and of checkpoints those that are whole."""

    def is_copied(key: str) -> bool:
        if not is_plain(key) or (not _is_below(address, key) and "/" in key.removeprefix(address.key)):
            return False
        if not ORBAX.fullmatch(key):
            return True
        step = CHECKPOINT.fullmatch(key)
        return address.scheme == "s3" and step is not None and f"{step['step']}/{WHOLE}" in found

    return {key: about for key, about in found.items() if is_copied(key)}


def _files(address: Address) -> dict[str, Path]:
    """The files here that belong to an address, by key: itself, below it, and beside it under its name and a dot."""
    own = mirror_path(str(address))
    beside = own.parent.glob(f"{glob.escape(own.name)}.*") if own.parent.is_dir() else ()
    files = [own] if own.is_file() else [*own.rglob("*")]
    keys = {address.key + str(file).removeprefix(str(own)): file for file in [*files, *beside] if file.is_file()}
    return {
        key: file
        for key, file in keys.items()
        if is_plain(key) and not (address.scheme == "gs" and ORBAX.fullmatch(key))
    }


def _is_below(address: Address, key: str) -> bool:
    return key == address.key or key.startswith(f"{address.key}/")


def _file(address: Address, key: str) -> Path:
    return mirror_path(str(dataclasses.replace(address, key=key)))


def _remove(file: Path, address: Address) -> None:
    """Remove a copy, and the folders of the address that are empty without it."""
    file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty
        for folder in file.parents:
            if not _is_below(address, str(folder.relative_to(mirror_path(f"{address.scheme}://{address.bucket}")))):
                break
            folder.rmdir()


def _state(file: Path) -> list[int]:
    """Size and time of a file; [] where there is none."""
    try:
        about = file.stat()
    except FileNotFoundError:
        return []
    return [about.st_size, about.st_mtime_ns]


def _save(staged: _Staged) -> None:
    index = _index(staged.address)
    with atomic_file(index) as aside:
        aside.write_text(json.dumps({"address": str(staged.address), "known": staged.known}), encoding="utf-8")


def _index(address: Address) -> Path:
    return mirror_root() / ".known" / f"{hashlib.sha256(str(address).encode()).hexdigest()[:32]}.json"
