"""Rows kept for others: a copy that counted toward W stays until all owners have the row, and what was promised about it is on disk."""

from __future__ import annotations

from typing import Any

from dynamo.errors import StorageFailed, StorageFull
from dynamo.model import messages as m
from dynamo.model.messages import Message

from .rig import CLIENT, Node, Rig


class SlowRig(Rig):
    """A rig in which messages to one node can be kept back."""

    slow: bytes | None = None

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self.kept_back: list[tuple[bytes, Message]] = []
        super().__init__(*arguments, **settings)

    def _send(self, node: Node, messages: list[tuple[Any, Message]]) -> None:
        for destination, message in messages:
            if destination == self.slow:
                self.kept_back.append((node.node_id, message))
            else:
                super()._send(node, [(destination, message)])


def replicate(rig: Rig, number: int, record: bytes, target: bytes) -> Message:
    core = rig.nodes[rig.ids[0]].replica.core
    return (m.REPLICATE, number, b"default", b"k", record, m.PURPOSE_WRITE, target, 1000, core.ring_number, core.ring_hash, 0, 3, bytes(16))


def test_a_copy_that_counted_beside_the_owner_it_stood_in_for_stays_until_all_owners_have_the_row() -> None:
    rig = SlowRig(4, exchange_interval_s=1e9)
    a, b, c = rig.owners(b"k")
    (d,) = set(rig.ids) - {a, b, c}
    rig.slow = b
    rig.nodes[c].up = False  # silent, but nobody has noticed yet
    rig.nodes[a].fail_commits = StorageFailed("dies before it commits")
    rig.nodes[a].inbox.append((CLIENT, (m.PUT, 1, b"default", b"k", b"v", None, m.MODE_PUT, 2, 0, 5000, b"1" * 16)))
    rig.settle()
    rig.pass_time(0.3)
    rig.slow = None
    rig.nodes[b].inbox += rig.kept_back
    rig.settle()
    assert [(reply[0], reply[8]) for reply in rig.replies] == [(m.PUT_REPLY, 2)]  # b and d
    rig.nodes[a].up = False
    rig.pass_time(8)
    assert rig.record(b, b"k") and rig.record(d, b"k"), "one lost disk of the two would lose the write"
    rig.nodes[a].fail_commits = None
    for node in (a, c):
        rig.boot(node)
        rig.back(node)
    rig.pass_time(10)
    assert all(rig.record(node, b"k") for node in (a, b, c)) and rig.record(d, b"k") is None


def test_a_row_whose_hint_found_no_room_is_owed_all_the_same() -> None:
    rig = Rig(4, hint_bytes_max=0, exchange_interval_s=1e9)
    owners = rig.owners(b"k")
    (stand_in,) = set(rig.ids) - set(owners)
    rig.pass_time(3)
    for owner in owners:
        rig.down(owner)
    assert rig.put(stand_in, b"k", b"v", w=1)[0] == m.PUT_REPLY
    for owner in owners:
        rig.back(owner)
    rig.pass_time(10)
    assert all(rig.record(owner, b"k") for owner in owners) and rig.record(stand_in, b"k") is None


def test_a_hint_is_promised_when_it_is_on_disk_and_a_failed_commit_leaves_the_row_owed() -> None:
    rig = Rig(4, exchange_interval_s=1e9)
    a, b, c = rig.owners(b"k")
    (d,) = set(rig.ids) - {a, b, c}
    rig.put(a, b"k", b"v")
    record = rig.record(a, b"k")
    for owner in (b, c):
        rig.nodes[owner].objects.clear()
        rig.down(owner)
    node = rig.nodes[d]
    node.inbox.append((a, replicate(rig, 1, record, b)))
    rig.settle()
    node.replica.receive([(a, replicate(rig, 2, record, c))], rig.now)
    ready = node.replica.take_ready()
    assert ready.group.hints and not [message for _, message in ready.messages if message[0] == m.REPLICATE_REPLY]
    assert [message[2] for _, message in ready.messages_after_commit] == [0]
    node.replica.commit_failed(ready.group, StorageFull("full"), rig.now)
    rig.back(b)
    rig.pass_time(5)
    rig.back(c)
    rig.pass_time(10)
    assert rig.record(c, b"k") == record and rig.record(d, b"k") is None


def test_a_newer_row_under_a_hint_in_flight_waits_for_its_own_commit() -> None:
    rig = Rig(4, exchange_interval_s=1e9)
    a, b, c = rig.owners(b"k")
    (d,) = set(rig.ids) - {a, b, c}
    rig.put(a, b"k", b"1")
    first = rig.record(a, b"k")
    rig.put(a, b"k", b"2")
    second = rig.record(a, b"k")
    replica = rig.nodes[d].replica
    replica.receive([(a, replicate(rig, 1, first, c))], rig.now)
    flying = replica.take_ready()
    replica.receive([(a, replicate(rig, 2, second, c))], rig.now)
    replica.committed(flying.group, rig.now)
    ready = replica.take_ready()
    assert ready.group is not None
    assert [message[1] for _, message in flying.messages_after_commit] == [1]
    assert [message[1] for _, message in ready.messages if message[0] == m.REPLICATE_REPLY] == []
    assert [message[1] for _, message in ready.messages_after_commit] == [2]


def test_a_read_error_does_not_end_the_handoff() -> None:
    rig = Rig(4, exchange_interval_s=1e9)
    a, b, c = rig.owners(b"k")
    (d,) = set(rig.ids) - {a, b, c}
    rig.put(a, b"k", b"v")
    record = rig.record(a, b"k")
    for owner in (a, b, c):
        rig.nodes[owner].objects.clear()
    core = rig.nodes[d].replica.core
    rig.pass_time(3)
    rig.nodes[d].inbox.append((a, replicate(rig, 1, record, b"")))
    rig.settle()
    scan, failures = core.scan, [StorageFailed("once")]

    def flaky(*where: Any) -> Any:
        if failures:
            raise failures.pop()
        return scan(*where)

    core.scan = flaky
    rig.pass_time(20)
    assert not failures
    assert all(rig.record(owner, b"k") == record for owner in (a, b, c)) and rig.record(d, b"k") is None


def test_a_pass_with_an_owner_down_sends_a_window_at_a_time() -> None:
    rig = Rig(4, handoff_window=4, exchange_interval_s=1e9)
    keys = [b"key-%d" % number for number in range(300)]
    owned = [key for key in keys if rig.ids[3] not in rig.owners(key)]
    for key in owned:
        rig.put(rig.owners(key)[0], key, b"v")
        row_key = rig.row_key(key)
        rig.nodes[rig.ids[3]].objects[row_key] = rig.nodes[rig.owners(key)[0]].objects[row_key]
    rig.down(rig.ids[0])
    node = rig.nodes[rig.ids[3]]
    node.replica.handoff.wake(rig.now)
    node.replica.tick(rig.now + 0.01)
    sent = [message for _, message in node.replica.take_ready().messages if message[0] == m.OFFER]
    assert 0 < sum(len(message[2]) for message in sent) <= 4 * 3
