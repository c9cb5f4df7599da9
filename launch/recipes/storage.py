"""Where a command of this project writes, and whether that outlives the container or machine that it runs on.

Each restart would otherwise begin at the first step. Other programs are not looked at.
"""

import argparse
import os.path
import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from common.errors import UserError
from common.io.store_objects import parse_address
from launch.recipes.command_check import written_path

Options = argparse.Namespace

IMAGE = PurePosixPath("/runs")  # the directory of this project's image in which a command starts
MOUNTS = re.compile(r"mount|fuse|s3fs")  # what sets up a disk
OF_ONE_MACHINE = ("/tmp", "/var/tmp", "/dev/shm", "/run")  # whatever else is mounted there


def check_not_temporary(command: Sequence[str], start: str, kept: Sequence[str] = ()) -> None:
    """Raise UserError for a command that writes where each machine has a disk or memory of its own.

    `start` is the directory of relative paths, `kept` what is mounted from elsewhere all the same.
    """
    option, path = written_path(command) or ("", "")
    if not path or parse_address(path):
        return
    whole = PurePosixPath(start) / path
    own = next((folder for folder in OF_ONE_MACHINE if below(whole, folder)), None)
    if own and not any(below(whole, folder) for folder in kept):
        raise UserError(
            f"{option} {path}: {own} is of one machine only, and a restart may be on another; give a path on a disk "
            "that all machines share, or an address such as gs://BUCKET/KEY"
        )


def check_mounted(command: Sequence[str], mount: str, where: str, remedy: str, start: str = "") -> None:
    """Raise UserError for a command that writes neither to an address nor below `mount`, if there is one.

    `where` is what a disk is lost with, `remedy` how to get a mount, and `start` the directory of relative paths.
    """
    option, path = written_path(command) or ("", "")
    if not path or parse_address(path):
        return
    if not mount:
        address = f"an address such as gs://BUCKET/{PurePosixPath(path).name}"
        raise UserError(f"{option} {path}: would be lost with {where}, at every restart; give {remedy}, or {address}")
    if not below(PurePosixPath(start) / path, mount):
        raise UserError(
            f"{option} {path}: is not below --mount {mount}, and would be lost with {where}, at every restart; give a "
            f"path such as {PurePosixPath(mount) / PurePosixPath(path).name}"
        )


def below(path: PurePosixPath, folder: str) -> bool:
    """Whether a path lies in a folder, by their names."""
    return PurePosixPath(os.path.normpath(path)).is_relative_to(os.path.normpath(folder))


def check_gke(options: Options, command: Sequence[str]) -> None:
    """Raise UserError where what is written would be lost with a pod."""
    mount = (options.mount or "/runs") if options.claim else ""
    check_mounted(command, mount, "its container", "--claim NAME", str(IMAGE))


def check_skypilot(options: Options, command: Sequence[str]) -> None:
    """Raise UserError where what is written would be lost with a node. `--setup` may mount a disk."""
    mount = (options.mount or "/shared") if options.volume else ""
    start = options.directory or ""
    check_not_temporary(command, start, [mount] if mount else [])
    _, path = written_path(command) or ("", "")
    enters = bool(re.search(r"\bcd\b", options.setup)) and not path.startswith("/")  # a relative path begins elsewhere
    if MOUNTS.search(options.setup) or (mount and enters):
        return
    check_mounted(command, mount, "its node", "--volume NAME (or mount a disk in --setup)", start)


def check_tpu(options: Options, command: Sequence[str], hosts: int) -> None:
    """Raise UserError where what is written would be lost with a slice, or is on the disk of one of several hosts."""
    if not (options.spot or hosts > 1):
        return
    check_not_temporary(command, options.directory or "")
    if MOUNTS.search(options.setup):
        return
    where = "its slice" if options.spot else "its host"
    check_mounted(command, "", where, "a path on a disk that --setup mounts on all hosts")


def check_ssh(options: Options, command: Sequence[str], hosts: int) -> None:
    """Raise UserError where what is written would be on the disk of one of several hosts."""
    if hosts > 1:
        check_not_temporary(command, options.directory or "")


def check_slurm(options: Options, command: Sequence[str]) -> None:
    """Raise UserError where what is written would be lost with a node, or with a container that has no such mount."""
    mounts = [(mount.split(":") * 2)[1] for mount in (options.mounts or "").split(",") if mount]
    start = options.directory or (str(IMAGE) if options.container else "")
    check_not_temporary(command, start, mounts)
    option, path = written_path(command) or ("", "")
    if not options.container or not path or parse_address(path):
        return
    whole = PurePosixPath(start) / path
    if below(whole, str(IMAGE)) and not any(below(whole, mount) for mount in mounts):
        raise UserError(
            f"{option} {path}: would be lost with its container, at every restart; give a path below a directory of "
            "--mounts, such as --mounts /shared/runs:/runs"
        )
