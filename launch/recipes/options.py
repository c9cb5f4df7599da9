"""The options of each platform of `medreport launch`."""

import argparse

from common.bounds import COUNT, COUNT_OR_NONE, Within, bounded
from launch.recipes.fill import name, plain

PORT = 8476  # on which host 0 listens
PORTS = Within(1, 65_535)


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


def slurm_options(parser: argparse.ArgumentParser) -> None:
    """Those of `medreport launch slurm`."""
    common_options(parser, restarts=True)
    shell_options(parser)
    parser.add_argument("--nodes", type=bounded(COUNT), default=1, help="how many (%(default)s)")
    parser.add_argument("--gpus", type=bounded(COUNT_OR_NONE), required=True, help="of each node; 0 for CPUs alone")
    parser.add_argument("--cpus", type=bounded(COUNT), help="of each node (8 for each GPU)")
    parser.add_argument("--time", type=plain, required=True, help="limit of one start: 24:00:00")
    parser.add_argument("--notice", type=bounded(COUNT), default=300, help="seconds before it to save (%(default)s)")
    parser.add_argument("--partition", type=plain, help="(the cluster's)")
    parser.add_argument("--account", type=plain, help="(yours)")
    parser.add_argument("--container", type=plain, help="image for enroot, where the cluster has pyxis")
    parser.add_argument("--mounts", type=plain, help="of the container: /shared:/shared,/data:/data")


def gke_options(parser: argparse.ArgumentParser) -> None:
    """Those of `medreport launch gke`."""
    common_options(parser)
    parser.add_argument("--topology", required=True, help="v6e:4x4, or of one GPU node h100:8")
    parser.add_argument("--nodes", type=bounded(COUNT), help="how many, with GPUs (1)")
    parser.add_argument("--chips-per-host", type=bounded(COUNT), help="of a TPU slice (all up to 2x4, otherwise 4)")
    parser.add_argument("--image", type=plain, required=True, help="container image with this project")
    parser.add_argument("--claim", type=plain, required=True, help="PersistentVolumeClaim that all nodes can write")
    parser.add_argument("--mount", type=plain, default="/runs", help="where it is in the container (%(default)s)")
    parser.add_argument("--spot", action="store_true", help="on nodes that may be taken away")


def tpu_options(parser: argparse.ArgumentParser) -> None:
    """Those of `medreport launch tpu`."""
    common_options(parser, restarts=True)
    shell_options(parser)
    parser.add_argument("--accelerator", type=plain, required=True, help="as Google Cloud calls it: v6e-16")
    parser.add_argument("--runtime", type=plain, required=True, help="version of the machines' image: v2-alpha-tpuv6e")
    parser.add_argument("--project", type=plain, required=True, help="of Google Cloud")
    parser.add_argument("--zone", type=plain, required=True, help="that has the slices: us-east5-b")
    parser.add_argument("--spot", action="store_true", help="on a slice that may be taken away")


def skypilot_options(parser: argparse.ArgumentParser) -> None:
    """Those of `medreport launch skypilot`."""
    common_options(parser)
    shell_options(parser)
    parser.add_argument("--nodes", type=bounded(COUNT), default=1, help="how many (%(default)s)")
    parser.add_argument("--accelerators", type=plain, required=True, help="of each node: H100:8")
    parser.add_argument("--infra", type=plain, help="cloud, region and zone: gcp/us-central1 (any)")
    parser.add_argument("--image", type=plain, help="container image with this project")
    parser.add_argument("--volume", type=plain, required=True, help="of sky volumes, for runs and data")
    parser.add_argument("--mount", type=plain, default="/shared", help="where it is on the nodes (%(default)s)")
    parser.add_argument("--spot", action="store_true", help="on nodes that may be taken away")


def ssh_options(parser: argparse.ArgumentParser) -> None:
    """Those of `medreport launch ssh`."""
    common_options(parser)
    shell_options(parser)
    parser.add_argument("--hosts", type=plain, required=True, help="as ssh knows them: a,b,c; the first coordinates")
    parser.add_argument("--address", type=plain, help="of the first, as the others reach it (its name)")
    parser.add_argument("--port", type=bounded(PORTS), default=PORT, help="on which it listens (%(default)s)")
    parser.add_argument("--logs", type=plain, default="logs", help="directory of one log for each host (%(default)s)")


def local_options(parser: argparse.ArgumentParser) -> None:
    """Those of `medreport launch local`."""
    common_options(parser)
    shell_options(parser)
    parser.add_argument("--processes", type=bounded(COUNT), required=True, help="of this machine")
    parser.add_argument("--cpu-devices", type=bounded(COUNT), help="of each, on CPUs (each process has one GPU)")
    parser.add_argument("--port", type=bounded(PORTS), default=PORT, help="on which the first listens (%(default)s)")
    parser.add_argument("--logs", type=plain, default="logs", help="directory of one log for each (%(default)s)")
