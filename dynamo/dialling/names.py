"""Host names to socket addresses, in bounded time: the system's look-up cannot be interrupted, so each runs in a thread of its own, and whoever
waits for it stops waiting when its own time is over.

The threads are daemons, so that a name service that hangs keeps no process from ending. They are bounded in number: who asks for a name that is
being looked up waits for that look-up, unless it has hung for long. Nothing is cached. Addresses written as numbers need no thread.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Protocol

SocketAddress = tuple[int, Any]  # address family, address in the form of that family
Waiting = Sequence[tuple[socket.socket, bool]]
"""Sockets to wait for, and whether each has something to write."""
LOOK_UPS_MAX = 32
HUNG_S = 5.0  # a look-up that takes longer is not waited for by those who come later: the name service may have come back


class Loop(Protocol):
    """What the way to a node needs of an event loop."""

    def now(self) -> float: ...

    async def first_ready(self, waiting: Waiting, until: float) -> None:
        """Wait until one of them is ready, or the time has come."""


class LookUp:
    """One look-up under way. `done` is set at its end."""

    def __init__(self, host: str, port: int) -> None:
        self.began = monotonic()
        self.done = threading.Event()
        self._host = host
        self._port = port
        self._found: list[SocketAddress] = []
        self._error: BaseException | None = None
        self._lock = threading.RLock()  # a signal's handler may look a name up, too
        self._told: list[Callable[[], object]] = []

    def run(self) -> None:
        """Ask the system, and tell those who wait."""
        try:
            answers = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            self._found = in_turn([(answer[0], answer[4]) for answer in answers])
        except BaseException as error:  # it belongs to those who wait
            self._error = error
        with self._lock:
            self.done.set()
            told, self._told = self._told, []
        for tell in told:
            tell()

    def when_done(self, tell: Callable[[], object]) -> None:
        """Call `tell` at the end, from any thread; now, if it is over."""
        with self._lock:
            if not self.done.is_set():
                self._told.append(tell)
                return
        tell()

    def forget(self, tell: Callable[[], object]) -> None:
        """Nobody waits for this any more."""
        with self._lock:
            if tell in self._told:
                self._told.remove(tell)

    def found(self) -> list[SocketAddress]:
        """The addresses, after the end. Raises OSError where there are none."""
        if isinstance(self._error, UnicodeError):
            raise OSError(f"{self._host!r} is no host name") from None
        if self._error is not None:
            raise self._error
        if not self._found:
            raise OSError(f"{self._host} has no address")
        return self._found


class _UnderWay:
    """The look-ups of this process that have not ended, by name."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._newest: dict[tuple[str, int], LookUp] = {}
        self._count = 0

    def begin(self, host: str, port: int) -> LookUp:
        """A look-up of the name, begun now or not long ago. Raises OSError where too many hang."""
        with self._lock:
            newest = self._newest.get((host, port))
            full = self._count >= LOOK_UPS_MAX
            if newest is not None and (full or monotonic() - newest.began < HUNG_S):
                return newest
            if full:
                raise OSError(f"{LOOK_UPS_MAX} look-ups of names are under way and none ends; does the name service answer?")
            look_up = self._newest[host, port] = LookUp(host, port)
            self._count += 1
        try:
            threading.Thread(target=self._run, args=(host, port, look_up), daemon=True, name=f"dynamo look-up of {host}").start()
        except RuntimeError:  # no thread can be had, at the end of the interpreter for one
            self._run(host, port, look_up)
        return look_up

    def _run(self, host: str, port: int, look_up: LookUp) -> None:
        look_up.run()
        with self._lock:
            self._count -= 1
            if self._newest.get((host, port)) is look_up:
                del self._newest[host, port]


_under_way = _UnderWay()


def _after_fork() -> None:
    """The threads have stayed in the parent."""
    global _under_way
    _under_way = _UnderWay()


os.register_at_fork(after_in_child=_after_fork)


def look_up(host: str, port: int, seconds: float) -> list[SocketAddress]:
    """The addresses of a host, to be tried in this order. Raises OSError; TimeoutError when it takes longer than `seconds`."""
    target = written_as_numbers(host, port)
    if target is not None:
        return [target]
    under_way = _under_way.begin(host, port)
    if not under_way.done.wait(max(0.0, seconds)):
        raise TimeoutError(f"the name {host} was not found in time")
    return under_way.found()


async def look_up_async(host: str, port: int, loop: Loop, deadline: float) -> list[SocketAddress]:
    """The same on an event loop, by its own clock. May be cancelled."""
    target = written_as_numbers(host, port)
    if target is not None:
        return [target]
    under_way = _under_way.begin(host, port)
    ours, theirs = socket.socketpair()
    try:
        under_way.when_done(theirs.close)  # which is the end of the stream for us; no loop has to be called from another thread
        await loop.first_ready([(ours, False)], deadline)
    finally:
        under_way.forget(theirs.close)
        theirs.close()
        ours.close()
    if not under_way.done.is_set():
        raise TimeoutError(f"the name {host} was not found in time")
    return under_way.found()


def written_as_numbers(host: str, port: int) -> SocketAddress | None:
    """The address, if `host` is one of IPv4 or IPv6 without a zone; None for what the system has to look up."""
    try:
        for family, target in ((socket.AF_INET, (host, port)), (socket.AF_INET6, (host, port, 0, 0))):
            try:
                socket.inet_pton(family, host)
            except OSError:
                continue
            return family, target
    except (UnicodeError, ValueError):  # letters beyond ASCII, or a zero byte
        return None
    return None


def in_turn(targets: list[SocketAddress]) -> list[SocketAddress]:
    """Each address once, in the order of the system, but with the families in turn: one of them may lead nowhere (RFC 8305, section 4)."""
    queues: dict[int, list[SocketAddress]] = {}
    for target in dict.fromkeys(targets):
        queues.setdefault(target[0], []).append(target)
    found: list[SocketAddress] = []
    while queues:
        for family in [*queues]:
            found.append(queues[family].pop(0))
            if not queues[family]:
                del queues[family]
    return found
