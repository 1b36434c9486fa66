"""What the cluster knows of one node: a value, its checks, and its one byte form.

The facts have two authors. The node itself says where it is and which actor it mints under (`name address actor
lease_end formats`) and numbers what it says with (incarnation, revision). Administrators say what part it has in the
cluster (`status zone capacity`) and number that with `admin_version`. `membership.members` merges the two apart.

`left` is final, so a member that left has no zone (b"") and the plain capacity: `checked` sees to it, and thereby two
views of it cannot differ in what no longer matters.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

from dynamo.errors import CorruptRecord, ProtocolError

JOINING, NORMAL, LEAVING, LEFT = "joining", "normal", "leaving", "left"
STATUSES = (JOINING, NORMAL, LEAVING, LEFT)  # in the order a node goes through them
MEMBERS_MAX = 4096  # nodes a membership may ever have had; what one gossip message can carry
VERSION_MAX = (1 << 48) - 1  # of incarnation, revision and admin_version, so that sums over all members fit 64 bits
CAPACITY_PLAIN = 1000  # thousandths: 1.0
CAPACITY_MAX = 1_000_000
NAME_CHARACTERS_MAX = 64
ZONE_CHARACTERS_MAX = 64
ADDRESS_CHARACTERS_MAX = 300
NODE_ID_BYTES = 16
_U64_MAX = (1 << 64) - 1
_HEAD = struct.Struct(">16sQQQIBQQQHHH")


class Member(NamedTuple):
    """One node as the cluster sees it. In this order the fields are also its tuple on the wire."""

    node_id: bytes
    name: str
    incarnation: int  # starts of this node so far
    revision: int  # changes of its own facts within the incarnation
    admin_version: int  # changes of the admin facts
    address: str  # "host:port", or "" while unknown
    zone: str  # failure domain; "" = none
    capacity: int  # thousandths
    status: str
    actor: int  # 0 while unknown
    lease_end: int  # the highest counter the actor may have issued
    formats: int  # the newest record format it understands

    def to_tuple(self) -> tuple[Any, ...]:
        """The plain tuple for the wire."""
        return tuple(self)

    @classmethod
    def from_tuple(cls, values: Any) -> Member:
        """The member of a tuple off the wire; fields behind the known ones are ignored. Raises ProtocolError."""
        if not isinstance(values, tuple) or len(values) < len(cls._fields):
            raise ProtocolError(f"a member is an array of {len(cls._fields)} fields")
        return checked(cls._make(values[: len(cls._fields)]))


def checked(member: Member) -> Member:
    """The member in canonical form. Raises ProtocolError, naming the field that is of a wrong type or out of range."""
    if type(member.node_id) is not bytes or len(member.node_id) != NODE_ID_BYTES:
        raise ProtocolError("member: node_id is not 16 bytes")
    for name, low, high in _INTEGERS:
        value = getattr(member, name)
        if type(value) is not int or not low <= value <= high:
            raise ProtocolError(f"member: {name} is not an integer within {low}..{high}")
    for name, characters_max in _TEXTS:
        value = getattr(member, name)
        if type(value) is not str or len(value) > characters_max or not value.isprintable():
            raise ProtocolError(f"member: {name} is not text of at most {characters_max} printable characters")
    if member.status not in STATUSES:
        raise ProtocolError("member: no such status")
    return canonical(member)


def canonical(member: Member) -> Member:
    """The same member; one that left has neither zone nor capacity of its own."""
    if member.status == LEFT and (member.zone, member.capacity) != ("", CAPACITY_PLAIN):
        return member._replace(zone="", capacity=CAPACITY_PLAIN)
    return member


def encode_member(member: Member) -> bytes:
    """The byte form for digests and disk, all integers big-endian:

    16s node_id, u64 incarnation, u64 revision, u64 admin_version, u32 capacity, u8 status (its index), u64 actor,
    u64 lease_end, u64 formats, u16 lengths of name, address and zone, then these three in UTF-8.
    """
    name, address, zone = member.name.encode(), member.address.encode(), member.zone.encode()
    head = _HEAD.pack(
        member.node_id, member.incarnation, member.revision, member.admin_version, member.capacity,
        STATUSES.index(member.status), member.actor, member.lease_end, member.formats,
        len(name), len(address), len(zone),
    )  # fmt: skip
    return head + name + address + zone


def decode_member(data: bytes, start: int) -> tuple[Member, int]:
    """The member at `start` and where it ends. Raises CorruptRecord."""
    text = start + _HEAD.size
    if len(data) < text:
        raise CorruptRecord("a member is cut short")
    (node_id, incarnation, revision, admin_version, capacity, status, actor, lease_end, formats, *lengths) = _HEAD.unpack_from(data, start)
    texts = []
    for length in lengths:
        texts.append(data[text : text + length])
        text += length
    if text > len(data) or status >= len(STATUSES):
        raise CorruptRecord("a member is cut short or has no such status")
    try:
        name, address, zone = (part.decode() for part in texts)
        member = checked(
            Member(node_id, name, incarnation, revision, admin_version, address, zone, capacity, STATUSES[status],
                   actor, lease_end, formats)
        )  # fmt: skip
    except (UnicodeDecodeError, ProtocolError) as error:
        raise CorruptRecord(f"stored member: {error}") from error
    return member, text


_INTEGERS = (
    ("incarnation", 0, VERSION_MAX),
    ("revision", 0, VERSION_MAX),
    ("admin_version", 0, VERSION_MAX),
    ("capacity", 1, CAPACITY_MAX),
    ("actor", 0, _U64_MAX),
    ("lease_end", 0, _U64_MAX),
    ("formats", 0, _U64_MAX),
)
_TEXTS = (("name", NAME_CHARACTERS_MAX), ("address", ADDRESS_CHARACTERS_MAX), ("zone", ZONE_CHARACTERS_MAX))
