"""Which words are addresses of stores, and where their copies lie."""

import pytest

from common.errors import UserError
from common.io.mirror import VARIABLE, address_text, mirror_path, with_addresses
from common.io.store_objects import parse_address


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "here"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("s3a://bucket/x", "s3a:// is not supported; expected gs://BUCKET/KEY or s3://BUCKET/KEY"),
        ("S3://bucket/x", "S3:// is not supported"),
        ("abfs://c@a/x", "abfs:// is not supported"),
        ("file:///tmp/x", "file:// is not supported; expected a path"),
        ("gs:/bucket/x", "expected two slashes after the colon, gs://BUCKET/KEY"),
        ("s3:bucket/x", "expected two slashes after the colon, s3://BUCKET/KEY"),
        ("gs://b/x", "with a name of three letters or more"),
        ("gs://bucket", "expected the address of something in a bucket, gs://BUCKET/KEY"),
        ("s3:///x", "expected the address of something in a bucket, s3://BUCKET/KEY"),
        ("gs://bucket/../../etc", "has an empty, hidden or relative part"),
        ("gs://bucket/a//b", "has an empty, hidden or relative part"),
        ("gs://bucket/.ssh/id", "has an empty, hidden or relative part"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(text, said):
    with pytest.raises(UserError) as refused:
        parse_address(text)
    assert said in str(refused.value)
    assert str(refused.value).startswith(text)


@pytest.mark.parametrize("text", ["", "run", "/tmp/gs:/x", "https://host/v1", "./gs://x", "C://x", "memory://x"])
def test_other_words_are_not_addresses(text):
    assert parse_address(text) is None


def test_a_path_tells_its_address(tmp_path):
    path = mirror_path("gs://bucket/a/b c.txt")
    assert path == tmp_path / "here" / "gs" / "bucket" / "a" / "b c.txt"
    assert address_text(path) == "gs://bucket/a/b c.txt"
    assert address_text(tmp_path / "gs" / "bucket") is None
    assert (
        with_addresses(f"{path}: is empty; see {path.parent}") == "gs://bucket/a/b c.txt: is empty; see gs://bucket/a"
    )
