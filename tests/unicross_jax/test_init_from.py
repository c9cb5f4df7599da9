"""`--init-from`: a model trained further on other studies, with its scores before training beside those after."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.unicross_jax.runs import arguments, log, make_clip, unicross
from unicross_jax.config import PRESETS
from unicross_jax.trained import load_trained


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture(scope="module")
def first(tmp_path_factory, clip) -> Path:
    """A short run from random weights."""
    run_dir = tmp_path_factory.mktemp("runs") / "first"
    assert unicross(arguments(run_dir, clip, max_steps=2)) == 0
    return run_dir


def further(run_dir: Path, clip: Path, first: Path, **changed: object) -> list[str]:
    """Arguments of a run on studies that the first run has not seen."""
    other = {"init_from": first, "data__phantom_seed": 3, "data__phantom_scanner": "second", "max_steps": 2}
    return arguments(run_dir, clip, **{**other, **changed})


@pytest.fixture(scope="module")
def second(tmp_path_factory, clip, first) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "second"
    assert unicross(further(run_dir, clip, first)) == 0
    return run_dir


def test_training_begins_from_the_weights_and_keeps_the_words(tmp_path, clip, first):
    still = tmp_path / "still"
    assert unicross(further(still, clip, first, optim__learning_rate=0, optim__weight_decay=0, max_steps=1)) == 0
    assert (still / "vocabulary.json").read_bytes() == (first / "vocabulary.json").read_bytes()
    before, after = (load_file(run / "model" / "model.safetensors") for run in (first, still))
    for name, leaf in before.items():
        np.testing.assert_array_equal(after[name], leaf, err_msg=name)


def test_the_checkpoint_of_a_run_that_exported_nothing_is_as_good_a_beginning(tmp_path, clip, first, second):
    stopped = shutil.copytree(first, tmp_path / "stopped", ignore=shutil.ignore_patterns("model"))
    assert unicross(further(tmp_path / "run", clip, stopped)) == 0
    assert [row["loss"] for row in log(tmp_path / "run")] == [row["loss"] for row in log(second)]


def test_scores_before_training_stand_beside_those_after(first, second, tmp_path, capsys):
    run = shutil.copytree(second, tmp_path / "run")
    assert unicross(["evaluate", "--run-dir", str(run)]) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    assert list(metrics["systems"]) == ["this run", "before training", "nearest training study", "constant report"]
    assert metrics["above"]["before training"]["findings/F1"]["value"] is not None
    assert "before training)" in (run / "report.html").read_text()
    # The first run writes the same for these studies when it is evaluated itself.
    config = json.loads((first / "config.json").read_text())
    config["data"] |= {"phantom_seed": 3, "phantom_scanner": "second"}
    itself = shutil.copytree(first / "model", tmp_path / "itself")
    (itself / "config.json").write_text(json.dumps(config))
    assert unicross(["evaluate", "--run-dir", str(itself)]) == 0
    alone = json.loads((itself / "metrics.json").read_text())["systems"]["this run"]
    for name, score in metrics["systems"]["before training"].items():
        if not name.startswith("coco-cut/"):
            assert score["value"] == alone[name]["value"], name
    capsys.readouterr()


def test_an_evaluation_does_without_the_first_run_where_it_is_gone(second, tmp_path, capsys):
    run = shutil.copytree(second, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"init_from": str(tmp_path / "gone")}))
    assert unicross(["evaluate", "--run-dir", str(run)]) == 0
    assert "gone: no such directory; scores before training are left out" in capsys.readouterr().out
    assert "before training" not in json.loads((run / "metrics.json").read_text())["systems"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model__heads": 4}, "{first}/model was trained with model.heads 2, and this run has 4; give --model.heads 2"),
        ({"model__conditioning": "published"}, "give --model.conditioning causal"),
        ({"vocabulary__kind": "clip"}, "give --vocabulary.kind words"),
        ({"init_from": "nowhere"}, "nowhere: no config.json there"),
        ({"vocabulary__minimum_count": 5}, "--vocabulary.minimum-count: not read"),
    ],
)  # fmt: skip
def test_a_model_of_another_kind_is_refused(tmp_path, clip, first, capsys, changed, words):
    assert unicross(further(tmp_path / "run", clip, first, **changed)) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert words.format(first=first) in told
    assert not (tmp_path / "run").exists()


def test_another_clip_is_refused(tmp_path, first, capsys):
    other = make_clip(tmp_path / "other", seed=1)
    stopped = shutil.copytree(first, tmp_path / "stopped", ignore=shutil.ignore_patterns("model"))
    for beginning in (stopped, first):
        assert unicross(further(tmp_path / "run", other, beginning)) == 2
        assert "Traceback" not in capsys.readouterr().err


def test_an_ablation_begins_from_random_weights(tmp_path, capsys):
    assert unicross(["ablation", "--preset", "demo", "--directory", str(tmp_path / "ablation")]) == 2
    assert "init_from" in capsys.readouterr().err


def test_the_demo_fits_the_shipped_model():
    """What the shipped model was trained with, and what the demo trains it further with, agree."""
    shipped = load_trained(Path("unicross_jax/assets/demo").absolute())
    demo = PRESETS["demo"]
    assert demo.init_from == "embedded"
    assert demo.model == shipped.config.model
    assert demo.data.phantom_seed != shipped.config.data.phantom_seed
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(shipped.trainable))
