"""Quorum arithmetic, alone and small (as etcd raft's quorum package): how many nodes a request needs.

`"quorum"`, spelled 0 here, is n_eff // 2 + 1 with n_eff = min(n, members in status normal): a lone node works with 1, three with 2.
An explicit number is absolute. R + W > N makes a read meet a write among the owners (paper 4.5).
"""

from __future__ import annotations

PENDING, MET, FAILED = 0, 1, 2


def needed(asked: int, bucket: int, default: int, n: int, members: int) -> int:
    """The nodes needed: the request's own number, else the bucket's, else the cluster's, else a majority. 0 = not given."""
    return asked or bucket or default or min(n, max(members, 1)) // 2 + 1
