"""One row that cannot be read: its key is named, it can be overwritten and deleted, and it stands in nobody's way."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

import dynamo
from dynamo.errors import CorruptRecord
from dynamo.model.group import Group
from dynamo.model.key import HEAD_BYTES
from dynamo.storage.lmdb import LmdbEngine

LONG = b"long-" + b"x" * 900
KEYS = [b"a", b"b", b"c", LONG]


@pytest.fixture(params=["synced", "buffered", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dynamo.Store]:
    with dynamo.open(tmp_path / "data", durability=request.param, timeout=10.0) as store:
        for key in KEYS:
            store.set(key, b"value of " + key[:1])
        yield store


def damage(store: dynamo.Store, key: bytes, bucket: bytes = b"default", at: int = -1) -> bytes:
    """Flip a bit of the key's row."""
    engine = store._directory.engine
    row_key = store._replica.core.locate(bucket, key)[1]
    row = bytearray(engine.read(row_key))  # type: ignore[arg-type]
    row[at] ^= 1
    engine.commit(Group(0, {row_key: bytes(row)}, synced=True))
    engine.refresh()
    return row_key


@pytest.mark.parametrize("key", [b"b", LONG])
@pytest.mark.parametrize("at", [0, -1])
def test_reads_of_a_damaged_row_name_its_key_and_nothing_builds_upon_it(store: dynamo.Store, key: bytes, at: int) -> None:
    context = store.get(key).context
    damage(store, key, at=at)
    for read in (
        lambda: store.get(key),
        lambda: store[key],
        lambda: key in store,
        lambda: store.put(key, b"2"),
        lambda: store.put(key, b"2", context=context),
        lambda: store.update(key, lambda values: b"2"),
    ):
        with pytest.raises(CorruptRecord, match=repr(key[:5])[2:-1]) as caught:
            read()
        assert not caught.value.maybe_applied
    many = store.get_many(KEYS)
    assert isinstance(many.pop(key), CorruptRecord)
    assert all(result.found for result in many.values())
    many = store.put_many(dict.fromkeys(KEYS, b"3"))
    assert isinstance(many.pop(key), CorruptRecord)
    assert not any(isinstance(outcome, Exception) for outcome in many.values())


@pytest.mark.parametrize("how", ["set", "item", "set_many", "delete", "delete under a context", "del"])
@pytest.mark.parametrize("key", [b"b", LONG])
def test_a_damaged_row_is_overwritten_and_deleted(store: dynamo.Store, key: bytes, how: str) -> None:
    before = store.get(key)
    damage(store, key)
    if how == "set":
        store.set(key, b"new")
    elif how == "item":
        store[key] = b"new"
    elif how == "set_many":
        assert not isinstance(store.set_many({key: b"new"})[key], Exception)
    elif how == "delete":
        store.delete(key, blind=True)
    elif how == "delete under a context":
        store.delete(key, context=before.context)
    else:
        del store[key]
    result = store.get(key)
    assert result.values == ((b"new",) if how.startswith(("set", "item")) else ())
    assert {r.key for r in store.scan()} == {*KEYS} - (set() if result.found else {key})
    store.update(key, lambda values: b"+".join([*values, b"more"]))
    (sibling,) = store.get(key).siblings
    assert sibling.value in (b"new+more", b"more")
    assert sibling.dot.counter > before.siblings[0].dot.counter or sibling.dot.actor != before.siblings[0].dot.actor


def test_a_dot_of_a_lost_row_is_never_minted_again(tmp_path: Path) -> None:
    dots = set()
    for _ in range(3):
        with dynamo.open(tmp_path / "data") as store:
            for _ in range(2):
                dot = store.set("k", b"v").dot
                assert dot not in dots
                dots.add(dot)
                damage(store, b"k")


@pytest.mark.parametrize("at", [0, -1])
def test_a_scan_gives_all_others_and_says_which_is_damaged(store: dynamo.Store, at: int) -> None:
    damage(store, b"b", at=at)
    results = {result.key: result for result in store.scan()}
    assert set(results) == set(KEYS)
    bad = results.pop(b"b")
    assert all(result.error is None and result.found for result in results.values())
    assert isinstance(bad.error, CorruptRecord)
    for look in ("value", "values", "siblings", "found", "context"):
        with pytest.raises(CorruptRecord, match="b'b'"):
            getattr(bad, look)
    assert "damaged" in repr(bad)
    again = pickle.loads(pickle.dumps(bad))  # a caller may keep it
    assert again == bad and hash(again) == hash(bad) and bad != results[b"a"]
    behind = {result.key for result in store.scan(cursor=bad.cursor)}
    assert b"b" not in behind
    assert [result.key for result in store.scan(b"b")] == [b"b"]
    for result in store.scan():
        if result.error is not None:
            store.delete(result.key, blind=True)
    assert {result.key for result in store.scan()} == set(results)


def test_a_damaged_row_of_a_long_key_is_shown_by_what_is_left_of_its_key(store: dynamo.Store) -> None:
    damage(store, LONG, at=-1)
    assert [r.key for r in store.scan(b"long-") if r.error] == [LONG]
    store.set(LONG, b"new")
    damage(store, LONG, at=0)
    (key,) = (r.key for r in store.scan() if r.error)
    assert LONG.startswith(key) and len(key) > HEAD_BYTES // 2


def test_many_damaged_rows_over_many_pages(tmp_path: Path) -> None:
    with dynamo.open(tmp_path / "data", durability="memory") as store:
        keys = [b"%d" % number for number in range(1500)]
        store.set_many(dict.fromkeys(keys, b"v"))
        for key in keys[::3]:
            damage(store, key)
        results = {result.key: result for result in store.scan()}
        assert set(results) == set(keys)
        assert sorted(key for key, result in results.items() if result.error) == sorted(keys[::3])
        store.set_many(dict.fromkeys(keys, b"w"))
        assert {result.value for result in store.scan()} == {b"w"}


NONSENSE = {
    "partition behind the last": b"\xff\xfddefault\0k",
    "too short": b"\0",
    "no zero": b"\0\1default",
    "no key": b"\0\1default\0",
    "bad bucket": b"\0\1\xff\xfe\0k",
    "no bucket": b"\0\1\0k",
    "another partition's key": b"\0\0default\0a",
    "length of no row key": b"\0\1default\0" + b"k" * 490,
    "hashed, of no row": (b"\0\1default\0" + b"k" * 511)[:511],
}


@pytest.mark.parametrize("value", [b"", b"nonsense", None], ids=["empty", "nonsense", "a sound row of another key"])
def test_rows_under_keys_that_cannot_be_are_passed_over(tmp_path: Path, value: bytes | None) -> None:
    with dynamo.open(tmp_path / "data") as store:
        for key in KEYS:
            store.set(key, b"v")
        row = store._engine.read(store._replica.core.locate(b"default", b"a")[1])
        assert type(row) is bytes
    engine = LmdbEngine(str(tmp_path / "data"), True)
    engine.commit(Group(0, {key: row if value is None else value for key in NONSENSE.values() if key != b""}))
    engine.close()
    for _ in range(2):
        with dynamo.open(tmp_path / "data") as store:
            found = list(store.scan())
            assert sorted(result.key for result in found if result.error is None) == sorted(KEYS)
            assert [result.key[:4] for result in found if result.error is not None] == [b"kkkk"]  # under a hash there may be anything
            store.set("a", b"again")
            store.delete("b", blind=True)
            store.set("b", b"v")


@pytest.mark.parametrize("name", [b"operations/", b"operations/\0", b"operations/" + b"\xff" * 8, b"operations/" + b"\xff" * 30])
def test_rows_of_the_meta_table_under_names_that_cannot_be_are_passed_over(tmp_path: Path, name: bytes) -> None:
    with dynamo.open(tmp_path / "data") as store:
        store.set("a", b"1")
    engine = LmdbEngine(str(tmp_path / "data"), True)
    engine.commit(Group(0, meta={name: b"nonsense"}))
    engine.close()
    for _ in range(2):
        with dynamo.open(tmp_path / "data") as store:
            for number in range(40):
                store.set(str(number), b"v")


@pytest.mark.parametrize("name", [b"identity", b"cluster", b"membership", b"actor", b"format", b"clean_stop"])
@pytest.mark.parametrize("value", [b"", b"x", bytes(40), b"\xff" * 40])
def test_a_damaged_row_of_the_meta_table_is_an_error_with_a_name_or_of_no_account(tmp_path: Path, name: bytes, value: bytes) -> None:
    with dynamo.open(tmp_path / "data") as store:
        store.set("a", b"1")
    engine = LmdbEngine(str(tmp_path / "data"), True)
    engine.commit(Group(0, meta={name: value}))
    engine.close()
    try:
        with dynamo.open(tmp_path / "data") as store:
            assert store.get("a").value == b"1"
            store.set("a", b"2")
    except (dynamo.ConfigError, CorruptRecord) as error:
        assert str(error)
