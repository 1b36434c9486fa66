"""How many requests of clients a node works on at a time; whoever asks beyond that hears so at once. Sans-IO.

A request in flight is one that the replica was given and has not answered. One that waits too long is worth nothing: its client has given it up, and gets are
asked of further replicas meanwhile, so that the node has the more to do the later it is. So requests in flight are bounded, and one more is answered
with Unavailable, "busy", for some microseconds of work; `maybe_applied` is False, since it never reached the replica.

**A connection's share** is as many as are free: it may have in flight no more than are left to all (dynamic thresholds, Choudhury and Hahne 1998).
One greedy connection gets a half, n of them 1/(n+1) each, and as much stays free for who comes next, with no list of who wants how much.

Refusing rather than not reading on: a client that pipelines shares a connection among callers, whom a full socket would all hold up, without a word,
for a time that no receiver can tell. Refused ones ask another node at once. So HTTP/2 does it (REFUSED_STREAM). Not reading on is for another case:
answers of that connection that wait for its client to take them (`Connection.room`); such requests are not in flight yet and take no room from others.
Those that wait there for longer than the time they were given are refused instead of carried out.
"""

from __future__ import annotations

from dynamo.errors import Unavailable
from dynamo.model import messages as m
from dynamo.model.messages import Message

_TIME_AT = {m.GET: 6, m.PUT: 9, m.GET_MANY: 6, m.PUT_MANY: 7, m.SCAN: 6}  # where the milliseconds stand that a request is given


class Admission:
    """The requests of clients in flight at one node."""

    __slots__ = ("_max", "in_flight", "refused")

    def __init__(self, in_flight_max: int) -> None:
        self._max = in_flight_max
        self.in_flight = 0
        self.refused = 0  # since the start, for want of room or of time

    def enter(self, own: int, asked: int = 1) -> int:
        """How many of `asked` requests to take from where `own` are in flight. Each counts until `leave`."""
        # The last of them finds as many more of its own, and as many fewer free.
        taken = max(0, min(asked, (self._max - self.in_flight - own + 1) // 2))
        self.in_flight += taken
        return taken

    def leave(self, count: int = 1) -> None:
        """Requests that had entered are answered."""
        self.in_flight -= count
        # Invariant: who leaves has entered.
        assert self.in_flight >= 0


def busy(message: Message) -> Message:
    """The answer to a request that is not taken."""
    text = "busy: too many requests in flight at this node or on this connection; try another node, or wait"
    return m.error_message(message[1], Unavailable.code, text, False)


def too_late(message: Message) -> Message:
    """The answer to a request that waited too long unread."""
    return m.error_message(message[1], Unavailable.code, "busy: the request waited here for longer than the time it was given", False)


def expired(message: Message, waited_s: float) -> bool:
    """Whether a request that waited so long has no time left."""
    at = _TIME_AT.get(message[0])
    return at is not None and message[at] <= waited_s * 1000.0
