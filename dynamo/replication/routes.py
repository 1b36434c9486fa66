"""Where requests for a partition go right now: its owners, and who of the preference list can be reached. Worked out once, kept until the ring
or the opinion about a peer changes; a request then costs a look-up instead of a walk down the list."""

from __future__ import annotations

from dataclasses import dataclass

from dynamo.membership.ring import Ring
from dynamo.model import messages as m
from dynamo.replication.liveness import Liveness
from dynamo.replication.standings import Needs, Standings


@dataclass(frozen=True, slots=True)
class Route:
    """One partition, seen from one node. `peers` and `fallbacks` can be reached and leave this node out."""

    owners: tuple[bytes, ...]
    owner: bool  # whether this node is one of them
    standing: int  # the same, as the wire says it: OWNER, RECOVERING or FALLBACK
    needs: Needs  # whom a read has to hear besides this node, as long as this node does not hold all that it should
    peers: tuple[bytes, ...]  # the other owners
    fallbacks: tuple[bytes, ...]  # the others, in the order in which they stand in
    orders: tuple[tuple[bytes, ...], ...]
    """Whom a read asks before the fallbacks, one order for each peer to begin with: this node if it is an owner, the other owners, this node if it is none."""

    reachable: int  # nodes, this one included
    owners_reachable: int


class Routes(dict[int, Route]):
    """The routes by n << 16 | partition, where n is a bucket's N (0: the cluster's). A look-up costs what one in a dict does, but whoever looks has to see
    first whether they are of the present `version` of the opinion about peers, and `forget` them if not."""

    __slots__ = ("_liveness", "_node_id", "_ring", "_standings", "version")

    def __init__(self, node_id: bytes, ring: Ring, liveness: Liveness, standings: Standings) -> None:
        self._node_id = node_id
        self._ring = ring
        self._liveness = liveness
        self._standings = standings
        self.version = liveness.version

    def forget(self) -> None:
        """The opinion has changed."""
        self.version = self._liveness.version
        self.clear()

    def __missing__(self, place: int) -> Route:
        route = self[place] = self._find(place & 0xFFFF, place >> 16)
        return route

    def _find(self, partition: int, n: int) -> Route:
        me, up = self._node_id, self._liveness.up
        owners = self._ring.owners(partition, n or None)
        peers = tuple(node for node in owners if node != me and up(node))
        fallbacks = tuple(node for node in self._ring.preference(partition) if node != me and node not in owners and up(node))
        owner = me in owners
        turns = [(*peers[turn:], *peers[:turn]) for turn in range(max(1, len(peers)))]
        orders = tuple((me, *turn) if owner else (*turn, me) for turn in turns)
        reachable = 1 + len(peers) + len(fallbacks)
        needs = self._standings.needs.get((n or self._ring.n, partition), ())
        standing = m.FALLBACK if not owner else m.RECOVERING if needs else m.OWNER
        return Route(owners, owner, standing, needs, peers, fallbacks, orders, reachable, owner + len(peers))
