"""Objects of a store, by their addresses (`gs://BUCKET/KEY`, `s3://BUCKET/KEY`): list, read, write, remove.

Through fsspec, whose packages for the two stores are the extra `stores`. They find credentials as the clouds' own tools
do, repeat what fails for a while, and give up on a store that does not answer. Whatever is wrong is one UserError.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from common.errors import ChangedInput, UserError
from common.io.terminal import printable

ADDRESS = re.compile(r"(?P<scheme>gs|s3)://(?P<bucket>[A-Za-z0-9][A-Za-z0-9._-]{2,220})/*(?P<key>.*)", re.DOTALL)
OTHER_STORE = re.compile(r"(?:s3a|s3n|az|abfs|abfss|hdfs|gcs|file|(?=[A-Z])[GgSs][Ss3])://")
FEW_SLASHES = re.compile(r"(?:gs|s3):(?!//)\S*/\S*")  # a slip, and otherwise a folder of that name
PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}
INSTALL = "pip install 'medreport-jax[stores]'"
CONNECT_SECONDS, ANSWER_SECONDS = 10, 30  # after which a request is repeated, by the packages up to 6 times


@dataclasses.dataclass(frozen=True)
class Address:
    """Where an object, or all objects below it, lie. `key` has no slash at its ends."""

    scheme: str
    bucket: str
    key: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}"

    @property
    def path(self) -> str:
        """As fsspec names it."""
        return f"{self.bucket}/{self.key}" if self.key else self.bucket

    def __truediv__(self, name: str) -> "Address":
        return dataclasses.replace(self, key=f"{self.key}/{name}" if self.key else name)


@dataclasses.dataclass(frozen=True)
class Found:
    """An object in a listing: another `tag` is another content; `written` is in seconds, by the store's clock."""

    tag: str
    size: int
    written: float


def parse_address(text: str) -> Address | None:
    """The address that a word is; None for a path. Raises UserError for one that cannot be used."""
    if OTHER_STORE.match(text):
        scheme = text.partition("//")[0]
        expected = "a path" if scheme == "file:" else "gs://BUCKET/KEY or s3://BUCKET/KEY"
        raise UserError(f"{printable(text)}: {scheme}// is not supported; expected {expected}")
    if FEW_SLASHES.fullmatch(text):
        raise UserError(f"{printable(text)}: expected two slashes after the colon, {text[:3]}//BUCKET/KEY")
    if not text.startswith(("gs://", "s3://")):
        return None
    address = split_address(text)
    if not address.key:
        raise UserError(f"{printable(text)}: expected the address of something in a bucket, {text[:5]}BUCKET/KEY")
    if not is_plain(address.key):
        raise UserError(f"{printable(text)}: has an empty, hidden or relative part; give another address")
    return address


def split_address(text: str) -> Address:
    """The parts of an address. Raises UserError for what cannot be the name of a bucket."""
    found = ADDRESS.fullmatch(text)
    if found is None:
        raise UserError(
            f"{printable(text)}: expected the address of something in a bucket, {text[:5]}BUCKET/KEY, with a name of "
            "three letters or more"
        )
    return Address(found["scheme"], found["bucket"], found["key"].rstrip("/"))


def is_plain(key: str) -> bool:
    """Whether a key, as a path below a directory, stays below it; names that begin with a dot are nobody's data."""
    return key.isprintable() and not any(part == "" or part.startswith(".") for part in key.split("/"))


def list_objects(address: Address) -> dict[str, Found]:
    """What lies at the address, below it, and beside it under its name and a dot (`OUTPUT.config.json`), by key."""
    folder, _, name = address.path.rpartition("/")
    with _store_errors(address):
        system = file_system(address.scheme)
        system.invalidate_cache()
        listed: dict[str, Mapping[str, Any]] = system.find(address.path, detail=True)
        listed |= system.find(folder, prefix=f"{name}.", detail=True)
    return {
        path.partition("/")[2]: _found(about)
        for path, about in listed.items()
        if about.get("type") == "file" and not path.endswith("/")
    }


def find_object(address: Address) -> Found | None:
    """What lies at the address itself; None where nothing does."""
    with _store_errors(address):
        system = file_system(address.scheme)
        system.invalidate_cache()
        try:
            return _found(system.info(address.path))
        except FileNotFoundError:
            return None


def get_files(bucket: Address, files: Mapping[str, Path]) -> None:
    """Read the objects with these keys into files, several at a time."""
    with _store_errors(bucket):
        system = file_system(bucket.scheme)
        system.get([f"{bucket.bucket}/{key}" for key in files], [str(file) for file in files.values()])


def range_reader(address: Address, tag: str) -> Callable[[int, int], bytes]:
    """A function that reads a range (first byte, end) of an object. ChangedInput where it has another tag by now."""
    changed = f"{address}: has changed since the command began to read it; leave it as it is, and start again"
    with _store_errors(address):
        system = file_system(address.scheme)
        if address.scheme == "gs":

            def read(start: int, end: int) -> bytes:
                with _store_errors(address):
                    try:
                        return bytes(system.cat_file(address.path, start=start, end=end, generation=tag))
                    except FileNotFoundError as error:  # there is no such generation any more
                        raise ChangedInput(changed) from error

            return read
        from s3fs.utils import FileExpired

        try:
            opened = system.open(address.path, cache_type="none")  # whose reads ask for the tag that it has now
        except FileNotFoundError as error:
            raise ChangedInput(changed) from error
        if _found(opened.details).tag != tag:
            raise ChangedInput(changed)

    def read_opened(start: int, end: int) -> bytes:
        with _store_errors(address):
            try:
                opened.seek(start)
                return bytes(opened.read(end - start))
            except (FileExpired, FileNotFoundError) as error:
                raise ChangedInput(changed) from error

    return read_opened


def put_file(address: Address, file: Path) -> Found:
    """Write an object from a file; it is there whole or not at all."""
    with _store_errors(address):
        system = file_system(address.scheme)
        system.put_file(str(file), address.path)
        system.invalidate_cache()
        return _found(system.info(address.path))


def put_bytes(address: Address, content: bytes) -> None:
    """Write a small object."""
    with _store_errors(address):
        file_system(address.scheme).pipe_file(address.path, content)


def create(address: Address, content: bytes) -> bool:
    """Write a small object where there is none; False where there is one. Of several who try, one succeeds."""
    with _store_errors(address):
        try:
            file_system(address.scheme).pipe_file(address.path, content, mode="create")
        except (FileExistsError, OSError) as error:
            if not (isinstance(error, FileExistsError) or _is_precondition(error)):
                raise
            return False
        return True


def read_object(address: Address) -> bytes | None:
    """The content of a small object; None where there is none."""
    with _store_errors(address):
        try:
            return bytes(file_system(address.scheme).cat_file(address.path))
        except FileNotFoundError:
            return None


def remove_objects(bucket: Address, keys: Sequence[str]) -> None:
    """Remove objects; those that are gone already do not matter."""
    with _store_errors(bucket):
        system = file_system(bucket.scheme)
        for key in keys:
            with contextlib.suppress(FileNotFoundError):
                system.rm_file(f"{bucket.bucket}/{key}")


def _found(about: Mapping[str, Any]) -> Found:
    tag = about.get("generation") or about.get("ETag") or about.get("etag") or ""
    written: Any = about.get("LastModified") or about.get("mtime")
    if isinstance(written, str):
        written = datetime.fromisoformat(written)
    return Found(str(tag).strip('"'), int(about.get("size") or 0), written.timestamp() if written else 0.0)


def _is_precondition(error: Exception) -> bool:
    return "PreconditionFailed" in repr(error) or "412" in str(error) or "conditionNotMet" in repr(error)


@functools.cache
def file_system(scheme: str) -> Any:
    """fsspec's file system, with settings that Orbax's own has too. Raises UserError where its package is missing."""
    package = PACKAGES[scheme]
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{scheme}://: needs the package {package}; {INSTALL}")
    import fsspec

    for name in ("gcsfs", "s3fs", "aiobotocore", "botocore"):  # which log with a stack what they also raise
        logging.getLogger(name).setLevel(logging.CRITICAL)
    own: dict[str, Any] = {"use_listings_cache": False}  # other hosts write there too
    if scheme == "s3":
        waits = {"connect_timeout": CONNECT_SECONDS, "read_timeout": ANSWER_SECONDS}
        own["config_kwargs"] = {**waits, "retries": {"max_attempts": 1}}
    else:
        # Otherwise each bucket is first asked for a kind that needs further permissions, and each answer is logged.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        from aiohttp import ClientTimeout

        own["requests_timeout"] = ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=ANSWER_SECONDS)
    fsspec.config.conf[scheme] = own
    return fsspec.filesystem(scheme)


@contextlib.contextmanager
def _store_errors(address: Address) -> Iterator[None]:
    """Turn what a store's packages raise into one line: they, and the clouds' libraries below, have no common type."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{address}: there is no such bucket or object") from error
    except PermissionError as error:
        raise UserError(f"{address}: access is denied ({_reason(error)}); check the credentials") from error
    except Exception as error:  # types of botocore, aiohttp and google.auth, which share no base and may be absent
        raise UserError(f"{address}: the store failed ({_reason(error)}); try again") from error


def _reason(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return printable(" ".join(text.split()))
