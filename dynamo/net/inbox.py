"""From the bytes of a ready socket to messages the replica can trust: decoding, HELLO, the check of every message, who it comes from."""

from __future__ import annotations

import logging
from collections.abc import Callable
from operator import itemgetter

from dynamo.errors import ConfigError, DynamoError, ProtocolError, ValueTooLarge
from dynamo.model.messages import (
    CLUSTER_STATUS,
    JOIN,
    PART,
    PREFERENCE_LIST,
    ROLE_PEER,
    STATS,
    Message,
    NodeId,
    error_message,
)
from dynamo.net.admission import Admission, busy, expired, too_late
from dynamo.net.connection import Connection, State
from dynamo.net.driven import Batch
from dynamo.net.handshake import Greeted, Handshake
from dynamo.net.limits import Limits
from dynamo.net.links import Links
from dynamo.net.polling import READ
from dynamo.wire.frames import encode
from dynamo.wire.hello import PARTS
from dynamo.wire.messages import check_all

_log = logging.getLogger("dynamo.net")

Admin = Callable[[Message], Message]
_KIND = itemgetter(0)
_TOLD_MAX = 100
ADMIN = frozenset((JOIN, CLUSTER_STATUS, PREFERENCE_LIST, STATS))  # answered beside the replica


def answer_admin(admin: Admin, message: Message) -> Message:
    """The answer, or the typed error, to one of the `ADMIN` messages."""
    try:
        return admin(message)
    except DynamoError as error:
        return error_message(message[1], error.code, str(error), error.maybe_applied)


class Inbox:
    """The receiving half of the reactor's step."""

    def __init__(
        self, links: Links, handshake: Handshake, limits: Limits, admission: Admission, admin: Admin,
        opened: Callable[[Connection, Greeted, float], None], refused: Callable[[Connection, DynamoError], None],
        strayed: Callable[[Connection, NodeId, float], None],
    ) -> None:  # fmt: skip
        """`opened(connection, greeted, now)`: a HELLO exchange succeeded. `refused(connection, error)`: whoever we dialled turned us away.
        `strayed(connection, node, now)`: this node answered at the address of `connection.node_id`; it is opened as a connection to that node next."""
        self._links = links
        self._handshake = handshake
        self._limits = limits
        self._admission = admission
        self._admin = admin
        self._opened = opened
        self._refused = refused
        self._strayed = strayed
        self._told: set[tuple[str, str]] = set()  # who was turned away and why, for the log to say it once
        self.protocol_errors = 0

    def readable(self, connection: Connection, batch: Batch, now: float) -> None:
        """Receive once, and append what came to the batch. Whoever breaks the protocol is told and cut off; what the frames before that asked
        for in the same piece is not done."""
        data = connection.receive()
        if data is None:
            if connection.over:
                self._links.finish(connection, connection.over)
            return
        if connection.state is State.REFUSED:
            return
        try:
            messages = connection.decoder.feed(data)
            if connection.state is State.GREETING and messages:
                self._greet(connection, messages[0], now)
                messages = connection.decoder.greeted()
            if messages and connection.state is State.OPEN:
                self._take(connection, messages, batch, now)
        except (ProtocolError, ConfigError) as error:
            self._turn_away(connection, error, now)
        else:
            self._links.account_input(connection)

    def _take(self, connection: Connection, messages: list[Message], batch: Batch, now: float) -> None:
        """Check messages of an open connection; all or none of a piece go on."""
        role, source = connection.role, connection.source
        check_all(messages, role)
        if role == ROLE_PEER:
            if PART in map(_KIND, messages):
                messages = connection.received.take(messages)
                check_all(messages, role)
            batch += [(source, message) for message in messages]
            return
        if not ADMIN.isdisjoint(map(_KIND, messages)):
            for message in messages:
                if message[0] in ADMIN:
                    self._links.push(connection, self._admin_frame(message))
            messages = [message for message in messages if message[0] not in ADMIN]
        connection.backlog += messages
        self.resume(connection, batch, now)

    def _admin_frame(self, message: Message) -> bytes:
        """The answer, or why there is none. Nothing that a client can ask for may raise further than here: it would end the node."""
        try:
            return encode(answer_admin(self._admin, message))
        except ValueTooLarge as error:
            return encode(error_message(message[1], error.code, str(error), False))

    def resume(self, connection: Connection, batch: Batch, now: float) -> None:
        """Give as many of a client's requests to the replica as the window of its answers lets through; the rest wait, and are not added to meanwhile.
        What this node has no room for, or what waited too long, is refused."""
        waiting, connection.backlog = connection.backlog, []
        if connection.paused_at:
            # Nothing was read since the backlog began, so all of it has waited at least so long.
            waited_s, backlog, waiting = now - connection.paused_at, waiting, []
            for message in backlog:
                if expired(message, waited_s):
                    self._refuse(connection, too_late(message))
                else:
                    waiting.append(message)
        room = 0
        if connection.output_bytes <= self._limits.output_pause_bytes:
            room = min(len(waiting), max(0, connection.room(self._limits.output_bytes_max)))
        taken = self._admission.enter(connection.unanswered, room)
        connection.unanswered += taken
        source = connection.source
        batch += [(source, message) for message in waiting[:taken]]
        if taken < room:
            for message in waiting[taken:]:
                self._refuse(connection, busy(message))
        else:
            connection.backlog = waiting[taken:]
        connection.paused_at = (connection.paused_at or now) if connection.backlog else 0.0
        if connection.backlog or not connection.mask & READ:
            self._links.watch(connection)

    def _refuse(self, connection: Connection, answer: Message) -> None:
        """Answer in place of the replica."""
        self._admission.refused += 1
        self._links.push(connection, encode(answer))

    def _greet(self, connection: Connection, message: Message, now: float) -> None:
        """The first message of a connection. Raises ProtocolError or ConfigError to turn it away."""
        if connection.outbound:
            greeted = self._handshake.accept_reply(message, connection.node_id)
            if greeted.node_id != connection.node_id:
                self._strayed(connection, greeted.node_id, now)
        else:
            greeted = self._handshake.accept(message)
            assert greeted.reply is not None
            self._links.push(connection, encode(greeted.reply))
        connection.role = greeted.role
        connection.nonce = greeted.nonce
        connection.takes_parts = bool(greeted.capabilities & PARTS)
        if greeted.role == ROLE_PEER:
            connection.node_id = connection.source = greeted.node_id
        self._links.opened(connection)
        self._opened(connection, greeted, now)

    def _tell(self, connection: Connection, error: DynamoError) -> None:
        """Say, once, that a caller was turned away: a node of another cluster has an address of ours, or we have one of its."""
        told = connection.far_end().rpartition(":")[0], str(error)
        if told not in self._told and len(self._told) < _TOLD_MAX:
            self._told.add(told)
            _log.warning("turned away a caller from %s: %s", *told)

    def _turn_away(self, connection: Connection, error: DynamoError, now: float) -> None:
        self.protocol_errors += 1
        if connection.outbound and connection.state is State.GREETING:
            self._refused(connection, error)
        elif isinstance(error, ConfigError):
            self._tell(connection, error)
        if connection.state is State.OPEN and connection.role == ROLE_PEER:
            _log.warning("node %s sent what this node does not take, and its link is cut: %s", connection.node_id.hex(), error)
        if connection.node_id or connection.outbound:  # a peer: there is nobody to tell, and the link must be given up at once
            self._links.finish(connection, str(error))
        else:
            self._links.refuse(connection, error, now)
