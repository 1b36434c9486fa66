"""Gossip: views converge in O(log n) rounds in spite of loss, equal ones cost a constant, nothing malformed gets in."""

from __future__ import annotations

import math
from collections import deque
from contextlib import suppress
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo.errors import ProtocolError
from dynamo.membership.gossip import Gossip
from dynamo.membership.members import Membership
from dynamo.model.member import MEMBERS_MAX, Member
from dynamo.model.messages import GOSSIP, GOSSIP_PUSH, GOSSIP_REPLY, Message


class Net:
    """The nodes of a cluster and the messages between them; each may be lost or doubled."""

    def __init__(self, count: int, seed: int, loss: float = 0.0) -> None:
        self.random = Random(seed)
        self.loss = loss
        self.now = 0.0
        self.sent: list[tuple[bytes, bytes, Message]] = []
        self.blocked: set[bytes] = set()  # cut off from those outside of it
        self.views: dict[bytes, Membership] = {}
        self.nodes: dict[bytes, Gossip] = {}
        for i in range(count):
            node = self.random.randbytes(16)
            view = self.views[node] = Membership(node)
            view.start(f"n{i}", f"host:{i}", i + 1, 9, 1, status="normal")
            self.nodes[node] = Gossip(view, Random(seed * 1000 + i))

    def introduce(self) -> None:
        """Everybody knows the first node, which knows only itself: how a cluster grows by joins."""
        first = next(iter(self.views.values()))
        for view in self.views.values():
            view.merge(first.local)

    def deliver(self, messages: list[tuple[bytes, bytes, Message]]) -> None:
        queue = deque(messages)
        while queue:
            source, destination, message = queue.popleft()
            self.sent.append((source, destination, message))
            assert len(self.sent) < 100_000, "gossip never rests"
            if self.random.random() < self.loss or (source in self.blocked) != (destination in self.blocked):
                continue
            for _ in range(1 + (self.random.random() < self.loss / 4)):
                answers = self.nodes[destination].receive(source, message, 0.0)
                queue.extend((destination, target, answer) for target, answer in answers)

    def round(self) -> None:
        """One second of everybody."""
        self.now += 1.0
        for node, gossip in self.nodes.items():
            self.deliver([(node, target, message) for target, message in gossip.tick(self.now)])

    def agree(self) -> bool:
        return len({view.digest() for view in self.views.values()}) == 1

    def rounds_until_agreement(self, limit: int) -> int:
        for rounds in range(limit):
            if self.agree():
                return rounds
            self.round()
        raise AssertionError(f"no agreement after {limit} rounds")


@settings(max_examples=60)
@given(st.integers(2, 30), st.integers(0, 10_000), st.sampled_from([0.0, 0.1, 0.3]))
def test_views_converge_in_logarithmic_time(count: int, seed: int, loss: float) -> None:
    net = Net(count, seed, loss)
    net.introduce()
    # Four messages make an exchange; with loss the limit leaves room for bad luck.
    limit = int((4 + 3 * math.log2(count)) / (1 - loss) ** 4) if loss else int(3 + 2 * math.log2(count))
    rounds = net.rounds_until_agreement(limit)
    assert all(len(view.members) == count for view in net.views.values())
    changed = net.random.choice(list(net.views))
    net.views[changed].update(lease_end=100 + rounds)
    net.rounds_until_agreement(limit)
    assert all(view.members[changed].lease_end == 100 + rounds for view in net.views.values())


@settings(max_examples=30)
@given(st.integers(2, 8), st.integers(0, 10_000), st.data())
def test_any_acts_anywhere_end_in_one_view(count: int, seed: int, data: st.DataObject) -> None:
    """Administrators on all nodes at once, restarts and changed facts, some of them numbered alike though different."""
    net = Net(count, seed, 0.2)
    net.introduce()
    net.rounds_until_agreement(100)
    for _ in range(data.draw(st.integers(1, 8))):
        view = net.views[data.draw(st.sampled_from(sorted(net.views)))]
        target = data.draw(st.sampled_from(sorted(net.views)))
        act = data.draw(st.integers(0, 3))
        if act == 0 and view.members[target].status != "left":
            zone, capacity = data.draw(st.sampled_from("xyz")), data.draw(st.integers(1, 5)) * 1000
            view.administer(target, capacity=capacity, zone=zone)
        elif act == 1 and view.members[target].status != "left" and target != sorted(net.views)[0]:
            view.administer(target, status=data.draw(st.sampled_from(["normal", "leaving"])))
        elif act == 2:
            view.start("renamed", "other:1", 3, 4, 1)
        else:
            view.update(lease_end=data.draw(st.integers(10, 20)))
        if data.draw(st.booleans()):
            net.round()
    net.rounds_until_agreement(100)
    assert len({tuple(sorted(view.members.values())) for view in net.views.values()}) == 1
    assert len({view.ring_id for view in net.views.values()}) == 1


def test_two_sides_of_a_partition_agree_again_when_it_heals() -> None:
    net = Net(10, 4)
    net.introduce()
    net.rounds_until_agreement(20)
    net.blocked = set(list(net.views)[:5])
    one, *_, other = net.views
    net.views[one].administer(other, status="leaving")
    net.views[other].administer(one, status="left")
    for _ in range(10):
        net.round()
    assert len({view.digest() for view in net.views.values()}) == 2
    net.blocked = set()
    net.rounds_until_agreement(20)
    assert {view.members[one].status for view in net.views.values()} == {"left"}
    assert {view.members[other].status for view in net.views.values()} == {"leaving"}


@pytest.mark.parametrize("count", [2, 30])
def test_equal_views_exchange_two_messages_of_constant_size(count: int) -> None:
    net = Net(count, 1)
    net.introduce()
    net.rounds_until_agreement(30)
    net.sent.clear()
    net.round()
    digest = next(iter(net.views.values())).digest()
    assert len(net.sent) == 2 * count
    for i, (_, _, message) in enumerate(net.sent):
        assert message == ((GOSSIP, 0, digest, ()), (GOSSIP_REPLY, 0, digest, (), ()))[i % 2]


def test_only_the_difference_travels() -> None:
    net = Net(20, 2)
    net.introduce()
    net.rounds_until_agreement(30)
    one, other = list(net.views)[:2]
    net.views[one].update(lease_end=50)
    net.views[other].update(lease_end=60)
    net.sent.clear()
    net.deliver([(one, *sent) for sent in net.nodes[one].probe(other)])
    kinds = [message[0] for _, _, message in net.sent]
    assert kinds == [GOSSIP, GOSSIP, GOSSIP_REPLY, GOSSIP_PUSH]
    assert len(net.sent[1][2][3]) == 20
    assert net.sent[2][2][3:] == ((net.views[one].local.to_tuple(),), (other,))
    assert net.sent[3][2][2] == (net.views[other].local.to_tuple(),)
    assert net.views[one].digest() == net.views[other].digest()


def test_an_admin_act_alone_is_a_difference() -> None:
    net = Net(5, 2)
    net.introduce()
    net.rounds_until_agreement(20)
    one, other, third, *_ = net.views
    for knows, lacks in ((one, other), (other, one)):
        acted = net.views[knows].administer(third, capacity=net.views[knows].members[third].capacity + 1)
        net.sent.clear()
        net.deliver([(one, *sent) for sent in net.nodes[one].probe(other)])
        assert net.views[lacks].members[third] == acted
        travelled = [part for _, _, message in net.sent if message[0] != GOSSIP for part in message[-2:]]
        assert [m for part in travelled if type(part) is tuple for m in part if type(m) is tuple] == [tuple(acted)]


def test_a_node_wanted_that_is_not_known_is_passed_over() -> None:
    net = Net(1, 2)
    (node,) = net.views
    wanted = (b"u" * 16, node)
    answers = net.nodes[node].receive(b"p" * 16, (GOSSIP_REPLY, 3, b"d", (), wanted), 0.0)
    assert answers == [(b"p" * 16, (GOSSIP_PUSH, 3, (tuple(net.views[node].local),)))]


def test_facts_that_differ_under_equal_numbers_are_settled() -> None:
    net = Net(3, 3)
    net.introduce()
    net.rounds_until_agreement(20)
    one, other, third = net.views
    net.views[one].administer(third, capacity=2000)
    net.views[other].administer(third, capacity=3000)
    net.deliver([(one, *sent) for sent in net.nodes[one].probe(other)])
    assert net.views[one].members[third] == net.views[other].members[third]
    assert net.views[one].members[third].capacity == 3000


def test_a_lone_node_is_silent_and_those_that_left_are_not_gossiped_with() -> None:
    net = Net(3, 5)
    one, other, third = net.views
    gossip = net.nodes[one]
    assert gossip.tick(0.0) == []
    net.introduce()
    for view in net.views.values():
        net.views[one].merge(view.local)
    net.views[one].administer(other, status="left")
    targets = {target for second in range(1, 30) for target, _ in gossip.tick(float(second))}
    assert targets == {third}


def test_the_clock_of_ticks() -> None:
    net = Net(2, 6)
    net.introduce()
    gossip = Gossip(list(net.views.values())[1], Random(1), interval_s=2.0)
    assert gossip.next_deadline == 0.0
    assert len(gossip.tick(7.5)) == 1
    assert gossip.next_deadline == 9.5
    assert gossip.tick(9.4) == []
    assert len(gossip.tick(9.5)) == 1


def test_the_same_seed_makes_the_same_choices() -> None:
    runs = []
    for _ in range(2):
        net = Net(9, 7, 0.2)
        net.introduce()
        net.rounds_until_agreement(60)
        runs.append(net.sent)
    assert runs[0] == runs[1]


# --- malformed --------------------------------------------------------------------------------------------------------

scalars = st.one_of(st.none(), st.booleans(), st.integers(-1, 2**65), st.binary(max_size=17), st.text(max_size=3))
junk = st.recursive(scalars, lambda inner: st.lists(inner, max_size=5).map(tuple), max_leaves=12)
kinds = st.sampled_from([GOSSIP, GOSSIP_REPLY, GOSSIP_PUSH])


@settings(max_examples=300)
@given(kinds, st.lists(junk, max_size=4))
def test_junk_raises_protocol_errors_only_and_changes_nothing(kind: int, fields: list[Any]) -> None:
    net = Net(1, 8)
    (node,) = net.views
    before = net.views[node].digest()
    with suppress(ProtocolError):
        net.nodes[node].receive(b"p" * 16, (kind, 0, *fields), 0.0)
    assert net.views[node].digest() == before


GOOD = Member(b"g" * 16, "good", 1, 0, 1, "h:1", "", 1000, "normal", 0, 0, 1)
BAD = GOOD._replace(capacity=0)


@pytest.mark.parametrize(
    "message",
    [
        (), (GOSSIP,), (99, 0), (GOSSIP, 0, b"d"), (GOSSIP, 0, "d", ()), (GOSSIP, 0, b"d", ((b"g" * 16, 1, 0),)),
        (GOSSIP, 0, b"d", ((b"g" * 16, 1, 0, "1"),)), (GOSSIP, 0, b"d", ((b"g" * 15, 1, 0, 1),)),
        (GOSSIP, 0, b"d", (b"g" * 16,)), (GOSSIP, 0, b"d", ((b"g" * 16, 1, 0, 1),) * (MEMBERS_MAX + 1)),
        (GOSSIP_REPLY, 0, b"d", (), (b"short",)), (GOSSIP_REPLY, 0, b"d", (tuple(GOOD), tuple(BAD)), ()),
        (GOSSIP_REPLY, 0, b"d", (tuple(GOOD),), (3,)), (GOSSIP_PUSH, 0, (tuple(GOOD), tuple(BAD))),
        (GOSSIP_PUSH, 0, [tuple(GOOD)]), (GOSSIP_PUSH, 0, (tuple(GOOD),) * (MEMBERS_MAX + 1)),
    ],
)  # fmt: skip
def test_a_malformed_message_is_refused_whole(message: Message) -> None:
    net = Net(1, 9)
    (node,) = net.views
    with pytest.raises(ProtocolError):
        net.nodes[node].receive(b"p" * 16, message, 0.0)
    assert list(net.views[node].members) == [node]


def test_fields_of_later_versions_are_ignored() -> None:
    net = Net(1, 10)
    (node,) = net.views
    gossip = net.nodes[node]
    entry = (b"g" * 16, 1, 0, 1, "new")
    ((_, reply),) = gossip.receive(b"p" * 16, (GOSSIP, 7, b"d", (entry,), "new"), 0.0)
    assert reply == (GOSSIP_REPLY, 7, net.views[node].digest(), (net.views[node].local.to_tuple(),), (b"g" * 16,))
    gossip.receive(b"p" * 16, (GOSSIP_PUSH, 7, ((*GOOD, "new"),), "new"), 0.0)
    assert net.views[node].members[b"g" * 16] == GOOD
