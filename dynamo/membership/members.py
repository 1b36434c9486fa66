"""The membership: a table of all nodes the cluster ever had, which merges whatever order views arrive in (a CRDT).

`join` is the whole rule, for one node and two views of it. Its own facts: the larger (incarnation, revision) wins.
The admin facts: `left` wins, for it is final; else the larger admin_version. Two that are numbered alike yet differ
(two administrators at once, two processes with one id) are settled by comparing the facts themselves. Each of these is
a maximum in a total order, and so is the version beside `left`: `join` is idempotent, commutative and associative.

A node is the only one to speak for itself. When it hears of itself what it did not say (its directory was restored from
an old copy), it says the truth again with a larger revision, as in SWIM (Das et al. 2002).

Nothing is ever removed: a member that left stays, or a late view would bring it back. The table is bounded.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import xxhash

from dynamo.errors import CorruptRecord, InvalidRequest, ProtocolError
from dynamo.model.member import (
    CAPACITY_PLAIN,
    JOINING,
    LEFT,
    MEMBERS_MAX,
    NORMAL,
    STATUSES,
    VERSION_MAX,
    Member,
    canonical,
    checked,
    decode_member,
    encode_member,
)

_FORM = struct.Struct(">BI")  # format, count
_FORMAT = 1
_DIGEST_MASK = (1 << 128) - 1


def join(a: Member, b: Member) -> Member:
    """What two views of one node add up to. Both must be in canonical form, and so is the result."""
    if a == b:
        return a
    assert a.node_id == b.node_id, "views of different nodes"
    own = max(a, b, key=_own_order)
    if LEFT in (a.status, b.status):
        status, zone, capacity = LEFT, "", CAPACITY_PLAIN
    else:
        admin = max(a, b, key=_admin_order)
        status, zone, capacity = admin.status, admin.zone, admin.capacity
    version = max(a.admin_version, b.admin_version)
    return own._replace(admin_version=version, status=status, zone=zone, capacity=capacity)


def _own_order(member: Member) -> tuple[int, int, str, str, int, int, int]:
    m = member
    return m.incarnation, m.revision, m.name, m.address, m.actor, m.lease_end, m.formats


def _admin_order(member: Member) -> tuple[int, int, str, int]:
    return member.admin_version, STATUSES.index(member.status), member.zone, member.capacity


class Membership:
    """One node's view of the cluster. `version` grows with every change: compare it to notice one."""

    def __init__(self, node_id: bytes) -> None:
        self.node_id = node_id
        self.version = 0
        self._members: dict[bytes, Member] = {}
        self._started = False
        self._sum = 0  # Invariant: the sum of the hashes of all members, mod 2^128
        self._ring_id: tuple[int, int] | None = None

    # --- reading ----------------------------------------------------------------------------------------------------

    @property
    def members(self) -> Mapping[bytes, Member]:
        """All members by node id, those that left included. A live view."""
        return MappingProxyType(self._members)

    @property
    def local(self) -> Member:
        """This node itself. KeyError before `start` or `load` told about it."""
        return self._members[self.node_id]

    def in_status(self, *statuses: str) -> list[Member]:
        """The members in one of the statuses, by node id."""
        return [self._members[node] for node in sorted(self._members) if self._members[node].status in statuses]

    def digest(self) -> bytes:
        """16 bytes, equal where the views are: the sum of the members' hashes, kept current by every change."""
        return self._sum.to_bytes(16, "big")

    @property
    def ring_id(self) -> tuple[int, int]:
        """(number, hash), both u64. The number grows with every admin act known here; the hash is of the members in the
        ring: node id, capacity, zone."""
        if self._ring_id is None:
            parts = []
            for member in self.in_status(NORMAL):
                zone = member.zone.encode()
                parts.append(member.node_id + member.capacity.to_bytes(4, "big") + len(zone).to_bytes(2, "big") + zone)
            number = sum(member.admin_version for member in self._members.values())
            self._ring_id = number, xxhash.xxh3_64_intdigest(b"".join(parts))
        return self._ring_id

    # --- merging ----------------------------------------------------------------------------------------------------

    def merge(self, member: Member) -> bool:
        """Take another view of one node in; whether it told anything new. Raises ProtocolError at the bound."""
        return self.merge_all((member,))

    def merge_all(self, members: Iterable[Member]) -> bool:
        """Take views in, all of them or, where they would pass the bound of members (ProtocolError), none."""
        members = [canonical(member) for member in members]
        strangers = {member.node_id for member in members if member.node_id not in self._members}
        if len(self._members) + len(strangers) > MEMBERS_MAX:
            raise ProtocolError(f"more than {MEMBERS_MAX} members")
        before = self.version
        for member in members:
            mine = self._members.get(member.node_id)
            joined = member if mine is None else join(mine, member)
            if self._started and mine is not None and member.node_id == self.node_id:
                joined = _refuted(mine, joined)
            self._set(joined)
        return self.version != before

    # --- what this node says of itself ------------------------------------------------------------------------------

    def start(
        self, name: str, address: str, actor: int, lease_end: int, formats: int,
        *, zone: str = "", capacity: int = CAPACITY_PLAIN, status: str = JOINING,
    ) -> Member:  # fmt: skip
        """This node (re)starts: a new incarnation with these facts of its own.

        The admin facts `zone`, `capacity`, `status` count only if the node is not known yet. Raises ProtocolError for
        facts out of range.
        """
        known = self._members.get(self.node_id)
        if known is None:
            known = Member(self.node_id, name, 0, 0, 1, address, zone, capacity, status, actor, lease_end, formats)
        self._room_for(self.node_id)
        self._set(
            checked(known._replace(
                incarnation=known.incarnation + 1, revision=0, name=name, address=address, actor=actor,
                lease_end=lease_end, formats=formats,
            ))
        )  # fmt: skip
        self._started = True
        return self.local

    def update(
        self,
        *,
        name: str | None = None,
        address: str | None = None,
        actor: int | None = None,
        lease_end: int | None = None,
        formats: int | None = None,
    ) -> bool:
        """Change facts of this node's own; whether they changed. A change is a new revision."""
        given: dict[str, Any] = {
            "name": name, "address": address, "actor": actor, "lease_end": lease_end, "formats": formats
        }  # fmt: skip
        mine = self.local
        changed = mine._replace(**{field: value for field, value in given.items() if value is not None})
        if changed != mine:
            self._set(checked(_revised(changed, mine)))
        return changed != mine

    # --- acts of an administrator, on any node ----------------------------------------------------------------------

    def admit(self, node_id: bytes, name: str, address: str, *, zone: str = "", capacity: int = CAPACITY_PLAIN) -> Member:
        """Take a node that asks to join into the table, in status joining; one that is known stays as it is.

        Raises InvalidRequest for a node that left, which is final, and at the bound; ProtocolError for facts out of
        range.
        """
        known = self._members.get(node_id)
        if known is None:
            self._room_for(node_id)
            self._set(checked(Member(node_id, name, 0, 0, 1, address, zone, capacity, JOINING, 0, 0, 0)))
        elif known.status == LEFT:
            raise InvalidRequest(f"node {node_id.hex()} left the cluster for good; join with an empty data directory")
        return self._members[node_id]

    def administer(self, node_id: bytes, *, status: str | None = None, zone: str | None = None, capacity: int | None = None) -> Member:
        """Change admin facts of a member. A member that left stays so, and none goes back to joining.

        Raises InvalidRequest for an unknown member or such a step backwards, ProtocolError for facts out of range.
        """
        member = self._members.get(node_id)
        if member is None:
            raise InvalidRequest(f"node {node_id.hex()} is no member")
        given: dict[str, Any] = {"status": status, "zone": zone, "capacity": capacity}
        changed = checked(member._replace(**{field: value for field, value in given.items() if value is not None}))
        if changed != member:
            if member.status == LEFT or changed.status == JOINING != member.status:
                raise InvalidRequest(f"node {node_id.hex()} is {member.status} and cannot become {changed.status}")
            self._set(checked(changed._replace(admin_version=member.admin_version + 1)))
        return self._members[node_id]

    # --- disk -------------------------------------------------------------------------------------------------------

    def encode(self) -> bytes:
        """The table for the disk: u8 format, u32 count, the members (`encode_member`), u64 xxh3_64 of all before."""
        body = _FORM.pack(_FORMAT, len(self._members))
        body += b"".join(encode_member(self._members[node]) for node in sorted(self._members))
        return body + xxhash.xxh3_64_digest(body)

    def load(self, data: bytes) -> None:
        """Take in what `encode` gave, before `start`. Raises CorruptRecord."""
        self.merge_all(_decoded(data))

    # --- within -----------------------------------------------------------------------------------------------------

    def _room_for(self, node_id: bytes) -> None:
        if node_id not in self._members and len(self._members) >= MEMBERS_MAX:
            raise InvalidRequest(f"the cluster has had {MEMBERS_MAX} members, the most it can")

    def _set(self, member: Member) -> None:
        """The one place where the table changes."""
        before = self._members.get(member.node_id)
        if member == before:
            return
        self._members[member.node_id] = member
        self._sum = (self._sum + _hash(member) - (_hash(before) if before else 0)) & _DIGEST_MASK
        self.version += 1
        if before is None or _admin_order(before) != _admin_order(member):
            self._ring_id = None


def _hash(member: Member) -> int:
    return xxhash.xxh3_128_intdigest(encode_member(member))


def _refuted(mine: Member, joined: Member) -> Member:
    """The joined view of this very node, with its own facts as it knows them to be."""
    if _own_order(joined) == _own_order(mine):
        return joined
    return _revised(
        joined._replace(name=mine.name, address=mine.address, actor=mine.actor, lease_end=mine.lease_end, formats=mine.formats),
        joined,
    )


def _revised(member: Member, past: Member) -> Member:
    """The member numbered behind `past`; at the very end of the numbers, which no honest peer reaches, not so."""
    if past.revision < VERSION_MAX:
        return member._replace(incarnation=past.incarnation, revision=past.revision + 1)
    return member._replace(incarnation=min(past.incarnation + 1, VERSION_MAX), revision=0)


def _decoded(data: bytes) -> Iterator[Member]:
    """The members of a stored table."""
    body = data[:-8]
    if len(body) < _FORM.size or data[-8:] != xxhash.xxh3_64_digest(body):
        raise CorruptRecord("the stored membership is damaged")
    form, count = _FORM.unpack_from(body)
    if form != _FORMAT:
        raise CorruptRecord(f"the stored membership has format {form}; this version reads {_FORMAT}")
    start = _FORM.size
    for _ in range(count):
        member, start = decode_member(body, start)
        yield member
    if start != len(body):
        raise CorruptRecord("the stored membership has bytes behind its end")
