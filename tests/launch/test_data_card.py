"""`medreport data show`: counts, leaks between splits against brute force, and no text in its JSON."""

import json

import numpy as np
import pytest

from common.data.builders.command import main as prepare_data
from common.data.images import encode_png
from common.errors import UserError
from launch.data_card.command import main
from launch.data_card.leaks import duplicates_in
from retsta_jax.labelling.duplicates import DuplicateConfig, normalized

REPORT = "The heart is normal in size and the lungs are clear without an effusion, number {}."


@pytest.fixture
def rows(tmp_path):
    """Twelve studies: one without its image, one whose report is another's, patients of two studies each."""
    written = []
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (48, 48), dtype=np.uint8)
        (tmp_path / f"{number}.png").write_bytes(encode_png(pixels))
        name, split = ("absent" if number == 4 else number), ("train", "validation", "test")[number % 3]
        text = REPORT.format("zero") if number in (0, 5) else f"Finding {'abcdefghijkl'[number] * 9}. Dr. Roe."
        row = {"id": str(number), "images": [f"{name}.png"], "report": text, "split": split, "labels": ["Secret"]}
        written.append(row | {"patient": number // 2})
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, written)), "utf-8")
    return file


def test_the_card_counts_what_trainings_read(rows, tmp_path, capsys):
    page = tmp_path / "card.html"
    arguments = ["show", "--layout", "rows", "--source", str(rows), "--images", str(tmp_path), "--output", str(page)]
    main(arguments)
    numbers = json.loads((tmp_path / "card.json").read_text("utf-8"))
    assert {name: own["records"] for name, own in numbers["splits"].items()} == {"train": 4, "validation": 3, "test": 4}
    assert numbers["quarantine"] == {"image file missing": 1}
    across = {(own["asked"], own["known"]): own for own in numbers["duplicates"]["across"]}
    assert (across["test", "train"]["exact"], across["validation", "train"]["exact"]) == (1, 0)
    assert across["test", "train"]["patients"] == 2  # studies 2 and 3 are of one patient, 8 and 9 of another
    html = page.read_text("utf-8")
    assert html.count("data:image/jpeg") == 6
    assert "Dr. Roe" in html
    assert "Roe" not in (tmp_path / "card.json").read_text("utf-8") + "".join(capsys.readouterr())
    main(arguments)  # an earlier card is replaced, by the same one
    assert page.read_text("utf-8") == html


@pytest.mark.parametrize("seed", range(3))
def test_duplicates_are_those_of_brute_force(seed):
    random = np.random.default_rng(seed)
    base = ["".join(random.choice(list("abcdef"), 60)) for _ in range(8)]

    def edited(text):
        letters = list(text)
        for index in random.integers(len(letters), size=random.integers(0, 5)):
            letters[index] = "x"
        return "".join(letters)

    known, asked = ([edited(text) for text in base for _ in range(3)] for _ in range(2))
    exact, near = duplicates_in(known, asked, DuplicateConfig(bands=128, rows=2))

    def jaccard(one, other):
        sets = [{text[i : i + 3] for i in range(len(text) - 2)} for text in map(normalized, (one, other))]
        return len(sets[0] & sets[1]) / len(sets[0] | sets[1])

    assert exact.tolist() == [text in known for text in asked]
    assert near.tolist() == [text not in known and any(jaccard(text, own) >= 0.8 for own in known) for text in asked]
    assert near.any()


def test_pairs_of_files_are_read(tmp_path):
    for name in ("train", "validation", "test"):
        row = {"id": name, "source": "left eye: drusen", "target": "Left eye: drusen.", "patient": "one"}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row), "utf-8")
    files = [
        word for name in ("train", "validation", "test") for word in (f"--{name}", str(tmp_path / f"{name}.jsonl"))
    ]
    main(["show", "--layout", "pairs", *files, "--output", str(tmp_path / "card.html")])
    numbers = json.loads((tmp_path / "card.json").read_text("utf-8"))
    assert [own["exact"] for own in numbers["duplicates"]["across"]] == [1, 1, 1]
    assert [own["patients"] for own in numbers["duplicates"]["across"]] == [1, 1, 1]
    assert numbers["labels"]["reports"] == {"drusen": {"train": 1, "validation": 1, "test": 1}}


def test_what_is_missing_or_foreign_is_said(tmp_path, rows):
    with pytest.raises(UserError, match="also needs --train and --validation and --test"):
        main(["show", "--layout", "pairs", "--output", str(tmp_path / "card.html")])
    (tmp_path / "other.html").write_text("mine", "utf-8")
    with pytest.raises(UserError, match="left unchanged"):
        main(["show", "--layout", "rows", "--source", str(rows), "--output", str(tmp_path / "other.html")])


def test_prepared_data_have_a_card_without_text(rows, tmp_path):
    for output in ("one", "two"):
        options = ["--layout", "rows", "--source", str(rows), "--images", str(tmp_path)]
        prepare_data([*options, "--output", str(tmp_path / output)])
    cards = [tmp_path / output / "image_studies/rows/1.0.0/README.md" for output in ("one", "two")]
    first, second = (card.read_text("utf-8") for card in cards)
    assert first == second
    assert first.startswith("---\nlicense: other")
    assert "| image file missing | 1 |" in first
    assert "| test | 4 |" in first
    assert "Roe" not in first
    folder = str(cards[0].parent)
    main(["show", "--layout", "prepared", "--source", folder, "--output", str(tmp_path / "card.html")])
    numbers = json.loads((tmp_path / "card.json").read_text("utf-8"))
    assert numbers["splits"]["train"] == {"records": 4, "images": 4, "patients": None}
    assert numbers["quarantine"] == {"image file missing": 1}


def test_duplicates_of_real_reports_are_those_of_brute_force(real_data, tmp_path):
    source, split = real_data / "iu_xray/NLMCXR_reports.tgz", real_data / "openi_labels/openi-testset.txt"
    files = ["--source", str(source), "--split", str(split)]
    main(["show", "--layout", "openi-codes", *files, "--output", str(tmp_path / "card.html")])
    numbers = json.loads((tmp_path / "card.json").read_text("utf-8"))
    across = {(own["asked"], own["known"]): own for own in numbers["duplicates"]["across"]}
    # Found by comparing Python's sets of 3-grams of each test report with those of every training report.
    assert (across["test", "train"]["exact"], across["test", "train"]["near"]) == (195, 124)
    assert [own["found"] for own in numbers["identifiers"].values()] == [0, 0, 0]
