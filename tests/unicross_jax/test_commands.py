"""`unicross train | evaluate | report` end to end on phantoms, killed and continued, and refused by bad input."""

import json
import os
import shutil
import signal
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from common.config import read_config
from common.config_options import parse
from common.errors import UserError
from common.metrics.text import evaluate_texts
from tests.pages import commands_of
from tests.unicross_jax.runs import arguments, log, make_clip, start, unicross
from unicross_jax.ablation import finished
from unicross_jax.config import NEEDS, PRESETS, RunConfig
from unicross_jax.report import Written


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, clip) -> Path:
    """A run of twelve steps, evaluated."""
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    assert unicross(arguments(run_dir, clip)) == 0
    assert unicross(["evaluate", "--run-dir", str(run_dir)]) == 0
    return run_dir


def test_training_lowers_the_loss_and_leaves_what_others_need(trained):
    losses = [row["loss"] for row in log(trained)]
    assert losses[-1] < 0.8 * losses[0]
    assert {file.name for file in (trained / "model").iterdir()} == {
        "config.json",
        "vocabulary.json",
        "model.safetensors",
        "base.json",
        "README.md",
    }


def test_an_evaluation_stands_beside_its_baselines_and_scores_what_it_wrote_down(trained):
    metrics = json.loads((trained / "metrics.json").read_text())
    assert list(metrics["systems"]) == ["this run", "nearest training study", "constant report"]
    rows = [json.loads(line) for line in (trained / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == metrics["studies"] == 4
    again = evaluate_texts([row["prediction"] for row in rows], [row["reference"] for row in rows])
    own = metrics["systems"]["this run"]
    assert own["coco/BLEU-1"]["value"] == pytest.approx(again["coco/BLEU-1"]["value"], abs=1e-6)
    assert metrics["systems"]["constant report"]["distinct_outputs"]["value"] == 0.25
    known = {*json.loads((trained / "vocabulary.json").read_text())["words"]}
    cut = [  # 20 tokens are start and 19 words
        " ".join(word if word in known else "<unk>" for word in row["reference"].split()[:19]) for row in rows
    ]
    again = evaluate_texts([row["prediction"] for row in rows], cut)
    for name in ("BLEU-1", "BLEU-4", "ROUGE-L"):
        found = metrics["systems"]["this run"][f"coco-cut/{name}"]["value"]
        assert found == pytest.approx(again[f"coco/{name}"]["value"], abs=1e-6)
    for baseline, above in metrics["above"].items():
        for name, score in metrics["systems"]["this run"].items():
            if score["value"] is None or name.startswith(("coco-cut/", "distinct")):
                continue
            less = metrics["systems"][baseline][name]["value"]
            assert above[name]["value"] == pytest.approx(score["value"] - less, abs=2e-6)
            assert above[name]["low"] <= above[name]["high"]
    page = (trained / "report.html").read_text()
    assert "Where the model looked" in page
    assert "Difference to the constant report" in page
    assert "<script" not in page


def test_an_evaluation_decodes_as_it_is_told(trained, tmp_path, refused):
    run = shutil.copytree(trained, tmp_path / "run")
    told = ["evaluate", "--run-dir", str(run), "--split", "validation", "--limit", "2"]
    written = []
    for penalty in ("-9", "9"):  # the shortest of finished beams, and the longest
        assert unicross([*told, "--beams", "3", "--length-penalty", penalty]) == 0
        metrics = json.loads((run / "metrics.json").read_text())
        assert metrics["decoding"] == {"beams": 3, "length_penalty": float(penalty)}
        rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
        written.append(sum(len(row["prediction"].split()) for row in rows))
    assert written[0] < written[1]
    assert "--length-penalty" in refused([*told, "--length-penalty", "nan"])
    assert "--beams" in refused([*told, "--beams", "0"])


def test_a_killed_run_continues_to_the_same_bits(clip, trained, tmp_path):
    words = arguments(tmp_path / "run", clip, checkpoint_every=2)  # so that it is not over before it is killed
    process = start(words)
    deadline = time.monotonic() + 300
    while not (tmp_path / "run" / "checkpoints" / "latest" / "2").is_dir():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "the run makes no progress"
        time.sleep(0.001)  # polled, because a killed process cannot say where it is
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 2 <= len(log(tmp_path / "run")) < 12
    assert unicross(words) == 0
    assert log(tmp_path / "run") == log(trained)
    assert log(trained)[-1]["weights_sha256"]


def test_a_model_that_overflows_names_the_study_and_writes_no_report(trained, images, tmp_path, refused):
    loud = tmp_path / "model"
    shutil.copytree(trained / "model", loud)
    tensors = load_file(loud / "model.safetensors")
    save_file(tensors | {"logits/kernel": np.full_like(tensors["logits/kernel"], 3e38)}, loud / "model.safetensors")
    output = tmp_path / "out.jsonl"
    said = refused(["report", *images, "--checkpoint", str(loud), "--output", str(output)])
    assert f"id '{images[0]}'" in said
    assert "the model's logits are not finite (NaN or infinity)" in said
    assert not output.exists()


@pytest.mark.parametrize(("study", "groups"), [("each", 4), ("one", 1), (r"s\d", 2)])
def test_reports_for_ones_own_images(trained, images, tmp_path, study, groups):
    output = tmp_path / "out.jsonl"
    options = ["--checkpoint", str(trained), "--output", str(output), "--study", study]
    assert unicross(["report", *images, *options]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) == groups
    assert [image for row in rows for image in row["images"]] == images
    assert all(isinstance(row["report"], str) for row in rows)
    page = (tmp_path / "out.html").read_text()
    seen: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: seen.append(tag)
    parser.feed(page)
    assert "script" not in seen


def test_an_exported_model_writes_what_its_run_writes(trained, images, tmp_path):
    texts = []
    for number, checkpoint in enumerate((trained, trained / "model")):
        output = tmp_path / f"{number}.jsonl"
        assert unicross(["report", *images, "--checkpoint", str(checkpoint), "--output", str(output)]) == 0
        texts.append(output.read_text())
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"modell__heads": 3}, ["modell.heads", "model.heads"]),
        ({"max_length": 60}, ["max_length", "60", "at most 25"]),
        ({"data__resize": 20}, ["data.resize", "20", "give 32 to 36"]),
        ({"data__resize": 256}, ["data.resize", "256", "square of 32", "2% of a square image", "give 32 to 36"]),
        ({"model__heads": 5}, ["model.heads", "5", "64"]),
        ({"model__dropout": 1.0}, ["model.dropout"]),
        ({"vision_lr_multiplier": -1.0}, ["vision_lr_multiplier", "at least 0"]),
        ({"model__logit_init_scale": "nan"}, ["model.logit_init_scale", "finite"]),
        ({"data__views": 0}, ["data.views", "at least 1"]),
        ({"data__degrees": -5.0}, ["data.degrees", "at least 0 and at most 180"]),
        ({"data__brightness": "nan"}, ["data.brightness", "at least 0 and at most 1"]),
        ({"optim__b1": 2.0}, ["optim.b1", "below 1"]),
        ({"optim__weight_decay": "nan"}, ["optim.weight_decay", "at least 0"]),
        ({"length_penalty": "inf"}, ["length_penalty", "at least -100"]),
        ({"data__test_size": -1}, ["data.test_size", "at least 0"]),
        ({"data__layout": "annotation"}, ["data.source", "not given"]),
        ({"data__layout": "prepared", "data__source": "nowhere"}, ["nowhere", "no data set"]),
        ({"data__validation_size": 0}, ["validation", "at least one"]),
        ({"data__validation_size": -3}, ["data.validation_size", "at least 0"]),
        ({"seed": 2**64}, ["seed must be at least 0", "found 18446744073709551616"]),
        ({"model__clip": __file__, "model__clip_vocabulary": "missing.gz"}, ["missing.gz", "cannot be read"]),
        ({"model__clip": __file__}, ["model.clip_vocabulary", "bpe_simple_vocab"]),
        ({"model__clip": "missing.pt"}, ["missing.pt", "no such file"]),
        ({"model__clip": ""}, ["model.clip", "RN101.pt"]),
        ({"vocabulary__minimum_count": 10_000}, ["10000 times"]),
        ({"batch_size": 7, "micro_batch": 2}, ["batch_size", "7"]),
    ],
)
def test_a_config_that_makes_no_sense_is_refused_before_anything_is_written(refused, clip, tmp_path, changed, words):
    error = refused(arguments(tmp_path / "run", clip, **changed))
    assert all(word in error for word in words), error
    assert not (tmp_path / "run").exists()


def test_another_clip_than_the_run_was_trained_on_is_refused_by_name(refused, trained, tmp_path):
    config = json.loads((trained / "config.json").read_text())
    other = make_clip(tmp_path / "other-clip", seed=1)
    config["model"]["clip"] = str(other)
    saved = (trained / "config.json").read_text()
    try:
        (trained / "config.json").write_text(json.dumps(config))
        error = refused(["evaluate", "--run-dir", str(trained)])
    finally:
        (trained / "config.json").write_text(saved)
    assert "other-clip" in error
    assert "sha256" in error
    shutil.copytree(trained / "model", tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    Image.new("L", (40, 40)).save(tmp_path / "x.png")
    error = refused(["report", str(tmp_path / "x.png"), "--checkpoint", str(tmp_path / "model")])
    assert "other-clip" in error
    assert "another CLIP (sha256" in error


def test_a_checkpoint_of_another_config_is_refused_by_the_field(refused, trained):
    saved = (trained / "config.json").read_text()
    config = json.loads(saved)
    config["model"]["decoder_layers"] += 1
    try:
        (trained / "config.json").write_text(json.dumps(config))
        error = refused(["evaluate", "--run-dir", str(trained)])
    finally:
        (trained / "config.json").write_text(saved)
    assert str(trained / "checkpoints") in error
    assert "model.decoder_layers was" in error


def test_an_ablation_takes_no_result_of_another_config(refused, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "full-model-0")
    given = ["--data.source", "none", "--data.images", "none", "--model.clip", "none"]
    words = ["ablation", "--preset", "iu-xray", *given, "--directory", str(tmp_path)]
    assert "a different config" in refused(words)


@pytest.mark.parametrize("changed", [{"split": "validation"}, {"limit": 1}, {"decoding": {"beams": 2}}])
def test_an_ablation_takes_no_evaluation_of_another_part_or_way(trained, tmp_path, changed):
    assert finished(tmp_path, {}) is None
    metrics = json.loads((trained / "metrics.json").read_text())
    (tmp_path / "metrics.json").write_text(json.dumps(metrics | changed))
    assert finished(tmp_path, {}) is None
    (tmp_path / "metrics.json").write_text("[")
    with pytest.raises(UserError, match=r"metrics\.json: not JSON"):
        finished(tmp_path, {})


def test_an_ablation_takes_scores_of_the_weights_that_are_there_wherever_they_lie(trained, tmp_path, capsys):
    run = shutil.copytree(trained, tmp_path / "moved")
    metrics = json.loads((run / "metrics.json").read_text())
    assert finished(run, {}) == metrics["systems"]
    (run / "metrics.json").write_text(json.dumps(metrics | {"made_from": {"weights": "another"}}))
    assert finished(run, {}) is None
    assert (
        "its scores are of other weights or studies, or by another labeler; the run is evaluated again"
        in capsys.readouterr().out
    )
    del metrics["made_from"]
    (run / "metrics.json").write_text(json.dumps(metrics))
    assert finished(run, {}) is None
    assert "its scores do not say what they were made from" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["evaluate", "report"])
def test_a_table_of_drafts_of_another_tokenizer_is_refused_first(trained, images, tmp_path, refused, command):
    run_dir = shutil.copytree(trained, tmp_path / "run")
    table = run_dir / "drafts.safetensors"
    save_file(load_file(table), table, metadata={"tokenizer": "another"})
    own = {
        "evaluate": ["--run-dir", str(run_dir), "--beams", "1"],
        "report": [*images, "--checkpoint", str(run_dir / "model"), "--output", str(tmp_path / "out.jsonl")],
    }
    config = run_dir / "model" / "config.json"  # the table of an exported model is that of its run
    config.write_text(json.dumps(json.loads(config.read_text()) | {"beams": 1}))
    (run_dir / "metrics.json").unlink()
    before = sorted(tmp_path.rglob("*"))
    error = refused([command, *own[command], "--draft", "reports"])
    assert (
        "drafts.safetensors: was made with another tokenizer than the run's; delete it, or give --draft none" in error
    )
    assert sorted(tmp_path.rglob("*")) == before


def interrupt(*_, **__):
    yield Written("heart", [3], True)
    raise KeyboardInterrupt


@pytest.mark.parametrize("last", ["generate_reports", "attention_of", "write_whole"])
def test_a_report_that_is_interrupted_leaves_no_output(trained, images, tmp_path, monkeypatch, last):
    """Also before its page: where there is an output, the command would not be done again."""
    monkeypatch.setattr(f"unicross_jax.images.{last}", lambda *_, **__: list(interrupt()))
    before = sorted(tmp_path.iterdir())
    command = ["report", *images, "--checkpoint", str(trained), "--output", str(tmp_path / "out.jsonl")]
    assert unicross([*command, "--page", str(tmp_path / "out.html")]) == 130
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["--output", "nowhere/out.jsonl"], ["nowhere", "folder"]),
        (["--output", "."], ["is a directory; name a file"]),
        (["--output", "out.jsonl", "--page", "nowhere/out.html"], ["nowhere", "folder"]),
        (["--output", "out.html"], ["out.html", "the same file"]),
    ],
)
def test_outputs_that_could_not_be_written_are_refused_first(refused, images, tmp_path, monkeypatch, files, words):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    error = refused(["report", *images, *files])
    assert all(word in error for word in words), error
    assert sorted(tmp_path.iterdir()) == before


def test_a_page_takes_no_image_s_place(refused, images, trained):
    before = Path(images[0]).read_bytes()
    assert "would be overwritten" in refused(["report", *images, "--checkpoint", str(trained), "--page", images[0]])
    assert Path(images[0]).read_bytes() == before
    assert "is a directory" in refused(["report", *images, "--checkpoint", str(trained), "--output", "."])


def test_a_file_name_that_is_no_text_is_refused(refused, images, tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    shutil.copy(images[0], name)
    assert "not UTF-8" in refused(["report", name, "--output", str(tmp_path / "out.jsonl")])
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("pattern", ["", r"\d*", "nobody"])
def test_images_are_not_one_study_for_an_empty_text_that_all_names_have(refused, images, tmp_path, pattern):
    output = tmp_path / "out.jsonl"
    assert f"--study {pattern}".strip() in refused(["report", *images, "--study", pattern, "--output", str(output)])
    assert not output.exists()


def test_an_image_named_twice_is_refused(refused, images):
    assert f"{images[0]}: is named twice; name each image once" in refused(["report", *images, images[0]])


def test_a_folder_of_images_is_no_image(refused, tmp_path):
    assert "a folder; expected a PNG, JPEG or DICOM image" in refused(["report", str(tmp_path)])


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "cut", "animated", "pattern"])
def test_images_that_cannot_be_read_are_named_and_nothing_is_written(refused, trained, images, tmp_path, damage):
    bad, options = tmp_path / "bad.png", []
    content = Path(images[0]).read_bytes()
    if damage == "animated":
        frames = [Image.new("L", (40, 40), shade) for shade in (0, 255)]
        frames[0].save(bad, save_all=True, append_images=frames[1:])
    elif damage == "pattern":
        bad.write_bytes(content)
        options = ["--study", "patient"]
    elif damage != "missing":
        bad.write_bytes({"empty": b"", "text": b"no image", "cut": content[: len(content) // 2]}[damage])
    output = tmp_path / "out.jsonl"
    words = ["report", str(bad), *images, "--checkpoint", str(trained), "--output", str(output), *options]
    assert "bad.png" in refused(words)
    assert not output.exists()
    assert not (tmp_path / "out.html").exists()


def test_unreadable_images_of_a_data_set_are_counted_and_left_out(clip, images, tmp_path, capsys):
    (tmp_path / "cut.png").write_bytes(Path(images[0]).read_bytes()[:200])
    report = "The heart is large. No effusion."
    rows = [
        {"id": str(number), "images": [image], "report": report, "split": split}
        for number, (image, split) in enumerate(
            [(images[0], "train"), (images[2], "train"), (images[1], "val"), (str(tmp_path / "cut.png"), "train")]
        )
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"data__layout": "rows", "data__source": tmp_path / "rows.jsonl", "data__images": "/"}
    run = arguments(tmp_path / "run", clip, **options, vocabulary__minimum_count=1, max_steps=1)
    assert unicross(run) == 0
    named = f"data: {tmp_path / 'rows.jsonl'}, / (rows, cleaning lossless): train 2, validation 1; "
    named += "quarantined 1 (image cannot be read: 1); cut 0 at 20 tokens; 0.0% of words unknown; 0 views left out"
    assert capsys.readouterr().out.split("\n", 1)[1].startswith(named)  # after the CLIP that is read
    left_out = {"id": "3", "reason": "image cannot be read"}
    assert json.loads((tmp_path / "run" / "quarantine.jsonl").read_text()) == left_out
    assert unicross(["evaluate", "--run-dir", str(tmp_path / "run"), "--split", "validation"]) == 0
    assert capsys.readouterr().out.startswith(named)
    assert json.loads((tmp_path / "run" / "evaluation_quarantine.jsonl").read_text()) == left_out
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["quarantined"] == {left_out["reason"]: 1}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "1 record quarantined" in page
    assert "quarantined 1 (image cannot be read: 1); cut 0" in page
    training, evaluation = commands_of(page)
    assert evaluation == ["unicross", "evaluate", "--run-dir", str(tmp_path / "run"), "--split", "validation"]
    assert training[:6] == ["unicross", "train", "--preset", "small", "--run-dir", str(tmp_path / "run")]
    assert parse(RunConfig, PRESETS["small"], training[6:], "unicross train", NEEDS) == read_config(
        RunConfig, tmp_path / "run"
    )
    assert "data.train_size" not in page
