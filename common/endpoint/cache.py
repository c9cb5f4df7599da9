"""Answers stored by content hash in one SQLite file, so that nothing is requested, or paid for, twice.

Each answer is committed before it is used. The file contains patient text and is readable by its owner only.
"""

import contextlib
import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from common.endpoint.protocol import Answer
from common.errors import UserError
from common.io.inputs import reason
from common.io.outputs import check_output
from common.io.text import parse_json

APPLICATION = 0x4D_52_4A_41  # SQLite's application_id: what tells this cache from another program's database
BUSY_SECONDS = 30.0  # for another process to finish writing
_FIELDS = ("text", "finish", "input_tokens", "output_tokens")


class AnswerCache:
    """An open cache. Any thread may use it; several processes may hold one file open."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._lock = threading.Lock()

    def get(self, key: str) -> Answer | None:
        """The answer kept under `key`. Raises UserError where the file is damaged."""
        with self._lock, _errors(self.path):
            query = "SELECT answer, digest FROM answers WHERE key = ?"
            row = self._connection.execute(query, (key,)).fetchone()
        if row is None:
            return None
        kept, digest = row
        if digest != _digest(key, kept):  # SQLite does not see a changed letter
            raise _damaged(self.path, "an answer is not as it was written")
        values = parse_json(kept, self.path)
        return Answer(**{name: values[name] for name in _FIELDS}, cached=True)

    def put(self, key: str, answer: Answer) -> Answer:
        """Keep an answer, on the disk when this returns. Returns the one that is kept: the first, of several."""
        kept = json.dumps({name: getattr(answer, name) for name in _FIELDS}, ensure_ascii=False)
        with self._lock, _errors(self.path):
            query = "INSERT OR IGNORE INTO answers VALUES (?, ?, ?)"
            new = self._connection.execute(query, (key, kept, _digest(key, kept))).rowcount
        return answer if new else replace(self.get(key) or answer, cached=False)

    def close(self) -> None:
        """Close the file; what another thread is writing is finished."""
        with self._lock:
            self._connection.close()


@contextlib.contextmanager
def open_cache(path: Path) -> Iterator[AnswerCache]:
    """The cache in a file, which is made where there is none. Raises UserError, also for another kind of file."""
    check_output(path)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be made readable by you alone ({reason(error)}); choose another file"
        ) from error
    with _errors(path):
        connection = _connect(path)
    cache = AnswerCache(path, connection)
    try:
        yield cache
    finally:
        cache.close()


def _connect(path: Path) -> sqlite3.Connection:
    """A connection that commits each statement by itself, to a file that is whole and ours."""
    connection = sqlite3.connect(path.absolute(), timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("BEGIN IMMEDIATE")  # of two processes one makes the table
        (owner,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if owner != APPLICATION and tables:
            raise UserError(f"{path}: is another program's database; choose another file for the cache of answers")
        connection.execute(f"PRAGMA application_id = {APPLICATION}")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS answers "
            "(key TEXT PRIMARY KEY, answer TEXT NOT NULL, digest TEXT NOT NULL) WITHOUT ROWID"
        )
        connection.execute("COMMIT")
        (state,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if state != "ok":
            raise _damaged(path, "its pages do not fit together")
    except BaseException:
        connection.close()
        raise
    return connection


def _digest(key: str, kept: str) -> str:
    return hashlib.sha256(f"{key} {kept}".encode()).hexdigest()


@contextlib.contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise UserError(f"{path}: the cache of answers cannot be used ({error}); its content is kept") from error
    except sqlite3.DatabaseError as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, why: str) -> UserError:
    return UserError(
        f"{path}: is damaged or not a cache of answers ({why}); move it away, or name another "
        "file; its answers will be requested again"
    )
