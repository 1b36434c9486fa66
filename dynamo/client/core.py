"""How a request is tried until a node answers it: the retry policy as a value, and the attempts of one request as a fold over what came
of them.

Sans-IO: no socket, clock or lock. The shell (`blocking`, `aio`) asks `Attempts.next` where to try and for how long, tells it what happened,
and stops when it is given a reply or an error. The rules:

- Any node takes any request, so a node that cannot be reached or cannot help is passed over for the next one.
- A stopped node (its kernel accepts, nobody answers) must not eat the whole time: an attempt gets a share of what is left as long as
  there is somewhere else to go. A node that was only slow is asked again, once the others have been, with all the time that is left.
- A repeated write carries the same operation id: a node that meets it again answers with the same dot, so repeating is safe.
- `maybe_applied` of the final error is the OR over all attempts (promise P10): an attempt counts unless it failed before a byte of it
  was sent or the node itself said that nothing was applied.
- A node that is busy (Unavailable with `required` 0) did nothing and is well: the request goes to the next one at once, and when all were busy, to
  one of them at a time after pauses that double, as long as there is time. It is not held against the node: all clients would turn to the others.
- A node that failed is tried last for a while; the while is jittered and doubles, and when it is over one request goes to see, not all
  of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

from dynamo.client.greeting import OtherCluster
from dynamo.errors import (
    ConnectionFailed,
    CorruptRecord,
    DynamoError,
    InvalidRequest,
    ProtocolError,
    StorageFailed,
    StorageFull,
    Timeout,
    Unavailable,
    from_wire,
)
from dynamo.model import messages as m
from dynamo.model.messages import Message
from dynamo.wire.messages import check

if TYPE_CHECKING:
    from random import Random


ELSEWHERE: tuple[type[DynamoError], ...] = (OtherCluster, ConnectionFailed, ProtocolError, Timeout, Unavailable, StorageFull, StorageFailed, CorruptRecord)
"""Errors that another node may not have."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When and where a request is tried again. All times in seconds."""

    attempts_max: int = 8
    """Attempts of one request, the first included."""
    attempt_timeout_s: float = 1.0
    """Longest wait for one node while there is another to ask. Shorter leaves stopped nodes sooner and sends slow ones more work twice."""
    dial_timeout_s: float = 0.5
    """Longest wait for a node to let us in and greet, while there is another to ask and this one was not tried in this request. Shorter comes sooner to
    those that are well; longer is for networks where two round trips take that long."""
    down_s: float = 0.5
    """How long a node that failed is tried last; doubles with each failure in a row, and is jittered by half either way."""
    down_s_max: float = 10.0
    busy_pause_s: float = 0.02
    """Wait before a request that every node was too busy for is tried again; doubles up to `busy_pause_s_max`, and is jittered by half either way.
    Shorter finds room sooner, and makes nodes refuse where they should serve."""
    busy_pause_s_max: float = 1.0
    elsewhere: tuple[type[DynamoError], ...] = ELSEWHERE
    """Errors that another node may not have. Every other one is the request's own fault and raised at once."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request without the parts that differ between attempts: its message is (kind, id, *fields[, time_ms, *after])."""

    kind: int
    fields: tuple[Any, ...]
    reply_kind: int
    timed: bool = True
    after: tuple[Any, ...] = ()
    writes: bool = False
    elsewhere: bool = False
    """Not to be asked of the nodes that answered the verb's requests since the last one without this mark."""

    def __post_init__(self) -> None:
        """Raises InvalidRequest for what no node takes: it would end the connection, and with it the requests of all who share it."""
        try:
            check(self.message(0, 1), m.ROLE_CLIENT)
        except ProtocolError as error:
            raise InvalidRequest(str(error)) from None

    def message(self, request_id: int, time_ms: int) -> Message:
        """The message of one attempt; `time_ms` is the time the node may take, in milliseconds."""
        return (self.kind, request_id, *self.fields, *((time_ms,) if self.timed else ()), *self.after)


def node_ms(wait_s: float) -> int:
    """What a node is told when we wait for it so long: a little less, so that its own error, which knows what was missing, arrives before ours; and
    never more than it takes."""
    return max(1, min(m.TIME_MS_MAX, int(1000 * (wait_s - min(0.1, wait_s / 10)))))


@dataclass(frozen=True, slots=True)
class Attempt:
    """Pause, then try `address` for `wait_s`, of which connecting may take `dial_s`; tell the node `time_ms`."""

    address: str
    wait_s: float
    time_ms: int
    pause_s: float = 0.0
    dial_s: float = inf


@dataclass(slots=True)
class _Trouble:
    """A node that failed: how often in a row, until when further failures are the same one, and until when it is tried last."""

    failures: int = 0
    counted_until: float = 0.0
    away_until: float = 0.0


class Nodes:
    """The addresses of a client and which of them failed lately. Threads may share it: each step is one
    operation of a dictionary, and what two of them tell at once may count twice."""

    def __init__(self, addresses: Sequence[str], policy: RetryPolicy, random: Random) -> None:
        assert addresses
        self._policy = policy
        self._random = random
        self._addresses = tuple(dict.fromkeys(addresses))
        self._troubled: dict[str, _Trouble] = {}

    def order(self, now: float) -> list[str]:
        """All addresses: those that work in random order, to spread the load, then those that failed, the one to recover first in front."""
        away = {address: trouble.away_until for address, trouble in self._troubled.copy().items() if trouble.away_until > now}
        up = [address for address in self._addresses if address not in away]
        self._random.shuffle(up)
        if up and (trouble := self._troubled.get(up[0])) is not None:
            trouble.away_until = now + self._span(trouble)  # this request goes to see; the others wait for what it finds
        return up + sorted(away, key=away.__getitem__)

    def failed(self, address: str, now: float) -> None:
        """The node could not be reached, did not answer or could not serve. Of requests that were under way together, one counts."""
        trouble = self._troubled.setdefault(address, _Trouble())
        if now >= trouble.counted_until:
            trouble.failures += 1
            trouble.counted_until = trouble.away_until = now + self._span(trouble)

    def succeeded(self, address: str) -> None:
        """The node answered."""
        self._troubled.pop(address, None)

    def failing(self, address: str) -> bool:
        """Whether the node failed and has not answered since."""
        return address in self._troubled

    def _span(self, trouble: _Trouble) -> float:
        span = min(self._policy.down_s * (1 << min(trouble.failures - 1, 16)), self._policy.down_s_max)
        return span * (0.5 + self._random.random())


class Attempts:
    """The attempts of one request: `next` says where to try, `answered` and `failed` take what came of it.

    # Invariant: `_maybe_applied` never goes back from True.
    """

    def __init__(self, request: Request, addresses: Sequence[str], policy: RetryPolicy, deadline: float, chance: float = 0.5) -> None:
        """`chance`: from 0 to 1, drawn anew for each request, so that those that were refused together do not come back together."""
        self._request = request
        self._queue = deque(addresses)
        self._policy = policy
        self._deadline = deadline
        self._left = policy.attempts_max
        self._errors: list[tuple[str, DynamoError, bool]] = []  # address, error, whether the node itself sent it
        self._maybe_applied = False
        self._busy: deque[str] = deque()  # nodes that had no room
        self._pause_s = policy.busy_pause_s
        self._jitter = 0.5 + chance
        self.was_busy = False  # whether the last reply said so

    def next(self, now: float) -> Attempt:
        """The attempt to make now. Raises the request's final error when there is nothing left to try or no time."""
        remaining = self._deadline - now
        if self._busy and not self._queue:
            pause = self._pause_s * self._jitter
            if pause < remaining:
                self._pause_s = min(2 * self._pause_s, self._policy.busy_pause_s_max)
                address, wait = self._busy.popleft(), remaining - pause
                if self._busy:
                    wait = min(wait / 2, self._policy.attempt_timeout_s)
                return Attempt(address, wait, node_ms(wait), pause)
        if not self._queue or self._left <= 0 or remaining <= 0:
            raise self._final_error(timed_out=remaining <= 0)
        self._left -= 1
        address = self._queue.popleft()
        last = not self._queue or not self._left
        wait = remaining if last else min(remaining / 2, self._policy.attempt_timeout_s)
        new = not any(met[0] == address for met in self._errors)
        return Attempt(address, wait, node_ms(wait), dial_s=self._policy.dial_timeout_s if new and not last else inf)

    def answered(self, address: str, reply: Message) -> Message | None:
        """The reply, if it is the request's answer; None if another node should be asked. Raises the error that no node would spare us."""
        self.was_busy = False
        if reply[0] == self._request.reply_kind:
            return reply
        if reply[0] != m.ERROR:
            self.failed(address, ProtocolError(f"{address} answered with message type {reply[0]}", maybe_applied=True))
            return None
        error = from_wire(*reply[2:7])
        self.was_busy = isinstance(error, Unavailable) and error.busy
        if self.was_busy:
            self._busy.append(address)
        self._note(address, error, by_node=True)
        if not isinstance(error, self._policy.elsewhere):
            raise self._final_error()
        return None

    def failed(self, address: str, error: DynamoError, *, stale: bool = False) -> None:
        """The attempt ended without a reply. `error.maybe_applied` tells whether any byte of the request may have been sent. `stale`: on a
        connection that may have been dead for long, so that the same node is to be tried again at once."""
        self._note(address, error, by_node=False)
        if stale:
            self._queue.appendleft(address)
            self._left += 1
        elif isinstance(error, Timeout):
            self._queue.append(address)  # slow rather than gone, perhaps
        if not isinstance(error, self._policy.elsewhere):
            raise self._final_error()

    def may_be_applied(self, error: DynamoError) -> bool:
        """Whether the request may have been applied in any attempt, that which ended with this error included."""
        return self._maybe_applied or (self._request.writes and error.maybe_applied)

    def _note(self, address: str, error: DynamoError, *, by_node: bool) -> None:
        if not any(met[0] == address and str(met[1]) == str(error) for met in self._errors):  # who is refused often does not keep each time
            self._errors.append((address, error, by_node))
        self._maybe_applied |= self._request.writes and error.maybe_applied

    def _final_error(self, *, timed_out: bool = False) -> DynamoError:
        """The most telling of the errors met, with all of them in its text, that one first."""
        if not self._errors:
            return Timeout("no time was left to try") if timed_out else Unavailable("no other node is left to ask")
        if not isinstance(self._errors[-1][1], self._policy.elsewhere):
            told = self._errors[-1]
        else:
            # What a node said tells more than what we saw of it; another cluster more than nobody; and time that ran out more than a broken connection.
            told = max(self._errors, key=lambda met: (met[2], *(isinstance(met[1], kind) for kind in (Unavailable, OtherCluster, Timeout))))
        best, text = told[1], str(told[1])
        if len(self._errors) > 1:
            lines = [str(error) if address in str(error) else f"{address}: {error}" for address, error, _ in (told, *self._errors)]
            text = "; ".join(dict.fromkeys(lines))
        if timed_out and not told[2]:
            return Timeout(text, maybe_applied=self._maybe_applied)
        required, received = getattr(best, "required", 0), getattr(best, "received", 0)
        return from_wire(best.code, text, self._maybe_applied, required, received)
