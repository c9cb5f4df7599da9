"""`medreport launch` checks the command of this project that it is given, before a job waits in a queue for it."""

import contextlib
import re

import pytest

from common.errors import UserError
from common.scripts import run_command
from launch.cli import dispatch
from tests.launch.recipes import USUAL
from tests.launch.test_console_scripts import EVERY, SCRIPTS

TRAIN = "retsta train --preset retsta-7b --model.base B --run-dir R --data.train a --data.validation b --data.test c"


ROWS = {  # what prints rows of reports unless it is told where to write them
    "retsta standardize": "--run-dir /runs/x in.jsonl",
    "retsta augment": "in.jsonl --factor 5",
    "retsta terminology match": "in.jsonl",
    "unicross report": "a.png",
    "deer label": "in.jsonl --labeler phantom",
    "deer weights": "in.jsonl --method tfidf --tokenizer t",
    "medreport decode": "--model m --prompts p.jsonl",
}


def launched(platform: str, command: str) -> int:
    return dispatch(["launch", *platform.split(), "--dry-run", "--", *command.split()])


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("retsta", "^retsta: no command; see retsta --help$"),
        ("retsta evaluat --run-dir r", r"^retsta evaluat: unknown command \(did you mean evaluate\?\)"),
        ("retsta train --preset nope --run-dir r", "^--preset nope: unknown.*; presets are demo, "),
        ("retsta train --run-dir r", "^retsta train: --preset NAME is missing"),
        (TRAIN.replace("--run-dir R", ""), "^retsta train: the following arguments are required: --run-dir"),
        (f"{TRAIN} --modl.base b", r"--modl.base: unknown option \(did you mean --model.base\?\)"),
        (f"{TRAIN} --epochs many", "--epochs: expected "),
        (f"{TRAIN} --batch-size 0", "batch_size"),
        (f"/opt/medreport/bin/{TRAIN} --modl.base b", "--modl.base: unknown option"),
        ("retsta train --preset retsta-7b --run-dir r", "^data.train: not given; corpus jsonl needs files of rows"),
        (TRAIN.replace("--model.base B", ""), "^model.base: not given; name the directory of Qwen2.5-7B-Instruct"),
        ("retsta train --preset openi --data.archive a --run-dir r", "^data.test_ids: not given; corpus openi needs"),
        ("unicross train --preset mimic-cxr --run-dir r", "^data.source: not given; the prepared layout needs it$"),
        (
            "unicross train --preset mimic-cxr --data.source d --run-dir r",
            "^model.clip: not given; name CLIP",
        ),
        (
            "deer sft --preset mimic-cxr --data.source d --run-dir r",
            "^model.base: not given; name the",
        ),
        ("deer rl --preset mimic-cxr --model.base b --run-dir r", "^data.source: not given; the prepared layout needs"),
        (
            "retsta paradigm --preset openi --data.archive a --run-dir r",
            "^data.test_ids: not given; corpus openi needs",
        ),
        ("retsta paradigm --preset retsta-7b --data.corpus jsonl --run-dir r", "^data.train: not given; corpus jsonl"),
        ("retsta paradigm --preset retsta-7b --run-dir r", "^train.model.base: not given; name the directory"),
        ("deer train-labeler --preset chexbert --output r", "^data: not given; expected phantom, openi, or a JSONL"),
        ("deer train-labeler --preset openi --archive a --output r", "^gold: not given; data openi needs archive"),
        ("deer sample --preset mimic-cxr --data.source d --output f.jsonl", "^model.base: not given; name the"),
        ("deer sample --preset mimic-cxr --endpoint http://e/v1 --output f.jsonl", "^data.source: not given; the"),
        (
            "deer rl --preset mimic-cxr --model.base b --data.source d --run-dir r",
            "^reward.labeler: not given; label F1 needs a labeler",
        ),
        ("deer select labels.jsonl --fraction 0.2", "^deer select: runs on one host only; use --nodes 1$"),
        ("medreport doctor --preset nosuch", "^--preset nosuch: unknown; expected "),
        (
            "medreport doctor --preset=retsta-7c",
            r"^--preset retsta-7c: unknown \(did you mean retsta-7b\?\); expected ",
        ),
        ("retstaa train --preset demo", r"^retstaa: unknown program \(did you mean retsta\?\); another program is"),
        ("medreprt doctor", r"^medreprt: unknown program \(did you mean medreport\?\)"),
        (TRAIN.replace("R", "~/r"), "^~/r: is taken literally; give the whole path$"),
        (TRAIN.replace("--run-dir R", "--run-dir=~me/r"), "^--run-dir=~me/r: is taken literally"),
        (TRAIN.replace("R", "$SCRATCH/r"), r"^\$SCRATCH/r: is taken literally"),
        (TRAIN.replace("--data.train a", "--data.train=/d/${USER}/a"), "is taken literally; give the whole path$"),
        ("deer ablation components --preset demo", "^deer ablation: runs on one host only; use --nodes 1$"),
    ],
)
def test_a_command_that_could_not_start_is_refused(command, line):
    with pytest.raises(UserError, match=line):
        launched(USUAL["slurm"], command)


@pytest.mark.parametrize(
    "command",
    [
        TRAIN,
        "/opt/bin/retstaa train",
        "test -e x",
        "medreport doctor --preset retsta-7b",
        "retsta train --help",
        "env retsta x",
    ],
)
def test_other_commands_are_accepted_as_they_are(command, capsys):
    assert launched(USUAL["slurm"], command) == 0
    assert command.split()[-1] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("several", "one", "remedy"),
    [
        ("slurm --gpus 8 --time 60 --nodes 2", "slurm --gpus 8 --time 60", "use --nodes 1"),
        ("skypilot --accelerators H100:8 --nodes 2", "skypilot --accelerators H100:8", "use --nodes 1"),
        ("gke --image i --topology v6e:4x4", "gke --image i --topology v6e:2x4", "a TPU slice of one host such as v6e"),
        ("gke --image i --topology h100:8 --nodes 2", "gke --image i --topology h100:8", "use one GPU node"),
        ("tpu --accelerator v6e-16", "tpu --accelerator v6e-8", "use a slice of one host, such as v6e-8"),
        ("tpu --accelerator v5p-16", "tpu --accelerator v5p-8", "use a slice of one host"),
        ("tpu --accelerator v5litepod-16", "tpu --accelerator v5litepod-8", "use a slice of one host"),
        ("ssh --hosts a,b", "ssh --hosts a", "name one host"),
        ("local --processes 2", "local --processes 1", "use --processes 1"),
    ],
)
def test_what_runs_on_one_host_is_refused_on_several_and_started_on_one(several, one, remedy, capsys):
    slice_options = " --runtime r --project p --zone z" if one.startswith("tpu") else ""
    command = "deer select labels.jsonl --fraction 0.2 --output gs://eyes/chosen.json"
    with pytest.raises(UserError, match=f"^deer select: runs on one host only; .*{remedy}"):
        launched(several + slice_options, command)
    assert launched(one + slice_options, command) == 0
    # With `auto` it would refuse to run, even where it is alone.
    assert "auto" not in capsys.readouterr().out


@pytest.mark.parametrize(("script", "name"), EVERY)
def test_no_command_runs_while_it_is_checked(script, name, tmp_path, monkeypatch):
    """Each reads its options with a parser that ends there: without options, or with one that it does not know."""
    monkeypatch.chdir(tmp_path)
    for words in ([], ["--no-such-option"]):
        with contextlib.suppress(UserError):
            assert launched("local --processes 1", " ".join([script, name, *words])) == 0
    assert not list(tmp_path.iterdir())


def test_a_whole_command_in_quotes_is_refused():
    line = r"^'retsta train --preset demo': is one word, .*; leave out the quotes around the command"
    with pytest.raises(UserError, match=line):
        dispatch(["launch", *USUAL["slurm"].split(), "--dry-run", "--", "retsta train --preset demo"])


@pytest.mark.parametrize("name", USUAL)
@pytest.mark.parametrize("command", ROWS)
def test_no_report_text_enters_the_log_of_a_job(name, command):
    if command in ("deer weights", "retsta augment", "retsta terminology match", "unicross report"):
        name = "local-one"  # they run on one host
    platform = USUAL.get(name, "local --processes 1")
    words = f"{command} {ROWS[command]}"
    with pytest.raises(
        UserError, match=rf"^{command}: without --output its rows would stand in the job's log, .* FILE"
    ):
        launched(platform, words)
    assert launched(platform, f"{words} --output gs://eyes/rows.jsonl") == 0


@pytest.mark.parametrize(("script", "name"), [*EVERY, ("retsta", "terminology match")])
def test_the_commands_that_print_rows_are_those_whose_help_says_so(script, name, capsys):
    with contextlib.suppress(SystemExit):
        run_command(script, SCRIPTS[script].COMMANDS, [*name.split(), "--help"])
    said = " ".join(capsys.readouterr().out.split())
    prints = re.search(r" to write( or resume)?; default: (stdout|standard output)(?!,)", said)  # others are of scores
    assert bool(prints) == (f"{script} {name}" in ROWS)
