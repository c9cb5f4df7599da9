"""The platforms that `medreport launch` writes recipes for, and what their options fill into the templates."""

import argparse
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from common.devices import GPUS
from common.errors import UserError, did_you_mean
from launch.recipes import options as of
from launch.recipes import storage
from launch.recipes.fill import TEMPLATES, bash_words, fill, seconds_of, yaml_words
from launch.recipes.tpu_slices import check_chips_per_host, check_runtime, check_shape, slice_chips

GKE = {  # the node label of each chip
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
    "a100": "nvidia-a100-80gb",
    "h100": "nvidia-h100-80gb",  # a3-highgpu
    "h100-mega": "nvidia-h100-mega-80gb",  # a3-megagpu
    "h200": "nvidia-h200-141gb",
}
GPUS_OF_NODE = 8
CLOUDS = (
    *("aws", "azure", "cudo", "do", "fluidstack", "gcp", "hyperbolic", "ibm", "k8s", "kubernetes", "lambda", "mithril"),
    *("nebius", "oci", "paperspace", "primeintellect", "runpod", "scp", "seeweb", "shadeform", "slurm", "ssh", "vast"),
    *("verda", "vsphere", "yotta"),
)  # of SkyPilot's --infra
NOTICE_FOR_SEVERAL = 90  # seconds: 30 that nodes wait for each other once they have saved, and a minute to save
Options = argparse.Namespace


class Platform(NamedTuple):
    """Where a command can be started."""

    does: str  # completes "Start a command on"
    add_options: Callable[[argparse.ArgumentParser], None]
    recipe: Callable[[Options, Sequence[str]], str]  # from the options and the command
    hosts: Callable[[Options], int]  # that the command is started on
    check_storage: Callable[[Options, Sequence[str]], None]  # raises UserError where what is written would be lost
    one_host: str  # what to do for a command that runs on one host only
    tool: str  # the program that starts a recipe
    words: tuple[str, ...]  # the command that starts a recipe, without the name of the file
    remedy: str  # what to do where the tool is missing


def common_blanks(options: Options) -> dict[str, str]:
    """The options as blanks, in the form in which they were given."""
    return {key: "" if value is None else str(value) for key, value in vars(options).items()}


def slurm(options: Options, command: Sequence[str]) -> str:
    """A batch script. Raises UserError for options that do not go together."""
    if options.mounts and not options.container:
        raise UserError("--mounts: only with --container, which they are for")
    if options.notice >= seconds_of(options.time):
        raise UserError(
            f"--time {options.time} is {seconds_of(options.time)} seconds, not more than --notice {options.notice}; "
            "give a longer --time or a smaller --notice"
        )
    if options.nodes > 1 and options.notice < NOTICE_FOR_SEVERAL:
        raise UserError(
            f"--notice {options.notice}: must be at least {NOTICE_FOR_SEVERAL} for several nodes, "
            "which wait 30 seconds for each other when they have saved"
        )
    blanks = common_blanks(options) | {"command": bash_words(command)}
    inside = bool(options.container)
    blanks |= {"chdir": "" if inside else blanks["directory"], "workdir": blanks["directory"] if inside else ""}
    # The variables of an image come before those of the job, unless they are named here.
    blanks["override"] = "JAX_COMPILATION_CACHE_DIR" if inside and options.cache else ""
    blanks["cpus"] = str(options.cpus or max(8 * options.gpus, 1))
    blanks["gpus"] = str(options.gpus or "")
    return fill("slurm.sh", blanks)


class Gke(NamedTuple):
    """What a topology is on GKE."""

    kind: str
    shape: str
    chips: int  # of each host
    hosts: int


def gke_topology(options: Options) -> Gke:
    """The topology as GKE has it. Raises UserError where it has none such."""
    kind, _, shape = options.topology.partition(":")
    if kind not in GKE or not re.fullmatch(r"\d+(x\d+)*", shape) or "0" in shape.split("x"):
        known = ", ".join(GKE)
        raise UserError(f"--topology {options.topology}: expected CHIP:SHAPE such as v6e:4x4 or h100:8; chips: {known}")
    tpu = kind.startswith("v")
    nodes, _, gpus = shape.partition("x")
    if not tpu and gpus.isdecimal():
        raise UserError(f"--topology {options.topology}: names the GPUs of one node; use {kind}:{gpus} --nodes {nodes}")
    if tpu != ("x" in shape):
        raise UserError(
            f"--topology {options.topology}: expected a shape such as v6e:4x4 for TPUs, or a number of GPUs"
        )
    if tpu and options.nodes:
        raise UserError("--nodes: only for GPUs; the shape of a TPU slice determines its number of hosts")
    if not tpu and options.chips_per_host:
        raise UserError(
            "--chips-per-host: only for TPUs; for GPUs the topology gives the number per node, as in h100:8"
        )
    count = math.prod(map(int, shape.split("x")))
    if tpu:
        check_shape(kind, shape)
    elif count > GPUS_OF_NODE:
        raise UserError(
            f"--topology {options.topology}: a node has at most {GPUS_OF_NODE} GPUs; for more, give "
            f"{kind}:{GPUS_OF_NODE} and --nodes"
        )
    chips = options.chips_per_host or (count if not tpu or count <= 4 or shape == "2x4" else 4)
    if tpu:
        check_chips_per_host(kind, shape, chips)
    return Gke(kind, shape, chips, count // chips if tpu else options.nodes or 1)


def gke(options: Options, command: Sequence[str]) -> str:
    """A JobSet. Raises UserError for a topology that GKE does not have."""
    on = gke_topology(options)
    if options.mount and not options.claim:
        raise UserError("--mount: only with --claim, which it is for")
    late = on.hosts > 1 and not on.kind.startswith("v")
    blanks = common_blanks(options) | {"command": yaml_words(command), "accelerator": GKE[on.kind], "shape": on.shape}
    blanks |= {"chips": str(on.chips), "hosts": str(on.hosts), "auto": "auto" if on.hosts > 1 else ""}
    blanks |= {"spot": "true" if options.spot else "", "shared": (options.mount or "/runs") if options.claim else ""}
    blanks["join_timeout"] = str(options.join_timeout or (of.LATE_JOIN_SECONDS if late else of.JOIN_SECONDS))
    return fill("gke-tpu.yaml" if on.kind.startswith("v") else "gke-gpu.yaml", blanks)


def tpu_hosts(accelerator: str) -> int:
    """The hosts of a Cloud TPU slice by its accelerator type. Raises UserError where there is none such."""
    kind, chips = slice_chips(accelerator)
    return 1 if chips <= 8 and kind in ("v5e", "v6e") else -(-chips // 4)


def tpu(options: Options, command: Sequence[str]) -> str:
    """A script that requests the slice and starts the command there. Raises UserError for what Google Cloud lacks."""
    check_runtime(options.runtime, options.accelerator)
    if re.fullmatch(r"[a-z]+-[a-z]+\d+", options.zone):
        raise UserError(f"--zone {options.zone}: is a region; give one of its zones, such as {options.zone}-b")
    blanks = common_blanks(options) | {"command": bash_words(command), "spot": "--spot" if options.spot else ""}
    blanks["auto"] = "auto" if tpu_hosts(options.accelerator) > 1 else ""
    # IAP is still in gcloud's alpha track (528).
    blanks["gcloud"] = "gcloud alpha" if "--tunnel-through-iap" in options.ssh_flags.split() else "gcloud"
    return fill("tpu.sh", blanks)


def check_accelerators(text: str) -> None:
    """Raise UserError for another way to write a number of accelerators than SkyPilot's NAME:COUNT, and for none."""
    for pattern, name, count in ((r"(.*\w)x(\d+)", 1, 2), (r"(\d+)[x:](\w.*)", 2, 1)):
        if found := re.fullmatch(pattern, text):
            raise UserError(
                f"--accelerators {text}: expected NAME:COUNT of each node; did you mean {found[name]}:{found[count]}?"
            )
    _, colon, count_of = text.partition(":")
    if colon and not (re.fullmatch(r"\d+(\.\d+)?", count_of) and float(count_of)):
        raise UserError(
            f"--accelerators {text}: expected NAME:COUNT of each node, such as H100:8, with a COUNT above 0"
        )


def check_cloud(infra: str) -> None:
    """Raise UserError for a cloud that SkyPilot does not have."""
    cloud = infra.partition("/")[0].lower()
    if cloud not in CLOUDS:
        nearest = did_you_mean(cloud, CLOUDS)
        raise UserError(f"--infra {infra}: SkyPilot has no cloud of this name{nearest}; `sky check` lists them")


def skypilot(options: Options, command: Sequence[str]) -> str:
    """The YAML of a managed job. Raises UserError for options that do not go together, or that SkyPilot cannot read."""
    check_accelerators(options.accelerators)
    if options.infra is not None:
        check_cloud(options.infra)
    if options.mount and not options.volume:
        raise UserError("--mount: only with --volume, which it is for")
    if options.volume and (options.infra or "").partition("/")[0] not in ("k8s", "kubernetes", "runpod"):
        raise UserError(
            "--volume: only Kubernetes and RunPod have volumes; give --infra k8s or runpod, or use a bucket"
        )
    blanks = common_blanks(options) | {"command": bash_words(command), "spot": "true" if options.spot else "false"}
    return fill("skypilot.yaml", blanks | {"shared": (options.mount or "/shared") if options.volume else ""})


def ssh_hosts(options: Options) -> list[str]:
    """The names of `--hosts`. Raises UserError where one is no name, or is there twice."""
    hosts: list[str] = options.hosts.split(",")
    if not all(re.fullmatch(r"([^@]+@)?[^@-][^@]*", host) and host[0] != "-" for host in hosts):  # an option of ssh
        raise UserError(f"--hosts {options.hosts}: expected names separated by commas, none empty or beginning with -")
    if twice := next((host for host in hosts if hosts.count(host) > 1), None):
        raise UserError(f"--hosts {options.hosts}: {twice} is named twice; name each host once")
    return hosts


def ssh(options: Options, command: Sequence[str]) -> str:
    """A script that starts the command on each host and waits."""
    hosts = ssh_hosts(options)
    blanks = common_blanks(options) | {"command": bash_words(command), "hosts": " ".join(hosts)}
    blanks["address"] = options.address or hosts[0].rpartition("@")[2]
    return fill("ssh.sh", blanks | {"supervise": (TEMPLATES / "supervise.sh").read_text("utf-8")})


def local(options: Options, command: Sequence[str]) -> str:
    """A script that starts the processes and waits."""
    on_cpu = f"JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES={options.cpu_devices}"
    blanks = common_blanks(options) | {
        "command": bash_words(command),
        "gpus": "" if options.cpu_devices else shlex.quote(GPUS),
        "devices": on_cpu if options.cpu_devices else 'CUDA_VISIBLE_DEVICES="$number"',
        "directory": shlex.quote(str(Path(options.directory or os.curdir).absolute())),
        "last": str(options.processes - 1),
        "path": shlex.quote(str(Path(sys.executable).parent)),
        "supervise": (TEMPLATES / "supervise.sh").read_text("utf-8"),
    }
    return fill("local.sh", blanks)


PLATFORMS = {
    "slurm": Platform(
        "GPU nodes of a Slurm cluster", of.slurm_options, slurm, attrgetter("nodes"),
        storage.check_slurm, "use --nodes 1", "sbatch", ("sbatch",), "run this on a login node",
    ),
    "gke": Platform(
        "a TPU slice or GPU nodes of GKE, as a JobSet", of.gke_options, gke,
        lambda options: gke_topology(options).hosts, storage.check_gke,
        "use one GPU node, or a TPU slice of one host such as v6e:2x4",
        "kubectl", ("kubectl", "apply", "-f"),
        "install it: https://kubernetes.io/docs/tasks/tools",
    ),
    "tpu": Platform(
        "a Cloud TPU slice, as a queued resource", of.tpu_options, tpu, lambda options: tpu_hosts(options.accelerator),
        lambda options, command: storage.check_tpu(options, command, tpu_hosts(options.accelerator)),
        "use a slice of one host, such as v6e-8", "gcloud", ("bash",),
        "install it: https://cloud.google.com/sdk/docs/install",
    ),
    "skypilot": Platform(
        "any cloud, through SkyPilot", of.skypilot_options, skypilot, attrgetter("nodes"),
        storage.check_skypilot, "use --nodes 1", "sky", ("sky", "jobs", "launch", "--yes"),
        "install it in an environment of its own: pip install skypilot",
    ),
    "ssh": Platform(
        "hosts reached by ssh", of.ssh_options, ssh, lambda options: len(ssh_hosts(options)),
        lambda options, command: storage.check_ssh(options, command, len(ssh_hosts(options))), "name one host",
        "ssh", ("bash",), "install OpenSSH's client",
    ),
    "local": Platform(
        "this machine, as several processes", of.local_options, local, attrgetter("processes"),
        lambda options, command: None, "use --processes 1",
        "bash", ("bash",), "install bash",
    ),
}  # fmt: skip
