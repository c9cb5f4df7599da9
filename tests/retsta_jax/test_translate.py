"""Pairs are translated by an endpoint that errs: it is told how, asked no more than needed, never without consent."""

import json
import resource
from pathlib import Path

import pytest

from common.data.records import ReportPair
from common.endpoint import asking
from common.errors import UserError
from common.io.jsonl import read_jsonl
from retsta_jax.terminology.check import load_terminology
from retsta_jax.translation.consistency import pair_problems
from retsta_jax.translation.endpoint_translator import CORRECTIONS, translate_by_endpoint
from retsta_jax.translation.offline_translator import translate_offline
from retsta_jax.translation.translate import Failed, Translated, translate_file, translate_pairs
from tests.chat_server import Reply, answered, refused
from tests.corpus import make_pairs
from tests.endpoints import FakeTime, endpoint_of
from tests.runs import retsta

TERMS = load_terminology()
PAIRS = make_pairs(8, seed=5, language="zh", noise=0.3)
# Each says that something is there, in one eye, so that a swapped eye and a lost term change it.
SPOKEN = [
    ReportPair("a", "右眼：糖网，未见RD。", "右眼：糖尿病视网膜病变；未见视网膜脱离。", "zh"),
    ReportPair("b", "左眼黄斑水肿？", "左眼：可疑黄斑水肿。", "zh"),
]


@pytest.fixture(autouse=True)
def _no_waiting(endpoint_key, monkeypatch):
    monkeypatch.setattr(asking, "Clock", lambda: FakeTime().clock)


@pytest.fixture
def server(server):
    server.script = lambda text, number: right(asked_for(server, number))
    return server


def asked_for(server, number):
    """The pair of a request, from its first message of the user; no request holds an id."""
    return json.loads(server.bodies[number - 1]["messages"][1]["content"])


def turn(server, number):
    """How often this pair was answered before."""
    return sum(message["role"] == "assistant" for message in server.bodies[number - 1]["messages"])


def translation(content):
    [pair] = translate_offline([ReportPair("", content["source"], content["target"], "zh")], "en", TERMS)
    return {"source": pair.source, "target": pair.target}


def right(content):
    return answered(json.dumps(translation(content), ensure_ascii=False))


def fenced(server, number):
    return answered("Sure:\n```json\n" + json.dumps(translation(asked_for(server, number))) + "\n```")


def nonsense(server, number):
    return answered("I am sorry, as a language model")


def untranslated(server, number):
    content = asked_for(server, number)
    return answered(json.dumps({name: content[name] for name in ("source", "target")}, ensure_ascii=False))


def changed(old, new):
    def reply(server, number):
        content = translation(asked_for(server, number))
        return answered(json.dumps({name: text.replace(old, new) for name, text in content.items()}))

    return reply


def cut_off(server, number):
    return answered('{"source": "Right eye', "length")


def target_alone(server, number):
    return answered('{"target": "Right eye: drusen."}')


ERRORS = [
    (nonsense, "pair: not one JSON object"),
    (target_alone, "pair: not one JSON object"),
    (cut_off, "pair: answer cut off"),
    (untranslated, "source: not all in English"),
    (changed("no retinal detachment", "no"), "target: term lost (retinal detachment, right eye, absent)"),
    (
        changed("no retinal detachment", "retinal detachment"),
        "target: certainty changed (retinal detachment, right eye",
    ),
    (changed("Right eye", "Left eye"), "target: eye changed (diabetic retinopathy, left eye, present for right eye"),
    (changed("diabetic retinopathy", "DR"), "target: not the standard name (diabetic retinopathy)"),
]


def run(pairs, endpoint):
    def translator(some, to, terms):
        return translate_by_endpoint(some, to, terms, endpoint)

    return [*translate_pairs(pairs, translator, TERMS, "en")]


def test_every_pair_is_one_request_with_the_names_of_its_terms_and_no_id(server, tmp_path):
    results = run(SPOKEN, endpoint_of(server, tmp_path))
    assert [result.pair.id for result in results] == ["a-en", "b-en"]
    assert all(pair_problems(pair, result.pair, TERMS) == [] for pair, result in zip(SPOKEN, results, strict=True))
    assert len(server.bodies) == 2
    first = server.bodies[0]["messages"]
    assert "from Chinese to English" in first[0]["content"]
    assert json.loads(first[1]["content"]) == {
        "source": SPOKEN[0].source,
        "target": SPOKEN[0].target,
        "terms": {
            "糖网": ["diabetic retinopathy", "DR"],
            "RD": ["retinal detachment", "RD"],
            "糖尿病视网膜病变": ["diabetic retinopathy", "DR"],
            "视网膜脱离": ["retinal detachment", "RD"],
        },
    }


def test_a_fence_of_code_around_the_answer_is_read(server, tmp_path):
    server.script = lambda text, number: fenced(server, number)
    assert isinstance(run(SPOKEN[:1], endpoint_of(server, tmp_path))[0], Translated)


@pytest.mark.parametrize(("error", "said"), ERRORS)
def test_an_error_is_named_and_corrected(server, tmp_path, error, said):
    server.script = lambda text, number: (
        right(asked_for(server, number)) if turn(server, number) else error(server, number)
    )
    [result] = run(SPOKEN[:1], endpoint_of(server, tmp_path))
    assert isinstance(result, Translated)
    assert len(server.bodies) == 2
    assert f"- {said}" in server.asked[1]


@pytest.mark.parametrize(("error", "said"), ERRORS)
def test_an_error_that_stays_fails_that_pair_alone_after_some_corrections(server, tmp_path, error, said):
    server.script = lambda text, number: (
        error(server, number)
        if asked_for(server, number)["source"] == SPOKEN[0].source
        else right(asked_for(server, number))
    )
    failed, translated = run(SPOKEN, endpoint_of(server, tmp_path))
    assert isinstance(failed, Failed)
    assert isinstance(translated, Translated)
    assert any(str(problem).startswith(said) for problem in failed.problems)
    assert len(server.bodies) == 1 + CORRECTIONS + 1


def test_a_filter_that_refuses_a_pair_fails_it_alone(server, tmp_path):
    server.script = lambda text, number: (
        refused(400, "content_filter") if number == 1 else right(asked_for(server, number))
    )
    failed, translated = run(SPOKEN, endpoint_of(server, tmp_path))
    assert [problem.kind for problem in failed.problems] == ["no answer: filtered"]
    assert isinstance(translated, Translated)


def test_an_endpoint_that_is_slow_or_breaks_off_is_asked_again(server, tmp_path):
    def script(text, number):
        if number == 1:
            return refused(429, headers={"Retry-After": "20"})
        return Reply(b"{}", promised=99) if number == 2 else right(asked_for(server, number))

    server.script = script
    assert all(isinstance(result, Translated) for result in run(SPOKEN, endpoint_of(server, tmp_path)))
    assert len(server.bodies) == 4


def test_reports_are_not_sent_without_consent_and_cached_answers_need_none(server, tmp_path):
    with pytest.raises(UserError, match="--send-reports-to-endpoint"):
        run(SPOKEN, endpoint_of(server, tmp_path, send_reports=False))
    assert server.connections == 0
    first = run(SPOKEN, endpoint_of(server, tmp_path))
    assert run(SPOKEN, endpoint_of(server, tmp_path, send_reports=False)) == first
    assert len(server.bodies) == 2


# The command.


def write_pairs(file: Path, pairs) -> Path:
    rows = ({"id": pair.id, "source": pair.source, "target": pair.target, "language": pair.language} for pair in pairs)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


def command(pairs: Path, output: Path, *more: str, to: str = "en") -> list[str]:
    return ["translate", str(pairs), "--to", to, "--output", str(output), *more]


def by_endpoint(server, *more: str) -> list[str]:
    return ["--endpoint", server.url, "--endpoint-model", "m", "--send-reports-to-endpoint", *more]


def test_a_command_without_consent_leaves_no_file(server, tmp_path, capsys):
    unnamed = ReportPair("a", "右眼：玻璃膜疣。", "Right eye: drusen.", "en")  # cannot be translated, and is the first
    pairs = write_pairs(tmp_path / "p.jsonl", [unnamed, *PAIRS])
    options = [option for option in by_endpoint(server) if option != "--send-reports-to-endpoint"]
    assert retsta(command(pairs, tmp_path / "o.jsonl", *options)) == 2
    assert "give --send-reports-to-endpoint if it may be" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["p.jsonl"]


def test_a_killed_run_goes_on_and_nothing_is_asked_or_written_twice(server, tmp_path, capsys):
    pairs, whole, output = write_pairs(tmp_path / "p.jsonl", PAIRS), tmp_path / "whole.jsonl", tmp_path / "o.jsonl"
    wrong = PAIRS[2].source

    def script(text, number):
        content = asked_for(server, number)
        return nonsense(server, number) if content["source"] == wrong else right(content)

    server.script = script
    cache = ["--endpoint-cache", str(tmp_path / "answers.sqlite")]
    assert retsta(command(pairs, whole, *by_endpoint(server, *cache))) == 0
    said = capsys.readouterr().out
    assert "7 of 8 pairs are translated" in said
    assert "pair: not one JSON object" in said
    assert len(server.bodies) == 7 + 1 + CORRECTIONS
    rows, left_out = whole.read_bytes().splitlines(True), (tmp_path / "whole.quarantine.jsonl").read_bytes()
    assert json.loads(left_out)["id"] == PAIRS[2].id
    for known in range(8):  # rows in both files, and half a row
        output.write_bytes(b"".join(rows[: known - (known > 2)]) + (rows[-1][:9] if known not in (2, 7) else b""))
        torn = left_out[:12] if known == 2 else b""
        (tmp_path / "o.quarantine.jsonl").write_bytes(left_out if known > 2 else torn)
        for name in ("o.jsonl", "o.quarantine.jsonl"):
            config = (tmp_path / "whole.jsonl.config.json").read_bytes()
            (tmp_path / f"{name}.config.json").write_bytes(config)
        assert retsta(command(pairs, output, *by_endpoint(server, *cache))) == 0
        assert output.read_bytes() == b"".join(rows)
        assert (tmp_path / "o.quarantine.jsonl").read_bytes() == left_out
        assert capsys.readouterr().out.replace("o.", "whole.").splitlines()[1:] == said.splitlines()[1:]
    assert len(server.bodies) == 7 + 1 + CORRECTIONS


def test_rows_are_pairs_of_the_other_language(tmp_path, capsys):
    pairs = write_pairs(tmp_path / "p.jsonl", PAIRS)
    assert retsta(command(pairs, tmp_path / "o.jsonl")) == 0
    rows = read_jsonl(tmp_path / "o.jsonl", {"id": str, "source": str, "target": str, "language": str, "from": str})
    assert [row["id"] for row in rows] == [f"{pair.id}-en" for pair in PAIRS]
    assert {row["language"] for row in rows} == {"en"}
    assert [row["from"] for row in rows] == [pair.id for pair in PAIRS]
    assert (tmp_path / "o.quarantine.jsonl").read_bytes() == b""
    before = (tmp_path / "o.jsonl").read_bytes()
    assert retsta(command(pairs, tmp_path / "o.jsonl")) == 0
    assert "8 done already" in capsys.readouterr().out
    assert (tmp_path / "o.jsonl").read_bytes() == before


def test_a_full_disk_is_one_line_and_the_rest_is_done_later(tmp_path):
    output, limits = tmp_path / "o.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)

    def write():
        return translate_file(PAIRS, translate_offline, TERMS, "en", output, {})

    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (700, limits[1]))
        with pytest.raises(UserError, match=r"o\.jsonl: cannot be written \(File too large\)"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert output.stat().st_size <= 700
    assert write().translated == len(PAIRS)
    assert len(output.read_text().splitlines()) == len(PAIRS)


def test_other_pairs_or_another_translator_are_refused(server, tmp_path, capsys):
    pairs, output = write_pairs(tmp_path / "p.jsonl", PAIRS), tmp_path / "o.jsonl"
    assert retsta(command(pairs, output)) == 0
    assert retsta(command(pairs, output, *by_endpoint(server))) == 2
    assert "holds rows made with other options or files" in capsys.readouterr().err
    assert not server.bodies
    changed = [ReportPair(pair.id, pair.source + "。", pair.target, pair.language) for pair in PAIRS]
    assert retsta(command(write_pairs(pairs, changed), output)) == 2
    assert "was made from other input, which differs from row 1 on" in capsys.readouterr().err


def test_what_cannot_be_translated_at_all_is_set_aside_with_its_reason(tmp_path, capsys):
    some = [
        PAIRS[0],
        ReportPair("english", "OD: drusen.", "Right eye: drusen.", "en"),
        ReportPair("mixed", "OD: drusen.", "Right eye: drusen.", "zh"),
        ReportPair("unknown", "右眼玻璃膜疣，自述视物变形", "右眼：玻璃膜疣。", "zh"),
    ]
    assert retsta(command(write_pairs(tmp_path / "p.jsonl", some), tmp_path / "o.jsonl")) == 0
    assert {row["id"]: row["reasons"] for row in read_jsonl(tmp_path / "o.quarantine.jsonl", {"reasons": list})} == {
        "english": ["pair: is in English already"],
        "mixed": ["pair: is not in Chinese"],
        "unknown": ["source: cannot be translated offline (characters 8-13)"],
    }
    said = capsys.readouterr().out
    assert "1 of 4 pairs are translated" in said
    assert "source: cannot be translated offline: 1" in said


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("id,kind,zh\na,sign,玻璃膜疣\n", "has no names in English, which translation needs"),
        ("id,kind,en\na,sign,drusen\n", "has no names in Chinese, which translation needs"),
    ],
)
def test_a_terminology_of_one_language_is_one_line(tmp_path, capsys, table, expected):
    pairs, terms = write_pairs(tmp_path / "p.jsonl", PAIRS), tmp_path / "t.csv"
    terms.write_text(table)
    assert retsta(command(pairs, tmp_path / "o.jsonl", "--terminology", str(terms))) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "o.jsonl").exists()


def test_ids_that_clash_and_pairs_already_there_are_refused(tmp_path, capsys):
    pairs = write_pairs(tmp_path / "p.jsonl", [*SPOKEN, ReportPair("a-en", "右眼玻璃膜疣", "右眼：玻璃膜疣。", "zh")])
    assert retsta(command(pairs, tmp_path / "o.jsonl")) == 2
    assert "id a-en belongs to a pair and would also be the id of the translation of a" in capsys.readouterr().err
    assert retsta(command(write_pairs(pairs, PAIRS), tmp_path / "o.jsonl", to="zh")) == 2
    assert "all pairs are in Chinese already" in capsys.readouterr().err
    assert retsta(command(pairs, pairs)) == 2
    assert "is the file of the pairs" in capsys.readouterr().err
    assert not (tmp_path / "o.jsonl").exists()
