"""The ring: which nodes own which partition, and who stands in for them.

A pure function of the members in status `normal` and of the cluster's document (N, Q, seed): every node that knows the
same members has the same ring, whatever it heard when. Liveness and history take no part. Paper 4.2, 4.3, 6.2
(strategy 3).

The preference list of a partition is its owners, best first, and behind them all other members in the order of their
scores: the order in which a sloppy quorum walks on. For a bucket with another N than the cluster's the first N of that
list are the owners; the bound on load holds for the cluster's own N.

Tables are shared: a ring made anew from the same members costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from dynamo._core import ring as kernel
from dynamo.membership.members import Membership
from dynamo.model.cluster import Cluster
from dynamo.model.member import NORMAL, Member

_TABLES_KEPT = 8
_PREFERENCES_KEPT = 1 << 20  # node ids, in the kept preference lists of one table

RingMembers = tuple[tuple[bytes, int, bytes], ...]  # node id, capacity, zone; by node id


def ring_members(members: Iterable[Member]) -> RingMembers:
    """Those of the members that are `normal`, each given once, as the placement sees them."""
    return tuple(sorted((member.node_id, member.capacity, member.zone.encode()) for member in members if member.status == NORMAL))


class Ring:
    """The placement by one state of the membership. Immutable. (number, hash) is its ring id."""

    __slots__ = ("_owners", "_seed", "_table", "hash", "members", "n", "number", "partitions", "size")

    def __init__(self, members: Iterable[Member], cluster: Cluster, number: int = 0, hash: int = 0) -> None:
        """`members` may be in any order and status; the ring is made of those that are `normal`."""
        self._fill(ring_members(members), cluster, number, hash)

    @classmethod
    def made_of(cls, members: RingMembers, cluster: Cluster) -> Ring:
        """The ring of just these members, as `members` gave them."""
        ring = cls.__new__(cls)
        ring._fill(members, cluster, 0, 0)
        return ring

    def _fill(self, chosen: RingMembers, cluster: Cluster, number: int, hash: int) -> None:
        self.members = chosen
        self._table = _table(chosen, cluster.partitions, cluster.n, cluster.seed)
        self._owners = self._table.owners
        self._seed = cluster.seed
        self.partitions = cluster.partitions
        self.n = cluster.n
        self.size = len(chosen)  # members in the ring
        self.number = number
        self.hash = hash

    @classmethod
    def of(cls, membership: Membership, cluster: Cluster) -> Ring:
        """The ring of a membership as it is now."""
        number, hash = membership.ring_id
        return cls(membership.members.values(), cluster, number, hash)

    def partition(self, bucket: bytes, key: bytes) -> int:
        """The partition a key lies in."""
        return kernel.partition_of(kernel.position(bucket, key, self._seed), self.partitions)

    def owners(self, partition: int, n: int | None = None) -> tuple[bytes, ...]:
        """The node ids of the partition's owners, best first: N distinct ones, or all there are if fewer.

        `n`: for a bucket whose N is not the cluster's.
        """
        if n is None or n == self.n:
            return self._owners[partition]
        return self._owners[partition][:n] if n < self.n else self.preference(partition)[:n]

    def preference(self, partition: int) -> tuple[bytes, ...]:
        """All members of the ring: the owners, then the others in the order in which they stand in."""
        return self._table.preference(partition)

    def owns(self, node_id: bytes, partition: int) -> bool:
        """Whether the node is one of the partition's owners."""
        return node_id in self._owners[partition]

    def partitions_of(self, node_id: bytes) -> int:
        """How many partitions the node owns."""
        return self._table.loads.get(node_id, 0)


class _Table:
    """The owners by partition, and the preference lists asked for lately."""

    __slots__ = ("_members", "_preferences", "_preferences_max", "_seed", "loads", "owners")

    def __init__(self, members: RingMembers, partitions: int, n: int, seed: int) -> None:
        nodes = [node_id for node_id, _, _ in members]
        indexes = kernel.assign(members, partitions, n, seed)
        self.owners = [tuple([nodes[i] for i in row]) for row in indexes]
        self.loads: dict[bytes, int] = {}
        for row in self.owners:
            for node_id in row:
                self.loads[node_id] = self.loads.get(node_id, 0) + 1
        self._members = members
        self._seed = seed
        self._preferences: dict[int, tuple[bytes, ...]] = {}
        self._preferences_max = max(1, _PREFERENCES_KEPT // max(1, len(members)))

    def preference(self, partition: int) -> tuple[bytes, ...]:
        known = self._preferences.get(partition)
        if known is None:
            owners = self.owners[partition]
            order = kernel.preference(self._members, partition, self._seed)
            known = owners + tuple([node for i in order if (node := self._members[i][0]) not in owners])
            if len(self._preferences) >= self._preferences_max:
                self._preferences.clear()  # with thousands of nodes and partitions not all fit
            self._preferences[partition] = known
        return known


@lru_cache(maxsize=_TABLES_KEPT)
def _table(members: RingMembers, partitions: int, n: int, seed: int) -> _Table:
    return _Table(members, partitions, n, seed)
