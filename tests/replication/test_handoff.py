"""What is kept for others goes to those that lack it, once: over restarts, with owners down, flapping, refusing, and while rows change."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from dynamo.errors import StorageFull
from dynamo.model import messages as m
from dynamo.model.messages import Message
from dynamo.model.row import FALLBACK, Row, encode_row
from dynamo.replication import acknowledged
from dynamo.replication.back_off import next_wait
from dynamo.replication.core import Settings
from dynamo.replication.handoff import Handoff

from .rig import CLIENT, Rig


class Listening(Rig):
    """Counts the records sent for owners, and the offers, by (target, key)."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        self.records: Counter[tuple[bytes, bytes]] = Counter()
        self.offered: Counter[tuple[bytes, bytes]] = Counter()
        self.slow: set[int] = set()  # answers of these types wait
        self.waiting: list[tuple[Any, tuple[Any, Message]]] = []
        super().__init__(*args, **{"exchange_interval_s": 1e9, **settings})

    def _send(self, node: Any, messages: list[tuple[Any, Message]]) -> None:
        for destination, message in messages:
            if message[0] == m.REPLICATE and message[5] == m.PURPOSE_HANDOFF:
                self.records[destination, message[3]] += 1
            elif message[0] == m.OFFER:
                self.offered.update((destination, key) for _, key, _ in message[2])
        self.waiting += [(node, entry) for entry in messages if entry[1][0] in self.slow]
        super()._send(node, [entry for entry in messages if entry[1][0] not in self.slow])

    def deliver(self) -> None:
        """What waited arrives, and nothing waits any more."""
        waiting, self.waiting, self.slow = self.waiting, [], set()
        for node, entry in waiting:
            super()._send(node, [entry])
        self.settle()

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


def test_an_answer_about_a_row_that_changed_meanwhile_drops_nothing() -> None:
    rig = Listening(4)
    keeper, keys, owners = foreign(rig, 10)
    first, *_ = owners[keys[0]]
    row_key, old = rig.row_key(keys[0]), dict(rig.nodes[first].objects)
    rig.slow = {m.OFFER_REPLY}
    rig.pass_time(0.1)
    assert rig.waiting
    rig.put(first, keys[0], b"newer")
    newer = rig.record(first, keys[0])
    core = rig.nodes[first].replica.core
    rig.nodes[keeper].inbox.append((first, (m.REPLICATE, 1, b"default", keys[0], newer, m.PURPOSE_HANDOFF, b"", 1000, core.ring_number, core.ring_hash, 0,
                                            core.durability, bytes(16))))  # fmt: skip
    rig.settle()
    for owner in owners[keys[0]]:  # they lost it again: the keeper alone has it
        rig.nodes[owner].objects[row_key] = old[row_key]
    rig.deliver()
    rig.pass_time(10)
    assert all(rig.record(owner, keys[0]) == newer for owner in owners[keys[0]])
    assert not rig.nodes[keeper].objects


def test_what_a_node_does_not_durably_hold_as_an_owner_it_says_that_it_lacks() -> None:
    rig = Listening(4)
    owner, other, _ = rig.owners(b"k")
    (stranger,) = set(rig.ids) - set(rig.owners(b"k"))
    row_key = rig.row_key(b"k")
    rig.put(owner, b"k", b"v")

    def lacking(node_id: bytes, digest: bytes) -> Any:
        replica = rig.nodes[node_id].replica
        replica.receive(
            [(other, (m.OFFER, 1, ((b"default", b"k", digest),), replica.core.durability, replica.core.ring_number, replica.core.ring_hash))], rig.now
        )
        ready = replica.take_ready()
        (said,) = [message[4] for _, message in ready.messages if message[0] == m.OFFER_REPLY]
        if ready.group is not None:
            rig._commit(rig.nodes[node_id], ready)
        return said

    row = rig.nodes[owner].replica.core.rows.load(row_key)
    assert isinstance(row, Row) and lacking(owner, row.digest) == ()
    assert lacking(owner, bytes(16)) == (0,)  # another version
    rig.nodes[stranger].objects[row_key] = rig.nodes[owner].objects[row_key]
    assert lacking(stranger, row.digest) == (0,)
    rig.nodes[owner].objects[row_key] = encode_row(row_key, row._replace(status=FALLBACK))  # as it was kept before the ring made this one an owner
    assert lacking(owner, row.digest) == (0,)
    replica = rig.nodes[other].replica
    replica.receive([(CLIENT, (m.PUT, 1, b"default", b"k", b"newer", None, m.MODE_PUT, 0, 0, 5000, bytes(16)))], rig.now)
    staged = replica.core.rows.load(row_key)
    assert isinstance(staged, Row) and staged.digest != row.digest
    assert lacking(other, staged.digest) == (0,)
    assert lacking(other, staged.digest) == ()


def test_a_row_stays_as_long_as_an_owner_has_it_less_durably_than_this_node() -> None:
    rig = Listening(4)
    keeper, _, owners = foreign(rig)
    weak = rig.ids[0]
    rig.nodes[weak].replica.core.durability = m.DURABILITY_RELAXED
    rig.pass_time(20)
    assert {rig.row_key(key) for key in owners if weak in owners[key]} == set(rig.nodes[keeper].objects) != set()


@pytest.mark.parametrize("bound", ["LACKING_MAX", "LACKING_TOTAL_MAX"])
def test_what_is_remembered_of_owners_that_take_nothing_is_bounded(bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acknowledged, bound, 3)
    rig = Listening(4)
    keeper, keys, _ = foreign(rig, missing=True)
    owners = [node_id for node_id in rig.ids if node_id != keeper]
    for node_id in owners:
        rig.nodes[node_id].fail_commits = StorageFull("full")
    rig.pass_time(10)
    known = rig.nodes[keeper].replica.handoff._acknowledged
    places = [known.of(rig.row_key(key)[0] << 8 | rig.row_key(key)[1], owner).lacking for key in keys for owner in owners]
    assert 0 < max(map(len, places)) <= 3
    if bound == "LACKING_TOTAL_MAX":
        assert known._lacking <= 3
    for node_id in owners:
        rig.nodes[node_id].fail_commits = None
    rig.pass_time(60)
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
    keeper, keys, _ = foreign(rig, 10)
    rig.nodes[keeper].fail_commits = StorageFull("full")
    rig.pass_time(60)
    assert not rig.records and max(rig.offered.values()) <= 20
    assert rig.nodes[keeper].replica.core.counters["rows_handed_off"] <= 20 * len(keys)  # as often as their removal was tried
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


def test_what_a_target_acknowledged_is_not_sent_again_while_the_removal_of_the_hint_cannot_be_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handoff, "step", lambda *_: None)  # which would offer the row, too
    rig = Listening(4)
    a, _, c = rig.owners(b"k")
    rig.down(c)
    rig.put(a, b"k", b"v", w=2, wait_s=2)
    keeper = next(node for node in rig.nodes.values() if node.hints)
    keeper.fail_commits = StorageFull("full")
    rig.forget()
    rig.back(c)
    rig.pass_time(1.5)
    assert rig.records == {(c, b"k"): 1} and keeper.hints
    keeper.fail_commits = None
    rig.put(keeper.node_id, b"other", b"v", w=1)  # a commit that says nothing of the hint
    rig.pass_time(20)
    assert rig.records == {(c, b"k"): 1} and not keeper.hints


def test_a_hint_on_its_way_is_not_sent_beside_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handoff, "step", lambda *_: None)
    rig = Listening(4, hint_retry_s=0.1, suspect_after_s=5.0)
    a, _, c = rig.owners(b"k")
    rig.down(c)
    rig.put(a, b"k", b"v", w=2, wait_s=2)
    rig.forget()
    rig.slow = {m.REPLICATE_REPLY}
    rig.back(c)
    rig.pass_time(2)
    assert rig.records == {(c, b"k"): 1}
    rig.deliver()
    rig.pass_time(2)
    assert rig.records == {(c, b"k"): 1} and not any(node.hints for node in rig.nodes.values())


@pytest.mark.parametrize(("interval_s", "longest_s"), [(1e9, 8.0), (3.0, 3.0), (0.1, 1.0)])
def test_a_wait_doubles_up_to_eight_times_or_an_exchange_interval(interval_s: float, longest_s: float) -> None:
    waits, settings = [1.0], Settings(exchange_interval_s=interval_s)
    assert next_wait(settings, 1.0, 0.0) == 1.0
    for _ in range(6):
        waits.append(next_wait(settings, 1.0, waits[-1]))
        assert waits[-1] == min(2 * waits[-2], longest_s)
