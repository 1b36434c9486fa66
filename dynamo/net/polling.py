"""What the reactor waits with: a set of descriptors, each watched for READ or WRITE, and a waker in it for other threads and for what is due.

`NestedPoller` is one epoll for all sockets, itself waited for as one descriptor by Trio: no task per connection, measured (DESIGN section 6).
Where the system has no epoll, or refuses one within another, `PortablePoller` has Trio wait for each socket. The step that processes events
is the same over both; `make_poller` takes the first that works, and `DYNAMO_LOOP=nested` or `portable` in the environment insists on one.

Rules of the set: level-triggered (what is still ready is reported again); HUNG_UP is reported whatever is watched for; a descriptor is taken
out before it is closed, since its number may be given to another at once.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from dynamo.errors import ConfigError

# The bits of poll(2), which those of epoll equal.
READ, WRITE = 1, 4
HUNG_UP = 8 | 16  # an error, or both directions closed
VARIABLE = "DYNAMO_LOOP"


class Poller(Protocol):
    """Descriptors and what happens to them. For the Trio thread only."""

    def register(self, descriptor: int, mask: int, /) -> None:
        """Watch a descriptor for READ, WRITE, both or neither. Raises OSError when the kernel has no room."""

    def modify(self, descriptor: int, mask: int, /) -> None:
        """Watch it for something else."""

    def unregister(self, descriptor: int, /) -> None:
        """Watch it no more; it is still open."""

    def start(self, nursery: trio.Nursery, /) -> None:
        """Before the first `wait`. Tasks of the poller, if it has any, live in this nursery."""

    def wait(self) -> Awaitable[None]:
        """Wait until `poll` may have something."""

    def poll(self, events_max: int, /) -> list[tuple[int, int]]:
        """(descriptor, what happened) of those that are ready now. Never waits."""

    def close(self) -> None:
        """Nothing is watched any more."""


class Waker(Protocol):
    """A descriptor that becomes readable when another thread says so."""

    @property
    def descriptor(self) -> int: ...
    def wake(self) -> None:
        """From any thread."""

    def clear(self) -> None:
        """Not readable until the next `wake`."""

    def close(self) -> None: ...


class NestedPoller:
    """An epoll in Trio's own one. Closed descriptors that a forked child still holds would go on reporting: hence `unregister` before closing."""

    __slots__ = ("_descriptor", "_epoll", "modify", "register", "unregister")

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._descriptor = self._epoll.fileno()
        self.register: Callable[[int, int], None] = self._epoll.register
        self.modify: Callable[[int, int], None] = self._epoll.modify
        self.unregister: Callable[[int], None] = self._epoll.unregister

    def start(self, nursery: trio.Nursery, /) -> None:
        """Nothing to do: it has no tasks."""

    def wait(self) -> Awaitable[None]:
        """Cancelled, it loses no event: they stay in the kernel."""
        return trio.lowlevel.wait_readable(self._descriptor)

    def poll(self, events_max: int, /) -> list[tuple[int, int]]:
        return self._epoll.poll(0, events_max)

    def close(self) -> None:
        self._epoll.close()


class EventWaker:
    """An eventfd."""

    __slots__ = ("descriptor",)

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def wake(self) -> None:
        os.eventfd_write(self.descriptor, 1)

    def clear(self) -> None:
        os.eventfd_read(self.descriptor)

    def close(self) -> None:
        os.close(self.descriptor)


class SocketWaker:
    """A pair of sockets, where there is no eventfd."""

    __slots__ = ("_reading", "_writing", "descriptor")

    def __init__(self) -> None:
        self._reading, self._writing = socket.socketpair()
        try:
            self._reading.setblocking(False)
            self._writing.setblocking(False)
        except BaseException:
            self.close()
            raise
        self.descriptor = self._reading.fileno()

    def wake(self) -> None:
        try:
            self._writing.send(b"\0")
        except BlockingIOError:
            return  # full, so it is readable already

    def clear(self) -> None:
        try:
            while len(self._reading.recv(4096)) == 4096:
                pass
        except BlockingIOError:
            return  # it held a multiple of 4,096, or nothing

    def close(self) -> None:
        self._reading.close()
        self._writing.close()


def make_poller() -> tuple[Poller, Waker]:
    """A poller and a waker, not registered with it yet. Raises ConfigError where DYNAMO_LOOP asks for what is not there."""
    from dynamo.net.portable import PortablePoller  # here, since it imports this module

    asked = os.environ.get(VARIABLE, "")
    if asked not in ("", "nested", "portable"):
        raise ConfigError(f"{VARIABLE}: {asked!r} is neither nested nor portable")
    nested = asked != "portable" and nesting_works()
    if asked == "nested" and not nested:
        raise ConfigError(f"{VARIABLE}: this system has no nested polling; leave it unset")
    poller: Poller = NestedPoller() if nested else PortablePoller()
    try:
        return poller, (EventWaker() if nested else SocketWaker())
    except BaseException:
        poller.close()
        raise


def nesting_works() -> bool:
    """Whether an epoll can be waited for in another one, and eventfd is there."""
    if not hasattr(select, "epoll") or not hasattr(os, "eventfd"):
        return False
    try:
        with select.epoll() as outer, select.epoll() as inner:
            outer.register(inner.fileno(), READ)
    except OSError:
        return False
    return True
