# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Where keys lie and who owns them: the compiled twin of `_ring_py.py`, which has the rules, the reasons and the words.

What grows with the members alone (their order, streams, zones and caps) is taken from there as it is; compiled is what
grows with members times partitions, or with keys. Owners are found without sorting: one pass over the members keeps the
best so far in order, and all but the first few members of a pass fail its one comparison.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.long cimport PyLong_AsUnsignedLongLongMask
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport qsort
from libc.string cimport memcpy

from dynamo._core._xxh3 cimport XXH3_SHORT_BYTES, xxh3_64_short

from xxhash import xxh3_64_intdigest

from dynamo._core import _ring_py
from dynamo._core._ring_py import load_caps, member_order, streams, zone_numbers

cdef extern from *:
    """
    #define RING_GOLDEN UINT64_C(0x9E3779B97F4A7C15)
    #define RING_MIX1 UINT64_C(0xBF58476D1CE4E5B9)
    #define RING_MIX2 UINT64_C(0x94D049BB133111EB)

    /* Of a number that is not 0. */
    static inline int ring_leading_zeros(uint64_t x) {
    #if defined(__GNUC__) || defined(__clang__)
        return __builtin_clzll(x);
    #else
        int zeros = 0;
        while (!(x >> 63)) {
            x <<= 1;
            zeros++;
        }
        return zeros;
    #endif
    }
    """
    const uint64_t RING_GOLDEN, RING_MIX1, RING_MIX2
    int ring_leading_zeros(uint64_t x) noexcept nogil


cdef enum:
    LOG_BITS = 27
    FRACTION_BITS = 28

cdef uint64_t LOG_CLIP = 0xFFFFFFFF
cdef uint64_t FRACTION_MASK = (1 << FRACTION_BITS) - 1
cdef uint64_t[257] LOG2
cdef int entry_at
for entry_at in range(257):
    LOG2[entry_at] = _ring_py.LOG2_TABLE[entry_at]
assert _ring_py.LOG_BITS == LOG_BITS

ctypedef struct Member:
    uint64_t key  # where its stream of numbers starts
    uint64_t weight
    uint64_t cost  # of this member for the partition at hand
    int64_t room  # partitions it may still own
    Py_ssize_t zone

ctypedef struct Rank:
    uint64_t cost
    Py_ssize_t member


cdef inline uint64_t cost_of(const Member* member, uint64_t offset) noexcept nogil:
    cdef uint64_t x = member.key + offset, low, between, log
    cdef int zeros, i
    x = (x ^ (x >> 30)) * RING_MIX1
    x = (x ^ (x >> 27)) * RING_MIX2
    x = (x ^ (x >> 31)) | 1
    zeros = ring_leading_zeros(x)
    x <<= zeros
    i = (x >> 55) & 255
    low = LOG2[i]
    between = ((LOG2[i + 1] - low) * ((x >> LOG_BITS) & FRACTION_MASK)) >> FRACTION_BITS
    log = (<uint64_t> (zeros + 1) << LOG_BITS) - low - between
    return (log if log < LOG_CLIP else LOG_CLIP) * member.weight


cdef Member* members_of(object members, object order, object seed) except NULL:
    # Keys and weights of the members in this order; their zones and room too. To be freed.
    cdef Py_ssize_t i, count = len(order)
    cdef Member* all
    keys, weights = streams([members[at] for at in order], seed)
    zones = zone_numbers([members[at][2] for at in order])
    all = <Member*> PyMem_Malloc((count + 1) * sizeof(Member))
    if all == NULL:
        raise MemoryError
    for i in range(count):
        all[i].key, all[i].weight, all[i].zone, all[i].room, all[i].cost = keys[i], weights[i], zones[i], 0, 0
    return all


# --- positions --------------------------------------------------------------------------------------------------------


cdef struct Scratch:
    # Where the text that is hashed for a key is put together: bucket, zero byte, key.
    uint8_t[XXH3_SHORT_BYTES] text
    Py_ssize_t head  # size of the bucket and its zero byte, which lie there if they fit
    uint64_t seed


cdef inline int begin(Scratch* scratch, bytes bucket, object seed) except -1:
    scratch.seed = PyLong_AsUnsignedLongLongMask(seed)
    scratch.head = PyBytes_GET_SIZE(bucket) + 1
    if scratch.head <= XXH3_SHORT_BYTES:
        memcpy(scratch.text, PyBytes_AS_STRING(bucket), scratch.head - 1)
        scratch.text[scratch.head - 1] = 0
    return 0


cdef inline uint64_t hash_of(Scratch* scratch, bytes bucket, bytes key, object seed) except? 0:
    cdef Py_ssize_t size
    if key is None:
        raise TypeError("a key is bytes, not None")
    size = PyBytes_GET_SIZE(key)
    if size <= XXH3_SHORT_BYTES - scratch.head:
        memcpy(scratch.text + scratch.head, PyBytes_AS_STRING(key), size)
        return xxh3_64_short(scratch.text, scratch.head + size, scratch.seed)
    return xxh3_64_intdigest(bucket + b"\0" + key, seed)


def position(bytes bucket not None, bytes key not None, seed):
    """The place of a key on the ring: u64."""
    cdef Scratch scratch
    begin(&scratch, bucket, seed)
    return hash_of(&scratch, bucket, key, seed)


def partition_of(position, partitions):
    """The partition a position lies in: its top bits. `partitions` is a power of two."""
    return position >> (65 - partitions.bit_length())


def positions(bytes bucket not None, keys, seed):
    """The places of many keys of one bucket."""
    cdef Scratch scratch
    cdef list found = []
    begin(&scratch, bucket, seed)
    for key in keys:
        found.append(hash_of(&scratch, bucket, key, seed))
    return found


def partitions_of(bytes bucket not None, keys, seed, partitions):
    """The partitions that many keys of one bucket lie in."""
    cdef Scratch scratch
    cdef list found = []
    cdef uint64_t hash
    cdef int shift = 65 - partitions.bit_length()
    if shift < 0:
        raise ValueError(f"{partitions} partitions of 2^64 positions")
    begin(&scratch, bucket, seed)
    for key in keys:
        hash = hash_of(&scratch, bucket, key, seed)
        found.append(hash >> shift if shift < 64 else 0)
    return found


# --- owners -----------------------------------------------------------------------------------------------------------


def assign(members, Py_ssize_t partitions, n, seed):
    """The owners of every partition: min(n, members) distinct indexes into `members`, best score first."""
    cdef list order = member_order(members)
    cdef list owners = []
    cdef Py_ssize_t count = len(order), replicas, partition, i, roomy
    cdef int64_t slack, left
    cdef Member* all = NULL
    cdef Py_ssize_t* chosen = NULL
    cdef tuple row
    n = min(n, count)
    if n < 1:
        return [()] * partitions
    replicas = n
    all = members_of(members, order, seed)
    try:
        caps = load_caps([members[at][1] for at in order], partitions, n)
        slack = sum(caps) - partitions * n
        for i in range(count):
            all[i].room = caps[i]
        chosen = <Py_ssize_t*> PyMem_Malloc(replicas * sizeof(Py_ssize_t))
        if chosen == NULL:
            raise MemoryError
        for partition in range(partitions):
            left = partitions - partition
            roomy = 0
            for i in range(count):
                all[i].cost = cost_of(&all[i], <uint64_t> (partition + 1) * RING_GOLDEN)
                roomy += all[i].room >= left
            slack -= roomy
            i = choose(all, count, chosen, -slack, replicas, left)
            assert i == replicas, "caps hold n replicas of every partition"
            row = PyTuple_New(replicas)
            for i in range(replicas):
                slack += all[chosen[i]].room >= left
                all[chosen[i]].room -= 1
                index = order[chosen[i]]
                Py_INCREF(index)
                PyTuple_SET_ITEM(row, i, index)
            assert slack >= 0, "caps hold n replicas of every partition"
            owners.append(row)
    finally:
        PyMem_Free(chosen)
        PyMem_Free(all)
    return owners


cdef Py_ssize_t choose(
    Member* all, Py_ssize_t count, Py_ssize_t* chosen, int64_t forced, Py_ssize_t n, int64_t left
) noexcept nogil:
    # The n best members with room, best first, of which `forced` or more have room for all of `left`; distinct zones
    # while they last. Returns how many there are.
    cdef Py_ssize_t size = 0, i, j, member
    if forced > 0:
        size = fill(all, count, chosen, size, forced, left, True)
        size = fill(all, count, chosen, size, forced, left, False)
    size = fill(all, count, chosen, size, n, 1, True)
    size = fill(all, count, chosen, size, n, 1, False)
    for i in range(1, size):
        member = chosen[i]
        j = i
        while j > 0 and is_better(all, member, chosen[j - 1]):
            chosen[j] = chosen[j - 1]
            j -= 1
        chosen[j] = member
    return size


cdef inline bint is_better(const Member* all, Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return all[a].cost < all[b].cost or (all[a].cost == all[b].cost and a < b)


cdef Py_ssize_t fill(
    const Member* all, Py_ssize_t count, Py_ssize_t* chosen, Py_ssize_t fixed, Py_ssize_t full, int64_t least,
    bint distinct,
) noexcept nogil:
    # Add to the `fixed` members chosen the best others with `least` room, in order, until `full` are. `distinct`: only
    # one of each zone. Returns how many are chosen then.
    cdef Py_ssize_t size = fixed, member, at
    if fixed >= full:
        return fixed
    for member in range(count):
        # Members come by their number: one that is equal to the last chosen is behind it.
        if all[member].room < least or (size == full and all[member].cost >= all[chosen[size - 1]].cost):
            continue
        at = 0
        while at < size and chosen[at] != member and not (distinct and all[chosen[at]].zone == all[member].zone):
            at += 1
        if at < size:
            if at < fixed or all[member].cost >= all[chosen[at]].cost:
                continue  # it is chosen, or there is a better one in its zone
        elif size < full:
            size += 1
        else:
            at = size - 1
        # The one at `at` (or nothing, or the worst) makes room.
        while at > fixed and all[member].cost < all[chosen[at - 1]].cost:
            chosen[at] = chosen[at - 1]
            at -= 1
        chosen[at] = member
    return size


def preference(members, partition, seed):
    """All members, as indexes, by their score for one partition, whatever their load and zone: the fallback order."""
    cdef list order = member_order(members)
    cdef Py_ssize_t i, count = len(order)
    cdef uint64_t offset = (PyLong_AsUnsignedLongLongMask(partition) + 1) * RING_GOLDEN
    cdef Member* all = members_of(members, order, seed)
    cdef Rank* ranks = <Rank*> PyMem_Malloc((count + 1) * sizeof(Rank))
    try:
        if ranks == NULL:
            raise MemoryError
        for i in range(count):
            ranks[i].cost, ranks[i].member = cost_of(&all[i], offset), i
        qsort(ranks, count, sizeof(Rank), compare_ranks)
        return [order[ranks[i].member] for i in range(count)]
    finally:
        PyMem_Free(ranks)
        PyMem_Free(all)


cdef int compare_ranks(const void* a, const void* b) noexcept nogil:
    cdef const Rank* x = <const Rank*> a
    cdef const Rank* y = <const Rank*> b
    if x.cost != y.cost:
        return -1 if x.cost < y.cost else 1
    return -1 if x.member < y.member else x.member > y.member
