"""Where keys lie and who owns them, in pure Python; a compiled twin `_ring_c` returns the same from every input.

    position   64-bit hash of a key; its top bits are the partition
    score      every pair of member and partition has one; lower is better (weighted rendezvous hashing)
    assign     the n best members of each partition with nobody above 105 % of its fair share, distinct zones first

Integer arithmetic of at most 64 bits throughout, because two machines whose `log()` differs in the last bit would split
the ring for ever. Nothing depends on the order of the members, on history or on liveness. Paper: 4.2, 6.2 (strategy 3).

Score. Weighted rendezvous hashing (Thaler and Ravishankar 1998, with weights by logarithm) takes the members with the
least `-log(u) / capacity`, u being uniform in (0, 1) by member and partition: the chance to be first is proportional to
the capacity, and a member that joins takes partitions over while none moves between the others. Here u is output number
`partition` of a splitmix64 stream that starts at xxh3_64(node id, seed). `-log2 u` is in units of 2^-27, clipped below
2^32, from a table of 256 intervals made by squaring integers and linear in between: it is off by less than 3e-6, and at
u near 1, where the winners are, by less than 0.2 % of itself. It is multiplied by 2^32 // capacity, which fits 64 bits.

Bounded load (Mirrokni, Thorup and Zadimoghaddam 2018). Partitions choose in turn, 0 first, among the members with room.
A change of one member moves little, for a slot that opens or closes touches only the few partitions that wanted it.
Deferred acceptance, where a full member keeps the partitions it scores best, moved as much (1.02, 1.08, 1.30 times the
minimum against 1.02, 1.08, 1.32 for 5, 20 and 100 members), could get stuck at the end, and needs twice the code.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import xxhash

RingMember = tuple[bytes, int, bytes]  # node id, capacity in thousandths (1..2^32), zone (b"" = none)

LOAD_PERCENT = 105  # the most a member may own, in per cent of its fair share
_LARGE_SHARE = 100  # partitions
LOG_BITS = 27  # fractional bits of log2
_TABLE_BITS = 8
_FRACTION_BITS = 28  # bits of the mantissa used between two entries of the table
_MASK = (1 << 64) - 1
_FRACTION_MASK = (1 << _FRACTION_BITS) - 1
_LOG_CLIP = (1 << 32) - 1
_GOLDEN, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # splitmix64


def _log2_table() -> tuple[int, ...]:
    """log2(1 + i/256) in units of 2^-27, rounded down, for i = 0..256. Each squaring yields one bit (96 kept)."""
    table = []
    for i in range(1 << _TABLE_BITS):
        value = ((1 << _TABLE_BITS) + i) << (96 - _TABLE_BITS)
        log = 0
        for _ in range(LOG_BITS):
            value = value * value >> 96
            log <<= 1
            if value >> 97:
                value >>= 1
                log |= 1
        table.append(log)
    return (*table, 1 << LOG_BITS)


LOG2_TABLE = _log2_table()


def position(bucket: bytes, key: bytes, seed: int) -> int:
    """The place of a key on the ring: u64."""
    return xxhash.xxh3_64_intdigest(bucket + b"\0" + key, seed)


def partition_of(position: int, partitions: int) -> int:
    """The partition a position lies in: its top bits. `partitions` is a power of two."""
    return position >> (65 - partitions.bit_length())


def positions(bucket: bytes, keys: Iterable[bytes], seed: int) -> list[int]:
    """The places of many keys of one bucket."""
    head = bucket + b"\0"
    return [xxhash.xxh3_64_intdigest(head + key, seed) for key in keys]


def partitions_of(bucket: bytes, keys: Iterable[bytes], seed: int, partitions: int) -> list[int]:
    """The partitions that many keys of one bucket lie in."""
    head, shift = bucket + b"\0", 65 - partitions.bit_length()
    return [xxhash.xxh3_64_intdigest(head + key, seed) >> shift for key in keys]


def assign(members: Sequence[RingMember], partitions: int, n: int, seed: int) -> list[tuple[int, ...]]:
    """The owners of every partition: min(n, members) distinct indexes into `members`, best score first.

    No member owns more than `load_caps` grants. Always succeeds. With `left` partitions to go and `room` below the cap,
    the rest can be placed exactly if slack = sum(min(room, left)) - left * n >= 0. It is at first, as the fair shares
    sum to partitions * n. A partition lowers it by one for each member it passes over that has room for all of `left`
    (a roomy one), and by nothing else. So it must choose at least (roomy - slack) roomy members, which are never more
    than n: slack >= left * (roomy - n). Raises ValueError for a node id given twice or a capacity out of range.
    """
    order = member_order(members)
    n = min(n, len(members))
    if n < 1:
        return [()] * partitions
    keys, weights = streams([members[i] for i in order], seed)
    zones = zone_numbers([members[i][2] for i in order])
    room = load_caps([members[i][1] for i in order], partitions, n)
    slack = sum(room) - partitions * n
    owners = []
    for partition in range(partitions):
        left = partitions - partition
        roomy = [member for member, free in enumerate(room) if free >= left]
        costs = _costs(partition, keys, weights)
        chosen = _choose(costs, zones, room, roomy, len(roomy) - slack, n)
        slack -= len(roomy) - sum(room[member] >= left for member in chosen)
        assert slack >= 0 and len(chosen) == n, "caps hold n replicas of every partition"
        for member in chosen:
            room[member] -= 1
        owners.append(tuple([order[member] for member in chosen]))
    return owners


def preference(members: Sequence[RingMember], partition: int, seed: int) -> list[int]:
    """All members, as indexes, by their score for one partition, whatever their load and zone: the fallback order."""
    order = member_order(members)
    keys, weights = streams([members[i] for i in order], seed)
    costs = _costs(partition, keys, weights)
    return [order[member] for member in sorted(range(len(order)), key=costs.__getitem__)]


def load_caps(capacities: Sequence[int], partitions: int, n: int) -> list[int]:
    """The most partitions each member may own: 105 % of its fair share, rounded up below 100 partitions; never more than there are.

    Fair share = partitions * n * capacity / sum of capacities, for n <= members. A member whose share would exceed
    `partitions` gets `partitions`, and what it leaves is shared among the others by the same rule: without that the
    caps of a cluster with one giant could not hold n replicas.
    """
    caps = [0] * len(capacities)
    rest = list(range(len(capacities)))
    while rest:
        total = sum(capacities[i] for i in rest)
        giants = [i for i in rest if n * capacities[i] >= total]
        if not giants:
            for i in rest:
                share = partitions * n * capacities[i]  # of `total`
                # Of a small share the fraction of a partition is the room that keeps zones distinct; of a large one it would break the promise.
                round_up = 0 if share >= _LARGE_SHARE * total else 100 * total - 1
                caps[i] = min(partitions, (LOAD_PERCENT * share + round_up) // (100 * total))
            break
        for i in giants:
            caps[i] = partitions
        rest = [i for i in rest if caps[i] == 0]
        n -= len(giants)
    return caps


def member_order(members: Sequence[RingMember]) -> list[int]:
    """Indexes of the members by node id, which makes results independent of the order given. ValueError for twins."""
    order = sorted(range(len(members)), key=lambda i: members[i][0])
    for a, b in pairwise(order):
        if members[a][0] == members[b][0]:
            raise ValueError(f"node id {members[a][0].hex()} is given twice")
    return order


def streams(members: Sequence[RingMember], seed: int) -> tuple[list[int], list[int]]:
    """Per member: the start of its splitmix64 stream, and 2^32 // capacity. ValueError for a capacity out of range."""
    for _, capacity, _ in members:
        if not 1 <= capacity <= 1 << 32:
            raise ValueError(f"capacity {capacity} is not within 1..2^32")
    keys = [xxhash.xxh3_64_intdigest(node_id, seed) for node_id, _, _ in members]
    return keys, [(1 << 32) // capacity for _, capacity, _ in members]


def zone_numbers(zones: Sequence[bytes]) -> list[int]:
    """Zones as numbers below the count of members; a member without a zone is one of its own."""
    first: dict[bytes, int] = {}
    return [first.setdefault(zone, i) if zone else i for i, zone in enumerate(zones)]


def _costs(partition: int, keys: Sequence[int], weights: Sequence[int]) -> list[int]:
    """The score (u64, lower is better) of every member for one partition."""
    table = LOG2_TABLE
    offset = (partition + 1) * _GOLDEN
    costs = []
    for key, weight in zip(keys, weights, strict=True):
        x = (key + offset) & _MASK
        x = ((x ^ (x >> 30)) * _MIX1) & _MASK
        x = ((x ^ (x >> 27)) * _MIX2) & _MASK
        x = (x ^ (x >> 31)) | 1  # u = x / 2^64; odd, so never zero
        length = x.bit_length()
        x <<= 64 - length
        i = (x >> 55) & 255
        low = table[i]
        between = ((table[i + 1] - low) * ((x >> LOG_BITS) & _FRACTION_MASK)) >> _FRACTION_BITS
        log = ((65 - length) << LOG_BITS) - low - between
        costs.append((log if log < _LOG_CLIP else _LOG_CLIP) * weight)
    return costs


def _choose(costs: Sequence[int], zones: Sequence[int], room: Sequence[int], roomy: Sequence[int], forced: int, n: int) -> list[int]:
    """The n best members with room, best first, of which `forced` or more are roomy; distinct zones while they last."""
    free = sorted([member for member, left in enumerate(room) if left], key=costs.__getitem__)
    chosen: list[int] = []
    zones_chosen: set[int] = set()
    passes = [(free, n, True), (free, n, False)]
    if forced > 0:
        first = sorted(roomy, key=costs.__getitem__)
        passes = [(first, forced, True), (first, forced, False), *passes]
    for pool, count, distinct in passes:
        for member in pool:
            if len(chosen) == count:
                break
            if member not in chosen and not (distinct and zones[member] in zones_chosen):
                zones_chosen.add(zones[member])
                chosen.append(member)
    chosen.sort(key=lambda member: (costs[member], member))
    return chosen
