"""Where a commit group is applied, with one interface for all ways: `submit` a group, then collect what is `completed`.

`CommitThread` (storage) returns from `submit` when the thread waits for the disk, and calls back when it is done. `InlineCommits` does the
whole work within `submit`: right where a commit does not wait for a disk, since handing it to a thread would cost more than it. `BufferedCommits`
completes groups in memory, and has the commit thread write many at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from dynamo.errors import DynamoError, StorageFailed, StorageFull
from dynamo.model.group import Group


class Committing(Protocol):
    """What is needed of a storage engine."""

    def commit(self, group: Group) -> None: ...


class Commits(Protocol):
    """At most one group is submitted and not yet completed."""

    def submit(self, group: Group) -> None: ...
    def completed(self) -> list[tuple[Group, DynamoError | None]]: ...
    def close(self) -> None: ...


class InlineCommits:
    """Commits on the caller's thread."""

    __slots__ = ("_completed", "_engine")

    def __init__(self, engine: Committing) -> None:
        self._engine = engine
        self._completed: list[tuple[Group, DynamoError | None]] = []

    def submit(self, group: Group) -> None:
        """Commit now; a storage error becomes part of what is completed."""
        try:
            self._engine.commit(group)
        except (StorageFull, StorageFailed) as error:
            self._completed.append((group, error))
        else:
            self._completed.append((group, None))

    def completed(self) -> list[tuple[Group, DynamoError | None]]:
        """What was submitted since the last call."""
        completed, self._completed = self._completed, []
        return completed

    def close(self) -> None:
        """Nothing is left to do."""


class Flushing(Protocol):
    """See `dynamo.storage.flushing`."""

    @property
    def next_deadline(self) -> float: ...
    def submit(self, group: Group, now: float) -> None: ...
    def tick(self, now: float) -> None: ...
    def written(self, error: DynamoError | None, now: float) -> None: ...
    def completed(self) -> list[tuple[Group, DynamoError | None]]: ...
    def flushed(self) -> list[tuple[int, DynamoError | None]]: ...


class Writer(Commits, Protocol):
    """A commit thread, beside which the caller works on."""

    def give_way(self) -> bool: ...


class BufferedCommits:
    """Commits to a write buffer; its flushes are the groups that `writer`, a commit thread over `engine`, is given."""

    def __init__(self, flushing: Callable[[Callable[[Group], None]], Flushing], writer: Writer, engine: Committing, clock: Callable[[], float]) -> None:
        self._writer = writer
        self._engine = engine
        self._clock = clock
        self._closing = False
        self._left: list[Group] = []  # what is to be written when there is no writer any more
        self._flushing = flushing(self._write)

    def submit(self, group: Group) -> None:
        """Take a group in."""
        self._flushing.submit(group, self._clock())

    def completed(self) -> list[tuple[Group, DynamoError | None]]:
        """What was taken in, or written with a flush, since the last call. Begins a flush that is due."""
        self._writer.give_way()  # a busy node would not let the thread say that the disk is done
        for _, error in self._writer.completed():
            self._flushing.written(error, self._clock())
        if not self._closing and self._flushing.next_deadline <= self._clock():  # then nobody would write what a flush begins
            self._flushing.tick(self._clock())
        return self._flushing.completed()

    def flushed(self) -> list[tuple[int, DynamoError | None]]:
        """Flushes that ended: the last group of each, and its error."""
        return self._flushing.flushed()

    @property
    def next_deadline(self) -> float:
        """When `completed` wants to be called though nothing happens."""
        return self._flushing.next_deadline

    def close(self) -> None:
        """Wait for the flush under way; a group that waits for the next one is written here. What is just in the buffer stays there, for the engine
        to flush as it closes."""
        self._closing = True
        self._writer.close()
        for _, error in self._writer.completed():
            self._flushing.written(error, self._clock())
        writer = InlineCommits(self._engine)
        while self._left:
            writer.submit(self._left.pop())
            ((_, error),) = writer.completed()
            self._flushing.written(error, self._clock())

    def _write(self, group: Group) -> None:
        if self._closing:
            self._left.append(group)
        else:
            self._writer.submit(group)
