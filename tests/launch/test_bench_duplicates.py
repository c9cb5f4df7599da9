"""The benchmark of near-duplicates at a toy shape: its keys, and that it runs without the data packages."""

import json
import subprocess
import sys

import pytest

from common.errors import UserError
from launch.bench import duplicates as bench_duplicates
from tests.launch.test_bench import BARE_IMAGE


def test_runs_on_a_bare_image_and_prints_one_json_object():
    command = [sys.executable, "-c", BARE_IMAGE, "bench", "duplicates", "--reports=2000", "--studies=4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["shape"] == {"reports": 2000, "studies": 4, "threshold": 0.8}
    assert result["removed"]["exact"] > 0
    assert result["plain_text"]["removed"] >= result["plain_text"]["different"] >= result["plain_text"]["states_lost"]
    assert result["reports_per_second"] == pytest.approx(2000 / result["seconds"])
    assert result["peak_bytes"] > 1e6
    assert result["characters"] > 10


def test_shape_out_of_bounds():
    with pytest.raises(UserError, match="reports must be at least 1"):
        bench_duplicates.measure(bench_duplicates.Shape(reports=0))
