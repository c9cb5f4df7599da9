"""Where a command of this project writes, and whether that outlives the container or machine that it runs on.

Each restart would otherwise begin at the first step. Other programs are not looked at.
"""

import argparse
import os.path
import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from common.errors import UserError
from common.io.terminal import say
from launch.recipes.command_check import written_path

Options = argparse.Namespace

IMAGE = PurePosixPath("/runs")  # the directory of this project's image in which a command starts
OWN_DISKS = ("/tmp", "/var/tmp", "/dev/shm", "/run")
MOUNTS = re.compile(r"mount|fuse|s3fs")  # what sets up a disk


def check_mounted(command: Sequence[str], mount: str, where: str, remedy: str, start: str = "") -> None:
    """Raise UserError for a command that writes neither to an address nor below `mount`, if there is one.

    `where` is what a disk is lost with, `remedy` how to get a mount, and `start` the directory of relative paths.
    """
    option, path = written_path(command) or ("", "")
    if not path or "://" in path:
        return
    refuse_own_disk(option, path, where)
    if not mount:
        address = f"an address such as gs://BUCKET/{PurePosixPath(path).name}"
        raise UserError(f"{option} {path}: would be lost with {where}, at every restart; give {remedy}, or {address}")
    if not below(PurePosixPath(start) / path, mount):
        raise UserError(
            f"{option} {path}: is not below --mount {mount}, and would be lost with {where}, at every restart; give a "
            f"path such as {PurePosixPath(mount) / PurePosixPath(path).name}"
        )


def refuse_own_disk(option: str, path: str, where: str) -> None:
    """Raise UserError for a path on a disk that every machine has of its own."""
    if any(below(PurePosixPath(path), folder) for folder in OWN_DISKS):
        raise UserError(
            f"{option} {path}: is on a machine's own disk, and would be lost with {where}, at every restart; give a "
            "path on a disk that outlives it, or an address such as gs://BUCKET/KEY"
        )


def warn_of_own_disk(command: Sequence[str], remedy: str) -> None:
    """Warn of a path that each machine usually has on a disk of its own, where restarts may be on another."""
    option, path = written_path(command) or ("", "")
    if folder := next((folder for folder in OWN_DISKS if path and below(PurePosixPath(path), folder)), None):
        say(f"warning: {option} {path}: {folder} is usually each machine's own; {remedy}", error=True)


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
    refuse_own_disk(*(written_path(command) or ("", "")), "its node")
    if MOUNTS.search(options.setup) or (mount and re.search(r"\bcd\b", options.setup)):
        return
    check_mounted(command, mount, "its node", "--volume NAME (or mount a disk in --setup)", options.directory or "")


def check_tpu(options: Options, command: Sequence[str], hosts: int) -> None:
    """Raise UserError where what is written would be lost with a slice, or is on the disk of one of several hosts."""
    if not (options.spot or hosts > 1):
        return
    where = "its slice" if options.spot else "its host"
    refuse_own_disk(*(written_path(command) or ("", "")), where)
    if MOUNTS.search(options.setup):
        return
    check_mounted(command, "", where, "a path on a disk that --setup mounts on all hosts")


def check_ssh(options: Options, command: Sequence[str]) -> None:
    """Warn where several hosts would each write to a disk of their own."""
    if "," in options.hosts:
        warn_of_own_disk(command, "give a directory that all hosts share")


def check_slurm(options: Options, command: Sequence[str]) -> None:
    """Raise UserError where what is written would be lost with a container: below /runs of the image, not mounted.

    A node's own disk is warned of, since a requeued job may start on another.
    """
    if not options.container:
        warn_of_own_disk(command, "a requeued job may start on another node: give a directory that all nodes share")
    option, path = written_path(command) or ("", "")
    if not options.container or not path or "://" in path:
        return
    mounts = [mount.split(":") for mount in (options.mounts or "").split(",") if mount]
    whole = PurePosixPath(options.directory or IMAGE) / path
    if below(whole, str(IMAGE)) and not any(below(whole, (mount[1:] or mount)[0]) for mount in mounts):
        raise UserError(
            f"{option} {path}: would be lost with its container, at every restart; give a path below a directory of "
            "--mounts, such as --mounts /shared/runs:/runs"
        )
