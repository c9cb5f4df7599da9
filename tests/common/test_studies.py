"""Readers of studies with images, on tiny folders: what they read, what they quarantine, what they refuse."""

import json
import os
from pathlib import Path

import pytest

from common.data.readers import ImageStudy, read_annotation, read_image_rows, read_openi_images
from common.data.records import Quarantine
from common.data.sections import HeadingCounts
from common.errors import UserError
from tests.common.test_openi import report as openi_report
from tests.common.test_openi import write_archive


def touch(folder: Path, *names: str) -> None:
    """Readers look at paths only: the files are empty."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def write_json(path: Path, content) -> Path:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def entry(id, report="The heart is normal.", images=("0.png", "1.png")) -> dict:
    return {"id": id, "report": report, "image_path": [f"{id}/{name}" for name in images]}


@pytest.fixture
def annotation() -> dict:
    return {"train": [entry("a"), entry("b")], "val": [entry("c")], "test": [entry("d")]}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    touch(folder, *(f"{id}/{view}.png" for id in "abcd" for view in (0, 1)))
    return folder


def test_an_annotation_gives_three_splits_with_both_views_in_order(tmp_path, annotation, images):
    annotation["train"][0]["report"] = " A 2.5 cm  mass,\r\n left. "
    quarantine = Quarantine()
    splits = read_annotation(write_json(tmp_path / "annotation.json", annotation), images, quarantine)
    assert list(splits) == ["train", "validation", "test"]
    assert splits["train"][0] == ImageStudy(
        "a", (images / "a" / "0.png", images / "a" / "1.png"), "A 2.5 cm mass,\nleft."
    )
    assert [study.id for studies in splits.values() for study in studies] == ["a", "b", "c", "d"]
    assert not quarantine


def test_unusable_studies_are_counted_by_reason(tmp_path, annotation, images):
    annotation["train"] += [entry("e", " \n"), entry("f"), entry("g", images=()), entry(5), entry("h", "___ 1.")]
    os.remove(images / "b" / "1.png")
    quarantine = Quarantine()
    splits = read_annotation(write_json(tmp_path / "annotation.json", annotation), images, quarantine)
    assert [study.id for study in splits["train"]] == ["a"]
    assert quarantine.entries == [
        ("b", "image file missing"),
        ("e", "empty report"),
        ("f", "image file missing"),
        ("g", "no image"),
        ("5", "image file missing"),
        ("h", "empty report"),
    ]


@pytest.mark.parametrize("name", ["x" * 300, "nul\0.png", "\ud800.png"])
def test_an_impossible_file_name_is_a_missing_image(tmp_path, annotation, images, name):
    annotation["train"][1]["image_path"] = [name]
    path = tmp_path / "annotation.json"
    path.write_text(json.dumps(annotation), encoding="utf-8")
    quarantine = Quarantine()
    read_annotation(path, images, quarantine)
    assert quarantine.entries == [("b", "image file missing")]


def test_an_id_in_two_splits_or_twice_in_one_is_refused(tmp_path, annotation, images):
    path = tmp_path / "annotation.json"
    with pytest.raises(UserError, match="id a is in the train split and in the test split"):
        read_annotation(write_json(path, annotation | {"test": [entry("a")]}), images, Quarantine())
    with pytest.raises(UserError, match="id a occurs 2 times in the train split"):
        read_annotation(write_json(path, annotation | {"train": [entry("a"), entry("a")]}), images, Quarantine())


def test_a_split_without_usable_studies_says_why(tmp_path, annotation, images):
    path = write_json(tmp_path / "annotation.json", annotation | {"val": [entry("z"), entry("y", "")]})
    with pytest.raises(UserError, match=r"annotation\.json: no usable study in the validation split, 2 records quar"):
        read_annotation(path, images, Quarantine())
    with pytest.raises(UserError, match=r"train split, 4 records .*image file missing: 4.*; name the folder under"):
        read_annotation(write_json(path, annotation), tmp_path / "elsewhere", Quarantine())
    empty = {name: [entry(id, "") for id in ids] for name, ids in (("train", "ab"), ("val", "c"), ("test", "d"))}
    with pytest.raises(UserError, match=r"empty report: 4\); expected at least one study with a report and its images"):
        read_annotation(write_json(path, empty), images, Quarantine())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot be read \(No such file"),
        ("{", "not JSON"),
        ("[" * 100_000, r"not JSON \(nested more than 100 deep"),
        ("[1]", "expected a JSON object, found list"),
        ('{"train": [], "test": []}', "key 'val' is missing"),
        ('{"train": {}, "val": [], "test": []}', "'train' must be list, found dict"),
        ('{"train": [7], "val": [], "test": []}', "entry 1 of train: expected a JSON object, found int"),
        ('{"train": [{"id": "a"}], "val": [], "test": []}', "entry 1 of train: key 'report' is missing"),
        (
            '{"train": [], "val": [{"id": "a", "report": null, "image_path": []}], "test": []}',
            "entry 1 of val: 'report' must be str, found NoneType",
        ),
    ],
)
def test_a_file_that_is_no_annotation_is_refused_by_place(tmp_path, content, message):
    path = tmp_path / "annotation.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=rf"annotation\.json: {message}") as refusal:
        read_annotation(path, tmp_path, Quarantine())
    assert "\n" not in str(refusal.value)


def test_report_text_never_enters_an_error_or_the_quarantine(tmp_path, annotation, images):
    secret = "Mrs. Smith has a mass."
    annotation["train"] += [entry("e", secret)]
    annotation["test"] = [entry("a", secret)]
    quarantine = Quarantine()
    with pytest.raises(UserError) as refusal:
        read_annotation(write_json(tmp_path / "annotation.json", annotation), images, quarantine)
    assert "Smith" not in str(refusal.value) + str(quarantine.entries)


@pytest.fixture
def openi(tmp_path: Path) -> Path:
    reports = {f"{number}.xml": openi_report(number, findings=f"Finding {number}.") for number in range(1, 6)}
    reports["6.xml"] = openi_report(6, findings="")
    return write_archive(tmp_path / "reports.tgz", reports)


def openi_split(tmp_path: Path, **changes) -> Path:
    def entries(*numbers):
        return [{"id": f"CXR{n}_IM-0003", "image_path": [f"CXR{n}_IM-0003/0.png"]} for n in numbers]

    return write_json(
        tmp_path / "split.json", {"train": entries(1, 2, 6), "val": entries(3), "test": entries(4)} | changes
    )


@pytest.mark.parametrize(
    "name",
    ["CXR{}_IM-0003/0.png", "CXR{}_IM-0003-1001.png", "{}_IM-0003-1001.dcm.png"],
    ids=["r2gen", "openi", "kaggle"],
)
def test_open_i_studies_follow_the_split_of_r2gen_under_each_naming_of_images(tmp_path, openi, name):
    folder = tmp_path / "png"
    touch(folder, *(name.format(number) for number in range(1, 7)))
    quarantine = Quarantine()
    splits = read_openi_images(openi, folder, openi_split(tmp_path), quarantine)
    assert {split: [study.id for study in studies] for split, studies in splits.items()} == {
        "train": ["CXR1_IM-0003", "CXR2_IM-0003"],
        "validation": ["CXR3_IM-0003"],
        "test": ["CXR4_IM-0003"],
    }
    assert splits["test"][0] == ImageStudy(
        "CXR4_IM-0003",
        (folder / name.format(4),),
        "Finding 4.",
        indication="XXXX-year-old, cough",
        labels=("normal",),
    )
    assert quarantine.entries == [("CXR6_IM-0003", "empty report")]


def test_open_i_studies_follow_a_list_of_test_ids(tmp_path, openi):
    folder = tmp_path / "png"
    touch(folder, *(f"CXR{number}_IM-0003-1001.png" for number in (1, 2, 3, 4, 6)))
    test_ids = tmp_path / "test.txt"
    test_ids.write_bytes(b"\xef\xbb\xbfCXR2\r\nCXR5\r\nCXR77\r\n")
    quarantine = Quarantine()
    splits = read_openi_images(openi, folder, test_ids, quarantine, validation=1)
    assert {split: len(studies) for split, studies in splits.items()} == {"train": 2, "validation": 1, "test": 1}
    assert splits["test"][0].id == "CXR2"
    assert quarantine.entries == [
        ("CXR5", "image file missing"),
        ("CXR6", "empty report"),
        ("CXR77", "test id that no report has"),
    ]
    with pytest.raises(UserError, match=r"no usable study, 6 records quarantined.*; name the folder under which"):
        read_openi_images(openi, tmp_path, test_ids, Quarantine())


@pytest.mark.parametrize("id", ["CXR99_IM-0003", "3_IM-0003", "a"])
def test_a_split_entry_without_a_report_is_refused(tmp_path, openi, id):
    split = openi_split(tmp_path, val=[{"id": id, "image_path": ["x.png"]}])
    with pytest.raises(UserError, match=rf"split\.json: id {id} belongs to no report of .*reports\.tgz"):
        read_openi_images(openi, tmp_path, split, Quarantine())


def row(id, images=1, split="train", **others) -> dict:
    names = [f"{id}/{index}.jpg" for index in range(images)]
    return {"id": id, "images": names, "report": f"Report {id}.", "split": split} | others


def write_rows(path: Path, rows: list[dict]) -> Path:
    lines = json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows))
    path.write_text(lines, encoding="utf-8")
    for one in rows:
        touch(path.parent, *one["images"])
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_rows_of_several_images_are_read_from_either_form(tmp_path, name):
    rows = [
        row("v", 3, "val", language="zh"),
        row(1, 2, indication=" Blurred  vision. ", labels=["DR", "macular edema"]),
        row("t", 5, "test"),
    ]
    splits = read_image_rows(write_rows(tmp_path / name, rows), tmp_path, Quarantine())
    assert splits == {
        "train": [
            ImageStudy(
                "1",
                (tmp_path / "1/0.jpg", tmp_path / "1/1.jpg"),
                "Report 1.",
                "Blurred vision.",
                ("DR", "macular edema"),
            )
        ],
        "validation": [ImageStudy("v", tuple(tmp_path / f"v/{n}.jpg" for n in range(3)), "Report v.", language="zh")],
        "test": [ImageStudy("t", tuple(tmp_path / f"t/{n}.jpg" for n in range(5)), "Report t.")],
    }


@pytest.mark.parametrize(
    ("have", "limit", "taken"),
    [(7, 3, [0, 3, 6]), (7, 1, [0]), (3, 3, [0, 1, 2]), (2, 5, [0, 1]), (10, 4, [0, 3, 6, 9]), (100, 2, [0, 99])],
)
def test_of_many_images_some_are_taken_at_equal_distances(tmp_path, have, limit, taken):
    rows = write_rows(tmp_path / "rows.jsonl", [row("a", have)])
    (study,) = read_image_rows(rows, tmp_path, Quarantine(), maximum_images=limit)["train"]
    assert [image.name for image in study.images] == [f"{index}.jpg" for index in taken]


def same_image_twice(tmp_path, layout, quarantine):
    """Studies of a layout whose study `b` names one image twice, in two spellings."""
    if layout == "annotation":
        twice = {"id": "b", "report": "Clear.", "image_path": ["b/0.png", "b/../b/./0.png"]}
        content = {"train": [entry("a"), twice], "val": [entry("c")], "test": [entry("d")]}
        touch(tmp_path, *(f"{id}/{view}.png" for id in "abcd" for view in (0, 1)))
        return read_annotation(write_json(tmp_path / "annotation.json", content), tmp_path, quarantine)
    twice = row("b") | {"images": ["b/0.jpg", *(f"b/{index}.jpg" for index in range(5)), "./b//0.jpg"]}
    rows = write_rows(tmp_path / layout, [row("a"), twice])
    return read_image_rows(rows, tmp_path, quarantine, maximum_images=2)


@pytest.mark.parametrize("layout", ["annotation", "rows.jsonl", "rows.json"])
def test_a_study_that_names_an_image_twice_is_quarantined(tmp_path, layout):
    quarantine = Quarantine()
    assert [study.id for study in same_image_twice(tmp_path, layout, quarantine)["train"]] == ["a"]
    assert quarantine.entries == [("b", "an image named twice")]


def test_an_open_i_split_that_names_an_image_twice_is_quarantined(tmp_path, openi):
    folder = tmp_path / "png"
    touch(folder, *(f"CXR{number}_IM-0003-1001.png" for number in (1, 2, 3, 4, 6)))
    twice = {"id": "CXR4_IM-0003", "image_path": ["CXR4_IM-0003/0.png"] * 2}
    others = {name: [{"id": f"CXR{id}_IM-0003", "image_path": ["0.png"]}] for id, name in ((2, "val"), (3, "test"))}
    train = [{"id": "CXR1_IM-0003", "image_path": ["0.png"]}, twice]
    quarantine = Quarantine()
    split = write_json(tmp_path / "twice.json", {"train": train, **others})
    assert [study.id for study in read_openi_images(openi, folder, split, quarantine)["train"]] == ["CXR1_IM-0003"]
    assert quarantine.entries == [("CXR4_IM-0003", "an image named twice")]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "annotation.json"])
def test_the_way_in_which_rows_were_saved_changes_nothing(tmp_path, name, annotation):
    def read():
        if name == "annotation.json":
            return read_annotation(tmp_path / name, tmp_path, Quarantine())
        return read_image_rows(tmp_path / name, tmp_path, Quarantine())

    touch(tmp_path, *(f"{id}/{view}.png" for id in "abcd" for view in (0, 1)))
    write_rows(tmp_path / "rows.jsonl", [row("a", 2), row("b", split="test")])
    write_rows(tmp_path / "rows.json", [row("a", 2), row("b", split="test")])
    (tmp_path / "annotation.json").write_text(json.dumps(annotation, indent=1))
    expected, content = read(), (tmp_path / name).read_bytes()
    for saved in (b"\xef\xbb\xbf" + content, content.replace(b"\n", b"\r\n"), content.replace(b"\n", b"\r")):
        (tmp_path / name).write_bytes(saved)
        assert read() == expected
    for encoding in ("utf-16", "utf-16-le"):
        (tmp_path / name).write_bytes(content.decode().encode(encoding))
        with pytest.raises(UserError, match="save the file as UTF-8"):
            read()


def test_sections_can_be_taken_from_the_free_text_of_rows(tmp_path):
    report = "INDICATION: Cough.\n\nCHEST, TWO VIEWS: Clear.\nIMPESSION: Normal."
    rows = write_rows(
        tmp_path / "rows.jsonl",
        [row("a", report=report), row("b", report=report, indication="Own."), row("c", report="Clear.")],
    )
    headings, quarantine = HeadingCounts(), Quarantine()
    splits = read_image_rows(rows, tmp_path, quarantine, sections="findings", headings=headings)
    assert [(study.report, study.indication) for study in splits["train"]] == [("Clear.", "Cough."), ("Clear.", "Own.")]
    assert quarantine.entries == [("c", "no FINDINGS section")]
    assert headings.reports == {("CHEST TWO VIEWS", "findings"): 2, ("IMPESSION", "impression"): 2}
    whole = read_image_rows(rows, tmp_path, Quarantine())["train"][0]
    assert whole.report.split() == report.split()


def test_rows_are_quarantined_like_other_studies(tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", [row("a"), row("b", report=""), row("c", 0), row("d", 2)])
    os.remove(tmp_path / "d" / "1.jpg")
    quarantine = Quarantine()
    assert [study.id for study in read_image_rows(rows, tmp_path, quarantine)["train"]] == ["a"]
    assert quarantine.counts() == {"empty report": 1, "no image": 1, "image file missing": 1}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row("b", split="dev"), "id b: expected a split of train, val"),
        (row("b", language="fr"), "id b: expected a language of en, zh"),
        (row("b", language=None), "id b: 'language' must be str, found NoneType"),
        (row("b", labels="DR"), "id b: 'labels' must be list, found str"),
        (row("b", labels=["DR", 3]), "id b: 'label' must be str, found int"),
        (row("b", split="test") | {"images": []}, "no usable study in the test split, 1 record quarantined"),
        (row("a"), "id .?a.? (duplicates line 1|occurs 2 times)"),
        ({"id": "b", "images": [], "report": ""}, "key 'split' is missing"),
    ],
)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_bad_rows_are_refused_by_id_or_place(tmp_path, name, bad, message):
    with pytest.raises(UserError, match=message):
        read_image_rows(write_rows(tmp_path / name, [row("a"), bad]), tmp_path, Quarantine())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "expected an array of rows; save one row per line in a file with the suffix .jsonl"),
        ("[]", "no rows; expected an array"),
        ("", "not JSON"),
        ("[1]", "row 1: expected a JSON object, found int"),
    ],
)
def test_a_json_file_without_rows_is_refused(tmp_path, content, message):
    path = tmp_path / "rows.json"
    path.write_text(content)
    with pytest.raises(UserError, match=rf"rows\.json: {message}"):
        read_image_rows(path, tmp_path, Quarantine())
