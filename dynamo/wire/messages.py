"""Every message's shape, and who may send it: the table behind `docs/wire.md`.

`check` is what stands between a socket and the replica: what it lets pass has all fields of its type, of the right types and within range,
nested messages included, and came on a connection of a role that may send it. It does not judge meaning: key lengths, bucket names,
tokens and records have typed errors of their own, given by whoever reads them.

A request that fails here closes the connection. Nobody who speaks the protocol sends one.
"""

from __future__ import annotations

from typing import Any

from dynamo._core import shape as kernel
from dynamo.errors import ProtocolError
from dynamo.model import messages as m
from dynamo.model.member import MEMBERS_MAX, Member
from dynamo.model.messages import Message
from dynamo.wire.shapes import BYTES, BYTES_OR_NIL, FLAG, ID, TEXT, U8, U32, U64, Kind, Shape, array_of, upto


def _id(value: Any) -> None:
    if type(value) is not bytes or len(value) != 16:
        raise ProtocolError("a node id is 16 bytes")


def _index(value: Any) -> None:
    if type(value) is not int or not 0 <= value < 1 << 32:
        raise ProtocolError("an index is an integer 0..2^32-1")


def _check_needs(value: Any) -> None:
    if type(value) is not tuple or len(value) < 2 or type(value[0]) is not int or type(value[1]) is not tuple:
        raise ProtocolError("a need is [count, node ids]")
    for node in value[1]:
        _id(node)


def _key(value: Any) -> None:
    if type(value) is not bytes:
        raise ProtocolError("GET_MANY: a key is bytes")


_ENTRY = Shape("gossip entry", [("node_id", ID), ("incarnation", U64), ("revision", U64), ("admin_version", U64)], first=0)
_TOMBSTONE = Shape("tombstone", [("actor", U64), ("counter", U64), ("time", U64)], first=0)
_SIBLING = Shape("sibling", [("value", BYTES), ("actor", U64), ("counter", U64), ("time", U64)], first=0)

MEMBERS = array_of("members", Member.from_tuple, high=MEMBERS_MAX)  # `model.member` checks what it will read again
SIBLINGS = array_of("[value, actor, counter, time]", _SIBLING.check_array)
TOMBSTONES = array_of("[actor, counter, time]", _TOMBSTONE.check_array)
_SCANNED = Shape("scan entry", [("key", BYTES), ("token", BYTES), ("siblings", SIBLINGS), ("cursor", BYTES)], first=0)
_SCANNED_ROW = Shape("scanned row", [("row_key", BYTES), ("key", BYTES), ("record", BYTES)], first=0)
_TREE_KEY = Shape("key of a tree", [("bucket", BYTES), ("key", BYTES), ("digest", BYTES)], first=0)
_NEED = Shape("needs of a partition", [("partition", U32), ("needs", array_of("[count, node ids]", _check_needs, high=8))], first=0)
_PUT_ENTRY = Shape("PUT_MANY entry", [("key", BYTES), ("value", BYTES_OR_NIL), ("context", BYTES_OR_NIL), ("operation", ID)], first=0)
KEY = [("bucket", BYTES), ("key", BYTES)]
TIME = ("time_ms", U32)  # the time remaining
INDEXES = array_of("integers 0..2^32-1", _index)
TREE = [("partition", U32), ("n", U32)]
RING = [("ring_number", U64), ("ring_hash", U64)]
DURABILITY = upto(m.DURABILITY_SYNCED)
STANDING = upto(m.RECOVERING)
_GREETING = [
    ("magic", BYTES), ("protocol_min", U32), ("protocol_max", U32), ("format_min", U32), ("format_max", U32), ("cluster_id", BYTES),
    ("partitions", U32), ("tree_shape", U32), ("role", U8), ("node_id", BYTES), ("incarnation", U64), ("boot_nonce", BYTES),
    ("capabilities", U64), ("auth", BYTES), ("address", TEXT),
]  # fmt: skip


def _inner(*types: int) -> Kind:
    """A field that holds a whole message of one of these types."""

    def check_inner(value: Any) -> None:
        if type(value) is not tuple or not value or type(value[0]) is not int or value[0] not in types:
            raise ProtocolError(f"a nested message is not of type {' or '.join(map(str, types))}")
        SHAPES[value[0]].check(value)

    return Kind("message", (tuple,), nested=check_inner)


def _inner_each(*types: int) -> Kind:
    """A field that holds an array of them, mostly long and sound."""
    check_inner = _inner(*types).nested
    assert check_inner is not None
    expected: dict[int, kernel.Fields] = {}

    def check_each(values: Any) -> None:
        if not expected:  # now, for the shapes are not there yet when this is made
            expected.update((kind, SHAPES[kind].expected) for kind in types)
        at = kernel.first_unfit(values, expected)
        if at != kernel.FITS:
            check_inner(values[at])
            raise AssertionError("the kernel refused what its shape lets pass")

    return Kind("array of messages", (tuple,), nested=check_each)


SHAPES: dict[int, Shape] = {
    m.HELLO: Shape("HELLO", _GREETING),
    m.HELLO_REPLY: Shape("HELLO_REPLY", [*_GREETING, ("known_actor", U64), ("known_lease_end", U64)]),
    m.JOIN: Shape("JOIN", [("node_id", ID), ("name", TEXT), ("address", TEXT)]),
    m.JOIN_REPLY: Shape("JOIN_REPLY", [("cluster", BYTES), ("members", MEMBERS)]),
    m.GET: Shape("GET", [*KEY, ("r", U8), ("pr", U8), TIME]),
    m.PUT: Shape(
        "PUT",
        [*KEY, ("value", BYTES_OR_NIL), ("context", BYTES_OR_NIL), ("mode", upto(m.MODE_SET)), ("w", U8), ("pw", U8), TIME, ("operation", ID)],
    ),
    m.GET_MANY: Shape(
        "GET_MANY", [("bucket", BYTES), ("keys", array_of("keys", _key)), ("r", U8), ("pr", U8), TIME]
    ),
    m.CLUSTER_STATUS: Shape("CLUSTER_STATUS", []),
    m.PREFERENCE_LIST: Shape("PREFERENCE_LIST", [*KEY]),
    m.SCAN: Shape("SCAN", [("bucket", BYTES), ("prefix", BYTES), ("cursor", BYTES), ("limit", U32), TIME]),
    m.PUT_MANY: Shape(
        "PUT_MANY",
        [("bucket", BYTES), ("entries", array_of("[key, value, context, operation]", _PUT_ENTRY.check_array)), ("mode", upto(m.MODE_SET)),
         ("w", U8), ("pw", U8), TIME],
    ),
    m.STATS: Shape("STATS", []),
    m.GET_REPLY: Shape("GET_REPLY", [*RING, ("owners_answered", U32), ("token", BYTES), ("siblings", SIBLINGS), ("tombstones", TOMBSTONES)]),
    m.PUT_REPLY: Shape(
        "PUT_REPLY",
        [*RING, ("token", BYTES), ("actor", U64), ("counter", U64), ("unseen_siblings", U32), ("confirmed", U32),
         ("durability", DURABILITY)],
    ),
    m.GET_MANY_REPLY: Shape("GET_MANY_REPLY", [("replies", _inner_each(m.GET_REPLY, m.ERROR))]),
    m.CLUSTER_STATUS_REPLY: Shape("CLUSTER_STATUS_REPLY", [("document", BYTES)]),
    m.PREFERENCE_LIST_REPLY: Shape("PREFERENCE_LIST_REPLY", [("document", BYTES)]),
    m.SCAN_REPLY: Shape(
        "SCAN_REPLY",
        [*RING, ("entries", array_of("[key, token, siblings, cursor]", _SCANNED.check_array)), ("cursor", BYTES), ("owners_answered", U32)],
    ),
    m.PUT_MANY_REPLY: Shape("PUT_MANY_REPLY", [("replies", _inner_each(m.PUT_REPLY, m.ERROR))]),
    m.STATS_REPLY: Shape("STATS_REPLY", [("document", BYTES)]),
    m.ERROR: Shape("ERROR", [("code", U32), ("text", TEXT), ("maybe_applied", FLAG), ("required", U32), ("received", U32)]),
    m.FORWARD: Shape("FORWARD", [("put", _inner(m.PUT))]),
    m.FORWARD_REPLY: Shape("FORWARD_REPLY", [("reply", _inner(m.PUT_REPLY, m.ERROR))]),
    m.REPLICATE: Shape(
        "REPLICATE",
        [*KEY, ("record", BYTES), ("purpose", upto(m.PURPOSE_ANTI_ENTROPY)), ("target", BYTES), TIME,
         *RING, ("bucket_version", U64), ("durability", DURABILITY), ("operation", ID)],
    ),
    m.REPLICATE_REPLY: Shape(
        "REPLICATE_REPLY", [("code", U32), ("standing", STANDING), ("durability", DURABILITY), ("digest", BYTES), *RING]
    ),
    m.READ: Shape("READ", [*KEY, ("digest", BYTES), TIME, *RING, ("bucket_version", U64)]),
    m.READ_REPLY: Shape("READ_REPLY", [("code", U32), ("standing", STANDING), ("digest", BYTES), ("record", BYTES_OR_NIL), *RING]),
    m.SCAN_READ: Shape(
        "SCAN_READ",
        [("bucket", BYTES), ("prefix", BYTES), ("first_partition", U32), ("end_partition", U32), ("after", BYTES), ("limit", U32), *RING],
    ),
    m.SCAN_READ_REPLY: Shape(
        "SCAN_READ_REPLY",
        [("code", U32), ("standing", STANDING), ("rows", array_of("[row key, key, record]", _SCANNED_ROW.check_array)), ("whole", FLAG), *RING],
    ),
    m.OFFER: Shape(
        "OFFER",
        [("entries", array_of("[bucket, key, digest]", _TREE_KEY.check_array)), ("durability", DURABILITY), *RING],
    ),
    m.OFFER_REPLY: Shape("OFFER_REPLY", [("code", U32), ("durability", DURABILITY), ("lacking", INDEXES), *RING]),
    m.GOSSIP: Shape("GOSSIP", [("digest", BYTES), ("entries", array_of("entries", _ENTRY.check_array, high=MEMBERS_MAX))]),
    m.GOSSIP_REPLY: Shape(
        "GOSSIP_REPLY", [("digest", BYTES), ("members", MEMBERS), ("wanted", array_of("node ids", _id, high=MEMBERS_MAX))]
    ),
    m.GOSSIP_PUSH: Shape("GOSSIP_PUSH", [("members", MEMBERS)]),
    m.TREE_ROOTS: Shape("TREE_ROOTS", [*RING, ("roots", BYTES)]),
    m.TREE_ROOTS_REPLY: Shape("TREE_ROOTS_REPLY", [("code", U32), ("differing", INDEXES)]),
    m.TREE_NODES: Shape("TREE_NODES", [*TREE, ("nodes", BYTES)]),
    m.TREE_NODES_REPLY: Shape("TREE_NODES_REPLY", [("code", U32), ("differing", INDEXES), ("leaves", BYTES)]),
    m.TREE_KEYS: Shape("TREE_KEYS", [*TREE, ("leaves", INDEXES), ("after", BYTES), ("until", BYTES)]),
    m.TREE_KEYS_REPLY: Shape(
        "TREE_KEYS_REPLY",
        [("code", U32), ("entries", array_of("[bucket, key, 8 bytes of the digest]", _TREE_KEY.check_array)), ("cut", BYTES)],
    ),
    m.RECOVER: Shape("RECOVER", [*RING, ("n", U32), ("partitions", INDEXES)]),
    m.RECOVER_REPLY: Shape("RECOVER_REPLY", [("code", U32), ("recovering", array_of("[partition, needs]", _NEED.check_array)), ("spoken", U32)]),
    m.PART: Shape("PART", [("last", FLAG), ("data", BYTES)]),
}  # fmt: skip

# What a node accepts, by the role of the connection it came on, after HELLO.
REQUESTS: dict[int, frozenset[int]] = {
    m.ROLE_CLIENT: frozenset((m.GET, m.PUT, m.GET_MANY, m.CLUSTER_STATUS, m.PREFERENCE_LIST, m.SCAN, m.PUT_MANY, m.STATS)),
    m.ROLE_PEER: frozenset(
        (m.FORWARD, m.FORWARD_REPLY, m.REPLICATE, m.REPLICATE_REPLY, m.READ, m.READ_REPLY, m.SCAN_READ, m.SCAN_READ_REPLY, m.GOSSIP,
         m.GOSSIP_REPLY, m.GOSSIP_PUSH, m.TREE_ROOTS, m.TREE_ROOTS_REPLY, m.TREE_NODES, m.TREE_NODES_REPLY, m.TREE_KEYS, m.TREE_KEYS_REPLY,
         m.OFFER, m.OFFER_REPLY, m.RECOVER, m.RECOVER_REPLY, m.PART)
    ),
    m.ROLE_JOIN: frozenset((m.JOIN,)),
}  # fmt: skip
# What a node answers to whoever is no node.
ANSWERS: dict[int, frozenset[int]] = {
    m.ROLE_CLIENT: frozenset(
        (m.GET_REPLY, m.PUT_REPLY, m.GET_MANY_REPLY, m.CLUSTER_STATUS_REPLY, m.PREFERENCE_LIST_REPLY, m.SCAN_REPLY, m.PUT_MANY_REPLY,
         m.STATS_REPLY, m.ERROR)
    ),
    m.ROLE_JOIN: frozenset((m.JOIN_REPLY, m.ERROR)),
}  # fmt: skip
_REQUESTS = {role: {kind: SHAPES[kind] for kind in kinds} for role, kinds in REQUESTS.items()}
_REQUEST_FIELDS = {role: {kind: shape.expected for kind, shape in shapes.items()} for role, shapes in _REQUESTS.items()}
_ANSWERS = {role: {kind: SHAPES[kind] for kind in kinds} for role, kinds in ANSWERS.items()}


def check(message: Message, role: int) -> None:
    """Raises ProtocolError unless a node may get this message on a connection of this role. Between peers, requests and replies alike."""
    check_all([message], role)


def check_all(messages: list[Message], role: int) -> None:
    """The same for all messages of one piece of a stream."""
    at = kernel.first_unfit(messages, _REQUEST_FIELDS[role])
    if at != kernel.FITS:
        message = messages[at]
        shape = _REQUESTS[role].get(message[0]) if message else None
        if shape is None:
            raise ProtocolError(f"message type {message[0] if message else 'none'} on a connection of role {role}")
        shape.check(message)
        raise AssertionError(f"{shape.name}: the kernel refused what its shape lets pass")


def check_answer(message: Message, role: int = m.ROLE_CLIENT) -> None:
    """Raises ProtocolError unless this is an answer a node gives to a client (or to a joiner)."""
    shape = _ANSWERS[role].get(message[0])
    if shape is None:
        raise ProtocolError(f"message type {message[0]} as an answer to role {role}")
    shape.check(message)
