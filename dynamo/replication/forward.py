"""Passing a put on to a node that is a replica of its key.

Only a replica coordinates a put, so that dots are minted where the row is. A node that is none asks one owner after the other; when none of them
answers it coordinates the write itself, as a fallback under its own actor (always writeable). The operation id stays the same throughout, so
an owner that got the request twice makes one version of it, and a reader is shown one.
"""

from __future__ import annotations

from dynamo.errors import InvalidKey, Timeout
from dynamo.model import messages as m
from dynamo.model.key import check_bucket, check_key
from dynamo.model.messages import Message
from dynamo.replication.core import Core, ReplyTo
from dynamo.replication.put import coordinate_put

_TRY_ELSEWHERE = {1, 8, 9, 10}  # Unavailable, CorruptRecord, StorageFull, StorageFailed: another owner may do better


class PendingForward:
    """A put given to an owner, waiting for that owner's answer."""

    __slots__ = ("asked", "deadline", "message", "plan", "reply_to", "request_id", "started")

    def __init__(self, core: Core, reply_to: ReplyTo, message: Message, plan: list[bytes]) -> None:
        self.reply_to = reply_to
        self.message = message
        self.plan = plan
        self.request_id = core.request_id()
        self.started = core.now
        self.deadline = core.now + min(message[9] / 1000.0, core.settings.request_time_s_max)
        self.asked = b""

    def begin(self, core: Core) -> None:
        """Ask the first owner."""
        core.pending[self.request_id] = self
        core.finish_if(self.request_id, self._go_on(core))

    def _go_on(self, core: Core) -> bool:
        while self.plan:
            node = self.plan.pop(0)
            if core.liveness.up(node):
                self.asked = node
                self.started = core.now
                core.send(node, (m.FORWARD, self.request_id, self._with_time_left(core)))
                core.deadlines.add(core.now, core.settings.suspect_after_s, self.request_id)
                return False
        coordinate_put(core, self.reply_to, self._with_time_left(core))
        return True

    def _with_time_left(self, core: Core) -> Message:
        return (*self.message[:9], max(1, int((self.deadline - core.now) * 1000)), *self.message[10:])

    def on_reply(self, core: Core, source: bytes, message: Message) -> bool:
        if message[0] != m.FORWARD_REPLY:
            return False
        reply = message[2]
        if reply[0] == m.ERROR and source != self.asked:
            return False  # of a node asked before, come late or twice: it says nothing about what the one asked now did
        if reply[0] == m.ERROR and reply[2] in _TRY_ELSEWHERE and not reply[4]:
            return self._go_on(core)  # refused before anything happened there
        if reply[0] == m.ERROR and self.reply_to.maybe_applied:
            reply = (*reply[:4], True, *reply[5:])
        core.answer(self.reply_to, (reply[0], self.reply_to.reply_id, *reply[2:]))
        return True

    def on_wake(self, core: Core, record: bytes | None) -> bool:
        return False

    def on_failure(self, core: Core, node: bytes, code: int) -> bool:
        if node != self.asked:
            return False
        self.reply_to.maybe_applied = True
        return self._go_on(core)

    def on_timer(self, core: Core) -> bool:
        core.note_silence(self.started, [self.asked])
        self.reply_to.maybe_applied = True
        if core.now >= self.deadline:
            core.refuse(self.reply_to, Timeout("no owner of the key answered in time"))
            return True
        return self._go_on(core)


def take_put(core: Core, reply_to: ReplyTo, message: Message) -> None:
    """A client's PUT: coordinate it here if this node is a replica of the key, else pass it on."""
    bucket, key = message[2], message[3]
    try:  # here, before it is passed on: what no node takes may be as long as a frame, and come a thousand times in a PUT_MANY
        check_bucket(bucket)
        check_key(key)
    except InvalidKey as error:
        core.refuse(reply_to, error)
        return
    place = _, _, route = core.place(bucket, key)
    value = message[4]
    too_large = value is not None and len(value) > place[0].value_bytes_max  # and refused here, rather than sent to hear that
    if route.owner or too_large or len(core.pending) >= core.settings.pending_max:
        coordinate_put(core, reply_to, message, place)
        return
    # Always the first owner in line: writes to one key then meet in one row, which is what a `set` replaces. Keys spread the load.
    PendingForward(core, reply_to, message, list(route.peers)).begin(core)
