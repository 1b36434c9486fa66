"""Host names to addresses, off the reactor: a look-up may block for seconds, so a Trio task waits for it.

Only dialling needs it. Nothing is cached: a peer that moved is found by the next attempt. A name service that hangs has its look-ups in threads of
their own (`dialling.names`), so that it takes none of those that commits and the program's own work need.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from dynamo.dialling import trio_waits
from dynamo.dialling.names import SocketAddress, look_up_async

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
        try:
            addresses = await look_up_async(host, port, trio_waits, trio_waits.now() + LOOKUP_TIMEOUT_S)
        except OSError:
            addresses = []  # no such name now, or not in time; the caller counts it as a failed attempt and tries again later
        found(addresses)
