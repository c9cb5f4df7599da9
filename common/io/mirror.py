"""Where the copies of a store's objects lie on this disk, and which address a copy has.

`gs://BUCKET/KEY` is `ROOT/gs/BUCKET/KEY`, so that a path tells its address. `common.io.stores` keeps them the same.
"""

import os
from pathlib import Path

VARIABLE = "MEDREPORT_STORE_CACHE"
SCHEMES = ("gs", "s3")


def mirror_root() -> Path:
    """The directory of all copies: `MEDREPORT_STORE_CACHE`, or one in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.path.realpath(os.environ.get(VARIABLE) or Path(cache) / "medreport" / "stores"))


def mirror_path(text: str) -> Path:
    """Where the copy of an address lies."""
    scheme, _, path = text.partition("://")
    return mirror_root() / scheme / path.strip("/")


def address_text(path: str | os.PathLike[str]) -> str | None:
    """The address of which a path is the copy; None for any other path."""
    own = os.path.abspath(path)
    for scheme in SCHEMES:
        inside = own.removeprefix(f"{mirror_root() / scheme}/")
        if inside != own:
            return f"{scheme}://{inside}"
    return None


def with_addresses(text: str) -> str:
    """A message in which copies are named by their addresses."""
    root = str(mirror_root())
    if root in text:
        for scheme in SCHEMES:
            text = text.replace(f"{root}/{scheme}/", f"{scheme}://")
    return text
