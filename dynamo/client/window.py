"""How many requests may be under way on one connection, in number and in bytes; the others wait their turn. A node bounds the answers."""

from __future__ import annotations

from collections import deque

from dynamo.client.loops import Event, Loop
from dynamo.errors import DynamoError

REQUESTS_MAX = 256
BYTES_MAX = 16 << 20


class Window:
    """First come, first served."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._requests = 0
        self._bytes = 0
        self._queue: deque[tuple[int, Event]] = deque()
        self._closed: DynamoError | None = None

    async def enter(self, size: int) -> None:
        """Wait for room for a request of `size` bytes. Raises what the window was closed with. May be cancelled."""
        if self._closed is None and not self._queue and self._fits(size):
            self._begin(size)
        elif self._closed is None:
            entry = size, self._loop.event()
            self._queue.append(entry)
            try:
                await entry[1].wait()
            except BaseException:
                if entry in self._queue:
                    self._queue.remove(entry)
                elif self._closed is None:  # let in, and cancelled in the same moment
                    self.leave(size)
                raise
        if self._closed is not None:
            raise type(self._closed)(str(self._closed))

    def leave(self, size: int) -> None:
        """A request that was let in has its answer, or was not sent after all."""
        self._requests -= 1
        self._bytes -= size
        # Invariant: who leaves has entered.
        assert self._requests >= 0 and self._bytes >= 0
        while self._queue and self._fits(self._queue[0][0]):
            waiting, let_in = self._queue.popleft()
            self._begin(waiting)
            let_in.set()

    def close(self, error: DynamoError) -> None:
        """Let nobody in any more."""
        self._closed = error
        while self._queue:
            self._queue.popleft()[1].set()

    def _fits(self, size: int) -> bool:
        return not self._requests or (self._requests < REQUESTS_MAX and self._bytes + size <= BYTES_MAX)

    def _begin(self, size: int) -> None:
        self._requests += 1
        self._bytes += size
