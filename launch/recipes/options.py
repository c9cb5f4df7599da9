"""The options of each platform of `medreport launch`."""

import argparse

from common.bounds import COUNT, COUNT_OR_NONE, Within, bounded
from launch.recipes.fill import duration, memory_size, mount_point, name, plain, plain_words

PORT = 8476  # on which host 0 listens
PORTS = Within(1, 65_535)
NOTICES = Within(1, 65_535)  # seconds that sbatch takes


JOIN_SECONDS = 600
LATE_JOIN_SECONDS = 86_400  # where nodes arrive one by one


def common_options(
    parser: argparse.ArgumentParser, restarts: bool = False, join_default: str = str(JOIN_SECONDS)
) -> None:
    """Add the options of every platform. Where `join_default` is no number, the recipe chooses."""
    parser.add_argument("--name", type=name, default="medreport", help="name of the job; default: %(default)s")
    parser.add_argument(
        "--join-timeout",
        type=bounded(Within(1, 86_400)),
        default=JOIN_SECONDS if join_default.isdecimal() else None,
        metavar="SECONDS",
        help=f"how long to wait for all hosts; a missing host is named; default: {join_default}",
    )
    parser.add_argument(
        "--cache",
        type=plain,
        metavar="DIR",
        help="directory of compiled programs that all runs share (default: in each run directory)",
    )
    if restarts:
        parser.add_argument(
            "--restarts",
            type=bounded(COUNT_OR_NONE),
            default=100,
            metavar="N",
            help="maximum number of restarts, as after exit code 75; default: %(default)s",
        )


def shell_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of platforms whose hosts run a shell."""
    setup = "shell commands to run before the command, such as 'source .venv/bin/activate'"
    parser.add_argument("--setup", default="", metavar="LINES", help=setup)
    parser.add_argument("--directory", type=plain, metavar="DIR", help="directory in which the command starts")


def slurm_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `medreport launch slurm`."""
    common_options(parser, restarts=True)
    shell_options(parser)
    parser.add_argument("--nodes", type=bounded(COUNT), default=1, metavar="N", help="nodes; default: %(default)s")
    gpus = "GPUs per node; 0 for CPU nodes"
    parser.add_argument("--gpus", type=bounded(COUNT_OR_NONE), required=True, metavar="N", help=gpus)
    cpus = "CPUs per node (default: 8 per GPU, 1 without GPUs)"
    parser.add_argument("--cpus", type=bounded(COUNT), metavar="N", help=cpus)
    memory = "memory of each node, such as 500G; 0 for all of it (default: the cluster's)"
    parser.add_argument("--memory", type=memory_size, help=memory)
    parser.add_argument("--time", type=duration, required=True, help="time limit of each start, such as 24:00:00")
    notice = "how long before the time limit the command saves; several nodes: 90 or more; default: %(default)s"
    parser.add_argument("--notice", type=bounded(NOTICES), default=300, metavar="SECONDS", help=notice)
    parser.add_argument("--partition", type=plain, help="partition (default: the cluster's)")
    parser.add_argument("--account", type=plain, help="account (default: yours)")
    parser.add_argument("--container", type=plain, metavar="IMAGE", help="image for enroot, on clusters with pyxis")
    parser.add_argument("--mounts", type=plain, help="mounts of the container, such as /shared:/shared,/data:/data")


def gke_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `medreport launch gke`."""
    late = f"{JOIN_SECONDS}, or {LATE_JOIN_SECONDS} for several GPU nodes, which arrive one by one"
    common_options(parser, join_default=late)
    topology = "a TPU slice, such as v6e:4x4, or the GPUs of one node, such as h100:8 or h100-mega:8"
    parser.add_argument("--topology", required=True, help=topology)
    parser.add_argument("--nodes", type=bounded(COUNT), metavar="N", help="GPU nodes (default: 1)")
    chips = "TPU chips per host (default: all of a slice up to 2x4, otherwise 4)"
    parser.add_argument("--chips-per-host", type=bounded(COUNT), metavar="N", help=chips)
    parser.add_argument("--image", type=plain, required=True, help="container image with this project")
    claim = "PersistentVolumeClaim that all nodes can write to (default: none; runs and data are in a bucket)"
    parser.add_argument("--claim", type=plain, help=claim)
    mount = "where the claim is mounted; default: /runs"
    parser.add_argument("--mount", type=mount_point, metavar="DIR", help=mount)
    account = "Kubernetes service account of the pods, for a bucket where Workload Identity is on (default: default)"
    parser.add_argument("--service-account", type=plain, metavar="NAME", help=account)
    parser.add_argument("--spot", action="store_true", help="use spot nodes, which can be preempted")


def tpu_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `medreport launch tpu`."""
    common_options(parser, restarts=True)
    shell_options(parser)
    parser.add_argument("--accelerator", type=plain, required=True, help="accelerator type, such as v6e-16")
    parser.add_argument("--runtime", type=plain, required=True, help="runtime version, such as v2-alpha-tpuv6e")
    parser.add_argument("--project", type=plain, required=True, help="Google Cloud project")
    parser.add_argument("--zone", type=plain, required=True, help="zone of the slice, such as us-east5-b")
    parser.add_argument("--spot", action="store_true", help="use a spot slice, which can be preempted")
    flags = "flags for `gcloud compute tpus tpu-vm ssh`, such as --ssh-flags=--internal-ip or =--tunnel-through-iap"
    parser.add_argument("--ssh-flags", type=plain_words, default="", metavar="FLAGS", help=flags)


def skypilot_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `medreport launch skypilot`."""
    common_options(parser)
    shell_options(parser)
    parser.add_argument("--nodes", type=bounded(COUNT), default=1, metavar="N", help="nodes; default: %(default)s")
    parser.add_argument("--accelerators", type=plain, required=True, help="accelerators of each node, such as H100:8")
    infra = "cloud, and its region and zone, such as gcp/us-central1 (default: any)"
    parser.add_argument("--infra", type=plain, help=infra)
    parser.add_argument("--image", type=plain, help="container image with this project")
    volume = "volume (`sky volumes`) for runs and data (default: none; they are in a bucket)"
    parser.add_argument("--volume", type=plain, metavar="NAME", help=volume)
    mount = "where the volume is mounted; default: /shared"
    parser.add_argument("--mount", type=mount_point, metavar="DIR", help=mount)
    parser.add_argument("--spot", action="store_true", help="use spot nodes, which can be preempted")


def ssh_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `medreport launch ssh`."""
    common_options(parser)
    shell_options(parser)
    hosts = "names that ssh knows, separated by commas; the first host coordinates"
    parser.add_argument("--hosts", type=plain, required=True, metavar="A,B,C", help=hosts)
    address = "address at which the others reach the first host (default: its name)"
    parser.add_argument("--address", type=plain, help=address)
    port = "port on which the first host listens; default: %(default)s"
    parser.add_argument("--port", type=bounded(PORTS), default=PORT, help=port)
    logs = "directory of the logs, one for each host; default: %(default)s"
    parser.add_argument("--logs", type=plain, default="logs", metavar="DIR", help=logs)


def local_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `medreport launch local`."""
    common_options(parser)
    shell_options(parser)
    parser.add_argument("--processes", type=bounded(COUNT), required=True, metavar="N", help="processes to start")
    devices = "CPU devices of each process (default: one GPU for each process)"
    parser.add_argument("--cpu-devices", type=bounded(COUNT), metavar="N", help=devices)
    port = "port on which the first process listens; default: %(default)s"
    parser.add_argument("--port", type=bounded(PORTS), default=PORT, help=port)
    logs = "directory of the logs, one for each process; default: %(default)s"
    parser.add_argument("--logs", type=plain, default="logs", metavar="DIR", help=logs)
