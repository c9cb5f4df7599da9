"""Runs in a bucket: the same bits as on a disk, killed on one machine and continued, evaluated and used on others."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from common.io.jsonl import read_jsonl
from common.io.mirror import VARIABLE
from tests.retsta_jax.test_resume import contents, send_when
from tests.runs import TWO_STEPS, Material, retsta, start
from tests.stores import SCHEMES, Store, machine, new_bucket, store_servers


@pytest.fixture(scope="module", autouse=True)
def servers():
    with pytest.MonkeyPatch.context() as patch, store_servers(patch):
        yield


@pytest.fixture(scope="module")
def on_disk(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("disk") / "run"
    assert retsta(material.train(run_dir, max_steps=6)) == 0
    return run_dir


def in_store(store: Store, material: Material) -> list[str]:
    """The words of a training whose base, data and run all have addresses; the first two are put there."""
    for folder, name in ((material.base, "base"), (material.data, "data")):
        for file in folder.iterdir():
            store.write(f"{name}/{file.name}", file.read_bytes())
    words = material.train(Path("RUN"), max_steps=6)
    moved = {"RUN": "runs/one", str(material.base): "base"}
    moved |= {str(file): f"data/{file.name}" for file in material.data.iterdir()}
    return [f"{store.address}/{moved[word]}" if word in moved else word for word in words]


def whole_checkpoints(store: Store) -> list[str]:
    names = [name.split("/") for name in store.names()]
    return [parts[4] for parts in names if parts[:4] == ["runs", "one", "checkpoints", "latest"] and parts[4].isdigit()]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_run_in_a_bucket_is_killed_and_continued_elsewhere(scheme, material, on_disk, tmp_path, capsys):
    store = new_bucket(scheme)
    command = in_store(store, material)
    first = start(command, **{VARIABLE: str(tmp_path / "first")})
    code, errors = send_when(first, signal.SIGTERM, lambda: time.sleep(0.2) or "runs/one/config.json" in store.names())
    assert code in (0, 75), errors
    stopped = whole_checkpoints(store)
    assert (code == 75) or "6" in stopped

    with machine(tmp_path / "second"):
        assert retsta(command) == 0
        copy = tmp_path / "second" / scheme / store.address.partition("//")[2] / "runs" / "one"
        written, expected = contents(copy), contents(on_disk)
        assert {name for name in expected if written[name] != expected[name]} == {
            "config.json", "adapter/adapter_config.json", "adapter/README.md",
        }  # which name the base  # fmt: skip
        assert str(tmp_path) not in store.read("runs/one/adapter/README.md").decode()
        assert json.loads(written["adapter/adapter_config.json"])["base_model_name_or_path"] == f"{store.address}/base"
    assert "6" in whole_checkpoints(store)
    assert json.loads(store.read("runs/one/config.json"))["model"]["base"] == f"{store.address}/base"
    assert store.read("runs/one/metrics.jsonl") == (on_disk / "metrics.jsonl").read_bytes()
    assert [name for name in store.names() if "lock" in name or "partial" in name] == []

    store.write("reports.txt", b"OD: few drusen.\n")
    run_dir, output = f"{store.address}/runs/one", f"{store.address}/out/standard.jsonl"
    with machine(tmp_path / "third"):
        assert retsta(["evaluate", "--run-dir", run_dir]) == 0
        words = ["standardize", "--run-dir", run_dir, f"{store.address}/reports.txt", "--output", output]
        assert retsta(words) == 0
        assert retsta([*words[:-1], str(tmp_path / "local.jsonl")]) == 0
    assert store.read("out/standard.jsonl") == (tmp_path / "local.jsonl").read_bytes()
    assert "runs/one/report.html" in store.names()
    capsys.readouterr()
    assert retsta(["evaluate", "--run-dir", f"{store.address}/runs/two"]) == 2
    assert capsys.readouterr().err == (
        f"error: {store.address}/runs/two: no config.json there; expected the directory of a training run\n"
    )


def test_a_run_goes_on_with_its_table_in_a_bucket_and_not_with_other_rows(material, tmp_path, capsys):
    pq = pytest.importorskip("pyarrow.parquet")
    pa = pytest.importorskip("pyarrow")
    store, run_dir = new_bucket("s3"), tmp_path / "run"
    rows = {name: read_jsonl(material.data / f"{name}.jsonl", {}) for name in ("train", "validation", "test")}
    here, there = {}, {}
    for name, found in rows.items():
        file = tmp_path / f"{name}.parquet"
        pq.write_table(pa.Table.from_pylist(found), file, row_group_size=5)
        store.write(file.name, file.read_bytes())
        here[f"data__{name}"], there[f"data__{name}"] = file, f"{store.address}/{file.name}"
    assert retsta(material.train(run_dir, **TWO_STEPS, **here)) == 0
    with machine(tmp_path / "copies"):
        shutil.rmtree(run_dir / "checkpoints" / "latest" / "2")
        capsys.readouterr()
        assert retsta(material.train(run_dir, **TWO_STEPS, **there)) == 0
        assert "continuing after step 1 of 2" in "".join(capsys.readouterr())
        assert not list((tmp_path / "copies").rglob("*.parquet"))
        pq.write_table(pa.Table.from_pylist(rows["train"][1:]), tmp_path / "fewer.parquet")
        store.write("train.parquet", (tmp_path / "fewer.parquet").read_bytes())
        assert retsta(material.train(run_dir, **TWO_STEPS, **there)) == 2
        said = capsys.readouterr().err.splitlines()
        assert "run: is a run with another data" in said[-1]
