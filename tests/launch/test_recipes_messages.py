"""`medreport launch` names what is wrong with its own options, where a platform would refuse them hours later."""

import pytest

from common.errors import UserError
from launch.cli import dispatch
from launch.recipes.command import parser_of
from launch.recipes.platforms import PLATFORMS
from tests.launch.recipes import USUAL

TPU = "tpu --project p --accelerator"
# Cloud TPU's tables: v6e and v5e; v5p.
FLAT = ["1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"]
CUBES = [
    "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x4x12", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16",
    "16x16x24",
]  # fmt: skip
COMMAND = ["--dry-run", "--", "record"]


def accepted(words: str) -> bool:
    return dispatch(["launch", *words.split(), *COMMAND]) == 0


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            "gke --image i --topology v6e:4x5",
            "^--topology v6e:4x5: no such slice; v6e has 1x1, 2x2, 2x4, 4x4, 4x8, 8x8",
        ),
        ("gke --image i --topology v6e:3x3", "^--topology v6e:3x3: no such slice"),
        ("gke --image i --topology v5e:8x4", "^--topology v5e:8x4: no such slice"),
        ("gke --image i --topology v6e:2x2x1", "^--topology v6e:2x2x1: no such slice"),
        ("gke --image i --topology v5p:4x4", "^--topology v5p:4x4: no such slice; v5p has 2x2x1, .*AxBxC"),
        ("gke --image i --topology v5p:4x4x6", "^--topology v5p:4x4x6: no such slice"),
        ("gke --image i --topology v5p:8x4x4", "in increasing order"),
        ("gke --image i --topology v4:16x16x20", "up to 4,096 chips"),
        ("gke --image i --topology h100:16", "^--topology h100:16: a node has at most 8 GPUs; .*h100:8 and --nodes$"),
        ("gke --image i --topology v6e:4x4 --chips-per-host 8", "^--chips-per-host 8: the hosts of v6e:4x4 have 4 "),
        ("gke --image i --topology v5p:2x2x1 --chips-per-host 2", "^--chips-per-host 2: the hosts of v5p:2x2x1 have 4"),
        (f"{TPU} v6e-20 --runtime r --zone z", "^--accelerator v6e-20: no such slice; there are v6e-1, v6e-4, v6e-8"),
        (f"{TPU} v5litepod-2 --runtime r --zone z", "there are v5litepod-1, v5litepod-4"),
        (f"{TPU} v5p-4 --runtime r --zone z", "^--accelerator v5p-4: no such slice; there are v5p-8, v5p-16"),
        (f"{TPU} v4-192 --runtime r --zone z", "multiples of 128 up to v4-8192"),
        (
            f"{TPU} v6e-16 --runtime v2-alpha-tpuv5 --zone us-east5-b",
            "^--runtime v2-alpha-tpuv5: is for v5p, not for v6e-16; use v2-alpha-tpuv6e$",
        ),
        (f"{TPU} v5litepod-16 --runtime v2-alpha-tpuv5 --zone z", "use v2-alpha-tpuv5-lite$"),
        (
            f"{TPU} v6e-16 --runtime r --zone us-east5",
            "^--zone us-east5: is a region; give one of its zones, such as us-east5-b$",
        ),
        ("skypilot --accelerators H100:8 --infra gpc", r"^--infra gpc: SkyPilot has no .* \(did you mean gcp\?\)"),
        ("skypilot --accelerators H100:8 --infra kubernets/x", r"\(did you mean kubernetes\?\)"),
        (
            "skypilot --accelerators H100:8 --infra mars",
            "^--infra mars: SkyPilot has no cloud of this name; `sky check`",
        ),
        ("skypilot --accelerators H100:0", "^--accelerators H100:0: expected NAME:COUNT .*, with a COUNT above 0$"),
        ("skypilot --accelerators H100:0.0", "^--accelerators H100:0.0: expected NAME:COUNT"),
        ("skypilot --accelerators H100:", "^--accelerators H100:: expected NAME:COUNT"),
        ("skypilot --accelerators H100x8", r"^--accelerators H100x8: expected NAME:COUNT .*; did you mean H100:8\?$"),
        ("skypilot --accelerators 8xH100", r"did you mean H100:8\?$"),
        ("skypilot --accelerators 8:H100", r"did you mean H100:8\?$"),
    ],
)
def test_what_a_platform_does_not_have_is_refused(words, line):
    with pytest.raises(UserError, match=line):
        accepted(words)


@pytest.mark.parametrize(
    "words",
    [
        *(f"gke --image i --topology {kind}:{shape}" for kind in ("v5e", "v6e") for shape in FLAT),
        *(f"gke --image i --topology v5p:{shape}" for shape in CUBES),
        "gke --image i --topology v4:12x16x16", "gke --image i --topology h100:4 --nodes 2",
        "gke --image i --topology v6e:2x4 --chips-per-host 4", "gke --image i --topology v5e:2x4 --chips-per-host 8",
        *(f"{TPU} v6e-{chips} --runtime v2-alpha-tpuv6e --zone us-east5-b" for chips in (1, 4, 8, 16, 64, 256)),
        *(f"{TPU} v5p-{cores} --runtime v2-alpha-tpuv5 --zone z" for cores in (8, 16, 32, 64, 128, 384, 12288)),
        f"{TPU} v4-8192 --runtime tpu-ubuntu2204-base --zone z",
        f"{TPU} v6e-8 --runtime tpu-ubuntu2204-base --zone z",
        "skypilot --accelerators H100 --infra gcp/us-central1", "skypilot --accelerators RTX6000:1 --infra Lambda",
        "skypilot --accelerators tpu-v6e-8", "skypilot --accelerators MI300X:0.5 --infra vast",
    ],
)  # fmt: skip
def test_what_a_platform_has_is_accepted(words):
    assert accepted(words)


@pytest.mark.parametrize(
    ("platform", "meant"),
    [("kubernetes", "gke"), ("K8s", "gke"), ("sky", "skypilot"), ("sbatch", "slurm"), ("gcloud", "tpu")],
)
def test_a_platform_by_another_name_is_understood(platform, meant):
    with pytest.raises(UserError, match=rf"{platform}: unknown platform \(did you mean {meant}\?\); expected slurm"):
        dispatch(["launch", platform, "--", "record"])


@pytest.mark.parametrize("name", USUAL)
def test_a_command_without_dashes_before_it_is_told_where_they_belong(name):
    options = USUAL[name].split()
    line = rf"^medreport launch {options[0]}: put -- before the command: .* \[options\] -- retsta train \.\.\.$"
    for given in (options, options[:3], [*options, "--dry-run"]):
        with pytest.raises(UserError, match=line):
            dispatch(["launch", *given, "retsta", "train", "--preset", "demo"])
    with pytest.raises(UserError, match="no command; expected -- COMMAND"):
        dispatch(["launch", *options, "--name", "retsta"])


@pytest.mark.parametrize(
    ("words", "option"),
    [("slurm -gpus 8 --time 60 -- x", "gpus"), ("slurm --gpus 8 -time=60 -- x", "time"),
     ("local --processes 1 -- retsta train -preset demo --run-dir r", "preset"),
     ("local --processes 1 -- retsta train --preset demo -run-dir r", "run-dir")],
)  # fmt: skip
def test_an_option_with_one_dash_is_named(words, option):
    with pytest.raises(UserError, match=rf": -{option}: unknown option \(did you mean --{option}\?\)"):
        dispatch(["launch", *words.split()])


@pytest.mark.parametrize("platform", PLATFORMS)
def test_help_marks_what_is_required(platform, capsys):
    with pytest.raises(SystemExit):
        dispatch(["launch", platform, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    parser = parser_of(platform, PLATFORMS[platform])
    needed = [action.option_strings[0] for action in parser._actions if action.required]
    assert needed
    for part in said.split(" --")[1:]:
        assert ("(required)" in part) == (f"--{part.split()[0]}" in needed), part


@pytest.mark.parametrize(
    ("lines", "reason"),
    [("source x && (", "syntax error: unexpected end of file"), ("cd x; fi", "syntax error near unexpected token `fi'"),
     ("echo 'a", "unexpected EOF while looking for matching"), ("true &&", "unexpected end of file")],
)  # fmt: skip
@pytest.mark.parametrize("name", [name for name in USUAL if not name.startswith("gke")])
def test_a_setup_that_bash_cannot_read_is_refused(name, lines, reason):
    with pytest.raises(UserError, match=r"^--setup: bash cannot read it \(line \d: .*\); give whole") as said:
        dispatch(["launch", *USUAL[name].split(), f"--setup={lines}", *COMMAND])
    assert reason in str(said.value)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize(
    ("setup", "command", "named"),
    [
        ("export WANDB_API_KEY=abc; HF_TOKEN='x y' true", "record", ["WANDB_API_KEY", "HF_TOKEN"]),
        ("", "env AWS_SECRET=abc DB_PASSWORD=x record", ["AWS_SECRET", "DB_PASSWORD"]),
        ('export A_KEY=$(cat key) B_TOKEN="$C" KEYS=abc D_KEY=; source .venv/bin/activate', "record --KEY=x", []),
    ],
)
def test_a_secret_that_would_stand_in_the_recipe_is_warned_of_and_not_repeated(setup, command, named, capsys):
    words = [*USUAL["slurm"].split(), "--setup", setup, "--dry-run", "--", *command.split()]
    assert dispatch(["launch", *words]) == 0
    said = capsys.readouterr().err
    assert [line.split()[1] for line in said.splitlines()] == named
    assert all("is given a value, which stands in the recipe" in line for line in said.splitlines())
    assert "abc" not in said
