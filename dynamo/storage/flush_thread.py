"""The age of rows in an embedded store's write buffer: a thread that flushes them when nobody calls.

A store is stepped by whichever thread calls it, under one lock; so is a flush, and calls wait for it. A program that ends without closing its store
has not crashed: what is in the buffer then is flushed as the interpreter exits, though the stop is not a clean one.
"""

from __future__ import annotations

import atexit
import logging
import os
from threading import Event, Lock, Thread

from dynamo.storage.buffer import WriteBuffer
from dynamo.storage.flushing import FLUSH_AFTER_S, RETRY_AFTER_S

_EXIT_WAIT_S = 5.0
_log = logging.getLogger("dynamo.storage")


class FlushThread:
    """`lock` guards the buffer: its holder calls `note` after each commit. `stop` does not flush: closing the buffer does."""

    def __init__(self, buffer: WriteBuffer, lock: Lock, after_s: float = FLUSH_AFTER_S) -> None:
        self._buffer = buffer
        self._lock = lock
        self._after_s = after_s
        self._pid = os.getpid()
        self._dirty = Event()
        self._stopped = Event()
        self._thread = Thread(target=self._run, name="dynamo-flush", daemon=True)
        self._thread.start()
        atexit.register(self._at_exit)

    def note(self) -> None:
        """There may be something to flush in a while."""
        if self._buffer.dirty and not self._dirty.is_set():
            self._dirty.set()

    def stop(self) -> None:
        """End the thread. May be called by the lock's holder, which then is not waited for."""
        atexit.unregister(self._at_exit)
        self._stopped.set()
        self._dirty.set()

    def _run(self) -> None:
        wait_s = self._after_s
        while not self._stopped.is_set():
            self._dirty.wait()
            if self._stopped.wait(wait_s):
                return
            self._dirty.clear()
            with self._lock:
                wait_s = self._after_s if self._flush() else RETRY_AFTER_S

    def _flush(self) -> bool:
        """Under the lock. After a failure the buffer itself refuses what comes, and this thread goes on trying."""
        if self._stopped.is_set():
            return True
        try:
            self._buffer.flush()
        except Exception as error:  # whatever it was: without this thread an idle store would keep its rows in memory
            _log.error("a flush failed, nothing is accepted until one succeeds: %s", error)
            self._dirty.set()
            return False
        return True

    def _at_exit(self) -> None:
        if os.getpid() != self._pid:
            return
        if not self._lock.acquire(timeout=_EXIT_WAIT_S):
            _log.error("the store is busy as the program ends: what is in its write buffer is lost; close it first")
            return
        try:
            self._flush()
        finally:
            self._lock.release()
