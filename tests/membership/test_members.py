"""The membership: its merge is a join, a node speaks for itself, `left` is final, and the disk form is guarded."""

from __future__ import annotations

from typing import Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from dynamo.errors import CorruptRecord, InvalidRequest, ProtocolError
from dynamo.membership.members import Membership, join
from dynamo.model.member import MEMBERS_MAX, STATUSES, VERSION_MAX, Member, checked

A, B, C, D = (letter * 16 for letter in (b"a", b"b", b"c", b"d"))

few = st.integers(0, 2)  # few values, so that views meet, tie and differ


def views(nodes: list[bytes]) -> st.SearchStrategy[Member]:
    """Views of the nodes, many of them numbered alike though different."""
    return st.builds(
        Member, st.sampled_from(nodes), st.sampled_from(["x", "y"]), few, few, few, st.sampled_from(["p:1", "q:2"]),
        st.sampled_from(["", "z"]), st.sampled_from([1000, 2000]), st.sampled_from(STATUSES), few, few, few,
    ).map(checked)  # fmt: skip


def member(node_id: bytes, **facts: Any) -> Member:
    plain = Member(node_id, "name", 1, 0, 1, "host:1", "", 1000, "normal", 5, 9, 1)
    return checked(plain._replace(**facts))


def started(node_id: bytes, **facts: Any) -> Membership:
    membership = Membership(node_id)
    membership.start("name", "host:1", 5, 9, 1, status="normal", **facts)
    return membership


# --- the join ---------------------------------------------------------------------------------------------------------


@given(views([A]), views([A]), views([A]))
def test_join_is_idempotent_commutative_and_associative(a: Member, b: Member, c: Member) -> None:
    assert join(a, a) == a
    assert join(a, b) == join(b, a)
    assert join(join(a, b), c) == join(a, join(b, c))
    assert join(join(a, b), b) == join(a, b)
    assert checked(join(a, b)) == join(a, b)


@given(st.lists(views([A, B, C]), max_size=8), st.data())
def test_views_merged_in_any_order_any_number_of_times_agree(given: list[Member], data: st.DataObject) -> None:
    one, other = Membership(D), Membership(D)
    for view in given:
        one.merge(view)
    for view in data.draw(st.permutations(given + given[:3])):
        other.merge(view)
    assert dict(one.members) == dict(other.members)
    assert one.digest() == other.digest()
    assert one.ring_id == other.ring_id


@given(views([A]), views([A]))
def test_the_rule(a: Member, b: Member) -> None:
    joined = join(a, b)
    newer = max(a, b, key=lambda m: (m.incarnation, m.revision))
    assert (joined.incarnation, joined.revision) == (newer.incarnation, newer.revision)
    if a[2:4] != b[2:4]:
        assert (joined.name, joined.address, joined.actor) == (newer.name, newer.address, newer.actor)
    assert joined.admin_version == max(a.admin_version, b.admin_version)
    if "left" in (a.status, b.status):
        assert joined.status == "left"
    elif a.admin_version != b.admin_version:
        admin = max(a, b, key=lambda m: m.admin_version)
        assert (joined.status, joined.zone, joined.capacity) == (admin.status, admin.zone, admin.capacity)


@given(st.lists(views([A, B, C]), max_size=6))
def test_ring_number_never_falls_and_merge_tells_of_changes(given: list[Member]) -> None:
    membership = Membership(D)
    for view in given:
        before = dict(membership.members), membership.version, membership.digest(), membership.ring_id
        changed = membership.merge(view)
        assert changed == (dict(membership.members) != before[0])
        assert changed == (membership.version > before[1])
        assert changed == (membership.digest() != before[2])
        assert membership.ring_id[0] >= before[3][0]


def test_ring_id_is_of_the_members_in_the_ring() -> None:
    membership = Membership(D)
    membership.merge_all([member(A), member(B, admin_version=4)])
    number, hash = membership.ring_id
    assert number == 5
    membership.merge(member(A, revision=1, address="elsewhere:1"))
    assert membership.ring_id == (number, hash)
    membership.merge(member(C, status="joining", admin_version=1))
    assert membership.ring_id == (6, hash)
    membership.merge(member(C, admin_version=2))
    assert membership.ring_id[0] == 7 and membership.ring_id[1] != hash
    hashes = set()
    for facts in ({}, {"node_id": B}, {"capacity": 2000}, {"zone": "z"}, {"status": "leaving"}):
        other = Membership(D)
        other.merge(member(A)._replace(**facts))
        hashes.add(other.ring_id[1])
    assert len(hashes) == 5


# --- the node itself --------------------------------------------------------------------------------------------------


def test_a_start_is_a_new_incarnation_that_keeps_the_admin_facts() -> None:
    membership = started(A, zone="z")
    assert membership.local == member(A, zone="z")
    membership.administer(A, capacity=3000)
    again = Membership(A)
    again.load(membership.encode())
    assert dict(again.members) == dict(membership.members)
    again.start("renamed", "other:2", 6, 10, 2, zone="ignored", capacity=1)
    assert again.local == member(
        A, incarnation=2, name="renamed", address="other:2", actor=6, lease_end=10, formats=2, zone="z", capacity=3000,
        admin_version=2,
    )  # fmt: skip


def test_an_update_is_a_revision_if_it_changes_anything() -> None:
    membership = started(A)
    version = membership.version
    assert not membership.update(address="host:1", actor=5)
    assert membership.version == version and membership.local.revision == 0
    assert membership.update(lease_end=20)
    assert (membership.local.revision, membership.local.lease_end) == (1, 20)
    with pytest.raises(ProtocolError, match="address"):
        membership.update(address="two\nlines")
    assert membership.local.revision == 1


@given(views([A]))
def test_a_node_speaks_for_itself(heard: Member) -> None:
    """It takes admin facts as they come, and says again, with a larger number, what others got wrong of its own."""
    membership = started(A)
    mine = membership.local
    membership.merge(heard)
    now = membership.local
    assert (now.name, now.address, now.actor, now.lease_end, now.formats) == ("name", "host:1", 5, 9, 1)
    expected = join(mine, heard)
    assert (now.status, now.zone, now.capacity, now.admin_version) == expected[8:9] + expected[6:8] + expected[4:5]
    if expected[:4] != mine[:4]:
        assert (now.incarnation, now.revision) > (heard.incarnation, heard.revision)
    peer = Membership(B)
    peer.merge_all([heard, now])
    assert peer.members[A] == now
    version = membership.version
    membership.merge(heard)
    assert membership.version == version


def test_numbers_at_their_end_do_no_harm() -> None:
    membership = started(A)
    membership.merge(member(A, revision=VERSION_MAX, name="liar"))
    assert membership.local == member(A, incarnation=2)
    membership.merge(member(A, incarnation=VERSION_MAX, revision=VERSION_MAX, name="liar"))
    assert checked(membership.local).name == "name"


def test_before_its_start_a_node_learns_of_itself() -> None:
    membership = Membership(A)
    membership.merge(member(A, incarnation=0, name="as admitted", address="", actor=0))
    assert membership.local.name == "as admitted"
    membership.start("name", "host:1", 5, 9, 1)
    assert membership.local == member(A)


# --- administrators ---------------------------------------------------------------------------------------------------


def test_admit_administer_and_leave() -> None:
    membership = started(A)
    membership.admit(B, "b", "b:1", zone="z", capacity=2000)
    assert membership.members[B].status == "joining"
    assert membership.admit(B, "again", "b:2").name == "b"
    assert membership.administer(B, status="normal").admin_version == 2
    assert membership.administer(B, status="normal").admin_version == 2
    assert membership.in_status("normal") == [membership.members[A], membership.members[B]]
    with pytest.raises(InvalidRequest, match="cannot become joining"):
        membership.administer(B, status="joining")
    membership.administer(B, status="leaving")
    left = membership.administer(B, status="left")
    assert (left.zone, left.capacity, left.admin_version) == ("", 1000, 4)
    for status in ("joining", "normal", "leaving"):
        with pytest.raises(InvalidRequest, match="is left"):
            membership.administer(B, status=status)
    with pytest.raises(InvalidRequest, match="left the cluster"):
        membership.admit(B, "b", "b:1")
    with pytest.raises(InvalidRequest, match="no member"):
        membership.administer(C, status="normal")
    with pytest.raises(ProtocolError, match="capacity"):
        membership.administer(A, capacity=0)


def test_left_beats_whatever_another_administrator_did_meanwhile() -> None:
    one, other = Membership(C), Membership(D)
    for membership in (one, other):
        membership.merge(member(A))
    one.administer(A, status="left")
    for capacity in (2000, 3000, 4000):
        other.administer(A, capacity=capacity)
    one.merge(other.members[A])
    other.merge(one.members[A])
    assert one.members[A] == other.members[A]
    assert (one.members[A].status, one.members[A].admin_version) == ("left", 4)


def test_a_member_that_left_is_merged_in_canonical_form() -> None:
    membership = Membership(D)
    membership.merge(member(A)._replace(status="left", zone="z", capacity=7))
    assert (membership.members[A].zone, membership.members[A].capacity) == ("", 1000)


# --- bounds and disk --------------------------------------------------------------------------------------------------


def test_the_table_is_bounded() -> None:
    membership = started(A)
    crowd = [member(i.to_bytes(16, "big")) for i in range(MEMBERS_MAX)]
    with pytest.raises(ProtocolError, match="members"):
        membership.merge_all(crowd)
    assert len(membership.members) == 1
    membership.merge_all(crowd[1:])
    assert len(membership.members) == MEMBERS_MAX
    with pytest.raises(ProtocolError):
        membership.merge(crowd[0])
    with pytest.raises(InvalidRequest):
        membership.admit(B, "b", "b:1")
    assert membership.merge(crowd[1]._replace(revision=5))


@given(st.lists(views([A, B, C]), max_size=5))
def test_disk_there_and_back(given: list[Member]) -> None:
    membership, again = Membership(D), Membership(D)
    membership.merge_all(given)
    again.load(membership.encode())
    assert dict(again.members) == dict(membership.members) and again.digest() == membership.digest()


@given(st.integers(0, 200), st.integers(1, 255))
def test_a_damaged_table_is_noticed(position: int, flip: int) -> None:
    membership = started(A)
    membership.merge(member(B))
    stored = bytearray(membership.encode())
    stored[position % len(stored)] ^= flip
    empty = Membership(A)
    for damaged in (bytes(stored), bytes(stored[: position % len(stored)])):
        with pytest.raises(CorruptRecord):
            empty.load(damaged)
    assert not empty.members


@pytest.mark.parametrize(("body", "what"), [(b"\2" + bytes(4), "format 2"), (b"\1" + bytes(4) + b"x", "behind its end"),
                                            (b"\1\0\0\0\1", "cut short"), (b"\1", "damaged")])  # fmt: skip
def test_a_table_of_another_form_is_refused(body: bytes, what: str) -> None:
    with pytest.raises(CorruptRecord, match=what):
        Membership(A).load(body + xxhash.xxh3_64_digest(body))
