"""Memory that keeps its pages, for both sides of a benchmark on a CPU.

By default glibc returns large arrays to the system, which clears each page when it is next written: a gradient of BERT
took a tenth to a quarter longer. glibc reads the setting when a process starts. `make demo` sets it too. An array above
64 MB that another thread than the first allocates is returned all the same, so programs run in the first one: else an
update of RN101 had a gigabyte of pages cleared.
"""

import os
import sys

KEEP_PAGES = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:"
    "glibc.malloc.trim_threshold=100000000000:glibc.malloc.top_pad=67108864"
)


def keep_pages(arguments: list[str]) -> None:
    """Start `medreport` again under `KEEP_PAGES`, unless the environment says something of malloc itself."""
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = KEEP_PAGES
        os.execv(sys.executable, [sys.executable, "-m", "launch.cli", *arguments])


def run_in_first_thread() -> None:
    """Let JAX run programs of one CPU in the thread that calls them. Call it before the first array is made."""
    import jax  # not before the process has started again

    jax.config.update("jax_cpu_enable_async_dispatch", False)
