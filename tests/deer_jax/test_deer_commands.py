"""The stages of DEER through their commands, on phantoms with a tiny model: sft, sample, select, rl, evaluate."""

import dataclasses
import json
import re
import shutil

import pytest

from common.clinical.labeler import labeler_digests
from common.config import read_config
from common.config_options import parse
from common.data.readers import ImageStudy
from common.data.splits import Split
from common.errors import UserError
from common.io.fingerprints import model_record
from common.models.qwen2_vl_weights import config_from_directory
from common.training.logs import read_metrics
from deer_jax.ablation import Variant, select_studies
from deer_jax.cli import dispatch
from deer_jax.config import RL_NEEDS, RL_PRESETS, RewardConfig, RlConfig
from deer_jax.demo import demo
from deer_jax.prompts import chosen_split
from deer_jax.rl_run import make_scores, reward_labeler
from deer_jax.sample import rows_of as sampled_rows
from tests.deer_base import DATA, DEMO, SMALL, make_base
from tests.pages import commands_of


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny Qwen2.5-VL with random weights and a tokenizer of its own."""
    return make_base(tmp_path_factory.mktemp("deer"))


@pytest.fixture(scope="module")
def supervised(base, tmp_path_factory):
    run = tmp_path_factory.mktemp("sft") / "run"
    command = ["sft", *DEMO, "--run-dir", str(run), "--model.base", str(base), *DATA, *SMALL]
    dispatch([*command, "--max-steps", "2", "--max-length", "24", "--evaluate-every", "2"])
    return run


def rows_of(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_sft_writes_a_model_that_the_next_stage_reads(supervised, base):
    rows = read_metrics(supervised / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert "val/loss" in rows[-1]
    assert config_from_directory(supervised / "model") == config_from_directory(base)


def test_sampled_reports_are_selected_and_learnt_from(supervised, base, tmp_path, capsys, as_on_a_gpu):
    model = ["--model.base", str(supervised / "model"), *DATA]
    output = tmp_path / "rollouts.jsonl"
    options = [*DEMO, "--output", str(output), *model, "--rollout.group", "3", "--rollout.max-new-tokens", "6"]
    dispatch(["sample", *options, "--batch-size", "4"])
    said = [line.partition(": cudnn")[0] for line in capsys.readouterr().err.splitlines() if "attention: " in line]
    assert said == [
        *(f"warning: attention: xla ({tower})" for tower in ("language", "vision", "vision windows")),
        *(f"attention: xla ({tower})" for tower in ("new tokens", "labeler")),
    ]
    rows = rows_of(output)
    assert len(rows) == 12
    assert all(len(row["rollouts"]) == 3 and len(row["labels"][0]) == 14 for row in rows)
    output.write_text("".join(line + "\n" for line in output.read_text(encoding="utf-8").splitlines()[:5]))
    dispatch(["sample", *options, "--batch-size", "2"])  # goes on, and batches change nothing
    assert rows_of(output) == rows
    for other in (["--seed", "1"], ["--rollout.temperature", "0.5"], ["--labeler", ""], ["--model.base", str(base)]):
        with pytest.raises(UserError, match="made with other options or files"):
            dispatch(["sample", *options, *other])
    assert rows_of(output) == rows
    output.write_text("".join(json.dumps(row | {"labels": None}) + "\n" for row in rows))
    with pytest.raises(UserError, match="'labels' must be list"):
        dispatch(["sample", *options])
    output.write_text("".join(json.dumps(row) + "\n" for row in rows))

    capsys.readouterr()
    dispatch(["select", str(output), "--fraction", "0.5", "--seed", "1", "--output", str(tmp_path / "chosen.json")])
    assert len(json.loads(capsys.readouterr().out)["ids"]) == 6
    run = tmp_path / "rl"
    command = ["rl", *DEMO, "--run-dir", str(run), *model, *SMALL, "--data.ids", str(tmp_path / "chosen.json")]
    command += ["--steps", "3", "--rollout.group", "3", "--rollout.max-new-tokens", "6", "--objective.kl", "0.1"]
    dispatch([*command, "--evaluate-every", "3", "--checkpoint-every", "1"])
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    wanted = {"reward", "label_f1", "bleu2", "zero_variance_groups", "unfinished", "kl", "no_positive_reference"}
    assert wanted <= rows[0].keys()
    assert rows[0]["log_prob_gap"] < 1e-4
    assert "seconds/token_weights" in read_metrics(run / "timings.jsonl")[0]

    dispatch([
        "sample", *DEMO, "--output", str(tmp_path / "reports.jsonl"), "--model.base", str(run / "model"), *DATA,
        "--split", "test", "--rollout.group", "1", "--rollout.temperature", "0", "--rollout.max-new-tokens", "6",
    ])  # fmt: skip
    capsys.readouterr()
    dispatch(["evaluate", "--predictions", str(tmp_path / "reports.jsonl"), "--labeler", "phantom"])
    assert json.loads(capsys.readouterr().out)["count"] == 4


def test_an_ablation_is_a_table_of_runs_from_one_supervised_model_and_none_is_done_twice(base, tmp_path, capsys):
    options = [*DEMO, "--directory", str(tmp_path), "--model.base", str(base), *DATA, *SMALL, "--sft-steps", "1"]
    options += ["--steps", "1", "--rollout.group", "2", "--rollout.max-new-tokens", "4", "--model.tuning", "lora"]
    command = ["ablation", "components", *options, "--rows", "GRPO", "DEER, gradient, 20%"]
    dispatch(command)
    table = capsys.readouterr().out.partition("|  |")[2]
    for name in ("SFT", "GRPO", "DEER, gradient, 20%", "nearest training study", "constant report"):
        assert f"| {name} |" in table
    assert len(json.loads((tmp_path / "chosen-log-rank-0.2.json").read_text())["ids"]) == 2
    found = json.loads((tmp_path / "components.json").read_text())
    assert found["nearest training study"][0]["distinct_outputs"]["value"] > 0.25  # of four studies
    paired = json.loads((tmp_path / "components-differences.json").read_text())
    assert {*paired["systems"]} == {*found}
    for row in paired["differences"]:
        first, second = (found[row[side]][0][row["score"]]["value"] for side in ("first", "second"))
        assert row["value"] == pytest.approx(first - second, abs=2e-6)
    assert len(paired["differences"]) == 10 * len({row["score"] for row in paired["differences"]})
    assert "GRPO" in (tmp_path / "components-differences.html").read_text()
    grpo, deer = tmp_path / "uniform-gamma-0.0-0.25-seed-0", tmp_path / "gradient-0.2-log-rank-gamma-0.0-0.25-seed-0"
    assert (grpo / "adapter").is_dir()
    assert config_from_directory(grpo / "model") == config_from_directory(base)

    before = [(run / "greedy.jsonl").stat().st_mtime_ns for run in (grpo, deer)]
    dispatch(command)
    assert capsys.readouterr().out.partition("|  |")[2] == table
    row = "F1, then F1 + BLEU-2"  # the same run in another table
    dispatch(["ablation", "rewards", *options, "--rows", row])
    scores = json.loads((tmp_path / "rewards.json").read_text())
    assert scores[row] == found["DEER, gradient, 20%"]
    assert [(run / "greedy.jsonl").stat().st_mtime_ns for run in (grpo, deer)] == before


def test_the_demo_ends_with_its_two_pages(base, tmp_path):
    preset = RL_PRESETS["demo"]
    config = dataclasses.replace(
        preset,
        data=dataclasses.replace(preset.data, train_size=12, validation_size=4, test_size=4, side=56),
        model=dataclasses.replace(preset.model, base=str(base)),
        rollout=dataclasses.replace(preset.rollout, max_new_tokens=4),
        parallel="jit",
        batch_size=2,
        micro_batch=2,
        steps=2,
    )
    systems = demo(config, tmp_path)
    assert list(systems) == ["after RL", "before RL", "nearest training study", "constant report"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    again, training = commands_of(page)
    assert again == ["deer", "demo", "--run-dir", str(tmp_path)]
    assert training[:6] == ["deer", "rl", "--preset", "demo", "--run-dir", str(tmp_path / "rl")]
    learnt = parse(RlConfig, preset, training[6:], "deer rl", RL_NEEDS)
    assert learnt == read_config(RlConfig, tmp_path / "rl")
    assert (
        "data: drawn (phantom, seed 0, first scanner, cleaning lossless): train 12, validation 4, test 4; quarantined 0"
        in page
    )
    assert "Reward" in page
    assert page.count("data:image/") >= 4
    missed = re.search(r"− ([\d,]+)</b> missed", page)
    assert missed is not None
    assert int(missed[1]) > 0  # four tokens state next to nothing
    assert "findings in 4 reports" in page
    assert "class=" in (tmp_path / "token_weights.html").read_text(encoding="utf-8")


def test_studies_that_were_chosen_otherwise_are_not_taken(base, tmp_path):
    config, variant = RL_PRESETS["demo"], Variant(fraction=0.2)
    model = shutil.copytree(base, tmp_path / "moved")
    file = tmp_path / "chosen-log-rank-0.2.json"
    labeler = labeler_digests(reward_labeler(config.reward))
    of = {"fraction": 0.2, "strategy": "log-rank", "seed": 3, "model": model_record(base), "labeler": labeler}
    file.write_text(json.dumps({"ids": ["1"], "of": of}))
    assert select_studies(config, "demo", model, tmp_path, variant, 3) == str(file)
    with pytest.raises(UserError, match=r"chosen differently \(seed was 3 and is now 4\)"):
        select_studies(config, "demo", model, tmp_path, variant, 4)
    file.write_text(json.dumps({"ids": ["1"]}))
    with pytest.raises(UserError, match="chosen differently"):
        select_studies(config, "demo", model, tmp_path, variant, 3)


@pytest.mark.parametrize("ids", [None, "12", [None], [["1"]]])
def test_ids_that_are_no_list_of_ids_are_refused(tmp_path, ids):
    (tmp_path / "ids.json").write_text(json.dumps({"ids": ids}))
    with pytest.raises(UserError, match=r"data\.ids: .*ids\.json: 'ids' must be a list"):
        chosen_split(Split([], []), str(tmp_path / "ids.json"))


def test_a_prediction_is_trimmed_and_rollouts_stay_exact():
    split = Split([ImageStudy("a", (), "clear .")], [()])
    assert sampled_rows(split, [(0, ["\n\n clear .\n"])], None)[0]["prediction"] == "clear ."
    assert sampled_rows(split, [(0, ["\n clear", " x"])], None)[0]["rollouts"] == ["\n clear", " x"]


def test_only_the_strength_of_minus_1_is_the_papers():
    assert make_scores(RewardConfig(weights="tfidf"), None, ())[1] == 4
    assert make_scores(RewardConfig(weights="tfidf", strength=0.0), None, ())[1] == 0


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["rl", "--run-dir", "x", "--rollout.group", "1"], "rollout.group"),
        (["rl", "--run-dir", "x", "--reward.gammas", "0", "0.1", "0.2"], "phase_ends"),
        (["rl", "--run-dir", "x", "--data.side", "100"], "data.side"),
        (["rl", "--run-dir", "x", "--reward.weights", "nosuch"], "uniform, tfidf, gradient"),
        (["rl", "--run-dir", "x", "--reward.labeler", ""], "name one with --reward.labeler"),
        (["rl", "--run-dir", "x", "--reward.labeler", "", "--reward.weights", "tfidf"], "with --reward.labeler"),
        (["rl", "--run-dir", "x", "--reward.labeler", __file__], "with --reward.labeler-tokenizer"),
        (["rl", "--run-dir", "x", "--data.ids", "nowhere.json"], "data.ids"),
        (["rl", "--run-dir", "x", "--seed", "-1"], "seed must be at least 0"),
        (
            ["sft", "--run-dir", "x", "--seed", str(2**32)],
            "seed must be .* found 4294967296",
        ),
        (["sft", "--run-dir", "x", "--data.phantom-seed", "-3"], "data.phantom_seed must be at least 0"),
        (["rl", "--run-dir", "x", "--reward.strength", "-0.5"], "reward.strength"),
        (["rl", "--run-dir", "x", "--reward.strength", "nan"], "reward.strength"),
        (["rl", "--run-dir", "x", "--reward.strength", "inf"], "reward.strength"),
        (["rl", "--run-dir", "x", "--reward.gammas", "0", "nan"], "reward.gammas"),
        (["rl", "--run-dir", "x", "--reward.phase-ends", "1.5"], "reward.phase_ends"),
        (["rl", "--run-dir", "x", "--reward.phase-ends", "nan"], "reward.phase_ends"),
        (["rl", "--run-dir", "x", "--rollout.temperature", "nan"], "temperature"),
        (["rl", "--run-dir", "x", "--objective.clip-low", "-0.1"], "objective.clip_low"),
        (["rl", "--run-dir", "x", "--objective.clip-high", "inf"], "objective.clip_high"),
        (["rl", "--run-dir", "x", "--objective.kl", "nan"], "objective.kl"),
        (["sample", "--output", "x.jsonl", "--rollout.temperature", "nan"], "temperature"),
        (["sample", "--output", "x.jsonl", "--seed", "-1"], "seed must be at least 0"),
        (["ablation", "components", "--directory", "x", "--seeds", "0", "-1"], "--seeds: must be at least 0"),
        (["ablation", "rewards", "--directory", "x", "--reward.labeler", ""], "name one with --reward.labeler"),
        (["sft", "--run-dir", "x", "--model.base", ""], "model.base"),
        (["sft"], "--run-dir"),
        (["ablation", "rewards"], "--directory"),
        (["ablation"], "components, rewards, proportion"),
        (["ablation", "components", "--directory", "x", "--rows", "PPO"], "PPO"),
        (["sample", "--output", "x.jsonl", "--rollout.temperature", "0"], "one report"),
        (["rl", "--run-dir", "x", "--rollout.max-new-tokens", "100000"], "max_position_embeddings .*; give at most"),
        (["sample", "--output", "x.jsonl", "--rollout.max-new-tokens", "100000"], "--rollout.max-new-tokens: 100000"),
        (["sft", "--run-dir", "x", "--max-length", "100000"], "--max-length: 100000 tokens after a prompt of"),
        (["reinforce"], "unknown command"),
    ],
)
def test_bad_options_are_told_before_anything_is_written(base, tmp_path, monkeypatch, command, said):
    monkeypatch.chdir(tmp_path)
    if command != ["reinforce"] and command != ["ablation"]:
        command = [*command, *DEMO, *(DATA if "--data.side" not in command else [])]
        command += ["--model.base", str(base)] if "--model.base" not in command else []
    with pytest.raises(UserError, match=said):
        dispatch(command)
    assert not list(tmp_path.iterdir())


def test_metrics_and_losses_of_ones_own(base, tmp_path):
    pieces = ["--metrics", "tests.custom:words", "--metrics-every", "1", "--evaluate-every", "1"]
    common = [*DEMO, "--model.base", str(base), *DATA, *SMALL, *pieces]
    run = tmp_path / "sft"
    dispatch(
        [
            "sft",
            "--run-dir",
            str(run),
            *common,
            "--max-steps",
            "1",
            "--max-length",
            "8",
            "--loss",
            "tests.custom:smoothed",
        ]
    )
    (row,) = read_metrics(run / "metrics.jsonl")
    assert {"val/loss", "val/words", "entropy"} <= row.keys()
    run = tmp_path / "rl"
    rollouts = [
        "--rollout.group",
        "2",
        "--rollout.max-new-tokens",
        "4",
        "--steps",
        "1",
        "--loss",
        "tests.custom:reinforce",
    ]
    dispatch(["rl", "--run-dir", str(run), *common, *rollouts])
    (row,) = read_metrics(run / "metrics.jsonl")
    assert {"val/reward", "val/words", "surprise"} <= row.keys()
    for folder in ("sft", "rl"):
        (timing,) = read_metrics(tmp_path / folder / "timings.jsonl")
        assert timing["model_tflops"] > 0
        page = (tmp_path / folder / "live.html").read_text(encoding="utf-8")
        assert ("after step 1 · reward" in page) == (folder == "rl")
        assert "− missed" in page
