"""The data directory: one process at a time, only ours, and `clean` never said wrongly."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from dynamo.errors import ConfigError, StorageFailed
from dynamo.storage.buffer import WriteBuffer
from dynamo.storage.data_directory import META_CLEAN_STOP, META_FORMAT, DataDirectory
from dynamo.storage.engine import Group
from dynamo.storage.lmdb import LmdbEngine
from dynamo.storage.memory import MemoryEngine

Start = Callable[..., "subprocess.Popen[str]"]

HOLDER = """if True:
    import sys
    from dynamo.storage.data_directory import DataDirectory
    directory = DataDirectory(sys.argv[1])
    print(directory.clean, flush=True)
    sys.stdin.read()
    directory.close(clean=True)
    """


def started(child: subprocess.Popen[str]) -> bool:
    """Wait until the child holds the directory; whether it found it clean."""
    assert child.stdout is not None
    return {"True\n": True, "False\n": False}[child.stdout.readline()]


def stop(path: Path, clean: bool) -> bool:
    """Open and close once; whether it was found clean."""
    directory = DataDirectory(path)
    found = directory.clean
    directory.engine.commit(Group(1, meta={b"lease": os.urandom(8)}))
    directory.close(clean)
    return found


# --- clean and unclean ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["synced", "relaxed"])
def test_clean_only_after_a_clean_stop_and_only_once(tmp_path: Path, durability: str) -> None:
    def opened(clean_stop: bool) -> bool:
        directory = DataDirectory(tmp_path / "data", durability)
        found = directory.clean
        assert directory.engine.read_meta(META_CLEAN_STOP) is None  # consumed before anyone can act on it
        directory.close(clean_stop)
        return found

    assert opened(clean_stop=True) is False  # new
    assert opened(clean_stop=True) is True
    assert opened(clean_stop=False) is True
    assert opened(clean_stop=False) is False
    assert opened(clean_stop=True) is False
    assert opened(clean_stop=True) is True


def test_the_marker_is_written_and_consumed_by_synced_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop(tmp_path, clean=True)
    groups: list[Group] = []
    commit = LmdbEngine.commit

    def watched(engine: LmdbEngine, group: Group, entering: Callable[[], None] | None = None) -> None:
        groups.append(group)
        commit(engine, group, entering)

    monkeypatch.setattr(LmdbEngine, "commit", watched)
    directory = DataDirectory(tmp_path, "relaxed")
    assert directory.clean
    directory.close(clean=True)
    assert [list(group.meta) for group in groups] == [[META_CLEAN_STOP], [META_CLEAN_STOP]]
    assert groups[0].meta[META_CLEAN_STOP] is None and groups[1].meta[META_CLEAN_STOP] is not None
    assert all(group.synced for group in groups)


def test_a_killed_process_leaves_no_marker(tmp_path: Path, start_child: Start) -> None:
    stop(tmp_path, clean=True)
    child = start_child(HOLDER, tmp_path)
    assert started(child) is True
    child.kill()
    child.wait()
    assert stop(tmp_path, clean=True) is False
    assert stop(tmp_path, clean=True) is True


def test_a_copied_directory_is_not_clean_but_the_original_and_a_moved_one_are(tmp_path: Path) -> None:
    stop(tmp_path / "original", clean=True)
    shutil.copytree(tmp_path / "original", tmp_path / "copy")
    (tmp_path / "original").rename(tmp_path / "moved")
    assert stop(tmp_path / "copy", clean=True) is False
    assert stop(tmp_path / "moved", clean=True) is True


@pytest.mark.parametrize("names", [["data.mdb"], ["data.mdb", "LOCK", "lock.mdb"]])
def test_a_backup_written_over_the_files_in_place_is_not_clean(tmp_path: Path, names: list[str]) -> None:
    live, backup = tmp_path / "live", tmp_path / "backup"
    stop(live, clean=True)
    shutil.copytree(live, backup)
    assert stop(live, clean=True) is True
    data = live / "data.mdb"
    before = data.stat()
    while data.stat().st_ctime_ns == before.st_ctime_ns:  # the clock of the file system ticks in milliseconds
        for name in names:
            (live / name).write_bytes((backup / name).read_bytes())
    os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (data.stat().st_ino, data.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert stop(live, clean=True) is False
    assert stop(live, clean=True) is True


def test_lock_without_the_marker_is_not_clean(tmp_path: Path) -> None:
    # A power cut may bring back what LOCK said before; the marker was consumed by a synced commit.
    stop(tmp_path, clean=False)
    data = (tmp_path / "data.mdb").stat()
    (tmp_path / "LOCK").write_text(f"stopped {data.st_dev} {data.st_ino} {data.st_ctime_ns}\n")
    assert stop(tmp_path, clean=False) is False


def test_the_marker_of_another_file_is_not_clean_whatever_lock_says(tmp_path: Path) -> None:
    stop(tmp_path / "original", clean=True)
    shutil.copytree(tmp_path / "original", tmp_path / "copy")
    data = (tmp_path / "copy" / "data.mdb").stat()
    (tmp_path / "copy" / "LOCK").write_text(f"stopped {data.st_dev} {data.st_ino} {data.st_ctime_ns}\n")
    assert stop(tmp_path / "copy", clean=False) is False


def test_a_marker_of_another_file_is_consumed_too(tmp_path: Path) -> None:
    stop(tmp_path / "original", clean=True)
    shutil.copytree(tmp_path / "original", tmp_path / "copy")
    stop(tmp_path / "copy", clean=False)
    engine = LmdbEngine(str(tmp_path / "copy"), synced=True)
    assert engine.read_meta(META_CLEAN_STOP) is None
    engine.close()


def test_a_clean_stop_that_cannot_be_written_is_told_and_not_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = DataDirectory(tmp_path)

    def fail(group: Group) -> None:
        raise StorageFailed("no")

    monkeypatch.setattr(directory.engine, "commit", fail)
    with pytest.raises(StorageFailed):
        directory.close(clean=True)
    directory.close(clean=True)  # closed already: nothing happens
    assert stop(tmp_path, clean=True) is False


# --- in use -----------------------------------------------------------------------------------------------------------


def test_in_use_by_another_process_until_it_ends(tmp_path: Path, start_child: Start) -> None:
    child = start_child(HOLDER, tmp_path)
    started(child)
    with pytest.raises(ConfigError, match=f"{tmp_path} is in use by pid {child.pid};"):
        DataDirectory(tmp_path)
    child.communicate("")  # the end of its input: it closes, cleanly
    assert stop(tmp_path, clean=True) is True


def test_in_use_in_this_process(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path)
    with pytest.raises(ConfigError, match=f"{tmp_path} is in use in this process already;"):
        DataDirectory(tmp_path)
    (tmp_path.parent / "link").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="is in use in this process already;"):
        DataDirectory(tmp_path.parent / "link")
    directory.close(clean=True)
    assert stop(tmp_path, clean=True) is True


def test_a_refused_directory_is_unlocked_again(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"garbage" * 1000)
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"data\.mdb"):
            DataDirectory(tmp_path)
    (tmp_path / "data.mdb").unlink()
    assert stop(tmp_path, clean=True) is False


# --- whole or not -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("damage", ["empty", "absent", "cut"])
def test_a_lost_or_cut_data_file_is_refused_and_nothing_is_put_in_its_place(tmp_path: Path, damage: str, clean: bool) -> None:
    directory = DataDirectory(tmp_path)
    directory.engine.commit(Group(1, objects={b"%d" % number: bytes(1000) for number in range(100)}))
    directory.close(clean)
    data = tmp_path / "data.mdb"
    whole = data.read_bytes()
    data.write_bytes(b"" if damage == "empty" else whole[: len(whole) // 2])
    if damage == "absent":
        data.unlink()
    for _ in range(2):
        with pytest.raises(ConfigError, match=f"{data} was cut off: its last" if damage == "cut" else f"{data} is absent or empty"):
            DataDirectory(tmp_path)
    assert data.exists() == (damage != "absent") and (damage == "absent" or len(data.read_bytes()) == (len(whole) // 2 if damage == "cut" else 0))
    data.write_bytes(whole)
    stop(tmp_path, clean=True)


@pytest.mark.parametrize("left", [None, b""])
def test_a_first_start_that_was_killed_half_way_is_begun_again(tmp_path: Path, left: bytes | None) -> None:
    # The lock is taken, and the data file not made yet, or made and not written.
    (tmp_path / "LOCK").write_text(f"pid {os.getpid()}, opening\n")
    if left is not None:
        (tmp_path / "data.mdb").write_bytes(left)
    assert stop(tmp_path, clean=True) is False
    assert stop(tmp_path, clean=True) is True


def test_a_start_that_is_killed_at_any_moment_leaves_a_directory_that_opens(tmp_path: Path, start_child: Start) -> None:
    for tenths in range(12):
        path = tmp_path / str(tenths)
        child = start_child(HOLDER, path)
        time.sleep(tenths / 50)
        child.kill()
        child.wait()
        stop(path, clean=True)


# --- ours or not ------------------------------------------------------------------------------------------------------


def test_a_missing_directory_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "data"
    stop(path, clean=True)
    assert path.stat().st_mode & 0o777 == 0o700
    assert {entry.name for entry in path.iterdir()} == {"LOCK", "data.mdb", "lock.mdb"}
    assert all(entry.stat().st_mode & 0o777 == 0o600 for entry in path.iterdir())


def test_a_relative_path_and_a_mount_point_are_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "lost+found").mkdir(parents=True)
    directory = DataDirectory("data")
    directory.close(clean=True)
    assert (tmp_path / "data" / "data.mdb").exists()


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="is not a directory"):
            DataDirectory(path)


@pytest.mark.parametrize("path", ["", "a\0b", b"", b"a\0b"])
def test_what_can_be_no_path_is_refused(path: str | bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="is not the path of a directory"):
        DataDirectory(path)
    assert not list(tmp_path.iterdir())


def test_a_path_may_be_bytes(tmp_path: Path) -> None:
    stop(tmp_path / "data", clean=True)
    directory = DataDirectory(os.fsencode(tmp_path / "data"))
    assert directory.clean and directory.path == str(tmp_path / "data")
    directory.close(clean=True)
    with pytest.raises(TypeError):
        DataDirectory(5)  # type: ignore[arg-type]


def test_foreign_files_are_not_mixed_with(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"not empty \('thesis.txt'"):
        DataDirectory(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_lmdb_files_of_another_program_are_refused(tmp_path: Path) -> None:
    other = lmdb.open(str(tmp_path), max_dbs=1)
    other.open_db(b"theirs")
    other.close()
    with pytest.raises(ConfigError, match="another program"):
        DataDirectory(tmp_path)


def test_another_format_is_refused_and_named(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path)
    assert directory.engine.read_meta(META_FORMAT) == b"2"
    directory.engine.commit(Group(1, meta={META_FORMAT: b"3"}))
    directory.close(clean=True)
    with pytest.raises(ConfigError, match=f"{tmp_path} has format 3, this dynamo reads format 2"):
        DataDirectory(tmp_path)


def test_rows_without_a_format_are_refused(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path)
    directory.engine.commit(Group(1, objects={b"k": b"v"}, meta={META_FORMAT: None}))
    directory.close(clean=False)
    with pytest.raises(ConfigError, match="no format number"):
        DataDirectory(tmp_path)


def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path, start_child: Start) -> None:
    (tmp_path / "closed").mkdir(mode=0o555)
    tmp_path.chmod(0o755)
    # Root may write anywhere, so the child becomes somebody else. A relative path needs no way through the parents.
    child = start_child(
        """if True:
        import os, sys
        from dynamo.errors import ConfigError
        from dynamo.storage.data_directory import DataDirectory
        os.chdir(sys.argv[1])
        if os.geteuid() == 0:
            os.setegid(65534)
            os.seteuid(65534)
        for path in ("closed", "closed/below"):
            try:
                DataDirectory(path)
            except ConfigError as error:
                print(error)
        """,
        tmp_path,
    )
    output = child.communicate()[0].splitlines()
    assert output == [
        "cannot write closed/LOCK: Permission denied; check the owner and permissions of closed",
        "cannot use closed/below as data directory: Permission denied; check its owner and permissions",
    ]


# --- durability -------------------------------------------------------------------------------------------------------


def test_memory_needs_no_directory(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path / "data", "memory")
    assert isinstance(directory.engine, MemoryEngine) and directory.clean is False
    directory.close(clean=True)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("durability, synced", [("synced", True), ("relaxed", False)])
def test_durability_picks_the_engine(tmp_path: Path, durability: str, synced: bool) -> None:
    directory = DataDirectory(tmp_path, durability)
    assert isinstance(directory.engine, LmdbEngine) and directory.engine.synced is synced
    directory.close(clean=True)


def test_a_buffer_is_over_a_synced_engine_and_flushed_with_the_clean_stop_or_without(tmp_path: Path) -> None:
    for clean in (True, False):
        directory = DataDirectory(tmp_path, "buffered")
        engine = directory.engine
        assert isinstance(engine, WriteBuffer) and isinstance(engine.engine, LmdbEngine) and engine.engine.synced
        engine.commit(Group(1, objects={b"%d" % clean: b"v"}))
        directory.close(clean)
    directory = DataDirectory(tmp_path, "synced")
    assert directory.clean is False and [key for key, _ in directory.engine.scan("objects", b"", None, 9)] == [b"0", b"1"]
    directory.close(clean=True)


def test_an_unknown_durability_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'eventually' is not one of synced, relaxed, buffered, memory"):
        DataDirectory(tmp_path, "eventually")
