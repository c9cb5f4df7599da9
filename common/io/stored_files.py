"""Objects of a store that have no copy on this disk and are read in part: the files of tables.

Where the copy of such an object would lie (`common.io.mirror`) stands a note, a hidden file with its tag and size, so
that every process of this machine finds it by the path of the copy. The tag is the store's own: the generation in
Cloud Storage, the entity tag in S3. Every read asks for the content with that tag, so that all bytes that are read are
of one content, without a digest of all of them. An object whose listing has no such tag is copied.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import ChangedInput, UserError
from common.io.files import atomic_file
from common.io.mirror import address_text, mirror_path
from common.io.range_file import RangeFile
from common.io.store_objects import Address, Found, range_reader, split_address
from common.io.text import read_json_object

SUFFIXES = (".parquet", ".arrow")  # nothing but `common.io.table_files` reads such files
NOTE = ".object"
AHEAD_BYTES = 1 << 14  # read beyond what is asked for: small columns lie side by side


class StoredObject(NamedTuple):
    """An object as it was when the command began."""

    address: Address
    tag: str
    size: int


class StoredFile(RangeFile):
    """An object as a file, of which only what is read travels. Reading raises ChangedInput, also if the store fails."""

    def __init__(self, stored: StoredObject):
        from fsspec.caching import ReadAheadCache

        self._stored = stored
        self._failure: ChangedInput | None = None
        self._read: Callable[[int, int], bytes] | None = None
        super().__init__(stored.size, ReadAheadCache(AHEAD_BYTES, self._fetch, stored.size)._fetch)

    def __exit__(self, *raised: Any) -> None:
        """Close, and raise what made reading fail: of some reads pyarrow passes the words on, not the type."""
        super().__exit__(*raised)
        if raised[1] is not None and self._failure is not None:
            raise self._failure

    def _fetch(self, start: int, end: int) -> bytes:
        try:
            if self._read is None:
                self._read = range_reader(self._stored.address, self._stored.tag)
            content = self._read(start, end)
            if len(content) != end - start:
                raise UserError(f"{self._stored.address}: of {end - start} bytes {len(content)} came; try again")
        except UserError as error:
            self._failure = ChangedInput(str(error))
            raise self._failure from error
        return content


def stays_in_store(key: str, about: Found, scheme: str) -> bool:
    """Whether an object is read in part, and not copied."""
    known = about.tag.isdigit() if scheme == "gs" else about.tag  # by anything but a generation gs:// reads no content
    return bool(known) and key.lower().endswith(SUFFIXES)


def write_notes(address: Address, objects: Mapping[str, Found]) -> None:
    """Leave notes of these objects, and no others, at an address and below it."""
    own = mirror_path(str(address))
    wanted = {_note(mirror_path(f"{address.scheme}://{address.bucket}/{key}")): objects[key] for key in objects}
    for note in {_note(own), *(own.rglob(f".*{NOTE}") if own.is_dir() else ())} - wanted.keys():
        note.unlink(missing_ok=True)
    for note, about in wanted.items():
        note.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(note) as aside:
            aside.write_text(json.dumps({"tag": about.tag, "size": about.size}), encoding="utf-8")


def stored_object(file: Path) -> StoredObject | None:
    """The object of which a path would be the copy, where it is read in part; None for any other path."""
    address, note = address_text(file), _note(file)
    if address is None or not note.is_file():
        return None
    found = read_json_object(note)
    return StoredObject(split_address(address), str(found["tag"]), int(found["size"]))


def glob_files(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder that match, in order, those among them that stay in the store."""
    noted = (note.with_name(note.name[1 : -len(NOTE)]) for note in folder.glob(str(_note(Path(pattern)))))
    return sorted({*folder.glob(pattern), *noted})


def _note(file: Path) -> Path:
    return file.with_name(f".{file.name}{NOTE}")
