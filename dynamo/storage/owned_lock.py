"""A lock that knows whether this thread holds it, and that no exception leaves taken.

Two things go wrong with a plain lock. A signal handler, a `__del__` or the callback of a weak reference runs in whichever thread is at hand, and in the
middle of what that thread does: where it wants a lock which the thread holds already, it waits for itself. And a Ctrl-C may come between `acquire` and
`try`, or where `finally` begins; then nobody gives the lock back. The interpreter's RLock knows its owner, in C and without a gap, so both can be asked
of it: `held_here` before it is taken, and `let_go` after anything was raised.
"""

from __future__ import annotations

from _thread import RLock
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class OwnedLock(RLock):  # type: ignore[misc]  # final for checkers, a base class in CPython
    """A lock taken by one call at a time: who may be inside already asks `held_here` first. As fast as the one it is made of."""

    def held_here(self) -> bool:
        """Whether this thread holds it."""
        held: bool = self._is_owned()  # type: ignore[attr-defined,unused-ignore]  # what threading.Condition asks of it
        return held

    def locked(self) -> bool:
        """Whether any thread holds it."""
        if self.held_here() or not self.acquire(blocking=False):
            return True
        self.release()
        return False

    def let_go(self) -> None:
        """Release it if this thread holds it, however often."""
        while self.held_here():
            self.release()

    def run(self, step: Callable[[], T], timeout_s: float = -1.0) -> T:
        """What `step` returns, called while the lock is held. Raises TimeoutError where another thread kept it for so long.

        # Invariant: this thread does not hold the lock before, nor after, whatever was raised and wherever.
        """
        try:
            if not self.acquire(timeout=timeout_s):
                raise TimeoutError
            # No try within: where one begins is a place that the outer one does not cover.
            outcome = step()
            self.release()
            return outcome
        except BaseException:
            self.let_go()
            raise


def run_holding(locks: list[OwnedLock], left_s: Callable[[], float], work: Callable[[], T]) -> T:
    """What `work` returns, called while this thread holds all these locks, taken in their order. Those that it holds already are left alone.
    `left_s` says how long one may still be waited for; raises TimeoutError."""
    wanted = [lock for lock in locks if not lock.held_here()]
    try:
        for lock in wanted:
            if not lock.acquire(timeout=left_s()):
                raise TimeoutError
        outcome = work()
        _let_go(wanted)
        return outcome
    except BaseException:
        _let_go(wanted)
        raise


def _let_go(locks: list[OwnedLock]) -> None:
    for lock in locks:
        lock.let_go()
