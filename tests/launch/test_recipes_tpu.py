"""The recipe for Cloud TPU: the slice is requested, watched and requested again, and the command runs once on it."""

import json
import re
import shlex
import shutil
import signal
import subprocess

import pytest

from common.process.stopping import EXIT_CODES
from tests.launch.recipes import AWKWARD, USUAL, Tools, recipe

# The file `states` has what a queued resource that was created becomes, one state for each time that it is asked for.
GCLOUD = """#!/bin/bash
echo "$3 $4" >>calls
{ printf '%s\\0' gcloud "$@"; printf '\\1'; } >>commands
case "$3 $4" in
    "tpu-vm describe") if [[ $(cat state) == ACTIVE ]]; then echo READY; else echo PREEMPTED; fi ;;
    "queued-resources describe")
        [[ -e state ]] || { echo 'ERROR: NOT_FOUND: Resource was not found' >&2; exit 1; }
        if [[ -s states ]]; then head -n 1 states >state; sed -i 1d states; fi
        [[ $(cat state) != ERROR ]] || { echo 'ERROR: no network' >&2; exit 1; }
        if [[ $5 == medreport && $* == *state.state* ]]; then cat state; else echo 'quota exceeded'; fi ;;
    *create) echo ACTIVE >state ;;
    *delete) rm state ;;
    *ssh)
        for word; do [[ $word == --command=* ]] && command=${word#--command=}; done
        read -r code rest <codes; echo "$rest" >codes
        [[ $code == gone ]] && { echo SUSPENDED >state; exit 255; }
        RECORD_CODE=$code bash -c "$command" ;;
esac
"""


@pytest.fixture
def tools(tmp_path) -> Tools:
    found = Tools(tmp_path)
    found.add("gcloud", GCLOUD)
    return found


@pytest.fixture
def hasty(tools) -> Tools:
    """Tools where nobody waits."""
    tools.add("sleep", "#!/bin/bash\n")
    return tools


def test_a_tpu_slice_is_asked_for_and_the_exact_command_is_started(hasty):
    (hasty.bin.parent / "codes").write_text("75 143 gone 0")
    ran = hasty.bash(recipe(USUAL["tpu"].split(), ["record", *AWKWARD]))
    assert ran.returncode == 0, ran.stderr
    assert hasty.recorded() == {"auto": AWKWARD}
    calls = (hasty.bin.parent / "calls").read_text().splitlines()
    assert "medreport: MISSING" in ran.stderr
    assert "medreport: ACTIVE" in ran.stderr
    assert [call for call in calls if "describe" not in call] == [
        "queued-resources create", "tpu-vm ssh", "tpu-vm ssh", "tpu-vm ssh",
        "queued-resources delete", "queued-resources create", "tpu-vm ssh",
    ]  # fmt: skip
    assert "queued-resources delete medreport --project=lab --zone=us-east5-b --force" in ran.stderr


@pytest.mark.skipif(shutil.which("gcloud") is None, reason="needs the gcloud CLI, whose own check of commands this is")
def test_commands_for_a_tpu_slice_are_ones_that_gcloud_knows(hasty):
    (hasty.bin.parent / "codes").write_text("gone 0")
    hasty.bash(recipe(USUAL["tpu"].split(), ["record"]))
    commands = [line.split("\0")[:-1] for line in (hasty.bin.parent / "commands").read_text().split("\1")[:-1]]
    for words in {words[4]: words for words in commands}.values():
        words = ["--command=record" if word.startswith("--command=") else word for word in words]
        asked = ["gcloud", "meta", "lint-gcloud-commands", f"--command-string={shlex.join(words)}"]
        [said] = json.loads(subprocess.run(asked, capture_output=True, text=True, check=True, timeout=120).stdout)
        assert said["success"], said["error_message"]


def test_a_tpu_command_that_fails_is_not_started_again(hasty):
    (hasty.bin.parent / "codes").write_text("2 0")
    assert hasty.bash(recipe(USUAL["tpu"].split(), ["record"])).returncode == 2


def test_a_command_that_the_setup_does_not_provide_is_named(hasty):
    (hasty.bin.parent / "codes").write_text("0")
    ran = hasty.bash(recipe([*USUAL["tpu"].split(), "--setup", "source missing/activate"], ["retsta-missing"]))
    assert ran.returncode == 2
    assert re.search(r"^retsta-missing: not found on [\w.-]+; see --setup$", ran.stderr, re.MULTILINE)


@pytest.mark.parametrize(("codes", "code"), [("255 0", 0), ("255 255 0", 255)])
def test_a_connection_that_is_lost_once_is_made_again(hasty, codes, code):
    (hasty.bin.parent / "codes").write_text(codes)
    assert hasty.bash(recipe(USUAL["tpu"].split(), ["record"])).returncode == code


def calls_of(tools) -> list[str]:
    calls = (tools.bin.parent / "calls").read_text().splitlines()
    return [call for call in calls if "describe" not in call]


def test_a_tpu_slice_that_gcloud_cannot_describe_is_not_taken_for_missing(hasty):
    (hasty.bin.parent / "codes").write_text("0")
    (hasty.bin.parent / "state").write_text("ACTIVE")
    (hasty.bin.parent / "states").write_text("ERROR\nERROR\nACTIVE\n")
    ran = hasty.bash(recipe(USUAL["tpu"].split(), ["record"]))
    assert ran.returncode == 0, ran.stderr
    assert calls_of(hasty) == ["tpu-vm ssh"]
    assert ran.stderr.count("ERROR: no network") == 1


def test_a_project_that_gcloud_rejects_ends_the_script(hasty):
    (hasty.bin.parent / "state").write_text("ERROR")
    ran = hasty.bash(recipe(USUAL["tpu"].split(), ["record"]))
    assert ran.returncode == 1
    assert not calls_of(hasty)
    assert ran.stderr.count("ERROR: no network") == 1
    assert "queued-resources describe medreport --project=lab --zone=us-east5-b" in ran.stderr
    assert "delete" not in ran.stderr


def test_a_network_that_is_away_while_a_slice_is_awaited_does_not_end_the_script(hasty):
    (hasty.bin.parent / "codes").write_text("0")
    (hasty.bin.parent / "state").write_text("PROVISIONING")
    (hasty.bin.parent / "states").write_text("PROVISIONING\n" + "ERROR\n" * 5 + "ACTIVE\n")
    assert hasty.bash(recipe(USUAL["tpu"].split(), ["record"])).returncode == 0


def test_a_request_for_a_slice_that_failed_is_shown_and_ends_the_script(hasty):
    (hasty.bin.parent / "states").write_text("PROVISIONING\nPROVISIONING\nFAILED\n")
    ran = hasty.bash(recipe(USUAL["tpu"].split(), ["record"]))
    assert ran.returncode == 1
    assert calls_of(hasty) == ["queued-resources create"]
    assert ran.stderr.count("PROVISIONING") == 1
    assert "quota exceeded" in ran.stderr
    assert "queued-resources delete medreport" in ran.stderr


def test_a_script_that_waits_for_a_slice_ends_when_it_is_told_to(tools):
    (tools.bin.parent / "state").write_text("WAITING_FOR_RESOURCES")
    running = subprocess.Popen(
        ["bash", "-c", recipe(USUAL["tpu"].split(), ["record"])], cwd=tools.bin.parent, env=tools.environment,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert "WAITING_FOR_RESOURCES" in running.stderr.readline()
    running.send_signal(signal.SIGTERM)
    assert "queued-resources delete medreport" in running.communicate(timeout=20)[1]
    assert running.returncode == EXIT_CODES[signal.SIGTERM]
    assert not tools.recorded()


SAVES = """#!/bin/bash
trap 'echo saved >>log; exit 75' TERM
echo begun >>log
while :; do sleep 0.1; done
"""


def test_a_command_that_outlives_its_connection_is_told_to_save_and_not_started_beside_itself(tools):
    """The stand-in for gcloud starts it once more, as gcloud does, while the first one is there."""
    tools.add("saves", SAVES)
    first = 'bash -c "$command" <&0 & until grep -q begun log; do sleep 0.1; done; bash'
    tools.add("gcloud", GCLOUD.replace("RECORD_CODE=$code bash", first))
    for name, text in {"log": "", "codes": "0", "state": "ACTIVE"}.items():
        (tools.bin.parent / name).write_text(text)
    ran = tools.bash(recipe([*USUAL["tpu"].split(), "--restarts", "0"], ["saves"]))
    assert ran.returncode == 75, ran.stderr
    assert (tools.bin.parent / "log").read_text() == "begun\nsaved\n"


def test_a_second_signal_does_not_wait_until_a_command_has_saved(tools):
    # Not for ever: nothing can kill what a broken connection leaves on the other side.
    tools.add("stuck", SAVES.replace("exit 75", ":").replace("while :", "while ((SECONDS < 60))"))
    log = tools.bin.parent / "log"
    for name, text in {"log": "", "codes": "0", "state": "ACTIVE"}.items():
        (tools.bin.parent / name).write_text(text)
    running = subprocess.Popen(
        ["bash", "-c", recipe(USUAL["tpu"].split(), ["stuck"])], cwd=tools.bin.parent, env=tools.environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background inherit its absence
    )  # fmt: skip
    for said in ("begun\n", "begun\nsaved\n"):
        while log.read_text() != said:
            assert running.poll() is None
        running.send_signal(signal.SIGINT if said == "begun\n" else signal.SIGTERM)
    assert running.wait(timeout=30) == 128 + signal.SIGTERM


def test_a_command_on_a_slice_saves_when_its_script_is_told_to_end(tools):
    tools.add("saves", SAVES)
    log = tools.bin.parent / "log"
    for name, text in {"log": "", "codes": "0", "state": "ACTIVE"}.items():
        (tools.bin.parent / name).write_text(text)
    running = subprocess.Popen(
        ["bash", "-c", recipe(USUAL["tpu"].split(), ["saves"])], cwd=tools.bin.parent, env=tools.environment
    )
    while not log.read_text():
        assert running.poll() is None
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=30) == EXIT_CODES[signal.SIGTERM]
    assert log.read_text() == "begun\nsaved\n"


def test_flags_for_ssh_reach_gcloud_and_iap_its_alpha_track():
    text = recipe([*USUAL["tpu"].split(), "--ssh-flags=--internal-ip --ssh-flag=-v"], ["x"])
    assert "    gcloud compute tpus tpu-vm ssh" in text
    assert "        --internal-ip --ssh-flag=-v \\\n" in text
    assert "gcloud alpha compute tpus tpu-vm ssh" in recipe(
        [*USUAL["tpu"].split(), "--ssh-flags=--tunnel-through-iap"], ["x"]
    )
