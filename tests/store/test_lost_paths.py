"""What happens to the directory under an open store: no write is acknowledged that nobody would find again, and no second writer gets in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import dynamo
import dynamo.storage.buffer
from dynamo.errors import ConfigError, StorageFailed

DURABILITIES = ["synced", "relaxed", "buffered"]
ENVIRON = os.environ | {"PYTHONPATH": str(Path(dynamo.__file__).parent.parent)}


def removed(path: Path) -> Callable[[], object] | None:
    shutil.rmtree(path)
    return None


def emptied(path: Path) -> Callable[[], object] | None:
    for name in os.listdir(path):
        (path / name).unlink()
    return None


def renamed(path: Path) -> Callable[[], object] | None:
    path.rename(path.parent / "elsewhere")
    return lambda: (path.parent / "elsewhere").rename(path)


def replaced_by_a_copy(path: Path) -> Callable[[], object] | None:
    path.rename(path.parent / "elsewhere")
    shutil.copytree(path.parent / "elsewhere", path)

    def back() -> None:
        shutil.rmtree(path)
        (path.parent / "elsewhere").rename(path)

    return back


def file_replaced(path: Path) -> Callable[[], object] | None:
    shutil.copy(path / "data.mdb", path / "copy")
    (path / "copy").rename(path / "data.mdb")
    return None


def link_turned(path: Path) -> Callable[[], object] | None:
    """For a path that is a symbolic link."""
    before = os.readlink(path)
    other = path.parent / "other"
    other.mkdir()
    path.unlink()
    path.symlink_to(other)

    def back() -> None:
        path.unlink()
        path.symlink_to(before)

    return back


HARM = [removed, emptied, renamed, replaced_by_a_copy, file_replaced, link_turned]


@pytest.fixture
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "data"
    if "link_turned" in request.node.name:
        (tmp_path / "real").mkdir()
        path.symlink_to(tmp_path / "real")
    return path


@pytest.mark.parametrize(
    ("durability", "harm"), [("synced", harm) for harm in HARM] + [(durability, harm) for durability in DURABILITIES[1:] for harm in (removed, renamed)]
)
def test_a_lost_path_is_noticed_before_the_next_acknowledgement(path: Path, durability: str, harm: Callable[[Path], Callable[[], object] | None]) -> None:
    store = dynamo.open(path, durability=durability, timeout=2.0)
    store.set("a", b"1")
    if isinstance(store._directory.engine, dynamo.storage.buffer.WriteBuffer):
        store._directory.engine.flush()
    back = harm(path)
    with pytest.raises(StorageFailed, match=r"data\.mdb") as caught:
        store.set("a", b"2")
    assert caught.value.maybe_applied  # a dot was minted
    for write in (
        lambda: store.put("b", b"2"),
        lambda: store.delete("a", blind=True),
        lambda: store.update("a", lambda values: b"3"),
        lambda: store.__setitem__("a", b"4"),
    ):
        with pytest.raises((StorageFailed, dynamo.Timeout)):
            store._timeout = 0.05
            write()
    assert all(isinstance(outcome, (StorageFailed, dynamo.Timeout)) for outcome in store.set_many({"c": b"5", "d": b"5"}).values())
    assert store.get("a").value == b"1"  # the file is open, and reads of it go on
    assert [result.value for result in store.scan()] == [b"1"]
    store._timeout = 10.0
    if back is None:
        with pytest.raises(StorageFailed, match=r"data\.mdb"):
            store.close()
        store.close()
    else:
        back()
        store.set("a", b"6")
        store.close()
        with dynamo.open(path, durability=durability) as store:
            assert store.get("a").value == b"6"


@pytest.mark.parametrize("durability", ["synced", "relaxed"])
def test_what_is_refused_for_a_lost_path_is_not_written_into_the_lost_file(tmp_path: Path, durability: str) -> None:
    with dynamo.open(tmp_path / "data", durability=durability, timeout=2.0) as store:
        store.set("a", b"1")
        os.rename(tmp_path / "data", tmp_path / "elsewhere")
        with pytest.raises(StorageFailed):
            store.set("a", b"2")
        os.rename(tmp_path / "elsewhere", tmp_path / "data")
    with dynamo.open(tmp_path / "data", durability=durability) as store:
        assert store.get("a").value == b"1"


@pytest.mark.parametrize("durability", DURABILITIES)
def test_what_is_removed_during_a_commit_is_not_acknowledged(tmp_path: Path, durability: str) -> None:
    store = dynamo.open(tmp_path / "data", durability=durability, timeout=2.0)
    store.set("a", b"1")
    engine = store._directory.engine
    lmdb_engine = engine.engine if durability == "buffered" else engine  # type: ignore[attr-defined]
    environment = lmdb_engine._environment

    class Removing:
        def __getattr__(self, name: str) -> object:
            return getattr(environment, name)

        def begin(self, *arguments: object, **options: object) -> object:
            if options.get("write"):
                shutil.rmtree(tmp_path / "data", ignore_errors=True)
            return environment.begin(*arguments, **options)

    lmdb_engine._environment = Removing()
    with pytest.raises(StorageFailed):
        store.set("a", b"2")
        engine.flush()  # type: ignore[attr-defined]
    with pytest.raises(StorageFailed):
        store.close()


def test_a_file_that_was_cut_off_in_place_takes_no_more(tmp_path: Path) -> None:
    from dynamo.storage.guard import Guard

    (tmp_path / "data.mdb").write_bytes(bytes(8192))
    guard = Guard(str(tmp_path / "data.mdb"))
    guard.check()
    os.truncate(tmp_path / "data.mdb", 4096)
    with pytest.raises(StorageFailed, match="cut off"):
        guard.check()
    guard.close()
    guard.close()


def test_another_working_directory_is_no_alarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "below").mkdir()
    with dynamo.open("data") as store:
        store.set("a", b"1")
        monkeypatch.chdir(tmp_path / "below")
        store.set("a", b"2")
    monkeypatch.chdir(tmp_path)
    with dynamo.open("data") as store:
        assert store.get("a").value == b"2"


# --- a second writer --------------------------------------------------------------------------------------------------


def hard_link(path: Path) -> Path:
    other = path.parent / "second"
    other.mkdir()
    os.link(path / "data.mdb", other / "data.mdb")
    return other


def all_hard_links(path: Path) -> Path:
    other = hard_link(path)
    os.link(path / "lock.mdb", other / "lock.mdb")
    return other


def lock_removed(path: Path) -> Path:
    (path / "LOCK").unlink()
    return path


def lock_made_anew(path: Path) -> Path:
    (path / "LOCK").unlink()
    (path / "LOCK").write_text("")
    return path


def locks_removed(path: Path) -> Path:
    (path / "lock.mdb").unlink()
    return lock_removed(path)


def linked(path: Path) -> Path:
    (path.parent / "link").symlink_to(path)
    return path.parent / "link"


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Path]:
    with dynamo.open(tmp_path / "data") as store:
        store.set("a", b"1")
        yield tmp_path / "data"
        store.set("a", b"2")
        assert store.get("a").value == b"2"


@pytest.mark.parametrize("way", [hard_link, all_hard_links, lock_removed, lock_made_anew, locks_removed, linked])
def test_no_second_writer_gets_in(opened: Path, way: Callable[[Path], Path]) -> None:
    other = way(opened)
    for durability in DURABILITIES:
        with pytest.raises(ConfigError, match="in use"):
            dynamo.open(other, durability=durability)
    program = "import sys, dynamo\ntry:\n    dynamo.open(sys.argv[1])\nexcept dynamo.ConfigError as error:\n    print(error)"
    done = subprocess.run([sys.executable, "-c", program, str(other)], env=ENVIRON, capture_output=True, text=True, timeout=30, check=False)
    assert "in use" in done.stdout, done


def test_a_forked_child_does_not_keep_the_file(tmp_path: Path) -> None:
    program = """if True:
        import os, sys, time, dynamo
        store = dynamo.open(sys.argv[1])
        store.set("a", b"1")
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.close(writer)
            print("ready", flush=True)  # the child: it has let go of its copies
            os.read(reader, 1)
            time.sleep(5)
            os._exit(0)
        sys.stdin.read()
        os._exit(0)
    """
    child = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "data")], env=ENVIRON, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdin is not None
    try:
        assert child.stdout.readline() == "ready\n"
        child.stdin.close()
        child.wait(10)
        with dynamo.open(tmp_path / "data") as store:
            assert store.get("a").value == b"1"
    finally:
        child.kill()
        child.stdout.close()


def test_a_refused_start_leaves_the_file_unlocked(tmp_path: Path) -> None:
    with dynamo.open(tmp_path / "data") as store:
        store.set("a", b"1")
    data = tmp_path / "data" / "data.mdb"
    whole = data.read_bytes()
    data.write_bytes(b"nonsense" * 1000)
    with pytest.raises(ConfigError):
        dynamo.open(tmp_path / "data")
    data.write_bytes(whole)
    with dynamo.open(tmp_path / "data") as store:
        assert store.get("a").value == b"1"
