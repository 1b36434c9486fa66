"""Scans: exactly the live keys that begin with the prefix, each once, in pages, and on from any cursor."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import Any

import pytest

import dynamo

LONG = b"l" * 600  # beyond what a row key shows of a key, and beyond what it shows of a prefix


@pytest.fixture(scope="module")
def filled(owner: Any) -> tuple[Any, dict[bytes, bytes]]:
    """A bucket with keys of all lengths over most partitions, some deleted, some with siblings; and what should be found in it."""
    kv = owner.bucket("filled")
    random = Random(7)
    keys = [b"user:%d" % i for i in range(500)] + [b"\xff\xff" + bytes([i]) for i in range(20)]
    keys += [b"user:" + random.randbytes(random.randrange(480, 500)) for _ in range(60)] + [LONG + b"%d" % i for i in range(60)]
    keys += [b"l" * length for length in range(470, 500)]
    live = {key: key[-8:] for key in keys}
    assert all(isinstance(outcome, dynamo.Context) for outcome in kv.set_many(live).values())
    for key in random.sample(keys, 60):
        kv.delete(key, blind=True)
        del live[key]
    for key in random.sample(sorted(live), 5):
        kv.put(key, b"beside")
    return kv, live


@pytest.mark.parametrize("prefix", [b"", b"user:", b"user:1", b"user:499", b"\xff", b"\xff\xff", b"l", b"l" * 480, LONG, LONG + b"1", b"none", b"l" * 1024])
def test_exactly_the_live_keys_with_the_prefix_each_once(filled: tuple[Any, dict[bytes, bytes]], prefix: bytes) -> None:
    kv, live = filled
    results = list(kv.scan(prefix))
    assert sorted(result.key for result in results) == sorted(key for key in live if key.startswith(prefix))


def test_results_are_those_of_a_get(filled: tuple[Any, dict[bytes, bytes]]) -> None:
    kv, live = filled
    for result in list(kv.scan("user:1"))[:40]:
        got = kv.get(result.key)
        assert (result.values, result.context) == (got.values, got.context) and live[result.key] in result.values
        assert result.found and result.owners_answered >= 1 and isinstance(result.cursor, str) and got.cursor is None


@pytest.mark.parametrize("limit", [1, 7, 256, 10_000])
def test_pages_of_any_length_from_cursor_to_cursor_are_the_whole(filled: tuple[Any, dict[bytes, bytes]], limit: int) -> None:
    kv, live = filled
    prefix = b"user:4" if limit == 1 else b""
    keys: list[bytes] = []
    cursor: str | bytes | None = None
    while page := list(kv.scan(prefix, limit=limit, cursor=cursor)):
        assert len(page) <= limit
        keys += [result.key for result in page]
        cursor = page[-1].cursor.encode() if len(keys) % 2 else page[-1].cursor
    assert sorted(keys) == sorted(key for key in live if key.startswith(prefix))


def test_any_result_is_a_place_to_go_on_from(filled: tuple[Any, dict[bytes, bytes]]) -> None:
    kv, _ = filled
    results = list(kv.scan("l"))
    for i in range(0, len(results), 13):
        assert [result.key for result in kv.scan("l", cursor=results[i].cursor)] == [result.key for result in results[i + 1 :]]


def test_a_cursor_survives_the_end_of_its_key(kv: Any) -> None:
    kv.set_many({f"key-{i}": b"v" for i in range(20)})
    results = list(kv.scan())
    kv.delete(results[9].key, blind=True)
    assert [result.key for result in kv.scan(cursor=results[9].cursor)] == [result.key for result in results[10:]]


def test_within_a_partition_keys_are_in_order(filled: tuple[Any, dict[bytes, bytes]]) -> None:
    kv, _ = filled
    keys = [result.key for result in kv.scan("user:")]
    assert 0 < sum(later < key for key, later in pairwise(keys)) < len(keys) * 3 / 4, "neither sorted nor shuffled"


def test_an_empty_bucket_and_a_limit_of_none(kv: Any) -> None:
    assert list(kv.scan()) == []
    kv.set("a", b"v")
    kv.delete("a", blind=True)
    assert list(kv.scan()) == [] == list(kv.scan(limit=0))


def test_a_cursor_of_another_bucket_is_refused(filled: tuple[Any, dict[bytes, bytes]], kv: Any) -> None:
    cursor = next(iter(filled[0].scan())).cursor
    with pytest.raises(dynamo.InvalidRequest):
        list(kv.scan(cursor=cursor))


def test_values_of_a_megabyte(kv: Any) -> None:
    values = {b"key-%d" % i: bytes([i]) * (1 << 20) for i in range(12)}
    kv.set_many(values, timeout=30)
    assert {result.key: result.value for result in kv.scan(timeout=30)} == values
