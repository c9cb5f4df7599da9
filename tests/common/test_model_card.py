"""Model cards: what an export says of itself, and the scores that an evaluation adds."""

import pytest
import yaml

from common.errors import UserError
from common.io.exports import atomic_directory
from common.report.model_card import ModelCard, add_results, results_in, write_cards
from common.training.run import BaseWeights
from retsta_jax.evaluate import evaluate_run
from tests.runs import retsta

CARD = ModelCard(
    "A title", BaseWeights("Qwen2.5-7B", "ab" * 32), "data: rows (jsonl): train 3", "retsta train --preset demo",
    languages=["en", "zh"],
)  # fmt: skip
SCORES = {
    "this run": {"findings/F1": {"value": 0.5, "low": 0.4, "high": 0.6}},
    "constant report": {"findings/F1": {"value": 0.25}},
}


def front(text: str) -> dict:
    """The entries at the head of a card, as the hub reads them."""
    return yaml.safe_load(text.split("---\n")[1])


def test_a_card_is_what_the_hub_reads_and_keeps_what_an_adapter_says(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "adapter" / "README.md").write_text("---\nlibrary_name: peft\n---\n\nIts tensors are named so.\n")
    write_cards(tmp_path, CARD)
    adapter, model = ((tmp_path / name / "README.md").read_text() for name in ("adapter", "model"))
    assert (front(adapter)["library_name"], front(model)["library_name"]) == ("peft", "transformers")
    assert front(model) == {
        "library_name": "transformers", "base_model": "Qwen2.5-7B", "license": "other", "language": ["en", "zh"],
        "tags": ["medical"],
    }  # fmt: skip
    for text in (adapter, model):
        assert "abab" in text
        assert "train 3" in text
        assert "Not evaluated yet." in text
        assert "no medical device" in text
    assert adapter.endswith("## Loading\n\nIts tensors are named so.\n")
    assert "Loading" not in model


def test_another_export_replaces_a_card_and_no_other_file_of_that_name(tmp_path):
    directory = tmp_path / "model"

    def export():
        with atomic_directory(directory) as aside:
            (aside / "weights").write_text("w")

    export()
    write_cards(tmp_path, CARD)
    export()
    assert [file.name for file in directory.iterdir()] == ["weights"]
    (directory / "README.md").write_text("my own words")
    with pytest.raises(UserError, match=r"contains README.md, which does not belong to this export"):
        export()
    assert (directory / "README.md").read_text() == "my own words"


def test_results_are_put_in_replaced_and_survive_another_export(tmp_path):
    (tmp_path / "model").mkdir()
    file = tmp_path / "model" / "README.md"
    add_results(tmp_path, SCORES, ["findings/F1"], "test", "retsta evaluate", [])  # no card: nothing to do
    assert not file.exists()
    write_cards(tmp_path, CARD)
    whole = file.read_text()
    for note in ("first note", "second note"):
        add_results(tmp_path, SCORES, ["findings/F1", "absent"], "test", "retsta evaluate --run-dir RUN", [note])
    text = file.read_text()
    assert "| this run | 0.500 [0.400, 0.600] |" in text
    assert "| constant report | 0.250 |" in text
    assert "second note" in text
    assert "first note" not in text
    assert "Not evaluated" not in text
    told = results_in(tmp_path)
    file.unlink()
    write_cards(tmp_path, CARD, told)
    assert file.read_text() == text
    assert text.partition("## Results")[0] == whole.partition("## Results")[0]
    assert text.partition("## Intended")[2] == whole.partition("## Intended")[2]


def test_a_run_has_a_card_with_its_scores_which_training_again_keeps(material, tmp_path):
    run_dir = tmp_path / "run"
    words = material.train(run_dir, max_steps=1, max_new_tokens=4)
    assert retsta(words) == 0
    card = run_dir / "adapter" / "README.md"
    assert f"base model: {material.base.name} " in card.read_text()
    assert "Not evaluated yet." in card.read_text()
    evaluate_run(run_dir, limit=3)
    text = card.read_text()
    assert "| nearest training report |" in text
    assert "--limit 3" in text
    assert str(tmp_path) not in text.partition("## Results")[2]
    assert retsta(words) == 0
    assert card.read_text() == text
