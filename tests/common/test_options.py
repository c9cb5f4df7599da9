"""An option that has no effect is refused with what would give it one; the training command is told from a config."""

import dataclasses
import shlex
from pathlib import Path

import pytest

from common.clinical import labeler_config
from common.config_options import choose_preset, parse
from common.data.builders.command import main as prepare
from common.errors import UserError
from common.generation.command import main as decode
from common.options import fields_of, training_command, unused_options, used_settings
from common.training.optim import OptimConfig, make_schedule
from deer_jax import config as deer
from deer_jax.cli import dispatch as deer_command
from retsta_jax import config as retsta
from retsta_jax.cli import dispatch as retsta_command
from unicross_jax import config as unicross
from unicross_jax.cli import dispatch as unicross_command

RETSTA, UNICROSS = ("retsta train", retsta.PRESETS, retsta.NEEDS), ("unicross train", unicross.PRESETS, unicross.NEEDS)
SFT, RL = ("deer sft", deer.SFT_PRESETS, deer.NEEDS), ("deer rl", deer.RL_PRESETS, deer.RL_NEEDS)
COMMANDS = [(*command, name) for command in (RETSTA, UNICROSS, SFT, RL) for name in command[1]]

WITH_PRESETS = {**dict.fromkeys(("train", "ablation", "sft", "rl", "sample"), "demo"), "train-labeler": "phantom"}


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        (
            retsta_command,
            "train --data.train a --data.validation b --data.test c --run-dir x",
            "--data.train, --data.validation, --data.test: not read with --data.corpus fundus; give --data.corpus "
            "jsonl (or --preset retsta-7b-zero or retsta-7b), or leave them out",
        ),
        (retsta_command, "train --data.test-ids a --run-dir x", "give --data.corpus openi (or --preset openi), or"),
        (retsta_command, "train --preset openi --data.language en --run-dir x", "give --data.corpus fundus (or"),
        (retsta_command, "train --preset retsta-7b --data.validation-size=9 --run-dir x", "fundus or openi (or"),
        (retsta_command, "train --model.tuning full --lora.rank 4 --run-dir x", "give --model.tuning lora, or leave"),
        (retsta_command, "train --parallel pmap --mesh.fsdp -1 --run-dir x", "give --parallel auto or mesh, or leave"),
        (
            unicross_command,
            "train --data.source rows.jsonl --data.images pictures/ --run-dir x",
            "--data.source, --data.images: not read with --data.layout phantom; give --data.layout rows, or leave them",
        ),
        (unicross_command, "train --data.source folder --run-dir x", "give --data.layout prepared (or --preset mimic"),
        (unicross_command, "train --data.source a.tgz --data.images b --data.split c --run-dir x", "layout openi, or"),
        (unicross_command, "train --preset iu-xray --data.split ids.txt --run-dir x", "give --data.layout openi, or"),
        (unicross_command, "train --preset mimic-cxr --data.train-size 9 --run-dir x", "with --data.layout prepared"),
        (unicross_command, "train --vocabulary.kind clip --vocabulary.minimum-count 9 --run-dir x", "kind words, or"),
        (unicross_command, "train --vocabulary.merged-minimum-count 9 --run-dir x", "without --vocabulary.merged-with"),
        (unicross_command, "train --beams 1 --length-penalty 1 --run-dir x", "give --beams 2 or more, or leave it out"),
        (unicross_command, "ablation --data.source rows.jsonl --directory x", "give --data.layout rows, or leave it"),
        (unicross_command, "ablation --seed 1 --directory x", "--seed: not read by unicross ablation; give --seeds"),
        (deer_command, "sft --data.source annotation.json --run-dir x", "give --data.layout annotation or rows, or"),
        (deer_command, "sft --lora.rank 4 --run-dir x", "--lora.rank: not read with --model.tuning vision; give"),
        (deer_command, "rl --data.images pictures --run-dir x", "give --data.layout annotation or openi or rows, or"),
        (deer_command, "rl --reward.weights tfidf --reward.uncertain True --run-dir x", "--reward.weights gradient,"),
        (deer_command, "rl --reward.function a:b --reward.gammas 0 --run-dir x", "give no --reward.function, or leave"),
        (deer_command, "rl --reward.labeler= --reward.labeler-tokenizer d --run-dir x", "without --reward.labeler;"),
        (deer_command, "sample --data.source rows.jsonl --output x", "give --data.layout rows, or leave it out"),
        (deer_command, "sample --split test --data.ids c.json --output x", "with --split test; give --split train, or"),
        (deer_command, "sample --model.remat none --output x", "not read by deer sample; it computes no gradient"),
        (deer_command, "ablation rewards --data.ids c.json --directory x", "not read by deer ablation; its rows"),
        (deer_command, "ablation rewards --data.source rows.jsonl --directory x", "give --data.layout rows, or leave"),
        (deer_command, "train-labeler --archive a --output x", "--archive: not read with --data phantom; give --data"),
        (deer_command, "train-labeler --data f.jsonl --train-size 9 --output x", "with --data f.jsonl; give --data ph"),
        (deer_command, "train-labeler --data openi --validation v --output x", "give --data FILE.jsonl, or leave it"),
        (deer_command, "weights f --tokenizer d --method tfidf --labeler phantom", "give --method gradient, or leave"),
        (deer_command, "analyse rewards f --labeler phantom --share 0.2", "with deer analyse rewards; give deer"),
        (prepare, "--layout odir --source a --output b --images c --split d", "give --layout chexpert-plus"),
        (decode, "--model a --prompts b --score --top-k 4 --temperature 1", "--top-k: not read with --score; give no"),
    ],
)  # fmt: skip
def test_an_option_without_effect_is_refused_with_its_remedy(tmp_path, monkeypatch, command, words, said):
    monkeypatch.chdir(tmp_path)
    preset = WITH_PRESETS.get(words.split()[0])
    if preset and "--preset" not in words:
        words += f" --preset {preset}"
    with pytest.raises(UserError) as refusal:
        command(shlex.split(words))
    assert said in str(refusal.value)
    assert not list(tmp_path.iterdir())


def test_what_one_source_reads_is_refused_under_every_other_alone():
    config = retsta.RetstaConfig()
    files = [f"data.{file}" for files in retsta.FILES.values() for file in files]
    for corpus, own in retsta.FILES.items():
        chosen = dataclasses.replace(config, data=dataclasses.replace(config.data, corpus=corpus))
        unused = unused_options(chosen, files, retsta.NEEDS)
        assert sorted({*files} - unused.keys()) == sorted(f"data.{file}" for file in own)


def test_every_table_names_fields_of_its_config():
    tables = [
        (retsta.RetstaConfig(), retsta.NEEDS),
        (unicross.RunConfig(), unicross.ABLATION_NEEDS),
        (deer.SftConfig(), deer.NEEDS),
        (deer.RlConfig(), deer.ABLATION_NEEDS),
        (deer.SampleConfig(), deer.SAMPLE_NEEDS),
        (labeler_config.LabelerRunConfig(), labeler_config.NEEDS),
    ]
    for config, needs in tables:
        fields = list(fields_of(config))
        for need in needs:
            assert any(map(need.covers, fields)), need
            assert not need.choice or need.choice in fields, need


def test_a_warm_up_is_read_under_every_schedule():
    for schedule in ("constant", "linear", "cosine"):
        config = OptimConfig(schedule=schedule, warmup_ratio=0.5, learning_rate=1.0)
        assert float(make_schedule(config, 4)(1)) == 0.5


CHANGES = [
    (RETSTA, "demo", "--seed 3 --lora.dropout 0.2 --optim.learning-rate 1e-07 --buckets 32 64 --packing False"),
    (
        RETSTA,
        "retsta-7b",
        "--data.train 'my train.jsonl' --model.base /models/q --mesh.tensor 2 '--instruction=-x \"y\"'",
    ),
    (RETSTA, "openi", "--data.corpus jsonl --data.train=--a.jsonl --instruction 'one\ntwo'"),
    (UNICROSS, "iu-xray", "--data.layout rows --data.source rows.jsonl --data.images '$HOME' --data.cleaning lossless"),
    (UNICROSS, "demo", "--seed 2 --model.adapters within --length-penalty -0.5 --model.modulation False"),
    (SFT, "chexpert-plus", "--data.source d --model.tuning lora --lora.targets '(q|k)_proj'"),
    (RL, "demo", "--reward.gammas 0.0 0.1 0.25 --reward.phase-ends 0.2 0.5 --data.ids chosen.json --objective.kl 0.1"),
    (RL, "mimic-cxr", "--data.source d --reward.function m:f --reward.labeler='' --reward.weights uniform --steps 7"),
]


@pytest.mark.parametrize(
    ("command", "preset", "words"), [*((command[:3], command[3], "") for command in COMMANDS), *CHANGES]
)
def test_the_training_command_parses_back_to_its_config(command, preset, words):
    program, presets, needs = command
    config = parse(type(presets[preset]), presets[preset], shlex.split(words), program, needs, presets)
    assert words or config == presets[preset]  # a preset's own values are not refused
    words_of = shlex.split(training_command(program, presets, config, Path("a b/run"), needs))
    count = len(program.split())
    start, (given, name, run_flag, run_dir), rest = words_of[:count], words_of[count : count + 4], words_of[count + 4 :]
    assert (start, given, run_flag, run_dir) == (program.split(), "--preset", "--run-dir", "a b/run")
    again = parse(type(config), choose_preset(presets, name), rest, program, needs, presets)
    assert again == config
    assert len([word for word in rest if word.startswith("--")]) <= words.count("--")


def test_settings_without_effect_are_not_shown():
    shown = used_settings(retsta.PRESETS["retsta-7b"], retsta.NEEDS)
    assert {"data.train", "lora.rank", "seed"} <= shown.keys()
    assert not {"data.archive", "data.train_size", "data.validation_size", "data.language"} & shown.keys()
    assert "mesh.fsdp" not in used_settings(dataclasses.replace(retsta.RetstaConfig(), parallel="jit"), retsta.NEEDS)


@pytest.mark.parametrize(
    ("command", "words", "named"),
    [
        (retsta_command, "train", ("--data.archive", "--data.test-ids", "--data.train", "--data.validation FILE")),
        (unicross_command, "train", ("--data.source annotation.json --data.images FOLDER", "--model.clip")),
        (unicross_command, "ablation", ("--data.source rows.jsonl [--data.images FOLDER]",)),
        (deer_command, "sft", ("--data.source FOLDER", "--model.base DIR")),
        (deer_command, "rl", ("--data.source rows.jsonl [--data.images FOLDER]", "--reward.labeler PATH")),
        (deer_command, "sample", ("--data.source NLMCXR_reports.tgz --data.images FOLDER --data.split FILE",)),
        (deer_command, "ablation components", ("--data.source FOLDER", "--reward.labeler PATH")),
        (deer_command, "train-labeler", ("--archive NLMCXR_reports.tgz --gold", "--validation FILE.jsonl")),
    ],
)  # fmt: skip
def test_help_names_the_files_that_must_be_given(command, words, named, capsys):
    with pytest.raises(SystemExit) as stop:
        command([*words.split(), "--help"])
    assert not stop.value.code
    shown = capsys.readouterr().out
    for name in named:
        assert name in shown
