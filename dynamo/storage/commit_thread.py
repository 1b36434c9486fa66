"""Synced commits beside the reactor: one plain thread, one group at a time.

A synced commit waits for the disk, and LMDB lets go of the GIL for that wait. So a thread does begin, puts and commit
(a write transaction never crosses threads), and the caller goes on as soon as only the wait is left. It waits while the
puts run: py-lmdb drops and takes the GIL at every put, and beside a busy loop each of them would queue for it (a group
of 64: 1.4 ms with the caller parked, 20-84 ms beside it).

Once the disk is done, the thread needs the GIL again to say so, and a busy caller may never let it in: every system call
of the caller drops the GIL for a microsecond and takes it back before the thread has woken, and each drop restarts the
5 ms after which Python would enforce a switch. Measured on two cores, groups of 64 beside a loop that polls every 300 us:
p50 300 ms, up to 4 s. Hence `give_way`: a pause of at most 0.1 ms each millisecond, which brings that to p50 1.5, p99 3 ms.
"""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic

from dynamo.errors import DynamoError, StorageFailed
from dynamo.model.group import Group
from dynamo.storage.engine import StorageEngine

Completed = tuple[Group, DynamoError | None]

GIVE_WAY_EVERY_S = 0.001
GIVE_WAY_S = 0.0001


class CommitThread:
    """Commits groups to `engine` in a thread of its own. All methods belong to one other thread.

    `notify` is called in the commit thread after each finished group (to write an eventfd, say) and must not raise;
    then `completed()` tells the outcome. At most one group is in flight: until `completed()` has returned it. A caller
    that does other work meanwhile calls `give_way()` once per round of it.
    """

    def __init__(self, engine: StorageEngine, notify: Callable[[], None]) -> None:
        self._engine = engine
        self._notify = notify
        self._submitted: SimpleQueue[Group | None] = SimpleQueue()
        self._entered: SimpleQueue[Group] = SimpleQueue()
        self._finished: SimpleQueue[Completed] = SimpleQueue()
        self._outcome: Completed | None = None  # taken from _finished by give_way
        self._in_flight: Group | None = None
        self._gave_way_at = 0.0
        self._closed = False
        # A daemon: a program that dies without close() must not hang for it. LMDB bears being cut off at any point.
        self._thread = Thread(target=self._run, name="dynamo-commit", daemon=True)
        self._thread.start()

    def submit(self, group: Group) -> None:
        """Hand over a group. Returns when its rows are in the transaction and the commit begins, or when it failed."""
        assert self._in_flight is None, "a group is in flight already"
        assert not self._closed, "the commit thread is closed"
        self._in_flight = group
        self._submitted.put(group)
        # Ask for this very group: an exception out of this wait (Ctrl-C) may have left the word of an earlier one.
        while self._entered.get() is not group:
            pass
        self._gave_way_at = monotonic()

    def give_way(self) -> bool:
        """Let the commit thread have the interpreter, if it is time: waits up to 0.1 ms, at most once a millisecond.

        Returns whether `completed()` has something to tell.
        """
        if self._in_flight is None or self._outcome is not None:
            return self._outcome is not None
        if monotonic() - self._gave_way_at < GIVE_WAY_EVERY_S:
            return not self._finished.empty()
        try:
            self._outcome = self._finished.get(timeout=GIVE_WAY_S)
        except Empty:
            self._gave_way_at = monotonic()
            return False
        return True

    def completed(self) -> list[Completed]:
        """Groups finished since the last call, each with its error or None. Never waits."""
        outcome, self._outcome = self._outcome, None
        if outcome is None:
            try:
                outcome = self._finished.get_nowait()
            except Empty:
                return []
        assert outcome[0] is self._in_flight
        self._in_flight = None
        return [outcome]

    def close(self) -> None:
        """End the thread when the group in flight, if any, is finished; `completed()` still tells of it then.

        Does not close the engine. May be called again.
        """
        if not self._closed:
            self._closed = True
            self._submitted.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (group := self._submitted.get()) is not None:
            error = self._commit(group)
            self._finished.put((group, error))
            self._notify()

    def _commit(self, group: Group) -> DynamoError | None:
        """Commit the group, and let the caller of `submit` go exactly once, come what may."""
        released = False

        def release() -> None:
            nonlocal released
            released = True
            self._entered.put(group)

        try:
            self._engine.commit(group, release)
        except DynamoError as error:
            return error
        except Exception as error:
            # A defect of ours, not of the disk. The group has failed all the same, and those who wait for it must hear.
            failure = StorageFailed(f"the commit thread failed: {error!r}")
            failure.__cause__ = error
            return failure
        finally:
            if not released:
                release()
        return None
