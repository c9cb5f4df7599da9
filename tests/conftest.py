"""Test set-up: eight virtual CPU devices and a compile cache kept between runs."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.compile_flags import EIGHT_DEVICES, QUICK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chat_server import ChatServer
    from tests.runs import Material

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {EIGHT_DEVICES} {QUICK}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


# The files that take longest, the longest first: so two workers end at the same time.
LONG = (
    *("launch/test_bench_unicross.py", "deer_jax/test_deer_commands.py", "parallel/test_unicross_run.py"),
    *("unicross_jax/test_commands.py", "real/test_unicross_radiographs.py", "parity/test_qwen2_vl_transformers.py"),
    *(
        "retsta_jax/test_tables.py",
        "real/test_openi_labels.py",
        "retsta_jax/test_resume.py",
        "unicross_jax/test_model.py",
    ),
    *("deer_jax/test_label_command.py", "unicross_jax/test_ditpo_example.py", "deer_jax/test_rl.py"),
    *("launch/test_bench.py", "parity/test_clip_torch.py", "launch/test_bench_rl.py", "launch/test_plan_deer.py"),
    *("parallel/test_same_update.py", "parity/test_unicross_torch.py", "deer_jax/test_vision_policy.py"),
    *("deer_jax/test_labeler.py", "common/test_decode_cli.py", "parity/test_peft.py", "launch/test_plan.py"),
    *("retsta_jax/test_baseline.py", "parallel/test_hosts_training.py", "parallel/test_training_run.py"),
    "common/test_sampling.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first."""

    def place(item: pytest.Item) -> int:
        file = item.path.relative_to(Path(__file__).parent).as_posix()
        return LONG.index(file) if file in LONG else len(LONG)

    items.sort(key=place)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets: MEDREPORT_DATA, or ../shared/data beside the project."""
    root = Path(os.environ.get("MEDREPORT_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not root.is_dir():
        pytest.skip("no real data: set MEDREPORT_DATA to the folder that holds iu_xray/ and openi_labels/")
    return root


@pytest.fixture(scope="session")
def retsta_run(material: "Material", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps; a test that changes it takes a copy."""
    from tests.runs import TWO_STEPS, retsta

    run_dir = tmp_path_factory.mktemp("retsta") / "run"
    assert retsta(material.train(run_dir, **TWO_STEPS)) == 0
    return run_dir


@pytest.fixture
def endpoint_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key of endpoints, in the environment."""
    from common.endpoint.settings import KEY_VARIABLE
    from tests.endpoints import KEY

    monkeypatch.setenv(KEY_VARIABLE, KEY)


@pytest.fixture
def server(endpoint_key: None) -> "Iterator[ChatServer]":
    """An endpoint that answers with the last message in capitals, until a test gives it another script."""
    from tests.chat_server import chat_server

    with chat_server() as running:
        yield running


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> "Material":
    """A tiny base model and report pairs, made once."""
    from tests.runs import make_material  # imports jax, which must find the environment above

    return make_material(tmp_path_factory.mktemp("material"))
