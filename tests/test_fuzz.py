"""Each fuzzed reader takes its valid files and refuses damaged ones in one line; `make fuzz` tries more of them."""

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.damage import damaged
from tests.fuzz.targets import TARGETS, try_file


@pytest.mark.parametrize("name", TARGETS)
def test_valid_files_are_read_and_damaged_ones_refused_in_one_line(name, tmp_path):
    target = TARGETS[name]
    seeds = target.seeds(tmp_path)
    for content in seeds:
        (tmp_path / target.name).write_bytes(content)
        target.read(tmp_path / target.name)

    @settings(max_examples=10, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(damaged(seeds))
    def refused_or_read(content):
        try_file(target, tmp_path, content)

    refused_or_read()


def test_no_damage_to_a_footer_of_parquet_in_a_store_ends_the_process(tmp_path):
    """pyarrow ends it where it is asked for damaged counts: one byte after the other, which random damage may miss."""
    target = TARGETS["parquet-stored"]
    [content] = target.seeds(tmp_path)
    begin = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    for index in range(begin, len(content)):
        try_file(target, tmp_path, content[:index] + bytes([content[index] ^ 1]) + content[index + 1 :])
