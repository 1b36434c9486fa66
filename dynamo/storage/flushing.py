"""When a node's write buffer is flushed, and which groups have to wait for it. No thread, no clock: `write` hands a group to whatever writes it,
`written` tells the outcome, time comes in as `now`.

A flush begins when the oldest row has aged, when many bytes are there, or for a group that cannot be done without: one that asks to be synced, and
one that finds the buffer full. Such a group goes with that flush. One flush is under way at a time, and puts go on beside it.

After a flush failed nothing is taken in before the disk has taken what it owes: the groups that come are told of the failure at once, for a disk that is
full need not be asked with each of them. Those that have to be synced ask it all the same. So do, where it is full, those that only remove, and they do it
without what it owes: a store that copies what it writes reuses what a commit freed in a later one, so that the two together would have no room for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from dynamo.errors import DynamoError, StorageFailed, StorageFull
from dynamo.model.group import Group
from dynamo.storage.buffer import WriteBuffer

FLUSH_AFTER_S = 0.1  # what a crash of all who hold a write may lose; longer saves writes of rows that change often
PROMPT_AFTER_S = 0.02  # where a coordinator has asked for a synced write, or somebody hands rows over, a window of them at a time
FLUSH_BYTES = 1 << 20  # some thousand rows: what is written while the node waits, before the wait for the disk, takes a few milliseconds
RETRY_AFTER_S = 0.5

Completed = tuple[Group, DynamoError | None]


class Flushing:
    """The way of one node's groups into its buffer and on to the disk. At most one group is submitted and not yet completed."""

    def __init__(self, buffer: WriteBuffer, write: Callable[[Group], None]) -> None:
        """`write(group)` begins to write a group to the engine below, and returns; `written` is called later, not from within."""
        self.buffer = buffer
        self._due = inf  # when what has come since the last flush began has aged
        self._write = write
        self._writing: Group | None = None
        self._alone = False  # whether what is being written is the group that waits for it, and nothing of the buffer
        self._with_it: Group | None = None  # the group that waits for what is being written
        self._waiting: Group | None = None  # the group that waits for the write after that
        self._completed: list[Completed] = []
        self._flushed: list[tuple[int, DynamoError | None]] = []

    def submit(self, group: Group, now: float) -> None:
        """Take a group: it is completed when it is in the buffer, or, if it is to be synced or there is no room, on disk."""
        assert self._waiting is None and self._with_it is None, "a group is in flight already"
        buffer = self.buffer
        if group.synced:
            self._waiting = group
        elif buffer.failure is not None and not self._makes_room(group, buffer.failure):
            self._completed.append((group, buffer.failure))
        elif buffer.failure is not None or buffer.full():
            self._waiting = group
        else:
            try:
                buffer.put(group)
            except StorageFailed as error:
                self._completed.append((group, error))
                return
            self._completed.append((group, None))
            due = now + (PROMPT_AFTER_S if group.prompt else FLUSH_AFTER_S)
            if due < self._due:
                self._due = due
        self.tick(now)

    def tick(self, now: float) -> None:
        """Begin a flush if one is due and none is under way."""
        if self._writing is not None:
            return
        buffer = self.buffer
        if self._waiting is not None and self._makes_room(self._waiting, buffer.failure):
            group, self._waiting = self._waiting, None
            self._alone, self._with_it = True, group
            self._writing = Group(group.number, group.objects, group.hints, synced=True)
            self._write(self._writing)
            return
        due = now >= self._due or (buffer.size >= FLUSH_BYTES and buffer.failure is None)
        if self._waiting is None and not (due and buffer.dirty):
            if due:  # and nothing is owed: what failed was only the group that was to go along
                self._due, buffer.failure = inf, None
            return
        self._with_it, self._waiting = self._waiting, None
        self._writing = buffer.begin_flush(self._with_it)
        self._due = inf
        self._write(self._writing)

    def written(self, error: DynamoError | None, now: float) -> None:
        """What was being written is on disk, or failed."""
        group, self._writing = self._writing, None
        last, self._with_it = self._with_it, None
        assert group is not None
        if self._alone:
            assert last is not None
            self._alone = False
            if error is None:
                self.buffer.written_beside(group)
            self._completed.append((last, error))
            self.tick(now)
            return
        if error is None:
            self.buffer.flush_done()
        else:
            self.buffer.flush_failed(error)
            self._due = now + RETRY_AFTER_S
            waiting = self._waiting
            if last is None and waiting is not None and not (waiting.synced or self._makes_room(waiting, error)):
                last, self._waiting = waiting, None
        if last is not None:
            self._completed.append((last, error))
        self._flushed.append((group.number, error))
        self.tick(now)

    @staticmethod
    def _makes_room(group: Group, failure: DynamoError | None) -> bool:
        """Whether the group is to be written by itself."""
        return isinstance(failure, StorageFull) and group.only_removes and not group.synced

    def completed(self) -> list[Completed]:
        """Groups done since the last call, each with its error or None."""
        completed, self._completed = self._completed, []
        return completed

    def flushed(self) -> list[tuple[int, DynamoError | None]]:
        """Flushes ended since the last call: the number of the last group in each, with its error or None. An error is one of the flush: its
        groups were completed and are still there."""
        flushed, self._flushed = self._flushed, []
        return flushed

    @property
    def next_deadline(self) -> float:
        """When `tick` wants to be called. Never while a flush is under way: the next one begins when that ends."""
        return inf if self._writing is not None else self._due
