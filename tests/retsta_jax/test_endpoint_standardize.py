"""`retsta standardize` and `retsta label` with `--endpoint`: what is sent, our own rows, what a stop or kill leaves."""

import dataclasses
import functools
import json
import os
import shutil
import signal
import threading

import pytest

from common.config import read_config
from common.data.cleaning import clean_report
from common.endpoint.settings import CONSENT
from common.generation.generate import generate_rows, qwen2_slots
from retsta_jax import standardize_file
from retsta_jax.config import EMBEDDED_ADAPTER, RetstaConfig
from retsta_jax.exported import load_embedded
from retsta_jax.labelling import label
from retsta_jax.standardize import decode_settings
from tests.chat_server import answered, refused
from tests.corpus import make_pairs
from tests.hosts import on_hosts
from tests.runs import retsta, start

NEW = 24  # tokens of an answer, at most
OF_LABELS = ("pairs.jsonl", "rejected.jsonl", "funnel.json", *(f"shards/0000{number}.jsonl" for number in range(3)))
REPORTS = 9


@pytest.fixture(scope="module")
def trained():
    """The shipped model, whose reports of more than some tokens are cut off."""
    shipped = load_embedded()
    return shipped._replace(config=dataclasses.replace(shipped.config, max_new_tokens=NEW))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What the endpoint's client reads of a run: the config, and no weights of what was trained."""
    run_dir = tmp_path_factory.mktemp("served") / "run"
    run_dir.mkdir()
    config = json.loads((EMBEDDED_ADAPTER / "config.json").read_text())
    (run_dir / "config.json").write_text(json.dumps(config | {"max_new_tokens": NEW}))
    return run_dir


@pytest.fixture(scope="module")
def own_answers(trained):
    """Our own model behind an endpoint: one conversation at a time, as messages alone say."""
    tokenizer, lock = trained.base.tokenizer, threading.Lock()
    slots = qwen2_slots(trained.base.config, decode_settings(trained), 1, trained.layout)

    @functools.cache
    def answer(text):
        with lock:
            prompt = tokenizer.chat([{"role": "user", "content": text}])
            ((found,),) = generate_rows(slots, trained.variables, [prompt], [0])
        ids = found.token_ids[:-1] if found.stopped else found.token_ids
        return answered(tokenizer.decode(ids), "stop" if found.stopped else "length")

    return answer


@pytest.fixture
def engine(server, own_answers):
    server.script = lambda text, number: own_answers(text)
    return server


@pytest.fixture(scope="module")
def local(trained, run, reports, tmp_path_factory):
    """What the commands write with the model on this machine, which they are handed in place of a checkpoint."""
    folder = tmp_path_factory.mktemp("local")
    with pytest.MonkeyPatch.context() as patched:
        for module in (standardize_file, label):
            patched.setattr(module, "load_trained", lambda *which: trained)
        patched.setattr(label, "config_of_trained", lambda run_dir: None)
        assert retsta(standardized(run, reports, folder / "rows.jsonl", "--batch-size", "2", "--draft", "none")) == 0
        assert retsta(labelled(run, reports, folder / "labels", "--batch-size", "2")) == 0
    return folder


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Reports in both languages, one of them twice, one with white space that cleaning takes away."""
    pairs = make_pairs(REPORTS - 2, seed=2, language="both")
    rows = [{"id": pair.id, "report": pair.source} for pair in pairs]
    rows += [{"id": "twice", "report": pairs[0].source}, {"id": 7, "report": "  OD:\tfew   drusen&nbsp;. \r\n\r\n"}]
    file = tmp_path_factory.mktemp("reports") / "reports.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


def standardized(run, reports, output, *more):
    return ["standardize", "--run-dir", str(run), str(reports), "--output", str(output), *more]


def labelled(run, reports, output, *more):
    return ["label", str(reports), "--run-dir", str(run), "--output", str(output), "--shard-size", "4", *more]


def by(server, *more):
    return ["--endpoint", server.url, "--endpoint-model", "m", "--requests-per-minute", "100000", *more]


def files_in(folder):
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file() and file.suffix != ".lock"}


def test_our_own_model_behind_an_endpoint_writes_the_rows_of_the_command(engine, run, reports, local, tmp_path, capsys):
    served = tmp_path / "served.jsonl"
    assert retsta(standardized(run, reports, served, *by(engine, CONSENT))) == 0
    assert served.read_bytes() == (local / "rows.jsonl").read_bytes()
    rows = [json.loads(line) for line in served.read_text("utf-8").splitlines()]
    assert {row["complete"] for row in rows} == {True, False}
    assert len({row["standard"] for row in rows}) > 3
    said = capsys.readouterr().err
    assert f"{REPORTS - 1} of {REPORTS} requests are to be sent" in said  # one report comes twice
    sent = {json.dumps(body["messages"], ensure_ascii=False) for body in engine.bodies}
    instruction = read_config(RetstaConfig, run).instruction
    given = [json.loads(line)["report"] for line in reports.read_text("utf-8").splitlines()]
    whole = [[{"role": "user", "content": f"{instruction}\n\n{clean_report(report)}"}] for report in given]
    assert sent == {json.dumps(messages, ensure_ascii=False) for messages in whole}
    others = [{name: value for name, value in body.items() if name != "messages"} for body in engine.bodies]
    assert all(other == {"model": "m", "temperature": 0, "seed": 0, "max_tokens": NEW} for other in others)
    assert os.stat(tmp_path / "served.answers.sqlite").st_mode & 0o777 == 0o600


def test_labels_are_those_of_the_command(engine, run, reports, local, tmp_path):
    assert retsta(labelled(run, reports, tmp_path, *by(engine, CONSENT))) == 0
    for name in OF_LABELS:
        assert (tmp_path / name).read_bytes() == (local / "labels" / name).read_bytes()
    assert len((tmp_path / "pairs.jsonl").read_bytes().splitlines()) > 1
    assert len(engine.bodies) == REPORTS - 1
    assert "--endpoint-model m" in (tmp_path / "report.html").read_text("utf-8")
    card = (tmp_path / "README.md").read_text("utf-8")
    assert f"by {engine.url} (model m)" in card
    assert CONSENT not in card


@pytest.mark.parametrize("command", [standardized, labelled])
def test_nothing_is_sent_or_written_without_consent(server, run, reports, tmp_path, capsys, command):
    output = tmp_path / "out" / "rows"
    output.parent.mkdir()
    assert retsta(command(run, reports, output, *by(server))) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "patient data" in line]
    assert f"{REPORTS - 1} of {REPORTS} requests" in line
    assert f"nothing was sent; give {CONSENT}" in line
    assert server.connections == 0
    assert files_in(output.parent) == set()


@pytest.mark.parametrize("command", [standardized, labelled])
def test_a_stop_and_a_kill_keep_rows_and_answers(engine, run, reports, local, tmp_path, command):
    """After SIGTERM and after SIGKILL the same command ends with the rows of one that was left alone."""
    own, output = engine.script, tmp_path / "out"
    again = command(run, reports, output, *by(engine, CONSENT, "--endpoint-concurrency", "1"))

    def stopping(text, number):
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return own(text, number)

    engine.script = stopping
    assert retsta(again) == 75
    before, reached = len(engine.bodies), threading.Event()

    def hanging(text, number):
        if number == before + 3:
            reached.set()
            threading.Event().wait(30)
        return own(text, number)

    engine.script = hanging
    with start(again) as process:
        assert reached.wait(120)
        process.kill()
    assert before < len(engine.bodies) < REPORTS
    engine.script = own
    assert retsta(again) == 0
    if command is standardized:
        assert output.read_bytes() == (local / "rows.jsonl").read_bytes()
    else:
        for name in OF_LABELS:
            assert (output / name).read_bytes() == (local / "labels" / name).read_bytes()
    assert len(engine.bodies) == REPORTS - 1 + 1  # the one that hung was not answered


def test_of_two_hosts_the_first_asks(engine, run, reports, local, tmp_path):
    output = tmp_path / "out"
    words = standardized(run, reports, output, *by(engine, CONSENT))
    codes, said = on_hosts("retsta_jax.cli", [words] * 2, devices=1)
    assert codes == [0, 0], said
    assert output.read_bytes() == (local / "rows.jsonl").read_bytes()
    assert len(engine.bodies) == REPORTS - 1


def test_rows_of_another_model_or_endpoint_are_not_continued(engine, run, reports, local, tmp_path, capsys):
    here, served = tmp_path / "here.jsonl", tmp_path / "served.jsonl"
    for name in ("rows.jsonl", "rows.jsonl.config.json"):
        shutil.copy(local / name, tmp_path / name.replace("rows", "here"))
    assert retsta(standardized(run, reports, served, *by(engine, CONSENT))) == 0
    asked = len(engine.bodies)
    for output, name in ((here, "m"), (served, "n")):
        assert retsta(standardized(run, reports, output, *by(engine, CONSENT), "--endpoint-model", name)) == 2
        assert "made with other options or files" in capsys.readouterr().err
    assert len(engine.bodies) == asked


def test_a_refused_report_is_named_and_of_labels_rejected(server, run, reports, tmp_path, capsys):
    def script(text, number):
        return refused(400, "content_filter") if "OD: few" in text else answered("")

    server.script = script
    output = tmp_path / "rows.jsonl"
    assert retsta(standardized(run, reports, output, *by(server, CONSENT))) == 2
    assert "report 7: no standard form, filtered (" in capsys.readouterr().err
    assert output.read_bytes().count(b'"standard": "", "complete": true') == REPORTS - 1
    assert retsta(labelled(run, reports, tmp_path / "out", *by(server, CONSENT))) == 0
    assert "the endpoint refused 1 reports (filtered: 1), which have no standard form" in capsys.readouterr().err
    (row,) = [json.loads(line) for line in (tmp_path / "out/shards/00002.jsonl").read_text("utf-8").splitlines()]
    assert row == {"id": 7, "standard": "", "complete": False}


def test_an_answer_that_ends_otherwise_is_not_complete(server, run, tmp_path):
    (tmp_path / "one.txt").write_text("OD: drusen\n\nOS: drusen\n")
    server.script = lambda text, number: answered("Drusen.", "abort") if "OD" in text else answered("", "length")
    output = tmp_path / "rows.jsonl"
    assert retsta(standardized(run, tmp_path / "one.txt", output, *by(server, CONSENT))) == 0
    rows = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert rows == [
        {"id": 1, "standard": "Drusen.", "complete": False},
        {"id": 3, "standard": "", "complete": False},
    ]


@pytest.mark.parametrize(
    ("make", "given", "expected"),
    [
        (standardized, ["--batch-size", "2"], "--batch-size: not read by retsta standardize with an endpoint; "),
        (standardized, ["--draft", "none"], "--draft: not read by retsta standardize with an endpoint; "),
        (labelled, ["--batch-size", "2"], "--batch-size: not read by retsta label with an endpoint; "),
        (labelled, ["--mesh.tensor", "2"], "--mesh.tensor: not read by retsta label with an endpoint; "),
        (labelled, ["--endpoint", "localhost"], "--endpoint localhost: not an http or https address"),
    ],
)
def test_options_of_a_model_on_this_machine_are_not_read(server, run, reports, tmp_path, capsys, make, given, expected):
    assert retsta(make(run, reports, tmp_path / "out", *by(server, CONSENT), *given)) == 2
    assert expected in capsys.readouterr().err
    assert server.connections == 0


def test_what_lacks_is_one_line(server, run, reports, tmp_path, capsys):
    absent = tmp_path / "absent"
    for command in (standardized, labelled):
        assert retsta(command(absent, reports, tmp_path / "out", *by(server, CONSENT))) == 2
        assert "absent: no config.json there" in capsys.readouterr().err
    assert retsta(["standardize", "--run-dir", str(run), str(reports), *by(server, CONSENT)]) == 2
    assert "no file for the answers; give --endpoint-cache FILE" in capsys.readouterr().err
    assert retsta(standardized(run, reports, tmp_path / "out", CONSENT)) == 2
    assert f"{CONSENT}: not used without --endpoint" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    server.script = lambda text, number: refused(404)
    assert retsta(standardized(run, reports, tmp_path / "out", *by(server, CONSENT))) == 2
    assert "no such model, or no chat completions at this address" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
