"""A server that speaks as much of Redis as the load generator asks for, on a thread; it can stall once."""

from __future__ import annotations

import selectors
import socket
import threading
from time import sleep
from types import TracebackType


class FakeRedis:
    """GET and SET over a dict. After `stall_after` requests it does nothing for `stall_s`; the key `refuses` cannot be set."""

    def __init__(self, *, stall_after: int = 0, stall_s: float = 0.0, refuses: bytes = b"") -> None:
        self._refuses = refuses
        self.values: dict[bytes, bytes] = {}
        self.requests = 0
        self._stall_after = stall_after
        self._stall_s = stall_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._end, self._ended = socket.socketpair()
        self._thread = threading.Thread(target=self._serve)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> FakeRedis:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Close everything."""
        self._end.close()
        self._thread.join()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._ended, selectors.EVENT_READ)
            rests: dict[socket.socket, bytes] = {}
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._ended:
                        for client in [*rests, self._listener, self._ended]:
                            client.close()
                        return
                    if key.fileobj is self._listener:
                        client, _ = self._listener.accept()
                        rests[client] = b""
                        selector.register(client, selectors.EVENT_READ)
                        continue
                    client = key.fileobj  # type: ignore[assignment]
                    data = client.recv(65536)
                    if not data:
                        selector.unregister(client)
                        del rests[client]
                        client.close()
                        continue
                    answer, rests[client] = self._answer(rests[client] + data)
                    client.sendall(answer)

    def _answer(self, data: bytes) -> tuple[bytes, bytes]:
        answers = []
        while True:
            words, rest = _command(data)
            if words is None:
                return b"".join(answers), data
            data = rest
            self.requests += 1
            if self.requests == self._stall_after:
                sleep(self._stall_s)  # what is tested is how a stall is counted
            if words[0] == b"SET" and words[1] == self._refuses:
                answers.append(b"-ERR refused\r\n")
            elif words[0] == b"SET":
                self.values[words[1]] = words[2]
                answers.append(b"+OK\r\n")
            else:
                value = self.values.get(words[1])
                answers.append(b"$-1\r\n" if value is None else b"$%d\r\n%b\r\n" % (len(value), value))


def _command(data: bytes) -> tuple[list[bytes] | None, bytes]:
    """The first command in `data` and what follows it; None while it is not whole."""
    head, found, rest = data.partition(b"\r\n")
    if not found:
        return None, data
    words = []
    for _ in range(int(head[1:])):
        size, found, rest = rest.partition(b"\r\n")
        if not found or len(rest) < int(size[1:]) + 2:
            return None, data
        words.append(rest[: int(size[1:])])
        rest = rest[int(size[1:]) + 2 :]
    return words, rest
