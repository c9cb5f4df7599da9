"""Hosts that share no disk, only a bucket: one run, continued by another number of hosts; what S3 cannot do is said."""

import json

import pytest

from common.io.mirror import VARIABLE
from tests.hosts import on_hosts
from tests.runs import Material
from tests.stores import Store, new_bucket, store_servers

STEPS = 4
MESH = {"parallel": "mesh", "mesh__data": 1, "mesh__fsdp": -1, "micro_batch": 1, "lora__dropout": 0.0}


@pytest.fixture(scope="module", autouse=True)
def servers():
    with pytest.MonkeyPatch.context() as patch, store_servers(patch):
        yield


def train(material: Material, store: Store, tmp_path, hosts: int, run: str, steps: int) -> tuple[list[int], list[str]]:
    """A training on so many hosts of four devices in all, each with copies of its own."""
    words = material.train(f"{store.address}/{run}", max_steps=steps, evaluate_every=2, checkpoint_every=2, **MESH)
    own = [{VARIABLE: str(tmp_path / f"{run} {number}")} for number in range(hosts)]
    return on_hosts("retsta_jax.cli", [words] * hosts, devices=4 // hosts, variables=own)


def rows(store: Store, run: str) -> list[dict]:
    return [json.loads(line) for line in store.read(f"{run}/metrics.jsonl").splitlines()]


def test_hosts_train_one_run_in_a_bucket(material, tmp_path):
    store = new_bucket("gs")
    codes, said = train(material, store, tmp_path, 2, "two", STEPS)
    assert codes == [0, 0], said
    names = store.names()
    assert [name for name in names if name.startswith("two/checkpoints/latest/4/trainable/ocdbt.process_1/")]
    codes, said = train(material, store, tmp_path, 1, "one", STEPS)
    assert codes == [0], said
    for row, expected in zip(rows(store, "two"), rows(store, "one"), strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert not (tmp_path / "two 1" / "gs" / store.address.partition("//")[2] / "two" / "metrics.jsonl").exists()


def test_checkpoints_of_several_hosts_are_not_for_s3(material, tmp_path):
    store = new_bucket("s3")
    codes, said = train(material, store, tmp_path, 2, "run", STEPS)
    assert codes == [2, 2]
    assert (
        f"error: {store.address}/run: checkpoints of several processes need gs:// or a disk that all hosts share"
        in said[0]
    )
