"""The LMDB engine: snapshots, switches, full disks, damage on disk, and files that are not ours."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

from dynamo._core import record as records
from dynamo.errors import ConfigError, CorruptRecord, StorageFailed, StorageFull
from dynamo.model.key import row_key
from dynamo.model.row import OWNED, Row, decode_row, encode_row
from dynamo.storage.data_directory import DataDirectory
from dynamo.storage.engine import Group
from dynamo.storage.lmdb import MAP_BYTES, LmdbEngine

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[LmdbEngine]:
    engine = LmdbEngine(str(tmp_path), synced=False)
    yield engine
    engine.close()


def environment_of(engine: LmdbEngine) -> Any:
    return engine._environment


# --- opening ----------------------------------------------------------------------------------------------------------


def test_rows_are_there_after_reopening(tmp_path: Path) -> None:
    first = LmdbEngine(str(tmp_path), synced=True)
    first.commit(Group(1, objects={b"k": b"object"}, hints={b"k": b"hint"}, meta={b"k": b"meta"}))
    first.close()
    second = LmdbEngine(str(tmp_path), synced=False)
    assert (second.read(b"k"), second.read_meta(b"k")) == (b"object", b"meta")
    assert second.scan("hints", b"", None, 9) == [(b"k", b"hint")]
    second.close()


@pytest.mark.parametrize("synced", [True, False])
def test_the_switches_that_lose_data_are_off(tmp_path: Path, synced: bool) -> None:
    engine = LmdbEngine(str(tmp_path), synced)
    flags = environment_of(engine).flags()
    assert (flags["sync"], flags["metasync"], flags["writemap"], flags["map_async"]) == (synced, True, False, False)
    assert flags["lock"] and flags["meminit"]
    assert environment_of(engine).lib_version()[:2] == (0, 9)
    engine.close()


def test_the_map_is_large_and_the_file_is_small(tmp_path: Path, engine: LmdbEngine) -> None:
    data = tmp_path / "data.mdb"
    assert environment_of(engine).info()["map_size"] == MAP_BYTES == 1 << 40
    assert data.stat().st_size < 64 << 10
    assert data.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the address space with RLIMIT_AS")
def test_a_small_address_space_gets_a_smaller_map(tmp_path: Path, start_child: Start) -> None:
    child = start_child(
        """if True:
        import resource, sys
        from dynamo.storage.lmdb import LmdbEngine
        from dynamo.storage.engine import Group
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
        engine = LmdbEngine(sys.argv[1], True)
        engine.commit(Group(1, objects={b"k": b"v"}))
        print(engine.read(b"k"), engine._environment.info()["map_size"])
        """,
        tmp_path,
    )
    assert child.communicate()[0].split() == ["b'v'", str(4 << 30)]


def test_files_that_are_not_ours_are_refused_and_left_alone(tmp_path: Path) -> None:
    other = lmdb.open(str(tmp_path), lib_version=0)
    with other.begin(write=True) as transaction:
        transaction.put(b"theirs", b"1")
    other.close()
    before = (tmp_path / "data.mdb").read_bytes()
    with pytest.raises(ConfigError, match="another program"):
        LmdbEngine(str(tmp_path), synced=True)
    assert (tmp_path / "data.mdb").read_bytes() == before


def test_garbage_and_the_other_lmdb_format_are_refused(tmp_path: Path) -> None:
    (tmp_path / "garbage").mkdir()
    (tmp_path / "garbage" / "data.mdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(ConfigError, match="garbage"):
        LmdbEngine(str(tmp_path / "garbage"), synced=True)
    lmdb.open(str(tmp_path / "newer"), lib_version=1).close()
    with pytest.raises(ConfigError, match="newer"):
        LmdbEngine(str(tmp_path / "newer"), synced=True)


def test_one_process_does_not_open_a_file_twice(tmp_path: Path, engine: LmdbEngine) -> None:
    with pytest.raises(ConfigError, match="already open"):
        LmdbEngine(str(tmp_path), synced=True)
    assert engine.read(b"k") is None


# --- reading ----------------------------------------------------------------------------------------------------------


def test_reads_keep_one_snapshot_until_refresh(engine: LmdbEngine) -> None:
    engine.commit(Group(1, objects={b"k": b"1"}))
    assert engine.read(b"k") == b"1"
    engine.commit(Group(2, objects={b"k": b"2", b"l": b"2"}, meta={b"m": b"2"}))
    assert engine.read(b"k") == b"1"
    assert engine.read_meta(b"m") is None
    assert engine.scan("objects", b"", None, 9) == [(b"k", b"1")]
    engine.refresh()
    engine.refresh()
    assert engine.read(b"k") == b"2"
    assert engine.read_meta(b"m") == b"2"


def test_refresh_and_read_take_one_reader_slot_for_ever(engine: LmdbEngine) -> None:
    for number in range(100):
        engine.commit(Group(number, objects={b"k": b"%d" % number}))
        engine.refresh()
        assert engine.read(b"k") == b"%d" % number
        assert len(engine.scan("objects", b"", None, 9)) == 1
    assert len(environment_of(engine).readers().splitlines()) == 2  # the heading and this one


def test_the_reader_of_a_killed_process_is_cleared_though_a_tool_has_the_file_open(tmp_path: Path, start_child: Start) -> None:
    LmdbEngine(str(tmp_path), synced=False).close()
    script = """if True:
        import sys, lmdb
        environment = lmdb.open(sys.argv[1], readonly=True, max_dbs=3, lib_version=0)
        transaction = environment.begin()
        print("open", flush=True)
        sys.stdin.read()
        """
    tool, killed = start_child(script, tmp_path), start_child(script, tmp_path)
    for child in (tool, killed):
        assert child.stdout is not None and child.stdout.readline() == "open\n"
    killed.kill()
    killed.wait()
    engine = LmdbEngine(str(tmp_path), synced=False)
    readers = environment_of(engine).readers()
    engine.close()
    assert f"{tool.pid} " in readers and f"{killed.pid} " not in readers


def test_a_read_error_is_a_value_and_the_next_read_works(engine: LmdbEngine) -> None:
    engine.commit(Group(1, objects={b"k": b"1"}))
    assert isinstance(engine.read(b""), StorageFailed)
    assert engine.read(b"k") == b"1"
    with pytest.raises(StorageFailed):
        engine.read_meta(b"")
    assert engine.read(b"k") == b"1"


def test_a_bad_page_fails_its_own_reads_only(tmp_path: Path) -> None:
    engine = LmdbEngine(str(tmp_path), synced=False)
    engine.commit(Group(1, objects={b"row %03d" % number: bytes(500) for number in range(100)}))
    engine.close()
    data = bytearray((tmp_path / "data.mdb").read_bytes())
    page = data.rindex(b"row 050") // 4096 * 4096
    data[page + 10 : page + 12] = bytes(2)  # the page's flags: neither branch nor leaf
    (tmp_path / "data.mdb").write_bytes(data)
    engine = LmdbEngine(str(tmp_path), synced=False)
    assert engine.read(b"row 000") == bytes(500)
    assert isinstance(engine.read(b"row 050"), StorageFailed)
    assert engine.read(b"row 000") == bytes(500)
    assert len(engine.scan("objects", b"row 070", None, 100)) == 30
    with pytest.raises(StorageFailed):
        engine.commit(Group(2, objects={b"row 000": b"2", b"row 050": b"2"}))
    engine.refresh()
    assert engine.read(b"row 000") == bytes(500)
    engine.close()


def test_a_flipped_bit_on_disk_never_reads_as_a_row(tmp_path: Path) -> None:
    key = row_key(1, b"default", b"alice", bytes(32))
    record = records.put(b"", b"", 7, 1, 1, 1, bytes(16), b"a value that is easy to find", False)
    row = encode_row(key, Row(OWNED, 7, 1, records.digest(b"default\0alice", record, 1), b"", record))
    engine = LmdbEngine(str(tmp_path), synced=False)
    engine.commit(Group(1, objects={key: row}))
    engine.close()
    data = (tmp_path / "data.mdb").read_bytes()
    at = data.rindex(row)
    chance = random.Random(1)
    for bit in chance.sample(range(8 * len(row)), 40):
        damaged = bytearray(data)
        damaged[at + bit // 8] ^= 1 << bit % 8
        (tmp_path / "data.mdb").write_bytes(damaged)
        engine = LmdbEngine(str(tmp_path), synced=False)
        found = engine.read(key)
        engine.close()
        assert isinstance(found, bytes) and found != row
        with pytest.raises(CorruptRecord):
            decode_row(key, found)


# --- writing ----------------------------------------------------------------------------------------------------------


class _Watched:
    """An environment that notes each sync it is asked for."""

    def __init__(self, environment: Any) -> None:
        self.environment = environment
        self.syncs: list[bool] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.environment, name)

    def sync(self, force: bool) -> None:
        self.syncs.append(force)
        self.environment.sync(force)


def test_a_relaxed_engine_syncs_the_groups_that_ask(engine: LmdbEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = _Watched(environment_of(engine))
    monkeypatch.setattr(engine, "_environment", watched)
    engine.commit(Group(1, objects={b"k": b"1"}))
    assert watched.syncs == []
    engine.commit(Group(2, meta={b"lease": b"1"}, synced=True))
    assert watched.syncs == [True]


def test_a_full_map_is_typed_and_reads_and_small_writes_go_on(tmp_path: Path) -> None:
    engine = LmdbEngine(str(tmp_path), synced=False, map_bytes=1 << 20)
    expected: dict[bytes, bytes] = {}
    chance = random.Random(1)
    with pytest.raises(StorageFull):
        for number in range(10_000):
            group = {chance.randbytes(12): bytes(500) for _ in range(4)}
            engine.commit(Group(number, objects={**group}, meta={b"last": b"%d" % number}))
            engine.refresh()
            expected |= group
    assert len(expected) > 100
    assert dict(engine.scan("objects", b"", None, 10_000)) == expected
    assert all(engine.read(key) == value for key, value in expected.items())
    last = engine.read_meta(b"last")
    # Reads go on, and so do the writes that free room or keep the store alive.
    for number in range(20):
        gone = expected.popitem()[0]
        engine.commit(Group(number, objects={gone: None}))
        engine.commit(Group(number, meta={b"lease": b"%d" % number}))
        engine.refresh()
        assert engine.read(gone) is None
    assert (engine.read_meta(b"last"), engine.read_meta(b"lease")) == (last, b"19")
    engine.commit(Group(1, objects={b"new": bytes(500)}))
    engine.refresh()
    assert dict(engine.scan("objects", b"", None, 10_000)) == {**expected, b"new": bytes(500)}
    engine.close()


def test_a_group_larger_than_the_room_left_leaves_nothing(tmp_path: Path) -> None:
    engine = LmdbEngine(str(tmp_path), synced=True, map_bytes=1 << 20)
    engine.commit(Group(1, objects={b"a": b"1", b"b": b"1"}))
    with pytest.raises(StorageFull):
        engine.commit(Group(2, objects={b"a": b"2", b"b": None, b"c": bytes(2 << 20)}, meta={b"m": b"2"}))
    engine.refresh()
    assert engine.scan("objects", b"", None, 9) == [(b"a", b"1"), (b"b", b"1")]
    assert engine.read_meta(b"m") is None
    engine.commit(Group(3, objects={b"a": b"3"}))
    engine.close()


# A file that may grow no further is what a full disk looks like to LMDB: a write that stops short (which it calls an
# I/O error) where the limit falls inside a page, an error where it falls between two.
@pytest.mark.parametrize("limit", [1 << 20, (1 << 20) + 1000])
def test_a_full_disk_is_typed_and_reads_and_small_writes_go_on(tmp_path: Path, start_child: Start, limit: int) -> None:
    child = start_child(
        """if True:
        import random, resource, sys
        from dynamo.errors import DynamoError
        from dynamo.storage.engine import Group
        from dynamo.storage.lmdb import LmdbEngine
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
        engine = LmdbEngine(sys.argv[1], True)
        chance, number = random.Random(1), 0
        try:
            while True:
                engine.commit(Group(number, objects={chance.randbytes(12): bytes(1000) for row in range(8)}))
                number += 1
        except DynamoError as error:
            print(type(error).__name__)
        engine.refresh()
        rows = engine.scan("objects", b"", None, 10_000)
        print(len(rows) == 8 * number > 100, all(engine.read(key) == value for key, value in rows))
        for key, _ in rows[:8]:
            engine.commit(Group(number, objects={key: None}))
            engine.refresh()
            assert engine.read(key) is None
        engine.commit(Group(9, objects={b"new": b"v"}, meta={b"lease": b"1"}))
        engine.refresh()
        print(len(engine.scan("objects", b"", None, 10_000)) == len(rows) - 7, engine.read(b"new"))
        """,
        tmp_path,
        limit,
    )
    assert child.communicate()[0].split() == ["StorageFull", "True", "True", "True", "b'v'"]
    assert {path.name for path in tmp_path.iterdir()} == {"data.mdb", "lock.mdb"}


# --- killed processes -------------------------------------------------------------------------------------------------

WRITER = """if True:
    import os, sys
    from dynamo.storage.commit_thread import CommitThread
    from dynamo.storage.engine import Group
    from dynamo.storage.lmdb import LmdbEngine
    wake, waker = os.pipe()
    thread = CommitThread(LmdbEngine(sys.argv[1], sys.argv[2] == "synced"), lambda: os.write(waker, b"!"))
    number = 0
    while True:
        number += 1
        stamp = b"%d" % number
        objects = {b"shared %d" % row: stamp * 50 for row in range(20)}
        objects[b"own " + stamp] = stamp * 50
        objects[b"own %d" % (number - 5)] = None
        thread.submit(Group(number, objects=objects, hints={b"hint": stamp}, meta={b"last": stamp}))
        os.read(wake, 1)
        [(_, error)] = thread.completed()
        assert error is None
        print(number, flush=True)
    """


@pytest.mark.parametrize("acknowledged", [1, 40, 150])
@pytest.mark.parametrize("durability", ["synced", "relaxed"])
def test_a_killed_process_loses_no_acknowledged_group_and_tears_none(tmp_path: Path, start_child: Start, durability: str, acknowledged: int) -> None:
    child = start_child(WRITER, tmp_path, durability)
    assert child.stdout is not None
    for _ in range(acknowledged):
        assert child.stdout.readline()
    child.kill()
    rest = child.stdout.read().splitlines()  # not communicate(): it reads past what readline() has buffered
    child.communicate()
    last_acknowledged = acknowledged + len(rest)
    engine = LmdbEngine(str(tmp_path), synced=True)
    stamp = engine.read_meta(b"last")
    assert stamp is not None
    last = int(stamp)
    # The group in flight when the process died may be there or not, but whole.
    assert last_acknowledged <= last <= last_acknowledged + 1
    expected = {b"shared %d" % row: stamp * 50 for row in range(20)}
    expected |= {b"own %d" % number: b"%d" % number * 50 for number in range(max(1, last - 4), last + 1)}
    assert dict(engine.scan("objects", b"", None, 1000)) == expected
    assert engine.scan("hints", b"", None, 9) == [(b"hint", stamp)]
    engine.commit(Group(1, objects={b"after": b"1"}))
    engine.close()


@pytest.mark.parametrize("durability", ["synced", "relaxed", "buffered"])
def test_a_reader_that_is_killed_while_the_file_is_open_does_not_make_it_grow_without_end(tmp_path: Path, start_child: Start, durability: str) -> None:
    directory = DataDirectory(tmp_path / "data", durability)
    engine = directory.engine
    rows = {b"%03d" % number: bytes(2000) for number in range(100)}
    engine.commit(Group(1, objects=dict(rows), synced=True))
    script = """if True:
        import sys, lmdb
        environment = lmdb.open(sys.argv[1], readonly=True, max_dbs=3, lib_version=0)
        transaction = environment.begin()
        print("open", flush=True)
        sys.stdin.read()
        """
    reader = start_child(script, tmp_path / "data")
    assert reader.stdout is not None and reader.stdout.readline() == "open\n"
    reader.kill()
    reader.wait()
    sizes = []
    for number in range(150):
        engine.commit(Group(number, objects=dict(rows), synced=True))
        engine.refresh()
        sizes.append((tmp_path / "data" / "data.mdb").stat().st_size)
    directory.close(clean=True)
    assert sizes[-1] == sizes[75], sizes[::10]
    assert sizes[-1] < 40 * 100 * 2000


def test_readers_that_died_do_not_keep_a_living_one_from_its_place(tmp_path: Path, start_child: Start) -> None:
    LmdbEngine(str(tmp_path), synced=False).close()
    engine = LmdbEngine(str(tmp_path), synced=False)
    script = """if True:
        import sys, lmdb
        environment = lmdb.open(sys.argv[1], readonly=True, max_dbs=3, lib_version=0, max_spare_txns=0)
        transactions = []
        try:
            while True:
                transactions.append(environment.begin())
        except lmdb.ReadersFullError:
            print(len(transactions), flush=True)
        sys.stdin.read()
        """
    child = start_child(script, tmp_path)
    assert child.stdout is not None and int(child.stdout.readline()) >= 14
    child.kill()
    child.wait()
    engine.refresh()
    assert engine.read(b"k") is None
    engine.close()
