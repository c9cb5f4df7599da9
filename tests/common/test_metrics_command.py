"""`medreport score`: one JSON object out, one clear line on bad input, no slow imports."""

import json
import subprocess
import sys

import pytest

from common.clinical.score_command import main
from common.errors import UserError

BLEU = [f"BLEU-{order}" for order in range(1, 5)]

ROWS = [
    {"id": "a", "prediction": "the heart is normal in size .", "reference": "heart size is normal ."},
    {"id": "b", "prediction": "no pleural effusion seen .", "reference": "no pleural effusion or pneumothorax ."},
]


def write(tmp_path, text: str) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text(text, encoding="utf-8")
    return str(path)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launch.cli", "score", *arguments], capture_output=True, text=True, check=False
    )


def test_prints_one_object_of_numbers_intervals_and_baseline(tmp_path) -> None:
    path = write(tmp_path, "\n\n".join(map(json.dumps, ROWS)))
    done = run(path, "--convention", "coco")
    assert (done.returncode, done.stderr) == (0, f"data: {path} (rows): reports 2\n")
    result = json.loads(done.stdout)
    names = {f"coco/BLEU-{order}" for order in range(1, 5)} | {"coco/ROUGE-L", "coco/CIDEr"}
    assert {key for key in result if "/" in key} == set(result["intervals"]) == set(result["constant_report"]) == names
    for name in names:
        low, high = result["intervals"][name]
        assert 0 <= low <= result[name] <= high <= (10 if "CIDEr" in name else 1)
    assert result["coco/BLEU-1"] != result["constant_report"]["coco/BLEU-1"]
    assert (result["count"], result["distinct_outputs"], result["notes"]) == (2, 1, {})


def test_absent_meteor_is_null_with_a_note_and_a_warning(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("MEDREPORT_WORDNET", str(tmp_path / "nowhere"))
    main([write(tmp_path, "\n".join(map(json.dumps, ROWS)))])
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result["nltk/METEOR"] is None
    assert result["constant_report"]["nltk/METEOR"] is None
    assert "nltk/METEOR" not in result["intervals"]
    assert "nowhere" in result["notes"]["nltk/METEOR"]
    assert printed.err.splitlines()[1].startswith("warning: nltk/METEOR is absent")
    assert result["nltk/ROUGE-L"] > 0


def test_chinese_rows_score_by_character(tmp_path, capsys) -> None:
    rows = [{"id": 1, "prediction": "视盘边界清晰", "reference": "视盘边界清"}]
    main([write(tmp_path, json.dumps(rows[0])), "--language", "zh", "--convention", "coco"])
    assert json.loads(capsys.readouterr().out)["coco/BLEU-1"] == pytest.approx(5 / 6)


CHINESE = {"id": 1, "prediction": "视盘边界清晰，黄斑区未见异常。", "reference": "视盘边界清晰，黄斑区未见异常。"}
SAME = {"id": "e", "prediction": "the lungs are clear .", "reference": "the lungs are clear ."}


def score(tmp_path, capsys, rows, *options: str) -> tuple[dict, str]:
    main([write(tmp_path, "\n".join(map(json.dumps, rows))), *options])
    printed = capsys.readouterr()
    return json.loads(printed.out), printed.err


def test_the_language_is_that_of_the_rows(tmp_path, capsys) -> None:
    result, _ = score(tmp_path, capsys, [CHINESE])
    assert result["language"] == "zh"
    names = ("coco/BLEU-4", "coco/ROUGE-L", "coco-jieba/ROUGE-L", "nltk/BLEU-4", "nltk/ROUGE-L")
    for name in names:
        assert result[name] == pytest.approx(1, abs=1e-3)
        assert result["constant_report"][name] == pytest.approx(1, abs=1e-3)
    english, _ = score(tmp_path, capsys, [SAME], "--convention", "coco")
    assert english["language"] == "en"
    assert "coco/ROUGE-L" in english


def test_rows_of_two_languages_are_scored_apart(tmp_path, capsys) -> None:
    numbers = {"id": 3, "prediction": "1.5", "reference": "1.5"}  # no letters: the language of most rows
    stated = {"id": 4, "prediction": "NPDR", "reference": "NPDR", "language": "zh"}
    rows = [CHINESE, SAME, {**CHINESE, "id": 2}, numbers, stated]
    result, _ = score(tmp_path, capsys, rows, "--convention", "coco")
    assert result["language"] == {"en": 1, "zh": 4}
    names = {f"{language}/coco/{name}" for language in ("en", "zh") for name in (*BLEU, "ROUGE-L", "CIDEr")}
    assert {key for key in result if "/" in key} == names == set(result["intervals"]) == set(result["constant_report"])
    assert result["en/coco/ROUGE-L"] == result["zh/coco/ROUGE-L"] == 1
    for language, own in (("en", [SAME]), ("zh", [row for row in rows if row is not SAME])):
        alone, _ = score(tmp_path, capsys, own, "--convention", "coco")
        assert {f"{language}/{name}": alone[name] for name in alone if "/" in name}.items() <= result.items()


def test_a_language_that_is_not_the_texts_is_done_and_said(tmp_path, capsys) -> None:
    result, said = score(tmp_path, capsys, [CHINESE, SAME], "--language", "en", "--convention", "coco")
    assert result["language"] == "en"
    assert result["notes"]["language"].startswith("1 of 2 reports are not in en")
    assert said.splitlines()[1:] == [f"warning: language: {result['notes']['language']}"]
    with pytest.raises(UserError, match="id 1: language is 'de', expected en or zh"):
        main([write(tmp_path, json.dumps({**CHINESE, "language": "de"}))])


@pytest.mark.parametrize(
    "text",
    ["ひだりめ", "肺野に異常陰影を認めません。", "폐는 깨끗합니다", "Лёгкие чистые", "الرئتان صافيتان"],
)
def test_a_script_that_no_metric_reads_is_said(tmp_path, capsys, text: str) -> None:
    other = {"id": "o", "prediction": text, "reference": text}
    result, said = score(tmp_path, capsys, [SAME, other])
    assert result["notes"]["language"].startswith("1 of 2 reports are not in the language or script")
    assert "warning: language: 1 of 2 reports" in said


def test_a_stated_language_that_is_not_the_text_is_said(tmp_path, capsys) -> None:
    result, _ = score(tmp_path, capsys, [{**CHINESE, "language": "en"}])
    assert result["notes"]["language"].startswith("1 of 1 reports are not in the language")


@pytest.mark.parametrize("text", ["Größe 2 µm, α-Blocker", "250", "", "㐀㐁㐂㐃", "𠀀𠀁𠀂𠀃", "OCT：左眼 250 µm"])
def test_what_the_metrics_read_is_scored_without_a_warning(tmp_path, capsys, text: str) -> None:
    result, _ = score(tmp_path, capsys, [{"id": 1, "prediction": text, "reference": text}])
    assert "language" not in result["notes"]


def test_no_score_is_printed_with_an_exponent(tmp_path, capsys) -> None:
    main(
        [write(tmp_path, json.dumps({"id": 1, "prediction": "lungs clear", "reference": "the heart is large today ."}))]
    )
    printed = capsys.readouterr().out
    assert "e-" not in printed.replace("METEOR-exact", "").replace("wordnet-base", "")
    assert json.loads(printed)["coco/BLEU-4"] == 0


def test_bad_rows_end_with_one_line_and_code_2(tmp_path) -> None:
    path = write(tmp_path, json.dumps(ROWS[0]) + "\n" + '{"id": "b", "prediction": 3, "reference": ""}')
    done = run(path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {path}, line 2: 'prediction' must be str, found int\n"


def test_the_command_starts_without_jax_nltk_or_scikit_learn(tmp_path) -> None:
    path = write(tmp_path, json.dumps(ROWS[0]))
    code = (
        "import sys; from common.clinical.score_command import main; "
        f"main([{path!r}, '--convention', 'coco']); "
        "print({'jax', 'nltk', 'sklearn', 'jieba', 'rouge_score'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == f"data: {path} (rows): reports 1\nset()\n"
