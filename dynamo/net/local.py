"""Clients inside the process: the node's own verbs reach the replica without a socket, by the same messages as everybody's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dynamo.errors import ConnectionFailed
from dynamo.model.messages import ROLE_CLIENT, Message
from dynamo.net.driven import Batch
from dynamo.wire.messages import check

if TYPE_CHECKING:
    from dynamo.net.connection import Connection

Deliver = Callable[[Message], None]


class LocalPort:
    """Send requests, get replies by callback. For use on the Trio thread only; `deliver` is called within the reactor's step and must not wait."""

    def __init__(self, ports: LocalPorts, number: int, deliver: Deliver) -> None:
        self.number = number
        self.deliver = deliver
        self._ports = ports

    def send(self, message: Message) -> None:
        """Hand a request to the node. Raises ProtocolError for one that no client may send, ConnectionFailed once the node has stopped."""
        check(message, ROLE_CLIENT)
        self._ports.take(self.number, message)

    def close(self) -> None:
        """Replies still to come are dropped."""
        self._ports.forget(self.number)


class LocalPorts:
    """The ports of one reactor, and the requests that came through them since its last step."""

    def __init__(self, clients: dict[int, Connection | LocalPort], wake: Callable[[], None]) -> None:
        self._clients = clients
        self._wake = wake
        self._waiting: Batch = []
        self._open = True

    def open(self, number: int, deliver: Deliver) -> LocalPort:
        """A port under a connection number of its own."""
        port = self._clients[number] = LocalPort(self, number, deliver)
        return port

    def take(self, number: int, message: Message) -> None:
        """Keep a request for the next step."""
        if not self._open:
            raise ConnectionFailed("the node has stopped")
        self._waiting.append((number, message))
        self._wake()

    def answer(self, number: int, message: Message) -> None:
        """The answer to a request that does not reach the replica."""
        port = self._clients.get(number)
        if type(port) is LocalPort:
            port.deliver(message)

    def forget(self, number: int) -> None:
        """The port is closed."""
        self._clients.pop(number, None)

    @property
    def asked(self) -> bool:
        """Whether a request came since the last `collect`."""
        return bool(self._waiting)

    def collect(self) -> Batch:
        """What came since the last call."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def close(self) -> None:
        """Take no more requests."""
        self._open = False
