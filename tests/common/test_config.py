"""Configs go to the command line and to config.json and come back, strictly."""

import dataclasses
import json
from typing import Annotated, Any

import pytest

from common.bounds import Count
from common.config import (
    Incidental,
    Mark,
    MovablePath,
    check_run_directory,
    claim_run_directory,
    from_json,
    marked_fields,
    read_config,
    remove_run,
    to_json,
)
from common.config_options import choose_preset, parse
from common.errors import UserError
from retsta_jax.config import PRESETS, RetstaConfig

DEMO = PRESETS["demo"]
OUTPUTS = ("metrics.jsonl", "metrics.json", "adapter")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_its_json(name):
    assert from_json(RetstaConfig, json.loads(json.dumps(to_json(PRESETS[name]))), "file") == PRESETS[name]


def changed(path: str, value: Any) -> dict[str, Any]:
    """The demo's JSON with one field set."""
    values = to_json(DEMO)
    *folders, name = path.split(".")
    inner = values
    for folder in folders:
        inner = inner[folder]
    inner[name] = value
    return values


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("epoch", 3, r"file: unknown field 'epoch' \(did you mean epochs\?\)"),
        ("optim.learning_rat", 3, r"file: optim: unknown field 'learning_rat' \(did you mean learning_rate\?\)"),
        ("epochs", 1.5, "file: epochs: found 1.5, expected int"),
        ("epochs", True, "file: epochs: found True, expected int"),
        ("epochs", "1", "file: epochs: found '1', expected int"),
        ("packing", 1, "file: packing: found 1, expected bool"),
        ("optim.learning_rate", "fast", "file: optim: learning_rate: found 'fast', expected float"),
        ("optim.schedule", "step", "file: optim: schedule: found 'step', expected constant or linear or cosine"),
        ("buckets", [128, "256"], "file: buckets: found '256', expected int"),
        ("buckets", 128, "file: buckets: found 128, expected tuple"),
        ("model", "qwen", "file: model: found 'qwen', expected ModelConfig"),
    ],
)
def test_a_value_that_does_not_belong_is_named(path, value, message):
    with pytest.raises(UserError, match=message):
        from_json(RetstaConfig, changed(path, value), "file")


def test_a_whole_number_stands_for_a_float():
    learning_rate = from_json(RetstaConfig, changed("optim.learning_rate", 1), "file").optim.learning_rate
    assert isinstance(learning_rate, float)


def test_the_command_line_changes_only_what_it_names():
    arguments = ["--optim.learning-rate", "0.5", "--buckets", "64", "128", "--packing", "False"]
    config = parse(RetstaConfig, DEMO, arguments, "retsta train")
    assert config.optim.learning_rate == 0.5
    assert config.buckets == (64, 128)
    assert config.packing is False
    assert parse(RetstaConfig, DEMO, [], "retsta train") == DEMO
    unchanged = ["--optim.learning-rate", str(DEMO.optim.learning_rate), "--packing", str(DEMO.packing)]
    assert parse(RetstaConfig, config, [*unchanged, "--buckets", *map(str, DEMO.buckets)], "retsta train") == DEMO


def test_an_unknown_preset_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"--preset retsta-7: unknown \(did you mean retsta-7b\?\); presets are demo"):
        choose_preset(PRESETS, "retsta-7")


def test_a_claimed_directory_gives_its_config_back(tmp_path):
    claim_run_directory(tmp_path / "a" / "run", DEMO)
    claim_run_directory(tmp_path / "a" / "run", DEMO)
    assert read_config(RetstaConfig, tmp_path / "a" / "run") == DEMO
    assert [path.name for path in (tmp_path / "a" / "run").iterdir()] == ["config.json"]


def test_a_fresh_start_removes_only_a_run_of_ours(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    remove_run(model, RetstaConfig, OUTPUTS)  # no config.json: not a run, nothing to do
    (model / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(UserError, match=r"unknown field 'model_type'.*; so .* remove .*model yourself"):
        remove_run(model, RetstaConfig, OUTPUTS)
    run = tmp_path / "run"
    claim_run_directory(run, DEMO)
    for name in ("metrics.jsonl", "metrics.jsonl.partial", ".metrics.json.123.partial", ".adapter.old", "thesis.tex"):
        (run / name).write_text("")
    with pytest.raises(UserError, match=r"run: contains thesis\.tex, which does not belong to a run"):
        remove_run(run, RetstaConfig, OUTPUTS)
    assert len(list(run.iterdir())) == 6
    (run / "thesis.tex").unlink()
    remove_run(run, RetstaConfig, OUTPUTS)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_fresh_start_of_several_stages_looks_into_the_run_among_them(tmp_path):
    demo = tmp_path / "demo"
    claim_run_directory(demo / "rl", DEMO)
    (demo / "before").mkdir()
    (demo / "rl" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"rl: contains thesis\.tex"):
        remove_run(demo, RetstaConfig, OUTPUTS, inside="rl", beside=["before"])
    (demo / "rl" / "thesis.tex").rename(demo / "thesis.tex")
    with pytest.raises(UserError, match=r"demo: contains thesis\.tex"):
        remove_run(demo, RetstaConfig, OUTPUTS, inside="rl", beside=["before"])
    (demo / "thesis.tex").unlink()
    remove_run(demo, RetstaConfig, OUTPUTS, inside="rl", beside=["before"])
    assert not demo.exists()


@dataclasses.dataclass(frozen=True)
class Data:
    """Some data."""

    source: MovablePath = ""
    size: Incidental[Count] = 3
    views: Annotated[int, "of a study"] = 2


@dataclasses.dataclass(frozen=True)
class Run:
    """A config within another."""

    data: Data = Data()
    base: MovablePath = ""
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Named:
    """A config with a field that has no default."""

    name: str
    data: Data = Data(views=1)


def test_a_field_that_came_after_a_run_has_the_default_of_its_class(tmp_path) -> None:
    config = Run(Data(source="a", views=1), base="b")
    claim_run_directory(tmp_path, config, {"base": "digest"})
    earlier = json.dumps({"data": {"source": "a", "views": 1}, "base": "b"})
    (tmp_path / "config.json").write_text(earlier)
    assert read_config(Run, tmp_path) == config
    check_run_directory(tmp_path, config)
    with pytest.raises(UserError, match=r"different config \(data\.size was 3 and is now 4; seed was 0 and is now 1\)"):
        check_run_directory(tmp_path, Run(Data("a", 4, 1), "b", seed=1))
    claim_run_directory(tmp_path, config)
    assert json.loads((tmp_path / "config.json").read_text()) == to_json(config)  # complete again
    assert from_json(Named, {"name": "a", "data": {}}, "file").data.views == 2
    with pytest.raises(UserError, match="file: missing field 'name'"):
        from_json(Named, {"data": {}}, "file")


def test_a_field_says_itself_that_it_may_move_or_decides_nothing() -> None:
    assert marked_fields(Run, Mark.MOVABLE) == {"data.source", "base"}
    assert marked_fields(Run, Mark.INCIDENTAL) == {"data.size"}
    assert marked_fields(Run, *Mark) == {"data.source", "data.size", "base"}
    with pytest.raises(UserError, match=r"data\.size must be at least 1"):  # marks and bounds go together
        parse(Run, Run(), ["--data.size", "0"], "train")


def test_only_paths_may_differ_where_a_run_is_continued_and_only_where_contents_are_known(tmp_path) -> None:
    claim_run_directory(tmp_path / "known", Run(base="a"), {"base": "digest"})
    claim_run_directory(tmp_path / "unknown", Run(base="a"))
    check_run_directory(tmp_path / "known", Run(Data(source="b"), base="b"))
    for name, config, field in (
        ("known", Run(Data(size=4), base="a"), "data.size was 3 and is now 4"),
        ("known", Run(base="a", seed=1), "seed was 0 and is now 1"),
        ("unknown", Run(base="b"), "base was 'a' and is now 'b'"),
    ):
        with pytest.raises(UserError, match=f"contains a run with a different config .{field}"):
            check_run_directory(tmp_path / name, config)


@pytest.mark.parametrize("content", ["[]", "null", '"text"'])
def test_a_config_that_is_no_object_is_refused(tmp_path, content) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json: expected a JSON object, found"):
        read_config(RetstaConfig, tmp_path)
    with pytest.raises(UserError, match=r"config\.json: expected a JSON object, found .*choose another directory"):
        claim_run_directory(tmp_path, PRESETS["demo"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--bogus 1", "--bogus: unknown option"),
        ("--data.trian a.jsonl", "--data.trian: unknown option (did you mean --data.train?)"),
        ("--optim.learning_rat=1", "--optim.learning_rat: unknown option (did you mean --optim.learning-rate?)"),
        ("--rank 4", "--rank: unknown option (did you mean --lora.rank?)"),
        (
            "--epochs 2 --lora 4",
            "--lora: unknown option; there are --lora.rank, --lora.alpha, --lora.dropout, --lora.targets, "
            "--lora.rslora, --lora.dora",
        ),
        ("stray --epochs 2", "stray: unknown argument"),
        ("--epochs 2 3", "--epochs: takes one value, found '3' after it"),
        ("--seed 1 --epochs many", "--epochs: expected a whole number, found 'many'"),
        ("--epochs=1.5", "--epochs: expected a whole number, found '1.5'"),
        ("--epochs --seed 1", "--epochs: expected a whole number, found nothing"),
        ("--optim.learning-rate fast", "--optim.learning-rate: expected a number, found 'fast'"),
        ("--optim.schedule step", "--optim.schedule: expected constant or linear or cosine, found 'step'"),
        ("--packing maybe", "--packing: expected True or False, found 'maybe'"),
        ("--buckets 64 many", "--buckets: expected a whole number each, found '64 many'"),
        ("--instruction \x1b[2J --epochs x", "--epochs: expected a whole number, found 'x'"),
        ("--epochs \x1b[2J", r"--epochs: expected a whole number, found '\x1b[2J'"),
    ],
)
def test_what_is_wrong_with_an_option_is_one_line(words, said, capsys) -> None:
    with pytest.raises(UserError) as refusal:
        parse(RetstaConfig, DEMO, words.split(), "retsta train")
    assert str(refusal.value) == f"retsta train: {said}; see retsta train --help"
    assert capsys.readouterr() == ("", "")
