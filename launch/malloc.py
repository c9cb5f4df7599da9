"""A malloc that keeps its pages, for both sides of a benchmark on a CPU.

By default glibc returns large arrays to the system, which clears each page when it is next written: a gradient of BERT
took a tenth to a quarter longer. glibc reads the setting when a process starts. `make demo` sets it too.
"""

import os
import sys

KEEP_PAGES = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:"
    "glibc.malloc.trim_threshold=100000000000:glibc.malloc.top_pad=67108864"
)


def keep_pages(arguments: list[str]) -> None:
    """Start `python -m launch` again under `KEEP_PAGES`, unless the environment says something of malloc itself."""
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = KEEP_PAGES
        os.execv(sys.executable, [sys.executable, "-m", "launch", *arguments])
