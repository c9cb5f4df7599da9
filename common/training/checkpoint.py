"""Checkpoints with Orbax: the latest to resume from, and separately the best on validation.

Each holds only what training changes, the position in the data, and a note that names the config and the base weights
it belongs to. Orbax writes aside and renames, so a checkpoint that exists is whole; saving runs in the background.
"""

import contextlib
import dataclasses
import functools
import logging
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from common.config import Mark, changed_fields, to_json
from common.errors import UserError
from common.io.mirror import address_text
from common.io.stores import publish
from common.io.terminal import say
from common.process.stopping import held
from common.types import PyTree, TrainState

CHECKPOINTS = "checkpoints"  # in a run directory
METADATA_BYTES = 1_000_000  # of one checkpoint, generously


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """The two managers of a run directory, and the note that goes into every checkpoint."""

    latest: ocp.CheckpointManager
    best: ocp.CheckpointManager
    note: dict[str, Any]  # {"base": {"name", "sha256"}, "config"}
    config: Any = None  # the one in the note

    def wait(self) -> None:
        """Wait for what is being written. Raises UserError where it could not be."""
        with _disk_errors(self.latest.directory):
            self.latest.wait_until_finished()
            self.best.wait_until_finished()

    def close(self) -> None:
        """Wait for what is being written. Raises UserError where it could not be."""
        with _disk_errors(self.latest.directory):
            self.latest.close()
            self.best.close()


def open_checkpoints(run_dir: Path, note: dict[str, Any], config: Any = None) -> Checkpoints:
    """The checkpoints of a run directory, made if there are none yet; `config`, if given, goes into their note."""
    if config is not None:
        note = {**note, "config": to_json(config)}
    for name in ("absl", "asyncio"):  # what writes in the background logs what it also raises
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if getattr(sys.unraisablehook, "func", None) is not _say_unless_late:
        sys.unraisablehook = functools.partial(_say_unless_late, sys.unraisablehook)
    root = checkpoint_root(run_dir)

    def barriers(name: str) -> ocp.options.MultiprocessingOptions:
        # Orbax names the barriers at which hosts meet by the step alone: where both managers write one step, a host
        # would take another's "latest" for its "best", and read what is not there yet.
        return ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=name)

    with _disk_errors(root):
        latest = ocp.CheckpointManager(
            root / "latest",
            options=ocp.CheckpointManagerOptions(max_to_keep=2, multiprocessing_options=barriers("latest")),
        )
    with _damage(root / "best"), _disk_errors(root):
        best = ocp.CheckpointManager(
            root / "best",
            options=ocp.CheckpointManagerOptions(
                multiprocessing_options=barriers("best"),
                max_to_keep=1,
                best_fn=lambda metrics: metrics["value"] if math.isfinite(metrics["value"]) else math.inf,
                best_mode="min",
                keep_checkpoints_without_metrics=False,
            ),
        )
    return Checkpoints(latest, best, note, config)


def checkpoint_root(run_dir: Path) -> Any:
    """Where the checkpoints of a run are. Orbax writes to `gs://` itself, and of `s3://` into the copy on this disk.

    Raises UserError for several processes and `s3://`: each would have a copy with its own part.
    """
    address = address_text(run_dir)
    if address is None or address.startswith("s3://"):
        if address is not None and jax.process_count() > 1:
            raise UserError(
                f"{address}: checkpoints of several processes need gs:// or a disk that all hosts share (NFS, FSx)"
            )
        return run_dir.absolute() / CHECKPOINTS
    return epath.Path(address) / CHECKPOINTS


def has_checkpoints(run_dir: Path) -> bool:
    """Whether a run has begun to write checkpoints."""
    with _disk_errors(run_dir):
        return bool(checkpoint_root(run_dir).is_dir())


def _say_unless_late(say: Callable[..., object], unraisable: "sys.UnraisableHookArgs") -> None:
    """Print what nobody can catch, but not what TensorStore's threads raise after a write was given up.

    Each write still under way then wakes an event loop that is gone, and would print a traceback beside the one line
    that says what went wrong.
    """
    if not (unraisable.exc_type is RuntimeError and str(unraisable.exc_value) == "Event loop is closed"):
        say(unraisable)


def save_latest(checkpoints: Checkpoints, state: TrainState, data: dict[str, Any]) -> None:
    """Save the state after its step, to resume from. Returns while the writing goes on."""
    step = int(state.step)
    if step in checkpoints.latest.all_steps():
        return
    _check_room(checkpoints.latest, state)
    if _in_store(checkpoints.latest.directory):
        publish()  # the logs of a step before its checkpoint
    trainable, rest = _split(state)
    items = ocp.args.Composite(
        trainable=ocp.args.StandardSave(trainable),
        rest=ocp.args.StandardSave(rest),
        data=ocp.args.JsonSave(data),
        note=ocp.args.JsonSave(checkpoints.note),
    )
    with _disk_errors(checkpoints.latest.directory):
        checkpoints.latest.save(step, args=items)


def save_best(checkpoints: Checkpoints, state: TrainState, value: float) -> None:
    """Offer the trainable tree as the best so far; it is kept if `value` (lower is better) beats the one there.

    It is not where `value` is not finite: NaN compares with nothing.
    """
    step = int(state.step)
    if not math.isfinite(value) or step in checkpoints.best.all_steps():
        return
    _check_room(checkpoints.best, state.trainable)
    items = ocp.args.Composite(
        trainable=ocp.args.StandardSave(state.trainable), note=ocp.args.JsonSave(checkpoints.note)
    )
    with _disk_errors(checkpoints.best.directory):
        checkpoints.best.save(step, args=items, metrics={"value": value})


def best_so_far(checkpoints: Checkpoints) -> tuple[int, float] | None:
    """(step, value) of the best checkpoint, as `save_best` was given it; None where there is none."""
    with _disk_errors(checkpoints.best.directory):
        checkpoints.best.wait_until_finished()  # its values are read from the disk
    step = checkpoints.best.best_step()
    return None if step is None else (step, checkpoints.best.metrics(step)["value"])


def restore_latest(checkpoints: Checkpoints, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
    """The newest state, in the shardings of `like`, and its position in the data; None where there is none.

    Raises UserError where it belongs to other base weights or another config.
    """
    step = checkpoints.latest.latest_step()
    if step is None:
        return None
    _check_note(checkpoints, checkpoints.latest, step)
    trainable, rest = _split(like)
    items = ocp.args.Composite(
        trainable=ocp.args.StandardRestore(_abstract(trainable)),
        rest=ocp.args.StandardRestore(_abstract(rest)),
        data=ocp.args.JsonRestore(),
    )
    restored = _restored(checkpoints.latest, step, items)
    return TrainState(trainable=restored["trainable"], **restored["rest"]), restored["data"]


def restore_trainable(checkpoints: Checkpoints, like: PyTree) -> tuple[int, PyTree]:
    """(step, trainable tree) of the best checkpoint, or of the latest where no best was kept, which is said.

    Raises UserError where there is no checkpoint, or it belongs to other base weights or another config.
    """
    items = ocp.args.Composite(trainable=ocp.args.StandardRestore(_abstract(like)))
    step, manager = _best(checkpoints)
    while True:
        try:
            _check_note(checkpoints, manager, step)
            return step, _restored(manager, step, items)["trainable"]
        except UserError:
            # Training that still runs may have put a better one in its place.
            checkpoints.best.reload()
            checkpoints.latest.reload()
            before, (step, manager) = step, _best(checkpoints)
            if step == before:
                raise


def _best(checkpoints: Checkpoints) -> tuple[int, ocp.CheckpointManager]:
    """The step of the best checkpoint, or of the latest where no best was kept, and its manager. Raises UserError."""
    with _damage(checkpoints.best.directory):
        step, manager = checkpoints.best.best_step(), checkpoints.best
    if step is None:
        step, manager = checkpoints.latest.latest_step(), checkpoints.latest
    if step is None:
        raise UserError(f"{manager.directory.parent}: contains no checkpoint; train first")
    if manager is checkpoints.latest and jax.process_index() == 0:
        where = manager.directory.parent
        say(f"warning: {where}: no evaluation chose a best checkpoint; using step {step}", error=True)
    return step, manager


def _restored(manager: ocp.CheckpointManager, step: int, items: ocp.args.Composite) -> Any:
    """What was saved, in the shapes that `items` ask for. Raises UserError where it has not."""
    with _damage(manager.directory / str(step)):
        return manager.restore(step, args=items)


@contextlib.contextmanager
def _damage(directory: Any) -> Iterator[None]:
    """Turn errors of reading a checkpoint into one line.

    Orbax and TensorStore have no closed list of them: they differ by how trees differ and by which bytes are damaged,
    and some are plain `Exception`.
    """
    try:
        with held("a checkpoint"):  # the event loops of Orbax are not to be left half-way
            yield
    except Exception as error:  # Orbax and TensorStore have no closed list; all that is raised is reported in one line
        if isinstance(error, UserError) or "RESOURCE_EXHAUSTED" in str(error):
            raise
        raise UserError(
            f"{directory}: is damaged, or holds weights of other names or shapes than its config gives; was "
            "config.json, or the directory, changed since? A damaged checkpoint can be removed; the "
            "previous one is then used"
        ) from error


def _split(state: TrainState) -> tuple[PyTree, dict[str, PyTree]]:
    """The trainable tree, which is also read alone, and the rest by name."""
    rest = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return rest.pop("trainable"), rest


def _abstract(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree)


def _check_room(manager: ocp.CheckpointManager, tree: PyTree) -> None:
    """Raise UserError where the disk has no room for this process's part of `tree`.

    Asked beforehand, because the threads that write print a traceback each when the disk is full. What is still being
    written is waited for first: it may replace an older checkpoint, and is whole when the run ends here.
    """
    directory: Any = manager.directory
    if _in_store(directory):
        return
    shards = [shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards if shard.replica_id == 0]
    needed, free = sum(shard.data.nbytes for shard in shards) + METADATA_BYTES, shutil.disk_usage(directory).free
    if free < needed:
        with _disk_errors(directory):
            manager.wait_until_finished()
        free = shutil.disk_usage(directory).free
    if free < needed:
        raise UserError(
            f"{directory}: the checkpoint could not be written (No space left: it takes {needed / 1e6:.1f} MB and "
            f"{free / 1e6:.1f} MB are free); earlier ones are untouched: make room and run the same command again"
        )


def _in_store(directory: Any) -> bool:
    return str(directory).startswith("gs://")


def _check_note(checkpoints: Checkpoints, manager: ocp.CheckpointManager, step: int) -> None:
    note = checkpoints.note
    with _damage(manager.directory / str(step)):
        found = manager.restore(step, args=ocp.args.Composite(note=ocp.args.JsonRestore()))["note"]
    if found["base"]["sha256"] != note["base"]["sha256"]:
        raise UserError(
            f"{manager.directory / str(step)}: was trained on the base {found['base']['name']} "
            f"(sha256 {found['base']['sha256'][:12]}) but the given base is {note['base']['name']} "
            f"(sha256 {note['base']['sha256'][:12]}); give the base it was trained on"
        )
    # A note without a config is of an earlier version.
    if "config" not in found or checkpoints.config is None:
        return
    if different := changed_fields(found["config"], checkpoints.config, *Mark):
        raise UserError(
            f"{manager.directory / str(step)}: was written with a different config: "
            f"{different[0]}; restore config.json, or "
            "give the run directory that this config trained"
        )


@contextlib.contextmanager
def _disk_errors(directory: Any) -> Iterator[None]:
    """Turn errors of the file system into one line. Orbax and TensorStore raise them as several types."""
    try:
        with held("a checkpoint"):  # as above
            yield
    except (OSError, ValueError, RuntimeError) as error:
        known = (
            "No space left",
            "Disk quota",
            "File too large",
            "Permission denied",
            "Read-only",
            "Input/output error",
        )
        reason = next((words for words in known if words.lower() in str(error).lower()), None)
        if reason is None:
            raise
        raise UserError(
            f"{directory}: the checkpoint could not be written ({reason}); earlier ones are untouched: "
            "make room and run the same command again"
        ) from error
