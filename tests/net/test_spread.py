"""News of the membership: told once to everybody, and only if it is news."""

from __future__ import annotations

from dynamo.membership.members import Membership
from dynamo.model import messages as m
from dynamo.model.member import NORMAL, Member
from dynamo.net.spread import NODES_MAX, Spread


def member(i, **changes):
    return Member(b"%016d" % i, f"n{i}", 1, 0, 1, f"h:{i}", "", 1000, NORMAL, 7, 9, 1)._replace(**changes)


def started(others=3):
    membership = Membership(b"%016d" % 0)
    for i in range(1, others + 1):
        membership.merge(member(i))
    membership.start("n0", "h:0", 1, 2, 1, status=NORMAL)
    return membership, Spread(membership)


def test_a_node_that_starts_tells_all_others_of_itself_alone():
    membership, spread = started()
    assert spread.stale
    others, messages = spread.look()
    assert others == [b"%016d" % i for i in (1, 2, 3)]
    assert messages == [(node, (m.GOSSIP_PUSH, 0, (membership.local.to_tuple(),))) for node in others]
    assert not spread.stale and spread.look()[1] == []


def test_joining_moving_and_leaving_are_news_and_leases_are_not():
    membership, spread = started()
    spread.look()
    for change, news in (
        (member(4), True),
        (member(1, lease_end=99, revision=1), False),
        (member(1, lease_end=99, revision=2, address="h:99"), True),
        (member(2, incarnation=2), True),
        (member(3, admin_version=2, status="left"), True),
    ):
        assert membership.merge(change) and spread.stale
        others, messages = spread.look()
        assert [message[2] for _, message in messages] == ([(change.to_tuple(),)] * len(others) if news else [])
    assert others == [b"%016d" % i for i in (1, 2, 4)]  # who left is neither told nor connected to


def test_large_clusters_gossip_only():
    _, spread = started(NODES_MAX + 1)
    others, messages = spread.look()
    assert len(others) == NODES_MAX + 1 and not messages
