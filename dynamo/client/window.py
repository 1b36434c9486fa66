"""How many requests may be under way on one connection, in number and in bytes; the others wait their turn. A node bounds the answers."""

from __future__ import annotations

from collections import deque

from dynamo.client.loops import Event, Loop
from dynamo.errors import DynamoError

REQUESTS_MAX = 256
BYTES_MAX = 16 << 20


class Window:
    """First come, first served. Who is in, or waits, is known by a number; to leave twice, or without having entered, is harmless, so that whoever
    was interrupted may leave without knowing how far it came."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._inside: dict[int, int] = {}  # sizes by number
        self._queue: deque[tuple[int, int, Event]] = deque()
        self._closed: DynamoError | None = None

    async def enter(self, number: int, size: int) -> None:
        """Wait for room for a request of `size` bytes. Raises what the window was closed with. Whoever is cancelled, or interrupted, has to leave."""
        if self._closed is None and not self._queue and self._fits(size):
            self._inside[number] = size
        elif self._closed is None:
            entry = number, size, self._loop.event()
            self._queue.append(entry)
            try:
                await entry[2].wait()
            except BaseException:
                if entry in self._queue:
                    self._queue.remove(entry)
                raise
        if self._closed is not None:
            raise type(self._closed)(str(self._closed))

    def leave(self, number: int) -> None:
        """A request has its answer, or was not sent after all."""
        self._inside.pop(number, None)
        while self._queue and self._fits(self._queue[0][1]):
            waiting, size, let_in = self._queue[0]
            self._inside[waiting] = size
            let_in.set()
            self._queue.popleft()

    def close(self, error: DynamoError) -> None:
        """Let nobody in any more."""
        self._closed = error
        while self._queue:
            self._queue[0][2].set()
            self._queue.popleft()

    def _fits(self, size: int) -> bool:
        inside = self._inside
        return not inside or (len(inside) < REQUESTS_MAX and sum(inside.values()) + size <= BYTES_MAX)
