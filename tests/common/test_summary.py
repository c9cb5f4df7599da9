"""The line that names a command's data: files, splits, what is left out, cut and unknown; no text and no id."""

import dataclasses
import json

import numpy as np

from common.clinical.labeler import load_labeler, texts_line
from common.clinical.score_command import main as metrics
from common.data.images import encode_png
from common.data.records import Quarantine
from common.data.source import StudySource
from common.data.splits import load_splits as load_study_splits
from common.data.summary import Cut, already, data_line, first_of, share_of, study_line, unknown_share
from common.data.tokenizers import build_word_tokenizer
from deer_jax.cli import dispatch as deer
from retsta_jax.config import PRESETS
from retsta_jax.data import load_splits, splits_line


def test_everything_that_was_counted_is_in_one_line():
    quarantine = Quarantine([("p1", "empty report"), ("p2", "empty report"), ("p3", "no image")])
    quarantine.note("views left out", 14)
    counts = {"train": 2069, "validation": 296, "test": 590}
    line = data_line(
        ["rows.jsonl"], "rows, cleaning lossless", counts, quarantine=quarantine, cut=Cut(1200, 60), unknown=0.0131
    )
    assert line == (
        "data: rows.jsonl (rows, cleaning lossless): train 2,069, validation 296, test 590; quarantined 3 (empty "
        "report: 2, no image: 1); cut 1,200 at 60 tokens; 1.3% of words unknown; 14 views left out"
    )


def test_nothing_left_out_is_said_too_and_what_does_not_apply_is_not():
    assert (
        data_line([], "fundus", {"train": 1}, quarantine=Quarantine())
        == "data: generated (fundus): train 1; quarantined 0"
    )
    assert data_line(["a"], "rows", {"reports": 2}, notes=[*already(1), *first_of(2, 9)]) == (
        "data: a (rows): reports 2; 1 done already; the first 2 of 9"
    )
    assert not already(0)
    assert not first_of(0, 9)
    assert not first_of(9, 9)


def test_names_of_files_cannot_move_the_cursor_and_many_are_counted():
    line = data_line(["a\x1b[2J\nb", *"cdefg"], "images", {})
    assert line == "data: a\\x1b[2J\\nb, c, d, e, 2 more (images): "


def test_the_share_of_unknown_words_leaves_start_and_end_out():
    tokenizer = build_word_tokenizer(["the heart is large"] * 3)
    row = [tokenizer.bos_id, *tokenizer.encode("the lung is large"), tokenizer.eos_id]
    assert unknown_share(tokenizer, [row]) == 0.25
    assert unknown_share(object(), [row]) is None
    assert share_of(1, []) == 0


def test_views_that_are_left_out_are_counted(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(encode_png(np.zeros((8, 8), np.uint8)))
    rows = [
        {"id": f"Miller {split}", "images": ["a.png", "b.png", "c.png"], "report": "Secret heart.", "split": split}
        for split in ("train", "val", "test")
    ]
    rows.append({"id": "empty", "images": ["a.png"], "report": " ", "split": "train"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = StudySource(layout="rows", source=str(tmp_path / "rows.jsonl"), images=str(tmp_path), views=2)
    quarantine = Quarantine()
    splits = load_study_splits(data, 8, lambda image: image, quarantine)
    line = study_line(data, {name: len(split.studies) for name, split in splits.items()}, quarantine)
    assert line == (
        f"data: {data.source}, {data.images} (rows, cleaning lossless): train 1, validation 1, test 1; "
        "quarantined 1 (empty report: 1); 3 views left out"
    )
    assert "Miller" not in line
    assert "Secret" not in line


def test_drawn_and_generated_data_say_so():
    drawn = StudySource(train_size=2, validation_size=0, test_size=0, cleaning="r2gen-iu", phantom_seed=3)
    line = study_line(drawn, {"train": 2}, Quarantine())
    assert line == "data: drawn (phantom, seed 3, first scanner, cleaning r2gen-iu): train 2; quarantined 0"
    config = PRESETS["demo"]
    quarantine = Quarantine()
    line = splits_line(config, {"train": 4000}, quarantine)
    assert line == (
        "data: generated (fundus, language both, held out by states, seed 0, cleaning lossless): train 4,000; "
        "quarantined 0"
    )


def test_own_pairs_are_named_with_what_cannot_be_used(tmp_path):
    files = {name: tmp_path / f"{name}.jsonl" for name in ("train", "validation", "test")}
    for name, file in files.items():
        rows = [{"id": f"{name} {text}", "source": text, "target": "b"} for text in ("a", "")]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = PRESETS["retsta-7b"]
    data = dataclasses.replace(config.data, **{name: str(file) for name, file in files.items()})
    config, quarantine = dataclasses.replace(config, data=data), Quarantine()
    splits = load_splits(config, quarantine)
    counts = {name: len(getattr(splits, name)) for name in files}
    assert splits_line(config, counts, quarantine, 0.5) == (
        f"data: {', '.join(map(str, files.values()))} (jsonl, cleaning lossless): train 1, validation 1, test 1; "
        "quarantined 3 (no source text: 3); 50.0% of words unknown"
    )


def test_a_labeler_says_what_it_cuts_and_does_not_know():
    labeler = load_labeler("phantom")
    long = "no pleural effusion. " * labeler.window
    line = texts_line(["f.jsonl"], {"reports": 2}, labeler, [long, "the heart is large."])
    assert line == (
        f"data: f.jsonl (rows, cleaning white space): reports 2; cut 1 at {labeler.window} tokens; "
        "0.0% of words unknown"
    )
    assert "; 100.0% of words unknown" in texts_line([], {}, labeler, ["\u773c \u5e95"])


def test_a_command_whose_rows_go_to_standard_output_names_its_data_on_standard_error(tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    row = {"id": "p1", "prediction": "the heart", "reference": "the heart is", "report": "the heart", "labels": []}
    file.write_text(json.dumps({**row, "labels": [[0] * 14, [1] * 14]}) + "\n")
    for command, counted in (
        (lambda: metrics([str(file)]), "(rows): reports 1"),
        (lambda: deer(["select", str(file), "--fraction", "1"]), "(rows): studies 1, samples 2"),
        (
            lambda: deer(["label", str(file), "--labeler", "phantom"]),
            "(rows, cleaning white space): reports 1; cut 0 at",
        ),
    ):
        command()
        said = capsys.readouterr()
        assert said.err.startswith(f"data: {file} {counted}")
        json.loads(said.out)
