"""Host names to addresses, off the reactor: a look-up may block for seconds, so it runs in a Trio task (and there in a thread).

Only dialling needs it. Addresses written as numbers never come here. Nothing is cached: a peer that moved is found by the next attempt.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

import trio

from dynamo.net.sockets import SocketAddress

LOOKUP_TIMEOUT_S = 5.0
Found = Callable[[list[SocketAddress]], None]


class Resolver:
    """Starts look-ups; each calls back on the Trio thread with what it found, an empty list if nothing."""

    __slots__ = ("_nursery",)

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def look_up(self, host: str, port: int, found: Found) -> None:
        """Look the name up, then call `found`."""
        self._nursery.start_soon(self._run, host, port, found)

    async def _run(self, host: str, port: int, found: Found) -> None:
        addresses: list[SocketAddress] = []
        with trio.move_on_after(LOOKUP_TIMEOUT_S):
            try:
                answers = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError):
                answers = []  # no such name now; the caller counts it as a failed attempt and tries again later
            addresses = [(answer[0], answer[4]) for answer in answers]
        found(addresses)
