"""What every storage engine does, over each of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo.errors import DynamoError, StorageFailed
from dynamo.storage.buffer import WriteBuffer
from dynamo.storage.engine import Group, StorageEngine, Table
from dynamo.storage.lmdb import LmdbEngine
from dynamo.storage.memory import MemoryEngine

ENGINES: dict[str, Callable[[Path], StorageEngine]] = {
    "buffered": lambda path: WriteBuffer(LmdbEngine(str(path), synced=True)),
    "memory": lambda path: MemoryEngine(),
    "relaxed": lambda path: LmdbEngine(str(path), synced=False),
    "synced": lambda path: LmdbEngine(str(path), synced=True),
}
TABLES: tuple[Table, ...] = ("objects", "hints")


@pytest.fixture(params=list(ENGINES))
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StorageEngine]:
    engine = ENGINES[request.param](tmp_path)
    yield engine
    engine.close()


def commit(engine: StorageEngine, group: Group) -> None:
    engine.commit(group)
    engine.refresh()


def rows(engine: StorageEngine, table: Table = "objects") -> dict[bytes, bytes]:
    return dict(engine.scan(table, b"", None, 1_000_000))


def test_an_empty_engine_has_nothing(engine: StorageEngine) -> None:
    assert engine.read(b"k") is None
    assert engine.read_meta(b"actor") is None
    assert rows(engine) == rows(engine, "hints") == {}


def test_a_group_is_read_back_from_all_three_tables(engine: StorageEngine) -> None:
    commit(engine, Group(1, objects={b"k": b"object"}, hints={b"k": b"hint"}, meta={b"k": b"meta"}))
    assert engine.read(b"k") == b"object"
    assert engine.scan("hints", b"", None, 9) == [(b"k", b"hint")]
    assert engine.read_meta(b"k") == b"meta"


@pytest.mark.parametrize("table", TABLES)
def test_rows_are_counted_all_of_them_and_those_of_some_keys(engine: StorageEngine, table: Table) -> None:
    commit(engine, Group(1, **{table: {b"a": b"", b"b": b"2", b"c": b"3"}}))  # type: ignore[arg-type]
    commit(engine, Group(2, **{table: {b"b": None, b"d": b"4"}}))  # type: ignore[arg-type]
    assert engine.count(table) == 3
    assert engine.count_of(table, [b"d", b"a", b"b", b"never there", b"\xff"]) == 2 and engine.count_of(table, []) == 0


def test_a_later_group_replaces_and_deletes(engine: StorageEngine) -> None:
    commit(engine, Group(1, objects={b"a": b"1", b"b": b"1", b"c": b"1"}, hints={b"h": b""}, meta={b"m": b"1"}))
    commit(engine, Group(2, objects={b"a": b"2", b"b": None, b"never there": None}, hints={b"h": None}, meta={b"m": None}))
    assert rows(engine) == {b"a": b"2", b"c": b"1"}
    assert rows(engine, "hints") == {}
    assert engine.read_meta(b"m") is None


def test_empty_values_and_empty_groups(engine: StorageEngine) -> None:
    commit(engine, Group(1, hints={b"target key": b""}))
    commit(engine, Group(2))
    commit(engine, Group(3, synced=True))
    assert engine.scan("hints", b"", None, 9) == [(b"target key", b"")]


def test_large_values_and_the_longest_keys(engine: StorageEngine) -> None:
    large = bytes(range(256)) * 4096 * 4
    first, second = b"\0" * 511, b"\xff" * 511
    commit(engine, Group(1, objects={first: large, second: b"v"}))
    assert engine.read(first) == large
    # The start of the next page is one byte longer than any key.
    assert engine.scan("objects", first + b"\0", None, 9) == [(second, b"v")]
    assert engine.scan("objects", second + b"\0", None, 9) == []


@pytest.mark.parametrize("key", [b"", b"k" * 512])
@pytest.mark.parametrize("table", ["objects", "hints", "meta"])
def test_a_group_that_fails_leaves_nothing(engine: StorageEngine, key: bytes, table: str) -> None:
    commit(engine, Group(1, objects={b"a": b"1", b"b": b"1"}, meta={b"m": b"1"}))
    group = Group(2, objects={b"a": b"2", b"b": None, b"c": b"2"}, hints={b"h": b"2"}, meta={b"m": b"2"})
    getattr(group, table)[key] = b"bad"
    entered: list[int] = []
    with pytest.raises(StorageFailed):
        engine.commit(group, lambda: entered.append(1))
    engine.refresh()
    assert entered == []
    assert rows(engine) == {b"a": b"1", b"b": b"1"}
    assert rows(engine, "hints") == {}
    assert engine.read_meta(b"m") == b"1"
    commit(engine, Group(3, objects={b"a": b"3"}))
    assert engine.read(b"a") == b"3"


def test_entering_is_called_once_before_the_group_is_visible(engine: StorageEngine) -> None:
    seen: list[bytes | DynamoError | None] = []

    def entering() -> None:
        engine.refresh()
        seen.append(engine.read(b"k"))

    engine.commit(Group(1, objects={b"k": b"v"}), entering)
    engine.refresh()
    assert seen == [None]
    assert engine.read(b"k") == b"v"


def test_scan_pages_in_key_order_within_bounds(engine: StorageEngine) -> None:
    keys = [bytes([first, second]) for first in range(16) for second in range(0, 256, 16)]
    commit(engine, Group(1, objects=dict.fromkeys(reversed(keys), b"v")))
    assert [key for key, _ in engine.scan("objects", b"", None, 1000)] == keys
    assert [key for key, _ in engine.scan("objects", b"\x03", b"\x05", 1000)] == [key for key in keys if b"\x03" <= key < b"\x05"]
    assert engine.scan("objects", keys[3], keys[5], 1000) == [(keys[3], b"v"), (keys[4], b"v")]
    assert engine.scan("objects", keys[3], keys[3], 1000) == []
    assert engine.scan("objects", keys[-1] + b"\0", None, 1000) == []
    assert engine.scan("objects", b"", None, 0) == []
    assert engine.scan("hints", b"", None, 1000) == []
    paged, start = [], b""
    while page := engine.scan("objects", start, None, 7):
        paged += page
        start = page[-1][0] + b"\0"
    assert [key for key, _ in paged] == keys


def test_scans_between_commits_see_keys_that_went_and_came_back(engine: StorageEngine) -> None:
    commit(engine, Group(1, objects={b"a": b"1", b"b": b"1", b"c": b"1"}))
    assert list(rows(engine)) == [b"a", b"b", b"c"]
    commit(engine, Group(2, objects={b"b": None}))
    commit(engine, Group(3, objects={b"b": b"3", b"d": b"3"}))
    commit(engine, Group(4, objects={b"d": None}))
    assert engine.scan("objects", b"", None, 9) == [(b"a", b"1"), (b"b", b"3"), (b"c", b"1")]


def test_close_may_be_called_again(engine: StorageEngine) -> None:
    engine.close()
    engine.close()


keys = st.sampled_from([b"a", b"aa", b"ab", b"b", b"b\0", b"\xff", b"x" * 511])
values = st.none() | st.binary(max_size=8) | st.sampled_from([b"L" * 5000])
changes = st.dictionaries(keys, values, max_size=5)
groups = st.builds(Group, st.just(1), objects=changes, hints=changes, meta=changes, synced=st.booleans())


@pytest.mark.parametrize("name", ["memory", "relaxed"])
@settings(max_examples=60)
@given(st.lists(groups, max_size=8), keys, keys, st.integers(0, 8))
def test_engines_are_three_sorted_dicts(name: str, steps: list[Group], start: bytes, stop: bytes, limit: int) -> None:
    model: dict[str, dict[bytes, bytes]] = {"objects": {}, "hints": {}, "meta": {}}
    with tempfile.TemporaryDirectory() as path:
        engine = ENGINES[name](Path(path))
        for group in steps:
            commit(engine, group)
            for table, expected in model.items():
                for key, value in cast(dict[bytes, bytes | None], getattr(group, table)).items():
                    if value is None:
                        expected.pop(key, None)
                    else:
                        expected[key] = value
            for table in TABLES:
                ordered = sorted(model[table].items())
                assert engine.scan(table, b"", None, 100) == ordered
                assert engine.scan(table, start, stop, limit) == [row for row in ordered if start <= row[0] < stop][:limit]
            for key in [b"a", b"aa", b"ab", b"b", b"b\0", b"\xff", b"x" * 511, b"other"]:
                assert engine.read(key) == model["objects"].get(key)
                assert engine.read_meta(key) == model["meta"].get(key)
        engine.close()
