"""`retsta baseline` whole: tiny models of two families, with and without a chat format, and an endpoint."""

import json
import os
from collections import Counter

import jax
import pytest
import transformers

import retsta_jax.baselines.baseline as module
from common.clinical.score_command import main as metrics_command
from common.data.records import ReportPair
from common.endpoint import asking
from common.generation import command as decode_cli
from common.io.jsonl import read_jsonl, write_rows
from common.io.numbers import rounded
from common.models.qwen2 import Qwen2Config, init_params
from common.models.qwen2_weights import save_qwen2
from retsta_jax.baselines.answers import answer_of
from retsta_jax.baselines.few_shot import CHINESE, ENGLISH
from retsta_jax.corpus.pairs import make_splits
from retsta_jax.evaluate import MODEL, score
from retsta_jax.terminology.check import load_terminology
from tests.chat_server import answered, refused
from tests.endpoints import FakeTime
from tests.pages import commands_of
from tests.runs import retsta
from tests.tiny import byte_level_bpe

POSITIONS, NEW = 1024, 8
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MARKS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
FAMILIES = {
    "llama": {"attention_bias": False},
    "glm": {"rotary_pairs": "adjacent", "rotary_dims": 4},
}
SPLITS = make_splits(24, 4, 6, seed=3, language="both")
TERMS = load_terminology()


def peer(directory, family, template=TEMPLATE):
    """A random model of a family with a byte-level tokenizer, as it is published."""
    fixed = [ENGLISH.instruction, CHINESE.instruction, "\n\n"]
    bpe = byte_level_bpe([*(pair.source for pair in SPLITS["train"]), *fixed * 9], 420, MARKS)
    sizes = Qwen2Config(
        vocab_size=bpe.get_vocab_size(), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, tie_word_embeddings=False, model_type=family,
        **FAMILIES[family],
    )  # fmt: skip
    save_qwen2(directory, sizes, jax.tree.map(lambda leaf: leaf * 8, init_params(sizes, jax.random.key(1))))
    file = directory / "config.json"
    entries = json.loads(file.read_text()) | {"max_position_embeddings": POSITIONS, "eos_token_id": 1}
    file.write_text(json.dumps(entries))
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, chat_template=template, bos_token=MARKS[0], eos_token=MARKS[1]
    )
    fast.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return peer(tmp_path_factory.mktemp("llama") / "peer", "llama")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, pairs in SPLITS.items():
        write_rows(folder / f"{name}.jsonl", ({**vars(pair)} for pair in pairs))
    return [
        "--data.corpus", "jsonl",
        *(word for name in SPLITS for word in (f"--data.{name}", str(folder / f"{name}.jsonl"))),
    ]  # fmt: skip


def command(output, *options):
    return ["baseline", "--output", str(output), "--shots", "2", "--max-new-tokens", str(NEW), *map(str, options)]


def rows_of(output):
    required = {"id": str, "prediction": str, "reference": str, "output": str, "complete": bool}
    return read_jsonl(output / "predictions.jsonl", required)


def metrics_of(output):
    return json.loads((output / "metrics.json").read_text())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_any_family_answers_as_the_decode_command_does_and_is_scored_as_a_run_is(
    family, data, tmp_path, capsys, monkeypatch
):
    asked, ask = {}, module.ask

    def noted(peer, pairs, prompts, *rest, **more):
        asked.update(zip((pair.id for pair in pairs), prompts, strict=True))
        ask(peer, pairs, prompts, *rest, **more)

    monkeypatch.setattr(module, "ask", noted)
    model = peer(tmp_path / "peer", family)
    assert retsta(command(tmp_path / "out", "--model", model, "--terminology", *data)) == 0
    said = capsys.readouterr().out
    assert "data: " in said
    assert "6 prompts shortened" in said

    rows, pairs = rows_of(tmp_path / "out"), SPLITS["test"]
    assert [row["id"] for row in rows] == [pair.id for pair in pairs]
    prompts, peer_rows = tmp_path / "prompts.jsonl", tmp_path / "decoded.jsonl"
    write_rows(prompts, ({"id": id_, "prompt": text} for id_, text in asked.items()))
    decode = ["--model", model, "--prompts", prompts, "--output", peer_rows, "--chat", "--max-new-tokens", NEW]
    decode_cli.main([*map(str, decode)])
    decoded = read_jsonl(peer_rows, {"text": str, "token_ids": list, "finish": str})
    assert [row["output"] for row in rows] == [row["text"] for row in decoded]
    assert [row["complete"] for row in rows] == [row["finish"] == "stop" for row in decoded]
    assert len({row["output"] for row in rows}) > 2

    metrics = metrics_of(tmp_path / "out")
    own = metrics["systems"]["peer"]
    texts = [answer_of(row["output"]) for row in rows]
    assert own == rounded(score(texts, pairs, "jsonl", TERMS))
    capsys.readouterr()
    metrics_command([str(tmp_path / "out" / "predictions.jsonl")])
    by_command = json.loads(capsys.readouterr().out)
    for name in ("zh/coco/BLEU-4", "en/coco/ROUGE-L", "zh/nltk/METEOR-exact"):
        assert own[name]["value"] == by_command[name]
    for language, of_prompts in metrics["prompts"]["shortened"].items():
        assert of_prompts["shortened"] == of_prompts["reports"] == metrics["languages"][language]["reports"] == 3
        assert 0 < of_prompts["terms_kept"] < of_prompts["terms"] == len(TERMS.terms)
        assert of_prompts["needed_left_out"] == 0 or of_prompts["shots_kept"] < 2
    page = (tmp_path / "out" / "report.html").read_text()
    for shown in ("Language of the answers", "prompts that were too long", "Distance of the test split", "2 examples"):
        assert shown in page


def test_a_model_without_a_chat_format_continues_a_text_up_to_a_blank_line(data, tmp_path, capsys):
    model = peer(tmp_path / "peer", "llama", template=None)
    assert retsta(command(tmp_path / "out", "--model", model, *data)) == 0
    assert metrics_of(tmp_path / "out")["prompts"]["form"] == "completion"
    for row in rows_of(tmp_path / "out"):
        assert row["prediction"] == " ".join(answer_of(row["output"].strip().split("\n\n")[0]).split())
    assert "it continued a text, up to a blank line" in (tmp_path / "out" / "report.html").read_text()


def test_a_killed_command_goes_on_to_the_same_bytes(llama, data, tmp_path, capsys):
    whole, output = tmp_path / "whole", tmp_path / "peer"
    assert retsta(command(whole, "--model", llama, *data)) == 0
    rows = (whole / "predictions.jsonl").read_bytes().splitlines(True)
    output.mkdir()
    for known, torn in ((0, 9), (4, 20), (6, 0)):
        (output / "predictions.jsonl").write_bytes(
            b"".join([*rows[:known], *(row[:torn] for row in rows[known : known + 1])])
        )
        config = (whole / "predictions.jsonl.config.json").read_bytes()
        (output / "predictions.jsonl.config.json").write_bytes(config)
        assert retsta(command(output, "--model", llama, *data)) == 0
        assert (output / "predictions.jsonl").read_bytes() == b"".join(rows)
        assert metrics_of(output) == metrics_of(whole)
    assert "6 done already" in capsys.readouterr().out
    for changed in (["--shots", "3"], ["--shot-seed", "1"], ["--terminology"]):
        assert retsta([*command(output, "--model", llama, *data), *changed]) == 2
        assert "was made from other input, which differs from row 1 on" in capsys.readouterr().err
    assert retsta([*command(output, "--model", llama, *data), "--dtype", "bfloat16"]) == 2
    assert "holds rows made with other options" in capsys.readouterr().err
    assert (output / "predictions.jsonl").read_bytes() == b"".join(rows)


def test_a_run_stands_beside_on_its_own_test_split(material, llama, tmp_path, capsys):
    run_dir = tmp_path / "run"
    assert retsta(material.train(run_dir, max_steps=1)) == 0
    assert retsta(command(tmp_path / "before", "--model", llama, "--like", run_dir)) == 0
    assert "run run is not evaluated yet" in (tmp_path / "before" / "report.html").read_text()
    assert retsta(["evaluate", "--run-dir", str(run_dir)]) == 0
    assert retsta(command(tmp_path / "out", "--model", llama, "--like", run_dir)) == 0
    systems = metrics_of(tmp_path / "out")["systems"]
    assert list(systems)[:2] == ["peer", "run run"]
    assert systems["run run"] == metrics_of(run_dir)["systems"][MODEL]
    assert systems["constant report"] == metrics_of(run_dir)["systems"]["constant report"]
    assert retsta(command(tmp_path / "some", "--model", llama, "--like", run_dir, "--limit", "2")) == 0
    assert "was evaluated on other reports" in (tmp_path / "some" / "report.html").read_text()
    capsys.readouterr()
    assert retsta(command(tmp_path / "no", "--model", llama, "--like", run_dir, "--data.corpus", "fundus")) == 2
    assert "--data.corpus: not used with --like" in capsys.readouterr().err
    assert retsta(command(run_dir, "--model", llama, "--like", run_dir)) == 2
    assert "is the directory of a run; give another --output" in capsys.readouterr().err


def test_a_report_that_does_not_fit_is_quarantined(llama, data, tmp_path, capsys):
    pairs = SPLITS["test"]
    long = ReportPair("long", pairs[1].source + " drusen" * 600, pairs[1].target, pairs[1].language)
    write_rows(tmp_path / "test.jsonl", (vars(pair) for pair in (pairs[0], long, pairs[2])))
    own = [*data[:-1], str(tmp_path / "test.jsonl")]
    assert retsta(command(tmp_path / "out", "--model", llama, *own)) == 0
    assert [row["id"] for row in rows_of(tmp_path / "out")] == [pairs[0].id, pairs[2].id]
    (row,) = read_jsonl(tmp_path / "out" / "quarantine.jsonl", {"id": str, "reason": str})
    assert row["id"] == "long"
    assert metrics_of(tmp_path / "out")["quarantined"] == 1
    write_rows(tmp_path / "test.jsonl", [vars(long)])
    assert retsta(command(tmp_path / "none", "--model", llama, *own)) == 2
    assert "no prompt fits into 1016 tokens (1 record quarantined" in capsys.readouterr().err


def test_the_command_on_the_page_gives_the_same_again(llama, tmp_path, capsys):
    generated = ["--data.train-size", "8", "--data.test-size", "3", "--data.language", "en", "--seed", "5"]
    assert retsta(command(tmp_path / "out", "--model", llama, *generated, "--terminology", "--limit", "2")) == 0
    (words,) = commands_of((tmp_path / "out" / "report.html").read_text())
    assert words[0] == "retsta"
    before = metrics_of(tmp_path / "out")
    capsys.readouterr()
    assert retsta(words[1:]) == 0
    assert "2 done already" in capsys.readouterr().out
    assert metrics_of(tmp_path / "out") == before


def test_lists_of_codes_are_scored_as_such_and_the_training_split_is_their_terminology(server, tmp_path, capsys):
    splits = {
        "train": [("a", "Big heart.", "Cardiomegaly"), ("b", "Opacity at the left base.", "Opacity/lung/base/left")],
        "validation": [("c", "Scoliosis.", "Scoliosis")],
        "test": [("d", "Opacity and cardiomegaly.", "Opacity/lung\nCardiomegaly/mild")],
    }
    for name, rows in splits.items():
        write_rows(tmp_path / f"{name}.jsonl", ({"id": i, "source": s, "target": t} for i, s, t in rows))
    files = [word for name in splits for word in (f"--data.{name}", str(tmp_path / f"{name}.jsonl"))]
    codes = ["--data.corpus", "jsonl", "--data.targets", "codes", *files, "--terminology"]
    server.script = lambda text, number: answered("```\nOpacity/lung\nCardiomegaly\n```")
    options = by_endpoint(server, "--send-reports-to-endpoint")
    assert retsta(command(tmp_path / "out", *options, *codes)) == 0
    (row,) = rows_of(tmp_path / "out")
    assert row["codes"] == ["Cardiomegaly", "Opacity/lung"]
    scores = metrics_of(tmp_path / "out")["systems"]["m"]
    assert (scores["codes/F1"]["value"], scores["heads/F1"]["value"]) == (0.5, 1)
    assert "Codes, one per line:\nCardiomegaly\nOpacity/lung/base/left\n\n" in server.asked[0]
    assert "50.0% of the codes written are in the terminology" in (tmp_path / "out" / "report.html").read_text()
    assert retsta(command(tmp_path / "no", *options, *codes, str(tmp_path / "terms.csv"))) == 2
    assert "the reference is the codes of the training split" in capsys.readouterr().err


# An endpoint.


@pytest.fixture
def server(server, monkeypatch):
    monkeypatch.setattr(asking, "Clock", lambda: FakeTime().clock)
    server.script = lambda text, number: answered(f"**Standard report:**\n{target_of(text)}")
    return server


def target_of(prompt):
    return next(pair.target for pair in SPLITS["test"] if prompt.split("\n\n")[-1].find(f"\n{pair.source}\n") >= 0)


def by_endpoint(server, *more):
    return ["--endpoint", server.url, "--endpoint-model", "m", *more]


def test_an_endpoint_that_answers_right_scores_one_and_nothing_is_sent_twice(server, data, tmp_path, capsys):
    options = [*by_endpoint(server), "--terminology", *data]
    assert retsta(command(tmp_path / "out", *options)) == 2
    assert "6 of 6 requests are to be sent" in (said := capsys.readouterr().err)
    assert "--send-reports-to-endpoint" in said
    assert server.connections == 0
    consent = [*options, "--send-reports-to-endpoint"]
    assert retsta(command(tmp_path / "out", *consent)) == 0
    assert len(server.bodies) == 6
    assert Counter(server.asked).most_common(1)[0][1] == 1
    metrics = metrics_of(tmp_path / "out")
    assert metrics["systems"]["m"]["findings/exact-match"]["value"] == 1
    assert metrics["prompts"]["limit"] is None
    assert [row["output"][:2] for row in rows_of(tmp_path / "out")] == ["**"] * 6
    for body in server.bodies:
        assert body["temperature"] == 0
        assert not any(pair.id in json.dumps(body) for pair in SPLITS["test"])
    (tmp_path / "out" / "predictions.jsonl").unlink()
    assert retsta(command(tmp_path / "out", *options)) == 0  # from the cache, without consent
    assert len(server.bodies) == 6
    assert metrics_of(tmp_path / "out") == metrics
    assert os.stat(tmp_path / "out" / "answers.sqlite").st_mode & 0o777 == 0o600


def test_an_endpoint_that_breaks_down_is_not_paid_twice(server, data, tmp_path, capsys):
    right = server.script
    server.script = lambda text, number: right(text, number) if number < 4 else refused(402)
    options = [*by_endpoint(server), "--endpoint-concurrency", "1", "--send-reports-to-endpoint", *data]
    assert retsta(command(tmp_path / "out", *options)) == 2
    assert "no credit or quota left" in capsys.readouterr().err
    assert not (tmp_path / "out" / "metrics.json").exists()
    server.script = right
    assert retsta(command(tmp_path / "out", *options)) == 0
    assert len(server.bodies) == 4 + 3


def test_a_report_that_an_endpoint_refuses_counts_as_an_empty_answer(server, data, tmp_path):
    right, refused_one = server.script, SPLITS["test"][1]
    server.script = lambda text, number: (
        refused(400, "content_filter") if f"\n{refused_one.source}\n" in text else right(text, number)
    )
    assert retsta(command(tmp_path / "out", *by_endpoint(server, "--send-reports-to-endpoint"), *data)) == 0
    metrics = metrics_of(tmp_path / "out")
    assert metrics["reports"] == 6
    assert sum(metrics["unanswered"].values()) == 1
    assert metrics["systems"]["m"]["findings/exact-match"]["value"] == rounded(5 / 6)
    assert metrics["languages"][refused_one.language]["no_text"] == rounded(1 / 3)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "1 of 6 reports got no answer and count as empty ones (filtered: " in page


def test_answers_in_the_other_language_are_counted(server, data, tmp_path):
    server.script = lambda text, number: answered("右眼：玻璃膜疣。")
    assert retsta(command(tmp_path / "out", *by_endpoint(server, "--send-reports-to-endpoint"), *data)) == 0
    languages = metrics_of(tmp_path / "out")["languages"]
    assert (languages["en"]["wrong_language"], languages["zh"]["wrong_language"]) == (1, 0)


def test_prompts_for_an_endpoint_are_shortened_to_the_context_that_is_given(server, data, tmp_path):
    options = [*by_endpoint(server, "--send-reports-to-endpoint"), "--terminology", "--context", "3000", *data]
    assert retsta(command(tmp_path / "out", *options)) == 0
    found = metrics_of(tmp_path / "out")["prompts"]
    assert found["limit"] == 3000 - NEW
    assert all(0 < own["terms_kept"] < own["terms"] and own["shots_kept"] == 2 for own in found["shortened"].values())


# Bad input: one line, nothing written.


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "give one of --model DIR and --endpoint URL"),
        (["--model", "{llama}", "--endpoint", "http://localhost:1/v1"], "give one of --model DIR and --endpoint URL"),
        (["--model", "{llama}", "--shots", "13"], "the training split has 12 reports in"),
        (["--model", "{llama}", "--shots", "99"], "--shots"),
        (["--model", "{llama}", "--context", "9999"], "--context 9999: the model has 1024 positions"),
        (["--model", "{llama}", "--max-new-tokens", "1024"], "leaves no room for a prompt in 1024 tokens"),
        (["--model", "{llama}", "--data.augment-to", "9"], "--data.augment-to: not read by retsta baseline"),
        (["--model", "{llama}", "--data.language", "en"], "--data.language: not read with --data.corpus jsonl"),
        (["--model", "{llama}", "--terminology", "{chinese}"], "the terminology has no names in English"),
        (["--model", "{llama}", "--terminology", "{llama}/missing.csv"], "missing.csv"),
        (["--model", "{gpt2}"], "model_type"),
        (["--model", "{empty}"], "config.json"),
        (["--model", "{llama}", "--learning-rate", "1"], "learning-rate"),
        (["--endpoint", "http://localhost:1/v1", "--endpoint-model", "m", "--batch-size", "2"], "--batch-size"),
        (["--endpoint", "http://localhost:1/v1", "--endpoint-model", "m", "--mesh.tensor", "2"], "--mesh.tensor"),
    ],
)
def test_bad_input_is_one_line(options, expected, llama, data, tmp_path, capsys):
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "empty").mkdir()
    (tmp_path / "chinese.csv").write_text("id,kind,zh\na,sign,玻璃膜疣\n", "utf-8")
    paths = {name: tmp_path / name for name in ("gpt2", "empty")} | {"llama": llama}
    given = [option.format(**paths, chinese=tmp_path / "chinese.csv") for option in options]
    assert retsta([*command(tmp_path / "out"), *data, *given]) == 2
    said = capsys.readouterr().err.strip()
    assert expected in said
    assert "\n" not in said
    assert not (tmp_path / "out").exists()


def test_a_directory_of_something_else_is_left_alone(llama, data, tmp_path, capsys):
    for name, content in (("metrics.json", "{}"), ("report.html", "<p>mine"), ("predictions.jsonl", '{"id": "1"}\n')):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text(content)
        assert retsta(command(folder, "--model", llama, *data)) == 2
        assert "contains something other than" in capsys.readouterr().err
        assert [(entry.name, entry.read_text()) for entry in folder.iterdir()] == [(name, content)]
