"""Where requests for a partition go right now: its owners, and who of the preference list can be reached. Worked out once, kept until the ring
or the opinion about a peer changes; a request then costs a look-up instead of a walk down the list."""

from __future__ import annotations

from dataclasses import dataclass

from dynamo.membership.ring import Ring
from dynamo.model import messages as m
from dynamo.replication.liveness import Liveness


@dataclass(frozen=True, slots=True)
class Route:
    """One partition, seen from one node. `peers` and `fallbacks` can be reached and leave this node out."""

    partition: int
    owners: tuple[bytes, ...]
    owner: bool  # whether this node is one of them
    standing: int  # the same, as the wire says it: OWNER or FALLBACK
    peers: tuple[bytes, ...]  # the other owners
    fallbacks: tuple[bytes, ...]  # the others, in the order in which they stand in
    reachable: int  # nodes, this one included
    owners_reachable: int


class Routes:
    """The routes by (partition, n)."""

    __slots__ = ("_liveness", "_node_id", "_ring", "_routes", "_version")

    def __init__(self, node_id: bytes, ring: Ring, liveness: Liveness) -> None:
        self._node_id = node_id
        self._ring = ring
        self._liveness = liveness
        self._version = -1
        self._routes: dict[tuple[int, int], Route] = {}

    def get(self, partition: int, n: int) -> Route:
        """The route of a partition for a bucket's N (0: the cluster's)."""
        if self._version != self._liveness.version:
            self._version = self._liveness.version
            self._routes.clear()
        route = self._routes.get((partition, n))
        if route is None:
            route = self._routes[partition, n] = self._find(partition, n)
        return route

    def _find(self, partition: int, n: int) -> Route:
        me, up = self._node_id, self._liveness.up
        owners = self._ring.owners(partition, n or None)
        peers = tuple(node for node in owners if node != me and up(node))
        fallbacks = tuple(node for node in self._ring.preference(partition) if node != me and node not in owners and up(node))
        owner = me in owners
        return Route(partition, owners, owner, m.OWNER if owner else m.FALLBACK, peers, fallbacks, 1 + len(peers) + len(fallbacks), owner + len(peers))
