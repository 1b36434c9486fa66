"""Wakes the reactor at its next deadline.

The reactor waits for its poll set without a timeout, because a Trio cancel scope per wakeup would cost more than the work of one. This task
sleeps in its place and writes to the wake-up descriptor in the poll set. The reactor moves the alarm forward only when an earlier deadline
appears; a deadline that is gone by then costs one idle wakeup.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import trio


class Ticker:
    """One alarm. Times are on Trio's clock, in seconds."""

    __slots__ = ("_alarm", "_scope", "_wake")

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._alarm = inf
        self._scope: trio.CancelScope | None = None

    def by(self, deadline: float) -> None:
        """Wake the reactor at `deadline` at the latest."""
        if deadline < self._alarm:
            self._alarm = deadline
            if self._scope is not None:
                self._scope.deadline = deadline

    async def run(self) -> None:
        """Runs until cancelled. After each alarm the reactor must name the next deadline."""
        while True:
            with trio.CancelScope(deadline=self._alarm) as self._scope:
                await trio.sleep_forever()
            self._alarm = inf
            self._wake()
