"""Addresses of stores: copies that stay the same as the store, locks, and what fails as one line."""

import asyncio
import contextlib
import dataclasses
import json
import shutil
import socket
import threading
import types
from pathlib import Path

import pytest

from common.command import run_cli
from common.errors import UserError
from common.io import store_locks, store_objects, stores
from common.io.lock_holder import Holder, this_process
from common.io.locks import locked_directory, locked_file
from common.io.mirror import VARIABLE, mirror_path
from common.io.store_objects import put_bytes, split_address
from common.io.stores import staging
from tests.stores import SCHEMES, Store, machine, new_bucket, store_servers


@pytest.fixture(scope="module", autouse=True)
def servers():
    with pytest.MonkeyPatch.context() as patch, store_servers(patch):
        yield


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "here"))


@pytest.fixture(params=SCHEMES)
def store(request) -> Store:
    return new_bucket(request.param)


def copies(store: Store, *keys: str) -> list[Path]:
    """The copies of these objects after a command that is given their addresses."""
    with staging([f"{store.address}/{key}" for key in keys]) as words:
        return [Path(word) for word in words]


def test_what_lies_at_an_address_is_copied_and_what_is_written_there_is_in_the_store(store):
    store.write("in/a.txt", b"hello")
    store.write("in/sub/b.txt", b"x")
    store.write("in-other/c.txt", b"not asked for")
    store.write("out.jsonl", b"1\n")
    store.write("out.jsonl.config.json", b"{}")
    words = [f"{store.address}/in/", f"--output={store.address}/out.jsonl", "--", f"{store.address}/in"]
    with staging(words) as (folder, output, dashes, word):
        own = Path(folder)
        assert (dashes, word) == ("--", f"{store.address}/in")
        assert sorted(str(file.relative_to(own)) for file in own.rglob("*")) == ["a.txt", "sub", "sub/b.txt"]
        assert not mirror_path(f"{store.address}/in-other").exists()
        assert (own / "a.txt").read_bytes() == b"hello"
        (own / "new folder").mkdir()
        (own / "new folder" / "ü #%?.txt").write_text("n", encoding="utf-8")
        (own / ".hidden").write_text("no")
        rows = Path(output.removeprefix("--output="))
        assert rows.with_name("out.jsonl.config.json").read_bytes() == b"{}"
        with rows.open("a") as file:
            file.write("2\n")
    assert store.names() == [
        "in-other/c.txt", "in/a.txt", "in/new folder/ü #%?.txt", "in/sub/b.txt", "out.jsonl", "out.jsonl.config.json",
    ]  # fmt: skip
    assert store.read("out.jsonl") == b"1\n2\n"


def test_only_what_differs_travels(store, monkeypatch):
    store.write("in/a.txt", b"hello")
    store.write("in/b.txt", b"there")
    copies(store, "in")
    store.write("in/b.txt", b"later")
    got: list[str] = []
    put: list[str] = []
    get, put_file = stores.get_files, stores.put_file
    monkeypatch.setattr(stores, "get_files", lambda where, files: (got.extend(files), get(where, files)))
    monkeypatch.setattr(stores, "put_file", lambda where, file: (put.append(where.key), put_file(where, file))[1])
    [own] = copies(store, "in")
    assert (own / "b.txt").read_bytes() == b"later"
    assert (got, put) == (["in/b.txt"], [])
    (own / "a.txt").write_bytes(b"mine")
    copies(store, "in")  # what this machine wrote last is newer than the store
    assert (got, put) == (["in/b.txt"], ["in/a.txt"])
    assert store.read("in/a.txt") == b"mine"


def test_where_another_machine_has_written_the_store_is_right(store, tmp_path):
    store.write("in/a.txt", b"hello")
    store.write("in/gone.txt", b"hello")
    [own] = copies(store, "in")
    (own / "a.txt").write_bytes(b"never written to the store")
    (own / "rest.txt").write_bytes(b"of a killed command")
    with machine(tmp_path / "there"), staging([f"{store.address}/in"]) as [there]:
        Path(there, "a.txt").write_bytes(b"theirs")
    store.remove("in/gone.txt")
    copies(store, "in")
    assert {file.name: file.read_bytes() for file in own.iterdir()} == {"a.txt": b"theirs"}
    store.remove("in")
    copies(store, "in")
    assert not own.exists()
    assert store.names() == []


def test_copies_are_for_their_owner_only(store, tmp_path):
    copies(store, "x")
    assert (tmp_path / "here").stat().st_mode & 0o777 == 0o700


def test_a_store_that_holds_nothing_yet_takes_all(store):
    with staging([f"{store.address}/deep/run"]) as [run]:
        assert not Path(run).exists()
        Path(run).mkdir(parents=True)
        (Path(run) / "a").write_bytes(b"")
    assert store.names() == ["deep/run/a"]


def test_what_a_failed_command_wrote_is_in_the_store(store):
    def fail(arguments):
        Path(arguments[0]).write_text("a row\n")
        raise UserError(f"{arguments[0]}: line 2 is bad")

    with pytest.raises(SystemExit) as ended:
        run_cli(fail, [f"{store.address}/rows.jsonl"])
    assert ended.value.code == 2
    assert store.read("rows.jsonl") == b"a row\n"


def test_messages_name_the_address(store, capsys):
    def fail(arguments):
        raise UserError(f"{arguments[0]}/x: is bad")

    with pytest.raises(SystemExit):
        run_cli(fail, [f"{store.address}/run"])
    assert capsys.readouterr().err == f"error: {store.address}/run/x: is bad\n"


def checkpoint(run: Path, step: int, kind: str = "latest") -> Path:
    """As Orbax leaves one."""
    folder = run / "checkpoints" / kind / str(step)
    folder.mkdir(parents=True)
    (folder / "array").write_bytes(b"numbers")
    (folder / "_CHECKPOINT_METADATA").write_bytes(b"{}")
    return folder


def test_checkpoints_of_s3_are_whole_and_follow_the_logs(monkeypatch, tmp_path):
    store = new_bucket("s3")
    put: list[str] = []
    put_file = stores.put_file
    monkeypatch.setattr(stores, "put_file", lambda where, file: (put.append(where.key), put_file(where, file))[1])
    with staging([f"{store.address}/run"]) as [run]:
        checkpoint(Path(run), 10)
        checkpoint(Path(run), 20)
        unfinished = Path(run, "checkpoints", "latest", "30.orbax-checkpoint-tmp")
        unfinished.mkdir()
        (unfinished / "array").write_bytes(b"num")
        (Path(run) / "metrics.jsonl").write_bytes(b"{}\n")
    kept = [f"run/checkpoints/latest/{step}/{name}" for step in (10, 20) for name in ("_CHECKPOINT_METADATA", "array")]
    assert store.names() == [*kept, "run/metrics.jsonl"]
    assert put[0] == "run/metrics.jsonl"
    assert all(put.index(f"{step}/array") < put.index(f"{step}/_CHECKPOINT_METADATA") for step in map(Path, kept[:0]))
    assert [key.rpartition("/")[2] for key in put[1:]] == ["array", "_CHECKPOINT_METADATA"] * 2
    store.write("run/checkpoints/latest/40/array", b"a machine died before it was whole")
    with machine(tmp_path / "there"), staging([f"{store.address}/run"]) as [run]:
        latest = Path(run, "checkpoints", "latest")
        assert sorted(step.name for step in latest.iterdir()) == ["10", "20"]
        (latest / "10" / "array").unlink()
        (latest / "10" / "_CHECKPOINT_METADATA").unlink()
        (latest / "10").rmdir()
    assert [name for name in store.names() if "/10/" in name] == []


def test_checkpoints_of_cloud_storage_have_no_copy():
    store = new_bucket("gs")
    store.write("run/checkpoints/latest/10/_CHECKPOINT_METADATA", b"{}")
    store.write("run/config.json", b"{}")
    store.write("run/checkpoints/README", b"not of Orbax")
    [run] = copies(store, "run")
    assert sorted(file.name for file in run.rglob("*") if file.is_file()) == ["README", "config.json"]
    store.remove("run/checkpoints/latest")
    checkpoint(run, 20)
    copies(store, "run")
    assert [name for name in store.names() if "latest" in name] == []


def test_a_cleared_disk_removes_nothing_from_the_store():
    store = new_bucket("s3")
    with staging([f"{store.address}/run"]) as [run]:
        folder = checkpoint(Path(run), 10)
        stores._push(checkpoints=True)
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    assert len(store.names()) == 2


def test_one_machine_at_a_time_writes(store, tmp_path, monkeypatch):
    monkeypatch.setattr("common.io.lock_holder._machine", lambda: ("here", "1"))
    with staging([f"{store.address}/run", f"{store.address}/x.jsonl"]) as [run, rows]:
        with locked_directory(Path(run)), locked_file(Path(rows)):
            assert [name for name in store.names() if "lock" in name] == [".x.jsonl.lock", "run/.lock"]
            monkeypatch.setattr("common.io.lock_holder._machine", lambda: ("there", "1"))
            for key, lock in (("run", locked_directory), ("x.jsonl", locked_file)):
                other = tmp_path / "there" / store.address.replace("://", "/") / key
                other.parent.mkdir(parents=True, exist_ok=True)
                with machine(tmp_path / "there"), pytest.raises(UserError) as refused, lock(other):
                    pass
                assert str(refused.value).startswith(f"{store.address}/{key}: ")
                assert "is being written by process" in str(refused.value)
    assert [name for name in store.names() if "lock" in name] == []


def as_on(monkeypatch: pytest.MonkeyPatch, machine: str) -> None:
    monkeypatch.setattr("common.io.lock_holder._machine", lambda: (machine, "1"))


@pytest.mark.parametrize("died_of_it", [0, 1, 2])
def test_a_machine_that_died_is_succeeded_by_one(store, monkeypatch, died_of_it):
    """Also where some died while they took over."""
    lock = split_address(f"{store.address}/run/.lock")
    as_on(monkeypatch, "there")
    dead = store_locks._acquire(lock)
    as_on(monkeypatch, "here")
    with pytest.raises(UserError, match="last sign of life"):
        store_locks._acquire(lock)
    as_on(monkeypatch, "there")
    for _ in range(died_of_it):
        next_dead = this_process()
        put_bytes(split_address(f"{lock}.{dead.token}.taken"), json.dumps(dataclasses.asdict(next_dead)).encode())
        dead = next_dead
    as_on(monkeypatch, "here")
    found: list[Holder | UserError] = []
    begin = threading.Barrier(6)
    now = store_locks._store_time
    monkeypatch.setattr(store_locks, "_store_time", lambda lock, own: now(lock, own) + 1000)

    def try_it() -> None:
        begin.wait()
        try:
            found.append(store_locks._acquire(lock))
        except UserError as error:
            found.append(error)

    threads = [threading.Thread(target=try_it) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [holder] = [one for one in found if isinstance(one, Holder)]
    assert store_locks._read(lock) == holder
    assert all("is being written by" in str(one) for one in found if one is not holder)
    assert [name for name in store.names() if "lock" in name] == ["run/.lock"]


def test_a_lock_that_was_taken_over_ends_its_process(store, monkeypatch):
    lock = split_address(f"{store.address}/run/.lock")
    monkeypatch.setattr(store_locks, "BEAT_SECONDS", 0.01)
    ended = threading.Event()
    said: list[str] = []
    monkeypatch.setattr(store_locks, "end_now", lambda code, line: (said.append(f"{code} {line}"), ended.set()))
    own = store_locks._acquire(lock)
    beaten = threading.Event()
    put = store_locks.put_bytes
    monkeypatch.setattr(store_locks, "put_bytes", lambda *words: (put(*words), beaten.set()))
    keeper = threading.Thread(target=store_locks._keep, args=(lock, own, ended))
    keeper.start()
    assert beaten.wait(60)
    while not ended.wait(0.05):  # a beat that is under way writes over it
        put_bytes(lock, json.dumps(dataclasses.asdict(this_process())).encode())
    keeper.join(60)
    assert said[0].startswith(f"2 {lock}: this machine was not heard of for too long, and process ")


@pytest.fixture
def refusing(monkeypatch):
    """What every writing fails with first, until it is empty."""
    problems = [PermissionError("Access Denied"), ConnectionError("reset by peer")]

    for scheme in SCHEMES:
        system = store_objects.file_system(scheme)

        def put_file(*words: str, put=system.put_file) -> None:
            if problems:
                raise problems[0]
            put(*words)

        monkeypatch.setattr(system, "put_file", put_file)
    return problems


def test_what_the_store_refuses_is_kept_and_written_by_the_next_command(store, refusing, capsys):
    def write(arguments):
        Path(arguments[0]).write_text("a row\n")

    for said in ("access is denied (Access Denied)", "the store failed (reset by peer)"):
        with pytest.raises(SystemExit) as ended:
            run_cli(write, [f"{store.address}/rows.jsonl"])
        assert ended.value.code == 2
        line = capsys.readouterr().err
        assert line.startswith(f"error: {store.address}/rows.jsonl: {said}")
        assert line.endswith("what is not there yet is kept on this machine: start the same command again\n")
        assert line.count("\n") == 1
        assert store.names() == []
        del refusing[0]
    copies(store, "rows.jsonl")
    assert store.read("rows.jsonl") == b"a row\n"


@pytest.fixture
def silent():
    """The port of a server that takes requests and never answers."""
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def take() -> None:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(server.accept()[0])

        threading.Thread(target=take, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    for connection in taken:
        connection.close()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_store_that_does_not_answer_is_not_waited_for_forever(scheme, silent, monkeypatch, capsys):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent}")
    monkeypatch.setattr("gcsfs.core.GCSFileSystem._location", f"http://127.0.0.1:{silent}", raising=False)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{silent}")
    monkeypatch.setattr(store_objects, "ANSWER_SECONDS", 0.2)

    async def at_once(seconds: float, *_: object) -> None:
        """No pauses between the attempts."""

    for package in ("gcsfs.retry", "s3fs.core"):
        quick = types.SimpleNamespace(**vars(asyncio) | {"sleep": at_once})
        monkeypatch.setattr(f"{package}.asyncio", quick)
    store_objects.file_system.cache_clear()
    try:
        with pytest.raises(SystemExit) as ended:
            run_cli(lambda _: pytest.fail("the command ran"), [f"{scheme}://bucket/run"])
    finally:
        store_objects.file_system.cache_clear()
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: {scheme}://bucket/run: the store failed (")
    assert line.count("\n") == 1


def test_a_bucket_that_is_not_there_and_a_disk_that_is_full_are_one_line(store, monkeypatch, capsys, tmp_path):
    store.write("in/a", b"12345")
    missing = f"{store.address}x/run"
    with pytest.raises(SystemExit):
        run_cli(lambda words: Path(words[0]).write_text("x") and 0, [missing])
    assert capsys.readouterr().err.startswith(f"error: {missing}: ")
    usage = shutil.disk_usage(tmp_path)._replace(free=stores.ROOM_BYTES + 4)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(SystemExit) as ended:
        run_cli(lambda _: pytest.fail("the command ran"), [f"{store.address}/in"])
    assert ended.value.code == 2
    assert f"{VARIABLE} to a folder on a larger disk, or mount the bucket" in capsys.readouterr().err


def test_without_its_package_an_address_names_the_extra(monkeypatch):
    store_objects.file_system.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    for scheme, package in store_objects.PACKAGES.items():
        with pytest.raises(UserError, match=rf"needs the package {package}; pip install 'medreport-jax\[stores\]'"):
            store_objects.find_object(store_objects.Address(scheme, "bucket", "x"))
