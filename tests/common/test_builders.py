"""A tiny data set prepared from files and read back through Grain, bit by bit."""

import dataclasses
import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data.builders import open_split, prepare, prepared_layout
from common.data.builders.command import main
from common.data.images import read_image, resize_shorter
from common.data.readers import ImageStudy, StudySplits
from common.data.records import Quarantine
from common.data.source import StudySource
from common.data.splits import prepared_names, prepared_split
from common.errors import UserError


def write_picture(path: Path, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (20 + seed, 30), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def splits(tmp_path: Path) -> StudySplits:
    """Four studies of one to four pictures that differ in size."""
    studies = [
        ImageStudy(
            f"研究{index}",
            tuple(write_picture(tmp_path / f"{index}-{view}.png", 4 * index + view) for view in range(index + 1)),
            f"Report {index}.\nNo effusion, 2.5 cm².",
            "" if index else "cough",
            ("normal", "Opacity/lung")[:index],
            "zh" if index == 3 else "en",
        )
        for index in range(4)
    ]
    return {"train": studies[:2], "validation": studies[2:3], "test": studies[3:]}


def test_studies_come_back_bit_by_bit(tmp_path, splits):
    quarantine = Quarantine()
    folder = prepare(splits, tmp_path / "data", "tiny", quarantine)
    assert folder == tmp_path / "data" / "image_studies" / "tiny" / "1.0.0"
    assert not quarantine
    assert (folder / "quarantine.jsonl").read_text() == ""
    for name, studies in splits.items():
        stored = {study.id: study for study in open_split(folder, name)}
        assert stored.keys() == {study.id for study in studies}
        for study in studies:
            found = stored[study.id]
            assert dataclasses.replace(found, images=study.images) == study
            assert len(found.images) == len(study.images)
            for png, file in zip(found.images, study.images, strict=True):
                np.testing.assert_array_equal(read_image(png), read_image(file))


def test_a_seed_gives_one_order_and_each_study_once_an_epoch(tmp_path, splits):
    everything = {"train": [study for studies in splits.values() for study in studies]}
    folder = prepare(everything, tmp_path / "data", "tiny", Quarantine())

    def order(seed: int) -> list[str]:
        return [study.id for study in open_split(folder, "train").seed(seed).shuffle().repeat(3)]

    assert order(0) == order(0)
    assert len({tuple(order(seed)) for seed in range(5)}) > 1
    for epoch in range(3):
        assert sorted(order(7)[4 * epoch : 4 * epoch + 4]) == sorted(study.id for study in everything["train"])


def test_pictures_can_be_stored_at_the_size_of_training(tmp_path, splits):
    folder = prepare(splits, tmp_path / "data", "small", Quarantine(), shorter_side=16)
    (study,) = open_split(folder, "test")
    for png, file in zip(study.images, splits["test"][0].images, strict=True):
        np.testing.assert_array_equal(read_image(png), resize_shorter(read_image(file), 16))


def test_a_study_with_an_unreadable_picture_is_quarantined(tmp_path, splits):
    splits["train"][1].images[1].write_bytes(b"no picture")
    quarantine = Quarantine()
    quarantine.add("earlier", "empty report")
    folder = prepare(splits, tmp_path / "data", "tiny", quarantine)
    assert [study.id for study in open_split(folder, "train")] == ["研究0"]
    assert quarantine.entries == [("earlier", "empty report"), ("研究1", "image cannot be read")]
    rows = (folder / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(rows[1]) == {"id": "研究1", "reason": "image cannot be read"}


def test_a_split_without_a_readable_study_leaves_no_data_set(tmp_path, splits):
    splits["test"][0].images[0].write_bytes(b"")
    with pytest.raises(UserError, match="no images of the test split can be read"):
        prepare(splits, tmp_path / "data", "tiny", Quarantine())
    with pytest.raises(UserError, match="no data set with a split test"):
        open_split(tmp_path / "data" / "image_studies" / "tiny" / "1.0.0", "test")


def test_report_text_stays_out_of_what_is_logged(tmp_path, splits, capfd, caplog):
    with caplog.at_level(logging.DEBUG), caplog.at_level(logging.DEBUG, logger="absl"):  # others turn absl down
        prepare(splits, tmp_path / "data", "tiny", Quarantine())
    captured = capfd.readouterr()
    assert caplog.text
    assert "effusion" not in captured.out + captured.err + caplog.text


def test_an_existing_data_set_is_never_taken_for_the_new_one(tmp_path, splits):
    prepare(splits, tmp_path / "data", "tiny", Quarantine())
    with pytest.raises(UserError, match=r"1\.0\.0: already exists; remove it"):
        prepare(splits, tmp_path / "data", "tiny", Quarantine())
    prepare(splits, tmp_path / "data", "other", Quarantine())


def test_a_data_set_appears_with_all_that_belongs_to_it(tmp_path, splits, monkeypatch):
    """Also where a command ends before its last file; what it leaves is in nobody's way."""

    def ended(self, path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Quarantine, "write", ended)
        with pytest.raises(KeyboardInterrupt):
            prepare(splits, tmp_path / "data", "tiny", Quarantine(), layout="rows")
    assert not [*(tmp_path / "data").iterdir()]
    (tmp_path / "data" / ".tiny.partial").mkdir()
    (tmp_path / "data" / ".tiny.partial" / "left.png").write_bytes(b"by a killed command")
    folder = prepare(splits, tmp_path / "data", "tiny", Quarantine(), layout="rows")
    assert prepared_layout(folder) == "rows"
    assert [file.name for file in (tmp_path / "data").iterdir()] == ["image_studies"]


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc", "two words"])
def test_a_name_that_is_no_folder_name_is_refused(tmp_path, splits, name):
    with pytest.raises(UserError, match="cannot name a data set"):
        prepare(splits, tmp_path / "data", name, Quarantine())


def test_missing_data_sets_and_splits_are_one_clear_error(tmp_path, splits):
    folder = prepare(splits, tmp_path / "data", "tiny", Quarantine())
    for path, split in ((tmp_path / "absent", "train"), (tmp_path, "train"), (folder, "dev")):
        with pytest.raises(UserError, match=f"no data set with a split {split}") as refusal:
            open_split(path, split)
        assert "\n" not in str(refusal.value)


def test_a_damaged_data_set_is_one_clear_error(tmp_path, splits):
    folder = prepare(splits, tmp_path / "data", "tiny", Quarantine())
    (records,) = folder.glob("*-train.array_record*")
    records.write_bytes(records.read_bytes()[:1000])
    config = StudySource(layout="prepared", source=str(folder))
    with pytest.raises(UserError, match=r"its train split is damaged|no data set with a split train"):
        prepared_split(config, lambda image: image, "train", Quarantine())
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match="no data set with a split train"):
        prepared_split(config, lambda image: image, "train", Quarantine())


def write_rows(tmp_path: Path) -> Path:
    rows = [
        {"id": str(index), "images": [f"{index}.png"], "report": f"Report {index}.", "split": split}
        for index, split in enumerate(("train", "train", "train", "val", "test"))
    ]
    for index in (0, 1, 3, 4):
        write_picture(tmp_path / f"{index}.png", index)
    (tmp_path / "1.png").write_bytes(b"GIF89a")
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_the_command_says_how_many_studies_it_wrote_and_left_out(tmp_path, capsys):
    command = ["--layout", "rows", "--source", str(write_rows(tmp_path)), "--images", str(tmp_path)]
    main([*command, "--output", str(tmp_path / "data"), "--name", "ffa", "--shorter-side", "16"])
    assert capsys.readouterr().out.endswith(
        "image_studies/ffa/1.0.0: train 1, validation 1, test 1; 2 records quarantined "
        "(image file missing: 1, image cannot be read: 1)\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layout", "rows"], "the following arguments are required: --source, --output"),
        (["--layout", "dicom", "--source", "x", "--output", "y"], "invalid choice: 'dicom'"),
        (["--layout", "openi", "--source", "x", "--output", "y"], "openi also needs --images and --split"),
        (["--layout", "mimic", "--source", "absent", "--output", "y"], "absent: no mimic-cxr-2.0.0-split.csv"),
        (["--layout", "rows", "--source", "x", "--output", "y", "--shorter-side", "0"], "--shorter-side: invalid"),
    ],
)
def test_a_wrong_command_is_one_clear_error(arguments, message):
    with pytest.raises(UserError, match=message):
        main(arguments)


def test_beam_is_asked_for_only_where_it_is_installed(tmp_path, splits, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam.options.pipeline_options", None)
    with pytest.raises(UserError, match="apache_beam is not installed; pip install apache-beam"):
        prepare(splits, tmp_path / "data", "tiny", Quarantine(), beam_options=["runner=DirectRunner"])


def test_beam_writes_the_same_studies(tmp_path, splits, monkeypatch):
    beam = pytest.importorskip("apache_beam", reason="apache-beam is an option, not installed here")
    files, read = [], beam.io.ReadFromText
    monkeypatch.setattr(beam.io, "ReadFromText", lambda file: files.append(Path(file)) or read(file))
    splits["train"][1].images[1].write_bytes(b"no picture")
    folders = {}
    for name, options in (("plain", None), ("beam", ["runner=DirectRunner"])):
        quarantine = Quarantine()
        folders[name] = prepare(splits, tmp_path / "data", name, quarantine, beam_options=options)
        assert quarantine.entries == [("研究1", "image cannot be read")]
    for split in splits:
        assert list(open_split(folders["beam"], split)) == list(open_split(folders["plain"], split))
    assert [file.name for file in files] == [f"{split}.jsonl" for split in splits]  # where all workers see them
    assert all((tmp_path / "data").resolve() in file.resolve().parents for file in files)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["image_studies"]  # the reports are gone again
    splits["test"][0].images[0].write_bytes(b"")
    with pytest.raises(UserError, match="no images of the test split can be read"):
        prepare(splits, tmp_path / "data", "empty", Quarantine(), beam_options=["runner=DirectRunner"])


def test_a_folder_above_a_prepared_data_set_names_it(tmp_path):
    folder = tmp_path / "image_studies" / "rows" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "image_studies-test.array_record-00000-of-00001").touch()
    for wrong in (folder.parent, folder.parents[1], tmp_path):
        with pytest.raises(UserError, match=r"no data set there; name \S+$") as refusal:
            prepared_names(str(wrong))
        assert prepared_names(str(refusal.value).rpartition(" ")[2]) == ["test"]
    with pytest.raises(UserError, match="no data set there; make one with medreport prepare"):
        prepared_names(str(tmp_path / "nowhere"))
