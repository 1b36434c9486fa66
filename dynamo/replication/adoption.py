"""Whether all members that can be reached have the ring that this node has.

Until they have, one of them may read from the owners of the ring before alone. So what a *recovering* owner acknowledges, which those do not have,
is acknowledged only then (DESIGN section 11, `adopted`): its acknowledgements, and its own copy where it coordinates, wait here. Others own what they
owned before, and answer at once. The time is that of a few messages: whoever learns of a ring asks all others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamo.model import messages as m
from dynamo.model.messages import Message
from dynamo.replication.rows import Held
from dynamo.replication.standings import Standings

if TYPE_CHECKING:
    from dynamo.replication.core import Core

HELD_MAX = 20_000


class Adopted:
    """What waits for the others. `whole`: they all have this node's ring. `known`: some ring of which this node is a member was that of all."""

    __slots__ = ("_replies", "_wakes", "known", "whole")

    def __init__(self, node_id: bytes, standings: Standings) -> None:
        self.whole = False
        self.known = standings.members is None or any(node == node_id for node, _, _ in standings.members)
        self._replies: list[tuple[bytes, Message]] = []
        self._wakes: list[int] = []

    def begin(self) -> None:
        """There is another ring."""
        self.whole = False

    def done(self, core: Core) -> None:
        """All have it."""
        self.whole = self.known = True
        replies, self._replies = self._replies, []
        wakes, self._wakes = self._wakes, []
        core.outbox.extend(replies)
        for request_id in wakes:
            fold = core.pending.get(request_id)
            if fold is not None:
                core.finish_if(request_id, fold.on_wake(core, None))

    def hold(self, core: Core, source: bytes, reply: Message, held: Held | None) -> None:
        """Send the acknowledgement when all have the ring, and the commit that holds the row, if it still waits for one, has happened."""
        if held is None and len(self._replies) < HELD_MAX:
            self._replies.append((source, reply))
        if held is None:
            return  # beyond that: the coordinator asks another node when it has waited long enough
        request_id = core.request_id()
        core.pending[request_id] = _Acknowledgement(source, reply)
        held.wakes.append((request_id, None))

    def wake_later(self, request_id: int) -> None:
        """Wake this request of the node's own when all have the ring."""
        self._wakes.append(request_id)


class _Acknowledgement:
    """One that waits for its commit first."""

    __slots__ = ("_reply", "_source")

    answered = True  # nobody here waits for it: a node that stops does not

    def __init__(self, source: bytes, reply: Message) -> None:
        self._source = source
        self._reply = reply

    def on_wake(self, core: Core, record: bytes | None) -> bool:
        if core.adopted.whole:
            core.send(self._source, self._reply)
        else:
            core.adopted.hold(core, self._source, self._reply, None)
        return True

    def on_failure(self, core: Core, node: bytes, code: int) -> bool:
        if node != core.node_id:
            return False
        core.send(self._source, (m.REPLICATE_REPLY, self._reply[1], code, *self._reply[3:5], bytes(16), *self._reply[6:8]))
        return True

    def on_reply(self, core: Core, source: bytes, message: Message) -> bool:
        return False

    def on_timer(self, core: Core) -> bool:
        return False
