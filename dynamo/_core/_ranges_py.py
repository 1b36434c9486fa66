"""Contexts: sets of dots (actor, counter) as sorted ranges, packed to bytes. Part of `_record_py.py`.

A range is three u64, big-endian: actor, first, last. It means: every dot this actor minted for this key with a counter
from first to last. Ranges are canonical when they are sorted by (actor, first), disjoint and coalesced (no two could be
one), with actor > 0 and 1 <= first <= last. Then equal sets <=> equal bytes, and a range that a set covers lies within
one range of it. The compiled twin of the inner functions is `_ranges.pxd`.
"""

from __future__ import annotations

from bisect import bisect_right
from struct import Struct

from dynamo.errors import InvalidContext

RANGE = Struct(">QQQ")
U64_MAX = (1 << 64) - 1

Range = tuple[int, int, int]


def check_u64(*numbers: int) -> None:
    """Raises ValueError unless all numbers are in u64."""
    for number in numbers:
        if not 0 <= number <= U64_MAX:
            raise ValueError(f"{number} is not an unsigned 64-bit integer")


def check_range(actor: int, first: int, last: int) -> None:
    """Raises ValueError unless the three can be a range: actor > 0, 1 <= first <= last."""
    check_u64(actor, first, last)
    if not (actor and 1 <= first <= last):
        raise ValueError(f"actor {actor}, counters {first} to {last} are no range")


def is_canonical(ranges: list[Range]) -> bool:
    """Sorted, disjoint and coalesced, without actor 0 or counter 0."""
    actor_before = last_before = 0
    for actor, first, last in ranges:
        if not (actor and 1 <= first <= last):
            return False
        if actor < actor_before or (actor == actor_before and first - 1 <= last_before):
            return False
        actor_before, last_before = actor, last
    return True


def open_context(context: bytes) -> list[Range]:
    """The ranges of a context. Raises InvalidContext unless it is canonical."""
    if len(context) % RANGE.size:
        raise InvalidContext(f"a context does not have {len(context)} bytes")
    ranges = list(RANGE.iter_unpack(context))
    if not is_canonical(ranges):
        raise InvalidContext("the ranges of a context are not canonical")
    return ranges


def contains(ranges: list[Range], actor: int, counter: int) -> bool:
    """Whether the dot is in canonical ranges."""
    at = bisect_right(ranges, (actor, counter, U64_MAX)) - 1
    return at >= 0 and ranges[at][0] == actor and counter <= ranges[at][2]


def covers(ranges: list[Range], others: list[Range]) -> bool:
    """Whether canonical `ranges` contain every dot of `others`."""
    for actor, first, last in others:
        at = bisect_right(ranges, (actor, first, U64_MAX)) - 1
        if at < 0 or ranges[at][0] != actor or ranges[at][2] < last:
            return False
    return True


def union(ranges: list[Range], others: list[Range]) -> list[Range]:
    """The canonical ranges of all dots in either."""
    united: list[Range] = []
    for actor, first, last in sorted(ranges + others):
        if united and united[-1][0] == actor and first - 1 <= united[-1][2]:
            united[-1] = (actor, united[-1][1], max(united[-1][2], last))
        else:
            united.append((actor, first, last))
    return united


def pack(ranges: list[Range]) -> bytes:
    """Ranges as bytes, 24 each."""
    return b"".join([RANGE.pack(*entry) for entry in ranges])


def context_verify(context: bytes) -> None:
    """Raises InvalidContext unless the context is canonical."""
    open_context(context)


def context_union(a: bytes, b: bytes) -> bytes:
    """The context of everything in either."""
    return pack(union(open_context(a), open_context(b)))


def context_add(context: bytes, actor: int, first: int, last: int) -> bytes:
    """The context with the dots (actor, first) to (actor, last) added."""
    check_range(actor, first, last)
    return pack(union(open_context(context), [(actor, first, last)]))


def context_contains(context: bytes, actor: int, counter: int) -> bool:
    """Whether the dot is in the context."""
    check_u64(actor, counter)
    return contains(open_context(context), actor, counter)


def context_covers(a: bytes, b: bytes) -> bool:
    """Whether every dot of `b` is in `a`."""
    return covers(open_context(a), open_context(b))


def context_highest(context: bytes, actor: int) -> int:
    """The highest counter of the actor in the context; 0 if there is none."""
    check_u64(actor)
    return max((last for owner, _, last in open_context(context) if owner == actor), default=0)


def context_keep(context: bytes, actors: tuple[int, ...]) -> bytes:
    """The ranges of these actors."""
    check_u64(*actors)
    return pack([entry for entry in open_context(context) if entry[0] in actors])


def context_gap(have: bytes, want: bytes, actor: int, since: int) -> bool:
    """Whether `want` holds a counter of `actor` that is at least `since` and not in `have`."""
    check_u64(actor, since)
    ours = open_context(have)
    wanted = [(first, last) for owner, first, last in open_context(want) if owner == actor and last >= since]
    return not covers(ours, [(actor, max(first, since), last) for first, last in wanted])
