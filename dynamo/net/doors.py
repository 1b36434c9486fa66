"""How connections come to be: callers are accepted, peers are dialled. Implements what `Peers` needs of the reactor (`Dialler`)."""

from __future__ import annotations

import socket
from collections.abc import Callable

from dynamo.model.messages import ROLE_PEER, NodeId
from dynamo.net.connection import Connection, State
from dynamo.net.limits import Limits
from dynamo.net.links import Links
from dynamo.net.listener import Listener
from dynamo.net.resolver import Resolver
from dynamo.net.sockets import SocketAddress, begin_connect, tune, tune_peer
from dynamo.net.timers import Action, Timers


class Doors:
    """Both doors of the node. `resolver` is set once the reactor runs."""

    def __init__(self, links: Links, limits: Limits, timers: Timers, listener: Listener, call_soon: Callable[[Action], None]) -> None:
        self.resolver: Resolver | None = None
        self.hello = b""  # the frame a dialled peer is greeted with
        self.accepted = 0
        self.refused_full = 0
        self._links = links
        self._limits = limits
        self._timers = timers
        self._listener = listener
        self._call_soon = call_soon

    def accept(self, now: float) -> None:
        """Take in those who called; each has until the HELLO deadline to say who it is."""
        for sock in self._listener.accept(now):
            if len(self._links.by_descriptor) >= self._limits.connections_max:
                self.refused_full += 1
                sock.close()
                continue
            try:
                tune(sock)
                connection = self._links.add(sock, outbound=False)
            except OSError:  # it is gone again, or the kernel has no room to watch it
                sock.close()
                continue
            self.accepted += 1
            self._timers.at(now + self._limits.hello_timeout_s, self._hello_deadline(connection))

    def _hello_deadline(self, connection: Connection) -> Action:
        def check(_: float) -> None:
            if connection.state is State.GREETING:
                self._links.finish(connection, "no HELLO in time")

        return check

    # --- Dialler ------------------------------------------------------------------------------------------------------------------

    def dial(self, node_id: NodeId, target: SocketAddress) -> Connection | None:
        """Begin to connect to a peer; None if that failed at once."""
        try:
            sock = begin_connect(target)
        except OSError:
            return None
        try:
            tune(sock)
            tune_peer(sock)
            connection = self._links.add(sock, outbound=True)
        except OSError:
            sock.close()
            return None
        connection.node_id = connection.source = node_id
        connection.role = ROLE_PEER
        return connection

    def connected(self, connection: Connection) -> None:
        """The socket of a dialled peer became writable: it is connected, or has failed."""
        error = connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self._links.finish(connection, f"connect: errno {error}")
            return
        connection.state = State.GREETING
        self._links.push(connection, self.hello)
        self._links.watch(connection)

    def look_up(self, host: str, port: int, found: Callable[[list[SocketAddress], float], None]) -> None:
        """Find the addresses of a name; `found` is called in a later step."""

        def call_back(addresses: list[SocketAddress]) -> None:
            self._call_soon(lambda now: found(addresses, now))

        if self.resolver is None:
            call_back([])
        else:
            self.resolver.look_up(host, port, call_back)

    def give_up(self, connection: Connection, reason: str) -> None:
        """Close a connection after this batch."""
        self._links.finish(connection, reason)

    def push(self, connection: Connection, frame: bytes) -> None:
        """Queue a frame on an open connection."""
        self._links.push(connection, frame)
