"""What is kept for others goes to those that lack it, once: over restarts, with owners down, flapping, refusing, and while rows change."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from dynamo.errors import StorageFull
from dynamo.model import messages as m
from dynamo.model.messages import Message

from .rig import Rig


class Listening(Rig):
    """Counts the records sent for owners, and the offers, by (target, key)."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        self.records: Counter[tuple[bytes, bytes]] = Counter()
        self.offered: Counter[tuple[bytes, bytes]] = Counter()
        super().__init__(*args, **{"exchange_interval_s": 1e9, **settings})

    def _send(self, node: Any, messages: list[tuple[Any, Message]]) -> None:
        for destination, message in messages:
            if message[0] == m.REPLICATE and message[5] == m.PURPOSE_HANDOFF:
                self.records[destination, message[3]] += 1
            elif message[0] == m.OFFER:
                self.offered.update((destination, key) for _, key, _ in message[2])
        super()._send(node, messages)

    def restart(self, node_id: bytes) -> None:
        known = self.nodes[node_id].replica.core.membership.members
        self.boot(node_id)
        self.nodes[node_id].replica.core.membership.merge_all(list(known.values()))

    def forget(self) -> None:
        self.records.clear()
        self.offered.clear()


def foreign(rig: Listening, keys: int = 100, missing: bool = False) -> tuple[bytes, list[bytes], dict[bytes, tuple[bytes, ...]]]:
    """(a node with rows of others, their keys, their owners); `missing`: the owners do not have them."""
    keeper = rig.ids[-1]
    rig.pass_time(5)  # until all know all
    owners = {key: rig.owners(key) for key in (b"key-%d" % number for number in range(keys)) if keeper not in rig.owners(key)}
    for key, (first, *_) in owners.items():
        rig.put(first, key, b"v")
        row_key = rig.row_key(key)
        rig.nodes[keeper].objects[row_key] = rig.nodes[first].objects[row_key]
        if missing:
            for owner in owners[key]:
                del rig.nodes[owner].objects[row_key]
    rig.restart(keeper)
    rig.forget()
    return keeper, list(owners), owners


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("window", [1, 4, 64])
def test_while_an_owner_is_down_the_others_are_sent_what_they_lack_and_once(missing: bool, window: int) -> None:
    rig = Listening(5, handoff_window=window)
    keeper, keys, owners = foreign(rig, missing=missing)
    absent = owners[keys[0]][1]
    rig.down(absent)
    rig.pass_time(30)
    wanted = {(owner, key) for key in keys for owner in owners[key] if owner != absent}
    assert set(rig.records) == (wanted if missing else set()) and set(rig.records.values()) <= {1}
    assert set(rig.offered) == wanted and set(rig.offered.values()) == {1}
    assert len(rig.nodes[keeper].objects) == sum(absent in owners[key] for key in keys)
    rig.forget()
    rig.pass_time(30)
    assert not rig.records and not rig.offered
    rig.back(absent)
    rig.pass_time(10)
    assert set(rig.offered) == {(absent, key) for key in keys if absent in owners[key]} and set(rig.offered.values()) == {1}
    assert set(rig.records) == (set(rig.offered) if missing else set())
    assert not rig.nodes[keeper].objects
    assert rig.nodes[keeper].replica.handoff.next_at is None


def test_after_a_restart_digests_are_compared_and_no_record_is_sent_again() -> None:
    rig = Listening(5)
    keeper, keys, owners = foreign(rig, missing=True)
    absent = owners[keys[0]][1]
    rig.down(absent)
    rig.pass_time(20)
    for _ in range(3):
        rig.forget()
        rig.restart(keeper)
        rig.nodes[keeper].replica.peer_down(absent, rig.now)
        rig.pass_time(20)
        assert not rig.records
        assert all(count == 1 for count in rig.offered.values())
    rig.back(absent)
    rig.pass_time(10)
    assert set(rig.records) == {(absent, key) for key in keys if absent in owners[key]}
    assert not rig.nodes[keeper].objects


def test_a_flapping_owner_goes_on_where_it_was() -> None:
    rig = Listening(5, handoff_window=4, exchange_interval_s=1e9)
    keeper, keys, owners = foreign(rig, 200, missing=True)
    flapping = owners[keys[0]][1]
    for _ in range(12):
        rig.down(flapping)
        rig.pass_time(0.3)
        rig.back(flapping)
        rig.pass_time(0.3)
    rig.pass_time(30)
    assert not rig.nodes[keeper].objects
    assert all(rig.record(owner, key) for key in keys for owner in owners[key])
    assert max(rig.records.values()) <= 2


def test_a_row_that_changes_is_owed_anew_to_all_and_what_was_said_of_the_old_one_drops_nothing() -> None:
    rig = Listening(4)
    keeper, keys, owners = foreign(rig)
    key = keys[0]
    a, b, c = owners[key]
    rig.down(c)
    rig.pass_time(10)
    rig.forget()
    rig.down(b)
    rig.put(a, key, b"newer", w=2, wait_s=10)
    record = rig.record(a, key)
    assert rig.record(keeper, key) == record
    assert (a, key) in rig.offered and not rig.records
    for owner in (b, c):
        rig.back(owner)
        rig.pass_time(10)
        assert rig.record(owner, key) == record
    assert not rig.nodes[keeper].objects


def test_another_life_of_an_owner_is_asked_again() -> None:
    rig = Listening(4)
    keeper, keys, owners = foreign(rig)
    a, _, c = owners[keys[0]]
    rig.down(c)
    rig.pass_time(10)
    rig.forget()
    rig.nodes[a].objects.clear()
    member = rig.nodes[keeper].replica.core.membership.members[a]
    rig.nodes[keeper].replica.core.membership.merge_all([member._replace(incarnation=9)])
    rig.pass_time(10)
    assert {target for target, _ in rig.records} == {a}
    assert rig.record(a, keys[0]) is not None


def test_an_owner_that_refuses_is_asked_less_and_less_often() -> None:
    rig = Listening(4, handoff_retry_s=1.0)
    keeper, keys, owners = foreign(rig, 10, missing=True)
    full = owners[keys[0]][0]
    rig.nodes[full].fail_commits = StorageFull("full")
    rig.pass_time(60)
    assert 3 <= max(rig.records.values()) <= 12
    assert all(count == 1 for (target, _), count in rig.records.items() if target != full)
    rig.nodes[full].fail_commits = None
    rig.pass_time(20)
    assert not rig.nodes[keeper].objects and all(rig.record(full, key) for key in keys if full in owners[key])


def test_a_keeper_that_cannot_drop_asks_by_digest_less_and_less_often() -> None:
    rig = Listening(4, handoff_retry_s=1.0)
    keeper, _, _ = foreign(rig, 10)
    rig.nodes[keeper].fail_commits = StorageFull("full")
    rig.pass_time(60)
    assert not rig.records and max(rig.offered.values()) <= 20
    rig.nodes[keeper].fail_commits = None
    rig.pass_time(20)
    assert not rig.nodes[keeper].objects


def test_a_damaged_row_that_is_kept_does_not_hold_up_the_others() -> None:
    rig = Listening(4)
    keeper, keys, _ = foreign(rig)
    row_key = rig.row_key(keys[0])
    table = rig.nodes[keeper].objects
    table[row_key] = table[row_key][:-1] + bytes([table[row_key][-1] ^ 1])
    rig.pass_time(30)
    assert not table  # repaired from the owners, then handed over


def test_a_row_that_is_damaged_while_its_removal_fails_is_repaired_and_removed() -> None:
    rig = Listening(4, handoff_retry_s=1.0)
    keeper, keys, _ = foreign(rig, 10)
    rig.nodes[keeper].fail_commits = StorageFull("full")
    rig.pass_time(10)  # the owners have it all, and the keeper cannot drop it
    table = rig.nodes[keeper].objects
    row_key = rig.row_key(keys[0])
    table[row_key] = table[row_key][:-1] + bytes([table[row_key][-1] ^ 1])
    rig.nodes[keeper].fail_commits = None
    rig.pass_time(60)
    assert not table


@pytest.mark.parametrize("fails", ["target", "own"])
def test_a_hint_is_replayed_less_and_less_often_where_that_does_not_help(fails: str) -> None:
    rig = Listening(4, hint_retry_s=1.0, handoff_retry_s=1.0)
    a, _, c = rig.owners(b"k")
    rig.down(c)
    rig.put(a, b"k", b"v", w=2, wait_s=2)
    keeper = next(node for node in rig.nodes.values() if node.hints)
    rig.nodes[c if fails == "target" else keeper.node_id].fail_commits = StorageFull("full")
    rig.back(c)
    rig.forget()
    rig.pass_time(60)
    assert 1 <= sum(rig.records.values()) <= 26, rig.records  # by the hint, and by the pass over what is kept
    for node in rig.nodes.values():
        node.fail_commits = None
    rig.pass_time(30)
    assert not any(node.hints for node in rig.nodes.values()) and rig.record(c, b"k") is not None
