"""Retries: an operation gets one dot, over restarts and failed commits too, and the list that knows them stays bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo._core import record as records
from dynamo.errors import StorageFull
from dynamo.model import messages as m
from dynamo.model.cluster import BucketDefinition
from dynamo.replication.operations import BEHIND_PREFIX, BLOCK_OPERATIONS_MIN, PREFIX, Operations

from .rig import Rig

FIRST, SECOND = b"1" * 16, b"2" * 16


def put_and_replace(rig: Rig, node: bytes, bucket: bytes = b"default") -> m.Message:
    """The reply to a first put, whose version a second one has replaced since."""
    reply = rig.put(node, b"k", b"1", operation=FIRST, bucket=bucket)
    assert rig.put(node, b"k", b"2", reply[4], operation=SECOND, bucket=bucket)[0] == m.PUT_REPLY
    return reply


@pytest.mark.parametrize("kind", ["siblings", "last_write_wins"])
@pytest.mark.parametrize("restart", [False, True])
def test_a_retry_of_a_replaced_version_keeps_its_dot_also_after_a_crash(kind: str, restart: bool) -> None:
    rig = Rig(buckets={b"b": BucketDefinition(kind=kind)})
    a = rig.owners(b"k", b"b")[0]
    first = put_and_replace(rig, a, b"b")
    if restart:
        rig.boot(a)
    retry = rig.put(a, b"k", b"1", operation=FIRST, bucket=b"b")
    assert retry[5:7] == first[5:7]
    assert rig.values(rig.get(a, b"k", bucket=b"b")) == [b"2"]


def test_an_operation_is_forgotten_with_the_commit_that_failed_and_no_other_is() -> None:
    rig = Rig()
    a = rig.owners(b"k")[0]
    first = put_and_replace(rig, a)
    rig.nodes[a].fail_commits = StorageFull("full")
    failed = b"3" * 16
    rig.put(a, b"other", b"3", operation=failed)
    rig.nodes[a].fail_commits = None
    rig.pass_time(2)
    operations = rig.nodes[a].replica.core.rows.operations
    assert operations.get(failed) is None
    assert rig.put(a, b"k", b"1", operation=FIRST)[5:7] == first[5:7]


def test_a_retry_whose_row_was_lost_is_written_anew() -> None:
    """The list says that the write was here, but what the row holds now, from peers that never had it, does not cover it."""
    rig = Rig()
    a, b, c = rig.owners(b"k")
    rig.down(b)
    rig.down(c)
    rig.put(a, b"k", b"1", operation=FIRST, w=1)
    del rig.nodes[a].objects[rig.row_key(b"k")]
    rig.put(a, b"k", b"2", operation=SECOND, w=1)
    assert rig.put(a, b"k", b"1", operation=FIRST, w=1)[0] == m.PUT_REPLY
    assert rig.values(rig.get(a, b"k", r=1)) == [b"1", b"2"]


def test_a_retry_whose_last_write_is_gone_is_written_anew_and_later() -> None:
    """The row was lost, and what it holds now, from peers that never had the write, is older: to say `done` would lose the write, and the token would
    let the client's next one be older than this one where that survives (found by seed 909)."""
    rig = Rig(buckets={b"b": BucketDefinition(kind="last_write_wins")})
    a, b, c = rig.owners(b"k", b"b")
    rig.down(b)
    rig.down(c)
    row_key, objects = rig.row_key(b"k", b"b"), rig.nodes[a].objects
    rig.put(a, b"k", b"0", bucket=b"b", w=1)
    older = objects[row_key]
    for lost in (older, None):
        objects[row_key] = older
        first = rig.put(a, b"k", b"1", operation=FIRST, bucket=b"b", w=1)
        time = records.versions(rig.record(a, b"k", b"b") or b"")[0][2]
        objects.pop(row_key)
        if lost is not None:
            objects[row_key] = lost
        retry = rig.put(a, b"k", b"1", operation=FIRST, bucket=b"b", w=1)
        assert first[0] == retry[0] == m.PUT_REPLY
        assert rig.values(rig.get(a, b"k", bucket=b"b", r=1)) == [b"1"]
        assert records.versions(rig.record(a, b"k", b"b") or b"")[0][2] > time
        again = rig.put(a, b"k", b"1", operation=FIRST, bucket=b"b", w=1)
        assert again[5:7] == retry[5:7]
        rig.put(a, b"k", b"later", again[4], bucket=b"b", w=1)
        assert rig.put(a, b"k", b"1", operation=FIRST, bucket=b"b", w=1)[5:7] == retry[5:7]  # replaced by what is later: done
        assert rig.values(rig.get(a, b"k", bucket=b"b", r=1)) == [b"later"]
        rig.nodes[a].replica.core.rows.operations._recent.pop(FIRST)


def test_a_replica_remembers_the_later_of_two_attempts() -> None:
    """Where an operation was written anew, later, a record between the two in time does not have it."""
    rig = Rig(buckets={b"b": BucketDefinition(kind="last_write_wins")})
    a, b, c = rig.owners(b"k", b"b")
    rig.down(c)
    row_key = rig.row_key(b"k", b"b")

    def put(node: bytes, body: bytes, operation: bytes, w: int = 2) -> None:
        assert rig.put(node, b"k", body, operation=operation, bucket=b"b", w=w)[0] == m.PUT_REPLY

    def lose() -> None:
        for node in (a, b):
            del rig.nodes[node].objects[row_key]

    put(a, b"1", FIRST)
    lose()
    put(a, b"between", SECOND)
    between = rig.nodes[b].objects[row_key]
    lose()
    put(a, b"1", FIRST)
    rig.down(a)
    rig.nodes[b].objects[row_key] = between
    put(b, b"1", FIRST, w=1)
    assert rig.values(rig.get(b, b"k", bucket=b"b", r=1)) == [b"1"]


class TestOperations:
    @given(st.lists(st.tuples(st.integers(1, 40), st.booleans()), max_size=30), st.integers(1, 100))
    def test_what_is_stored_is_what_is_known_and_bounded(self, groups: list[tuple[int, bool]], count_max: int) -> None:
        table: dict[bytes, bytes] = {}
        operations, made = Operations(count_max), 0
        committed: list[bytes] = []
        for size, commits in groups:
            names = [(made + i).to_bytes(16, "big") for i in range(size)]
            made += size - size // 3  # the last ones come again: written anew, for their row was lost
            for name in names:
                operations.stage(name, b"row-" + name[-2:], (7, made, 9))
            changes = operations.take()
            if commits:
                operations.committed()
                committed += names
                for key, value in changes.items():
                    assert PREFIX <= key < BEHIND_PREFIX
                    if value is None:
                        table.pop(key, None)
                    else:
                        table[key] = value
            else:
                operations.failed()
                assert all(operations.get(name) is None for name in names)
        again = Operations(count_max, table.items())
        for name in dict.fromkeys(reversed(committed)) if all(commits for _, commits in groups) else ():
            assert again.get(name) == operations.get(name)
        for name in committed[-count_max:] if all(commits for _, commits in groups) else ():
            assert operations.get(name) is not None
        assert set(committed) >= set(again._recent)
        assert len(again) <= count_max + BLOCK_OPERATIONS_MIN + 40

    def test_the_form_of_a_block(self) -> None:
        operations = Operations(10)
        operations.stage(FIRST, b"row", (1, 2, 3))
        (block,) = operations.take().items()
        assert block == (b"operations/" + bytes(8), bytes.fromhex(
            "02" "31313131313131313131313131313131" "0000000000000001" "0000000000000002" "0000000000000003" "0003" "726f77" "d97b4919e39c1405"))  # fmt: skip
        assert Operations(10, [block]).get(FIRST) == (b"row", 1, 2, 3)

    def test_a_damaged_block_is_left_out(self) -> None:
        operations = Operations(10)
        operations.stage(FIRST, b"row", (1, 2, 3))
        ((key, block),) = operations.take().items()
        assert block is not None
        for at in range(len(block)):
            assert Operations(10, [(key, block[:at])]).get(FIRST) is None
            assert Operations(10, [(key, block[:at] + bytes([block[at] ^ 1]) + block[at + 1 :])]).get(FIRST) is None
