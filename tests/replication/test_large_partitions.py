"""Exchanges over more keys than a message may list: in many leaves, in one, at one end or at both."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo._core import merkle
from dynamo.model import messages as m
from dynamo.replication.trees import Trees
from dynamo.wire.frames import FrameDecoder, encode
from dynamo.wire.messages import check

from .rig import Rig


class Bounded(Rig):
    """A network that takes only what a node's decoder takes."""

    def __init__(self, *args, elements_max=4096, **kwargs):
        self.elements_max = elements_max
        self.listings = []
        super().__init__(*args, **kwargs)

    def _send(self, node, messages):
        for _, message in messages:
            if message[0] == m.TREE_KEYS_REPLY:
                self.listings.append(len(message[3]))
                (decoded,) = FrameDecoder(elements_max=self.elements_max).feed(encode(message))
                check(decoded, m.ROLE_PEER)
        super()._send(node, messages)


def lose_all(rig, node_id):
    rig.nodes[node_id].objects.clear()
    rig.boot(node_id)
    for other in rig.ids:
        if other != node_id:
            rig.nodes[node_id].replica.peer_up(other, rig.now)


def fill(rig, count):
    for i in range(count):
        rig.put(rig.ids[0], b"key-%05d" % i, b"v", w=3)


def test_a_node_that_lost_more_keys_than_a_message_may_list_gets_them_all():
    rig = Bounded(3, elements_max=64, keys_per_listing=16, exchange_interval_s=2.0)
    fill(rig, 400)
    before = set(rig.nodes[rig.ids[2]].objects)
    lose_all(rig, rig.ids[2])
    rig.pass_time(10, step=0.2)
    assert set(rig.nodes[rig.ids[2]].objects) == before
    assert max(rig.listings) <= 16


@pytest.mark.parametrize("loser", [0, 1, 2])
def test_one_leaf_with_more_keys_than_a_message_may_list_is_listed_in_pages(monkeypatch, loser):
    monkeypatch.setattr("dynamo.replication.trees._leaf", lambda *_: 7)  # every key in the same leaf
    rig = Bounded(3, elements_max=64, keys_per_listing=5, exchange_interval_s=2.0)
    fill(rig, 120)
    ids = sorted(rig.ids)
    before = set(rig.nodes[ids[loser]].objects)
    lose_all(rig, ids[loser])
    rig.pass_time(10, step=0.2)
    assert set(rig.nodes[ids[loser]].objects) == before
    assert max(rig.listings) <= 5
    counters = rig.nodes[ids[0]].replica.core.counters
    assert counters["exchanges_agreed"] > 0 and "leaves_recomputed" not in counters


@settings(max_examples=30)
@given(st.sets(st.integers(0, 60)), st.sets(st.integers(0, 60)), st.integers(1, 7))
def test_any_two_sets_of_keys_become_one_whatever_a_page_holds(ours, theirs, page):
    rig = Bounded(2, elements_max=64, keys_per_listing=page, exchange_interval_s=1.0)
    first, second = rig.ids
    for here, away, keys in ((first, second, ours), (second, first, theirs)):
        rig.down(away)
        for i in sorted(keys):
            rig.put(here, b"k%03d" % i, b"v", w=1)
        rig.nodes[here].hints.clear()  # so that only an exchange can find it
        rig.nodes[here].replica.core.hints.recount(rig.nodes[here].replica.core)
        rig.back(away)
    rig.pass_time(6, step=0.1)
    assert set(rig.nodes[first].objects) == set(rig.nodes[second].objects)
    assert len(rig.nodes[first].objects) == len(ours | theirs)


def test_replies_that_come_twice_or_late_are_taken_once(monkeypatch):
    """Two nodes may have two connections. A page that passed for the next one would hide what that has, and the exchange would call it agreement."""

    class Doubling(Bounded):
        def _send(self, node, messages):
            super()._send(node, messages)
            replies = [entry for entry in messages if entry[1][0] in (m.TREE_ROOTS_REPLY, m.TREE_NODES_REPLY, m.TREE_KEYS_REPLY)]
            late.extend((node, [entry]) for entry in replies)
            super()._send(node, replies)
            if len(late) > 3:
                for sender, again in late[:-3]:
                    super()._send(sender, again)
                del late[:-3]

    late = []
    rig = Doubling(3, elements_max=64, keys_per_listing=4, exchange_interval_s=100.0)
    fill(rig, 100)
    before = set(rig.nodes[rig.ids[2]].objects)
    lose_all(rig, rig.ids[2])
    for node in rig.nodes.values():
        node.replica.anti_entropy.next_at = rig.now
    rig.pass_time(3, step=0.1)
    assert set(rig.nodes[rig.ids[2]].objects) == before
    counters = [node.replica.core.counters for node in rig.nodes.values()]
    assert sum(c.get("exchanges_unfinished", 0) for c in counters) == 0 < sum(c.get("exchanges_agreed", 0) for c in counters)


def test_a_listing_from_the_start_mends_the_leaf_whatever_it_shows():
    rig = Rig(1)
    for i in range(20):
        rig.put(rig.ids[0], b"k%d" % i, b"v")
    core = rig.nodes[rig.ids[0]].replica.core
    trees: Trees = rig.nodes[rig.ids[0]].replica.trees
    rig.pass_time(1)
    place = next(place for place in trees._trees)
    sound = trees.get(*place).root()
    for leaf in range(merkle.LEAVES):
        trees.get(*place).set_leaf(leaf, [b"x" * 16])
    rows, whole = trees.listed(core, place, frozenset(range(merkle.LEAVES)), limit=1)
    assert len(rows) == 1 and not whole and trees.get(*place).root() == sound
    rest, whole = trees.listed(core, place, frozenset(range(merkle.LEAVES)), after=rows[-1][0], limit=1000)
    assert whole and rows[0] not in rest
    upto, whole = trees.listed(core, place, frozenset(range(merkle.LEAVES)), until=rest[0][0], limit=1000)
    assert whole and upto == [*rows, rest[0]]


def test_neither_end_of_an_exchange_reads_more_keys_than_a_page_has(monkeypatch):
    pages, listed = [], Trees.listed

    def noted(self, *args, **kwargs):
        rows, whole = listed(self, *args, **kwargs)
        pages.append(len(rows))
        return rows, whole

    monkeypatch.setattr(Trees, "listed", noted)
    rig = Bounded(3, elements_max=64, keys_per_listing=8, exchange_interval_s=2.0)
    fill(rig, 200)
    for node_id in rig.ids[:2]:
        lose_all(rig, node_id)
        rig.pass_time(10, step=0.2)
        assert len(rig.nodes[node_id].objects) == 200
    assert max(pages) == 8


@pytest.mark.parametrize("cut", [b"\0", b"\xff" * 3])
def test_a_page_that_ends_before_its_beginning_or_behind_what_was_asked_for_ends_the_exchange(cut):
    class Astray(Bounded):
        def _send(self, node, messages):
            super()._send(node, [(to, (*message[:4], cut) if message[0] == m.TREE_KEYS_REPLY else message) for to, message in messages])

    rig = Astray(2, elements_max=64, keys_per_listing=4, exchange_interval_s=100.0)
    for i in range(100):
        rig.put(rig.ids[0], b"key-%05d" % i, b"v", w=2)
    lose_all(rig, max(rig.ids))
    for node in rig.nodes.values():
        node.replica.anti_entropy.next_at = rig.now
    rig.pass_time(1, step=0.1)
    counters = rig.nodes[min(rig.ids)].replica.core.counters
    assert counters["exchanges_unfinished"] == 1 and "exchanges_agreed" not in counters
