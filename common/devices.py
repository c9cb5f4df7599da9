"""Which platform JAX should look for, the settings of GPUs, and the warning about idle devices."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from glob import glob
from pathlib import Path

GPUS = "/dev/nvidia[0-9]*"
ACCELERATORS = ("/dev/accel*", "/dev/vfio/[0-9]*", GPUS, "/dev/kfd")

GPU_MEMORY = "XLA_PYTHON_CLIENT_MEM_FRACTION"
GPU_MEMORY_FRACTION = 0.9  # JAX's own is 0.75; the rest is for CUDA, NCCL and the libraries' own workspaces
# What commands set on NVIDIA GPUs where the environment does not say otherwise.
GPU_SETTINGS = {
    GPU_MEMORY: str(GPU_MEMORY_FRACTION),
    # By default float32 products are rounded to TensorFloat-32, of 10 bits, which breaks parity with float32.
    "JAX_DEFAULT_MATMUL_PRECISION": "float32",
}
# XLA's flags, which `medreport plan` compiles with too.
GPU_FLAGS: dict[str, bool | int] = {
    "xla_gpu_enable_latency_hiding_scheduler": True,
    # Bytes: a layer of 7B in bfloat16 takes 0.47e9. Below that, under fsdp, each matrix is gathered by itself.
    "xla_gpu_all_gather_combine_threshold_bytes": 1 << 30,
    "xla_gpu_reduce_scatter_combine_threshold_bytes": 1 << 30,
    "xla_gpu_all_reduce_combine_threshold_bytes": 1 << 30,
}


def default_to_cpu() -> None:
    """Tell JAX to use the CPU where this machine has no accelerator and the user named no platform.

    Otherwise an installed TPU compiler (`medreport plan`) makes JAX search for a TPU, with pages of warnings.
    """
    if "JAX_PLATFORMS" in os.environ or any(glob(pattern) for pattern in ACCELERATORS):
        return
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_platforms", "cpu")


def set_gpu_defaults() -> None:
    """Put `GPU_SETTINGS` and `GPU_FLAGS` into the environment of a machine with NVIDIA GPUs; what is there stays.

    JAX reads the precision when it is imported and the others when it first looks for devices.
    """
    if not glob(GPUS) or os.environ.get("JAX_PLATFORMS", "cuda").split(",")[0] not in ("cuda", "gpu"):
        return
    for name, value in GPU_SETTINGS.items():
        os.environ.setdefault(name, value)
    given = os.environ.get("XLA_FLAGS", "")
    added = [f"--{name}={str(value).lower()}" for name, value in GPU_FLAGS.items() if f"--{name}" not in given]
    os.environ["XLA_FLAGS"] = " ".join([*given.split(), *added])
    if "jax" in sys.modules:
        precision = os.environ["JAX_DEFAULT_MATMUL_PRECISION"]
        sys.modules["jax"].config.update("jax_default_matmul_precision", precision)


@contextlib.contextmanager
def programs_kept(directory: Path) -> Iterator[None]:
    """Meanwhile accelerators' compiled programs are kept in `directory`, for the next start of a run and its hosts.

    Host 0 writes, all read. Where a user has named a directory (JAX_COMPILATION_CACHE_DIR), that one stays. What CPUs
    run is tied to the machine that compiled it and is not kept.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    if jax.config.values["jax_compilation_cache_dir"] or jax.default_backend() == "cpu":
        yield
        return

    def keep_in(path: str | None) -> None:
        jax.config.update("jax_compilation_cache_dir", path)
        compilation_cache.reset_cache()  # JAX decides at its first program whether there is a cache

    if jax.process_index() == 0:
        remove_torn(directory)
    keep_in(str(directory))
    try:
        yield
    finally:
        keep_in(None)


def remove_torn(directory: Path) -> None:
    """Remove programs that were not written whole, by a killed process or on a full disk: JAX never replaces them."""
    from jax._src.compilation_cache import decompress_executable  # how JAX stores them has no public name

    for file in directory.glob("*-cache"):
        try:
            decompress_executable(file.read_bytes())
        except Exception:  # zlib and zstandard raise types of their own, and either may be absent
            file.unlink(missing_ok=True)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether XLA reports that a device, or a program for it, ran out of memory."""
    return "RESOURCE_EXHAUSTED" in str(error)


def memory_shortage(message: str) -> str:
    """The beginning of an error line from XLA's message that a device ran out of memory."""
    named = re.search(r"\d[\d.,]* ?(?:[KMGT]i?B?\b|bytes)", message)
    wanted = f"{named[0] if named else 'XLA does not say how much'} requested"
    if share := os.environ.get(GPU_MEMORY):
        wanted += f", and {GPU_MEMORY}={share} of a GPU's memory may be used"
    return f"not enough memory ({wanted})"


def say_devices(used: int = 1) -> None:
    """One line on standard error where a command leaves devices of this machine idle."""
    import jax

    if (there := jax.local_device_count()) > used:
        print(f"using {used} of {there} devices", file=sys.stderr, flush=True)
