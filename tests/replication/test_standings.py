"""What a node needs when the ring changes, and who stands for itself: rules of `replication.standings`, and the stored form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.errors import CorruptRecord, ProtocolError
from dynamo.membership.ring import Ring
from dynamo.model.cluster import Cluster
from dynamo.replication.standings import LISTS_MAX, Standings, asked_too_early, checked, satisfied, united

A, B, C, D, E = (bytes([letter]) * 16 for letter in b"ABCDE")


def cluster(n: int = 3, **quorums: int) -> Cluster:
    return Cluster(bytes(16), bytes(32), 7, partitions=8, n=n, **quorums)


def ring_of(nodes: list[bytes], document: Cluster) -> Ring:
    return Ring.made_of(tuple(sorted((node, 1000, b"") for node in nodes)), document)


def followed(node: bytes, rings: list[list[bytes]], document: Cluster) -> Standings:
    standings = Standings(ring_of(rings[0], document).members)
    for nodes in rings[1:]:
        standings.follow(node, ring_of(nodes, document), document, [document.bucket(b"default")])
    return standings


def test_a_newcomer_needs_the_lone_node_for_everything_and_that_one_needs_nobody():
    document = cluster()
    standings = followed(B, [[A], [A, B]], document)
    assert standings.needs == {(3, partition): ((1, (A,)),) for partition in range(8)}
    assert followed(A, [[A], [A, B]], document).needs == {}


def test_of_three_owners_two_are_needed_for_they_meet_every_write_to_two():
    document = cluster()
    before, after = ring_of([A, B, C], document), ring_of([A, B, C, D], document)
    needs = followed(D, [[A, B, C], [A, B, C, D]], document).needs
    assert set(needs) == {(3, p) for p in range(8) if D in after.owners(p)}
    assert all(each == ((2, before.owners(p)),) for (_, p), each in needs.items())
    assert all(count == 1 for each in followed(D, [[A, B, C], [A, B, C, D]], cluster(w=3)).needs.values() for count, _ in each)
    assert all(count == 3 for each in followed(D, [[A, B, C], [A, B, C, D]], cluster(w=1, r=3)).needs.values() for count, _ in each)


def test_who_lost_a_partition_and_has_it_again_needs_whoever_had_it_meanwhile():
    document = cluster(n=1)
    lost = next(p for p in range(8) if ring_of([A], document).owners(p) == (A,) and ring_of([A, B], document).owners(p) == (B,))
    needs = followed(A, [[A], [A, B], [A]], document).needs
    assert needs[1, lost] == ((1, (B,)),)


def test_fewer_owners_answer_for_more_only_together_with_those_before():
    document = cluster()
    assert followed(A, [[A, B, C], [A]], document).needs == {(3, p): ((2, ring_of([A, B, C], document).owners(p)),) for p in range(8)}
    assert followed(A, [[A, B, C], [A, B]], document).needs == {}  # two of three meet


def test_a_node_that_nobody_knew_yet_needs_those_that_joined_beside_it():
    document = cluster(n=1)
    standings = Standings(ring_of([A], document).members)
    standings.follow(B, ring_of([A, B], document), document, [document.bucket(b"default")], known=False)
    standings.follow(B, ring_of([A, B, C], document), document, [document.bucket(b"default")], known=False)
    beside, now = ring_of([A, C], document), ring_of([A, B, C], document)
    owned = [partition for partition in range(8) if now.owners(partition) == (B,)]
    assert owned and all((1, beside.owners(partition)) in standings.needs[1, partition] for partition in owned)


@pytest.mark.parametrize(
    ("replied", "recovering", "met"),
    [
        ({A}, {}, {A}),
        ({B}, {B: ((1, (A,)),)}, set()),
        ({A, B}, {B: ((1, (A,)),)}, {A, B}),
        ({A, B}, {B: ((2, (A, C)),)}, {A}),
        ({B, C}, {B: ((1, (A,)),), C: ((1, (A, B)),)}, set()),  # one that is as poor does not help
        ({A, B, C}, {B: ((1, (A,)),), C: ((1, (A, B)),)}, {A, B, C}),
        ({A, B}, {A: ((1, (B,)),), B: ((1, (A,)),)}, {A, B}),  # each had it before the other
        ({A, B}, {A: ((1, (B,)),), B: ((1, (A,)), (1, (C,)))}, set()),
    ],
)
def test_who_stands_for_itself(replied, recovering, met):
    assert satisfied(replied, recovering) == met


def test_a_recovering_owner_is_asked_again_after_one_that_gives_its_rows_away():
    needs = {D: ((1, (A,)),)}
    assert asked_too_early([D, A], needs, {A, D}, owners=(D,)) == D
    assert asked_too_early([A, D], needs, {A, D}, owners=(D,)) is None
    assert asked_too_early([D, A], needs, {A, D}, owners=(A, D)) is None  # an owner gives nothing away


def test_pulling_meets_needs_when_those_pulled_from_are_met():
    standings = Standings(())
    standings.needs[3, 0] = ((2, (A, B, C)),)
    standings.pulled((3, 0), {A: ()}, D)
    assert standings.needs
    standings.pulled((3, 0), {A: (), B: ((1, (E,)),)}, D)
    assert standings.needs
    standings.pulled((3, 0), {A: (), B: ((1, (E,)),), E: ()}, D)
    assert not standings.needs


def test_nodes_that_left_are_needed_no_more():
    standings = Standings(())
    standings.needs = {(3, 0): ((2, (A, B)),), (3, 1): ((1, (A,)),), (3, 2): ((1, (C,)),)}
    standings.without({A})
    assert standings.needs == {(3, 0): ((1, (B,)),), (3, 2): ((1, (C,)),)}


def test_needs_stay_bounded_however_often_the_ring_changes():
    document = cluster(n=1)
    rings = [[A], [A, B]] * 20
    needs = followed(B, rings, document).needs
    assert all(len(each) <= LISTS_MAX for each in needs.values())


NODES = st.sampled_from([A, B, C, D, E])
NEEDS = st.lists(st.lists(NODES, min_size=1, max_size=5, unique=True).flatmap(lambda nodes: st.tuples(st.integers(1, len(nodes)), st.just(tuple(nodes)))),
                 min_size=1, max_size=3).map(lambda lists: united((tuple(lists),)))  # fmt: skip


@given(st.dictionaries(st.tuples(st.integers(1, 64), st.integers(0, 65_535)), NEEDS, max_size=5), st.lists(NODES, unique=True))
def test_what_is_stored_is_what_was(needs, nodes):
    standings = Standings(tuple((node, 1000, b"zone") for node in sorted(nodes)))
    standings.needs = needs
    data = standings.encode()
    again = Standings.decode(data)
    assert again.needs == needs and again.members == standings.members
    for damaged in (data[:-1], data[:5] + bytes([data[5] ^ 1]) + data[6:], b"", b"\x02" + data[1:]):
        with pytest.raises(CorruptRecord):
            Standings.decode(damaged)


@pytest.mark.parametrize("wrong", [None, 1, ((1,),), ((0, (A,)),), ((2, (A,)),), ((1, (b"short",)),), ((True, (A,)),), ((1, A),), (A,)])
def test_needs_that_are_none_are_refused(wrong):
    with pytest.raises(ProtocolError):
        checked(wrong)
