"""What an event loop has to give for `channel` and `aio`, and which one is running: Trio or asyncio.

Few primitives, so that the two implementations (`loop_trio`, `loop_asyncio`) are small enough to be seen to be right. Each is imported when a
program that runs on it asks for the first time.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeVar

from dynamo.dialling.names import Waiting

T = TypeVar("T")


RUNS, RESTS, ENDED = range(3)


class Event(Protocol):
    """Set once."""

    def set(self) -> Any: ...
    def is_set(self) -> bool: ...
    async def wait(self) -> Any: ...


class Loop(Protocol):
    """The loop that is running. Times are seconds on its own clock. All that is awaited may be cancelled, and loses nothing then."""

    def identity(self) -> object:
        """Differs between two runs of a loop."""

    def now(self) -> float: ...
    def event(self) -> Event: ...
    def lock(self) -> AbstractAsyncContextManager[object]: ...

    def spawn(self, work: Callable[[], Awaitable[None]]) -> object:
        """Run beside everything else, until it ends or the loop does, which cancels it. Returns what `bury` takes."""

    def standing(self, identity: Any) -> int:
        """How it is with a loop from outside: RUNS (in some thread), RESTS (it may be run again) or ENDED."""

    def tell(self, identity: Any, what: Callable[[], object]) -> None:
        """Call `what` in a loop that runs in another thread, if it still does."""

    def bury(self, task: Any) -> None:
        """Forget a task of a loop that has ended or rests, or of another process: it is never run again, and must not touch the loop."""

    def unwatch(self, identity: Any, sock: socket.socket) -> None:
        """Take a socket out of a loop of this process that rests."""

    async def until(self, deadline: float, work: Callable[[], Awaitable[T]], hurry: set[Callable[[], object]]) -> T:
        """The result of `work`, or TimeoutError when it takes longer. `hurry` holds meanwhile what, called in this loop, makes it late at once."""

    async def first_ready(self, waiting: Waiting, until: float) -> None:
        """Wait until one of the sockets is ready for what is to be done with it, or the time has come."""

    async def readable(self, sock: socket.socket) -> None:
        """Wait until there is something to read, the end included. One task at a time."""

    async def writable(self, sock: socket.socket) -> None:
        """Wait until something can be sent. One task at a time."""


def running() -> Loop:
    """The loop that runs the calling task. Raises RuntimeError outside of one."""
    trio = sys.modules.get("trio")  # who has not imported it does not run it
    if trio is not None and trio.lowlevel.in_trio_task():
        from dynamo.client import loop_trio

        return loop_trio
    if "asyncio" in sys.modules:
        from dynamo.client import loop_asyncio

        try:
            loop_asyncio.identity()
        except RuntimeError:
            pass  # imported, and not running here
        else:
            return loop_asyncio
    raise RuntimeError("an AsyncClient is used within a running event loop, of Trio or asyncio; without one there is dynamo.Client")
