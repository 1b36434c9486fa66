"""Rows that cannot be read, or lie where none can: in a cluster they are repaired, in the way of nobody, and an error says whose fault it was."""

from __future__ import annotations

import random

import pytest

from dynamo.errors import CorruptRecord, StorageFailed, StorageFull, Unavailable
from dynamo.model import messages as m
from dynamo.model.cluster import BucketDefinition
from dynamo.model.key import split_row_key
from dynamo.model.row import decode_row, encode_row

from .rig import Rig

SCAN = (m.SCAN, 0, b"default", b"", b"", 0, 1000)
KEYS = [b"key-%d" % number for number in range(20)]


def flip(rig: Rig, key: bytes, *nodes: bytes) -> None:
    row_key = rig.row_key(key)
    for node_id in nodes:
        table = rig.nodes[node_id].objects
        table[row_key] = table[row_key][:-1] + bytes([table[row_key][-1] ^ 1])


def test_a_set_that_meets_a_damaged_row_goes_on_with_what_the_others_have() -> None:
    rig = Rig()
    a, *_ = rig.ids
    rig.put(a, b"k", b"v")
    flip(rig, b"k", a)
    reply = rig.put(a, b"k", b"w", mode=m.MODE_SET)
    assert reply[0] == m.PUT_REPLY, reply
    assert rig.values(rig.get(a, b"k", r=3)) == [b"w"], "the set replaced what this node had before it was damaged"
    rig.pass_time(3)
    assert len({rig.record(node, b"k") for node in rig.ids}) == 1


@pytest.mark.parametrize("value", [b"w", None])
@pytest.mark.parametrize("nodes", [1, 2, 3, 5])
def test_a_key_whose_row_is_damaged_at_every_owner_is_not_stuck(nodes: int, value: bytes | None) -> None:
    rig = Rig(nodes)
    for number, node in enumerate(rig.ids):
        rig.put(node, b"k", b"v%d" % number)
    owners = [node for node in rig.ids if rig.row_key(b"k") in rig.nodes[node].objects]
    flip(rig, b"k", *owners)
    for node in rig.ids:
        reply = rig.get(node, b"k")
        assert (reply[0], reply[2]) == (m.ERROR, CorruptRecord.code) and "b'k'" in reply[3]
    for node in owners:  # another one would keep it as a stand-in
        reply = rig.put(node, b"k", b"x")
        assert (reply[0], reply[2], reply[4]) == (m.ERROR, CorruptRecord.code, False)
    operation = bytes(range(16))
    for _ in range(3):  # as a client does, with another node or again
        reply = rig.put(owners[0], b"k", value, mode=m.MODE_SET, operation=operation)
        if reply[0] == m.PUT_REPLY:
            break
        assert reply[2] == CorruptRecord.code
        rig.pass_time(0.2)
    assert reply[0] == m.PUT_REPLY, reply
    rig.pass_time(3)
    for node in rig.ids:
        assert rig.values(rig.get(node, b"k")) == ([] if value is None else [value])
    assert len({rig.record(node, b"k") for node in owners}) == 1


def test_a_damaged_row_is_not_overwritten_while_an_owner_cannot_be_asked() -> None:
    rig = Rig()
    a, b, c = rig.ids
    rig.put(a, b"k", b"v")
    flip(rig, b"k", a, b)
    rig.down(c)
    reply = rig.put(a, b"k", b"w", mode=m.MODE_SET, w=1)
    assert (reply[0], reply[2], reply[4]) == (m.ERROR, CorruptRecord.code, False)
    rig.back(c)
    rig.pass_time(3)
    assert rig.values(rig.get(a, b"k")) == [b"v"]


def test_a_scan_goes_on_past_rows_that_are_damaged_at_some_owners_or_all() -> None:
    rig = Rig()
    for key in KEYS:
        rig.put(rig.ids[0], key, b"v")
    flip(rig, KEYS[3], rig.ids[0])
    reply = rig.ask(rig.ids[0], SCAN)
    assert reply[0] == m.SCAN_REPLY
    assert sorted(entry[0] for entry in reply[4] if entry[2]) == sorted(KEYS), "two owners have it whole, and two are enough"
    flip(rig, KEYS[5], *rig.ids)
    for node in rig.ids:
        found, cursor, damaged = [], b"", []
        while True:
            reply = rig.ask(node, (*SCAN[:4], cursor, 4, 1000))
            assert reply[0] == m.SCAN_REPLY
            found += [entry[0] for entry in reply[4] if entry[2]]
            damaged += [entry[0] for entry in reply[4] if not entry[2]]
            cursor = reply[5]
            if not cursor:
                break
        assert (sorted(found), damaged) == (sorted({*KEYS} - {KEYS[5]}), [KEYS[5]])


def test_deleted_keys_are_no_damaged_ones() -> None:
    rig = Rig()
    for key in KEYS:
        rig.put(rig.ids[0], key, b"v")
        rig.put(rig.ids[0], key, None, mode=m.MODE_SET)
    assert rig.ask(rig.ids[0], SCAN)[4] == ()


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("nodes", [1, 3, 5])
def test_a_sound_record_of_another_kind_than_its_bucket_is_a_damaged_one(nodes: int, everywhere: bool) -> None:
    """It could be merged with none, and ended a node that tried."""
    rig = Rig(nodes, buckets={b"lww": BucketDefinition(kind="last_write_wins")}, exchange_interval_s=1.0)
    buckets = (b"default", b"lww")
    for bucket in buckets:
        rig.put(rig.ids[0], b"k", b"v", bucket=bucket)
    keys = [rig.row_key(b"k", bucket) for bucket in buckets]
    for node_id in rig.ids if everywhere else rig.owners(b"k")[:1]:
        table = rig.nodes[node_id].objects
        if all(key in table for key in keys):
            one, other = (decode_row(key, table[key]) for key in keys)
            table[keys[0]], table[keys[1]] = encode_row(keys[0], other), encode_row(keys[1], one)
    for bucket in buckets:
        reply = rig.get(rig.ids[0], b"k", bucket=bucket, r=min(nodes, 3))
        assert reply[0] == m.GET_REPLY or reply[2] == CorruptRecord.code
        assert rig.ask(rig.ids[0], (m.SCAN, 0, bucket, *SCAN[3:]))[0] == m.SCAN_REPLY
        rig.pass_time(3)
        for _ in range(2):
            rig.put(rig.ids[0], b"k", b"w", bucket=bucket, mode=m.MODE_SET)
            rig.pass_time(2)
        assert rig.values(rig.get(rig.ids[0], b"k", bucket=bucket)) == [b"w"]


# --- rows and hints that cannot be ----------------------------------------------------------------------------------------------------


def nonsense(rig: Rig, row: bytes) -> dict[bytes, bytes]:
    rng = random.Random(1)
    keys = [b"\0", b"\0\1", b"\xff\xff", b"\0\x08default\0k", b"\xff\xfedefault\0k", b"\0\1default", b"\0\1default\0", b"\0\1\0k", b"\0\1a b\0k"]
    keys += [partition.to_bytes(2, "big") + b"default\0wrong" for partition in range(16)]
    keys += [b"\0\1default\0" + b"k" * 480, (b"\0\1default\0" + b"k" * 511)[:511], (b"\0\x09default\0" + b"k" * 511)[:511], b"\0\1" + bytes(509)]
    keys += [rng.randbytes(rng.choice([1, 3, 20, 511])) for _ in range(50)]
    return {key: rng.choice([row, b"", b"x", rng.randbytes(80)]) for key in keys if key != rig.row_key(b"wrong")}


@pytest.mark.parametrize("nodes", [1, 3, 5])
def test_a_node_starts_and_serves_with_rows_under_keys_that_cannot_be(nodes: int) -> None:
    """With five nodes, and three owners, rows are handed over too."""
    rig = Rig(nodes, exchange_interval_s=1.0)
    for key in KEYS:
        rig.put(rig.ids[0], key, b"v")
    for node_id in rig.ids:
        node = rig.nodes[node_id]
        row = next(iter(node.objects.values()))
        node.objects |= nonsense(rig, row)
        rig.boot(node_id)
    for node_id in rig.ids:
        rig.back(node_id)
    rig.pass_time(15)
    for node_id in rig.ids:
        for key in KEYS:
            assert rig.values(rig.get(node_id, key)) == [b"v"]
        reply = rig.ask(node_id, SCAN)
        assert sorted(entry[0] for entry in reply[4] if entry[2]) == sorted(KEYS)
        assert rig.nodes[node_id].replica.core.counters["rows_misplaced"]
        for row_key, row in rig.nodes[node_id].objects.items():
            assert split_row_key(row_key)[2] != b"wrong" or rig.row_key(b"wrong") != row_key or not row, "handed over under a key of its own"


def test_a_node_starts_and_replays_with_hints_that_cannot_be() -> None:
    rig = Rig(3)
    a, b, c = rig.ids
    rig.down(c)
    for key in KEYS:
        rig.put(a, key, b"v")
    node, rng = rig.nodes[a], random.Random(2)
    hinted = len(node.hints)
    assert hinted
    size = (10).to_bytes(4, "big")
    row_key = rig.row_key(KEYS[0])
    bad = {c[:7]: b"", c: size, c + b"\0": size, c + b"\xff\xffdefault\0k": size, c + b"\0\1default\0": size, c + row_key + b"x": b"", b"": size}
    bad |= {c + row_key[:-1]: b"\xff" * 4, rng.randbytes(16) + b"\xff" * 30: size, rng.randbytes(3): rng.randbytes(3)}
    bad |= {c + b"\0\1" + bytes(16): size + bytes(511), c + b"\0\1" + b"y" * 16: size + b"z" * 600}
    bad |= {rng.randbytes(rng.choice([1, 16, 40])): rng.randbytes(rng.choice([0, 4, 30])) for _ in range(50)}
    bad.pop(b"")
    stranger = {rng.randbytes(16) + row_key: size}  # of no member
    node.hints |= bad | stranger
    node.objects[b"\xff\xffdefault\0k"] = node.objects[row_key]
    rig.boot(a)
    assert sum(node.replica.core.hints.owed.values()) == hinted + 1
    assert node.replica.core.hints.bytes < 1 << 20
    rig.back(c)
    for other in (a, b):
        rig.nodes[c].replica.peer_up(other, rig.now)
        rig.nodes[other].replica.peer_up(c, rig.now)
    rig.pass_time(10)
    assert all(rig.record(c, key) == rig.record(a, key) for key in KEYS)
    assert set(node.hints) == set(bad), "those that could be were delivered or cleared away"


# --- whose fault it was ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [StorageFull("the disk under /d is full; free space there"), StorageFailed("the disk failed /d")])
@pytest.mark.parametrize("mode", [m.MODE_PUT, m.MODE_SET])
def test_a_lone_node_whose_commit_fails_says_why(error: StorageFull | StorageFailed, mode: int) -> None:
    rig = Rig(1)
    rig.nodes[rig.ids[0]].fail_commits = error
    reply = rig.put(rig.ids[0], b"k", b"v", mode=mode)
    assert (reply[0], reply[2], reply[4]) == (m.ERROR, error.code, True)
    assert str(error) in reply[3] and "nodes needed" not in reply[3]
    rig.pass_time(1)
    reply = rig.ask(rig.ids[0], (m.PUT_MANY, 0, b"default", ((b"a", b"1", None, bytes(16)), (b"b", None, None, bytes(15) + b"x")), mode, 0, 0, 5000), 1.0)
    assert [(entry[0], entry[2]) for entry in reply[2]] == [(m.ERROR, error.code)] * 2
    assert all(str(error) in entry[3] for entry in reply[2])


def test_where_a_full_disk_is_what_keeps_a_quorum_away_the_error_says_so() -> None:
    rig = Rig(3)
    a, b, c = rig.ids
    rig.nodes[b].fail_commits = rig.nodes[c].fail_commits = StorageFull("b and c are full")
    reply = rig.put(a, b"k", b"v")
    assert (reply[0], reply[2], reply[4]) == (m.ERROR, StorageFull.code, True)
    assert "1 of the 2 nodes" in reply[3] and "free space" in reply[3]
    rig.nodes[b].fail_commits = rig.nodes[c].fail_commits = None
    rig.pass_time(2)
    rig.nodes[a].fail_commits = rig.nodes[b].fail_commits = StorageFull("the disk under /a is full")
    reply = rig.put(a, b"k2", b"v")
    assert (reply[0], reply[2]) == (m.ERROR, StorageFull.code) and "/a" in reply[3]


def test_where_nodes_are_missing_as_well_the_error_says_that() -> None:
    rig = Rig(3)
    a, b, c = rig.ids
    rig.put(a, b"k", b"v")
    flip(rig, b"k", a)
    rig.down(b)
    rig.down(c)
    reply = rig.get(a, b"k")
    assert (reply[0], reply[2]) == (m.ERROR, Unavailable.code)


@pytest.mark.parametrize("nodes", [1, 3])
def test_reads_and_scans_that_the_disk_fails_say_so(nodes: int) -> None:
    rig = Rig(nodes)
    for key in KEYS:
        rig.put(rig.ids[0], key, b"v")
    failure = StorageFailed("the disk of this node cannot be read")

    def fails(*_: object) -> object:
        raise failure

    for node_id in rig.ids:
        core = rig.nodes[node_id].replica.core
        core.rows._read = lambda key: failure
        core.scan = fails  # type: ignore[assignment]
    for message in (SCAN, (m.GET, 0, b"default", KEYS[0], 0, 0, 1000)):
        reply = rig.ask(rig.ids[0], message)
        assert (reply[0], reply[2]) == (m.ERROR, StorageFailed.code)
        assert str(failure) in reply[3]
    reply = rig.put(rig.ids[0], KEYS[0], b"w")
    assert (reply[0], reply[2], reply[4]) == (m.ERROR, StorageFailed.code, False)
    many = rig.ask(rig.ids[0], (m.GET_MANY, 0, b"default", tuple(KEYS[:3]), 0, 0, 1000))
    assert [(entry[0], entry[2]) for entry in many[2]] == [(m.ERROR, StorageFailed.code)] * 3
