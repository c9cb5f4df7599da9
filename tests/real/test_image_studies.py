"""Real studies of IU X-ray with their radiographs: read, cleaned as published, stored, and read back."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from common.data.builders import open_split, prepare
from common.data.cleaning import r2gen_clean_iu
from common.data.images import read_image, resize_shorter
from common.data.openi import read_openi
from common.data.readers import read_openi_images
from common.data.records import Quarantine
from common.data.vocabulary import Corpus, merged_vocabulary
from common.errors import UserError


@pytest.fixture(scope="module")
def iu_xray(real_data: Path) -> Path:
    return real_data / "iu_xray"


@pytest.fixture(scope="module")
def published_split(iu_xray) -> dict:
    return json.loads((iu_xray / "r2gen_split.json").read_text())


def test_the_published_split_names_every_study_and_says_which_images_are_missing(iu_xray):
    quarantine = Quarantine()
    with pytest.raises(UserError, match="no usable study in the validation split, 2952 records quarantined"):
        read_openi_images(iu_xray / "NLMCXR_reports.tgz", iu_xray / "images", iu_xray / "r2gen_split.json", quarantine)
    # Every study of the split has FINDINGS; three of the 2,955 have their images beside the reports.
    assert quarantine.counts() == {"image file missing": 2952}


def test_radiographs_and_reports_come_back_from_a_prepared_data_set(iu_xray, published_split, tmp_path):
    entries = {entry["id"].split("_")[0]: entry for entry in published_split["train"]}
    split = {"train": [entries["CXR1000"]], "val": [entries["CXR1900"]], "test": [entries["CXR7"]]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    splits = read_openi_images(
        iu_xray / "NLMCXR_reports.tgz", iu_xray / "images", tmp_path / "split.json", Quarantine()
    )
    assert [image.name for image in splits["train"][0].images] == [
        "1000_IM-0003-1001.dcm.png",
        "1000_IM-0003-2001.dcm.png",
    ]
    quarantine = Quarantine()
    folder = prepare(splits, tmp_path / "data", "iu-xray", quarantine, shorter_side=256)
    assert not quarantine
    for name, (study,) in splits.items():
        (stored,) = open_split(folder, name)
        assert (stored.id, stored.report, stored.indication, stored.labels) == (
            study.id,
            study.report,
            study.indication,
            study.labels,
        )
        for png, file in zip(stored.images, study.images, strict=True):
            np.testing.assert_array_equal(read_image(png), resize_shorter(read_image(file), 256))


def test_the_vocabulary_of_the_training_reports_has_the_size_of_r2gen(iu_xray, published_split):
    findings = {study.id: study.findings for study in read_openi(iu_xray / "NLMCXR_reports.tgz")}
    numbers = [re.match(r"CXR\d+", entry["id"])[0] for entry in published_split["train"]]
    tokenizer = merged_vocabulary(Corpus([r2gen_clean_iu(findings[number]) for number in numbers], 3))
    # The output layer of R2Gen's published IU X-ray checkpoint has 761 rows: these, <unk> and padding.
    assert len(tokenizer.words) == 759
