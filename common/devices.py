"""Which platform JAX should look for, and the warning about idle devices."""

import os
import sys
from glob import glob

ACCELERATORS = ("/dev/accel*", "/dev/vfio/[0-9]*", "/dev/nvidia[0-9]*", "/dev/kfd")


def default_to_cpu() -> None:
    """Tell JAX to use the CPU where this machine has no accelerator and the user named no platform.

    Otherwise an installed TPU compiler (`medreport plan`) makes JAX search for a TPU, with pages of warnings.
    """
    if "JAX_PLATFORMS" in os.environ or any(glob(pattern) for pattern in ACCELERATORS):
        return
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_platforms", "cpu")


def say_devices(used: int = 1) -> None:
    """One line on standard error where a command leaves devices of this machine idle."""
    import jax

    if (there := jax.local_device_count()) > used:
        print(f"using {used} of {there} devices", file=sys.stderr, flush=True)
