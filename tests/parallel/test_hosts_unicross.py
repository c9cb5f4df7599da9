"""Two hosts evaluate a run, and report images, as one does."""

import shutil

import pytest
from PIL import Image

from common.phantoms.phantom import make_phantom
from tests.hosts import on_hosts
from tests.unicross_jax.runs import arguments, make_clip, unicross


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("unicross")
    sizes = {"max_steps": 2, "checkpoint_every": 2, "evaluate_every": 2, "data__test_size": 5, "beams": 1}
    assert unicross(arguments(root / "run", make_clip(root / "clip"), **sizes)) == 0
    return root / "run"


def on_one_and_on_two(words):
    """Run what `words` gives for a folder of each."""
    for name, hosts in (("alone", 1), ("together", 2)):
        codes, said = on_hosts("unicross_jax.cli", [words(name)] * hosts, devices=3 - hosts)
        assert codes == [0] * hosts, said


def test_evaluate(trained, tmp_path):
    for name in ("alone", "together"):
        shutil.copytree(trained, tmp_path / name)
    on_one_and_on_two(lambda name: ["evaluate", "--run-dir", str(tmp_path / name), "--batch-size", "4"])
    for name in ("predictions.jsonl", "metrics.json"):
        assert (tmp_path / "together" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert (tmp_path / "together" / "report.html").exists()


def test_report_with_drafts(trained, tmp_path):
    files = []
    for number in range(3):
        files.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(make_phantom(9, number, 48).frontal).save(files[-1])

    def words(name):
        draft = ["--draft", "none" if name == "alone" else "reports", "--batch-size", "1"]
        return ["report", *files, "--checkpoint", str(trained), "--output", str(tmp_path / f"{name}.jsonl"), *draft]

    on_one_and_on_two(words)
    assert (tmp_path / "together.jsonl").read_bytes() == (tmp_path / "alone.jsonl").read_bytes()
    assert (tmp_path / "together.html").exists()
