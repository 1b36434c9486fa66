"""A reactor around an echo in place of a replica, and clients that speak the protocol over real sockets in the same Trio loop.

No test sleeps to wait for something: clients wait for bytes or the end of the stream, and the echo keeps events that can be waited for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

import trio

from dynamo.model import messages as m
from dynamo.model.group import Group
from dynamo.net.commits import InlineCommits
from dynamo.net.limits import Limits
from dynamo.net.reactor import Reactor
from dynamo.net.sockets import listen
from dynamo.wire.frames import ANSWER_ELEMENTS_MAX, FrameDecoder, encode
from dynamo.wire.hello import Hello, client_hello

CLUSTER = b"c" * 16
SECRET = bytes(range(32))


@dataclass
class Ready:
    group: Group | None = None
    messages: list[Any] = field(default_factory=list)
    messages_after_commit: list[Any] = field(default_factory=list)


class Echo:
    """GET: an answer with the key as value, `copies` times. PUT: an answer after a commit. READ from a peer: READ_REPLY. Keeps what happened."""

    def __init__(self) -> None:
        self.next_deadline: float | None = None
        self.events: list[Any] = []
        self.batches: list[int] = []
        self.received: list[Any] = []
        self.copies = 1
        self._changed = trio.Event()
        self._out: list[Any] = []
        self._waiting: list[Any] = []
        self._in_flight = False
        self._groups = 0

    def receive(self, batch, now):
        self.batches.append(len(batch))
        self.received += batch
        for source, message in batch:
            kind, request_id = message[:2]
            if kind == m.GET:
                value = message[3] * self.copies
                self._out.append((source, (m.GET_REPLY, request_id, 1, 1, 1, b"token", ((value, 1, 2, 3),), ())))
            elif kind == m.PUT:
                self._waiting.append((source, (m.PUT_REPLY, request_id, 1, 1, b"token", 1, 2, 0, 1, 3)))
            elif kind == m.READ:
                self._out.append((source, (m.READ_REPLY, request_id, 0, 0, bytes(16), b"", 1, 1)))
        self._note()

    def tick(self, now):
        self.next_deadline = None
        self.note(("tick", now))

    def committed(self, group, now):
        self._in_flight = False
        self.note(("committed", group.number))

    def commit_failed(self, group, error, now):
        self._in_flight = False
        self.note(("commit_failed", group.number, type(error)))

    def peer_up(self, node, now):
        self.note(("up", node))

    def peer_down(self, node, now):
        self.note(("down", node))

    def take_ready(self):
        ready = Ready(messages=self._out)
        self._out = []
        if self._waiting and not self._in_flight:
            self._in_flight = True
            self._groups += 1
            ready.group = Group(self._groups)
            ready.messages_after_commit, self._waiting = self._waiting, []
        return ready

    # --- for the tests ---

    def send(self, destination, message):
        self._out.append((destination, message))

    def note(self, event):
        self.events.append(event)
        self._note()

    def _note(self):
        self._changed.set()
        self._changed = trio.Event()

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait until the condition holds; it is looked at after each thing that happens to this replica."""
        while not condition():
            await self._changed.wait()


class Engine:
    def commit(self, group):
        pass


@asynccontextmanager
async def running(
    replica: Echo | None = None,
    *,
    node_id: bytes = b"n" * 16,
    nonce: bytes = b"",
    port: int = 0,
    addresses: dict[bytes, str] | None = None,
    limits: Limits | None = None,
    secret: bytes = SECRET,
    cluster_id: bytes = CLUSTER,
    **changes: Any,
) -> AsyncIterator[Reactor]:
    """A reactor that runs; `reactor.address` is where it listens. `replica.until` looks again after each of its steps."""
    replica = replica or Echo()
    listener = listen(f"127.0.0.1:{port}")
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    arguments: dict[str, Any] = {
        "commits": lambda notify: InlineCommits(Engine()),
        "refresh": lambda: None,
        "listener": listener,
        "greeting": Hello(
            cluster_id=cluster_id, partitions=256, tree_shape=1, role=m.ROLE_PEER, node_id=node_id, incarnation=1,
            boot_nonce=nonce or node_id, address=address,
        ),
        "secret": secret,
        "known_lease": lambda node: (0, 0),
        "address_of": ({} if addresses is None else addresses).get,
        "admin": lambda message: (m.CLUSTER_STATUS_REPLY, message[1], b"document"),
        "idle": lambda: True,
        "lease_heard": lambda actor, end: None,
        "follow": lambda now: None,
        "random": Random(1),
        "limits": limits,
    } | changes  # fmt: skip
    reactor = Reactor(replica, **arguments)
    reactor.address = address
    settle = reactor._settle

    def settle_and_note(now: float) -> None:
        settle(now)
        replica._note()

    reactor._settle = settle_and_note
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reactor.run, nursery)
            try:
                yield reactor
            finally:
                nursery.cancel_scope.cancel()
    finally:
        reactor.close()


class Caller:
    """A client's end of a connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._decoder = FrameDecoder(elements_max=ANSWER_ELEMENTS_MAX)
        self._messages: list[Any] = []

    async def send(self, *messages: Any) -> None:
        await self.stream.send_all(b"".join(map(encode, messages)))

    async def receive(self) -> Any:
        """The next message; None at the end of the stream, however it ended."""
        while not self._messages:
            try:
                data = await self.stream.receive_some(1 << 20)
            except trio.BrokenResourceError:
                return None
            if not data:
                return None
            self._messages += self._decoder.feed(bytes(data))
        return self._messages.pop(0)

    async def ask(self, message: Any) -> Any:
        await self.send(message)
        return await self.receive()


_opened: list[Caller] = []  # by the test that runs, which closes them at its end


async def connect(address: str) -> Caller:
    """A connection without a HELLO."""
    host, port = address.rsplit(":", 1)
    caller = Caller(await trio.open_tcp_stream(host, int(port)))
    _opened.append(caller)
    return caller


async def greeted(address: str) -> Caller:
    """A client's connection, HELLO done."""
    caller = await connect(address)
    reply = await caller.ask(client_hello())
    assert reply[0] == m.HELLO_REPLY, reply
    return caller


def get(request_id: int, key: bytes = b"key") -> Any:
    return (m.GET, request_id, b"default", key, 0, 0, 5000)


def put(request_id: int, value: bytes = b"value") -> Any:
    return (m.PUT, request_id, b"default", b"key", value, None, 0, 0, 0, 5000, b"o" * 16)


def run(test: Callable[[], Any], clock: Any = None) -> None:
    """Run an async test, at most 20 seconds of real time (pytest's own limit is per test and coarse)."""

    async def limited() -> None:
        try:
            if clock is not None:
                await test()
            else:
                with trio.fail_after(20):
                    await test()
        finally:
            while _opened:
                _opened.pop().stream.socket.close()

    trio.run(limited, clock=clock)


def recovering(node: Any) -> bool:
    """Whether a node of this process does not hold all it owns yet, or does not know whether the others have its ring."""
    core = node._parts.replica.core
    return bool(core.standings.needs) or not core.adopted.whole
