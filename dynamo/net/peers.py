"""Links to other nodes: which connections lead to whom, what waits for one to come up, and when to dial again.

A node dials a peer when it first has something for it, and again, with growing jittered pauses, after a failure, as long as the membership has
an address for it. Connections are to nodes, addresses are hints: where another node answers, the connection is one to that node, and the one that
was dialled is tried again when its address has changed, or after a longer pause.

A connection serves both directions, so one dialled by the peer is as good; when both dialled at once there are two, which
is harmless: each side sends over the one that came up last. The replica hears `peer_up` with the first and `peer_down` with the last.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from dynamo.config import split_address
from dynamo.dialling.race import STAGGER_S
from dynamo.model.messages import NodeId
from dynamo.net.connection import Connection, State
from dynamo.net.limits import Limits
from dynamo.net.sockets import SocketAddress, numeric
from dynamo.net.timers import Timers

if TYPE_CHECKING:
    from random import Random

ASKED_MAX = 4  # addresses of one name that are asked at once


class Dialler(Protocol):
    """What `Peers` needs of the reactor."""

    def dial(self, node_id: NodeId, target: SocketAddress) -> Connection | None:
        """Begin to connect, to anybody if `node_id` is b""; None if that failed at once."""

    def look_up(self, host: str, port: int, found: Callable[[list[SocketAddress], float], None]) -> None:
        """Find the addresses of a name; `found(addresses, now)` is called in a later step."""

    def give_up(self, connection: Connection, reason: str) -> None:
        """Close a connection after this batch."""

    def push(self, connection: Connection, frame: bytes) -> None:
        """Queue a frame on an open connection."""


class Peer:
    """What this node has of one other node."""

    __slots__ = (
        "address", "astray", "dialling", "failures", "links", "node_id", "queue", "queue_bytes", "retrying", "under_way", "untried",
    )  # fmt: skip

    def __init__(self, node_id: NodeId) -> None:
        self.node_id = node_id
        self.links: list[Connection] = []  # open ones, the most recent last
        self.dialling = False  # a look-up, a connect or a HELLO is on its way
        self.under_way: list[Connection] = []  # dialled ones that are not open yet
        self.untried: deque[SocketAddress] = deque()  # further addresses of its name
        self.retrying = False  # a timer will dial again
        self.failures = 0  # in a row
        self.address = ""  # that was dialled last
        self.astray = False  # somebody else answered there
        self.queue: list[bytes] = []  # frames for when a link is up
        self.queue_bytes = 0


class Peers:
    """The peers this process has had to do with."""

    def __init__(
        self, dialler: Dialler, timers: Timers, limits: Limits, address_of: Callable[[NodeId], str | None], random: Random,
        down: Callable[[NodeId, float], None],
    ) -> None:  # fmt: skip
        """`address_of(node)`: host:port from the membership, "" while somebody else is known to be there, None for a node that is not in it or has
        left. `down(node, now)` is called when the last link broke, and for each failed attempt."""
        self._dialler = dialler
        self._timers = timers
        self._limits = limits
        self._address_of = address_of
        self._random = random
        self._down = down
        self._peers: dict[NodeId, Peer] = {}
        self.dropped = 0  # messages that found no connection

    def connected(self, node_id: NodeId) -> bool:
        """Whether a link is up."""
        peer = self._peers.get(node_id)
        return peer is not None and bool(peer.links)

    def link_to(self, node_id: NodeId) -> Connection | None:
        """The link that came up last, of those that are not to be closed after this batch."""
        for link in reversed(self.links_of(node_id)):
            if not link.over:
                return link
        return None

    def links_of(self, node_id: NodeId) -> Sequence[Connection]:
        """The open connections to a node."""
        peer = self._peers.get(node_id)
        return peer.links if peer is not None else ()

    def live_nonce(self, node_id: NodeId) -> bytes | None:
        """The boot nonce of the process behind the open links."""
        peer = self._peers.get(node_id)
        return peer.links[-1].nonce if peer is not None and peer.links else None

    def send(self, node_id: NodeId, frame: bytes, now: float) -> None:
        """Send over the link that came up last; without one, dial and queue. A peer that just failed loses the message, as a network would."""
        peer = self._peers.get(node_id)
        if peer is None:
            peer = self._peers[node_id] = Peer(node_id)
        if (link := self.link_to(node_id)) is not None:
            self._dialler.push(link, frame)
            return
        if not peer.dialling and not peer.retrying:
            self._dial(peer, now)
        if not peer.dialling or peer.queue_bytes + len(frame) > self._limits.queue_bytes_max:
            self.dropped += 1
            return
        peer.queue.append(frame)
        peer.queue_bytes += len(frame)

    def want(self, node_id: NodeId, now: float) -> None:
        """Have a link to this node, and keep trying; at once if it has moved."""
        peer = self._peers.setdefault(node_id, Peer(node_id))
        if peer.links or peer.dialling:
            return
        if not peer.retrying or self._address_of(node_id) not in (None, "", peer.address):
            self._dial(peer, now)

    def ask(self, address: str, now: float) -> None:
        """Dial an address for whoever answers there. A failure is no news, and the next time is for the caller to choose."""
        host, port = split_address(address)
        target = numeric(host, port)
        if target is not None:
            self._ask([target], now)
        else:
            self._dialler.look_up(host, port, self._ask)

    def _ask(self, found: list[SocketAddress], now: float) -> None:
        for target in found[:ASKED_MAX]:
            connection = self._dialler.dial(b"", target)
            if connection is not None:
                self._give_time(connection, now)

    def strayed(self, connection: Connection, now: float) -> None:
        """Another node answered at the address of the one that was dialled, so that the connection is none to it."""
        peer = self._peers.get(connection.node_id)
        if peer is None:
            return
        peer.astray = True
        peer.under_way = [other for other in peer.under_way if other is not connection]
        if peer.dialling and (peer.under_way or self._next_address(peer, now)):
            return  # its name has other addresses
        peer.dialling = False
        if not peer.links:
            self._failed(peer, now)

    def opened(self, connection: Connection) -> bool:
        """A connection to `connection.node_id` has been greeted. Returns whether it is the first."""
        peer = self._peers.setdefault(connection.node_id, Peer(connection.node_id))
        peer.links.append(connection)
        peer.failures = 0
        if connection.outbound:
            peer.dialling = False
            peer.untried.clear()
            if connection in peer.under_way:
                peer.under_way.remove(connection)
            for other in peer.under_way:
                self._dialler.give_up(other, "another address answered first")
        queue, peer.queue, peer.queue_bytes = peer.queue, [], 0
        for frame in queue:
            self._dialler.push(connection, frame)
        return len(peer.links) == 1

    def closed(self, connection: Connection, now: float) -> None:
        """A connection of a peer, open or on its way, is gone."""
        peer = self._peers[connection.node_id]
        if connection in peer.links:
            peer.links.remove(connection)
        elif connection in peer.under_way:  # it never came up
            peer.under_way.remove(connection)
            if peer.dialling and not peer.links and self._next_address(peer, now):
                return
            peer.dialling = bool(peer.dialling and peer.under_way)
            if peer.dialling:
                return
        if not peer.links:
            self._failed(peer, now)

    def _failed(self, peer: Peer, now: float) -> None:
        """No link, and the last attempt at one is over: drop what waited and try again later."""
        peer.failures += 1
        self.dropped += len(peer.queue)
        peer.queue, peer.queue_bytes = [], 0
        if not peer.retrying and not peer.dialling:
            peer.retrying = True
            longest = self._limits.stray_retry_s_max if peer.astray else self._limits.retry_s_max
            pause = min(longest, self._limits.retry_s * 2.0 ** min(peer.failures - 1, 16))
            self._timers.at(now + pause * self._random.uniform(0.5, 1.5), lambda later: self._retry(peer, later))
        self._down(peer.node_id, now)

    def _retry(self, peer: Peer, now: float) -> None:
        peer.retrying = False
        if not peer.links and not peer.dialling:
            self._dial(peer, now)

    def _dial(self, peer: Peer, now: float) -> None:
        """Begin an attempt. A node without an address is forgotten: it has left."""
        address = self._address_of(peer.node_id)
        if address is None:
            if not peer.links:  # else when the last of them is closed
                del self._peers[peer.node_id]
                self.dropped += len(peer.queue)
            return
        peer.astray = not address
        if peer.astray:
            self._failed(peer, now)
            return
        peer.dialling, peer.address = True, address
        host, port = split_address(address)
        target = numeric(host, port)
        if target is not None:
            self._connect(peer, [target], now)
        else:
            self._dialler.look_up(host, port, lambda found, later: self._connect(peer, found, later))

    def _connect(self, peer: Peer, found: list[SocketAddress], now: float) -> None:
        """Connect to the addresses of the peer, one after the other: the next when one has failed, or has not answered for a moment (RFC 8305)."""
        peer.untried = deque(found)
        if not self._next_address(peer, now):
            peer.dialling = False
            if not peer.links:
                self._failed(peer, now)

    def _next_address(self, peer: Peer, now: float) -> bool:
        """Dial the next address that lets itself be dialled; whether there is one."""
        while peer.untried:
            connection = self._dialler.dial(peer.node_id, peer.untried.popleft())
            if connection is not None:
                peer.under_way.append(connection)
                self._watch(peer, connection, now)
                return True
        return False

    def _give_time(self, connection: Connection, now: float) -> None:
        self._timers.at(now + self._limits.connect_timeout_s, lambda _: self._check_progress(connection))

    def _watch(self, peer: Peer, connection: Connection, now: float) -> None:
        self._give_time(connection, now)
        if peer.untried:
            self._timers.at(now + STAGGER_S, lambda later: self._go_on(peer, connection, later))

    def _go_on(self, peer: Peer, connection: Connection, now: float) -> None:
        if peer.dialling and connection in peer.under_way:
            self._next_address(peer, now)

    def _check_progress(self, connection: Connection) -> None:
        if connection.state in (State.CONNECTING, State.GREETING):
            self._dialler.give_up(connection, "no answer in time")
