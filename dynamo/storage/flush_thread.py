"""The age of rows in an embedded store's write buffer: a thread that flushes them when nobody calls.

A store is stepped by whichever thread calls it, under one lock; so is a flush, and calls wait for it. A program that ends without closing its store
has not crashed: what is in the buffer then is flushed as the interpreter exits, though the stop is not a clean one. What comes after that (from
`atexit` functions registered before the store was opened, from daemon threads, into a store that was opened so late) is written through: `ending` says so.

What no hook reaches is a process that leaves by `os._exit`, or by a signal: it loses what any crash does. The children of `multiprocessing` leave so,
but run its own finalizers before, and these flush.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from collections.abc import Callable
from threading import Event, Thread

from dynamo.storage.buffer import WriteBuffer
from dynamo.storage.flushing import FLUSH_AFTER_S, RETRY_AFTER_S
from dynamo.storage.owned_lock import OwnedLock

_EXIT_WAIT_S = 5.0
_log = logging.getLogger("dynamo.storage")


def ending() -> bool:
    """Whether this process is about to end: the main thread is done, and so are all that it waits for. Then nothing may be put off any more."""
    if sys.is_finalizing():
        return True
    main = threading.main_thread()
    return not main.is_alive() and all(thread.daemon or thread is main for thread in threading.enumerate())


class FlushThread:
    """`lock` guards the buffer: its holder calls `note` after each commit. `stop` does not flush: closing the buffer does."""

    def __init__(self, buffer: WriteBuffer, lock: OwnedLock, after_s: float = FLUSH_AFTER_S) -> None:
        self._buffer = buffer
        self._lock = lock
        self._after_s = after_s
        self._pid = os.getpid()
        self._dirty = Event()
        self._stopped = Event()
        self._exit_hook = self._at_exit  # the one object that can be unregistered
        if ending():
            return  # no thread can be started any more, and no hook is called: all is written through
        self._thread = Thread(target=self._run, name="dynamo-flush", daemon=True)
        try:
            atexit.register(self._exit_hook)
            _before_a_child_of_multiprocessing_ends(self._exit_hook)
            self._thread.start()
        except BaseException:
            self.stop()
            raise

    def note(self) -> None:
        """There may be something to flush in a while."""
        if self._buffer.dirty and not self._dirty.is_set():
            self._dirty.set()

    def stop(self) -> None:
        """End the thread. May be called by the lock's holder, which then is not waited for. May be called again."""
        self._stopped.set()
        self._dirty.set()
        atexit.unregister(self._exit_hook)

    def _run(self) -> None:
        wait_s = self._after_s
        while not self._stopped.is_set():
            self._dirty.wait()
            if self._stopped.wait(wait_s):
                return
            self._dirty.clear()
            wait_s = self._after_s if self._lock.run(self._flush) else RETRY_AFTER_S

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
        try:
            self._lock.run(self._flush, _EXIT_WAIT_S)
        except TimeoutError:
            _log.error("the store is busy as the program ends: what is in its write buffer is lost; close it first")


def _before_a_child_of_multiprocessing_ends(hook: Callable[[], None]) -> None:
    """Such a child leaves without the functions of `atexit`."""
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        from multiprocessing.util import Finalize

        Finalize(None, hook, exitpriority=0)
