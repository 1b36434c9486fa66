"""Each bound of a decoder from the side of the encoders: the largest message that a sender makes of each type is taken by whoever gets it, by both cores."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.api.codec import bucket_bytes
from dynamo.client import many
from dynamo.errors import ConfigError, ProtocolError, ValueTooLarge
from dynamo.membership.members import Membership
from dynamo.model import messages as m
from dynamo.model.cluster import BUCKETS_MAX, PARTITIONS_MAX, VALUE_BYTES_MAX, BucketDefinition, Cluster
from dynamo.model.key import KEY_BYTES_MAX, ROW_KEY_BYTES_MAX
from dynamo.model.member import MEMBERS_MAX, VERSION_MAX, Member
from dynamo.net.admin import Desk
from dynamo.replication import Settings, batch, fitting
from dynamo.replication.tokens import RANGE_BYTES, RANGES_MAX
from dynamo.wire.documents import DOCUMENT_BYTES_MAX, decode_document, encode_document
from dynamo.wire.frames import ANSWER_ELEMENTS_MAX, ARRAY_ELEMENTS_MAX, FRAME_BYTES_MAX, FULL_ARRAYS_MAX, HEADER_BYTES
from dynamo.wire.hello import HELLO_BYTES_MAX, MAGIC
from dynamo.wire.messages import ANSWERS, REQUESTS, SHAPES, check, check_answer
from dynamo.wire.parts import MESSAGE_BYTES_MAX, PART_BYTES, Parts, split

U64, U32, WIDE = (1 << 64) - 1, (1 << 32) - 1, "\U0001f600"  # four bytes to the character
KEY, BUCKET, ROW_KEY, ID, OPERATION = b"k" * KEY_BYTES_MAX, b"b" * 64, b"r" * ROW_KEY_BYTES_MAX, b"i" * 16, b"o" * 16
TOKEN = bytes(18 + RANGES_MAX * RANGE_BYTES)
SETTINGS = Settings()
RECORD = bytes(9_500_000)  # of siblings from five sides
DEEP = bytes(100_000_000)
RING = (U64, U64)
GREETING = (MAGIC, U32, U32, U32, U32, ID, U32, U32, 1, ID, U64, ID, U64, bytes(64), WIDE * 300)
MEMBER = Member(ID, WIDE * 64, VERSION_MAX, VERSION_MAX, VERSION_MAX, WIDE * 300, WIDE * 64, 999_999, "joining", U64, U64, U64)
PUT = (m.PUT, U64, BUCKET, KEY, bytes(VALUE_BYTES_MAX), TOKEN, 1, 255, 255, U32, OPERATION)
ERROR = m.error_message(U64, 99, WIDE * 5000, True, U32, U32)
PUT_REPLY = (m.PUT_REPLY, U64, *RING, TOKEN, U64, U64, U32, U32, 3)


@cache
def members():
    return (MEMBER.to_tuple(),) * MEMBERS_MAX


def get_reply(bytes_max=SETTINGS.answer_bytes_max):
    """A reply whose part of a record fills what it may."""
    left = bytes_max - fitting.ANSWER_BYTES - RANGES_MAX * RANGE_BYTES
    return (m.GET_REPLY, U64, *RING, U32, TOKEN, ((bytes(left - fitting.SIBLING_BYTES), U64, U64, U64),), (), U32)


def many_siblings():
    left = SETTINGS.answer_bytes_max - fitting.ANSWER_BYTES - RANGES_MAX * RANGE_BYTES
    count = min(fitting.ELEMENTS_MAX, left // fitting.SIBLING_BYTES)
    dead = min(fitting.ELEMENTS_MAX, (left - count * fitting.SIBLING_BYTES) // fitting.TOMBSTONE_BYTES)
    return (m.GET_REPLY, U64, *RING, U32, TOKEN, ((b"", U64, U64, U64),) * count, ((U64, U64, U64),) * dead, U32)


def batch_of(kind, replies):
    collected = batch.Batch(kind, U64, len(replies))
    whole = None
    for slot, reply in enumerate(replies):
        whole = collected.add(slot, (reply[0], 0, *reply[2:]))
    return whole


def cluster():
    definition = BucketDefinition("last_write_wins", 3, 3, 3, 3, 3, VALUE_BYTES_MAX, 10_000, U64)
    names = {b"%064d" % i: definition for i in range(BUCKETS_MAX)}
    return Cluster(ID, bytes(32), U64, PARTITIONS_MAX, 3, buckets=names)


@cache
def status():
    """`cluster status` of the largest cluster."""
    membership = Membership(ID)
    membership.merge_all(MEMBER._replace(node_id=i.to_bytes(16, "big")) for i in range(MEMBERS_MAX))

    class Ring:
        number = U64

        def partitions_of(self, node):
            return PARTITIONS_MAX

    return encode_document(Desk(cluster(), membership, Ring, lambda node: False, lambda node: False, dict, lambda node: U32).cluster_status())


def named(count):
    return [{"name": WIDE * 64, "id": ID.hex(), "address": WIDE * 300}] * count


LARGEST = {
    m.HELLO: lambda: (m.HELLO, 0, *GREETING),
    m.HELLO_REPLY: lambda: (m.HELLO_REPLY, 0, *GREETING, U64, U64),
    m.JOIN: lambda: (m.JOIN, 1, ID, WIDE * 64, WIDE * 300),
    m.JOIN_REPLY: lambda: (m.JOIN_REPLY, 1, encode_document(cluster().to_document()), members()),
    m.GET: lambda: (m.GET, U64, BUCKET, KEY, 255, 255, U32),
    m.PUT: lambda: PUT,
    m.GET_MANY: lambda: (m.GET_MANY, U64, BUCKET, (KEY,) * 1024, 255, 255, U32),
    m.CLUSTER_STATUS: lambda: (m.CLUSTER_STATUS, U64),
    m.PREFERENCE_LIST: lambda: (m.PREFERENCE_LIST, U64, BUCKET, KEY),
    m.SCAN: lambda: (m.SCAN, U64, BUCKET, KEY, ROW_KEY, U32, U32),
    # A part of a request ends before the entry that would pass its bound, unless that is the first.
    m.PUT_MANY: lambda: (m.PUT_MANY, U64, BUCKET, ((KEY, PUT[4], TOKEN, OPERATION),) * (many.REQUEST_BYTES // VALUE_BYTES_MAX), 1, 255, 255, U32),
    m.STATS: lambda: (m.STATS, U64),
    m.GET_REPLY: get_reply,
    m.PUT_REPLY: lambda: PUT_REPLY,
    m.GET_MANY_REPLY: lambda: batch_of(m.GET_MANY_REPLY, [get_reply(), *[ERROR] * 1023]),
    m.CLUSTER_STATUS_REPLY: lambda: (m.CLUSTER_STATUS_REPLY, U64, status()),
    m.PREFERENCE_LIST_REPLY: lambda: (m.PREFERENCE_LIST_REPLY, U64, encode_document({"bucket": BUCKET, "key": KEY, "position": U64, "partition": U32,
                                                                                     "owners": named(64), "fallbacks": named(MEMBERS_MAX - 64)})),
    m.SCAN_REPLY: lambda: (m.SCAN_REPLY, U64, *RING, ((KEY, TOKEN, get_reply()[6], ROW_KEY, U32),), ROW_KEY, U32),
    m.PUT_MANY_REPLY: lambda: batch_of(m.PUT_MANY_REPLY, [PUT_REPLY] * 1024),
    m.STATS_REPLY: lambda: (m.STATS_REPLY, U64, encode_document({f"count {i}": U64 for i in range(5000)})),
    m.ERROR: lambda: ERROR,
    m.FORWARD: lambda: (m.FORWARD, U64, PUT),
    m.FORWARD_REPLY: lambda: (m.FORWARD_REPLY, U64, PUT_REPLY),
    m.REPLICATE: lambda: (m.REPLICATE, U64, BUCKET, KEY, RECORD, 3, ID, U32, *RING, U64, 3, OPERATION),
    m.REPLICATE_REPLY: lambda: (m.REPLICATE_REPLY, U64, U32, 2, 3, ID, *RING),
    m.READ: lambda: (m.READ, U64, BUCKET, KEY, ID, U32, *RING, U64),
    m.READ_REPLY: lambda: (m.READ_REPLY, U64, 0, 2, ID, RECORD, *RING),
    m.SCAN_READ: lambda: (m.SCAN_READ, U64, BUCKET, KEY, U32, U32, ROW_KEY, U32, *RING),
    m.SCAN_READ_REPLY: lambda: (m.SCAN_READ_REPLY, U64, 0, 2, ((ROW_KEY, KEY, bytes(4096)),) * 255 + ((ROW_KEY, KEY, RECORD),), False, *RING),
    m.GOSSIP: lambda: (m.GOSSIP, U64, ID, ((ID, VERSION_MAX, VERSION_MAX, VERSION_MAX),) * MEMBERS_MAX),
    m.GOSSIP_REPLY: lambda: (m.GOSSIP_REPLY, U64, ID, members(), (ID,) * MEMBERS_MAX),
    m.GOSSIP_PUSH: lambda: (m.GOSSIP_PUSH, U64, members()),
    m.TREE_ROOTS: lambda: (m.TREE_ROOTS, U64, *RING, bytes(8 * PARTITIONS_MAX * 64)),  # of 64 values of N
    m.TREE_ROOTS_REPLY: lambda: (m.TREE_ROOTS_REPLY, U64, 0, (U32,) * 256),
    m.TREE_NODES: lambda: (m.TREE_NODES, U64, U32, U32, bytes(8 * 32)),
    m.TREE_NODES_REPLY: lambda: (m.TREE_NODES_REPLY, U64, 0, tuple(range(32)), bytes(8 * 1024)),
    m.TREE_KEYS: lambda: (m.TREE_KEYS, U64, U32, U32, tuple(range(1024)), ROW_KEY, ROW_KEY),
    m.TREE_KEYS_REPLY: lambda: (m.TREE_KEYS_REPLY, U64, 0, ((BUCKET, KEY, bytes(8)),) * SETTINGS.keys_per_listing, ROW_KEY),
    m.OFFER: lambda: (m.OFFER, U64, ((BUCKET, KEY, ID),) * SETTINGS.handoff_window, 3, *RING),
    m.OFFER_REPLY: lambda: (m.OFFER_REPLY, U64, 0, 3, tuple(range(SETTINGS.handoff_window)), *RING),
    m.RECOVER: lambda: (m.RECOVER, U64, *RING, U32, (U32,) * 64),
    m.RECOVER_REPLY: lambda: (m.RECOVER_REPLY, U64, 0, ((U32, ((64, (ID,) * 64),) * 8),) * 2 + ((U32, ((1, (ID,)),)),) * 62, 64),
    m.PART: lambda: (m.PART, 0, False, bytes(PART_BYTES)),
}  # fmt: skip


def received(kernel, frame, frame_bytes_max, elements_max):
    messages, used, _ = kernel.decode(frame, frame_bytes_max, elements_max, elements_max * FULL_ARRAYS_MAX)
    assert used == len(frame)
    (message,) = messages
    return message


def roles_of(kind):
    for table, test in ((REQUESTS, check), (ANSWERS, check_answer)):
        yield from ((role, test) for role, kinds in table.items() if kind in kinds)


def test_every_type_has_its_largest():
    assert set(LARGEST) == set(SHAPES)


@pytest.mark.parametrize("kind", sorted(LARGEST), ids=lambda kind: SHAPES[kind].name)
def test_the_largest_of_each_type_is_taken(core, kind):
    message = LARGEST[kind]()
    SHAPES[kind].check(message)
    if kind in (m.HELLO, m.HELLO_REPLY):
        frame = core.frame.encode(message, HELLO_BYTES_MAX)
        assert received(core.frame, frame, HELLO_BYTES_MAX, ARRAY_ELEMENTS_MAX) == message
    for role, test in roles_of(kind):
        if test is check and role == m.ROLE_PEER and kind != m.PART:
            parts, found = Parts(), []
            for frame in split(core.frame.encode(message, MESSAGE_BYTES_MAX)):
                found += parts.take([received(core.frame, frame, FRAME_BYTES_MAX, ARRAY_ELEMENTS_MAX)])
            assert found == [message]
        else:
            elements_max = ARRAY_ELEMENTS_MAX if test is check else ANSWER_ELEMENTS_MAX
            assert received(core.frame, core.frame.encode(message, FRAME_BYTES_MAX), FRAME_BYTES_MAX, elements_max) == message
        test(message, role)


def test_what_a_node_says_before_the_greeting_is_over_fits_into_a_greeting(core):
    assert len(core.frame.encode(ERROR)) <= HEADER_BYTES + HELLO_BYTES_MAX
    assert received(core.frame, core.frame.encode(m.error_message(0, 1, "a name \udcff that is no text", False)), HELLO_BYTES_MAX, 16)[3].isascii()


def test_an_answer_with_as_many_siblings_as_it_may_show_is_taken(core):
    message = many_siblings()
    assert len(message[6]) == fitting.ELEMENTS_MAX
    assert received(core.frame, core.frame.encode(message, FRAME_BYTES_MAX), FRAME_BYTES_MAX, ANSWER_ELEMENTS_MAX) == message


def test_documents_are_bounded_where_they_are_made():
    assert len(status()) < DOCUMENT_BYTES_MAX and len(decode_document(status())["nodes"]) == MEMBERS_MAX
    for size in (DOCUMENT_BYTES_MAX - 5, DOCUMENT_BYTES_MAX - 4):
        try:
            data = encode_document(bytes(size))
        except ValueTooLarge:
            assert size + 5 > DOCUMENT_BYTES_MAX
        else:
            assert len(decode_document(data)) == size
    with pytest.raises(ConfigError, match="buckets"):
        Cluster(ID, bytes(32), 5, buckets={bucket_bytes(f"b{i}"): BucketDefinition() for i in range(BUCKETS_MAX + 1)})


sizes = st.integers(0, 3_000_000) | st.integers(0, 200)


@given(st.lists(st.tuples(sizes, st.booleans()), min_size=1, max_size=12))
def test_answers_for_many_keys_fit_whatever_is_in_them(drawn):
    replies = [ERROR if error else (m.GET_REPLY, U64, *RING, U32, b"t", ((memoryview(DEEP)[:size].tobytes(), 1, 2, 3),), ()) for size, error in drawn]
    whole = batch_of(m.GET_MANY_REPLY, replies)
    kept = sum(len(reply[6][0][0]) for reply in whole[2] if reply[0] == m.GET_REPLY)
    assert kept + 1000 * len(replies) < FRAME_BYTES_MAX and len(whole[2]) == len(replies)


def test_a_message_that_is_too_large_in_parts_is_no_message(monkeypatch):
    monkeypatch.setattr("dynamo.wire.parts.MESSAGE_BYTES_MAX", 100)
    with pytest.raises(ProtocolError):
        Parts().take([(m.PART, 0, True, bytes(101))])
