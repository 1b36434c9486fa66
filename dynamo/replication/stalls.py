"""Whether this node was stopped for a while (SIGSTOP, a stalled machine), and which requests that makes doubtful.

A put may wait unread in a stopped node while its client gives it up, succeeds elsewhere and goes on. Carried out later, it would undo what the
client did since: a `set` replaces what this node holds, which by then may be that client's next write. So after a stall a request counts as
expired if its client allowed it less time than the stall took. Nothing was minted, and another node can take it.

A node knows that it was stopped when it steps long after the heartbeat that was due. No promise rests on it alone: a replica also remembers the
operations of writes it was sent (`operations`), and a delay in the network is not seen here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dynamo.replication.core import Core

_BACKLOG_S = 1.0  # what waited in the sockets is read by then


class Stalls:
    """The last stall of this node."""

    __slots__ = ("_began", "_doubt_until")

    def __init__(self) -> None:
        self._began = 0.0
        self._doubt_until = 0.0

    def notice(self, core: Core, due: float, now: float) -> None:
        """Called before each step at `now`; `due`: when the next heartbeat was to be. The very first step follows no other."""
        if now - due > core.settings.stall_s and now - core.now > core.settings.stall_s and core.now > 0.0:
            self._began = core.now
            self._doubt_until = now + _BACKLOG_S
            core.count("stalls")

    def may_have_expired(self, core: Core, time_ms: int) -> bool:
        """Whether a request that was given so much time may have waited longer than that. A lone node has nobody else to be asked."""
        return core.now < self._doubt_until and core.ring.size > 1 and time_ms / 1000.0 <= core.now - self._began
