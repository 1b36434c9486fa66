"""What of a record is shown in an answer that has to fit into a frame.

Merges never refuse a version, so a record may hold more than a frame does: siblings from many sides of a partition. A client is then shown as many as
fit, with a token that covers just those, and told how many it was not shown. Whatever it writes with that token replaces what it saw and nothing else
(leaving out is always safe), so that each write makes the record smaller, and the next read shows more of it. No client needs to know of this.

A token covers the record's context without the dots of what was left out: the ranges are cut in two at those.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct

from dynamo._core import record as records

_RANGE = Struct(">QQQ")
SIBLING_BYTES, TOMBSTONE_BYTES = 35, 28  # at most, of one in an answer, beside its value
ANSWER_BYTES = 256  # of all else beside the token
ELEMENTS_MAX = 65_536  # of one array that a client need accept
RANGE_BYTES = 24

Siblings = tuple[tuple[bytes, int, int, int], ...]
Tombstones = tuple[tuple[int, int, int], ...]


def shown(record: bytes, bytes_max: int) -> tuple[Siblings, Tombstones, int, bytes, int]:
    """(siblings, tombstones, newest time, the context that covers these, how many were left out) of a record; all of it where that fits into
    `bytes_max`, and one sibling in any case."""
    siblings, tombstones, time = records.visible(record)
    context = records.context(record) if record else b""
    if len(record) + (SIBLING_BYTES + TOMBSTONE_BYTES) * (len(siblings) + len(tombstones)) <= bytes_max and len(siblings) + len(tombstones) <= ELEMENTS_MAX:
        return siblings, tombstones, time, context, 0
    left = bytes_max - ANSWER_BYTES - len(context)
    live, left = _fitting((len(sibling[0]) + SIBLING_BYTES for sibling in siblings), left)
    dead, left = _fitting((TOMBSTONE_BYTES for _ in tombstones), left if live or not siblings else 0)  # none beside a sibling that is larger than there is room
    live = max(live, min(1, len(siblings)))
    dead = max(dead, 1 if not siblings else 0)
    if live == len(siblings) and dead == len(tombstones):
        return siblings, tombstones, time, context, 0
    left_out = {sibling[1:3] for sibling in siblings[live:]} | {tombstone[:2] for tombstone in tombstones[dead:]}
    # Two versions of one operation are shown once: what stands for both stays, or goes, with the one that is shown.
    seen = {sibling[1:3] for sibling in siblings} | {tombstone[:2] for tombstone in tombstones}
    left_out |= {version[:2] for version in records.versions(record) if version[:2] not in seen}
    return siblings[:live], tombstones[:dead], time, without(context, left_out), len(left_out)


def _fitting(sizes: Iterable[int], left: int) -> tuple[int, int]:
    """(how many of these, from the first on, fit into `left` bytes; what is left then)."""
    count = 0
    for size in sizes:
        if size > left or count == ELEMENTS_MAX:
            break
        left -= size
        count += 1
    return count, left


def without(context: bytes, dots: set[tuple[int, int]]) -> bytes:
    """The context without these dots of it."""
    by_actor: dict[int, list[int]] = {}
    for actor, counter in dots:
        by_actor.setdefault(actor, []).append(counter)
    parts = []
    for actor, first, last in _RANGE.iter_unpack(context):
        for counter in sorted(by_actor.get(actor, ())):
            if first <= counter <= last:
                if first < counter:
                    parts.append(_RANGE.pack(actor, first, counter - 1))
                first = counter + 1
        if first <= last:
            parts.append(_RANGE.pack(actor, first, last))
    return b"".join(parts)
