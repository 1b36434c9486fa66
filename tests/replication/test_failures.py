"""What the policy does when nodes are away, commits fail, rows rot and replicas drift apart."""

from __future__ import annotations

import itertools
import random

import pytest

from dynamo.errors import StorageFailed, StorageFull
from dynamo.model import messages as m
from dynamo.model.cluster import BucketDefinition
from dynamo.model.member import Member

from .rig import Node, Rig


def test_a_hint_is_kept_for_a_node_that_is_down_and_delivered_when_it_is_back() -> None:
    rig = Rig()
    a, _b, c = rig.ids
    rig.down(c)
    for number in range(200):
        assert rig.put(a, b"key-%d" % number, b"v")[0] == m.PUT_REPLY
    assert len(rig.nodes[a].hints) == 200
    rig.back(c)
    rig.pass_time(5)
    assert rig.nodes[a].hints == {} and rig.nodes[a].replica.core.hints.owed == {} and rig.nodes[a].replica.core.hints.bytes == 0
    for number in range(200):
        assert rig.record(c, b"key-%d" % number) == rig.record(a, b"key-%d" % number)


def test_hints_survive_a_restart_and_replay_goes_on() -> None:
    rig = Rig()
    a, _, c = rig.ids
    rig.down(c)
    for number in range(150):
        rig.put(a, b"key-%d" % number, b"v")
    rig.boot(a)
    assert rig.nodes[a].replica.core.hints.owed == {c: 150}
    rig.back(c)
    rig.pass_time(5)
    assert rig.nodes[a].hints == {}


def test_a_hint_is_not_dropped_while_the_row_changes_under_it() -> None:
    rig = Rig()
    a, b, c = rig.ids
    rig.down(c)
    rig.put(a, b"k", b"1")
    rig.back(c)
    rig.pass_time(1.2)
    rig.down(c)
    rig.put(a, b"k", b"2")
    assert len(rig.nodes[a].hints) == 1
    rig.back(c)
    rig.pass_time(3)
    assert rig.record(c, b"k") == rig.record(a, b"k") == rig.record(b, b"k")


def test_a_fallback_stands_in_and_gives_the_row_away() -> None:
    rig = Rig(5)
    owners = rig.owners(b"k")
    rig.down(owners[2])
    reply = rig.put(owners[0], b"k", b"v")
    assert reply[0] == m.PUT_REPLY
    (fallback,) = [node for node in rig.ids if node not in owners and rig.record(node, b"k")]
    assert len(rig.nodes[fallback].hints) == 1
    rig.back(owners[2])
    rig.pass_time(5)
    assert rig.record(owners[2], b"k") == rig.record(owners[0], b"k")
    assert rig.record(fallback, b"k") is None and rig.nodes[fallback].hints == {}


def test_writes_go_on_without_any_owner_and_are_handed_to_them() -> None:
    rig = Rig(6)
    owners = rig.owners(b"k")
    for owner in owners:
        rig.down(owner)
    other = next(node for node in rig.ids if node not in owners)
    assert rig.put(other, b"k", b"v")[0] == m.PUT_REPLY
    assert rig.values(rig.get(other, b"k")) == [b"v"]
    for owner in owners:
        rig.back(owner)
    rig.pass_time(10)
    assert {rig.record(owner, b"k") for owner in owners} == {rig.record(owners[0], b"k")} != {None}
    assert all(rig.record(node, b"k") is None for node in rig.ids if node not in owners)
    assert all(node.hints == {} for node in rig.nodes.values())


def test_at_the_byte_limit_a_hint_is_refused_and_does_not_count() -> None:
    rig = Rig(4, hint_bytes_max=100)
    owners = rig.owners(b"k")
    fallback = next(node for node in rig.ids if node not in owners)
    rig.down(owners[1])
    rig.down(owners[2])
    reply = rig.put(owners[0], b"k", b"v" * 200, wait_s=6)
    assert reply[0] == m.ERROR and reply[4] is True, "one owner alone is no W of 2"
    assert rig.nodes[fallback].hints == {}


def test_too_few_nodes_is_refused_before_anything_happens() -> None:
    rig = Rig()
    a, b, c = rig.ids
    rig.down(b)
    rig.down(c)
    reply = rig.put(a, b"k", b"v")
    assert reply[0] == m.ERROR and reply[2] == 1 and reply[4] is False
    assert rig.record(a, b"k") is None


def test_a_node_that_owns_no_copy_passes_the_put_on() -> None:
    rig = Rig(6)
    owners = rig.owners(b"k")
    other = next(node for node in rig.ids if node not in owners)
    assert rig.put(other, b"k", b"v")[0] == m.PUT_REPLY
    assert rig.record(other, b"k") is None
    assert rig.values(rig.get(other, b"k")) == [b"v"]


@pytest.mark.parametrize("error", [StorageFull("full"), StorageFailed("broken")])
def test_a_failed_commit_tells_the_truth_and_starts_a_new_actor(error: StorageFull | StorageFailed) -> None:
    rig = Rig()
    a, _b, _c = rig.ids
    before = rig.nodes[a].replica.core.actor.actor
    rig.nodes[a].fail_commits = error
    reply = rig.put(a, b"k", b"v", w=3)
    assert reply[0] == m.ERROR and reply[4] is True
    refused = rig.put(a, b"k", b"again", wait_s=1)
    assert refused[0] == m.ERROR and refused[4] is False, "no actor can be made durable, so nothing was minted"
    rig.nodes[a].fail_commits = None
    rig.pass_time(2)
    assert rig.put(a, b"k", b"w")[0] == m.PUT_REPLY
    assert rig.nodes[a].replica.core.actor.actor != before
    assert rig.values(rig.get(a, b"k", r=3)) == [b"v", b"w"], "the first write reached the others and was never refused"


def test_a_damaged_row_is_restored_and_never_read_as_absent() -> None:
    rig = Rig()
    a = rig.ids[0]
    rig.put(a, b"k", b"v")
    whole, row_key = rig.record(a, b"k"), rig.row_key(b"k")
    data = bytearray(rig.nodes[a].objects[row_key])
    data[-20] ^= 1
    rig.nodes[a].objects[row_key] = bytes(data)
    reply = rig.put(a, b"k", b"w")
    assert reply[0] == m.ERROR and reply[2] == 8 and reply[4] is False
    rig.settle()
    assert rig.record(a, b"k") == whole
    rig.nodes[a].objects[row_key] = bytes(data)
    assert rig.values(rig.get(a, b"k")) == [b"v"]
    rig.pass_time(1)
    assert rig.record(a, b"k") == whole


def test_a_retry_of_a_write_that_was_replaced_since_gets_its_dot_and_revives_nothing() -> None:
    rig = Rig()
    a = rig.ids[0]
    operation = b"o" * 16
    first = rig.put(a, b"k", b"1", operation=operation)
    rig.put(a, b"k", b"2", first[4])
    again = rig.put(a, b"k", b"1", operation=operation)
    assert again[5:7] == first[5:7]
    assert rig.values(rig.get(a, b"k")) == [b"2"]


def test_a_store_that_forgot_a_row_mints_under_a_new_actor_once_a_client_knows_more() -> None:
    rig = Rig()
    a, _, _ = rig.ids
    first = rig.put(a, b"k", b"1")
    second = rig.put(a, b"k", b"2")
    core = rig.nodes[a].replica.core
    before = core.actor.actor
    core.actor.issued = first[6]  # an old copy of this node's memory: it has forgotten the second dot
    del rig.nodes[a].objects[rig.row_key(b"k")]
    third = rig.put(a, b"k", b"3", second[4])
    assert third[0] == m.PUT_REPLY and third[5] != before
    assert rig.values(rig.get(a, b"k", r=3)) == [b"1", b"3"]


def diverge(rig: Rig, node_id: bytes, keys: list[bytes]) -> None:
    """Let a node lose rows, its trees with them."""
    for key in keys:
        del rig.nodes[node_id].objects[rig.row_key(key)]
    rig.boot(node_id)


@pytest.mark.parametrize("who", [0, 1, 2])
def test_owners_that_differ_agree_again_without_a_reader(who: int) -> None:
    rig = Rig(exchange_interval_s=2.0)
    keys = [b"key-%d" % number for number in range(100)] + [b"long" * 200 + b"%d" % number for number in range(20)]
    for key in keys:
        rig.put(rig.ids[0], key, b"v")
    rig.put(rig.ids[1], keys[0], None, rig.get(rig.ids[0], keys[0])[5])
    victim = rig.ids[who]
    diverge(rig, victim, random.Random(who).sample(keys, 50))
    rig.pass_time(8)
    for key in keys:
        assert len({rig.record(node, key) for node in rig.ids}) == 1, key


def test_comparing_equal_owners_costs_bytes_a_partition_and_one_difference_little_more() -> None:
    rig = Rig(exchange_interval_s=2.0)
    keys = [b"key-%d" % number for number in range(3000)]
    for key in keys:
        rig.put(rig.ids[0], key, b"v" * 50)
    rig.pass_time(3)

    def spent(seconds: float) -> int:
        before = rig.bytes_between
        rig.pass_time(seconds)
        return rig.bytes_between - before

    quiet = spent(6)
    diverge(rig, rig.ids[2], keys[:1])
    busy = spent(6)
    assert rig.record(rig.ids[2], keys[0]) == rig.record(rig.ids[0], keys[0])
    assert busy - quiet < 16_384


@pytest.mark.parametrize("who", [0, 1, 2])
def test_refilling_a_replica_neither_reads_a_partition_for_each_few_leaves_nor_repairs_its_keys_twice(who: int) -> None:
    rig = Rig(exchange_interval_s=2.0)
    keys = [b"key-%d" % number for number in range(3000)]
    for key in keys:
        rig.put(rig.ids[0], key, b"v" * 50)
    rig.pass_time(3)
    victim = sorted(rig.ids)[who]
    diverge(rig, victim, keys)
    rig.pass_time(0.1)  # its trees of nothing are built
    for node in rig.nodes.values():
        node.replica.core.counters.clear()
        node.rows_scanned = 0
        node.replica.anti_entropy.next_at = rig.now  # as it comes about by itself when a refill takes longer than the interval
    rig.pass_time(5)
    assert all(rig.record(victim, key) == rig.record(rig.others(victim)[0].node_id, key) for key in keys)
    differing = sum(node.replica.core.counters.get("keys_differing", 0) for node in rig.nodes.values())
    assert differing < 1.5 * len(keys), "both other owners have them all, and one of them is enough"
    assert sum(node.rows_scanned for node in rig.nodes.values()) < 6 * len(keys), "a partition was listed again and again"


def test_a_peer_that_falls_silent_among_many_repairs_ends_the_exchange() -> None:
    rig = Rig(exchange_interval_s=2.0)
    keys = [b"key-%d" % number for number in range(6000)]
    for key in keys:
        rig.put(rig.ids[0], key, b"v")
    rig.pass_time(3)
    victim = max(rig.ids)
    diverge(rig, victim, keys)
    silent = rig.nodes[victim]
    read, reads = silent.replica._dispatch[m.READ], itertools.count()

    def answer_some(source: bytes, message: m.Message) -> None:
        silent.up = silent.up and next(reads) < 1000
        read(source, message)

    silent.replica._dispatch[m.READ] = answer_some
    rig.pass_time(8, step=0.2)
    assert not silent.up
    assert sum(node.replica.core.counters.get("exchanges_unfinished", 0) for node in rig.others(victim)) >= 1
    assert max(node.replica.anti_entropy.agreement_age(rig.now) for node in rig.others(victim)) >= 7


def test_an_exchange_agrees_only_when_its_repairs_are_stored() -> None:
    rig = Rig(exchange_interval_s=2.0)
    keys = [b"key-%d" % number for number in range(20)]
    for key in keys:
        rig.put(rig.ids[0], key, b"v")
    rig.pass_time(3)
    victim = max(rig.ids)
    diverge(rig, victim, keys)
    rig.nodes[victim].fail_commits = StorageFull("no room")
    rig.pass_time(6)
    assert max(node.replica.anti_entropy.agreement_age(rig.now) for node in rig.others(victim)) >= 6
    rig.nodes[victim].fail_commits = None
    rig.pass_time(6)
    assert max(node.replica.anti_entropy.agreement_age(rig.now) for node in rig.nodes.values()) <= 2.6
    assert all(rig.record(victim, key) for key in keys)


def test_repairs_wait_for_the_disk_they_are_for() -> None:
    """What is on its way to a replica that lost its rows never exceeds the window of each exchange, however slow its commits are."""
    rig = Rig(exchange_interval_s=2.0, repair_window=8)
    keys = [b"key-%d" % number for number in range(1000)]
    for key in keys:
        rig.put(rig.ids[0], key, b"v")
    rig.pass_time(3)
    for victim in sorted(rig.ids):  # the last one never leads, the first one always does
        diverge(rig, victim, keys)
        rig.nodes[victim].largest_group, rig.nodes[victim].slow = 0, True
        rig.pass_time(5)
        rig.nodes[victim].slow = False
        assert 0 < rig.nodes[victim].largest_group <= 2 * 8
        assert all(rig.record(victim, key) for key in keys)


def test_the_age_of_agreement_counts_from_the_last_exchange_that_left_no_difference() -> None:
    rig = Rig(exchange_interval_s=2.0)

    def age() -> float:
        return max(node.replica.anti_entropy.agreement_age(rig.now) for node in rig.nodes.values() if node.up)

    rig.pass_time(5)
    assert age() <= 2.6  # the interval is jittered by a quarter
    rig.down(max(rig.ids))
    rig.pass_time(10)
    assert age() >= 10, "nobody knows what the node that is away holds"
    rig.back(max(rig.ids))
    rig.pass_time(5)
    assert age() <= 2.6


def test_the_age_of_agreement_counts_a_peer_as_soon_as_it_is_a_member() -> None:
    rig = Rig(1, buckets={b"two": BucketDefinition(n=2)}, exchange_interval_s=60.0)
    rig.pass_time(1)
    founder = rig.nodes[rig.ids[0]].replica
    assert founder.anti_entropy.agreement_age(rig.now) == 0
    late = Member(b"\xff" * 16, "late", 0, 0, 1, "127.0.0.1:99", "", 1000, "normal", 0, 0, 1)
    rig.nodes[late.node_id] = Node(late.node_id, up=False)
    founder.core.membership.merge_all([late])
    rig.pass_time(5)
    assert 4.8 <= founder.anti_entropy.agreement_age(rig.now) <= 5.2, "and not only at the next exchange, which is far off"


def test_a_damaged_leaf_is_recomputed_from_its_rows() -> None:
    rig = Rig(exchange_interval_s=1.0)
    for number in range(50):
        rig.put(rig.ids[0], b"key-%d" % number, b"v")
    rig.pass_time(2)
    trees = rig.nodes[rig.ids[0]].replica.trees
    trees.get(3, 2).update(5, b"", b"x" * 16)
    rig.pass_time(6)
    assert sum(node.replica.core.counters.get("leaves_recomputed", 0) for node in rig.nodes.values()) == 1
    assert all(trees.get(3, p).root() == rig.nodes[rig.ids[1]].replica.trees.get(3, p).root() for p in range(8))


def test_buckets_with_another_n_agree_too() -> None:
    rig = Rig(4, buckets={b"two": BucketDefinition(n=2)}, exchange_interval_s=1.0)
    keys = [b"key-%d" % number for number in range(60)]
    for key in keys:
        rig.put(rig.ids[0], key, b"v", bucket=b"two")
        rig.put(rig.ids[0], key, b"v")
    victim = rig.owners(keys[0], b"two")[1]
    rig.nodes[victim].objects.clear()
    rig.boot(victim)
    rig.pass_time(6)
    for key in keys:
        for bucket in (b"two", b"default"):
            assert len({rig.record(node, key, bucket) for node in rig.owners(key, bucket)}) == 1
    counters = rig.nodes[rig.ids[0]].replica.core.counters
    assert counters.get("leaves_recomputed", 0) == 0


def test_a_stand_in_for_a_node_that_owns_nothing_any_more_gives_the_row_to_the_owners() -> None:
    rig = Rig(5)
    owners = rig.owners(b"k")
    rig.put(owners[0], b"k", b"v")
    record = rig.record(owners[0], b"k")
    stranger, former = (node for node in rig.ids if node not in owners)
    message = (m.REPLICATE, 7, b"default", b"k", record, m.PURPOSE_WRITE, former, 1000, 0, 0, 0, m.DURABILITY_SYNCED, bytes(16))
    rig.nodes[stranger].inbox.append((owners[0], message))  # sent under a ring in which `former` was an owner
    rig.settle()
    assert rig.record(stranger, b"k") == record
    rig.pass_time(5)
    assert rig.record(stranger, b"k") is None and rig.nodes[stranger].hints == {}
