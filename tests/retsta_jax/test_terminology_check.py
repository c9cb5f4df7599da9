"""Every error of a terminology is found and named; the shipped one has none; anybody's table is read."""

import json

import pytest

from common.errors import UserError
from retsta_jax.cli import dispatch
from retsta_jax.terminology.check import errors_of, load_terminology, summary_of
from retsta_jax.terminology.terms import SHIPPED, read_table

HEAD = "id,kind,broader,zh,en,synonyms_zh,synonyms_en,abbreviations_en,icd10\n"
SOUND = "a,sign,,出血,haemorrhage,,bleeding,HB,H35.6\nb,sign,a,水肿,oedema,,,,\n"


def errors(tmp_path, content, name="terms.csv"):
    (tmp_path / name).write_text(content, encoding="utf-8")
    return errors_of(read_table(tmp_path / name))


def test_the_shipped_terminology_is_sound(capsys):
    assert dispatch(["terminology", "check"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["errors"] == []
    assert found["terms"] == len(load_terminology().terms)
    assert found["languages"] == ["zh", "en"]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("c,sign,,渗出,,,,,\n", "line 4: no name in column en"),
        ("c,sign,,出血,exudate,,,,\n", "lines 2, 4: '出血' (zh) is the name of two terms: a and c"),
        ("c,sign,,渗出,exudate,,Bleeding,,\n", "lines 2, 4: 'bleeding' (en) is a name of two terms: a and c"),
        ("c,sign,,渗出,ex-udate,,,hb,\n", "'hb' (en) is a name of two terms"),
        ("c,sign,,HB,exudate,,,,\n", None),
        ("a,sign,,渗出,exudate,,,,\n", "lines 2, 4: two terms with the id a"),
        ("c,sign,nowhere,渗出,exudate,,,,\n", "broader names 'nowhere', which is not an id"),
        ("c,sign,d,渗出,exudate,,,,\nd,sign,c,斑,spot,,,,\n", "a cycle of broader terms: c -> d -> c"),
        ("c,sign,c,渗出,exudate,,,,\n", "a cycle of broader terms: c -> c"),
        ("c,sign,,渗出,exudate,,exudate,,\n", "'exudate' (en) stands 2 times"),
        ("c,sign,,渗出,exudate,,,,H3\n", "icd10 'H3' does not have the form"),
        ("c,sign,,渗出,exudate,,,X,\n", "abbreviations_en 'X' is one letter"),
        ("c,sign,,渗出,...,,,,\n", "has neither letter nor digit"),
        ("c,Sign,,渗出,exudate,,,,\n", None),
        ("c,severty,,重度,severe,,,,\n", "kind 'severty' is unknown; expected normal, diagnosis"),
        ("c,sign,,渗出,exudate,,x||y,,\n", "synonyms_en holds an empty entry"),
    ],
)
def test_errors_name_their_rows(tmp_path, rows, expected):
    found = errors(tmp_path, HEAD + SOUND + rows)
    assert not found if expected is None else any(expected in line for line in found), found
    assert errors(tmp_path, HEAD + SOUND) == []


def test_a_name_that_denies_another_term_is_a_warning(tmp_path):
    (tmp_path / "terms.csv").write_text(HEAD + SOUND + "c,sign,,渗出,exudate,,no oedema,,\n", encoding="utf-8")
    found = summary_of(read_table(tmp_path / "terms.csv"))
    assert found["errors"] == []
    assert found["warnings"] == ["lines 4, 3: 'no oedema' (en) denies b, but is read as c"]


def test_a_name_that_is_a_cue_is_a_warning(tmp_path):
    (tmp_path / "terms.csv").write_text("id,en,abbreviations_en\na,query fever,query\nb,lupus,LE\n", encoding="utf-8")
    assert summary_of(read_table(tmp_path / "terms.csv"))["warnings"] == [
        "line 2: 'query' (en) is a word that says whether something is there, but is read as a"
    ]


@pytest.mark.parametrize(
    "row", [{"en": "a\ud800b"}, {"en": "ab", "synonyms_en": ["x\ud800"]}, {"id": "\ud800", "en": "ab"}]
)
def test_half_a_character_is_an_error(tmp_path, row):
    (tmp_path / "terms.json").write_text(json.dumps([row]))
    assert any("unpaired surrogate" in line for line in errors_of(read_table(tmp_path / "terms.json")))


def test_an_abbreviation_with_two_meanings_is_an_error(tmp_path):
    head = "id,zh,en,abbreviations_zh,abbreviations_en\n"
    found = errors(tmp_path, head + "a,高血压病变,hypertensive,HR,\nb,出血病变,haemorrhagic,,HR\n")
    assert found == ["lines 2, 3: the abbreviation 'hr' means a in one language and b in the other"]


def test_every_format_and_few_columns_will_do(tmp_path, capsys):
    rows = [{"id": "a", "en": "pleural effusion", "synonyms_en": ["effusion"]}, {"en": "Pneumothorax"}]
    (tmp_path / "terms.JSON").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "terms.Tsv").write_text("en\tsynonyms_en\tnote\npleural effusion\teffusion\tx\nPneumothorax\t\ty\n")
    as_json, as_tsv = (read_table(tmp_path / f"terms.{name}") for name in ("JSON", "Tsv"))
    assert as_json.languages == as_tsv.languages == ("en",)
    assert [term.en for term in as_json.terms] == [term.en for term in as_tsv.terms]
    assert [term.id for term in as_tsv.terms] == ["pleural_effusion", "pneumothorax"]
    assert as_tsv.ignored == ["note"]
    assert dispatch(["terminology", "check", str(tmp_path / "terms.JSON")]) == 0
    assert json.loads(capsys.readouterr().out)["terms"] == 2


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("terms.csv", "", "is empty"),
        ("terms.csv", "id,name\na,b\n", "neither a column zh nor en, but id, name"),
        ("terms.csv", "id;en\na;b\n", r"but id;en; expected .* with commas between columns \(CSV\) or tabs \(TSV\)"),
        ("terms.csv", "id,en\n", "contains no term"),
        ("terms.csv", "id,en\na,b\0c\n", "line 2: contains a NUL character"),
        ("terms.csv", 'id,en\na,"b\n', "not CSV .* quotation marks at both ends"),
        ("terms.json", "[]", "contains no term"),
        ("terms.JSON", '[{"en": "a b", "EN": "c d"}]', "term 1 has a column twice"),
        ("terms.json", '[{"en": "a b", "en": "c d"}]', "the key 'en' is there twice"),
        ("terms.csv", "id,en,en\na,b,c\n", "column en occurs 2 times"),
        ("terms.csv", "id,en\na\n", "too few columns"),
        ("terms.json", "{", "not JSON"),
        ("terms.json", "[1]", "expected a list of terms"),
        ("absent.csv", None, "absent.csv"),
    ],
)
def test_what_is_no_table_is_one_line(tmp_path, name, content, expected):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=expected):
        dispatch(["terminology", "check", str(tmp_path / name)])


def test_errors_are_exit_code_2_and_stop_what_uses_the_table(tmp_path, capsys):
    (tmp_path / "terms.csv").write_text(HEAD + SOUND + "c,sign,,出血,exudate,,,,\n", encoding="utf-8")
    (tmp_path / "reports.jsonl").write_text('{"id": 1, "report": "出血"}\n', encoding="utf-8")
    assert dispatch(["terminology", "check", str(tmp_path / "terms.csv")]) == 2
    assert len(json.loads(capsys.readouterr().out)["errors"]) == 1
    with pytest.raises(UserError, match="lines 2, 4"):
        dispatch(
            ["terminology", "match", str(tmp_path / "reports.jsonl"), "--terminology", str(tmp_path / "terms.csv")]
        )


def test_match_writes_rows_and_continues_them(tmp_path, capsys):
    reports = [{"id": n, "report": text} for n, text in enumerate(("右眼黄斑裂孔", "无", "No drusen"))]
    source, output = tmp_path / "reports.jsonl", tmp_path / "found.jsonl"
    source.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in reports), encoding="utf-8")
    command = ["terminology", "match", str(source), "--output", str(output)]
    dispatch(command)
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows] == [0, 1, 2]
    assert rows[0]["matches"] == [
        {
            "term": "macular_hole", "name": "黄斑裂孔", "text": "黄斑裂孔", "start": 2, "end": 6,
            "eye": "right", "status": "present",
        }
    ]  # fmt: skip
    assert rows[1]["matches"] == []
    assert rows[2]["matches"][0]["status"] == "absent"
    whole = output.read_bytes()
    output.write_bytes(whole[:-20])
    dispatch(command)
    assert output.read_bytes() == whole
    table = tmp_path / "other.tsv"
    table.write_text(SHIPPED.read_text(encoding="utf-8").replace("\t黄斑裂孔\t", "\t黄斑大裂孔\t"), encoding="utf-8")
    with pytest.raises(UserError, match="other options"):
        dispatch([*command, "--terminology", str(table)])


def test_a_summary_lists_frequent_phrases_that_the_terminology_lacks(tmp_path, capsys):
    source = tmp_path / "reports.txt"
    lines = ["右眼黄斑裂孔，可见水蛭样蠕动。"] * 6 + ["左眼独一无二征象，玻璃膜疣"]
    source.write_text("\n".join(lines), encoding="utf-8")
    dispatch(["terminology", "match", str(source), "--summary"])
    found = json.loads(capsys.readouterr().out)
    assert found["reports"] == 7
    assert found["terms"] == {"macular_hole": 6, "drusen": 1}
    [first, *_] = found["candidates"]
    assert first["reports"] == 6
    assert first["phrase"].startswith("水蛭样")
    assert "独一" not in json.dumps(found, ensure_ascii=False)


def test_a_file_of_the_same_name_is_read_anew(tmp_path, monkeypatch):
    for name in ("drusen", "haemorrhage"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        (tmp_path / name / "terms.csv").write_text(f"id,en\na,{name}\n", encoding="utf-8")
        assert load_terminology("terms.csv") is load_terminology("terms.csv")
        assert [term.en for term in load_terminology("terms.csv").terms] == [name]
