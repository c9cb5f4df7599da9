"""Two hosts label the reports that one would, each its own shards."""

import json

from tests.corpus import make_pairs
from tests.hosts import on_hosts
from tests.runs import retsta

SMALL = {"max_steps": 1, "checkpoint_every": 1, "evaluate_every": 1, "max_new_tokens": 4, "epochs": 1}


def test_two_hosts_write_the_shards_of_one(material, tmp_path):
    run = tmp_path / "run"
    assert retsta(material.train(run, **SMALL)) == 0
    reports = tmp_path / "reports.jsonl"
    rows = [{"id": pair.id, "report": pair.source} for pair in make_pairs(9, seed=2, language="both")]
    reports.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def command(output):
        options = ["--run-dir", str(run), "--output", str(tmp_path / output), "--shard-size", "2"]
        return ["label", str(reports), *options]

    codes, said = on_hosts("retsta_jax.cli", [command("together")] * 2)
    assert codes == [0, 0], said
    assert retsta(command("alone")) == 0
    names = [path.name for path in sorted((tmp_path / "alone" / "shards").glob("*.jsonl"))]
    assert len(names) == 5
    for name in [*(f"shards/{name}" for name in names), "pairs.jsonl", "rejected.jsonl", "funnel.json"]:
        assert (tmp_path / "together" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name
