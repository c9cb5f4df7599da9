"""What tests of recipes share: usual options for each platform, and stand-ins for the tools of platforms."""

import os
import subprocess
from pathlib import Path

from launch.recipes.command import parser_of, split_command
from launch.recipes.platforms import PLATFORMS

USUAL = {
    "slurm": "slurm --nodes 2 --gpus 8 --time 24:00:00 --partition gpu --account lab --cache /shared/compiled",
    "gke-tpu": "gke --topology v6e:4x4 --image registry/medreport:1 --claim runs --cache /shared/compiled",
    "gke-bucket": "gke --topology v6e:4x4 --image registry/medreport:1 --cache gs://eyes/cache --service-account eyes",
    "gke-gpu": "gke --topology h100:8 --nodes 2 --image registry/medreport:1 --claim runs --spot",
    "tpu": "tpu --accelerator v6e-16 --runtime v2-alpha-tpuv6e --project lab --zone us-east5-b --spot",
    "skypilot": "skypilot --nodes 2 --accelerators H100:8 --volume runs --infra k8s --spot",
    "ssh": "ssh --hosts me@a,b --cache /shared/compiled",
    "local-cpu": "local --processes 2 --cpu-devices 2",
    "local-gpu": "local --processes 2",
}
# Words that a shell, YAML, Slurm or Kubernetes would change.
AWKWARD = [
    "a b", "it's", '"quoted"', "$HOME", "$(date)", "$$", "`date`", "two\nlines", "\n#SBATCH --nodes=9", "tab\t.",
    "\\", "\\n'", "*", "", "-x", "--", "é 中 😀", "{{ name }}", "%%", "!", "~", "a=b;c&d|e>f", "# no comment",
    "nbsp\u00a0\u2028\x85\r",
]  # fmt: skip
# Records its arguments and MEDREPORT_HOSTS in a file of its own.
RECORD = """#!/bin/bash
{ printf '%s\\0' "$MEDREPORT_HOSTS" "$@"; } >"$RECORDS/$$"
exit "${RECORD_CODE:-0}"
"""


def recipe(words: list[str], command: list[str]) -> str:
    """The text of a recipe, from the words after `medreport launch` and the command."""
    platform = PLATFORMS[words[0]]
    options, _ = split_command(words[1:])
    return platform.recipe(parser_of(words[0], platform).parse_args(options), command)


class Tools:
    """A folder of small programs that come first on PATH, and the arguments of each start of `record`."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.records = folder / "bin", folder / "records"
        self.bin.mkdir()
        self.records.mkdir()
        self.add("record", RECORD)
        self.environment = os.environ | {"PATH": f"{self.bin}:{os.environ['PATH']}", "RECORDS": str(self.records)}
        self.environment["TMPDIR"] = str(folder)

    def add(self, name: str, text: str) -> None:
        """Add a program."""
        file = self.bin / name
        file.write_text(text)
        file.chmod(0o755)

    def bash(self, text: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a recipe that is a script."""
        return subprocess.run(
            ["bash", "-c", text],
            cwd=self.bin.parent,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def recorded(self) -> dict[str, list[str]]:
        """The words of each start, by MEDREPORT_HOSTS."""
        found = {}
        for file in self.records.iterdir():
            hosts, *words = file.read_bytes().decode().split("\0")[:-1]
            found[hosts] = words
        return found
