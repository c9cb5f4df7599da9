"""Test set-up: eight virtual CPU devices and a compile cache kept between runs."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.compile_flags import EIGHT_DEVICES, QUICK

if TYPE_CHECKING:
    from tests.runs import Material

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {EIGHT_DEVICES} {QUICK}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


# The files that take longest, which two workers must not be left with at the end.
LONG = (
    *("launch/test_bench_unicross.py", "unicross_jax/test_commands.py", "deer_jax/test_deer_commands.py"),
    *("parallel/test_unicross_run.py", "real/test_unicross_radiographs.py", "real/test_openi_labels.py"),
    *("unicross_jax/test_model.py", "launch/test_bench_rl.py", "unicross_jax/test_ditpo_example.py"),
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
def material(tmp_path_factory: pytest.TempPathFactory) -> "Material":
    """A tiny base model and report pairs, made once."""
    from tests.runs import make_material  # imports jax, which must find the environment above

    return make_material(tmp_path_factory.mktemp("material"))
