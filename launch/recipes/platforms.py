"""The platforms that `medreport launch` writes recipes for: their options, and what these fill into the templates."""

import argparse
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from common.bounds import COUNT, COUNT_OR_NONE, Within, bounded
from common.errors import UserError
from launch.recipes.fill import TEMPLATES, bash_words, fill, name, plain, yaml_words

PORT = 8476  # on which host 0 listens
PORTS = Within(1, 65_535)
GKE = {  # the labels of the nodes that have a chip
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
    "a100": "nvidia-a100-80gb",
    "h100": "nvidia-h100-80gb",
    "h200": "nvidia-h200-141gb",
}
Options = argparse.Namespace


class Platform(NamedTuple):
    """Where a command can be started."""

    does: str  # in a few words
    add_options: Callable[[argparse.ArgumentParser], None]
    recipe: Callable[[Options, Sequence[str]], str]  # of the options and the command
    tool: str  # that starts it
    words: tuple[str, ...]  # which it is started with; the name of the file follows
    remedy: str  # where the tool is missing


def common_options(parser: argparse.ArgumentParser, restarts: bool = False) -> None:
    """The options of every platform."""
    parser.add_argument("--name", type=name, default="medreport", help="of the job (%(default)s)")
    parser.add_argument(
        "--join-timeout",
        type=bounded(Within(1, 86_400)),
        default=600,
        help="seconds in which all hosts must arrive; one that does not is named (%(default)s)",
    )
    parser.add_argument(
        "--cache", type=plain, help="directory of compiled programs for all runs (each run has its own)"
    )
    if restarts:
        parser.add_argument(
            "--restarts", type=bounded(COUNT_OR_NONE), default=100, help="at most, after exit code 75 (%(default)s)"
        )


def shell_options(parser: argparse.ArgumentParser) -> None:
    """The options of platforms whose hosts have a shell of the user's."""
    parser.add_argument("--setup", default="", help="shell lines before the command: 'source .venv/bin/activate'")
    parser.add_argument("--directory", type=plain, help="where the command starts")


def common_blanks(options: Options) -> dict[str, str]:
    """The blanks that are options as they were given."""
    return {key: "" if value is None else str(value) for key, value in vars(options).items()}


def slurm_options(parser: argparse.ArgumentParser) -> None:
    """Those of `medreport launch slurm`."""
    common_options(parser, restarts=True)
    shell_options(parser)
    parser.add_argument("--nodes", type=bounded(COUNT), default=1, help="(%(default)s)")
    parser.add_argument("--gpus", type=bounded(COUNT_OR_NONE), required=True, help="of each node; 0 for CPUs alone")
    parser.add_argument("--cpus", type=bounded(COUNT), help="of each node (8 for each GPU)")
    parser.add_argument("--time", type=plain, required=True, help="limit of one start: 24:00:00")
    parser.add_argument("--notice", type=bounded(COUNT), default=300, help="seconds before it to save (%(default)s)")
    parser.add_argument("--partition", type=plain, help="(the cluster's)")
    parser.add_argument("--account", type=plain, help="(yours)")
    parser.add_argument("--container", type=plain, help="image for enroot, where the cluster has pyxis")
    parser.add_argument("--mounts", type=plain, help="of the container: /shared:/shared,/data:/data")


def slurm(options: Options, command: Sequence[str]) -> str:
    """A batch script."""
    blanks = common_blanks(options) | {"command": bash_words(command)}
    blanks["cpus"] = str(options.cpus or max(8 * options.gpus, 1))
    blanks["gpus"] = str(options.gpus or "")
    return fill("slurm.sh", blanks)


def gke_options(parser: argparse.ArgumentParser) -> None:
    """Those of `medreport launch gke`."""
    common_options(parser)
    parser.add_argument("--topology", required=True, help="v6e:4x4, or of one GPU node h100:8")
    parser.add_argument("--nodes", type=bounded(COUNT), help="with GPUs (1)")
    parser.add_argument("--chips-per-host", type=bounded(COUNT), help="of a TPU slice (all up to 2x4, otherwise 4)")
    parser.add_argument("--image", type=plain, required=True, help="container image with this project")
    parser.add_argument("--claim", type=plain, required=True, help="PersistentVolumeClaim that all nodes can write")
    parser.add_argument("--mount", type=plain, default="/shared", help="where it is in the container (%(default)s)")
    parser.add_argument("--spot", action="store_true", help="on nodes that may be taken away")


def gke(options: Options, command: Sequence[str]) -> str:
    """A JobSet. Raises UserError for a topology that GKE has not."""
    kind, _, shape = options.topology.partition(":")
    if kind not in GKE or not re.fullmatch(r"\d+(x\d+)*", shape) or "0" in shape.split("x"):
        known = ", ".join(GKE)
        raise UserError(f"--topology {options.topology}: expected CHIP:SHAPE such as v6e:4x4 or h100:8; chips: {known}")
    tpu = kind.startswith("v")
    if tpu != ("x" in shape):
        raise UserError(f"--topology {options.topology}: expected a shape such as v6e:4x4 of TPUs, a number of GPUs")
    if tpu and options.nodes:
        raise UserError("--nodes: is for GPUs; the shape of a TPU slice says how many hosts it has")
    if not tpu and options.chips_per_host:
        raise UserError("--chips-per-host: is for TPUs; h100:8 says how many GPUs a node has")
    count = math.prod(map(int, shape.split("x")))
    chips = options.chips_per_host or (count if not tpu or count <= 4 or shape == "2x4" else 4)
    if count % chips:
        raise UserError(f"--chips-per-host {chips}: the {count} chips of {options.topology} cannot be split so")
    blanks = common_blanks(options) | {"command": yaml_words(command), "accelerator": GKE[kind], "shape": shape}
    blanks |= {"chips": str(chips), "hosts": str(count // chips if tpu else options.nodes or 1)}
    blanks["spot"] = "true" if options.spot else ""
    return fill("gke-tpu.yaml" if tpu else "gke-gpu.yaml", blanks)


def tpu_options(parser: argparse.ArgumentParser) -> None:
    """Those of `medreport launch tpu`."""
    common_options(parser, restarts=True)
    shell_options(parser)
    parser.add_argument("--accelerator", type=plain, required=True, help="as Google Cloud calls it: v6e-16")
    parser.add_argument("--runtime", type=plain, required=True, help="version of the machines' image: v2-alpha-tpuv6e")
    parser.add_argument("--project", type=plain, required=True, help="of Google Cloud")
    parser.add_argument("--zone", type=plain, required=True, help="that has the slices: us-east5-b")
    parser.add_argument("--spot", action="store_true", help="on a slice that may be taken away")


def tpu(options: Options, command: Sequence[str]) -> str:
    """A script that asks for the slice and starts the command there."""
    blanks = common_blanks(options) | {"command": bash_words(command), "spot": "--spot" if options.spot else ""}
    return fill("tpu.sh", blanks)


def skypilot_options(parser: argparse.ArgumentParser) -> None:
    """Those of `medreport launch skypilot`."""
    common_options(parser)
    shell_options(parser)
    parser.add_argument("--nodes", type=bounded(COUNT), default=1, help="(%(default)s)")
    parser.add_argument("--accelerators", type=plain, required=True, help="of each node: H100:8")
    parser.add_argument("--infra", type=plain, help="cloud, region and zone: gcp/us-central1 (any)")
    parser.add_argument("--image", type=plain, help="container image with this project")
    parser.add_argument("--volume", type=plain, required=True, help="of `sky volumes`, for runs and data")
    parser.add_argument("--mount", type=plain, default="/shared", help="where it is on the nodes (%(default)s)")
    parser.add_argument("--spot", action="store_true", help="on nodes that may be taken away")


def skypilot(options: Options, command: Sequence[str]) -> str:
    """The YAML of a managed job."""
    blanks = common_blanks(options) | {"command": bash_words(command), "spot": "true" if options.spot else "false"}
    return fill("skypilot.yaml", blanks)


def ssh_options(parser: argparse.ArgumentParser) -> None:
    """Those of `medreport launch ssh`."""
    common_options(parser)
    shell_options(parser)
    parser.add_argument("--hosts", type=plain, required=True, help="as ssh knows them: a,b,c; the first coordinates")
    parser.add_argument("--address", type=plain, help="of the first, as the others reach it (its name)")
    parser.add_argument("--port", type=bounded(PORTS), default=PORT, help="on which it listens (%(default)s)")
    parser.add_argument("--logs", type=plain, default="logs", help="directory of one log for each host (%(default)s)")


def ssh(options: Options, command: Sequence[str]) -> str:
    """A script that starts the command on each host and waits."""
    hosts = [host for host in options.hosts.split(",") if host]
    if not hosts:
        raise UserError(f"--hosts {options.hosts}: expected names with commas between them")
    blanks = common_blanks(options) | {"command": bash_words(command), "hosts": " ".join(hosts)}
    blanks["address"] = options.address or hosts[0].rpartition("@")[2]
    return fill("ssh.sh", blanks | {"supervise": (TEMPLATES / "supervise.sh").read_text("utf-8")})


def local_options(parser: argparse.ArgumentParser) -> None:
    """Those of `medreport launch local`."""
    common_options(parser)
    shell_options(parser)
    parser.add_argument("--processes", type=bounded(COUNT), required=True, help="of this machine")
    parser.add_argument("--cpu-devices", type=bounded(COUNT), help="of each, on CPUs (each process has one GPU)")
    parser.add_argument("--port", type=bounded(PORTS), default=PORT, help="on which the first listens (%(default)s)")
    parser.add_argument("--logs", type=plain, default="logs", help="directory of one log for each (%(default)s)")


def local(options: Options, command: Sequence[str]) -> str:
    """A script that starts the processes and waits."""
    on_cpu = f"JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES={options.cpu_devices}"
    blanks = common_blanks(options) | {
        "command": bash_words(command),
        "devices": on_cpu if options.cpu_devices else 'CUDA_VISIBLE_DEVICES="$number"',
        "directory": shlex.quote(str(Path(options.directory or os.curdir).absolute())),
        "last": str(options.processes - 1),
        "path": shlex.quote(str(Path(sys.executable).parent)),
        "supervise": (TEMPLATES / "supervise.sh").read_text("utf-8"),
    }
    return fill("local.sh", blanks)


PLATFORMS = {
    "slurm": Platform(
        "GPU nodes of a Slurm cluster", slurm_options, slurm, "sbatch", ("sbatch",), "run this on a login node"
    ),
    "gke": Platform(
        "TPU slices or GPU nodes of GKE, by JobSet", gke_options, gke, "kubectl", ("kubectl", "apply", "-f"),
        "install it: https://kubernetes.io/docs/tasks/tools",
    ),
    "tpu": Platform(
        "a Cloud TPU slice, as a queued resource", tpu_options, tpu, "gcloud", ("bash",),
        "install it: https://cloud.google.com/sdk/docs/install",
    ),
    "skypilot": Platform(
        "any cloud, by SkyPilot", skypilot_options, skypilot, "sky", ("sky", "jobs", "launch", "--yes"),
        "install it in an environment of its own: pip install skypilot",
    ),
    "ssh": Platform("a list of hosts", ssh_options, ssh, "ssh", ("bash",), "install OpenSSH's client"),
    "local": Platform("processes of this machine", local_options, local, "bash", ("bash",), "install bash"),
}  # fmt: skip
