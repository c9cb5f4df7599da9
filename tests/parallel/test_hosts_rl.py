"""What a step of reinforcement learning tells is the same from one host and from two."""

import json

import pytest

from tests.deer_jax.test_rl import EACH, same_distributions
from tests.hosts import on_hosts

HOSTS = 2


def trained(run_dir, mode: str, hosts: int) -> list[list[dict]]:
    """What each host knows of the steps."""
    codes, said = on_hosts("tests.rl_steps", [["steps", str(run_dir), mode]] * hosts, devices=4 // hosts)
    assert codes == [0] * hosts, said
    return [json.loads(run_dir.with_name(f"{run_dir.name}-{host}.json").read_text()) for host in range(hosts)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("alone") / "run", "pmap", 1)[0]


@pytest.mark.parametrize("mode", ["pmap", "mesh"])
def test_two_hosts_tell_the_same_of_a_step(alone, tmp_path, mode):
    first, second = trained(tmp_path / "run", mode, HOSTS)
    for one, other, own in zip(first, second, alone, strict=True):
        assert {name: repr(value) for name, value in one.items()} == {
            name: repr(value) for name, value in other.items()
        }
        same_distributions(own, one)
        assert one["rewards_not_finite"] == 1 / 8
        assert one["reward"] == pytest.approx(own["reward"], rel=1e-6)  # the study without a reward is on one host
        assert sum(value == value for value in map(one.get, EACH)) == 7
