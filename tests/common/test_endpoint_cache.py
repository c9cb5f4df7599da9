"""The cache of answers: for its owner alone, whole after a kill, and one line where it is damaged or foreign."""

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from common.endpoint.cache import open_cache
from common.endpoint.protocol import Answer
from common.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "answers.sqlite"


def put(path, **answers):
    with open_cache(path) as cache:
        for key, text in answers.items():
            cache.put(key, Answer(text))


def get(path, key):
    with open_cache(path) as cache:
        return cache.get(key)


def test_an_answer_is_kept_as_it_was(path):
    answer = Answer('左眼 "x"\n\x1b', "length", 3, None)
    with open_cache(path) as cache:
        assert cache.get("k") is None
        assert cache.put("k", answer) == answer
    assert get(path, "k") == Answer(answer.text, "length", 3, None, cached=True)


def test_the_file_is_for_its_owner_alone(path):
    path.touch(0o666)
    path.chmod(0o666)
    with open_cache(path) as cache:
        cache.put("k", Answer("text"))
        assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}
    assert path.stat().st_mode & 0o777 == 0o600


def test_of_two_answers_to_one_request_the_first_is_kept(path):
    with open_cache(path) as one, open_cache(path) as other:
        one.put("k", Answer("first"))
        assert other.put("k", Answer("second")).text == "first"


def test_several_threads_and_openings_write_one_file(path):
    def work(name):
        with open_cache(path) as cache:
            for number in range(20):
                cache.put(f"{name}{number}", Answer(name))

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with open_cache(path) as cache:
        assert all(cache.get(f"{name}{number}").text == name for name in "abc" for number in range(20))


KILLED = """
import os, signal, sys
from pathlib import Path
from common.endpoint.cache import open_cache
from common.endpoint.protocol import Answer
with open_cache(Path(sys.argv[1])) as cache:
    cache.put("k", Answer("kept"))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_answer_is_on_the_disk_when_it_is_handed_out(path):
    subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=ROOT, check=False, timeout=60)
    assert get(path, "k").text == "kept"


def refusal(path):
    """What is said of a file in one line."""
    with pytest.raises(UserError) as error:
        get(path, "k")
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("content", [b"not a database, but long enough to be read as the header of one " * 20, b"{}"])
def test_another_file_is_refused_and_left(content, path):
    path.write_bytes(content)
    assert "damaged or not a cache" in refusal(path)
    assert path.read_bytes() == content


def test_another_database_is_refused_and_left(path):
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE answers (key TEXT, answer TEXT, digest TEXT)")
    other.close()
    content = path.read_bytes()
    assert "another program's database" in refusal(path)
    assert path.read_bytes() == content


def test_every_damage_is_seen(path):
    """A byte changed anywhere, or a missing end, gives a refusal, the right answer, or none; never a wrong one."""
    put(path, k="Haemorrhage of the left eye")
    whole = path.read_bytes()
    for index in range(0, len(whole), 97):
        path.write_bytes(whole[:index] + bytes([whole[index] ^ 0x20]) + whole[index + 1 :])
        try:
            found = get(path, "k")
        except UserError:
            continue
        assert found is None or found.text == "Haemorrhage of the left eye"
    for end in (100, 4096, len(whole) - 1):
        path.write_bytes(whole[:end])
        assert "damaged" in refusal(path)


def test_a_changed_letter_is_seen(path):
    put(path, k="Haemorrhage of the left eye")
    path.write_bytes(path.read_bytes().replace(b"left", b"lift"))
    assert "not as it was written" in refusal(path)


def test_a_full_disk_is_one_line(path):
    with open_cache(path) as cache:
        (pages,) = cache._connection.execute("PRAGMA page_count").fetchone()
        cache._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(UserError, match=r"cannot be used \(database or disk is full\)"):
            cache.put("k", Answer("x" * 100_000))
        assert cache.get("k") is None


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    assert "folder does not exist" in refusal(tmp_path / "none" / "answers.sqlite")
    assert "is a directory" in refusal(tmp_path)
