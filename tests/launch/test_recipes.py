"""`medreport launch`: each recipe starts exactly the command that was given, on each host, and again where needed."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from common.errors import UserError
from common.process.stopping import EXIT_CODES
from launch.cli import dispatch
from launch.recipes.fill import TEMPLATES, seconds_of
from tests.launch.recipes import AWKWARD, USUAL, Tools, recipe

SCRIPTS = [name for name in USUAL if name.split("-")[0] in ("slurm", "tpu", "ssh", "local")]
# A `$` in single quotes is meant so, and `declare -f` uses a function.
NOT_MEANT = "--exclude=SC2016,SC2329"
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do echo "$1" >>options; shift; done
highest=0
for number in 0 1; do
    SLURM_NTASKS=2 SLURM_PROCID=$number SLURMD_NODENAME=node$((number + 7)) "$@"; code=$?
    ((code > highest)) && highest=$code
done
exit "$highest"
"""
SCONTROL = """#!/bin/bash
case "$1" in show) printf 'node7\\nnode8\\n' ;; requeue) echo "requeued $2" ;; esac
"""
SSH = """#!/bin/bash
shift 3  # -o BatchMode=yes HOST
exec sh -c "$*"
"""


@pytest.fixture
def tools(tmp_path) -> Tools:
    found = Tools(tmp_path)
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "ssh": SSH}.items():
        found.add(name, text)
    return found


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_pass_shellcheck(name, tmp_path):
    file = tmp_path / "recipe.sh"
    extra = ["--setup", "export READY=1", "--directory", "/shared"]
    file.write_text(recipe([*USUAL[name].split(), *extra], ["retsta", "train", "--preset", "a b", "--loss", "$x"]))
    checker = Path(sys.executable).parent / "shellcheck"
    checked = subprocess.run([checker, NOT_MEANT, file], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_what_skypilot_runs_passes_shellcheck():
    run = yaml.safe_load(recipe(USUAL["skypilot"].split(), ["retsta", "train", "--preset", "a b"]))["run"]
    command = [Path(sys.executable).parent / "shellcheck", "--shell=bash", NOT_MEANT, "-"]
    checked = subprocess.run(command, input=run, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_slurm_starts_the_exact_command_on_each_node(tools):
    text = recipe(USUAL["slurm"].split(), ["record", *AWKWARD])
    ran = tools.bash(text, SLURM_JOB_ID="123", SLURM_JOB_NODELIST="node[7-8]")
    assert ran.returncode == 0, ran.stderr
    assert tools.recorded() == {f"node7:20123,2,{number}": AWKWARD for number in (0, 1)}
    assert "--cpus-per-task=64" in (tools.bin.parent / "options").read_text()


def test_a_container_starts_in_the_directory_that_was_given_and_keeps_the_variables_of_the_job(tools):
    directory = ["--directory", "/runs/eyes"]
    container = ["--container", "/shared/medreport.sqsh", "--mounts", "/shared/runs:/runs"]
    inside = recipe([*USUAL["slurm"].split(), *directory, *container], ["record"])
    assert "#SBATCH --chdir" not in inside
    assert tools.bash(inside, SLURM_JOB_ID="123", SLURM_JOB_NODELIST="node[7-8]").returncode == 0
    assert (tools.bin.parent / "options").read_text().split()[-4:] == [
        "--container-image=/shared/medreport.sqsh", "--container-mounts=/shared/runs:/runs",
        "--container-workdir=/runs/eyes", "--container-env=JAX_COMPILATION_CACHE_DIR",
    ]  # fmt: skip
    outside = recipe([*USUAL["slurm"].split(), *directory, "--memory", "0"], ["record"])
    assert "#SBATCH --chdir=/runs/eyes\n" in outside
    assert "#SBATCH --mem=0\n" in outside
    assert "--container" not in outside


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("1:30", 90), ("24:00:00", 86_400), ("2-0", 172_800), ("1-12:30", 131_400), ("0-0:0:5", 5)],
)
def test_durations_are_read_as_slurm_reads_them(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [(75, 0, True), (143, 99, True), (137, 0, True), (75, 100, False), (2, 0, False), (130, 0, False)],
)
def test_slurm_requeues_what_was_stopped_and_nothing_else(tools, code, restarts, requeued):
    job = {"SLURM_JOB_ID": "123", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_RESTART_COUNT": str(restarts)}
    text = recipe(USUAL["slurm"].split(), ["record"]).replace("sleep 30", "sleep 0")
    ran = tools.bash(text, RECORD_CODE=str(code), **job)
    assert ran.returncode == code
    assert ("requeued 123" in ran.stdout) == requeued


@pytest.mark.parametrize(("nodes", "waits"), [(1, 0), (2, 1)])
def test_only_where_there_are_several_nodes_one_that_fails_waits_for_the_others(tools, nodes, waits):
    tools.add("sleep", '#!/bin/bash\necho "$1" >>slept\n')
    tools.add("srun", SRUN.replace("SLURM_NTASKS=2", f"SLURM_NTASKS={nodes}").replace("0 1", "0"))
    job = {"SLURM_JOB_ID": "123", "SLURM_JOB_NODELIST": "node[7-8]"}
    ran = tools.bash(recipe(USUAL["slurm"].split(), ["record"]), RECORD_CODE="75", **job)
    slept = tools.bin.parent / "slept"
    assert (slept.read_text() if slept.exists() else "") == "30\n" * waits
    assert "requeued 123" in ran.stdout


def test_the_log_of_slurm_says_at_once_what_starts_where(tools):
    ran = tools.bash(recipe(USUAL["slurm"].split(), ["record", "train"]), SLURM_JOB_ID="1", SLURM_JOB_NODELIST="n")
    lines = ran.stdout.splitlines()
    assert [line[9:] for line in lines] == [
        f"node{number + 7} (host {number} of 2): starting record train" for number in (0, 1)
    ]
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in lines)


@pytest.mark.parametrize("name", ["slurm", "skypilot", "ssh", "local-cpu"])
def test_a_command_that_the_setup_does_not_provide_is_named(tools, name):
    text = recipe([*USUAL[name].split(), "--setup", "source missing/activate"], ["retsta-missing", "train"])
    text = yaml.safe_load(text)["run"] if name == "skypilot" else text
    ran = tools.bash(text, SLURM_JOB_ID="1", SLURM_JOB_NODELIST="n", SKYPILOT_NODE_IPS="10.0.0.1")
    assert ran.returncode == 2
    said = (tools.bin.parent / "logs" / "1.log").read_text() if name == "ssh" else ran.stderr
    assert re.search(r"^retsta-missing: not found( on [\w.-]+)?; see --setup$", said, re.MULTILINE)


@pytest.mark.parametrize(("pattern", "says"), [("/dev/null", False), ("/dev/no-such-gpu*", True)])
def test_local_says_where_there_is_no_gpu_to_run_on(tools, monkeypatch, pattern, says):
    monkeypatch.setattr("launch.recipes.platforms.GPUS", pattern)
    place = ["--directory", str(tools.bin.parent)]
    ran = tools.bash(recipe([*USUAL["local-gpu"].split(), *place], ["record"]))
    assert ("no GPU here: all processes run on the CPU" in ran.stderr) == says
    assert not tools.bash(recipe([*USUAL["local-cpu"].split(), *place], ["record"])).stderr


def test_skypilot_starts_the_exact_command_on_each_node(tools):
    run = yaml.safe_load(recipe(USUAL["skypilot"].split(), ["record", *AWKWARD]))["run"]
    for number in (0, 1):
        nodes = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2"}
        assert tools.bash(run, **nodes, SKYPILOT_NODE_RANK=str(number)).returncode == 0
    assert tools.recorded() == {f"10.0.0.1:8476,2,{number}": AWKWARD for number in (0, 1)}


@pytest.mark.parametrize("name", ["gke-tpu", "gke-gpu"])
def test_kubernetes_starts_the_exact_command(name):
    jobset = yaml.safe_load(recipe(USUAL[name].split(), ["record", *AWKWARD]))
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert [expanded(word) for word in pod["containers"][0]["command"]] == ["record", *AWKWARD]


def expanded(word: str) -> str:
    """As Kubernetes reads a word of a command: `$$` is `$`, and `$(NAME)` a variable."""
    return re.sub(r"\$\$|\$\((\w+)\)", lambda found: "?" if found[1] else "$", word)


def test_ssh_starts_the_exact_command_on_each_host(tools):
    ran = tools.bash(recipe(USUAL["ssh"].split(), ["record", *AWKWARD]))
    assert ran.returncode == 0, ran.stderr
    assert tools.recorded() == {f"a:8476,2,{number}": AWKWARD for number in (0, 1)}


@pytest.mark.parametrize("name", ["local-cpu", "local-gpu"])
def test_local_starts_the_exact_command_in_each_process(tools, name):
    words = [*USUAL[name].split(), "--directory", str(tools.bin.parent)]
    ran = tools.bash(recipe(words, ["record", *AWKWARD]))
    assert ran.returncode == 0, ran.stderr
    assert tools.recorded() == {f"127.0.0.1:8476,2,{number}": AWKWARD for number in (0, 1)}


@pytest.mark.parametrize("name", ["ssh", "local-cpu"])
def test_where_one_fails_the_others_are_stopped(tools, name):
    tools.add("fails", "#!/bin/bash\n[[ $MEDREPORT_HOSTS == *,1 ]] && exit 3\nexec sleep 300\n")
    text = recipe([*USUAL[name].split(), "--directory", str(tools.bin.parent)], ["fails"])
    ran = tools.bash(text.replace("SECONDS + 15", "SECONDS + 0"))
    assert ran.returncode == 3
    assert ran.stderr == "host 1 ended with exit code 3; see logs/1.log\n"


@pytest.mark.parametrize("name", ["ssh", "local-cpu"])
def test_what_is_stuck_is_killed(tools, name):
    # Not for ever: nothing can kill what an ssh that was killed has left on the other side.
    stuck = "trap '' TERM\nwhile ((SECONDS < 20)); do sleep 0.1; done\n"
    tools.add("sticks", f"#!/bin/bash\n[[ $MEDREPORT_HOSTS == *,1 ]] && exit 75\n{stuck}")
    text = recipe([*USUAL[name].split(), "--directory", str(tools.bin.parent)], ["sticks"])
    ran = tools.bash(text.replace("SECONDS + 15", "SECONDS + 0").replace("patience + 60", "patience + 1"))
    assert ran.returncode == 75


@pytest.mark.parametrize("name", ["ssh", "local-cpu"])
def test_sigterm_reaches_every_process_and_its_exit_code_returns(tools, name):
    tools.add("saves", "#!/bin/bash\ntrap 'echo saved; exit 75' TERM\necho begun\nwhile :; do sleep 0.1; done\n")
    text = recipe([*USUAL[name].split(), "--directory", str(tools.bin.parent)], ["saves"])
    running = subprocess.Popen(
        ["bash", "-c", text], cwd=tools.bin.parent, env=tools.environment, stderr=subprocess.DEVNULL
    )
    logs = [tools.bin.parent / "logs" / f"{number}.log" for number in (0, 1)]
    while not all(log.exists() and log.read_text() for log in logs):
        assert running.poll() is None
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=60) == EXIT_CODES[signal.SIGTERM]
    assert [log.read_text() for log in logs] == ["begun\nsaved\n"] * 2


def test_every_recipe_restarts_on_the_exit_code_of_sigterm():
    for template in TEMPLATES.iterdir():
        if template.stem in ("local", "ssh", "supervise"):
            continue
        assert str(EXIT_CODES[signal.SIGTERM]) in template.read_text(), template


@pytest.mark.parametrize("name", USUAL)
def test_dry_run_prints_the_file_and_nothing_else(name, capsys):
    assert dispatch(["launch", *USUAL[name].split(), "--dry-run", "--", "record", "a b"]) == 0
    shown = capsys.readouterr()
    assert shown.out == recipe(USUAL[name].split(), ["record", "a b"])
    assert not shown.err
    assert "{{" not in shown.out
    assert len(shown.out.splitlines()) < 160
    assert "MEDREPORT_JOIN_TIMEOUT" in shown.out


def test_a_file_is_written_whole_and_never_over_another(tmp_path, capsys):
    file = tmp_path / "job.sh"
    words = ["launch", *USUAL["slurm"].split(), "--write", str(file), "--", "record"]
    assert dispatch(words) == 0
    assert file.read_text() == capsys.readouterr().out
    file.write_text("mine")
    with pytest.raises(UserError, match=r"job\.sh: exists; choose another file, or remove it$"):
        dispatch(words)
    assert file.read_text() == "mine"
    words[words.index(str(file))] = str(tmp_path / "missing" / "job.sh")
    with pytest.raises(UserError, match=r"missing/job\.sh: cannot be written \(No such file or directory\)"):
        dispatch(words)
    assert [found.name for found in tmp_path.iterdir()] == ["job.sh"]


def test_nothing_is_started_unless_asked_for(tools, monkeypatch, capsys):
    tools.add("sbatch", '#!/bin/bash\ncp "$1" submitted\n')
    monkeypatch.setenv("PATH", tools.environment["PATH"])
    monkeypatch.chdir(tools.bin.parent)
    submitted = tools.bin.parent / "submitted"
    words = ["launch", *USUAL["slurm"].split()]
    assert dispatch([*words, "--", "record"]) == 0
    shown = capsys.readouterr()
    assert shown.err == "nothing was started; --submit starts it\n"
    assert not submitted.exists()
    assert dispatch([*words, "--submit", "--", "record"]) == 0
    assert submitted.read_text() == shown.out == capsys.readouterr().out


@pytest.mark.parametrize(("name", "tool"), [("slurm", "sbatch"), ("gke-tpu", "kubectl"), ("skypilot", "sky")])
def test_a_tool_that_is_missing_is_one_clear_line(name, tool, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    file = tmp_path / "job"
    with pytest.raises(UserError, match=rf"^{tool}: not found, so nothing was started; .*--write FILE"):
        dispatch(["launch", *USUAL[name].split(), "--write", str(file), "--submit", "--", "record"])
    assert not file.exists()
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("slurn --gpus 8", r"^medreport launch slurn: unknown platform \(did you mean slurm\?\); expected slurm, gke"),
        ("slurm --gpus 8 --time 60", r"^medreport launch slurm: no command; expected -- COMMAND \.\.\. at the end$"),
        ("slurm --gpus 8 --time 60 --", "no command"),
        ("slurm --gpus 8 --time 60 --name A_b -- x", "'A_b': expected up to 40 lowercase letters, digits and -"),
        ("slurm --gpus 8 --time 60 --account a;b -- x", "'a;b': expected letters, digits and"),
        ("slurm --gpus eight --time 1 -- x", "expected a whole number, found 'eight'"),
        ("gke --topology v9:4x4 --image i --claim c -- x", "^--topology v9:4x4: expected CHIP:SHAPE such as v6e:4x4"),
        (
            "gke --topology h100:2x8 --image i -- x",
            "^--topology h100:2x8: names the GPUs of one node; use h100:8 --nodes 2$",
        ),
        ("gke --topology h100:1x2x4 --image i -- x", "expected a shape such as v6e:4x4 for TPUs, or a number of GPUs"),
        ("gke --topology v6e:8 --image i -- x", "expected a shape such as v6e:4x4 for TPUs"),
        ("gke --topology v6e:4x4 --image i --mount /m -- x", "^--mount: only with --claim"),
        ("skypilot --accelerators H100:8 --mount /m -- x", "^--mount: only with --volume"),
        ("skypilot --accelerators H100:8 --volume v -- x", "^--volume: only Kubernetes and RunPod have volumes"),
        ("skypilot --accelerators H100:8 --volume v --infra gcp/us-central1 -- x", "^--volume: only Kubernetes"),
        ("gke --topology v6e:4x4 --nodes 2 --image i --claim c -- x", "^--nodes: only for GPUs"),
        (
            "gke --topology v6e:4x4 --chips-per-host 3 --image i --claim c -- x",
            "^--chips-per-host 3: the hosts of v6e:4x4 have 4 ",
        ),
        ("slurm --gpus 8 --time 5 --notice 600 -- x", "^--time 5 is 300 seconds, not more than --notice 600; give"),
        ("slurm --gpus 8 --time 5 -- x", "^--time 5 is 300 seconds, not more than --notice 300"),
        (
            "slurm --gpus 8 --nodes 2 --time 60 --notice 89 -- x",
            "^--notice 89: must be at least 90 for several nodes, which wait 30 seconds for each other",
        ),
        (
            "slurm --gpus 8 --time 7-0 --notice 80000 -- x",
            "--notice: must be at least 1 and at most 65,535, found 80000",
        ),
        ("slurm --gpus 8 --time 60 --mounts /a:/a -- x", "^--mounts: only with --container"),
        ("slurm --gpus 8 --time 60 --memory lots -- x", "'lots': expected a number with K, M, G or T"),
        ("slurm --gpus 8 --time soon -- x", "'soon': expected hours as 24:00:00"),
        ("ssh --hosts a,b,a -- x", "^--hosts a,b,a: a is named twice; name each host once"),
        ("ssh --hosts , -- x", "^--hosts ,: expected names"),
        ("ssh --hosts a,,b -- x", "^--hosts a,,b: expected names separated by commas, none empty or beginning with -$"),
        ("ssh --hosts gpu1,-oProxyCommand=x -- x", "^--hosts gpu1,-oProxyCommand=x: expected names"),
        ("ssh --hosts me@-oProxyCommand=x -- x", "^--hosts me@-oProxyCommand=x: expected names"),
        ("ssh --hosts=-x@a -- x", "^--hosts -x@a: expected names"),
        ("gke --topology v6e:4x4 --image i --claim c --mount runs -- x", "'runs': expected an absolute path of a dir"),
        ("gke --topology v6e:4x4 --image i --claim c --mount / -- x", "'/': expected an absolute path of a directory"),
        ("gke --topology v6e:4x4 --image i --claim c --mount /a/.. -- x", "expected an absolute path"),
        ("skypilot --accelerators H100:8 --infra k8s --volume v --mount // -- x", "'//': expected an absolute path"),
        ("skypilot --accelerators H100:8 --infra k8s --volume v --mount d -- x", "'d': expected an absolute path"),
        ("gke --topolgy v6e:4x4 -- x", r"--topolgy: unknown option \(did you mean --topology\?\); see .* gke --help$"),
        ("slurm --gpu=8 -- x", r"^medreport launch slurm: --gpu: unknown option \(did you mean --gpus\?\)"),
        ("slurm --gpus 8 --time 60 --dry-run --submit -- x", "^medreport launch slurm: --dry-run starts nothing"),
        ("tpu --accelerator v5e-16 --runtime r --project p --zone z -- x", "^--accelerator v5e-16: expected v6e-N or"),
        ("tpu --accelerator v6e:4x4 --runtime r --project p --zone z -- x", "v6e:4x4 of `medreport plan` is v6e-16"),
    ],
)
def test_bad_options_are_one_clear_line(words, line):
    with pytest.raises(UserError, match=line):
        dispatch(["launch", *words.split()])


def test_a_command_without_a_name_is_refused():
    with pytest.raises(UserError, match="no command"):
        dispatch(["launch", *USUAL["slurm"].split(), "--", " ", "--preset", "demo"])


@pytest.mark.parametrize(
    ("topology", "hosts", "chips"), [("v5e:2x4", 1, 8), ("v5e:4x4", 4, 4), ("v5p:2x2x2", 2, 4), ("v6e:1x1", 1, 1)]
)
def test_hosts_of_a_tpu_slice(topology, hosts, chips):
    text = recipe(f"gke --topology {topology} --image i --claim c".split(), ["x"])
    job = yaml.safe_load(text)["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["parallelism"], job["completions"]) == (hosts, hosts)
    assert job["template"]["spec"]["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}
    assert json.dumps(topology.partition(":")[2]) in json.dumps(job["template"]["spec"]["nodeSelector"])
