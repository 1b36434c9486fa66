"""The poller for systems without nested polling: Trio waits for each descriptor, in a task that lives for one event.

It costs some tens of microseconds an event where the nested one costs one, and needs nothing but Trio and, for one corner, poll(2).
A watch reports what Trio saw, once, and is set again when `poll` has handed that on: the next watch begins after the reactor has received or
sent, so what is still ready then is reported again, and nothing is reported twice. What is watched for neither READ nor WRITE (a client that is
not read for now) Trio cannot wait for; whether it hung up is looked at now and then.
"""

from __future__ import annotations

import select
from itertools import islice

import trio

from dynamo.net.polling import HUNG_UP, READ, WRITE

LOOK_S = 0.5  # between looks at descriptors that are not watched


class _Watched:
    """One registered descriptor. A number that is registered anew has a new one, by which late watches of the old one know that they are."""

    __slots__ = ("armed", "mask", "ready")

    def __init__(self, mask: int) -> None:
        self.mask = mask
        self.armed = 0  # directions in which a task waits
        self.ready = 0  # what happened since it was last polled


class PortablePoller:
    """See `Poller`."""

    def __init__(self) -> None:
        self._watched: dict[int, _Watched] = {}
        self._reported: dict[int, None] = {}  # descriptors with something ready, the longest waiting first
        self._unwatched: set[int] = set()  # those with an empty mask
        self._nursery: trio.Nursery | None = None  # while it runs
        self._something = trio.Event()
        self._looking = False

    def register(self, descriptor: int, mask: int, /) -> None:
        assert descriptor not in self._watched
        self._watched[descriptor] = _Watched(mask)
        self._arm(descriptor)

    def modify(self, descriptor: int, mask: int, /) -> None:
        self._watched[descriptor].mask = mask
        self._arm(descriptor)

    def unregister(self, descriptor: int, /) -> None:
        watched = self._watched.pop(descriptor)
        self._reported.pop(descriptor, None)
        self._unwatched.discard(descriptor)
        if watched.armed:
            trio.lowlevel.notify_closing(descriptor)

    def start(self, nursery: trio.Nursery, /) -> None:
        nursery.start_soon(self._run)

    async def _run(self) -> None:
        """Holds the tasks that wait."""
        async with trio.open_nursery() as self._nursery:
            try:
                for descriptor in self._watched:
                    self._arm(descriptor)
                await trio.sleep_forever()
            finally:
                self._nursery = None  # before it closes: the reactor goes on for a moment, and must not start a task in it then

    async def wait(self) -> None:
        await trio.lowlevel.checkpoint()
        if not self._reported:
            self._something = trio.Event()
            await self._something.wait()

    def poll(self, events_max: int, /) -> list[tuple[int, int]]:
        events = []
        for descriptor in list(islice(self._reported, events_max)):
            del self._reported[descriptor]
            watched = self._watched[descriptor]
            mask = watched.ready & (watched.mask | HUNG_UP)
            watched.ready = 0
            if mask:
                events.append((descriptor, mask))
            self._arm(descriptor)
        return events

    def close(self) -> None:
        self._watched.clear()
        self._reported.clear()
        self._unwatched.clear()

    # --- watching ---------------------------------------------------------------------------------------------------------------------

    def _arm(self, descriptor: int) -> None:
        """Have a task wait in each direction that is wanted and has none. One that is no longer wanted ends with what it waits for."""
        watched, nursery = self._watched[descriptor], self._nursery
        if nursery is None:
            return
        for direction in (READ, WRITE):
            if watched.mask & direction and not watched.armed & direction:
                watched.armed |= direction
                nursery.start_soon(self._watch, descriptor, watched, direction)
        if watched.mask:
            self._unwatched.discard(descriptor)
        else:
            self._unwatched.add(descriptor)
            if not self._looking:
                self._looking = True
                nursery.start_soon(self._look)

    @trio.lowlevel.enable_ki_protection
    async def _watch(self, descriptor: int, watched: _Watched, direction: int) -> None:
        """Wait until the descriptor is ready in this direction, and report it."""
        try:
            if self._watched.get(descriptor) is watched:
                await (trio.lowlevel.wait_readable if direction == READ else trio.lowlevel.wait_writable)(descriptor)
        except trio.ClosedResourceError:
            return  # taken out
        finally:
            watched.armed &= ~direction
        if self._watched.get(descriptor) is watched and watched.mask & direction:
            self._report(descriptor, watched, direction)

    async def _look(self) -> None:
        """Find those that hung up while nobody watched."""
        try:
            while self._unwatched:
                await trio.sleep(LOOK_S)
                if not hasattr(select, "poll"):  # some green threads take it away; then an end is noticed when it is read or written again
                    continue
                poll = select.poll()
                for descriptor in self._unwatched:
                    poll.register(descriptor, 0)
                for descriptor, mask in poll.poll(0):
                    self._report(descriptor, self._watched[descriptor], mask & HUNG_UP)
        finally:
            self._looking = False

    def _report(self, descriptor: int, watched: _Watched, mask: int) -> None:
        watched.ready |= mask
        self._reported[descriptor] = None
        self._something.set()
