"""`medreport doctor [--preset NAME]`: what this machine offers to a run, what is wrong with it, and what to do.

A line is `ok`, a `note` (something is absent that only some work needs), or a `problem`. With problems the exit code
is 1. Nothing is compiled, downloaded or written.
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
from common.metrics import meteor
from common.models.attention_choice import KERNELS
from common.process.hosts import VARIABLE, named_hosts
from launch.doctor_presets import PRESETS, preset_findings

PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "tokenizers", "sentencepiece",
    "tensorflow-datasets",
)  # fmt: skip
DRIVER = Path("/proc/driver/nvidia/version")
LEAST_DRIVER = {12: 525, 13: 580}  # of NVIDIA, for each major version of CUDA
LEAST_DISK = 20e9  # bytes; an exported 7B model takes 15
ANSWER_SECONDS = 2.0
LONGEST_TEXT = 500  # characters

Severity = Literal["ok", "note", "problem"]


class Finding(NamedTuple):
    """A line of the screen."""

    severity: Severity
    topic: str
    text: str


def main(arguments: Sequence[str]) -> int:
    """Print what is found; 1 where something is wrong. Raises UserError for a preset that does not exist."""
    parser = Parser("medreport doctor", description=__doc__)
    parser.add_argument("--preset", help="what it would use here; one of " + ", ".join(PRESETS))
    parser.add_argument("--run-dir", type=Path, default=Path(), help="where runs are to be written (here)")
    options = parser.parse_args(list(arguments))
    if options.preset and options.preset not in PRESETS:
        nearest = did_you_mean(options.preset, PRESETS)
        raise UserError(f"--preset {options.preset}: unknown{nearest}; expected {', '.join(PRESETS)}")
    findings = list(examine(options.run_dir))
    if options.preset:
        findings += [Finding(*found) for found in preset_findings(options.preset)]
    width = max(len(finding.topic) for finding in findings)
    for finding in findings:
        print(f"{finding.severity:7}  {finding.topic:{width}}  {printable(finding.text, LONGEST_TEXT)}")
    problems = sum(finding.severity == "problem" for finding in findings)
    print("no problems" if not problems else f"problems: {problems}")
    return int(problems > 0)


def examine(run_dir: Path) -> Iterator[Finding]:
    """All that does not depend on a preset."""
    yield from versions()
    found = accelerators()
    yield from found
    if all(finding.severity != "problem" for finding in found):
        yield from memory()
        yield attention()
    yield disk(run_dir)
    yield from hosts()
    yield wordnet()
    yield from extras()


def versions() -> Iterator[Finding]:
    """Python and the packages; JAX and its library must be of one version."""
    system = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield Finding("ok", "system", system)
    found = {name: _version(name) for name in PACKAGES}
    shown = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    yield Finding("ok", "packages", shown)
    if missing := [name for name, version in found.items() if not version]:
        yield Finding("problem", "packages", f"{', '.join(missing)} not installed: pip install medreport-jax")
    if found["jax"] != found["jaxlib"]:
        versions_of = f"jax {found['jax']} and jaxlib {found['jaxlib']}"
        yield Finding("problem", "packages", f"{versions_of} differ: pip install --upgrade jax jaxlib")


def accelerators() -> list[Finding]:
    """The devices that JAX finds, beside those that the machine has."""
    there = [file for pattern in devices.ACCELERATORS for file in sorted(glob(pattern))]
    try:
        used = jax.local_devices()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        return [Finding("problem", "devices", f"JAX finds none: {reason}; end what holds them, or see JAX_PLATFORMS")]
    kinds = {kind: sum(one.device_kind == kind for one in used) for kind in sorted({one.device_kind for one in used})}
    shown = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    shown = f"{shown}, {os.cpu_count()} cores" if used[0].platform == "cpu" else shown
    if used[0].platform == "cpu" and there:
        named = os.environ.get("JAX_PLATFORMS")
        gpu = any(file.startswith(("/dev/nvidia", "/dev/kfd")) for file in there)
        extra = "cuda12 or cuda13" if gpu else "tpu"
        what = f"unset JAX_PLATFORMS={named}" if named else f"pip install 'medreport-jax[EXTRA]' with EXTRA {extra}"
        return [Finding("problem", "devices", f"{shown}, though there is {there[0]}: {what}")]
    return [Finding("ok", "devices", shown), *driver()]


def driver() -> Iterator[Finding]:
    """NVIDIA's driver, which must be new enough for the CUDA that JAX was installed with."""
    if not DRIVER.is_file() or not (match := re.search(r"\s(\d+)\.[\d.]+\s", DRIVER.read_text())):
        return
    version = int(match[1])
    for cuda, least in LEAST_DRIVER.items():
        if _version(f"jax-cuda{cuda}-plugin"):
            shown = f"NVIDIA {match[0].strip()}, CUDA {cuda}"
            if version >= least:
                yield Finding("ok", "driver", shown)
            else:
                yield Finding("problem", "driver", f"{shown} needs {least} or newer: update it, or use another extra")


def memory() -> Iterator[Finding]:
    """Of a device and of the machine."""
    device = jax.local_devices()[0]
    if limit := (device.memory_stats() or {}).get("bytes_limit"):
        note = ""
        if device.platform == "gpu":
            note = f" ({devices.GPU_MEMORY}={os.environ.get(devices.GPU_MEMORY, '0.75')})"
        yield Finding("ok", "memory", f"{limit / 1e9:.1f} GB of each device{note}")
    pages = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_AVPHYS_PAGES")
    total, free = (count * os.sysconf("SC_PAGE_SIZE") / 1e9 for count in pages)
    yield Finding("ok", "memory", f"{total:.1f} GB of the machine, {free:.1f} GB free")


def attention() -> Finding:
    """The fused kernel that a decoder's rows use, where their shapes allow it."""
    kernel = KERNELS.get(jax.default_backend())
    if kernel is None:
        return Finding("note", "attention", "xla: this platform has no fused kernel; meant for tests and small runs")
    precision = os.environ.get("JAX_DEFAULT_MATMUL_PRECISION", "JAX's default")
    return Finding("ok", "attention", f"{kernel}, in bfloat16; float32 products: {precision}")


def disk(run_dir: Path) -> Finding:
    """The space for runs."""
    there = next(path for path in (run_dir.absolute(), *run_dir.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK):
        return Finding("problem", "disk", f"{there} cannot be written: name another --run-dir")
    severity: Severity = "ok" if free >= LEAST_DISK else "note"
    return Finding(severity, "disk", f"{free / 1e9:.1f} GB free in {there}")


def hosts() -> Iterator[Finding]:
    """Whether the other hosts can be reached, where the environment names some."""
    tasks = os.environ.get("SLURM_NTASKS", "1")
    if not os.environ.get(VARIABLE):
        if tasks not in ("", "1"):
            yield Finding("problem", "hosts", f"one of {tasks} tasks of Slurm, each on its own: set {VARIABLE}=auto")
        return
    try:
        named = named_hosts()
    except UserError as error:
        yield Finding("problem", "hosts", str(error))
        return
    if named is None:
        yield Finding("ok", "hosts", f"{VARIABLE}=auto: JAX finds the others when a run starts")
        return
    where = f"{named.address}:{named.port}"
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(named.address.strip("[]"), named.port)}
    except OSError as error:
        yield Finding("problem", "hosts", f"{where} has no address ({error.strerror}): check {VARIABLE}")
        return
    shown = f"host {named.number} of {named.count}; host 0 at {where} is {', '.join(sorted(map(str, addresses)))}"
    yield _coordinator(named.port, shown) if named.number == 0 else _reached(named.address, named.port, shown)


def _coordinator(port: int, shown: str) -> Finding:
    try:
        with socket.create_server(("", port)):
            return Finding("ok", "hosts", f"{shown}; the port is free")
    except OSError as error:
        return Finding("problem", "hosts", f"{shown}; the port cannot be used ({error.strerror}): choose another")


def _reached(address: str, port: int, shown: str) -> Finding:
    try:
        with socket.create_connection((address.strip("[]"), port), timeout=ANSWER_SECONDS):
            return Finding("ok", "hosts", f"{shown}, and answers")
    except ConnectionRefusedError:
        return Finding("ok", "hosts", f"{shown}; it can be reached, and nothing listens there yet")
    except OSError as error:
        reason = error.strerror or "no answer"
        return Finding(
            "problem", "hosts", f"{shown}, and cannot be reached ({reason}): open the port between the hosts"
        )


def wordnet() -> Finding:
    """What nltk's METEOR needs."""
    if absence := meteor.absence():
        return Finding("note", "WordNet", absence)
    return Finding("ok", "WordNet", "found; nltk/METEOR can be computed")


def extras() -> Iterator[Finding]:
    """Packages that some commands need."""
    needed = {
        "openai": ("endpoint", "models behind an endpoint"),
        "libtpu": ("plan", "medreport plan --topology v5e:2x4"),
        "wandb": ("wandb", "--wandb-project"),
    }
    for module, (extra, purpose) in needed.items():
        if importlib.util.find_spec(module) is None:
            yield Finding("note", extra, f"not installed; for {purpose}: pip install 'medreport-jax[{extra}]'")


def _version(package: str) -> str:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return ""
