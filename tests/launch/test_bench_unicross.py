"""The UniCross benchmark at toy shapes: its keys, and that the PyTorch peer does the same work."""

import dataclasses
import functools
import importlib.util
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from common.errors import UserError
from common.generation.generate import row_keys
from common.generation.settings import DecodeSettings
from launch.bench import unicross as bench_unicross
from tests.compile_flags import QUICK
from tests.launch.test_bench import BARE_IMAGE
from unicross_jax.generate import make_generator
from unicross_jax.model import init_trainable, loss

TOY = dataclasses.replace(
    bench_unicross.CPU, image_size=64, vision_layers=(1, 1, 2, 1), vision_width=8, embed=24, text_width=64,
    text_layers=3, vocabulary=40, heads=4, encoder_layers=1, decoder_layers=1, rows=2, length=9, condition=4,
    reports=2, new_tokens=5, updates=1, repetitions=1,
)  # fmt: skip
CASES = {"train": "images", "train_causal": "images", "generate": "reports", "generate_published": "reports"}


def flags(shape):
    def text(value):
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

    return [f"--{key.replace('_', '-')}={text(value)}" for key, value in dataclasses.asdict(shape).items()]


@pytest.fixture(scope="module")
def result():
    """What the command prints on a bare image; where torch is installed, beside a peer, which has its own process."""
    peer = ["--peer"] if importlib.util.find_spec("torch") else []
    done = subprocess.run(
        [sys.executable, "-c", BARE_IMAGE, "bench", "unicross", *flags(TOY), *peer],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "XLA_FLAGS": QUICK},  # one device
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_runs_on_a_bare_image_and_prints_one_json_object(result):
    assert result["cases"].keys() == CASES.keys()
    for name, case in result["cases"].items():
        assert case["lowest"] <= case[f"{CASES[name]}_per_second"] <= case["highest"]
        assert case["lowest"] > 0
        assert case["model_tflops"] > 0
        assert case["utilisation"] is None  # the peak of a CPU is not known
    assert result["shape"]["vision_layers"] == [1, 1, 2, 1]


def test_the_ratio_of_cached_to_recomputed_needs_no_peer(result):
    cached, recomputed = (result["cases"][name]["seconds"] for name in ("generate", "generate_published"))
    assert result["ratios"]["cached_to_recomputed"] == recomputed / cached


def test_goals_are_reported(result):
    if "peer" in result:
        assert result["goals"].keys() == bench_unicross.GOALS.keys()
    for name, goal in result["goals"].items():
        assert goal["met"] == (result["ratios"][name] >= goal["at_least"])


def test_ratios_to_the_peer_are_of_the_rates(result):
    pytest.importorskip("torch", reason="torch is not installed (make dev)")
    assert "torch" in result["peer"]
    assert result["ratios"].keys() == {*CASES, "cached_to_recomputed"}
    for name, unit in CASES.items():
        case = result["cases"][name]
        theirs = case["peer"]["published"][f"{unit}_per_second"]
        assert case["ratio"] == pytest.approx(case[f"{unit}_per_second"] / theirs)
        assert result["ratios"][name] == case["ratio"]


def test_a_peer_of_another_dtype_is_one_clear_line():
    with pytest.raises(UserError, match="--dtype is bfloat16"):
        bench_unicross.measure(dataclasses.replace(TOY, dtype="bfloat16"), with_peer=True)


@pytest.mark.parametrize("conditioning", bench_unicross.CONDITIONINGS)
def test_bfloat16_is_traced(conditioning):
    shape = dataclasses.replace(TOY, dtype="bfloat16")
    config, batch = shape.config(conditioning), bench_unicross.random_batch(shape)
    weights = jax.eval_shape(lambda: bench_unicross.random_weights(shape))
    total, _ = jax.eval_shape(functools.partial(loss, config=config), *weights, batch, jax.random.key(0))
    assert total.total.dtype == "float32"
    settings = DecodeSettings(max_new_tokens=TOY.new_tokens, beams=TOY.beams)
    generator = make_generator(config, settings, start_id=0)
    generated = jax.eval_shape(generator, *weights, batch.studies, row_keys(0, range(TOY.rows)))
    assert generated.tokens.shape == (TOY.rows, 1, TOY.new_tokens)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The peer's model, and our trees with the same weights."""
    torch = pytest.importorskip("torch", reason="torch is not installed (make dev)")
    from launch.bench.peer_unicross import make_model
    from launch.bench.torch_clip import TorchClip
    from tests.parity.unicross_weights import randomised, with_random_norms

    torch.manual_seed(0)
    model = make_model(with_random_norms(TorchClip(TOY.config("published").clip)), TOY)
    return model, *randomised(model, TOY.vocabulary, tmp_path_factory.mktemp("clip"))


def test_the_peer_holds_the_same_parameters(pair):
    _, trainable, frozen = pair
    shapes = jax.eval_shape(lambda: bench_unicross.random_weights(TOY))
    assert jax.tree.map(np.shape, (trainable, frozen)) == jax.tree.map(np.shape, shapes)
    assert jax.tree.structure(trainable) == jax.tree.structure(
        jax.eval_shape(lambda: init_trainable(TOY.config("causal"), jax.random.key(0)))
    )


def test_the_peer_has_the_same_loss(pair):
    import torch

    from launch.bench.peer_unicross import report_loss

    model, trainable, frozen = pair
    batch = bench_unicross.random_batch(TOY)
    of_published = jax.jit(functools.partial(loss, config=TOY.config("published")))
    ours, _ = of_published(trainable, frozen, batch, jax.random.key(0))
    arrays = (batch.studies.images, batch.tokens.astype(int), batch.targets.astype(int), batch.weights > 0)
    with torch.no_grad():
        theirs = report_loss(model, *map(torch.tensor, arrays))
    assert theirs > 1
    assert ours.total / ours.weight == pytest.approx(theirs.item(), rel=1e-4)


def test_the_peer_finds_the_same_reports(pair):
    import torch

    from launch.bench.peer_unicross import beam_search

    model, trainable, frozen = pair
    studies = bench_unicross.random_studies(TOY, TOY.reports)
    settings = DecodeSettings(max_new_tokens=TOY.new_tokens, beams=TOY.beams)
    generator = make_generator(TOY.config("published"), settings, start_id=0)
    ours = generator(trainable, frozen, studies, row_keys(0, range(TOY.reports)))
    theirs = beam_search(model, torch.tensor(studies.images), 0, TOY.beams, TOY.new_tokens)
    np.testing.assert_array_equal(ours.tokens[:, 0], theirs.numpy())
    assert len(np.unique(theirs.numpy())) > 2
