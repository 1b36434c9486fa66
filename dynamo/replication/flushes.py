"""Who waits for this node's disk where a commit is only in its write buffer (durability `buffered`, paper 6.1).

A coordinator asks one of the N replicas for a synced write, and whoever is to drop a copy asks its new holders: these get their answer when a flush
has brought the row to the disk, all others when it is in the buffer. Flushes keep the order of the groups, so the number of a group is all
there is to remember.
"""

from __future__ import annotations

from collections import deque

from dynamo.model.messages import Message, Source


class Flushes:
    """Answers that wait for a flush, in the order of their groups."""

    __slots__ = ("_waiting", "flushed")

    def __init__(self) -> None:
        self.flushed = 0  # all groups up to this number are on disk
        self._waiting: deque[tuple[int, Source, Message]] = deque()

    def add(self, number: int, source: Source, message: Message) -> None:
        """Send the message once the group of this number is on disk. Behind one that waits for a later group it waits for that, too."""
        waiting = self._waiting
        waiting.append((max(number, waiting[-1][0]) if waiting else number, source, message))

    def wanted(self, number: int) -> bool:
        """Whether somebody waits for the group of this number, the newest so far."""
        return bool(self._waiting) and self._waiting[-1][0] >= number

    def done(self, number: int) -> list[tuple[Source, Message]]:
        """The groups up to this one are on disk: what may be sent now."""
        self.flushed = max(self.flushed, number)
        return self.failed_flush(number)

    def failed_flush(self, number: int) -> list[tuple[Source, Message]]:
        """They could not be brought there, though they are still in the buffer: what to take back, for its sender waits no longer."""
        waiting = self._waiting
        taken = []
        while waiting and waiting[0][0] <= number:
            taken.append(waiting.popleft()[1:])
        return taken

    def failed_commit(self, number: int) -> list[tuple[Source, Message]]:
        """This group, and what is staged for the next, is not even in the buffer."""
        waiting = self._waiting
        taken = []
        while waiting and waiting[-1][0] >= number:
            taken.append(waiting.pop()[1:])
        return taken[::-1]
