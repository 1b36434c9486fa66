"""HELLO: the first message in each direction, and the only one whose shape can never change.

It settles three questions before anything else is read: is this our protocol, in a version both speak; is this our cluster; and, between
nodes, who is there. The magic holds a byte that is not ASCII and a line end, so that text protocols and transfers that mangle bytes fail at
once. Whoever claims to be a node of the cluster proves that it knows the cluster's secret: a keyed BLAKE2b over what it says of itself. The
answering node signs the asker's boot nonce too. (Eavesdroppers can replay a HELLO; there is no protection against them without TLS.)
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import NamedTuple

from dynamo.errors import ConfigError, DynamoError, ProtocolError, from_wire
from dynamo.model.messages import ERROR, HELLO, HELLO_REPLY, ROLE_CLIENT, ROLE_JOIN, ROLE_PEER, Message
from dynamo.wire.messages import SHAPES

MAGIC = b"\x8adynamo\r\n"
PROTOCOL_MIN = PROTOCOL_MAX = 1
FORMAT_MIN = FORMAT_MAX = 1
TREE_SHAPE = 1  # number of the layout of the Merkle trees; nodes of one cluster agree on it
HELLO_BYTES_MAX = 4096
PARTS = 1  # capability: takes messages in parts, see `wire.parts`
ID_BYTES = NONCE_BYTES = AUTH_BYTES = 16
ADDRESS_CHARACTERS_MAX = 300
CAPABILITY_COMPILED = 2  # bit of `capabilities`: the node runs on compiled kernels. It changes nothing between nodes; who measures wants to know
_FIRST = 3  # a HELLO's fields after type, request id and magic


class Hello(NamedTuple):
    """What one side says of itself: the fields of HELLO after the magic, in their order on the wire. Clients leave nearly all of it empty."""

    protocol_min: int = PROTOCOL_MIN
    protocol_max: int = PROTOCOL_MAX
    format_min: int = FORMAT_MIN
    format_max: int = FORMAT_MAX
    cluster_id: bytes = b""  # b"": any (clients and joiners)
    partitions: int = 0
    tree_shape: int = 0
    role: int = ROLE_CLIENT
    node_id: bytes = b""
    incarnation: int = 0
    boot_nonce: bytes = b""  # random per process start: tells two processes with one node id apart
    capabilities: int = 0
    auth: bytes = b""
    address: str = ""  # where others reach this node


_FIELDS = len(Hello._fields)
_CLAIM = struct.Struct(">B16s16sQ16sB16s16s")


def client_hello(cluster_id: bytes = b"") -> Message:
    """The HELLO of a client; with a cluster id it will be refused by nodes of any other cluster."""
    return message_of(Hello(cluster_id=cluster_id))


def message_of(hello: Hello, known: tuple[int, int] | None = None) -> Message:
    """The HELLO message, or, with `known` = (actor, lease end) that the answering node knows of the asking one, the HELLO_REPLY."""
    return (HELLO, 0, MAGIC, *hello) if known is None else (HELLO_REPLY, 0, MAGIC, *hello, *known)


def sign(hello: Hello, secret: bytes, asker_nonce: bytes = b"") -> Hello:
    """The same greeting with the proof of a node of the cluster. A reply signs the asker's boot nonce as well."""
    return hello._replace(auth=_proof(hello, secret, asker_nonce))


def check_hello(message: Message) -> Hello:
    """Reads the first message of a connection. Raises ProtocolError unless it is a HELLO of a version this node speaks, sound in itself."""
    if message[0] != HELLO:
        raise ProtocolError(f"the first message has type {message[0]}; it must be HELLO")
    return _read(message)


def check_reply(message: Message) -> tuple[Hello, int, int]:
    """Reads the answer to a HELLO: (greeting, known actor, known lease end). Raises ProtocolError, or the error the node refused with."""
    if message[0] == ERROR:
        raise refusal(message)
    if message[0] != HELLO_REPLY:
        raise ProtocolError(f"HELLO was answered by a message of type {message[0]}")
    hello = _read(message)
    return hello, message[_FIRST + _FIELDS], message[_FIRST + _FIELDS + 1]


def refusal(message: Message) -> DynamoError:
    """The error an ERROR message carries."""
    SHAPES[ERROR].check(message)
    code, text, maybe_applied, required, received = message[2:7]
    return from_wire(code, text, maybe_applied, required, received)


def core_of(hello: Hello) -> str:
    """The core that a node says it runs on: `compiled` or `pure`."""
    return "compiled" if hello.capabilities & CAPABILITY_COMPILED else "pure"


def cluster_text(cluster_id: bytes) -> str:
    """A cluster's id as people see it everywhere: a UUID with its dashes."""
    digits = cluster_id.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def check_cluster(hello: Hello, mine: Hello, secret: bytes, asker_nonce: bytes = b"") -> None:
    """Raises ConfigError unless the other side, which says it is a node, belongs to the cluster of `mine` and can prove it."""
    if hello.cluster_id != mine.cluster_id:
        raise ConfigError(f"this is cluster {cluster_text(mine.cluster_id)}, not {cluster_text(hello.cluster_id)}")
    if (hello.partitions, hello.tree_shape) != (mine.partitions, mine.tree_shape):
        raise ConfigError(f"partitions and tree shape are {mine.partitions}, {mine.tree_shape} here")
    if not hmac.compare_digest(hello.auth, _proof(hello, secret, asker_nonce)):
        raise ConfigError("the other node does not know this cluster's secret")


def _read(message: Message) -> Hello:
    """The greeting in a HELLO or HELLO_REPLY."""
    if len(message) > 2 and message[2] != MAGIC:
        raise ProtocolError("wrong magic: this is the port of a dynamo node and speaks its protocol only")
    SHAPES[message[0]].check(message)
    hello = Hello(*message[_FIRST : _FIRST + _FIELDS])
    _overlap("protocol versions", hello.protocol_min, hello.protocol_max, PROTOCOL_MIN, PROTOCOL_MAX)
    _overlap("record formats", hello.format_min, hello.format_max, FORMAT_MIN, FORMAT_MAX)
    if hello.role not in (ROLE_CLIENT, ROLE_PEER, ROLE_JOIN):
        raise ProtocolError(f"no such role: {hello.role}")
    sizes = (len(hello.cluster_id), len(hello.node_id), len(hello.boot_nonce))
    whole = (ID_BYTES, ID_BYTES, NONCE_BYTES)
    if any(size not in (0, full) for size, full in zip(sizes, whole, strict=True)):
        raise ProtocolError("cluster id, node id and boot nonce have 16 bytes, or none")
    if (hello.role == ROLE_PEER or message[0] == HELLO_REPLY) and sizes != whole:
        raise ProtocolError("a node's greeting names its cluster, its id and its boot nonce")
    if len(hello.auth) > 64 or len(hello.address) > ADDRESS_CHARACTERS_MAX:
        raise ProtocolError("auth or address is too long")
    return hello


def _overlap(what: str, low: int, high: int, our_low: int, our_high: int) -> None:
    if low > our_high or high < our_low or low > high:
        raise ProtocolError(f"{what} {low} to {high} are not spoken here, but {our_low} to {our_high}")


def _proof(hello: Hello, secret: bytes, asker_nonce: bytes) -> bytes:
    """BLAKE2b-128, keyed with the cluster's secret, over the facts that must not be borrowed by another."""
    claim = _CLAIM.pack(1 if asker_nonce else 0, hello.cluster_id, hello.node_id, hello.incarnation, hello.boot_nonce, hello.role, asker_nonce, b"dynamo hello")
    return hashlib.blake2b(claim, digest_size=AUTH_BYTES, key=secret).digest()
