"""One greeted connection with many requests in flight, whose replies come in any order.

A task of its own receives, so replies find their request whoever is waiting, late ones of cancelled requests are read and dropped, and an end of
the connection is noticed when it happens. Request ids are never used twice. Sending is done by whoever has something to send, without waiting;
only what the socket does not take at once is left to a second task, so that cancelling a request never leaves half a frame behind.
"""

from __future__ import annotations

import socket
from collections import deque
from itertools import count

from dynamo.client.core import Request
from dynamo.client.loops import Loop
from dynamo.client.window import Window
from dynamo.config import split_address
from dynamo.errors import ConnectionFailed, DynamoError, ProtocolError
from dynamo.model import messages as m
from dynamo.model.messages import Message
from dynamo.wire import hello
from dynamo.wire.frames import ANSWER_ELEMENTS_MAX, FrameDecoder, encode
from dynamo.wire.messages import check_answer

RECEIVE_BYTES = 256 * 1024
SILENCE_S = 1.0  # a node that says nothing for so long under a request that timed out is taken to be out of reach


class Call:
    """One request on a channel. `sent`: whether any byte of it may have left. `used`: whether the channel had answered anything before it."""

    __slots__ = ("began", "cost", "done", "error", "kind", "reply", "sent", "used")

    def __init__(self, kind: int) -> None:
        self.kind = kind
        self.sent = False
        self.used = False
        self.began = 0.0
        self.cost = 0.0
        self.reply: Message | None = None
        self.error: DynamoError | None = None


class Channel:
    """See the module's text. Once `broken` is set, it is of no more use.

    # Invariant: a call is in `_calls` from its first byte until its reply or the end of the channel, also when nobody waits for it any more.
    """

    def __init__(self, address: str, sock: socket.socket, loop: Loop, window: Window) -> None:
        self.address = address
        self.cluster_id = b""
        self.broken: DynamoError | None = None
        self.ended = loop.event()
        self._sock = sock
        self._loop = loop
        self._window = window
        self._decoder = FrameDecoder(elements_max=ANSWER_ELEMENTS_MAX)
        self._ids = count(1)
        self._calls: dict[int, Call] = {}
        self._queue: deque[Call] = deque()  # wait for room in the window
        self._unsent = bytearray()
        self._received = 0  # bytes since the last whole reply
        self._heard = 0.0
        self._replies = 0
        self._tasks = 0

    @classmethod
    async def open(cls, address: str, cluster_id: bytes, loop: Loop, window: Window) -> Channel:
        """Connect and greet; a node of another cluster than `cluster_id`, if given, refuses.

        Raises ConnectionFailed, ProtocolError or the node's own refusal; no request was sent then.
        """
        try:
            sock = await loop.connect(*split_address(address))
        except OSError as error:
            raise ConnectionFailed(f"{address}: {error.strerror or error}") from error
        channel = cls(address, sock, loop, window)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await channel._greet(cluster_id)
        except OSError as error:
            sock.close()
            raise ConnectionFailed(f"{address}: {error.strerror or error}") from error
        except BaseException:
            sock.close()
            raise
        channel._spawn_receiver()
        return channel

    async def exchange(self, request: Request, time_ms: int, call: Call) -> Message:
        """Send the request and return its reply, an ERROR of the node included. May be cancelled.

        Raises the error that ended the channel, or ValueTooLarge; `call` and `maybe_applied` say whether any byte may have been sent.
        """
        request_id = next(self._ids)
        frame = encode(request.message(request_id, time_ms))
        call.cost = self._window.cost(request.kind, len(frame))
        call.done = self._loop.event()
        await self._enter(call)
        call.began = self._loop.now()
        call.used = self._replies > 0
        call.sent = True
        self._calls[request_id] = call
        self._push(frame)
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
        self._window.broke(len(self._calls))
        for call in self._calls.values():
            self._window.end(call.cost)
            call.error = type(error)(str(error), maybe_applied=True)
            call.done.set()
        self._calls.clear()
        for call in self._queue:
            call.done.set()
        self._queue.clear()
        try:
            self._sock.shutdown(socket.SHUT_RDWR)  # wakes the tasks; the last of them closes the socket
        except OSError:
            return  # it has ended already, which wakes them too

    def timed_out(self) -> None:
        """A request's time is up: if the node has said nothing for long although it should have, its connection is given up."""
        now = self._loop.now()
        oldest = next(iter(self._calls.values()), None)
        if oldest is not None and now - max(self._heard, oldest.began) >= SILENCE_S:
            self.end(ConnectionFailed(f"{self.address} has said nothing for {SILENCE_S:g} s"))

    # --- going in -------------------------------------------------------------------------------------------------------------------

    async def _enter(self, call: Call) -> None:
        """Wait for room in the window."""
        if self._queue or not self._window.fits(call.cost):
            self._queue.append(call)
            try:
                await call.done.wait()
            except BaseException:
                if call in self._queue:
                    self._queue.remove(call)
                elif self.broken is None:  # let in, and cancelled in the same moment
                    self._window.end(call.cost)
                    self._let_in()
                raise
            call.done = self._loop.event()
        elif self.broken is None:
            self._window.begin(call.cost)
        if self.broken is not None:
            raise type(self.broken)(str(self.broken))

    def _let_in(self) -> None:
        while self._queue and self._window.fits(self._queue[0].cost):
            call = self._queue.popleft()
            self._window.begin(call.cost)
            call.done.set()

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
            self.end(ConnectionFailed(f"{self.address}: {error.strerror or error}"))
            return
        if sent < len(frame):
            self._unsent += frame[sent:]
            self._spawn_sender()

    def _spawn_sender(self) -> None:
        async def send() -> None:
            while self._unsent and self.broken is None:
                await self._loop.writable(self._sock)
                try:
                    del self._unsent[: self._sock.send(self._unsent)]
                except BlockingIOError:
                    continue

        self._spawn(send)

    # --- coming out -----------------------------------------------------------------------------------------------------------------

    async def _greet(self, cluster_id: bytes) -> None:
        frame = encode(hello.client_hello(cluster_id))
        while frame:
            await self._loop.writable(self._sock)
            frame = frame[self._sock.send(frame) :]
        received: list[Message] = []
        while not received:
            received = self._decoder.feed(await self._receive())
        if len(received) > 1:
            raise ProtocolError(f"{self.address} answered HELLO with {len(received)} messages")
        greeting, _, _ = hello.check_reply(received[0])
        self.cluster_id = greeting.cluster_id

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

    def _spawn_receiver(self) -> None:
        async def receive() -> None:
            while self.broken is None:
                self._take(await self._receive())

        self._spawn(receive)

    def _take(self, data: bytes) -> None:
        """Give replies to their calls. Raises ProtocolError, or what the node refuses this connection with."""
        self._heard = self._loop.now()
        self._received += len(data)
        messages = self._decoder.feed(data)
        for message in messages:
            call = self._calls.pop(message[1], None)
            if call is None:
                if message[0] == m.ERROR and message[1] == 0:
                    raise hello.refusal(message)
                raise ProtocolError(f"{self.address} answered a request that was not asked")
            self._window.end(call.cost)
            try:
                check_answer(message)
            except ProtocolError as error:
                call.error = ProtocolError(str(error), maybe_applied=True)
                call.done.set()
                raise
            self._window.answered(call.kind, self._received / len(messages))
            self._replies += 1
            call.reply = message
            call.done.set()
        if messages:
            self._received = 0
            self._let_in()

    def _spawn(self, work: Work) -> None:
        """Run one of the two tasks. Whatever ends it, other than having no more to do, ends the channel; the last one closes the socket."""
        self._tasks += 1

        async def run() -> None:
            try:
                await work()
            except OSError as error:
                self.end(ConnectionFailed(f"{self.address}: {error.strerror or error}"))
            except DynamoError as error:
                self.end(error)
            except BaseException:  # the loop is ending
                self.end(ConnectionFailed("the event loop has ended"))
                raise
            finally:
                self._tasks -= 1
                if not self._tasks:
                    self._sock.close()
                    self.ended.set()

        self._loop.spawn(run)
