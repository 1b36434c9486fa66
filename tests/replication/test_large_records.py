"""A key whose siblings no frame holds: every verb still works, and each step makes it smaller."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dynamo._core import record as records
from dynamo.client import many, verbs
from dynamo.client.scan import Scan
from dynamo.errors import ConflictError, ValueTooLarge, from_wire
from dynamo.model import messages as m
from dynamo.model.cluster import VALUE_BYTES_MAX, BucketDefinition
from dynamo.replication import fitting
from dynamo.wire.frames import ANSWER_ELEMENTS_MAX, FrameDecoder, encode
from dynamo.wire.messages import check_answer

from .rig import CLIENT, Rig

FIVE = BucketDefinition(n=5, w=1, r=0, value_bytes_max=VALUE_BYTES_MAX, version=1)
PLACE = verbs.Place.named("five")


class Answers(Rig):
    """Clients take what their decoder takes."""

    def _send(self, node, messages):
        for destination, message in messages:
            if destination == CLIENT:
                (decoded,) = FrameDecoder(elements_max=ANSWER_ELEMENTS_MAX).feed(encode(message))
                check_answer(decoded)
        super()._send(node, messages)

    def run(self, verb, node=0):
        def call(request):
            reply = self.ask(self.ids[node], request.message(0, 5000))
            if reply[0] == m.ERROR:
                raise from_wire(*reply[2:7])
            return reply

        return verbs.run(verb, call)


def operation():
    return random.randbytes(16)


def parted(size=1_900_000, rounds=1, key=b"k", **settings):
    """Five nodes, each of which took as much for one key as it does, while it could reach no other; then they meet again."""
    rig = Answers(5, buckets={b"five": FIVE}, exchange_interval_s=1.0, **settings)
    for node_id in rig.ids:
        for other in rig.ids:
            if other != node_id:
                rig.down(other)
        for i in range(rounds):
            assert rig.put(node_id, key, bytes([65 + i]) * size, bucket=b"five")[0] == m.PUT_REPLY
        rig.down(node_id)
        for other in rig.ids:
            rig.nodes[other].up = True
    for node_id in rig.ids:
        rig.back(node_id)
    rig.pass_time(8, step=0.2)
    assert len({rig.record(node_id, key, b"five") for node_id in rig.ids}) == 1
    return rig


@pytest.fixture(scope="module")
def whole():
    """Made once: the tests that change it make their own."""
    return parted()


def test_what_five_sides_wrote_meets_on_all_nodes_and_a_read_shows_what_fits(whole):
    record = whole.record(whole.ids[0], b"k", b"five")
    assert len(record) > 8 << 20
    reply = whole.get(whole.ids[0], b"k", bucket=b"five")
    assert reply[0] == m.GET_REPLY and len(reply[6]) == 3 and m.left_out(reply) == 2
    result = whole.run(verbs.get(PLACE, "k"))
    assert len(result.values) == 3 and result.context.unseen_siblings == 2
    with pytest.raises(ConflictError):
        result.value  # noqa: B018
    found = whole.run(many.get_many(PLACE, ["k", "absent"]))
    assert len(found[b"k"].values) == 3 and not found[b"absent"].found
    (scanned,) = whole.run(Scan(PLACE, b"", None, None).page())
    assert len(scanned.values) == 3 and scanned.context == result.context
    assert whole.put(whole.ids[0], b"k", b"more", bucket=b"five")[2] == ValueTooLarge.code


@pytest.mark.parametrize("node", [0, 4])
def test_updates_resolve_it_in_steps_and_lose_nothing(node):
    rig = parted()
    lengths = []

    def unite(values):
        lengths.append(len(values))
        return b"".join(sorted(value[:1] if len(value) > 100 else value for value in values))

    while True:
        context = rig.run(verbs.update(PLACE, "k", unite, None, operation()), node)
        if not context.unseen_siblings:
            break
    assert lengths[0] == 3 and sum(lengths) == 5 + len(lengths) - 1  # each result but the last is met again
    rig.pass_time(8, step=0.2)
    for at in range(5):
        assert rig.run(verbs.get(PLACE, "k"), at).value == b"AAAAA"


def test_set_and_blind_delete_take_all_of_it():
    rig = parted()
    rig.run(verbs.write(PLACE, "k", b"mine", None, m.MODE_SET, None, None, operation()), 2)
    rig.pass_time(4, step=0.2)
    assert rig.run(verbs.get(PLACE, "k"), 3).value == b"mine"
    rig = parted()
    rig.run(verbs.delete(PLACE, "k", None, True, None, operation), 1)
    rig.pass_time(4, step=0.2)
    assert not rig.run(verbs.get(PLACE, "k"), 4).found
    assert not rig.run(Scan(PLACE, b"", None, None).page())
    rig = parted()
    rig.run(verbs.discard(PLACE, "k", operation), 1)
    assert not rig.run(verbs.get(PLACE, "k"), 1).found


def test_a_scan_of_such_keys_goes_on_page_by_page():
    rig = parted(size=9_000, answer_bytes_max=30_000)
    for i in range(12):
        rig.put(rig.ids[0], b"key-%d" % i, bytes(7_000), bucket=b"five")
    scan, seen = Scan(PLACE, b"", None, None), []
    while not scan.done:
        page = rig.run(scan.page())
        assert sum(len(value) for result in page for value in result.values) <= 30_000
        seen += [result.key for result in page]
    assert len(seen) == 13 == len(set(seen))


def test_a_put_of_more_than_the_bucket_allows_is_refused_where_it_comes_in():
    rig = Rig(5)
    outside = next(node for node in rig.ids if node not in rig.owners(b"k"))
    before = rig.bytes_between
    reply = rig.put(outside, b"k", bytes(8_000_000))
    assert reply[2:5:2] == (ValueTooLarge.code, False) and rig.bytes_between == before


# --- what a part of a record is ---------------------------------------------------------------------------------------------------------

writes = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 300), st.booleans(), st.integers(0, 3)), min_size=1, max_size=30)


def record_of(steps):
    """Replicas that write, each under a part of what it holds, and meet."""
    held = {actor: b"" for actor in range(1, 5)}
    counters = dict.fromkeys(held, 0)
    for actor, size, tombstone, meets in steps:
        counters[actor] += 1
        seen = records.context(held[actor]) if size % 3 and held[actor] else b""
        value = b"" if tombstone else bytes(size)
        name = (actor * 1000 + counters[actor]).to_bytes(16, "big") if size % 7 else bytes(16)
        held[actor] = records.put(held[actor], seen, actor, counters[actor], counters[actor], 5, name, value, tombstone)
        if meets:
            held[actor] = records.merge(held[actor], held[meets]) if held[meets] else held[actor]
    merged = b""
    for record in held.values():
        merged = records.merge(merged, record) if record and merged else merged or record
    return merged


@given(writes, st.integers(0, 3000))
def test_a_token_of_a_part_covers_what_is_shown_and_nothing_that_is_not(steps, bytes_max):
    record = record_of(steps)
    siblings, tombstones, _, context, left_out = fitting.shown(record, bytes_max)
    records.context_verify(context)
    everything = records.visible(record)
    assert siblings == everything[0][: len(siblings)] and tombstones == everything[1][: len(tombstones)]
    assert siblings or tombstones
    shown = {s[1:3] for s in siblings} | {t[:2] for t in tombstones}
    stay = {version[:2] for version in records.versions(record)} - shown
    if left_out:
        assert len(stay) == left_out
        assert not any(records.context_contains(context, *dot) for dot in stay)
    else:
        assert context == records.context(record)
    assert all(records.context_contains(context, *dot) for dot in shown)
    assert records.context_covers(records.context(record), context)
    # What is written under it replaces just that.
    after = records.put(record, context, 9, 1, 1, 6, b"w" * 16, b"", False)
    assert {version[:2] for version in records.versions(after)} == {(9, 1)} | (stay if left_out else set())


def test_a_version_that_another_of_its_operation_stands_for_is_left_out_with_what_is():
    """Neither the one nor the other is shown; a token that covered one of them would drop what nobody saw."""
    record = b""
    for actor, name, value in ((1, b"o" * 16, b"twice"), (2, b"o" * 16, b"twice"), (3, b"p" * 16, bytes(400))):
        record = records.merge(record, records.put(b"", b"", actor, 1, 1, 5, name, value, False))
    siblings, _, _, context, left_out = fitting.shown(record, 0)
    assert len(records.visible(record)[0]) == 2 and len(siblings) == 1 and left_out == 2
    assert [actor for actor in (1, 2, 3) if records.context_contains(context, actor, 1)] == [siblings[0][1]]


def test_no_answer_has_more_siblings_or_deletions_than_a_client_takes_in_one_array(monkeypatch):
    monkeypatch.setattr(fitting, "ELEMENTS_MAX", 3)
    for tombstone in (False, True):
        record = b""
        for actor in range(1, 6):
            record = records.merge(record, records.put(b"", b"", actor, 1, 1, 5, bytes([actor] * 16), b"", tombstone))
        siblings, tombstones, _, _, left_out = fitting.shown(record, 1 << 20)
        assert len(tombstones if tombstone else siblings) == 3 and left_out == 2


@given(writes, st.integers(300, 3000))
@example([(1, 214, False, 0), (1, 0, True, 0)], 308)
def test_a_part_fits_into_the_bytes_it_was_given(steps, bytes_max):
    siblings, tombstones, _, context, _ = fitting.shown(record_of(steps), bytes_max)
    message = (m.GET_REPLY, 1 << 63, 1 << 63, 1 << 63, 1 << 31, context + bytes(18), siblings, tombstones, 1 << 31)
    if len(siblings) + len(tombstones) > 1:
        assert len(encode(message)) - 4 <= bytes_max
