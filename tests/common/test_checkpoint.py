"""Checkpoints move between layouts, and belong to one base."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from orbax.checkpoint._src.multihost import multihost

from common.config import MovablePath
from common.errors import UserError
from common.training.checkpoint import (
    METADATA_BYTES,
    open_checkpoints,
    restore_latest,
    restore_trainable,
    save_best,
    save_latest,
)
from common.training.optim import OptimConfig
from common.training.parallel import MeshConfig, Mode, device_put_tree, make_device_layout
from common.training.step import init_state


@dataclasses.dataclass(frozen=True)
class Config:
    """Some fields of a run's config."""

    optim: OptimConfig = OptimConfig()
    mesh: MeshConfig = MeshConfig()
    parallel: Mode = "auto"
    labeler: MovablePath = ""


NOTE = {"base": {"name": "seven-b", "sha256": "a" * 64}}
RULES = [("w", ("fsdp", "tensor"))]


def state(layout):
    return device_put_tree(init_state({"w": jnp.arange(32.0).reshape(4, 8)}, optax.adam(0.1)), layout, RULES)


def test_a_state_saved_on_a_mesh_is_restored_on_one_device_and_back(tmp_path):
    mesh, one = make_device_layout("mesh", MeshConfig(2, 2, 2)), make_device_layout("jit")
    saved = state(mesh)
    assert saved.trainable["w"].addressable_shards[0].data.shape == (2, 4)
    checkpoints = open_checkpoints(tmp_path, NOTE)
    save_latest(checkpoints, saved, {"next_index": 3})
    checkpoints.close()
    for layout in (one, mesh):
        like = jax.tree.map(jnp.zeros_like, state(layout))
        checkpoints = open_checkpoints(tmp_path, NOTE)
        restored, position = restore_latest(checkpoints, like)
        checkpoints.close()
        assert position == {"next_index": 3}
        assert restored.trainable["w"].sharding == like.trainable["w"].sharding
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), jax.device_get(saved))


def test_the_latest_and_the_best_never_meet_at_one_barrier(tmp_path, monkeypatch):
    """Else hosts that write one step into both take one for the other, and restore what is not there yet."""
    barriers, named = [], multihost.unique_barrier_key

    def noted(key, **options):
        barriers.append(named(key, **options))
        return barriers[-1]

    monkeypatch.setattr(multihost, "unique_barrier_key", noted)
    checkpoints, like = open_checkpoints(tmp_path, NOTE), state(make_device_layout("jit"))
    barriers.clear()
    save_latest(checkpoints, like, {"next_index": 0})
    checkpoints.latest.wait_until_finished()
    latest = {*barriers}
    barriers.clear()
    save_best(checkpoints, like, 1.0)
    checkpoints.close()
    assert len(latest) > 1
    assert latest.isdisjoint(barriers)


def test_a_checkpoint_of_another_base_is_refused_by_name(tmp_path):
    layout = make_device_layout("jit")
    checkpoints = open_checkpoints(tmp_path, NOTE)
    save_best(checkpoints, state(layout), 1.0)
    save_latest(checkpoints, state(layout), {"next_index": 0})
    checkpoints.close()
    other = open_checkpoints(tmp_path, {"base": {"name": "three-b", "sha256": "b" * 64}})
    for restore, like in ((restore_latest, state(layout)), (restore_trainable, state(layout).trainable)):
        with pytest.raises(UserError, match=r"trained on the base seven-b .*aaa.* given base is three-b .*bbb"):
            restore(other, like)
    other.close()


def test_a_checkpoint_of_another_config_is_refused_by_the_first_field_that_decides_the_weights(tmp_path):
    like = state(make_device_layout("jit"))
    saved = open_checkpoints(tmp_path, NOTE, Config())
    save_best(saved, like, 1.0)
    save_latest(saved, like, {"next_index": 0})
    saved.close()
    for free in (Config(), Config(mesh=MeshConfig(1, 8, 1), parallel="mesh", labeler="moved"), None):
        checkpoints = open_checkpoints(tmp_path, NOTE, free)
        assert restore_latest(checkpoints, like) is not None
        checkpoints.close()
    other = open_checkpoints(tmp_path, NOTE, Config(optim=OptimConfig(b1=0.8), parallel="jit"))
    for restore, tree in ((restore_latest, like), (restore_trainable, like.trainable)):
        with pytest.raises(
            UserError, match=r"a different config: optim\.b1 was 0\.9 and is now 0\.8; restore config.json"
        ):
            restore(other, tree)
    other.close()


def test_a_checkpoint_without_a_config_still_loads_but_not_in_another_shape(tmp_path):
    like = state(make_device_layout("jit"))
    saved = open_checkpoints(tmp_path, NOTE)
    save_latest(saved, like, {"next_index": 0})
    saved.close()
    checkpoints = open_checkpoints(tmp_path, NOTE, Config())
    assert restore_trainable(checkpoints, like.trainable)[0] == 0
    with pytest.raises(UserError, match="other names or shapes than its config gives"):
        restore_trainable(checkpoints, {"w": jnp.zeros((2, 8))})
    checkpoints.close()


@pytest.mark.parametrize("damaged", ["trainable/d/*", "note/metadata", "metrics/metrics"])
def test_a_damaged_checkpoint_is_one_clear_error(tmp_path, damaged):
    like = state(make_device_layout("jit"))
    saved = open_checkpoints(tmp_path, NOTE)
    save_best(saved, like, 1.0)
    saved.close()
    for file in (tmp_path / "checkpoints" / "best" / "0").glob(damaged):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match=r"checkpoints/best.* is damaged.* can be removed"):
        restore_trainable(open_checkpoints(tmp_path, NOTE), like.trainable)


def test_a_full_disk_is_noticed_before_anything_more_is_written(tmp_path, monkeypatch):
    layout = make_device_layout("jit")
    checkpoints = open_checkpoints(tmp_path, NOTE)
    save_latest(checkpoints, state(layout), {"next_index": 0})  # still being written when the disk is found full
    later = state(layout).replace(step=device_put_tree(jnp.int32(1), layout))
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(later)) + METADATA_BYTES
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
    with pytest.raises(
        UserError, match=r"latest: the checkpoint could not be written \(No space left: it takes 1.0 MB"
    ):
        save_latest(checkpoints, later, {"next_index": 1})
    assert [path.name for path in (tmp_path / "checkpoints" / "latest").iterdir()] == ["0"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed))
    save_latest(checkpoints, later, {"next_index": 1})
    checkpoints.close()
    assert open_checkpoints(tmp_path, NOTE).latest.latest_step() == 1


def test_nothing_saved_is_nothing_to_resume_and_an_error_to_use(tmp_path):
    checkpoints = open_checkpoints(tmp_path, NOTE)
    assert restore_latest(checkpoints, state(make_device_layout("jit"))) is None
    with pytest.raises(UserError, match="contains no checkpoint; train first"):
        restore_trainable(checkpoints, state(make_device_layout("jit")).trainable)
    checkpoints.close()
