"""Durability `buffered` (paper 6.1): acknowledged from memory by W nodes, with one replica of N asked for a synced write that W does not wait for."""

from __future__ import annotations

from typing import Any

import pytest

from dynamo.errors import StorageFailed
from dynamo.model import messages as m
from dynamo.model.messages import Message

from .rig import Node, Rig


class BufferedRig(Rig):
    """Nodes whose commits end in a buffer, and are flushed when the test says so. Keeps what nodes send to each other."""

    durability = m.DURABILITY_BUFFERED

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self.sent: list[tuple[bytes, Any, Message]] = []
        super().__init__(*arguments, **{"exchange_interval_s": 1e9, **settings})
        for node_id in self.ids:
            self.flush(node_id)

    def _send(self, node: Node, messages: list[tuple[Any, Message]]) -> None:
        self.sent += [(node.node_id, destination, message) for destination, message in messages]
        super()._send(node, messages)

    def flush(self, node_id: bytes, error: StorageFailed | None = None) -> None:
        replica = self.nodes[node_id].replica
        replica.flushed(replica.core.rows.groups, error, self.now)
        self.settle()

    def replicates(self) -> dict[bytes, int]:
        """Whom a write was sent to, and the durability asked."""
        return {to: message[11] for _, to, message in self.sent if message[0] == m.REPLICATE}

    def answers(self) -> list[tuple[bytes, int, int]]:
        """(replica, code, durability given) of the answers to that, in their order."""
        return [(node, message[2], message[4]) for node, _, message in self.sent if message[0] == m.REPLICATE_REPLY]


def test_one_replica_is_asked_for_a_synced_write_and_w_does_not_wait_for_it() -> None:
    rig = BufferedRig()
    a, b, c = rig.owners(b"k")
    rig.sent.clear()
    reply = rig.put(a, b"k", b"v")
    assert (reply[0], reply[8], reply[9]) == (m.PUT_REPLY, 2, m.DURABILITY_BUFFERED)
    assert rig.replicates() == {b: m.DURABILITY_BUFFERED, c: m.DURABILITY_SYNCED}
    assert rig.answers() == [(b, 0, m.DURABILITY_BUFFERED)]
    rig.flush(b)
    assert len(rig.answers()) == 1
    rig.flush(c)
    assert rig.answers()[1:] == [(c, 0, m.DURABILITY_SYNCED)]
    assert not rig.nodes[a].replica.core.pending


def test_the_group_somebody_waits_for_is_marked_so_that_it_is_flushed_soon() -> None:
    rig = BufferedRig()
    a, b, c = rig.owners(b"k")
    prompt: dict[bytes, list[bool]] = {node: [] for node in rig.ids}
    apply = Node.apply

    def watched(node: Node, group: Any) -> None:
        prompt[node.node_id].append(group.prompt)
        apply(node, group)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Node, "apply", watched)
        rig.put(a, b"k", b"v")
    assert prompt == {a: [False], b: [False], c: [True]}


@pytest.mark.parametrize(("w", "pw"), [(3, 0), (1, 3)])
def test_where_all_owners_are_needed_none_is_asked_for_more_than_the_others(w: int, pw: int) -> None:
    rig = BufferedRig()
    a, b, c = rig.owners(b"k")
    rig.sent.clear()
    reply = rig.ask(a, (m.PUT, 0, b"default", b"k", b"v", None, m.MODE_PUT, w, pw, 5000, bytes(16)))
    assert reply[0] == m.PUT_REPLY and reply[8] == 3
    assert rig.replicates() == {b: m.DURABILITY_BUFFERED, c: m.DURABILITY_BUFFERED}


def test_nor_while_an_owner_is_down() -> None:
    rig = BufferedRig()
    a, b, c = rig.owners(b"k")
    rig.down(c)
    rig.sent.clear()
    assert rig.put(a, b"k", b"v")[8] == 2
    assert rig.replicates() == {b: m.DURABILITY_BUFFERED}


def test_a_write_that_the_buffer_holds_already_is_vouched_for_only_when_it_is_flushed() -> None:
    rig = BufferedRig()
    a, b, _ = rig.owners(b"k")
    rig.put(a, b"k", b"v")
    again = next(message for _, to, message in rig.sent if message[0] == m.REPLICATE and to == b)
    rig.sent.clear()
    rig.nodes[b].inbox.append((a, (*again[:11], m.DURABILITY_SYNCED, *again[12:])))
    rig.settle()
    assert rig.answers() == []
    rig.flush(b)
    assert rig.answers() == [(b, 0, m.DURABILITY_SYNCED)]
    rig.nodes[b].inbox.append((a, (*again[:11], m.DURABILITY_SYNCED, *again[12:])))
    rig.settle()
    assert rig.answers()[1:] == [(b, 0, m.DURABILITY_SYNCED)]  # it is on disk: at once


def test_a_failed_flush_is_no_acknowledgement_and_the_owner_is_owed_the_write() -> None:
    rig = BufferedRig()
    a, _, c = rig.owners(b"k")
    rig.sent.clear()
    assert rig.put(a, b"k", b"v")[8] == 2
    rig.flush(c, StorageFailed("the disk"))
    assert rig.answers()[1:] == [(c, StorageFailed.code, m.DURABILITY_BUFFERED)]
    assert len(rig.nodes[a].hints) == 1
    rig.flush(c)
    assert len(rig.answers()) == 2  # and is not given later either


def test_a_commit_that_fails_takes_back_what_waits_for_its_flush_and_not_what_waits_for_earlier_ones() -> None:
    rig = BufferedRig()
    a, _, c = rig.owners(b"k")
    rig.put(a, b"k", b"first")
    second = rig.put(a, b"other", b"x", w=1)
    assert second[0] == m.PUT_REPLY
    rig.sent.clear()
    rig.nodes[c].fail_commits = StorageFailed("the disk")
    rig.put(a, b"k", b"second")
    assert rig.answers()[-1] == (c, StorageFailed.code, m.DURABILITY_BUFFERED)
    rig.nodes[c].fail_commits = None
    count = len([answer for answer in rig.answers() if answer[0] == c])
    rig.flush(c)
    later = [answer for answer in rig.answers() if answer[0] == c][count:]
    assert later and all(answer == (c, 0, m.DURABILITY_SYNCED) for answer in later)
    record = rig.record(c, b"k")
    assert record is not None and b"first" in record and b"second" not in record


def test_a_hint_is_dropped_when_the_row_is_on_the_targets_disk_and_not_before() -> None:
    rig = BufferedRig()
    a, _, c = rig.owners(b"k")
    rig.down(c)
    rig.put(a, b"k", b"v")
    assert len(rig.nodes[a].hints) == 1
    rig.boot(c)
    rig.back(c)
    rig.pass_time(3)
    assert rig.record(c, b"k") is not None and len(rig.nodes[a].hints) == 1, "in the buffer it may be lost again"
    rig.pass_time(0.9)
    rig.flush(c)
    rig.pass_time(3)
    rig.flush(c)
    assert not rig.nodes[a].hints


def test_a_row_kept_for_others_stays_until_it_is_on_the_disks_of_all_of_them() -> None:
    rig = BufferedRig(4)
    owners = rig.owners(b"k")
    (other,) = set(rig.ids) - set(owners)
    rig.down(owners[2])
    rig.put(owners[0], b"k", b"v")
    assert rig.record(other, b"k") is not None
    rig.boot(owners[2])
    rig.back(owners[2])
    rig.pass_time(6)
    assert rig.record(other, b"k") is not None
    for _ in range(8):
        rig.pass_time(0.5)
        for owner in owners:
            rig.flush(owner)
    assert rig.record(other, b"k") is None


def test_a_coordinator_of_a_stronger_durability_gets_it_from_a_buffered_replica() -> None:
    rig = BufferedRig()
    a, b, _ = rig.owners(b"k")
    rig.nodes[a].replica.core.durability = m.DURABILITY_SYNCED
    rig.nodes[a].inbox.append((1, (m.PUT, 77, b"default", b"k", b"v", None, m.MODE_PUT, 0, 0, 5000, b"1" * 16)))
    rig.settle()
    assert rig.replies == []
    rig.flush(b)
    (reply,) = rig.replies
    assert (reply[8], reply[9]) == (2, m.DURABILITY_SYNCED)
    assert [answer[0] for answer in rig.answers()] == [b]
