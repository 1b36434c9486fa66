"""One greeted connection with many requests in flight, whose replies come in any order.

A task of its own receives, so replies find their request whoever is waiting, late ones of cancelled requests are read and dropped, and an end of
the connection is noticed when it happens. Request ids are never used twice. Sending is done by whoever has something to send, without waiting;
only what the socket does not take at once is left to a second task, so that cancelling a request never leaves half a frame behind.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import count

from dynamo.client import connection
from dynamo.client.core import Request
from dynamo.client.greeting import Introduction
from dynamo.client.loops import Event, Loop
from dynamo.client.window import Window
from dynamo.dialling import race
from dynamo.dialling.race import Won
from dynamo.errors import ConnectionFailed, DynamoError, ProtocolError
from dynamo.model import messages as m
from dynamo.model.messages import Message
from dynamo.wire import hello
from dynamo.wire.frames import encode
from dynamo.wire.messages import check_answer

RECEIVE_BYTES = 256 * 1024
IDLE_S_MAX = connection.IDLE_S_MAX
DOUBT_S = 0.25  # a node that says nothing for so long under a request that timed out may be out of reach: new requests go over a new connection
SILENCE_S = 1.0  # a node that says nothing for so long under a request that timed out is taken to be out of reach


class Call:
    """One request on a channel. `sent`: whether any byte of it may have left. `used`: whether the channel had answered anything before it."""

    __slots__ = ("began", "done", "error", "reply", "sent", "size", "used")

    def __init__(self, done: Event) -> None:
        self.done = done
        self.sent = False
        self.used = False
        self.began = 0.0
        self.size = 0
        self.reply: Message | None = None
        self.error: DynamoError | None = None


class Channel:
    """See the module's text. Once `broken` is set, it is of no more use.

    # Invariant: a call is in `_calls` from its first byte until its reply or the end of the channel, also when nobody waits for it any more.
    """

    def __init__(self, address: str, won: Won[bytes], loop: Loop) -> None:
        self.address = address
        self.cluster_id = won.said or b""
        self.broken: DynamoError | None = None
        self.ended = loop.event()
        self._sock = won.sock
        self._loop = loop
        self._window = Window(loop)
        self._decoder = won.decoder
        self._ids = count(1)
        self._calls: dict[int, Call] = {}
        self._unsent = bytearray()
        self._heard = loop.now()
        self._asking = 0  # requests whose caller waits
        self._doubted = False
        self._before: Channel | None = None
        self._used = False
        self._tasks = 0
        self._spawned: list[object] = []
        self._abandoned = False

    @classmethod
    async def open(cls, address: str, cluster_id: bytes, loop: Loop, deadline: float) -> Channel:
        """Connect and greet; a node of another cluster than `cluster_id`, if given, is refused.

        Raises OtherCluster, ConnectionFailed, ProtocolError, Timeout or the node's own refusal; no request was sent then.
        """
        won = await race.connect_async(address, Introduction(address, cluster_id), loop, deadline)
        try:
            race.notice_silence(won.sock)
            channel = cls(address, won, loop)
            channel._spawn(channel._receive_all)
        except BaseException:
            won.sock.close()
            raise
        return channel

    async def exchange(self, request: Request, time_ms: int, call: Call) -> Message:
        """Send the request and return its reply, an ERROR of the node included. May be cancelled.

        Raises ValueTooLarge, or the error that ended the channel; its `maybe_applied`, and `call`, say whether any byte may have been sent.
        """
        request_id = next(self._ids)
        frame = encode(request.message(request_id, time_ms))
        call.size = len(frame)
        self._asking += 1
        try:
            return await self._exchange(request_id, frame, call)
        finally:
            self._asking -= 1
            if self._doubted and not self._asking:
                self.end(ConnectionFailed(f"{self.address} did not answer in time"))

    async def _exchange(self, request_id: int, frame: bytes, call: Call) -> Message:
        try:
            await self._window.enter(request_id, call.size)
            call.began = self._loop.now()
            call.used = self._used
            call.sent = True
            self._calls[request_id] = call
            self._push(frame)
        except BaseException:
            if request_id in self._calls:  # interrupted while sending: perhaps half a frame has left
                self.end(ConnectionFailed(f"{self.address}: interrupted while sending"))
            self._window.leave(request_id)
            raise
        await call.done.wait()
        if call.reply is not None:
            return call.reply
        assert call.error is not None
        raise call.error

    def end(self, error: DynamoError) -> None:
        """Give up the connection: every request on it ends with this error."""
        if self.broken is not None:
            return
        self.broken = error
        for call in self._calls.values():
            call.error = type(error)(str(error), maybe_applied=True)
            call.done.set()
        self._calls.clear()
        self._window.close(error)
        before, self._before = self._before, None
        if before is not None:
            before.end(error)
        try:
            self._sock.shutdown(socket.SHUT_RDWR)  # wakes the tasks; the last of them closes the socket
        except OSError:
            return  # it has ended already, which wakes them too

    def abandon(self) -> None:
        """Close this process's descriptor of a connection whose loop is not run any more, or is another process's: nothing is sent or shut down."""
        if self._abandoned:
            return
        self._abandoned = True
        self.broken = self.broken or ConnectionFailed("the event loop has ended")
        self._calls.clear()
        for task in self._spawned:
            self._loop.bury(task)
        self._sock.close()
        if self._before is not None:
            self._before.abandon()

    def end_at_rest(self, identity: object, error: DynamoError) -> None:
        """End a connection whose loop rests: it may be run again, and must not find the socket then."""
        self.end(error)
        if self._sock.fileno() >= 0:
            self._loop.unwatch(identity, self._sock)
        self.abandon()

    def wake(self) -> None:
        """End the connection from any thread: the loop finds that out by itself."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def usable(self) -> bool:
        """Whether to begin requests on it: not once one has been waited for in vain, nor when it was at rest for so long that the way may have gone."""
        if not self._asking and self._loop.now() - self._heard > IDLE_S_MAX:
            self._doubted = True
        return self.broken is None and not self._doubted

    def replaces(self, other: Channel | None) -> None:
        """Another one to the same node is of no more use to new requests. It ends when none waits on it any more, or with this one."""
        if other is None or other.broken is not None:
            return
        if other._asking:
            self._before = other
        else:
            other.end(ConnectionFailed(f"{self.address} was at rest for long, or did not answer in time"))

    def timed_out(self, call: Call) -> None:
        """A request's time is up. When the node said nothing for a while, the way to it may have gone, and new requests go another one; when it has said
        nothing for long although it should have, the connection is given up."""
        now = self._loop.now()
        if call.sent and now - max(self._heard, call.began) >= DOUBT_S:
            self._doubted = True
            if not self._asking:
                self.end(ConnectionFailed(f"{self.address} did not answer in time"))
                return
        oldest = next(iter(self._calls.values()), None)
        if oldest is not None and now - max(self._heard, oldest.began) >= SILENCE_S:
            self.end(ConnectionFailed(f"{self.address} has said nothing for {SILENCE_S:g} s"))

    # --- out ------------------------------------------------------------------------------------------------------------------------

    def _push(self, frame: bytes) -> None:
        """Send what the socket takes now, and leave the rest to a task."""
        if self._unsent:
            self._unsent += frame
            return
        try:
            sent = self._sock.send(frame)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.end(_failed(self.address, error))
            return
        if sent < len(frame):
            self._unsent += memoryview(frame)[sent:]
            del self._spawned[1:]  # earlier ones of this kind have ended
            self._spawn(self._send_all)

    async def _send_all(self) -> None:
        while self._unsent and self.broken is None:
            await self._loop.writable(self._sock)
            try:
                del self._unsent[: self._sock.send(self._unsent)]
            except BlockingIOError:
                continue

    # --- in -------------------------------------------------------------------------------------------------------------------------

    async def _receive(self) -> bytes:
        """What has come. Raises ConnectionFailed at the end of the stream, OSError."""
        while True:
            await self._loop.readable(self._sock)
            try:
                data = self._sock.recv(RECEIVE_BYTES)
            except BlockingIOError:
                continue
            if not data:
                raise ConnectionFailed(f"{self.address} closed the connection")
            return data

    async def _receive_all(self) -> None:
        while self.broken is None:
            data = await self._receive()
            self._heard = self._loop.now()
            for message in self._decoder.feed(data):
                self._take(message)

    def _take(self, message: Message) -> None:
        """Give a reply to its call. Raises ProtocolError, or what the node refuses this connection with."""
        call = self._calls.pop(message[1], None)
        if call is None:
            if message[0] == m.ERROR and message[1] == 0:
                raise hello.refusal(message)
            raise ProtocolError(f"{self.address} answered a request that was not asked")
        self._window.leave(message[1])
        self._used = True
        try:
            check_answer(message)
        except ProtocolError as error:
            call.error = ProtocolError(str(error), maybe_applied=True)
            raise
        else:
            call.reply = message
        finally:
            call.done.set()

    def _spawn(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run one of the two tasks. Whatever ends it, other than having no more to do, ends the channel; the last one closes the socket."""
        self._tasks += 1

        async def run() -> None:
            try:
                await work()
            except DynamoError as error:
                self.end(error)
            except OSError as error:
                self.end(_failed(self.address, error))
            except BaseException:  # the loop is ending
                self.end(ConnectionFailed("the event loop has ended"))
                raise
            finally:
                self._tasks -= 1
                if not self._tasks and not self._abandoned:
                    self._sock.close()
                    self.ended.set()

        self._spawned.append(self._loop.spawn(run))


def _failed(address: str, error: OSError) -> ConnectionFailed:
    return ConnectionFailed(f"{address}: {error.strerror or error}")
