"""The way to a node that has several addresses: they are tried one after the other, each before the one in front of it has failed, and the first
whose greeting is answered is taken (RFC 8305, with the greeting in place of the handshake: a stopped process accepts connections, too).

Nothing waits here. Whoever runs a race calls `step`, waits for the sockets in `waiting` or until `wake_at`, and calls it again.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Generic, Protocol, TypeVar

from dynamo.config import split_address
from dynamo.dialling.names import Loop, SocketAddress, Waiting, look_up, look_up_async
from dynamo.errors import ConnectionFailed, DynamoError, ProtocolError, Timeout
from dynamo.model.messages import Message
from dynamo.wire.frames import ANSWER_ELEMENTS_MAX, FrameDecoder

STAGGER_S, STAGGER_S_MIN = 0.25, 0.01  # between the beginnings of two attempts
PARALLEL_MAX = 32
CHECK_S = 0.05  # between looks at whether a connection is still wanted
SILENCE_MS = 3_000  # more than three losses of one packet in a row, on most networks
_RECEIVE_BYTES = 64 * 1024
_UNDER_WAY = (errno.EINPROGRESS, errno.EALREADY, errno.EWOULDBLOCK)
T = TypeVar("T")
Said = TypeVar("Said", covariant=True)


class Greeting(Protocol[Said]):
    """What is said first on a connection, and what is made of the answer."""

    def hello(self) -> bytes:
        """The first frame; none: being connected is enough."""

    def accept(self, answer: Message) -> Said:
        """What the answer says. Raises DynamoError where this is not whom we want."""

    def explain(self, error: DynamoError) -> DynamoError:
        """The error of a connection that ended while greeting."""


class Connected:
    """No greeting: the first address that lets us in is taken."""

    def hello(self) -> bytes:
        """Nothing."""
        return b""

    def accept(self, answer: Message) -> None:
        """Nobody was asked."""

    def explain(self, error: DynamoError) -> DynamoError:
        """As it is."""
        return error


@dataclass(frozen=True, slots=True)
class Won(Generic[T]):
    """A greeted connection: its socket, which does not block, the decoder of what comes on it, and what the greeting said."""

    sock: socket.socket
    decoder: FrameDecoder
    said: T | None


class _Try:
    """One address on its way."""

    __slots__ = ("connected", "decoder", "sock", "target", "unsent")

    def __init__(self, target: SocketAddress, sock: socket.socket, hello: bytes) -> None:
        self.target = target
        self.sock = sock
        self.unsent = hello
        self.connected = False
        self.decoder = FrameDecoder(elements_max=ANSWER_ELEMENTS_MAX)


class Race(Generic[T]):
    """See the module's text. `close` it when it was not won."""

    def __init__(self, address: str, targets: Sequence[SocketAddress], greeting: Greeting[T], now: float, deadline: float) -> None:
        self._address = address
        self._several = len(targets) > 1
        self._queue = deque(targets)
        self._greeting = greeting
        self._deadline = deadline
        # All of them are tried in the first half of the time, however many there are.
        self._stagger_s = min(STAGGER_S, max(STAGGER_S_MIN, (deadline - now) / 2 / max(1, len(targets))))
        self._next_at = now
        self._tries: list[_Try] = []
        self._errors: list[DynamoError] = []

    @property
    def waiting(self) -> Waiting:
        """The sockets to wait for, and whether each has something to write."""
        return [(each.sock, not each.connected or bool(each.unsent)) for each in self._tries]

    @property
    def wake_at(self) -> float:
        """When to call `step` although no socket is ready."""
        return min(self._deadline, self._next_at) if self._queue else self._deadline

    def step(self, now: float) -> Won[T] | None:
        """Go on with each, and begin what is due. Raises what the last of them failed with, or Timeout."""
        for each in [*self._tries]:
            try:
                won = self._advance(each)
            except (DynamoError, OSError) as error:
                self._lost(each, error, now)
            else:
                if won is not None:
                    self._tries.remove(each)
                    self.close()
                    return won
        if now >= self._deadline:
            raise self._late()
        while self._queue and (not self._tries or now >= self._next_at):
            self._begin(self._queue.popleft(), now)
        if not self._tries:
            raise _told(self._errors)
        return None

    def close(self) -> None:
        """Give up what is on its way."""
        for each in self._tries:
            each.sock.close()
        self._tries.clear()
        self._queue.clear()

    def _begin(self, target: SocketAddress, now: float) -> None:
        self._next_at = now + self._stagger_s
        sock = None
        try:
            sock = socket.socket(target[0], socket.SOCK_STREAM)
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            result = sock.connect_ex(target[1])
            if result and result not in _UNDER_WAY:
                raise OSError(result, os.strerror(result))
            each = _Try(target, sock, self._greeting.hello())
        except OSError as error:
            if sock is not None:
                sock.close()
            self._errors.append(self._failed(target, error))
            self._next_at = now
            return
        except BaseException:
            if sock is not None:
                sock.close()
            raise
        self._tries.append(each)
        if len(self._tries) > PARALLEL_MAX:
            self._lost(self._tries[0], Timeout(f"{self._address} did not answer in time"), now)

    def _advance(self, each: _Try) -> Won[T] | None:
        """Connect, say what there is to say, read the answer, each as far as it goes. Raises OSError, DynamoError."""
        if not each.connected:
            result = each.sock.connect_ex(each.target[1])  # tells what became of the first call, also without another look at the socket
            if result in _UNDER_WAY:
                return None
            if result not in (0, errno.EISCONN):
                raise OSError(result, os.strerror(result))
            each.connected = True
            if not each.unsent:
                return Won(each.sock, each.decoder, None)
        try:
            while each.unsent:
                each.unsent = each.unsent[each.sock.send(each.unsent) :]
            data = each.sock.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return None
        if not data:
            raise ConnectionFailed(f"{self._address} closed the connection")
        received = each.decoder.feed(data)
        if len(received) > 1:
            raise ProtocolError(f"{self._address} answered HELLO with {len(received)} messages")
        return Won(each.sock, each.decoder, self._greeting.accept(received[0])) if received else None

    def _lost(self, each: _Try, error: DynamoError | OSError, now: float) -> None:
        """One of them failed: the next one's turn is now."""
        if not isinstance(error, DynamoError):
            error = self._failed(each.target, error)
        self._errors.append(self._greeting.explain(error) if each.connected else error)
        self._tries.remove(each)
        each.sock.close()
        self._next_at = now

    def _failed(self, target: SocketAddress, error: OSError) -> ConnectionFailed:
        where = f"{self._address} ({target[1][0]})" if self._several else self._address
        return ConnectionFailed(f"{where}: {error.strerror or error}")

    def _late(self) -> Timeout:
        did_not = "answer" if any(each.connected for each in self._tries) else "accept a connection"
        met = "".join(f"; {text}" for text in dict.fromkeys(map(str, self._errors)))
        return Timeout(f"{self._address} did not {did_not} in time{met}")


def connect(address: str, greeting: Greeting[T], deadline: float, check: Callable[[], None] | None = None) -> Won[T]:
    """A greeted connection to the node at `address`, made in this thread until `deadline`, the look-up of its name included. `check` is called every
    some hundredths of a second, and raises when nobody wants the connection any more.

    Raises ConnectionFailed, Timeout, ProtocolError or what the greeting is refused with; no request was sent then.
    """
    now = monotonic()
    try:
        targets = look_up(*split_address(address), deadline - now)
    except TimeoutError as error:
        raise Timeout(f"{address}: {error}") from None
    except OSError as error:
        raise unknown(address, error) from None
    race, won = Race(address, targets, greeting, now, deadline), None
    try:
        while (won := race.step(monotonic())) is None:
            left = race.wake_at - monotonic()
            if check is not None:
                check()
                left = min(left, CHECK_S)
            _wait(race.waiting, left)
        race.close()
        return won
    except BaseException:
        race.close()
        if won is not None:  # interrupted
            won.sock.close()
        raise


async def connect_async(address: str, greeting: Greeting[T], loop: Loop, deadline: float) -> Won[T]:
    """The same on an event loop, by its own clock. May be cancelled."""
    try:
        targets = await look_up_async(*split_address(address), loop, deadline)
    except TimeoutError as error:
        raise Timeout(f"{address}: {error}") from None
    except OSError as error:
        raise unknown(address, error) from None
    race, won = Race(address, targets, greeting, loop.now(), deadline), None
    try:
        while (won := race.step(loop.now())) is None:
            await loop.first_ready(race.waiting, race.wake_at)
        race.close()
        return won
    except BaseException:
        race.close()
        if won is not None:  # interrupted
            won.sock.close()
        raise


def notice_silence(sock: socket.socket) -> None:
    """Have the kernel end a client's connection whose other side does not acknowledge what is sent, or does not answer when it is asked at rest:
    a request on it then fails by that, long before its own time is over. A process that is slow is no such case: its kernel answers."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_USER_TIMEOUT", SILENCE_MS), ("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, option):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    except OSError:
        return  # it has ended already, which its first use tells better


def unknown(address: str, error: OSError) -> ConnectionFailed:
    """The error of a name that could not be looked up."""
    return ConnectionFailed(f"{address}: {error.strerror or error}")


def _wait(waiting: Waiting, seconds: float) -> None:
    """Wait until one of the sockets is ready, or the time is over."""
    seconds = max(0.0, seconds)
    if not hasattr(select, "poll"):
        reading = [sock for sock, writes in waiting if not writes]
        writing = [sock for sock, writes in waiting if writes]
        select.select(reading, writing, [], seconds)
        return
    poll = select.poll()
    for sock, writes in waiting:
        poll.register(sock, select.POLLOUT if writes else select.POLLIN)
    poll.poll(1000 * seconds + 1)


def _told(errors: Sequence[DynamoError]) -> DynamoError:
    """The most telling of the errors, with all of them in its text: what a node said before what was seen of it."""
    told = next((error for error in errors if not isinstance(error, ConnectionFailed | Timeout)), errors[-1])
    text = "; ".join(dict.fromkeys(map(str, (told, *errors))))
    return type(told)(text)
