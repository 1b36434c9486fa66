"""A node of a few lines: one thread, real sockets and frames, and a script in place of a store. What a client meets is in the script's
hands."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable
from typing import Any

from dynamo.errors import ProtocolError
from dynamo.model import messages as m
from dynamo.model.messages import Message
from dynamo.wire import hello
from dynamo.wire.frames import FrameDecoder, encode
from dynamo.wire.messages import check

Script = Callable[[Message], Message | list[Message] | None]
SILENT = None  # what a script returns to leave a request unanswered


class HangUp(Exception):
    """Raised by a script to close the connection instead of answering."""


class FakeNode:
    """Answers each request with what `script` makes of it; keeps `requests` and counts `connections`. A reply's request id of 0 is filled in;
    several replies, to this and to earlier requests, come as a list with their ids.
    Unless it is `choosy`, it greets clients of other clusters, too."""

    def __init__(self, script: Script, port: int = 0, cluster_id: bytes = b"c" * 16, choosy: bool = True, host: str = "127.0.0.1") -> None:
        self.script = script
        self.requests: list[Message] = []
        self.connections = 0
        self._cluster_id = cluster_id
        self._choosy = choosy
        self._listener = socket.create_server((host, port))
        self.port = self._listener.getsockname()[1]
        self.address = f"{host}:{self.port}"
        self._wake, self._woken = socket.socketpair()
        self._open: dict[socket.socket, FrameDecoder] = {}
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._wake.close()
        self._thread.join(10)
        assert not self._thread.is_alive()

    def __enter__(self) -> FakeNode:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _serve(self) -> None:
        while True:
            readable, _, _ = select.select([self._listener, self._woken, *self._open], [], [])
            if self._woken in readable:
                break
            for ready in readable:
                if ready is self._listener:
                    accepted, _ = ready.accept()
                    self._open[accepted] = FrameDecoder()
                    self.connections += 1
                else:
                    self._read(ready)
        for each in (self._listener, self._woken, *self._open):
            each.close()

    def _read(self, connection: socket.socket) -> None:
        data = b""
        with contextlib.suppress(ConnectionError):
            data = connection.recv(65536)
        try:
            if not data:
                raise HangUp
            for message in self._open[connection].feed(data):
                reply = self._greeting(message) if message[0] == m.HELLO else self._answer(message)
                for each in reply if isinstance(reply, list) else [reply] if reply is not None else []:
                    connection.sendall(encode(each))
        except (HangUp, ConnectionError, ProtocolError):  # as a node does with a client that breaks the protocol
            del self._open[connection]
            connection.close()

    def _greeting(self, message: Message) -> Message:
        asked = hello.check_hello(message)
        if self._choosy and asked.cluster_id not in (b"", self._cluster_id):
            return m.error_message(0, 13, f"this is cluster {hello.cluster_text(self._cluster_id)}, not {hello.cluster_text(asked.cluster_id)}", False)
        mine = hello.Hello(cluster_id=self._cluster_id, partitions=8, role=m.ROLE_PEER, node_id=b"n" * 16, boot_nonce=b"b" * 16)
        return hello.message_of(mine, (0, 0))

    def _answer(self, message: Message) -> Message | list[Message] | None:
        check(message, m.ROLE_CLIENT)
        self.requests.append(message)
        reply = self.script(message)
        return reply if reply is None or isinstance(reply, list) else (reply[0], reply[1] or message[1], *reply[2:])


def get_reply(*values: bytes, token: bytes = b"token", owners: int = 3) -> Message:
    siblings = tuple((value, 7, i, 1_000_000 << 12) for i, value in enumerate(values, 1))
    return (m.GET_REPLY, 0, 1, 1, owners, token, siblings, ())


def put_reply(token: bytes = b"put-token", actor: int = 7, counter: int = 9, unseen: int = 0) -> Message:
    return (m.PUT_REPLY, 0, 1, 1, token, actor, counter, unseen, 2, m.DURABILITY_SYNCED)


def error(code: int, maybe_applied: bool = False, text: str = "refused", **counts: int) -> Message:
    return m.error_message(0, code, text, maybe_applied, **counts)


def scan_reply(*entries: tuple[bytes, bytes], cursor: bytes = b"", owners: int = 2) -> Message:
    found = tuple((key, b"token", ((value, 7, 1, 1_000_000 << 12),), b"behind " + key) for key, value in entries)
    return (m.SCAN_REPLY, 0, 1, 1, found, cursor, owners)


def store() -> Script:
    """A script that keeps one value a key, enough for a client to write and read back."""
    data: dict[Any, bytes] = {}

    def script(message: Message) -> Message:
        if message[0] == m.GET:
            value = data.get(message[2:4])
            return get_reply(value) if value is not None else get_reply()
        if message[0] == m.GET_MANY:
            names = [(message[2], key) for key in message[3]]
            return (m.GET_MANY_REPLY, 0, tuple(get_reply(data[name]) if name in data else get_reply() for name in names))
        if message[0] == m.PUT_MANY:
            data.update({(message[2], entry[0]): entry[1] for entry in message[3]})
            return (m.PUT_MANY_REPLY, 0, tuple(put_reply() for _ in message[3]))
        assert message[0] == m.PUT
        if message[4] is None:
            data.pop(message[2:4], None)
        else:
            data[message[2:4]] = message[4]
        return put_reply()

    return script
