"""Settings of GPUs go into the environment where there are GPUs, and give way to what a user set."""

import os
import subprocess
import sys

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from common import devices

SET = (*devices.GPU_SETTINGS, "XLA_FLAGS", "JAX_PLATFORMS")


@pytest.fixture
def gpus(monkeypatch):
    """A machine with GPUs and nothing set, whose environment is put back at the end."""
    monkeypatch.setattr(devices, "glob", lambda pattern: [pattern] if "nvidia" in pattern else [])
    for name in SET:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    before = jax.config.jax_default_matmul_precision
    yield monkeypatch
    jax.config.update("jax_default_matmul_precision", before)


def test_gpus_get_the_settings(gpus):
    devices.set_gpu_defaults()
    assert {name: os.environ[name] for name in devices.GPU_SETTINGS} == devices.GPU_SETTINGS
    assert os.environ["XLA_FLAGS"].split() == [
        f"--{name}={str(value).lower()}" for name, value in devices.GPU_FLAGS.items()
    ]


def test_what_a_user_set_stays(gpus):
    flags = "--xla_gpu_enable_latency_hiding_scheduler=false --xla_dump_to=/tmp/hlo"
    given = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5", "JAX_DEFAULT_MATMUL_PRECISION": "tensorfloat32"}
    for name, value in {**given, "XLA_FLAGS": flags}.items():
        gpus.setenv(name, value)
    devices.set_gpu_defaults()
    assert {name: os.environ[name] for name in given} == given
    assert os.environ["XLA_FLAGS"].startswith(flags)
    assert os.environ["XLA_FLAGS"].count("latency_hiding") == 1


@pytest.mark.parametrize("platforms", ["cpu", "tpu", "cpu,cuda"])
def test_a_run_on_another_platform_gets_none(gpus, platforms):
    gpus.setenv("JAX_PLATFORMS", platforms)
    devices.set_gpu_defaults()
    assert not {*devices.GPU_SETTINGS, "XLA_FLAGS"} & set(os.environ)


def test_a_machine_without_gpus_gets_none(gpus):
    gpus.setattr(devices, "glob", lambda pattern: [])
    devices.set_gpu_defaults()
    assert not set(SET) & set(os.environ)


def test_jax_knows_every_setting():
    """XLA ends the process at a flag that it does not know."""
    flags = " ".join(f"--{name}={str(value).lower()}" for name, value in devices.GPU_FLAGS.items())
    environment = {**os.environ, **devices.GPU_SETTINGS, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    code = "import jax; jax.numpy.ones(2) + 1; print(jax.config.jax_default_matmul_precision)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "float32"), done.stderr


@pytest.fixture
def no_cache():
    """JAX without a directory for compiled programs; the suite's own is put back."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


def compile_one(scale):
    jax.jit(lambda x: jax.numpy.tanh(x * scale).sum())(jax.numpy.ones(3)).block_until_ready()


def test_a_run_on_an_accelerator_keeps_its_programs(no_cache, monkeypatch, tmp_path):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    compile_one(1.25)  # what is compiled before must not decide for what comes
    with devices.programs_kept(tmp_path / "one"):
        compile_one(1.5)
    with devices.programs_kept(tmp_path / "two"):
        compile_one(1.75)
    compile_one(2.25)
    kept = [len(list((tmp_path / name).glob("*-cache"))) for name in ("one", "two")]
    assert min(kept) >= 1
    assert jax.config.jax_compilation_cache_dir is None


def test_a_program_that_was_not_written_whole_is_written_again(no_cache, monkeypatch, tmp_path):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    run = tmp_path / "run"
    with devices.programs_kept(run):
        compile_one(3.25)
    whole = {file.name: file.read_bytes() for file in run.glob("*-cache")}
    torn = max(whole, key=lambda name: len(whole[name]))
    (run / torn).write_bytes(whole[torn][:-20])
    jax.clear_caches()
    with devices.programs_kept(run):
        compile_one(3.25)
    assert {file.name for file in run.glob("*-cache")} >= whole.keys()
    assert len((run / torn).read_bytes()) > len(whole[torn]) - 20


def test_a_directory_that_is_named_stays(no_cache, monkeypatch, tmp_path):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "named"))
    with devices.programs_kept(tmp_path / "run"):
        compile_one(2.5)
    assert not (tmp_path / "run").exists()


def test_a_run_on_cpus_keeps_none(no_cache, tmp_path):
    with devices.programs_kept(tmp_path / "run"):
        compile_one(2.75)
    assert not (tmp_path / "run").exists()
