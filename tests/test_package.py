"""What a user installs: the wheel's files, and the metadata around them."""

import tomllib
from pathlib import Path

import pytest
import yaml
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[1]
PACKAGES = ("common", "retsta_jax", "unicross_jax", "deer_jax", "launch")


@pytest.fixture(scope="module")
def wheel() -> set[str]:
    """Paths in the wheel."""
    return {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_the_wheel_has_every_file_that_the_code_reads(wheel):
    for package in PACKAGES:
        assert f"{package}/py.typed" in wheel
    assert {
        "retsta_jax/assets/base/model.safetensors",
        "retsta_jax/assets/base/tokenizer.model",
        "retsta_jax/terminology/terms.tsv",
        "retsta_jax/translation/translations.tsv",
        "unicross_jax/assets/clip/model.safetensors",
        "unicross_jax/assets/demo/model.safetensors",
        "deer_jax/assets/base/tokenizer.json",
        "common/clinical/assets/labeler/vocab.txt",
        "common/report/page.html.j2",
        "common/report/page.css",
        "deer_jax/token_page.html.j2",
        "launch/recipes/templates/slurm.sh",
        "launch/app/templates/app.css",
        "launch/app/templates/app.js",
        "launch/app/examples/first-scanner.jsonl",
        "retsta_jax/assets/adapter/adapter_model.safetensors",
    } <= wheel
    kept = (".json", ".safetensors", ".model", ".tsv", ".txt", ".j2", ".css", ".js", ".jsonl", ".typed", ".sh", ".yaml")
    on_disk = {
        file.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for file in (ROOT / package).rglob("*")
        if file.suffix in kept and "launch/bench" not in file.as_posix()
    }
    assert on_disk <= wheel


def test_the_wheel_leaves_benchmarks_and_tests_out(wheel):
    assert not [path for path in wheel if path.startswith(("launch/bench", "tests", "docs"))]


def test_every_script_is_in_the_wheel(wheel, project):
    for target in project["scripts"].values():
        module = target.partition(":")[0].replace(".", "/")
        assert {f"{module}.py", f"{module}/__init__.py"} & wheel, target


def test_extras_are_those_that_the_documents_name(project):
    extras = project["optional-dependencies"]
    assert {"cuda12", "cuda13", "tpu", "plan", "wandb", "beam", "dicom", "endpoint", "docs", "dev"} <= extras.keys()
    assert extras["cuda"] == ["medreport-jax[cuda12]"]


def test_versions_and_licence_agree(project):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"] == "Apache-2.0"
    assert len(citation["references"]) == 3
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert "Apache License" in (ROOT / "LICENSE").read_text("utf-8")
    stated = {line.rpartition(" ")[2] for line in project["classifiers"] if "Python :: 3." in line}
    low, high = (int(part.rpartition(".")[2]) for part in project["requires-python"].split(","))
    assert stated == {f"3.{minor}" for minor in range(low, high)}
