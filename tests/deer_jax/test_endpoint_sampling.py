"""`deer sample --endpoint`: the images and the prompt that are sent, the rows, and what a kill leaves."""

import base64
import hashlib
import io
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from common.command import run_cli
from common.data.dicom import read_dicom
from common.endpoint.settings import CONSENT
from common.errors import UserError
from deer_jax.cli import dispatch
from deer_jax.config import INSTRUCTION
from tests.chat_server import answered, refused
from tests.dicom_files import IDENTIFIERS, dicom_bytes

ROOT = Path(__file__).parents[2]
SIDE, GROUP, STUDIES = 56, 3, 6


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """Studies of a PNG with a comment, a JPEG with EXIF, and a DICOM file with a patient's header."""
    folder = tmp_path_factory.mktemp("studies")
    rng, rows = np.random.default_rng(0), []
    for number in range(STUDIES):
        pixels = rng.integers(0, 256, (70, 90), dtype=np.uint8)
        names = [f"{number}.png", f"{number}.jpg", f"{number}.dcm"]
        picture = Image.fromarray(pixels)
        exif = picture.getexif()
        exif[0x013B] = "Doe^Jane"
        picture.save(folder / names[1], exif=exif)
        comment = PngInfo()
        comment.add_text("Patient", "Doe^Jane")
        picture.save(folder / names[0], pnginfo=comment)
        (folder / names[2]).write_bytes(dicom_bytes(pixels.astype(np.uint16) * 16))
        rows.append({"id": f"s{number}", "images": names, "report": f"secret {number} .", "split": "train"})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return folder


def options_of(server, studies, output, *more):
    return [
        "sample", "--preset", "mimic-cxr", "--data.layout", "rows", "--data.source", str(studies / "rows.jsonl"),
        "--data.images", str(studies), "--data.views", "3", "--data.side", str(SIDE), "--output", str(output),
        "--data.cleaning", "lossless", "--rollout.group", str(GROUP), "--rollout.max-new-tokens", "9",
        "--endpoint", server.url, "--endpoint-model", "m", "--requests-per-minute", "100000", *more,
    ]  # fmt: skip


def by_request(server):
    """Answers that depend on the whole request alone."""

    def script(text, number):
        whole = json.dumps(server.bodies[number - 1], sort_keys=True)
        return answered(hashlib.sha256(whole.encode()).hexdigest()[:12])

    return script


def rows_of(file):
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_the_server_gets_the_pixels_and_the_instruction_and_nothing_else(server, studies, tmp_path, capsys):
    output = tmp_path / "rows.jsonl"
    server.script = by_request(server)
    dispatch(options_of(server, studies, output, CONSENT, "--endpoint-concurrency", "1"))
    rows = rows_of(output)
    assert [row["id"] for row in rows] == [f"s{number}" for number in range(STUDIES)]
    assert all(row.keys() == {"id", "reference", "rollouts"} and len(row["rollouts"]) == GROUP for row in rows)
    assert len({text for row in rows for text in row["rollouts"]}) == STUDIES * GROUP == len(server.bodies)
    for number, body in enumerate(server.bodies):
        assert {name: body[name] for name in ("temperature", "top_p", "max_tokens")} == {
            "temperature": 1.0, "top_p": 0.9, "max_tokens": 9,
        }  # fmt: skip
        (message,) = body["messages"]
        *images, text = message["content"]
        assert (message["role"], text) == ("user", {"type": "text", "text": INSTRUCTION})
        for name, part in zip(("png", "jpg", "dcm"), images, strict=True):
            head, _, data = part["image_url"]["url"].partition(",")
            assert (part["type"], head) == ("image_url", "data:image/png;base64")
            png = base64.b64decode(data, validate=True)
            file = studies / f"{number // GROUP}.{name}"
            grey = read_dicom(file.read_bytes(), "", "window") if name == "dcm" else np.asarray(Image.open(file))
            wanted = Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            sent = Image.open(io.BytesIO(png))
            assert (sent.mode, sent.info) == ("L", {})
            np.testing.assert_array_equal(np.asarray(sent), np.asarray(wanted))
            assert set(chunks_of(png)) == {b"IHDR", b"IDAT", b"IEND"}
        for known in (*IDENTIFIERS.values(), "secret", f's{number // GROUP}"'):
            assert known not in json.dumps(body)
    assert len({body["seed"] for body in server.bodies}) == STUDIES * GROUP
    assert "18 of 18 requests" in capsys.readouterr().err


def chunks_of(png: bytes):
    at = 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        yield png[at + 4 : at + 8]
        at += 12 + length


def test_nothing_is_sent_without_consent_and_the_line_names_images(server, studies, tmp_path):
    with pytest.raises(UserError, match=r"contain 54 images and so patient data: nothing was sent; give --") as said:
        dispatch(options_of(server, studies, tmp_path / "rows.jsonl"))
    assert "18 of 18 requests" in str(said.value)
    assert server.connections == 0
    assert [file.name for file in tmp_path.iterdir() if not file.name.endswith(".lock")] == []


def test_a_greedy_report_is_a_prediction(server, studies, tmp_path):
    output = tmp_path / "rows.jsonl"
    server.script = lambda text, number: answered("\n\n clear .\n")
    greedy = ["--rollout.group", "1", "--rollout.temperature", "0", "--limit", "2", "--labeler", "phantom"]
    dispatch(options_of(server, studies, output, CONSENT, *greedy))
    assert [row["prediction"] for row in rows_of(output)] == ["clear ."] * 2
    assert len(rows_of(output)[0]["labels"][0]) == 14
    assert {(body["temperature"], body["top_p"]) for body in server.bodies} == {(0, 0.9)}


def test_a_stop_and_a_kill_keep_rows_and_answers(server, studies, tmp_path):
    """After SIGTERM and after SIGKILL the same command ends with the rows of one that was left alone."""
    server.script = by_request(server)
    whole = tmp_path / "whole.jsonl"
    one_study = ["--endpoint-concurrency", "1", "--batch-size", "1", CONSENT]
    dispatch(options_of(server, studies, whole, *one_study))
    output = tmp_path / "rows.jsonl"
    command = options_of(server, studies, output, *one_study)

    server.bodies.clear()
    script, reached = by_request(server), threading.Event()

    def terminated(text, number):
        if number == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return script(text, number)

    server.script = terminated
    with pytest.raises(SystemExit) as stop:
        run_cli(dispatch, command)
    assert stop.value.code == 75
    assert whole.read_bytes().startswith(output.read_bytes())
    known = len(server.bodies)

    def hanging(text, number):
        if number == known + 7:
            reached.set()
            threading.Event().wait(30)
        return script(text, number)

    server.script = hanging
    words = [sys.executable, "-m", "deer_jax.cli", *command]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        assert reached.wait(120)
        process.kill()
    rows = output.read_bytes()
    assert rows.count(b"\n") >= 3
    assert whole.read_bytes().startswith(rows)

    server.script = by_request(server)
    dispatch(command)
    assert output.read_bytes() == whole.read_bytes()
    seeds = [body["seed"] for body in server.bodies]
    assert len(set(seeds)) == STUDIES * GROUP
    assert len(seeds) == STUDIES * GROUP + 1  # the one that hung was not answered
    for other in (["--seed", "1"], ["--endpoint-model", "other"], ["--rollout.top-p", "0.5"]):
        with pytest.raises(UserError, match="made with other options or files"):
            dispatch([*command, *other])


def test_an_empty_report_is_a_report_and_a_refused_study_is_named(server, studies, tmp_path):
    output = tmp_path / "rows.jsonl"
    server.script = lambda text, number: answered("")
    dispatch(options_of(server, studies, output, CONSENT, "--limit", "1"))
    assert rows_of(output)[0]["rollouts"] == [""] * GROUP
    other = tmp_path / "other.jsonl"
    server.script = lambda text, number: answered("ok") if number <= 9 else refused(400, "content_filter")
    one_by_one = [CONSENT, "--endpoint-concurrency", "1", "--batch-size", "1"]
    with pytest.raises(UserError, match=r"^id 's2': no report, filtered .*status 400, content_filter.* are kept"):
        dispatch(options_of(server, studies, other, *one_by_one))
    assert len(rows_of(other)) == 2


def test_options_of_a_model_on_this_machine_are_not_read(server, studies, tmp_path):
    for option in (["--model.base", "x"], ["--draft", "none"], ["--parallel", "jit"], ["--mesh.tensor", "1"]):
        with pytest.raises(UserError, match=rf"^{option[0]}: not read by deer sample with an endpoint; "):
            dispatch(options_of(server, studies, tmp_path / "rows.jsonl", CONSENT, *option))
    assert server.connections == 0
