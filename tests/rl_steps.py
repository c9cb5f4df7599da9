"""Two steps of reinforcement learning of a tiny model, also with other hosts: for tests that start it."""

import json
import sys
from pathlib import Path

import jax

from common.command import run_cli
from common.training.parallel import MeshConfig, make_device_layout
from tests.deer_jax.test_rl import WordLabeler, run


def main(arguments: list[str]) -> None:
    """`steps RUN_DIR MODE`: `metrics.jsonl` of the run is what the test reads, and `HOST.json` what each host knows."""
    run_dir, mode = Path(arguments[1]), arguments[2]
    _, rows = run(run_dir, 2, make_device_layout(mode, MeshConfig(data=2, fsdp=-1)), labeler=WordLabeler(), reward=odd)
    kept = [{name: value for name, value in row.items() if not name.startswith("seconds/")} for row in rows]
    run_dir.with_name(f"{run_dir.name}-{jax.process_index()}.json").write_text(json.dumps(kept))


def odd(texts, references):
    """Lengths, which are not finite for the reports of one study."""
    return [
        float("nan") if own.startswith("word3 ") else float(len(text))
        for text, own in zip(texts, references, strict=True)
    ]


if __name__ == "__main__":
    run_cli(main, sys.argv[1:], hosts={"steps"})
