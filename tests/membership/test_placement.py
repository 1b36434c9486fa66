"""The ring over a membership: owners, preference lists, and that only admin facts of normal members take part."""

from __future__ import annotations

from random import Random

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo.membership import ring as ring_module
from dynamo.membership.members import Membership
from dynamo.membership.ring import Ring
from dynamo.model.cluster import Cluster
from dynamo.model.member import Member

CLUSTER = Cluster(b"c" * 16, b"s" * 32, 5, partitions=64)


def crowd(count: int, seed: int = 0) -> list[Member]:
    random = Random(seed)
    return [Member(random.randbytes(16), f"n{i}", 1, 0, 1, "h:1", "", 1000, "normal", 0, 0, 1) for i in range(count)]


@settings(max_examples=50)
@given(st.integers(0, 9), st.integers(1, 5), st.integers(0, 1000), st.data())
def test_preference_is_owners_then_everybody_else(count: int, n: int, seed: int, data: st.DataObject) -> None:
    members = crowd(count, seed)
    cluster = Cluster(b"c" * 16, b"s" * 32, seed, partitions=32, n=n)
    ring = Ring(data.draw(st.permutations(members)), cluster)
    assert ring.size == count
    everybody = sorted(member.node_id for member in members)
    for partition in range(32):
        owners, preference = ring.owners(partition), ring.preference(partition)
        assert len(set(owners)) == len(owners) == min(n, count)
        assert preference[: len(owners)] == owners
        assert sorted(preference) == everybody
        assert ring.preference(partition) == preference
        for other in range(1, 7):
            assert ring.owners(partition, other) == preference[:other]
        for node in everybody:
            assert ring.owns(node, partition) == (node in owners)
    assert sum(ring.partitions_of(node) for node in everybody) == 32 * min(n, count)
    assert ring.partitions_of(b"stranger") == 0


def test_fallbacks_are_in_the_order_of_their_scores() -> None:
    members = crowd(7)
    ring = Ring(members, CLUSTER)
    by_id = sorted(member.node_id for member in members)
    kernel_members = [(node, 1000, b"") for node in by_id]
    for partition in range(64):
        order = [by_id[i] for i in ring_module.kernel.preference(kernel_members, partition, 5)]
        owners = ring.owners(partition)
        assert list(ring.preference(partition)[3:]) == [node for node in order if node not in owners]


def test_partition_of_a_key() -> None:
    ring = Ring(crowd(3), CLUSTER)
    for key in (b"alice", b"bob", b"\x00"):
        assert ring.partition(b"default", key) == xxhash.xxh3_64_intdigest(b"default\0" + key, 5) >> 58


def test_only_normal_members_and_only_their_admin_facts_count() -> None:
    members = crowd(5)
    plain = Ring(members, CLUSTER)
    others = [member._replace(node_id=member.node_id[::-1]) for member in members]
    statuses = ("joining", "leaving", "left")
    more = [other._replace(status=status) for other, status in zip(others, statuses, strict=False)]
    same = [member._replace(address="elsewhere:9", incarnation=8, actor=3, admin_version=6) for member in members]
    ring = Ring(same + more, CLUSTER)
    assert ring.size == 5
    assert [ring.owners(p) for p in range(64)] == [plain.owners(p) for p in range(64)]
    assert Ring(reversed(members), CLUSTER)._table is plain._table
    heavier = [members[0]._replace(capacity=4000), *members[1:]]
    assert Ring(heavier, CLUSTER).partitions_of(members[0].node_id) > plain.partitions_of(members[0].node_id)
    zoned = [member._replace(zone="ab"[i % 2]) for i, member in enumerate(members)]
    zone_of = {member.node_id: member.zone for member in zoned}
    assert all({zone_of[node] for node in Ring(zoned, CLUSTER).owners(p)} == {"a", "b"} for p in range(64))


def test_the_ring_of_a_membership_carries_its_ring_id_and_shares_tables() -> None:
    membership = Membership(b"m" * 16)
    membership.merge_all(crowd(4))
    ring = Ring.of(membership, CLUSTER)
    assert (ring.number, ring.hash) == membership.ring_id
    assert [ring.owners(p) for p in range(64)] == [Ring(crowd(4), CLUSTER).owners(p) for p in range(64)]
    first = crowd(4)[0].node_id
    membership.merge(membership.members[first]._replace(revision=7))
    assert Ring.of(membership, CLUSTER)._table is ring._table
    membership.administer(first, status="leaving")
    after = Ring.of(membership, CLUSTER)
    assert after.size == 3 and after.number == ring.number + 1 and after.hash != ring.hash


def test_kept_preference_lists_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_module, "_PREFERENCES_KEPT", 20)
    cluster = Cluster(b"c" * 16, b"s" * 32, 99, partitions=64)  # a seed of its own: tables are shared
    ring = Ring(crowd(4), cluster)
    first = [ring.preference(p) for p in range(64)]
    assert [ring.preference(p) for p in range(64)] == first
    assert len(ring._table._preferences) <= 5
