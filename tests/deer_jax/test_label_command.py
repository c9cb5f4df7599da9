"""`deer label` and `deer train-labeler` from the command line: rows, resuming, several processes, bad input."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from common.clinical.labeler import Labeler, encode, label_texts, load_labeler, save_vocabulary, train_tokenizer
from common.clinical.labeler_loss import label_batch, labeler_loss, shuffled_sentences
from common.clinical.labelled_reports import phantom_corpus
from common.command import run_cli
from common.data.packing import GlobalBatch
from common.io.jsonl import read_jsonl, write_rows
from common.models.bert import BertConfig, ClassifierConfig, chexbert_logits, init_classifier, word_embeddings
from common.models.bert_weights import save_classifier
from deer_jax.cli import dispatch
from tests.compile_flags import QUICK

ROOT = Path(__file__).parents[2]
WORDS = ["no", "mild", "edema", "effusion", "the", "heart", "is", "enlarged", "."]


def deer(arguments: list[str]) -> int | str | None:
    with pytest.raises(SystemExit) as stopped:
        run_cli(dispatch, arguments)
    return stopped.value.code


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """A labeler with random weights that say something of each text."""
    folder = tmp_path_factory.mktemp("labeler")
    tokenizer = train_tokenizer(WORDS * 3, 200)
    config = ClassifierConfig(BertConfig(tokenizer.get_vocab_size(), 32, 1, 4, 48, max_position_embeddings=48))
    params = jax.tree.map(lambda leaf: 8 * leaf, init_classifier(config, jax.random.key(0)))
    save_classifier(folder, config, params)
    save_vocabulary(folder / "vocab.txt", tokenizer)
    return folder


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("reports") / "reports.jsonl"
    random = np.random.default_rng(0)
    texts = ["", "no edema . " * 40, *(" ".join(random.choice(WORDS, random.integers(1, 30))) for _ in range(21))]
    write_rows(
        file, [{"id": number if number % 2 else f"r{number}", "report": text} for number, text in enumerate(texts)]
    )
    return file


@pytest.fixture(scope="module")
def labelled(directory, reports, tmp_path_factory) -> list[dict]:
    output = tmp_path_factory.mktemp("whole") / "out.jsonl"
    arguments = ["label", str(reports), "--labeler", str(directory), "--logits", "--output", str(output)]
    assert deer([*arguments, "--batch-size", "8"]) == 0
    return read_jsonl(output, {"id": str | int, "labels": list, "logits": list})


def test_the_attention_of_the_labeler_is_said(directory, reports, as_on_a_gpu, capsys):
    assert deer(["label", str(reports), "--labeler", str(directory), "--batch-size", "2"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "attention: " in line] == ["attention: xla (labeler)"]


def test_rows_are_the_likeliest_classes_in_input_order(directory, reports, labelled):
    rows = read_jsonl(reports, {"id": str | int, "report": str})
    assert [row["id"] for row in labelled] == [row["id"] for row in rows]
    labels = label_texts(load_labeler(directory), [row["report"] for row in rows])
    for number, row in enumerate(labelled):
        assert row.keys() == {"id", "labels", "logits"}
        assert [len(values) for values in row["logits"]] == [4] * 13 + [2]
        assert row["labels"] == [int(np.argmax(values)) for values in row["logits"]] == labels.classes[number].tolist()
        assert np.isfinite(np.concatenate(row["logits"])).all()
    assert len({tuple(row["labels"]) for row in labelled}) > 5


def test_an_interrupted_file_is_completed(directory, reports, labelled, tmp_path, capsys):
    output = tmp_path / "out.jsonl"
    half = "".join(json.dumps({"id": row["id"], "labels": row["labels"]}) + "\n" for row in labelled[:9])
    arguments = ["label", str(reports), "--labeler", str(directory), "--output", str(output), "--batch-size", "4"]
    assert deer(arguments) == 0
    output.write_text(half + '{"id": "torn')
    assert deer(arguments) == 0
    expected = [{"id": row["id"], "labels": row["labels"]} for row in labelled]
    assert read_jsonl(output, {"id": str | int}) == expected
    before = output.read_bytes()
    assert deer(arguments) == 0
    assert output.read_bytes() == before
    assert deer([*arguments, "--logits"]) == 2
    assert "logits was False and is now True" in capsys.readouterr().err


def test_rows_of_another_labeler_are_not_continued(directory, reports, labelled, tmp_path, capsys):
    output = tmp_path / "out.jsonl"
    command = ["label", str(reports), "--output", str(output), "--labeler"]
    assert deer([*command, str(directory)]) == 0
    whole = output.read_bytes()
    capsys.readouterr()
    for content in (whole, whole[: len(whole) // 2]):
        output.write_bytes(content)
        assert deer([*command, "phantom"]) == 2
        err = capsys.readouterr().err
        assert "out.jsonl: holds rows made with other options or files (labeler." in err
        assert err.count("\n") == 1
    copied = tmp_path / "copied"  # where it lies does not matter
    shutil.copytree(directory, copied)
    assert deer([*command, str(copied)]) == 0
    assert output.read_bytes() == whole


def test_more_reports_are_continued_and_changed_ones_are_not(directory, reports, labelled, tmp_path, capsys):
    rows, output = read_jsonl(reports, {"id": str | int}), tmp_path / "out.jsonl"
    command = ["label", str(tmp_path / "in.jsonl"), "--logits", "--labeler", str(directory), "--output", str(output)]
    for count in (4, len(rows)):
        write_rows(tmp_path / "in.jsonl", rows[:count])
        assert deer(command) == 0
    assert [row["labels"] for row in read_jsonl(output, {})] == [row["labels"] for row in labelled]
    write_rows(tmp_path / "in.jsonl", [*rows[:2], {**rows[2], "report": "another"}, *rows[3:]])
    before = output.read_bytes()
    capsys.readouterr()
    assert deer(command) == 2
    assert "made from other input, which differs from row 3 on" in capsys.readouterr().err
    assert output.read_bytes() == before


def test_standard_output_and_what_was_cut(directory, reports, labelled, capsys):
    assert deer(["label", str(reports), "--labeler", str(directory)]) == 0
    out, err = capsys.readouterr()
    assert [json.loads(line) for line in out.splitlines()] == [
        {"id": row["id"], "labels": row["labels"]} for row in labelled
    ]
    assert "1 of 23 reports were longer than the labeler's 48 tokens" in err


WORKER = """
import sys, jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(coordinator_address=sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
from common.command import run_cli
from deer_jax.cli import dispatch
run_cli(dispatch, sys.argv[3:])
"""


def in_two_processes(command: list[str], output: Path) -> tuple[list[int], list[str]]:
    """Exit codes and standard errors of a command whose second process has an --output of its own, "never.jsonl"."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = {**os.environ, "XLA_FLAGS": QUICK, "PYTHONPATH": str(ROOT)}
    outputs = [output, output.with_name("never.jsonl")]  # as where the hosts share no disk
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, address, str(number), *command, "--output", str(outputs[number])],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    try:
        ends = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], [error for _, error in ends]


@pytest.mark.parametrize("command", ["label", "sample"])
def test_what_the_first_process_cannot_continue_ends_the_others_too(directory, reports, tmp_path, command):
    write_rows(tmp_path / "out.jsonl", [{"id": "other", "reference": "", "rollouts": [], "labels": []}])
    options = {
        "label": [str(reports), "--labeler", str(directory)],
        "sample": ["--preset", "demo", "--data.train-size", "2", "--data.side", "56"],
    }
    codes, errors = in_two_processes([command, *options[command]], tmp_path / "out.jsonl")
    assert codes == [2, 2], errors
    assert "out.jsonl: its ids are not the first ids of the input" in errors[0]
    assert errors[1].splitlines()[-1] == errors[0].splitlines()[-1]


def test_two_processes_write_the_file_that_one_writes(directory, reports, labelled, tmp_path):
    output = tmp_path / "out.jsonl"
    options = ["--labeler", str(directory), "--logits", "--batch-size", "4"]
    write_rows(tmp_path / "first.jsonl", read_jsonl(reports, {})[:1])
    assert deer(["label", str(tmp_path / "first.jsonl"), *options, "--output", str(output)]) == 0  # continued
    command = ["label", str(reports), *options]
    codes, errors = in_two_processes(command, output)
    assert codes == [0, 0], errors
    assert not list(tmp_path.glob("never*"))
    found = read_jsonl(output, {"id": str | int, "labels": list, "logits": list})
    assert [(row["id"], row["labels"]) for row in found] == [(row["id"], row["labels"]) for row in labelled]
    for row, expected in zip(found, labelled, strict=True):
        np.testing.assert_allclose(np.concatenate(row["logits"]), np.concatenate(expected["logits"]), atol=1e-4)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ('{"id": 1}', [], "line 1: key 'report' is missing"),
        ('{"id": 1, "report": null}', [], "'report' must be str"),
        ('{"id": 1, "report": "a"}', ["--batch-size", "0"], "--batch-size"),
        ('{"id": 1, "report": "a"}', ["--output", "/nowhere/out.jsonl"], "folder does not exist"),
        ('{"id": 1, "report": "a"}', ["--labeler", "/nowhere/chexbert.pth"], "no such labeler"),
    ],
)
def test_bad_input_is_one_line(directory, tmp_path, capsys, rows, options, message):
    file = tmp_path / "in.jsonl"
    file.write_text(rows)
    assert deer(["label", str(file), "--labeler", str(directory), *options]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_the_loss_is_the_sum_of_every_heads_cross_entropy():
    """Against a loop over reports and heads on the probabilities; rows that fill up a batch do not count."""
    tokenizer = train_tokenizer(WORDS * 3, 200)
    config = ClassifierConfig(BertConfig(tokenizer.get_vocab_size(), 32, 1, 4, 48, max_position_embeddings=48))
    params = init_classifier(config, jax.random.key(1))
    labeler = Labeler(config, params, tokenizer)
    ids = encode(labeler, ["no edema .", "the heart is enlarged"]).ids
    classes = np.array([[0, 1, 2, 3] * 3 + [2, 1], [3] * 13 + [0]])
    batch = label_batch(GlobalBatch(32, [[1], [], [0]], 0, 0), ids, classes, None, 0)
    assert batch.real_tokens == len(ids[0]) + len(ids[1])
    found, aux = jax.jit(lambda p, b: labeler_loss(p, {}, b, jax.random.key(0), config=config, dropout=False))(
        params, batch
    )
    expected, right = 0.0, 0
    logits_of = jax.jit(chexbert_logits, static_argnums=0)
    for own, truth in zip(ids, classes, strict=True):
        words = word_embeddings(params, np.array([own]))
        logits = np.asarray(logits_of(config, params, words, np.ones((1, len(own)), bool)))[0]
        for values, wanted in zip(logits.astype(np.float64), truth, strict=True):
            probabilities = np.exp(values) / np.exp(values).sum()
            expected -= np.log(probabilities[wanted])
            right += int(values.argmax() == wanted)
    assert float(found.total) == pytest.approx(expected, rel=1e-5)
    assert float(found.weight) == 2
    assert float(aux["right"].total) == pytest.approx(right / 14)


def test_shuffled_sentences_keep_marks_tokens_and_order_within_a_sentence():
    ids = np.array([2, 10, 11, 7, 12, 7, 13, 14, 15, 7, 16, 3])
    seen = set()
    for seed in range(40):
        found = shuffled_sentences(ids, 7, np.random.default_rng(seed)).tolist()
        assert (found[0], found[-1]) == (2, 3)
        assert sorted(found) == sorted(ids.tolist())
        inner = " ".join(map(str, found))
        assert all(part in inner for part in ("10 11 7", "12 7", "13 14 15 7", "16"))
        seen.add(inner)
    assert len(seen) > 10


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory) -> Path:
    """Labelled phantom reports as a file."""
    corpus = phantom_corpus(60, 1, 12, 0.0, 5)
    folder = tmp_path_factory.mktemp("rows")
    for name, part in (("train", corpus.train), ("test", corpus.tests["written"])):
        write_rows(folder / f"{name}.jsonl", [{"id": r.id, "report": r.text, "labels": list(r.labels)} for r in part])
    return folder


SMALL = [
    *("--encoder.vocab-size", "300", "--encoder.hidden-size", "16", "--encoder.num-hidden-layers", "1"),
    *("--encoder.num-attention-heads", "2", "--encoder.intermediate-size", "32", "--buckets", "128"),
    *("--encoder.max-position-embeddings", "128", "--batch-size", "8", "--optim.learning-rate", "1e-2"),
    *("--evaluate-every", "4", "--checkpoint-every", "4", "--tensorboard", "False", "--parallel", "jit"),
]


def test_training_from_a_file_resumes_and_exports_what_label_takes(rows_file, reports, tmp_path, capsys):
    arguments = ["train-labeler", "--preset", "chexbert", "--data", str(rows_file / "train.jsonl")]
    arguments += ["--test", str(rows_file / "test.jsonl"), *SMALL, "--epochs", "3"]
    whole, halves, export = tmp_path / "whole", tmp_path / "halves", tmp_path / "export"
    assert deer([*arguments, "--output", str(whole), "--export", str(export)]) == 0
    shown = capsys.readouterr().out
    assert "| Cardiomegaly |" in shown
    metrics = json.loads((whole / "metrics.json").read_text())["test"]
    assert metrics["labeler"].keys() == metrics["constant"].keys()
    losses = [json.loads(line)["loss"] for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:3])
    for path in (whole, export):
        assert deer(["label", str(reports), "--labeler", str(path)]) == 0
    outputs = capsys.readouterr().out.splitlines()
    assert outputs[: len(outputs) // 2] == outputs[len(outputs) // 2 :]

    # As if it had been stopped after an earlier checkpoint.
    shutil.copytree(whole, halves)
    latest = sorted((halves / "checkpoints" / "latest").iterdir(), key=lambda path: int(path.name))
    shutil.rmtree(latest[-1])
    for step in (halves / "checkpoints" / "best").iterdir():
        shutil.rmtree(step)
    shutil.rmtree(halves / "labeler")
    assert deer([*arguments, "--output", str(halves)]) == 0
    again = [json.loads(line)["loss"] for line in (halves / "metrics.jsonl").read_text().splitlines()]
    assert again == losses


def test_training_starts_from_a_published_encoder(directory, rows_file, tmp_path, capsys):
    """The encoder of a saved labeler stands in for bert-base-uncased; with no learning, it is what is exported."""
    arguments = [
        "train-labeler",
        "--preset",
        "chexbert",
        "--data",
        str(rows_file / "train.jsonl"),
        "--init",
        str(directory),
        "--max-steps",
        "1",
    ]
    arguments += ["--optim.learning-rate", "0", "--tensorboard", "False", "--parallel", "jit", "--buckets", "48"]
    assert deer([*arguments, "--output", str(tmp_path / "run")]) == 0
    start, end = load_labeler(directory), load_labeler(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, start.params["bert"], end.params["bert"])
    assert start.tokenizer.get_vocab() == end.tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "openi"], "archive: not given"),
        (["--preset", "chexbert", "--parallel", "jit"], "data: not given"),
        (["--preset", "phantom", "--epochs", "0"], "epochs must be at least 1"),
        (["--preset", "fantom"], "did you mean phantom?"),
    ],
)
def test_training_refuses_what_makes_no_sense(tmp_path, capsys, arguments, message):
    assert deer(["train-labeler", *arguments, "--output", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_training_names_the_row_whose_labels_are_none(tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    write_rows(
        file, [{"id": "a", "report": "x", "labels": [0] * 14}, {"id": "b", "report": "y", "labels": [0] * 13 + [2]}]
    )
    command = ["train-labeler", "--preset", "chexbert", "--data", str(file), "--output", str(tmp_path / "run")]
    command += ["--parallel", "jit"]
    assert deer(command) == 2
    assert "row 'b': 'labels' must be 14" in capsys.readouterr().err
