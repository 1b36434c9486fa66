"""Copies of a repaired record on their way to their disks: what paces repairs that nobody waits for.

A read for a client hands its repairs out and is done. Whoever repairs key after key must not: a replica that has lost its rows is sent records by
all its peers, each as fast as it can read, and would have them staged by the thousand in one commit, with the requests of clients behind them.
So the next key is begun when the copies of one are acknowledged, which is after a commit; likewise for the copy that is this node's own.
"""

from __future__ import annotations

from collections.abc import Callable

from dynamo.errors import DynamoError
from dynamo.model import messages as m
from dynamo.model.messages import Message
from dynamo.replication.core import Core

Landed = Callable[[Core, bool], None]


class PendingLanding:
    """The copies of one record, sent under one request id. `landed(core, stored)` is told once when all are acknowledged or given up."""

    __slots__ = ("landed", "started", "stored", "waiting")

    answered = True  # nobody waits for it: a node that stops does not

    def __init__(self, landed: Landed, nodes: list[bytes], started: float) -> None:
        self.landed = landed
        self.waiting = set(nodes)
        self.started = started
        self.stored = True

    def on_reply(self, core: Core, source: bytes, message: Message) -> bool:
        return message[0] == m.REPLICATE_REPLY and self._take(core, source, not message[2])

    def on_wake(self, core: Core, record: bytes | None) -> bool:
        return self._take(core, core.node_id, True)

    def on_failure(self, core: Core, node: bytes, code: int) -> bool:
        return self._take(core, node, False)

    def on_timer(self, core: Core) -> bool:
        core.note_silence(self.started, sorted(self.waiting))
        self.landed(core, False)
        return True

    def _take(self, core: Core, node: bytes, stored: bool) -> bool:
        if node not in self.waiting:
            return False
        self.waiting.discard(node)
        self.stored = self.stored and stored
        if self.waiting:
            return False
        self.landed(core, self.stored)
        return True


def begin_landing(core: Core, request_id: int, row_key: bytes, nodes: list[bytes], landed: Landed) -> None:
    """The record was sent to these nodes under that id, or staged where one of them is this node: `landed` is told when that is over."""
    pending = PendingLanding(landed, nodes, core.now)
    if core.node_id in pending.waiting:
        held = core.rows.held(row_key)
        if held is not None:
            held.wakes.append((request_id, None))
        else:  # committed by somebody else meanwhile, or not to be staged
            pending.waiting.discard(core.node_id)
            pending.stored = not isinstance(core.rows.load(row_key), DynamoError)
    if not pending.waiting:
        landed(core, pending.stored)
        return
    core.pending[request_id] = pending
    core.deadlines.add(core.now, core.settings.suspect_after_s, request_id)
