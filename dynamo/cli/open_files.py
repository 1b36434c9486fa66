"""The limit on open files of a process that is a node and nothing else.

Each connection is an open file, and the soft limit that a shell or a service manager gives, often 1,024, is for programs that still use select(2). Only
`dynamo serve` raises it: limits are the whole process's, so where a node is part of a program they are for that program to set.
"""

from __future__ import annotations

import resource
from contextlib import suppress

RESERVE = 64  # beside connections: the poll set and its waker, the listener, the files of the store and their locks, the standard streams


def provide_for(connections: int) -> str | None:
    """Raise the soft limit, towards the hard one and no further, to what so many connections need. What to say if it stays below."""
    needed = connections + RESERVE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _reaches(soft, needed):
        return None
    with suppress(ValueError, OSError):  # some systems have a bound of their own below the hard limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed if _reaches(hard, needed) else hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _reaches(soft, needed):
        return None
    return (
        f"this process may have {soft:,} open files, where {connections:,} connections need {needed:,}: beyond {max(0, soft - RESERVE):,} of them callers "
        "have to wait; raise the hard limit (ulimit -Hn, LimitNOFILE in a systemd unit)"
    )


def _reaches(limit: int, needed: int) -> bool:
    return limit == resource.RLIM_INFINITY or limit >= needed
