"""`medreport doctor` says what is there, and names what is wrong with its remedy."""

import socket
from types import SimpleNamespace

import pytest

from common import devices
from common.errors import UserError
from common.process.hosts import VARIABLE
from launch import doctor
from launch.doctor_presets import PRESETS, preset_lines
from launch.recipes.command_check import check_command


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv("SLURM_NTASKS", raising=False)


def screen(capsys, *words):
    code = doctor.main([*words])
    return code, capsys.readouterr().out


def test_a_machine_without_problems(capsys, tmp_path):
    code, out = screen(capsys, "--run-dir", str(tmp_path / "not" / "yet"))
    assert code == 0
    assert out.splitlines()[-1] == "no problems"
    assert "8 x cpu" in out
    assert f"free in {tmp_path}" in out
    assert not (tmp_path / "not").exists()


def test_a_file_where_runs_are_to_be_written_is_a_problem(capsys, tmp_path):
    (tmp_path / "file").touch()
    code, out = screen(capsys, "--run-dir", str(tmp_path / "file" / "run"))
    assert code == 1
    assert f"{tmp_path / 'file'} is not a directory: choose another --run-dir" in out


def test_a_preset_says_what_it_needs_and_how_much_memory(capsys):
    _, out = screen(capsys, "--preset", "retsta-7b")
    assert "retsta train --preset retsta-7b --model.base PATH --data.train PATH" in out
    assert "7.66 billion parameters, 0.040 trained: needs " in out  # 7.62 of Qwen2.5-7B, and LoRA of rank 16
    assert "medreport plan --preset retsta-7b --topology h100:8" in out


@pytest.mark.parametrize("name", PRESETS)
def test_the_command_of_a_preset_is_complete(name):
    severity, topic, text = next(preset_lines(name))
    assert (severity, topic) == ("ok", "preset")
    check_command(text.split(), 1, "")


def test_a_labeler_and_clip_come_with_their_vocabularies():
    assert "--model.clip PATH --model.clip-vocabulary PATH" in next(preset_lines("mimic-cxr"))[2]
    assert "--reward.labeler PATH --reward.labeler-tokenizer PATH" in next(preset_lines("deer-mimic"))[2]


def test_parameters_and_moments_that_do_not_fit_are_a_problem(capsys, monkeypatch):
    monkeypatch.setattr("launch.doctor_presets._machine_bytes", lambda: 8 * 10e9)
    code, out = screen(capsys, "--preset", "deer-mimic")
    # 3.75 billion, all trained: 16 bytes each, in the preset's mesh of 8 devices by fsdp.
    assert "needs 7.5 GB on each device, which has 10.0 GB" in out
    assert code == 0
    monkeypatch.setattr("launch.doctor_presets._machine_bytes", lambda: 8 * 5e9)
    code, out = screen(capsys, "--preset", "deer-mimic")
    assert code == 1
    assert "problem  memory" in out
    assert "needs 7.5 GB on each device, which has 5.0 GB: use more devices\n" in out
    assert out.splitlines()[-1] == "problems: 1"


def test_an_unknown_preset_is_one_line():
    with pytest.raises(UserError, match=r"--preset deer-mimik: unknown \(did you mean deer-mimic\?\); expected demo, "):
        doctor.main(["--preset", "deer-mimik"])


def test_a_gpu_that_jax_does_not_use_is_a_problem(capsys, monkeypatch, tmp_path):
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(devices, "ACCELERATORS", (str(tmp_path / "nvidia[0-9]*"),))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    code, out = screen(capsys)
    assert code == 1
    assert f"although {tmp_path}/nvidia0 exists: unset JAX_PLATFORMS=cpu" in out
    monkeypatch.delenv("JAX_PLATFORMS")
    assert "pip install 'medreport-jax[EXTRA]'" in screen(capsys)[1]


@pytest.mark.parametrize(("version", "severity"), [("550.54.15", "problem"), ("580.65.06", "ok")])
def test_the_driver_must_be_new_enough_for_cuda(monkeypatch, tmp_path, version, severity):
    file = tmp_path / "version"
    file.write_text(f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {version}  Tue Mar  5 22:23:56 UTC 2024\n")
    monkeypatch.setattr(doctor, "DRIVER", file)
    monkeypatch.setattr(doctor, "_version", lambda package: "0.10.2" if package == "jax-cuda13-plugin" else "")
    (finding,) = doctor.driver()
    assert finding.severity == severity
    assert f"NVIDIA {version}, CUDA 13" in finding.text


def test_packages_that_do_not_go_together_are_a_problem(monkeypatch):
    found = dict.fromkeys(doctor.PACKAGES, "1.0") | {"jaxlib": "0.9", "grain": ""}
    monkeypatch.setattr(doctor, "_version", found.__getitem__)
    problems = [finding.text for finding in doctor.versions() if finding.severity == "problem"]
    assert problems == [
        "grain not installed: pip install medreport-jax",
        "jax 1.0 and jaxlib 0.9 differ: pip install --upgrade jax jaxlib",
    ]


def of_hosts(monkeypatch, value):
    monkeypatch.setenv(VARIABLE, value)
    (finding,) = doctor.hosts()
    return finding


def test_hosts_are_looked_for(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert of_hosts(monkeypatch, f"127.0.0.1:{port},2,1").severity == "ok"
        found = of_hosts(monkeypatch, f"127.0.0.1:{port},2,0")
        assert found.severity == "problem"
        assert "choose another" in found.text
    found = of_hosts(monkeypatch, f"127.0.0.1:{port},2,1")
    assert "nothing listens there yet" in found.text
    assert of_hosts(monkeypatch, f"127.0.0.1:{port},2,0").severity == "ok"
    found = of_hosts(monkeypatch, "no-such-host.invalid:1234,2,1")
    assert found.severity == "problem"
    assert "cannot be resolved" in found.text
    assert of_hosts(monkeypatch, "nonsense").severity == "problem"
    assert of_hosts(monkeypatch, "auto").severity == "ok"


def test_tasks_of_slurm_that_do_not_know_of_each_other_are_a_problem(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "8")
    (finding,) = doctor.hosts()
    assert finding.severity == "problem"
    assert f"set {VARIABLE}=auto" in finding.text


@pytest.mark.parametrize(("free", "severity"), [(1e7, "problem"), (1e9, "note"), (1e11, "ok")])
def test_a_disk_without_room_comes_with_the_remedy(tmp_path, monkeypatch, free, severity):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    line = doctor.disk(tmp_path / "run")
    assert line.severity == severity
    assert ("make room, or choose another --run-dir" in line.text) == (severity != "ok")
