"""Records and contexts: examples of each rule, the golden bytes, and equality of the two twins on any input at all."""

from __future__ import annotations

import inspect
import struct
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import xxhash
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dynamo.errors import CorruptRecord, InvalidContext

GOLDEN = Path(__file__).parents[1] / "golden" / "record_v1.hex"
MAX = 2**64 - 1
A, B, C = 0x00F3_0000_0000_0001, 0x7777, MAX


@pytest.fixture(scope="session")
def record(core: Any) -> ModuleType:
    return core.record


def op(number: int) -> bytes:
    return number.to_bytes(16, "big")


def pack(*ranges: tuple[int, int, int]) -> bytes:
    return b"".join(struct.pack(">QQQ", *entry) for entry in ranges)


def encode(kind: int, ranges: list[Any], versions: list[Any], head: tuple[int, int, int] = (1, 0, 0)) -> bytes:
    """A record from the layout in the docstring, canonical or not; versions = (actor, counter, time, op, value, flags)."""
    body = struct.pack(">BBBBII", head[0], kind, head[1], head[2], len(ranges), len(versions)) + pack(*ranges)
    for actor, counter, time, operation, value, flags in versions:
        body += struct.pack(">QQQ16sQ", actor, counter, time, operation, 0)
        body += struct.pack(">QBI", xxhash.xxh3_64_intdigest(value), flags, len(value))
    body += b"".join(version[4] for version in versions)
    return body + xxhash.xxh3_64_digest(body)


def dots(record: ModuleType, data: bytes) -> list[tuple[int, int]]:
    return [version[:2] for version in record.versions(data)]


def new(record: ModuleType, actor: int, counter: int, value: bytes = b"v", before: bytes = b"", seen: bytes = b"") -> bytes:
    return record.put(before, seen, actor, counter, counter, 5, op(counter), value, False)


# --- the form ---------------------------------------------------------------------------------------------------------


def test_golden_bytes(record: ModuleType) -> None:
    golden = dict(line.split() for line in GOLDEN.read_text().splitlines() if line and not line.startswith("#"))
    first = record.put(b"", b"", A, 7, 5, 1 << 12, op(1), "größe".encode(), False)
    siblings = record.merge(first, record.put(b"", pack((C, 1, 9)), B, 3, 2, 2 << 12, op(2), b"", True))
    assert siblings.hex() == golden["siblings"]
    last = record.put_last_write_wins(b"", A, 7, 3 << 12, op(3), b"\x00\xff", False)
    assert last.hex() == golden["last_write_wins"]
    assert record.versions(siblings) == [
        (B, 3, 2 << 12, op(2), 0, xxhash.xxh3_64_intdigest(b""), True, b""),
        (A, 7, 1 << 12, op(1), 0, xxhash.xxh3_64_intdigest("größe".encode()), False, "größe".encode()),
    ]
    assert record.context(siblings) == pack((B, 2, 3), (A, 5, 7), (C, 1, 9))
    assert record.digest(b"default\0alice", siblings, 42).hex() == golden["siblings_digest"]
    for data in (siblings, last, b""):
        record.check(data)
        record.verify(data)


def test_the_layout_is_the_documented_one(record: ModuleType) -> None:
    data = record.put(b"", pack((B, 1, 2)), A, 7, 5, 9, op(1), b"value", False)
    assert data == encode(1, [(B, 1, 2), (A, 5, 7)], [(A, 7, 9, op(1), b"value", 0)])
    data = record.put_last_write_wins(b"", A, 7, 9, op(1), b"", True)
    assert data == encode(2, [], [(A, 7, 9, op(1), b"", 1)])


V = (A, 1, 5, op(1), b"v", 0)
MALFORMED = {
    "too short": encode(1, [(A, 1, 1)], [V])[:19],
    "format 2": encode(1, [(A, 1, 1)], [V], head=(2, 0, 0)),
    "kind 0": encode(0, [(A, 1, 1)], [V]),
    "kind 3": encode(3, [(A, 1, 1)], [V]),
    "flags": encode(1, [(A, 1, 1)], [V], head=(1, 1, 0)),
    "reserved": encode(1, [(A, 1, 1)], [V], head=(1, 0, 1)),
    "no version": encode(1, [(A, 1, 1)], []),
    "ranges unsorted": encode(1, [(A, 1, 1), (B, 1, 1)], [V]),
    "ranges overlap": encode(1, [(A, 1, 5), (A, 4, 9)], [V]),
    "ranges touch": encode(1, [(A, 1, 5), (A, 6, 9)], [V]),
    "range backwards": encode(1, [(A, 2, 1)], [V]),
    "range from 0": encode(1, [(A, 0, 1)], [V]),
    "range of actor 0": encode(1, [(0, 1, 1), (A, 1, 1)], [V]),
    "versions unsorted": encode(1, [(A, 1, 2)], [(A, 2, 5, op(2), b"w", 0), V]),
    "version twice": encode(1, [(A, 1, 1)], [V, V]),
    "dot outside context": encode(1, [(A, 2, 2)], [V]),
    "counter 0": encode(2, [], [(A, 0, 5, op(1), b"v", 0)]),
    "actor 0": encode(2, [], [(0, 1, 5, op(1), b"v", 0)]),
    "unknown version flag": encode(1, [(A, 1, 1)], [(A, 1, 5, op(1), b"v", 2)]),
    "tombstone with a value": encode(1, [(A, 1, 1)], [(A, 1, 5, op(1), b"v", 1)]),
    "two last writes": encode(2, [], [V, (A, 2, 5, op(2), b"w", 0)]),
    "last write with ranges": encode(2, [(A, 1, 1)], [V]),
    "a byte more": encode(1, [(A, 1, 1)], [V]) + b"\0",
    "a byte less": encode(1, [(A, 1, 1)], [V])[:-1],
}


@pytest.mark.parametrize("name", MALFORMED)
def test_every_function_refuses_a_malformed_record(record: ModuleType, name: str) -> None:
    bad, good = MALFORMED[name], new(record, A, 1)
    for call in (
        lambda: record.put(bad, b"", A, 2, 2, 5, op(2), b"", False),
        lambda: record.put_last_write_wins(bad, A, 2, 5, op(2), b"", False),
        lambda: record.merge(bad, good),
        lambda: record.merge(good, bad),
        lambda: record.merge(b"", bad),
        lambda: record.compare(bad, good),
        lambda: record.compare(good, bad),
        lambda: record.compare(bad, b""),
        lambda: record.versions(bad),
        lambda: record.version_count(bad),
        lambda: record.context(bad),
        lambda: record.find_operation(bad, op(1)),
        lambda: record.duplicate_dots(bad),
        lambda: record.verify(bad),
        lambda: record.check(bad),
        lambda: record.digest(b"key", bad, 0),
        lambda: record.token_context(bad, b"", A, 1),
    ):
        with pytest.raises(CorruptRecord):
            call()


def test_expiry_is_refused_until_a_flag_says_it_is_understood(record: ModuleType) -> None:
    data = bytearray(new(record, A, 1))
    data[12 + 24 + 40 + 7] = 1
    with pytest.raises(CorruptRecord):
        record.versions(bytes(data))


def test_counts_beyond_the_bytes(record: ModuleType) -> None:
    good = new(record, A, 1)
    for ranges, versions in ((2**32 - 1, 1), (1, 2**32 - 1), (2**32 - 1, 2**32 - 1), (0, 2), (2, 0)):
        with pytest.raises(CorruptRecord):
            record.merge(good[:4] + struct.pack(">II", ranges, versions) + good[12:], good)


def test_check_and_verify_find_every_flipped_bit(record: ModuleType) -> None:
    data = record.merge(new(record, A, 1, b"one"), new(record, B, 1, b"two"))
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptRecord):
            record.check(bytes(flipped))


def test_verify_finds_a_value_that_is_not_the_hashed_one(record: ModuleType) -> None:
    body = new(record, A, 1, b"one")[:-8].replace(b"one", b"two")
    forged = body + xxhash.xxh3_64_digest(body)
    record.check(forged)
    with pytest.raises(CorruptRecord):
        record.verify(forged)


# --- put, merge, compare ----------------------------------------------------------------------------------------------


def test_put_replaces_what_the_context_contains(record: ModuleType) -> None:
    one, two = new(record, A, 1), new(record, B, 1)
    both = record.merge(one, two)
    assert dots(record, both) == [(B, 1), (A, 1)]
    assert dots(record, new(record, A, 2, before=both)) == [(B, 1), (A, 1), (A, 2)]  # blind: a sibling
    assert dots(record, new(record, A, 2, before=both, seen=record.context(one))) == [(B, 1), (A, 2)]
    after = new(record, A, 2, before=both, seen=record.context(both))
    assert dots(record, after) == [(A, 2)]
    assert record.context(after) == pack((B, 1, 1), (A, 1, 2))
    assert record.merge(after, both) == after == record.merge(both, after)
    assert record.compare(both, after) == record.BEFORE and record.compare(after, both) == record.AFTER


def test_a_late_replica_does_not_bring_back_what_was_replaced(record: ModuleType) -> None:
    """A range says nothing of counters below it: a store that forgot the row claims only what it minted since."""
    forgotten = new(record, A, 1)
    anew = new(record, A, 2)
    assert record.context(anew) == pack((A, 2, 2))
    assert dots(record, record.merge(forgotten, anew)) == [(A, 1), (A, 2)]


def test_merge_of_concurrent_records(record: ModuleType) -> None:
    base = record.merge(new(record, A, 1), new(record, B, 1))
    left = new(record, A, 2, before=base, seen=pack((A, 1, 1)))
    right = new(record, B, 2, before=base, seen=pack((B, 1, 1)))
    merged = record.merge(left, right)
    assert dots(record, merged) == [(B, 2), (A, 2)]
    assert record.compare(left, right) == record.CONCURRENT
    assert merged == record.merge(right, left)
    record.verify(merged)


def test_the_absent_record_is_neutral(record: ModuleType) -> None:
    one = new(record, A, 1)
    assert record.merge(one, b"") == one == record.merge(b"", one)
    assert record.merge(b"", b"") == b""
    assert record.compare(b"", b"") == record.EQUAL
    assert record.compare(b"", one) == record.BEFORE and record.compare(one, b"") == record.AFTER
    assert record.versions(b"") == [] and record.version_count(b"") == 0 and record.context(b"") == b""
    assert record.digest(b"key", b"", 1) == bytes(16)
    assert record.find_operation(b"", op(1)) is None and record.duplicate_dots(b"") == 0
    assert record.token_context(b"", b"", A, 1) == (pack((A, 1, 1)), 0)


def test_merge_gives_back_the_side_that_is_the_result(record: ModuleType) -> None:
    one = new(record, A, 1)
    two = new(record, A, 2, before=one, seen=record.context(one))
    assert record.merge(one, two) is two and record.merge(two, one) is two and record.merge(one, one) is one


def test_kinds_do_not_mix(record: ModuleType) -> None:
    one, last = new(record, A, 1), record.put_last_write_wins(b"", A, 1, 5, op(1), b"v", False)
    for call in (
        lambda: record.merge(one, last),
        lambda: record.compare(last, one),
        lambda: record.put(last, b"", A, 2, 2, 5, op(2), b"", False),
        lambda: record.put_last_write_wins(one, A, 2, 5, op(2), b"", False),
    ):
        with pytest.raises(CorruptRecord):
            call()


def test_a_dot_used_twice_keeps_both_versions(record: ModuleType) -> None:
    one, other = new(record, A, 1, b"one"), new(record, A, 1, b"other")
    merged = record.merge(one, other)
    assert merged == record.merge(other, one)
    assert {version[7] for version in record.versions(merged)} == {b"one", b"other"}
    assert record.duplicate_dots(merged) == 1 and record.duplicate_dots(one) == 0
    assert record.merge(merged, one) == merged and record.compare(one, merged) == record.BEFORE
    # Also where it is put over itself, even by a client that has seen the first one.
    again = new(record, A, 1, b"other", before=one, seen=record.context(one))
    assert record.duplicate_dots(again) == 1
    record.verify(again)


def test_records_that_claim_to_have_replaced_each_other_keep_everything(record: ModuleType) -> None:
    both = [(B, 1, 1), (A, 1, 1)]
    one, other = encode(1, both, [(A, 1, 5, op(1), b"a", 0)]), encode(1, both, [(B, 1, 5, op(2), b"b", 0)])
    merged = record.merge(one, other)
    assert dots(record, merged) == [(B, 1), (A, 1)] and merged == record.merge(other, one)
    assert record.compare(one, other) == record.CONCURRENT


def test_last_write_wins(record: ModuleType) -> None:
    def write(actor: int, counter: int, time: int, before: bytes = b"") -> bytes:
        return record.put_last_write_wins(before, actor, counter, time, op(1), b"%d" % time, False)

    old, recent = write(A, 9, 5), write(B, 1, 6)
    assert record.merge(old, recent) == recent == record.merge(recent, old)
    assert record.compare(old, recent) == record.BEFORE and record.compare(recent, old) == record.AFTER
    assert write(B, 1, 6, before=old) == recent and write(A, 9, 5, before=recent) == recent
    assert record.merge(write(A, 9, 5), write(B, 10, 5)) == write(A, 9, 5)  # equal times: the actor decides
    assert record.merge(write(A, 9, 5), write(A, 10, 5)) == write(A, 10, 5)  # then the counter
    one, other = (encode(2, [], [(A, 1, 5, op(1), value, 0)]) for value in (b"one", b"other"))
    assert record.merge(one, other) == record.merge(other, one)  # then the header: a dot used twice
    assert record.context(old) == b"" and record.token_context(old, b"", A, 9) == (pack((A, 9, 9)), 0)


@pytest.mark.parametrize(
    "change",
    [
        {"actor": 0}, {"actor": MAX + 1}, {"actor": -1}, {"counter": 0}, {"counter": MAX + 1}, {"time": -1},
        {"time": MAX + 1}, {"since": 0}, {"since": 8}, {"operation": b"short"}, {"tombstone": True},
    ],
)  # fmt: skip
def test_put_refuses_arguments_that_make_no_version(record: ModuleType, change: dict[str, Any]) -> None:
    good = {"actor": A, "counter": 7, "since": 7, "time": 1, "operation": op(1), "value": b"v", "tombstone": False}
    with pytest.raises(ValueError) as caught:
        record.put(b"", b"", **good | change)
    assert caught.type is ValueError
    if "since" not in change:
        del good["since"]
        with pytest.raises(ValueError):
            record.put_last_write_wins(b"", **good | change)


def test_single_value(record: ModuleType) -> None:
    one, two = new(record, A, 1), new(record, B, 2)
    assert record.single_value(one) == record.versions(one)[0][7] and record.single_value(record.merge(one, two)) is None
    gone = record.put(one, record.context(one), A, 2, 1, 5, op(3), b"", True)
    assert record.version_count(gone) == 1 and record.single_value(gone) is None and record.single_value(b"") is None


def test_visible_leaves_out_what_another_coordinator_wrote_of_the_same_operation(record: ModuleType) -> None:
    one, two = new(record, A, 1), new(record, B, 2)
    gone = record.put(b"", b"", B, 9, 9, 77, op(3), b"", True)
    again = record.put(b"", b"", B, 5, 5, 50, op(1), b"again", False)  # the operation of `one`
    (first,) = record.versions(one)
    assert record.visible(one) == (((first[7], *first[:3]),), (), first[2]) and record.visible(b"") == ((), (), 0)
    live, tombstones, newest = record.visible(record.merge(record.merge(one, two), record.merge(gone, again)))
    assert [value[1:3] for value in live] == [(B, 2), (B, 5)] and tombstones == ((B, 9, 77),) and newest == 77


def test_find_operation(record: ModuleType) -> None:
    both = record.merge(new(record, A, 1), new(record, B, 2))
    assert record.find_operation(both, op(1))[:2] == (A, 1) and record.find_operation(both, op(2))[:2] == (B, 2)
    assert record.find_operation(both, op(3)) is None


def test_digest_names_key_context_and_versions(record: ModuleType) -> None:
    one = new(record, A, 1)
    more_context = record.put(b"", pack((B, 1, 1)), A, 1, 1, 5, op(1), b"v", False)
    digests = {record.digest(key, data, seed) for key in (b"b\0k", b"b\0l") for data in (one, more_context) for seed in (1, MAX)}
    assert len(digests) == 8 and {len(d) for d in digests} == {16}
    assert record.digest(b"b\0k", one, 1) == xxhash.xxh3_128_digest(b"b\0k" + one[: 12 + 24 + 61], 1)


def test_the_token_of_a_put_leaves_out_what_the_client_has_not_seen(record: ModuleType) -> None:
    base = record.merge(new(record, A, 1), new(record, B, 1))
    after = new(record, A, 2, before=base, seen=pack((A, 1, 1)))  # (B, 1) was not shown
    token, unseen = record.token_context(after, pack((A, 1, 1)), A, 2)
    assert (token, unseen) == (pack((A, 1, 2)), 1)
    # A range that holds the unseen sibling and the new dot is left out whole, but for the dot.
    after = record.put(new(record, A, 4), b"", A, 5, 4, 5, op(5), b"w", False)
    assert record.context(after) == pack((A, 4, 5))
    assert record.token_context(after, b"", A, 5) == (pack((A, 5, 5)), 1)


# --- contexts ---------------------------------------------------------------------------------------------------------


def test_context_functions(record: ModuleType) -> None:
    some = pack((B, 1, 3), (A, 5, 9))
    assert record.context_union(some, pack((B, 4, 4), (A, 1, 4), (C, MAX, MAX))) == pack((B, 1, 4), (A, 1, 9), (C, MAX, MAX))
    assert record.context_add(some, A, 2, 3) == pack((B, 1, 3), (A, 2, 3), (A, 5, 9))
    assert record.context_add(some, A, 4, MAX) == pack((B, 1, 3), (A, 4, MAX))
    assert record.context_contains(some, A, 5) and not record.context_contains(some, A, 4)
    assert not record.context_contains(some, C, 5) and not record.context_contains(b"", A, 0)
    assert record.context_covers(some, pack((A, 6, 8))) and not record.context_covers(some, pack((A, 6, 10)))
    assert record.context_covers(some, b"") and record.context_covers(b"", b"") and not record.context_covers(b"", some)
    assert record.context_highest(some, A) == 9 and record.context_highest(some, C) == 0


def test_context_gap(record: ModuleType) -> None:
    have = pack((A, 5, 9))
    assert not record.context_gap(have, pack((A, 1, 9)), A, 5)  # what is missing lies below since
    assert record.context_gap(have, pack((A, 1, 9)), A, 4)
    assert record.context_gap(have, pack((A, 9, 10)), A, 5)
    assert not record.context_gap(have, pack((A, 6, 8), (C, 1, 99)), A, 5)  # other actors are no concern
    assert not record.context_gap(b"", b"", A, 0) and record.context_gap(b"", pack((A, MAX, MAX)), A, MAX)


@pytest.mark.parametrize(
    "bad",
    [
        b"\0", pack((A, 1, 1))[:-1], pack((0, 1, 1)), pack((A, 0, 1)), pack((A, 2, 1)), pack((A, 1, 1), (A, 1, 1)),
        pack((A, 1, 1), (A, 2, 2)), pack((A, 1, 5), (A, 3, 9)), pack((A, 1, 1), (B, 1, 1)),
        pack((A, 5, MAX), (A, MAX, MAX)),
    ],
)  # fmt: skip
def test_every_function_refuses_a_context_that_is_not_canonical(record: ModuleType, bad: bytes) -> None:
    good = pack((A, 1, 1))
    for call in (
        lambda: record.context_verify(bad),
        lambda: record.context_union(good, bad),
        lambda: record.context_union(bad, good),
        lambda: record.context_add(bad, A, 1, 1),
        lambda: record.context_contains(bad, A, 1),
        lambda: record.context_covers(good, bad),
        lambda: record.context_covers(bad, good),
        lambda: record.context_highest(bad, A),
        lambda: record.context_gap(good, bad, A, 1),
        lambda: record.context_gap(bad, good, A, 1),
        lambda: record.token_context(b"", bad, A, 1),
        lambda: record.put(b"", bad, A, 1, 1, 5, op(1), b"", False),
    ):
        with pytest.raises(InvalidContext):
            call()


# --- the twins --------------------------------------------------------------------------------------------------------
#
# A small universe of actors and counters, so that records meet; most inputs nearly canonical, so that they get past the
# first check; then mutations, with the checksum right or wrong; and plain garbage.

numbers = st.one_of(st.integers(0, 6), st.sampled_from([MAX - 1, MAX]))
any_numbers = st.one_of(st.integers(1, 6), st.sampled_from([0, -1, MAX, MAX + 1]))
ranges = st.tuples(st.integers(1, 3), numbers, st.integers(0, 4)).map(lambda r: (r[0], r[1], min(r[1] + r[2], MAX)))
values = st.sampled_from([b"", b"v", b"w", b"value" * 9])
range_lists = st.lists(ranges, max_size=6)


def coalesced(entries: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Independent of both twins: by sets of dots where ranges are small, which here they are."""
    covered = {(actor, counter) for actor, first, last in entries for counter in range(max(first, 1), last + 1)}
    united: list[tuple[int, int, int]] = []
    for actor, counter in sorted(covered):
        if united and united[-1][0] == actor and united[-1][2] == counter - 1:
            united[-1] = (actor, united[-1][1], counter)
        else:
            united.append((actor, counter, counter))
    return united


@st.composite
def canonical_records(draw: st.DrawFn) -> bytes:
    """Records of the right form, the histories of which need not be honest."""
    entries = coalesced([*draw(range_lists), (1, 1, 1)])
    known = [(actor, counter) for actor, first, last in entries for counter in (first, last)]
    chosen = draw(st.lists(st.tuples(st.sampled_from(known), st.integers(0, 1), values), min_size=1, max_size=4))
    versions = {(*dot, time, op(1), value, int(not value and time)) for dot, time, value in chosen}
    if draw(st.integers(0, 5)) == 0:
        return encode(2, [], [sorted(versions)[0]])
    key = [(encode(2, [], [version])[12:73], version) for version in versions]
    return encode(1, entries, [version for _, version in sorted(key)])


raw_versions = st.tuples(numbers, numbers, numbers, st.just(op(1)), values, st.integers(0, 2))
raw_records = st.builds(encode, st.integers(0, 3), range_lists, st.lists(raw_versions, max_size=3))


@st.composite
def mutated(draw: st.DrawFn, source: st.SearchStrategy[bytes]) -> bytes:
    data = bytearray(draw(source))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, min(len(data) - 1, draw(st.sampled_from([11, 160, 1000]))))))
        change = draw(st.sampled_from(["flip", "cut", "insert", "repeat"]))
        if change == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif change == "cut":
            del data[at : at + draw(st.sampled_from([1, 8, 24, 61, 1000]))]
        elif change == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=4))
        else:
            data[at:at] = data[at : at + draw(st.sampled_from([24, 61]))]
    if draw(st.booleans()) and len(data) > 8:
        data[-8:] = xxhash.xxh3_64_digest(bytes(data[:-8]))
    return bytes(data)


records = st.one_of(canonical_records(), canonical_records(), mutated(canonical_records()), raw_records, st.just(b""), st.binary(max_size=120))
contexts = st.one_of(
    range_lists.map(lambda entries: pack(*coalesced(entries))), range_lists.map(lambda entries: pack(*entries)),
    mutated(range_lists.map(lambda entries: pack(*coalesced(entries)))), st.just(b""), st.binary(max_size=60),
)  # fmt: skip
operations = st.sampled_from([op(1), op(2), b"", op(1) + b"\0"])
tombstones = st.booleans()

actors = st.lists(any_numbers, max_size=3).map(tuple)
ARGUMENTS: dict[str, tuple[st.SearchStrategy[Any], ...]] = {
    "put": (records, contexts, any_numbers, any_numbers, any_numbers, any_numbers, operations, values, tombstones),
    "put_last_write_wins": (records, any_numbers, any_numbers, any_numbers, operations, values, tombstones),
    "forget": (records, actors),
    "merge": (records, records),
    "compare": (records, records),
    "versions": (records,),
    "version_count": (records,),
    "single_value": (records,),
    "visible": (records,),
    "context": (records,),
    "find_operation": (records, operations),
    "duplicate_dots": (records,),
    "verify": (records,),
    "check": (records,),
    "digest": (st.binary(max_size=9), records, any_numbers),
    "token_context": (records, contexts, any_numbers, any_numbers),
    "context_union": (contexts, contexts),
    "context_add": (contexts, any_numbers, any_numbers, any_numbers),
    "context_contains": (contexts, any_numbers, any_numbers),
    "context_covers": (contexts, contexts),
    "context_highest": (contexts, any_numbers),
    "context_keep": (contexts, actors),
    "context_gap": (contexts, contexts, any_numbers, any_numbers),
    "context_verify": (contexts,),
}


def outcome(module: ModuleType, name: str, arguments: tuple[Any, ...]) -> tuple[str, Any]:
    """What a call returns, or the class it raises. Any other class than these three fails the test."""
    try:
        return "returned", getattr(module, name)(*arguments)
    except (CorruptRecord, InvalidContext, ValueError) as error:
        return "raised", type(error)


@pytest.fixture(scope="session")
def twins(cores: Any) -> tuple[ModuleType, ModuleType]:
    compiled, pure = cores
    return compiled.record, pure.record


@pytest.mark.parametrize("name", ARGUMENTS)
@given(data=st.data())
@settings(max_examples=5 * settings.default.max_examples // 2)
def test_the_twins_agree_on_any_input(twins: tuple[ModuleType, ModuleType], name: str, data: st.DataObject) -> None:
    compiled, pure = twins
    arguments = data.draw(st.tuples(*ARGUMENTS[name]))
    assert outcome(compiled, name, arguments) == outcome(pure, name, arguments)


@given(records, records)
@example(*[encode(1, [(1, 1, 2)], [(1, counter, 5, op(1), b"v", 0)]) for counter in (1, 2)])
@settings(max_examples=4 * settings.default.max_examples)
def test_comparing_is_what_merging_does(record: ModuleType, a: bytes, b: bytes) -> None:
    """Also for records of no honest history. Commutative up to values that differ under one hash, which only damage makes."""
    merged = outcome(record, "merge", (a, b))
    assert outcome(record, "merge", (b, a))[0] == merged[0]
    if merged[0] == "raised":
        assert outcome(record, "compare", (a, b)) == merged
        return
    for x, y in ((a, b), (b, a)):
        order = record.compare(x, y)
        assert (order in (record.EQUAL, record.BEFORE)) == (headers(record.merge(x, y)) == headers(y))
    assert headers(merged[1]) == headers(record.merge(b, a))
    assert record.merge(merged[1], merged[1]) == merged[1]


def headers(data: bytes) -> bytes:
    """Everything but values and checksum."""
    return data[: 12 + 24 * int.from_bytes(data[4:8], "big") + 61 * int.from_bytes(data[8:12], "big")]


@given(range_lists, range_lists, numbers, numbers)
def test_contexts_are_sets(record: ModuleType, some: Any, more: Any, actor: int, counter: int) -> None:
    a, b, union = coalesced(some), coalesced(more), coalesced(some + more)
    assert record.context_union(pack(*a), pack(*b)) == pack(*union)
    assert record.context_contains(pack(*a), actor, counter) == any(r[0] == actor and r[1] <= counter <= r[2] for r in a)
    assert record.context_covers(pack(*a), pack(*b)) == (coalesced(a + b) == a)
    for since in range(8):
        missing = {(r[0], n) for r in b for n in range(r[1], r[2] + 1)} - {(r[0], n) for r in a for n in range(r[1], r[2] + 1)}
        assert record.context_gap(pack(*a), pack(*b), actor, since) == any(owner == actor and number >= since for owner, number in missing)


def test_every_function_is_compared(core: Any) -> None:
    public = {name for name, value in vars(core.record).items() if callable(value) and name[0] != "_"}
    made_here = {name for name in public if getattr(core.record, name).__module__.startswith("dynamo._core")}
    exported = getattr(core.record, "__all__", made_here)
    assert {name for name in made_here if name in exported} == set(ARGUMENTS)


def test_the_twins_have_the_same_signatures(twins: tuple[ModuleType, ModuleType]) -> None:
    compiled, pure = twins
    for name in ARGUMENTS:
        names = [list(inspect.signature(getattr(twin, name)).parameters) for twin in twins]
        assert names[0] == names[1], name
    for name in pure.__all__:
        if name.isupper():
            assert getattr(compiled, name) == getattr(pure, name)
