"""UniCrossAdapter by jit, pmap and a mesh of eight devices: the same losses."""

import functools

import jax
import numpy as np
import pytest

from common.models.clip import init_params
from common.training.parallel import compile_evaluation, device_put_tree, make_device_layout, place_batch
from tests.unicross_jax.runs import arguments, log, make_clip, unicross
from tests.unicross_jax.test_model import CAUSAL, CLIP
from unicross_jax.model import ReportBatch, Studies, init_trainable, loss

MODES = ("jit", "pmap", "mesh")


def test_pmap_and_mesh_train_as_jit_does(tmp_path):
    """Without adapters, which take most of the time to compile; they are below."""
    clip = make_clip(tmp_path / "clip")
    losses = {}
    for mode in MODES:
        options = {"model__dropout": 0.0, "max_steps": 2, "micro_batch": 8 if mode == "jit" else 1}
        assert unicross(arguments(tmp_path / mode, clip, parallel=mode, **options)) == 0
        losses[mode] = [*[row["loss"] for row in log(tmp_path / mode)], log(tmp_path / mode)[-1]["val/loss"]]
    assert losses["pmap"] == pytest.approx(losses["jit"], rel=1e-5)
    assert losses["mesh"] == pytest.approx(losses["jit"], rel=1e-5)


def test_the_whole_model_has_the_same_loss_on_one_device_and_on_eight():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (8, 2, 32, 32)).astype(np.uint8)
    view_mask = np.stack([np.ones(8, bool), random.random(8) < 0.5], axis=1)
    studies = Studies(images, view_mask, random.integers(3, 50, (8, 4)), np.full(8, 2))
    tokens = random.integers(3, 40, (8, 7))
    weights = (np.arange(6) < random.integers(1, 7, (8, 1))).astype(np.float32)  # unequal, also over devices
    batch = ReportBatch(studies, tokens[:, :-1], tokens[:, 1:], weights)
    clip = init_params(CLIP, jax.random.key(0))
    frozen = {"clip": clip, "report_embedding": clip["text"]["token_embedding"][:40]}
    trainable = init_trainable(CAUSAL, jax.random.key(1))
    sums = functools.partial(loss, config=CAUSAL)
    found = {}
    for mode in MODES:
        layout = make_device_layout(mode)
        evaluate = compile_evaluation(
            lambda trainable, frozen, batch, _: sums(trainable, frozen, batch, None)[0], layout
        )
        one = evaluate(
            device_put_tree(trainable, layout), device_put_tree(frozen, layout), place_batch(batch, layout), 0
        )
        found[mode] = [float(one.total), float(one.weight)]
    assert found["jit"][1] == weights.sum()
    assert found["pmap"] == pytest.approx(found["jit"], rel=1e-5)
    assert found["mesh"] == pytest.approx(found["jit"], rel=1e-5)
