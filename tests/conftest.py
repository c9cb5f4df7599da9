"""Test set-up: eight virtual CPU devices and a compile cache kept between runs."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import jaxtyping
import pytest

from tests.array_annotations import annotated_modules
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

jaxtyping.install_import_hook(annotated_modules(), "tests.array_annotations.check")  # before the packages are imported

DURATIONS = Path(__file__).parent / "durations.json"  # seconds of each file; `make durations` measures them


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of this suite."""
    parser.addoption("--fast", action="store_true", help="run the half of the tests that takes least time")
    parser.addoption("--measure", action="store_true", help=f"write the seconds of each file to {DURATIONS.name}")


def file_of(path: Path) -> str:
    """A test's file as `durations.json` names it."""
    return path.relative_to(DURATIONS.parent).as_posix()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long files first, so that two workers end at the same time; with --fast only the files that cost least a test."""
    seconds: dict[str, float] = json.loads(DURATIONS.read_text())
    tests = Counter(file_of(item.path) for item in items)
    items.sort(key=lambda item: -seconds.get(file_of(item.path), 0.0))
    if config.getoption("--fast"):
        fast, left = set(), len(items) / 2
        for file in sorted(tests, key=lambda file: seconds.get(file, 0.0) / tests[file]):
            if left > 0:
                fast.add(file)
                left -= tests[file]
        config.hook.pytest_deselected(items=[item for item in items if file_of(item.path) not in fast])
        items[:] = [item for item in items if file_of(item.path) in fast]


class Stopwatch:
    """Adds up how long the tests of each file take, with their fixtures."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Set-up, call and tear-down are reported one by one."""
        self.seconds[file_of(Path(__file__).parents[1] / report.fspath)] += report.duration

    def pytest_sessionfinish(self) -> None:
        """The longest first."""
        rounded = {file: round(seconds, 1) for file, seconds in self.seconds.most_common()}
        DURATIONS.write_text(json.dumps(rounded, indent=1) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    """Measure in the process to which workers report."""
    if config.getoption("--measure") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Stopwatch())


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


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> "Iterator[None]":
    """Commands say which attention runs, as on a GPU; that of float32 models is the same on both."""
    from common.models import attention_choice

    monkeypatch.setitem(attention_choice.KERNELS, "cpu", "cudnn")
    attention_choice._say_once.cache_clear()
    yield
    attention_choice._say_once.cache_clear()


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> "Material":
    """A tiny base model and report pairs, made once."""
    from tests.runs import make_material  # imports jax, which must find the environment above

    return make_material(tmp_path_factory.mktemp("material"))
