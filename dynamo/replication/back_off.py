"""How long background work waits for a node, or a disk, that refused: twice as long each time, up to a bound."""

from __future__ import annotations

from dynamo.replication.core import Settings

_TIMES_MAX = 8


def next_wait(settings: Settings, retry_s: float, last_s: float) -> float:
    """The wait after one of `last_s` (0: none). Never longer than the time in which owners compare themselves anyway: a cluster that is well again
    has all its rows in place within a few of those."""
    longest = max(retry_s, min(_TIMES_MAX * retry_s, settings.exchange_interval_s))
    return min(2 * last_s or retry_s, longest)
