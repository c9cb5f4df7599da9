"""Two hosts label the reports that one would, each its own shards."""

import json
import os
import socket
import subprocess
import sys

from tests.compile_flags import QUICK
from tests.corpus import make_pairs
from tests.runs import ROOT, retsta

SMALL = {"max_steps": 1, "checkpoint_every": 1, "evaluate_every": 1, "max_new_tokens": 4, "epochs": 1}


def test_two_hosts_write_the_shards_of_one(material, tmp_path):
    run = tmp_path / "run"
    assert retsta(material.train(run, **SMALL)) == 0
    reports = tmp_path / "reports.jsonl"
    rows = [{"id": pair.id, "report": pair.source} for pair in make_pairs(9, seed=2, language="both")]
    reports.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"

    def command(output):
        options = ["--run-dir", str(run), "--output", str(tmp_path / output), "--shard-size", "2"]
        return ["label", str(reports), *options]

    environment = {**os.environ, "XLA_FLAGS": QUICK, "JAX_NUM_CPU_DEVICES": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "retsta_jax.cli", *command("together")],
            cwd=ROOT,
            env={**environment, "MEDREPORT_HOSTS": f"{address},2,{number}"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (0, 1)
    ]
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert retsta(command("alone")) == 0
    names = [path.name for path in sorted((tmp_path / "alone" / "shards").glob("*.jsonl"))]
    assert len(names) == 5
    for name in [*(f"shards/{name}" for name in names), "pairs.jsonl", "rejected.jsonl", "funnel.json"]:
        assert (tmp_path / "together" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name
