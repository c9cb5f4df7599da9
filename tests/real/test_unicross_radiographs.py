"""UniCrossAdapter on real radiographs and reports: the path from files to pages works. A random tiny CLIP and a few
updates say nothing of quality."""

import csv
import json
from pathlib import Path

import pytest

from tests.unicross_jax.runs import arguments, log, make_clip, unicross


@pytest.fixture(scope="module")
def clip(tmp_path_factory, real_data: Path) -> dict[str, object]:
    """Options for a tiny CLIP with CLIP's own tokens."""
    directory = make_clip(tmp_path_factory.mktemp("clip") / "clip", vocabulary=49_408)
    vocabulary = real_data / "tokenizers" / "clip" / "bpe_simple_vocab_16e6.txt.gz"
    return {"clip": directory, "model__clip_vocabulary": vocabulary}


def test_every_radiograph_with_a_note_can_be_learned_from_and_reported(real_data, clip, tmp_path):
    folder = real_data / "covid_chestxray"
    with (folder / "metadata_subset.csv").open(newline="", encoding="utf-8") as file:
        notes = [row for row in csv.DictReader(file) if row["clinical_notes"].strip()]
    splits = ["val", "val", "test", "test"]
    rows = [
        {
            "id": str(number),
            "images": [row["local_file"]],
            "report": row["clinical_notes"],
            "split": splits[number] if number < len(splits) else "train",
        }
        for number, row in enumerate(notes)
    ]
    assert len(rows) == 131
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"data__layout": "rows", "data__source": tmp_path / "rows.jsonl", "data__images": folder}
    run_dir = tmp_path / "run"
    options = {
        "epochs": 1,
        "max_steps": 16,
        "data__views": 1,
        "data__cleaning": "r2gen-iu",
        "optim__learning_rate": 3e-3,
    }
    assert unicross(arguments(run_dir, **clip, **data, **options)) == 0
    losses = [row["loss"] for row in log(run_dir)]
    assert len(losses) == 16  # 127 studies
    assert sum(losses[-4:]) < sum(losses[:4])
    assert not (run_dir / "quarantine.jsonl").read_text()
    assert unicross(["evaluate", "--run-dir", str(run_dir)]) == 0
    assert len((run_dir / "predictions.jsonl").read_text().splitlines()) == 2
    others = [
        str(file) for file in sorted((real_data / "nih_chestxray14").iterdir()) if file.suffix in (".png", ".jpg")
    ]
    output = tmp_path / "out.jsonl"
    assert unicross(["report", *others, "--checkpoint", str(run_dir), "--output", str(output)]) == 0
    assert [json.loads(line)["images"] for line in output.read_text().splitlines()] == [[name] for name in others]


def test_studies_of_the_published_split_train_with_their_indications(real_data, clip, tmp_path):
    folder = real_data / "iu_xray"
    published = json.loads((folder / "r2gen_split.json").read_text())
    entries = {entry["id"].split("_")[0]: entry for entry in published["train"]}
    split = {"train": [entries["CXR1000"]], "val": [entries["CXR1900"]], "test": [entries["CXR7"]]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    data = {
        "data__layout": "openi",
        "data__source": folder / "NLMCXR_reports.tgz",
        "data__images": folder / "images",
        "data__split": tmp_path / "split.json",
    }
    run_dir = tmp_path / "run"
    run = arguments(run_dir, **clip, **data, vocabulary__kind="clip", batch_size=8, max_steps=2)
    assert unicross(run) == 0
    assert unicross(["evaluate", "--run-dir", str(run_dir), "--beams", "2"]) == 0
    assert not (run_dir / "vocabulary.json").exists()
