"""Scans over a network that delays and reorders as it likes, with hedged requests: each live key once, whatever reply comes when."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from dynamo.errors import InvalidRequest, Unavailable
from dynamo.model import messages as m
from dynamo.model.cluster import BucketDefinition
from dynamo.model.messages import Message
from dynamo.replication import scan as policy
from dynamo.replication.put import PutFold
from dynamo.replication.quorum import FAILED

from .rig import CLIENT, Rig

BUCKET = b"default"


class SlowNetwork(Rig):
    """The messages of scans wait in one pool, and any of them may be the next to arrive; time passes in between."""

    def __init__(self, seed: int, nodes: int) -> None:
        self.rng = Random(seed)
        self.pool: list[tuple[Any, Any, Message]] = []
        super().__init__(nodes)

    def _send(self, node: Any, messages: list[tuple[Any, Message]]) -> None:
        for destination, message in messages:
            if message[0] in (m.SCAN_READ, m.SCAN_READ_REPLY):
                self.pool.append((destination, node.node_id, message))
            else:
                super()._send(node, [(destination, message)])

    def scan(self, node_id: bytes, cursor: bytes, limit: int) -> Message:
        """The answer to one SCAN, however long the network takes."""
        self.replies.clear()
        self.nodes[node_id].inbox.append((CLIENT, (m.SCAN, 1, BUCKET, b"", cursor, limit, 60_000)))
        while not self.replies:
            self.settle()
            if self.pool and self.rng.random() < 0.6:
                destination, source, message = self.pool.pop(self.rng.randrange(len(self.pool)))
                self.nodes[destination].inbox.append((source, message))
            else:
                self.now += 0.03
                for node in self.nodes.values():
                    node.replica.tick(self.now)
        return self.replies.pop()


@pytest.mark.parametrize("nodes", [3, 5])
def test_each_live_key_once_whatever_reply_comes_when(nodes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "PAGE_ROWS", 4)
    for seed in range(40):
        rig = SlowNetwork(seed, nodes)
        for number in range(30):
            assert rig.put(rig.ids[0], b"key-%d" % number, b"v")[0] == m.PUT_REPLY
        found: list[bytes] = []
        cursor, finished = b"", False
        while not finished:
            reply = rig.scan(rig.rng.choice(rig.ids), cursor, rig.rng.choice([0, 1, 7]))
            assert reply[0] == m.SCAN_REPLY, reply
            found += [entry[0] for entry in reply[4]]
            cursor = reply[5]
            finished = not cursor
        assert sorted(found) == sorted(b"key-%d" % number for number in range(30)), f"seed {seed}"
        assert not any(type(fold).__name__ == "PendingScan" for node in rig.nodes.values() for fold in node.replica.core.pending.values())


def test_a_damaged_row_in_the_way_is_named_and_repaired() -> None:
    rig = Rig()
    for number in range(20):
        rig.put(rig.ids[0], b"key-%d" % number, b"v")
    row_key = rig.row_key(b"key-7")
    for node_id in rig.ids[:2]:
        table = rig.nodes[node_id].objects
        table[row_key] = table[row_key][:-1] + bytes([table[row_key][-1] ^ 1])
    message = (m.SCAN, 0, BUCKET, b"", b"", 0, 1000)
    reply = rig.ask(rig.ids[0], message)
    assert reply[0] == m.SCAN_REPLY and len(reply[4]) == 20  # as many as there are: the scan goes on
    assert [entry[:3] for entry in reply[4] if not entry[2]] == [(b"key-7", b"", ())]
    rig.pass_time(3)
    reply = rig.ask(rig.ids[0], message)
    assert reply[0] == m.SCAN_REPLY and len(reply[4]) == 20


# --- which answers count, and whose ---------------------------------------------------------------------------------------------------


def scan(rig: Rig, node_id: bytes, r: int = 0, pr: int = 0, wait_s: float = 0.0, cursor: bytes = b"") -> Message:
    return rig.ask(node_id, (m.SCAN, 0, BUCKET, b"", cursor, 0, 5000, r, pr), wait_s)


def whole_scan(rig: Rig, node_id: bytes, r: int = 0, pr: int = 0, wait_s: float = 0.0) -> tuple[list[bytes], int]:
    """(keys found, fewest owners that answered)"""
    keys: list[bytes] = []
    owners, cursor, first = 255, b"", True
    while first or cursor:
        reply = scan(rig, node_id, r, pr, wait_s, cursor)
        assert reply[0] == m.SCAN_REPLY, reply
        keys += [entry[0] for entry in reply[4]]
        owners, cursor, first = min(owners, reply[6]), reply[5], False
    return sorted(keys), owners


def filled(nodes: int = 5, keys: int = 40, buckets: dict[bytes, BucketDefinition] | None = None, **settings: Any) -> tuple[Rig, list[bytes]]:
    rig = Rig(nodes, buckets, **settings)
    names = sorted(b"key-%d" % number for number in range(keys))
    for name in names:
        assert rig.put(rig.ids[0], name, b"v")[0] == m.PUT_REPLY
    return rig, names


def test_a_scan_and_get_many_need_the_same_nodes_with_two_of_five_down() -> None:
    rig, _ = filled()
    owners = rig.owners(b"key-1")
    for node_id in owners[1:]:
        rig.down(node_id)
    late = [b"late-%d" % number for number in range(30)]
    coordinator = next(node_id for node_id in rig.ids if rig.nodes[node_id].up)
    for name in late:
        assert rig.put(coordinator, name, b"v", w=2, wait_s=0.5)[0] == m.PUT_REPLY
    for node_id in rig.ids:
        if rig.nodes[node_id].up:
            keys, answered = whole_scan(rig, node_id, wait_s=0.5)
            assert set(late) <= set(keys)  # one owner and who stood in when they were written, or more
            assert answered == 1
    reply = scan(rig, coordinator, pr=2, wait_s=0.5)
    assert (reply[0], reply[2], reply[5], reply[6]) == (m.ERROR, Unavailable.code, 2, 1)
    assert "pr=2" in reply[3]


def test_late_owners_are_stood_in_for_by_fallbacks_and_not_before_they_are_late() -> None:
    rig, names = filled(3 + 2)
    coordinator = rig.ids[0]
    silent = [node_id for node_id in rig.ids if node_id != coordinator][:2]
    for node_id in silent:
        rig.nodes[node_id].up = False  # nobody is told: the messages are lost
    keys, _ = whole_scan(rig, coordinator, wait_s=3)
    assert keys == names


def test_pr_counts_owners_only_and_more_than_there_are_is_refused_by_number() -> None:
    rig, names = filled()
    assert whole_scan(rig, rig.ids[1], pr=3) == (names, 3)
    assert whole_scan(rig, rig.ids[1], r=1) == (names, 1)
    reply = scan(rig, rig.ids[1], pr=4)
    assert (reply[0], reply[2], reply[5]) == (m.ERROR, Unavailable.code, 4)


def test_the_buckets_own_r_and_pr_are_obeyed() -> None:
    rig = Rig(5, {b"strict": BucketDefinition(r=1, pr=3), b"lax": BucketDefinition(r=1)})
    for bucket in (b"strict", b"lax"):
        assert rig.put(rig.ids[0], b"k", b"v", bucket=bucket)[0] == m.PUT_REPLY
    rig.down(rig.owners(b"k", b"strict")[0])
    coordinator = next(node_id for node_id in rig.ids if rig.nodes[node_id].up)
    reply = rig.ask(coordinator, (m.SCAN, 0, b"strict", b"", b"", 0, 5000), 0.5)
    assert (reply[0], reply[2], reply[5]) == (m.ERROR, Unavailable.code, 3)
    reply = rig.ask(coordinator, (m.SCAN, 0, b"lax", b"", b"", 0, 5000), 0.5)
    assert reply[0] == m.SCAN_REPLY and [entry[0] for entry in reply[4]] == [b"k"]


@pytest.mark.parametrize("standing", [m.FALLBACK, m.RECOVERING])
def test_the_page_of_a_node_that_says_it_is_no_owner_counts_for_none(standing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rig, names = filled(3)
    newcomers = {rig.ids[1]}
    for node_id in newcomers:
        rig.nodes[node_id].objects.clear()  # as of one that has just become an owner
    real = policy.standing_of_all
    needs = ((1, (rig.ids[0],)),) if standing == m.RECOVERING else ()
    monkeypatch.setattr(policy, "standing_of_all", lambda core, *rest: (standing, needs) if core.node_id in newcomers else real(core, *rest))
    for node_id in rig.ids:
        keys, answered = whole_scan(rig, node_id, r=2)
        assert keys == names and answered >= 2
    newcomers.add(rig.ids[2])
    for node_id in rig.ids:
        if needs:  # with the one that they need they count
            assert whole_scan(rig, node_id, r=2, wait_s=0.5)[0] == names
        else:
            reply = scan(rig, node_id, r=2, wait_s=0.5)
            assert (reply[0], reply[2]) == (m.ERROR, Unavailable.code)
    rig.down(rig.ids[0])
    for node_id in rig.ids[1:]:
        reply = scan(rig, node_id, r=2, wait_s=0.5)
        assert (reply[0], reply[2]) == (m.ERROR, Unavailable.code)


def test_a_damaged_row_is_a_failed_answer_for_its_key_and_not_for_its_page() -> None:
    rig, names = filled(3)
    for number, node_id in enumerate(rig.ids):  # one at each owner, another key each: a page as a whole is sound nowhere
        row_key = rig.row_key(b"key-%d" % number)
        table = rig.nodes[node_id].objects
        table[row_key] = table[row_key][:-1] + bytes([table[row_key][-1] ^ 1])
    keys, owners = whole_scan(rig, rig.ids[0], r=2)
    assert keys == names and owners >= 2


def test_counts_that_are_no_numbers_of_nodes_are_refused() -> None:
    rig, _ = filled(3, 1)
    for r, pr in (("2", 0), (0, 256), (-1, 0), (True, 0)):
        reply = scan(rig, rig.ids[0], r, pr)
        assert (reply[0], reply[2]) == (m.ERROR, InvalidRequest.code)


def test_an_owner_by_its_own_ring_alone_is_none_of_those_that_get_and_put_count() -> None:
    fold = PutFold(2, 2, (b"a", b"b"), 0)
    fold.outstanding = {b"a", b"x"}
    fold.confirm(b"x", m.OWNER, 0)
    assert fold.owners_confirmed == 0
    assert fold.confirm(b"a", m.OWNER, 0) == FAILED and fold.owners_confirmed == 1
