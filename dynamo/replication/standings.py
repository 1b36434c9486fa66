"""What this node is to each partition: a whole owner, a recovering one, or none; and what it has not got yet (paper 4.9).

A node that becomes an owner of a partition does not hold it yet. Until it has pulled the partition from those that do, it is *recovering*: it takes
writes and counts toward W, but its answer to a read says nothing by itself. It *needs* other nodes, and says which:

    needs = ((count, nodes), ...)      of each `nodes`, the owners under the ring before, `count` have to be heard as well

With W of the old owners holding every acknowledged write, N - W + 1 of them hold each one between them. So a recovering owner and `count` of those
nodes stand together for one whole owner. One of them may be recovering itself, and then its needs have to be met, too (`satisfied`).

A node that loses a partition keeps its needs of it, for others may need that node. What it holds it gives to the new owners before it drops it, so
whoever asks it first and the new owner afterwards misses nothing.

The needs are kept on disk with the ring they belong to: a crash must not make a node whole. Disk: u8 format, u32 members, u32 lists of needs, u32
places, then those, u64 xxh3_64 of all before.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import xxhash

from dynamo.errors import CorruptRecord, ProtocolError
from dynamo.membership.ring import Ring, RingMembers
from dynamo.model.cluster import BucketDefinition, Cluster
from dynamo.model.messages import NodeId

Needs = tuple[tuple[int, tuple[NodeId, ...]], ...]
Place = tuple[int, int]  # (n, partition)

META = b"standings"
NODE_ID_BYTES = 16
LISTS_MAX = 8  # of nodes, in the needs of one place; more of them become one list of which all nodes are needed
NODES_MAX = 512  # in a list
PAGE_LISTS_MAX = 512  # in the needs of all places of a page, 64 of them
_FORMAT = 1
_HEAD = struct.Struct(">BIII")
_MEMBER = struct.Struct(">16sIH")
_COUNT = struct.Struct(">BB")
_PLACE = struct.Struct(">BHI")


def satisfied(replied: Collection[NodeId], recovering: Mapping[NodeId, Needs]) -> set[NodeId]:
    """Of the nodes that replied those that stand for themselves: all whole ones, and the recovering ones whose needs are met by such nodes.

    Two may need each other: one that lost a partition to the other, and has it again. Each then has what the other needs of it.
    """
    met = set(replied)
    while True:
        short = [n for n in met if n in recovering and any(len(met.intersection(nodes)) < count for count, nodes in recovering[n])]
        if not short:
            return met
        met.difference_update(short)


def asked_too_early(order: list[NodeId], recovering: Mapping[NodeId, Needs], met: Collection[NodeId], owners: Collection[NodeId]) -> NodeId | None:
    """Of nodes in the order of their answers, a recovering one that answered before one that it needs and that owns nothing any more: such a node hands
    its rows to the owners and drops them, so what it had may have reached the other after that one's answer."""
    for at, node in enumerate(order):
        needs = recovering.get(node)
        if needs and node in met:
            needed = {other for _, nodes in needs for other in nodes}
            if any(other in needed and other not in owners for other in order[at + 1 :]):
                return node
    return None


def to_ask(
    recovering: Mapping[NodeId, Needs], met: Collection[NodeId], outstanding: Collection[NodeId], replied: Collection[NodeId], owners: Collection[NodeId]
) -> list[NodeId]:
    """Whom recovering nodes that answered still need, owners first."""
    for waiting in sorted(recovering.keys() & set(replied) - set(met)):
        for count, nodes in recovering[waiting]:
            heard = sum(node in met or node in outstanding or node == waiting for node in nodes)
            new = [node for node in nodes if node not in replied and node not in outstanding]
            if heard < count and new:
                return sorted(new, key=lambda node: node not in owners)
    return []


def helpers(recovering: Mapping[NodeId, Needs], owners: Collection[NodeId]) -> set[NodeId]:
    """Nodes that no longer own the key and are heard for a recovering owner. They count with that one alone."""
    return {node for needs in recovering.values() for _, nodes in needs for node in nodes if node not in owners}


def checked(value: Any) -> Needs:
    """The needs in a peer's message. Raises ProtocolError."""
    if type(value) is not tuple or len(value) > PAGE_LISTS_MAX:
        raise ProtocolError("needs are an array")
    for each in value:
        if type(each) is not tuple or len(each) != 2 or type(each[0]) is not int or type(each[1]) is not tuple:
            raise ProtocolError("a need is [count, node ids]")
        count, nodes = each
        if not 0 < count <= len(nodes) <= NODES_MAX or any(type(node) is not bytes or len(node) != NODE_ID_BYTES for node in nodes):
            raise ProtocolError("a need counts at least one of its nodes, and no more than it has")
    return value


def united(needs: Iterable[Needs]) -> Needs:
    """The needs of several places at once: each list of nodes once, with the largest count."""
    counts: dict[tuple[NodeId, ...], int] = {}
    for each in needs:
        for count, nodes in each:
            counts[nodes] = max(count, counts.get(nodes, 0))
    return tuple((count, nodes) for nodes, count in counts.items())


class Standings:
    """The needs of this node by place, under the ring that it has followed so far. `version` grows with every change."""

    __slots__ = ("members", "needs", "version")

    def __init__(self, members: RingMembers | None = None) -> None:
        """`members`: of the ring under which this node needs nothing. None: whatever the first ring is, it holds all it owns of it, as the first
        node of a cluster does."""
        self.members = members
        self.needs: dict[Place, Needs] = {}
        self.version = 0

    def follow(self, node_id: NodeId, ring: Ring, cluster: Cluster, definitions: Iterable[BucketDefinition], known: bool = True) -> None:
        """The ring is another one: note what this node now owns and does not hold.

        `known`: some ring with this node in it was that of all members. Else the others may have had rings that it has never heard of, as when two
        nodes join at once; the last of these is that of all the others.
        """
        before, self.members = self.members, ring.members
        if before is None or before == ring.members:
            return
        past = {before} if known else {before, tuple(member for member in ring.members if member[0] != node_id)}
        for members in sorted(past):
            for definition in {(d.n or cluster.n): d for d in definitions}.values():
                self._follow(node_id, Ring.made_of(members, cluster), ring, cluster, definition)
        self.version += 1

    def _follow(self, node_id: NodeId, old: Ring, ring: Ring, cluster: Cluster, definition: BucketDefinition) -> None:
        n = definition.n or cluster.n
        for partition in range(cluster.partitions):
            owners = ring.owners(partition, n)
            if node_id not in owners:
                continue
            past = old.owners(partition, n)
            r, w = _quorums(len(owners), len(past), cluster, definition)
            if not past or (node_id in past and r + w > len(past)):
                continue  # what was acknowledged before meets each read that is to come: this owner is what it was
            needs = united((self.needs.get((n, partition), ()), ((max(1, len(past) - w + 1), past),)))
            if len(needs) > LISTS_MAX:  # asking for more than is needed is always right
                everybody = tuple(sorted({node for _, nodes in needs for node in nodes}))
                needs = ((len(everybody), everybody),)
            self.needs[n, partition] = needs

    def pulled(self, place: Place, nodes: Mapping[NodeId, Needs], node_id: NodeId) -> None:
        """Everything that these nodes hold of the place is here; each with what it needed itself."""
        met = satisfied({*nodes, node_id}, {node: needs for node, needs in nodes.items() if needs})
        left = tuple(need for need in self.needs.get(place, ()) if len(met.intersection(need[1])) < need[0])
        if left != self.needs.get(place, ()):
            self.version += 1
            if left:
                self.needs[place] = left
            else:
                del self.needs[place]

    def without(self, gone: Collection[NodeId]) -> None:
        """These nodes have left for good: what they held alone nobody can hear of any more."""
        for place, needs in list(self.needs.items()):
            if any(node in gone for _, nodes in needs for node in nodes):
                rest = [(count, tuple(node for node in nodes if node not in gone)) for count, nodes in needs]
                left = united((tuple((min(count, len(nodes)), nodes) for count, nodes in rest if nodes),))
                self.version += 1
                if left:
                    self.needs[place] = left
                else:
                    del self.needs[place]

    def forget(self, place: Place) -> None:
        """Nobody needs this node for that place."""
        self.version += self.needs.pop(place, None) is not None

    def encode(self) -> bytes:
        """For the disk."""
        members, lists = self.members or (), sorted(set(self.needs.values()))
        index = {needs: at for at, needs in enumerate(lists)}
        parts = [_HEAD.pack(_FORMAT, len(members), len(lists), len(self.needs))]
        parts += [_MEMBER.pack(node, capacity, len(zone)) + zone for node, capacity, zone in members]
        for needs in lists:
            parts.append(bytes([len(needs)]))
            parts += [_COUNT.pack(count, len(nodes)) + b"".join(nodes) for count, nodes in needs]
        parts += [_PLACE.pack(n, partition, index[needs]) for (n, partition), needs in sorted(self.needs.items())]
        body = b"".join(parts)
        return body + xxhash.xxh3_64_digest(body)

    @classmethod
    def decode(cls, data: bytes) -> Standings:
        """What `encode` gave. Raises CorruptRecord."""
        body = data[:-8]
        if len(body) < _HEAD.size or xxhash.xxh3_64_digest(body) != data[-8:]:
            raise CorruptRecord("the stored standings are damaged")
        if body[0] != _FORMAT:
            raise CorruptRecord(f"the stored standings have format {body[0]}; this version reads {_FORMAT}")
        try:
            return cls._decoded(body)
        except (struct.error, IndexError, ValueError) as error:
            raise CorruptRecord(f"the stored standings are damaged: {error}") from None

    @classmethod
    def _decoded(cls, body: bytes) -> Standings:
        _, members_count, lists_count, places_count = _HEAD.unpack_from(body)
        at = _HEAD.size
        members = []
        for _ in range(members_count):
            node, capacity, zone_bytes = _MEMBER.unpack_from(body, at)
            at += _MEMBER.size + zone_bytes
            members.append((node, capacity, body[at - zone_bytes : at]))
        lists: list[Needs] = []
        for _ in range(lists_count):
            needs = []
            of, at = body[at], at + 1
            for _ in range(of):
                count, nodes = _COUNT.unpack_from(body, at)
                at += _COUNT.size
                needs.append((count, tuple(body[at + i * NODE_ID_BYTES : at + (i + 1) * NODE_ID_BYTES] for i in range(nodes))))
                at += nodes * NODE_ID_BYTES
            lists.append(tuple(needs))
        standings = cls(tuple(members))
        for _ in range(places_count):
            n, partition, index = _PLACE.unpack_from(body, at)
            at += _PLACE.size
            standings.needs[n, partition] = lists[index]
        if at != len(body):
            raise ValueError("bytes behind the end")
        return standings


def _quorums(owners: int, past: int, cluster: Cluster, definition: BucketDefinition) -> tuple[int, int]:
    """(R of a read under the new owners, W of a write under the past ones).

    Where the settings let reads and writes pass each other by, they promise nothing; majorities then keep what can be kept.
    """
    r, w = definition.r or cluster.r, definition.w or cluster.w
    if (r or past // 2 + 1) + (w or past // 2 + 1) <= past:
        r = w = 0
    return r or owners // 2 + 1, min(w or past // 2 + 1, past)
