"""`medreport doctor [--preset NAME]`: what a run would find on this machine, what is wrong, and how to fix it.

Each line is `ok`, a `note` (something is missing that only some commands need) or a `problem`. The exit code is 1 if
there are problems. Nothing is compiled, downloaded or written.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import socket
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path
from typing import Literal, NamedTuple

import jax

from common import devices
from common.errors import Parser, UserError, did_you_mean
from common.io.terminal import printable
from common.metrics import meteor, meteor_java
from common.models.attention_choice import KERNELS
from common.process.hosts import VARIABLE, named_hosts
from launch.doctor_presets import PRESETS, preset_lines

PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "tokenizers", "sentencepiece",
    "tensorflow-datasets",
)  # fmt: skip
DRIVER = Path("/proc/driver/nvidia/version")
LEAST_DRIVER = {12: 525, 13: 580}  # the oldest NVIDIA driver of each major version of CUDA
LEAST_DISK = 20e9  # bytes; an exported 7B model takes 15
FEWEST_BYTES = 1e8  # of a disk: the small models alone need tens of MB
ANSWER_SECONDS = 2.0
LONGEST_TEXT = 500  # characters

Severity = Literal["ok", "note", "problem"]


class Line(NamedTuple):
    """A line of the output."""

    severity: Severity
    topic: str
    text: str


def main(arguments: Sequence[str]) -> int:
    """Print what is found. Returns 1 if there are problems, otherwise 0. Raises UserError for an unknown preset."""
    parser = Parser("medreport doctor", description=__doc__)
    parser.add_argument("--preset", help="also show what this preset would use here; one of " + ", ".join(PRESETS))
    parser.add_argument("--run-dir", type=Path, default=Path(), help="directory of the run (default: the current one)")
    options = parser.parse_args(list(arguments))
    if options.preset and options.preset not in PRESETS:
        nearest = did_you_mean(options.preset, PRESETS)
        raise UserError(f"--preset {options.preset}: unknown{nearest}; expected {', '.join(PRESETS)}")
    lines = list(examine(options.run_dir))
    if options.preset:
        lines += [Line(*found) for found in preset_lines(options.preset)]
    width = max(len(line.topic) for line in lines)
    for line in lines:
        print(f"{line.severity:7}  {line.topic:{width}}  {printable(line.text, LONGEST_TEXT)}")
    problems = sum(line.severity == "problem" for line in lines)
    print("no problems" if not problems else f"problems: {problems}")
    return int(problems > 0)


def examine(run_dir: Path) -> Iterator[Line]:
    """The lines that do not depend on a preset."""
    yield from versions()
    found = accelerators()
    yield from found
    if all(line.severity != "problem" for line in found):
        yield from memory()
        yield attention()
    yield disk(run_dir)
    yield from hosts()
    yield from meteors()
    yield from extras()


def versions() -> Iterator[Line]:
    """Python and the packages. jax and jaxlib must have the same version."""
    system = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield Line("ok", "system", system)
    found = {name: _version(name) for name in PACKAGES}
    shown = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    yield Line("ok", "packages", shown)
    if missing := [name for name, version in found.items() if not version]:
        yield Line("problem", "packages", f"{', '.join(missing)} not installed: pip install medreport-jax")
    if found["jax"] != found["jaxlib"]:
        versions_of = f"jax {found['jax']} and jaxlib {found['jaxlib']}"
        yield Line("problem", "packages", f"{versions_of} differ: pip install --upgrade jax jaxlib")


def accelerators() -> list[Line]:
    """The devices that JAX finds, compared with those of the machine."""
    there = [file for pattern in devices.ACCELERATORS for file in sorted(glob(pattern))]
    try:
        used = jax.local_devices()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        return [
            Line(
                "problem",
                "devices",
                f"JAX finds none: {reason}; end the process that holds them, or check JAX_PLATFORMS",
            )
        ]
    kinds = {kind: sum(one.device_kind == kind for one in used) for kind in sorted({one.device_kind for one in used})}
    shown = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    shown = f"{shown}, {os.cpu_count()} cores" if used[0].platform == "cpu" else shown
    if used[0].platform == "cpu" and there:
        named = os.environ.get("JAX_PLATFORMS")
        gpu = any(file.startswith(("/dev/nvidia", "/dev/kfd")) for file in there)
        extra = "cuda12 or cuda13" if gpu else "tpu"
        what = f"unset JAX_PLATFORMS={named}" if named else f"pip install 'medreport-jax[EXTRA]' with EXTRA {extra}"
        return [Line("problem", "devices", f"{shown}, although {there[0]} exists: {what}")]
    return [Line("ok", "devices", shown), *driver()]


def driver() -> Iterator[Line]:
    """NVIDIA's driver, which must be new enough for the CUDA that JAX was installed with."""
    if not DRIVER.is_file() or not (match := re.search(r"\s(\d+)\.[\d.]+\s", DRIVER.read_text())):
        return
    version = int(match[1])
    for cuda, least in LEAST_DRIVER.items():
        if _version(f"jax-cuda{cuda}-plugin"):
            shown = f"NVIDIA {match[0].strip()}, CUDA {cuda}"
            if version >= least:
                yield Line("ok", "driver", shown)
            else:
                yield Line(
                    "problem", "driver", f"{shown} needs driver {least} or newer: update it, or install another extra"
                )


def memory() -> Iterator[Line]:
    """The memory of a device and of the machine."""
    device = jax.local_devices()[0]
    if limit := (device.memory_stats() or {}).get("bytes_limit"):
        note = ""
        if device.platform == "gpu":
            note = f" ({devices.GPU_MEMORY}={os.environ.get(devices.GPU_MEMORY, '0.75')})"
        yield Line("ok", "memory", f"{limit / 1e9:.1f} GB of each device{note}")
    pages = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_AVPHYS_PAGES")
    total, free = (count * os.sysconf("SC_PAGE_SIZE") / 1e9 for count in pages)
    yield Line("ok", "memory", f"{total:.1f} GB of the machine, {free:.1f} GB free")


def attention() -> Line:
    """The fused attention kernel of this platform, which the language model uses where the shapes allow it."""
    kernel = KERNELS.get(jax.default_backend())
    if kernel is None:
        return Line("note", "attention", "xla: this platform has no fused kernel; suitable for tests and small runs")
    precision = os.environ.get("JAX_DEFAULT_MATMUL_PRECISION", "JAX's default")
    return Line("ok", "attention", f"{kernel}, in bfloat16; float32 products: {precision}")


def disk(run_dir: Path) -> Line:
    """The space for runs."""
    there = next(path for path in (run_dir.absolute(), *run_dir.absolute().parents) if path.exists())
    if not there.is_dir():
        return Line("problem", "disk", f"{there} is not a directory: choose another --run-dir")
    free = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK):
        return Line("problem", "disk", f"{there} is not writable: choose another --run-dir")
    if free >= LEAST_DISK:
        return Line("ok", "disk", f"{free / 1e9:.1f} GB free in {there}")
    severity: Severity = "note" if free >= FEWEST_BYTES else "problem"
    return Line(severity, "disk", f"{free / 1e9:.2f} GB free in {there}: make room, or choose another --run-dir")


def hosts() -> Iterator[Line]:
    """Whether host 0 can be reached, where the environment names hosts."""
    tasks = os.environ.get("SLURM_NTASKS", "1")
    if not os.environ.get(VARIABLE):
        if tasks not in ("", "1"):
            yield Line(
                "problem",
                "hosts",
                f"this is one of {tasks} Slurm tasks, which would run independently: set {VARIABLE}=auto",
            )
        return
    try:
        named = named_hosts()
    except UserError as error:
        yield Line("problem", "hosts", str(error))
        return
    if named is None:
        yield Line("ok", "hosts", f"{VARIABLE}=auto: JAX finds the others when a run starts")
        return
    where = f"{named.address}:{named.port}"
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(named.address.strip("[]"), named.port)}
    except OSError as error:
        yield Line("problem", "hosts", f"{where} cannot be resolved ({error.strerror}): check {VARIABLE}")
        return
    shown = f"host {named.number} of {named.count}; host 0 at {where} is {', '.join(sorted(map(str, addresses)))}"
    yield _coordinator(named.port, shown) if named.number == 0 else _reached(named.address, named.port, shown)


def _coordinator(port: int, shown: str) -> Line:
    try:
        with socket.create_server(("", port)):
            return Line("ok", "hosts", f"{shown}; the port is free")
    except OSError as error:
        return Line("problem", "hosts", f"{shown}; the port cannot be used ({error.strerror}): choose another")


def _reached(address: str, port: int, shown: str) -> Line:
    try:
        with socket.create_connection((address.strip("[]"), port), timeout=ANSWER_SECONDS):
            return Line("ok", "hosts", f"{shown}, and answers")
    except ConnectionRefusedError:
        return Line("ok", "hosts", f"{shown}, and can be reached; nothing listens there yet")
    except OSError as error:
        reason = error.strerror or "no answer"
        return Line("problem", "hosts", f"{shown}, and cannot be reached ({reason}): open the port between the hosts")


def meteors() -> Iterator[Line]:
    """WordNet, which nltk's METEOR needs, and the Java program of METEOR 1.5."""
    absence = meteor.absence()
    yield Line("note" if absence else "ok", "WordNet", absence or "found; nltk/METEOR can be computed")
    absence = meteor_java.absence()
    yield Line("note" if absence else "ok", "METEOR 1.5", absence or "found; coco/METEOR is computed for English")


def extras() -> Iterator[Line]:
    """Packages that some commands need."""
    needed = {
        "gcsfs": ("stores", "addresses such as gs://BUCKET/KEY"),
        "openai": ("endpoint", "models behind an endpoint"),
        "libtpu": ("plan", "medreport plan --topology v5e:2x4"),
        "wandb": ("wandb", "--wandb-project"),
        "pydicom": ("dicom", "images in DICOM files"),
        "presidio_analyzer": ("deid", "a check of reports for names, dates and numbers of patients"),
        "starlette": ("app", "medreport app"),
    }
    for module, (extra, purpose) in needed.items():
        if importlib.util.find_spec(module) is None:
            yield Line("note", extra, f"not installed; for {purpose}: pip install 'medreport-jax[{extra}]'")


def _version(package: str) -> str:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return ""
