"""The hardware and software of a run, for the head of its page."""

from datetime import UTC, datetime
from importlib.metadata import version

import jax


def environment() -> dict[str, str]:
    """Devices, versions of the libraries that decide numbers, and the date."""
    devices = jax.devices()
    libraries = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "optax", "medreport-jax"))
    return {
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "libraries": libraries,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
