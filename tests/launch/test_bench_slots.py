"""The benchmarks of slots and drafts on a few toy reports: what is written agrees, and the fields are there."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from common.errors import UserError
from launch.bench import report_model, slots, speculation, standardize
from launch.bench.report_model import Shape
from tests.launch.test_bench import BARE_IMAGE

TOY = Shape(
    hidden=32, layers=2, heads=4, kv_heads=2, intermediate=48, vocabulary=400, epochs=30, rows=4, length=128,
    learning_rate=1e-2, studies=10, new_tokens=24, batch=4, slots=3, drafts=(4,), single=3, prompts=2, group=2,
    repetitions=1,
)  # fmt: skip
SENTENCES = ("The heart is normal in size.", "The lungs are clear.", "No pleural effusion.", "No pneumothorax.")


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Reports of a few sentences each, in the layout of the archive unpacked."""
    folder = tmp_path_factory.mktemp("reports")
    random = np.random.default_rng(0)
    for number in range(1, 41):
        sections = {
            "INDICATION": random.choice(["Chest pain.", "Cough.", "Fever and shortness of breath for two days."]),
            "FINDINGS": " ".join(random.permutation(SENTENCES)[: random.integers(1, 5)]),
            "IMPRESSION": "Normal chest.",
        }
        texts = "".join(f'<AbstractText Label="{name}">{text}</AbstractText>' for name, text in sections.items())
        (folder / f"{number}.xml").write_text(f'<eCitation><uId id="CXR{number}"/>{texts}</eCitation>')
    return folder


@pytest.fixture(scope="module")
def directory(reports, tmp_path_factory):
    """The trained model, made by the command on an image without what the peer needs."""
    model = tmp_path_factory.mktemp("bench") / "model"
    flags = [f"--{key.replace('_', '-')}={_text(value)}" for key, value in dataclasses.asdict(TOY).items()]
    command = ["bench", "speculation", *flags, f"--reports={reports}", f"--directory={model}"]
    done = subprocess.run(
        [sys.executable, "-c", BARE_IMAGE.replace('"safetensors", ', ""), *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (model / "speculation.json").write_text(done.stdout)
    assert "normal in size" not in done.stdout + done.stderr
    return model


def _text(value):
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def test_drafts_save_passes_and_change_nothing(directory):
    result = json.loads((directory / "speculation.json").read_text())
    assert result["greedy"].keys() == {"none", "drafts_4"}
    sources = ("history", "reports", "both")
    assert result["rollouts"].keys() == {"none", *(f"{source}_4" for source in sources)}
    for cases in (result["greedy"], result["rollouts"]):
        assert cases["none"]["tokens_per_pass"] == 1
        for name, case in cases.items():
            assert case["rows_that_differ"] == 0
            assert case["tokens"] == cases["none"]["tokens"]
            assert name == "none" or case["passes"] < cases["none"]["passes"]
    assert set(result["goals"]) == {"greedy_tokens_per_pass", "history_to_none"}
    assert result["ratios"]["greedy_tokens_per_pass"] == result["greedy"]["drafts_4"]["tokens_per_pass"] > 2
    assert result["reports"]["training"] == 30


def test_slots_and_static_batches_write_the_same_as_transformers(reports, directory):
    pytest.importorskip("torch", reason="torch is not installed (make dev)")
    result = slots.measure(TOY, reports, directory, with_peer=True)
    cases = result["cases"]
    ours = {"static_batches", "slots", "slots_drafts_4", "single_none", "single_drafts_4"}
    assert cases.keys() > ours | {"one_device", "dynamic_cache", "prompt_lookup"}
    for name, case in cases.items():
        assert case["rows_that_differ"] == 0, name
        assert case["lowest"] <= case["reports_per_second"] <= case["highest"]
    assert cases["static_batches"]["passes"] > cases["slots_drafts_4"]["passes"]
    assert cases["static_batches"]["tokens_per_pass"] == 1
    best = result["best"]
    rate = cases[best]["reports_per_second"]
    assert result["ratios"]["to_transformers"] == rate / cases["dynamic_cache"]["reports_per_second"]
    assert set(result["goals"]) == {"to_transformers", "to_static_batches", "devices_to_one"}
    assert result["reports"]["written"] == TOY.studies


def test_a_directory_of_another_model_is_not_used(reports, directory):
    with pytest.raises(UserError, match="another --epochs"):
        report_model.report_model(dataclasses.replace(TOY, epochs=3), reports, directory)
    with pytest.raises(UserError, match="not a model of this benchmark"):
        report_model.report_model(TOY, reports, reports)
    with pytest.raises(UserError, match="expected fewer than the 40 whole reports"):
        speculation.measure(dataclasses.replace(TOY, studies=40), reports, directory)


def test_all_ways_to_standardize_write_the_same(retsta_run, monkeypatch):
    monkeypatch.setattr(standardize, "DRAFTS", ("none", "all"))  # each is a compilation
    result = standardize.measure(standardize.Shape(reports=3, slots=3, repetitions=1), retsta_run)
    cases = result["cases"]
    assert cases.keys() == {"static_batches", "slots", "slots_all"}
    assert all(case["rows_that_differ"] == 0 for case in cases.values())
    assert cases["slots"]["tokens_per_pass"] == 1
    rate = max(case["reports_per_second"] for name, case in cases.items() if name != "static_batches")
    assert result["ratios"]["to_static_batches"] == rate / cases["static_batches"]["reports_per_second"]
    assert set(result["goals"]) == {"to_static_batches", "tokens_per_pass"}
