# Records, read in place (the layout: `_record_py.py`). `view_of` proves that every count and length adds up to the size
# of the bytes and that ranges and versions are canonical, before anything else reads through a pointer. A walk goes
# over the versions of two such views at once and says which stay in a merge; one walk counts the output, then writes it.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp

from dynamo._core._ranges cimport DOT_BYTES, RANGE_BYTES, Ranges, contains, is_canonical, load32, load64


cdef enum:
    FORMAT_1 = 1
    KIND_SIBLINGS = 1
    KIND_LAST_WRITE_WINS = 2
    FLAG_TOMBSTONE = 1
    HEAD_BYTES = 12
    VERSION_BYTES = 61
    CHECKSUM_BYTES = 8
    # offsets in a version header
    TIME_AT = 16
    OPERATION_AT = 24
    OPERATION_BYTES = 16
    EXPIRY_AT = 40
    VALUE_HASH_AT = 48
    FLAGS_AT = 56
    LENGTH_AT = 57
    # what `step` says of a version
    IN_A = 1
    IN_B = 2
    KEPT = 4


cdef struct View:
    # A record that `view_of` has proved; all zero for the absent one.
    int kind
    Ranges ranges
    const uint8_t* headers
    const uint8_t* values
    Py_ssize_t count


cdef struct Walk:
    # A walk over the versions of two views in the order of their headers, each different header once.
    const View* a
    const View* b
    Py_ssize_t a_index, b_index
    const uint8_t* a_value
    const uint8_t* b_value
    Py_ssize_t a_range, b_range  # cursors into the ranges of each
    bint keep_all
    const uint8_t* header  # of the version last met
    const uint8_t* value


cdef struct Tally:
    # What a walk keeps.
    Py_ssize_t count, from_a, from_b, value_bytes


cdef inline bint view_of(const uint8_t* data, Py_ssize_t size, View* view) noexcept nogil:
    # Fill in the view; False unless the bytes are canonical but for their hashes.
    cdef Py_ssize_t end = size - CHECKSUM_BYTES, i, cursor = 0
    cdef uint64_t values_at, value_bytes = 0, actor, counter
    cdef const uint8_t* p
    if end < HEAD_BYTES or data[0] != FORMAT_1 or data[2] != 0 or data[3] != 0:
        return False
    view.kind = data[1]
    values_at = HEAD_BYTES + <uint64_t> load32(data + 4) * RANGE_BYTES + <uint64_t> load32(data + 8) * VERSION_BYTES
    if values_at > <uint64_t> end:
        return False
    view.ranges.count, view.count = load32(data + 4), load32(data + 8)
    if view.count == 0:
        return False
    if view.kind == KIND_LAST_WRITE_WINS:
        if view.count != 1 or view.ranges.count != 0:
            return False
    elif view.kind != KIND_SIBLINGS:
        return False
    view.ranges.at = data + HEAD_BYTES
    view.headers = view.ranges.at + view.ranges.count * RANGE_BYTES
    view.values = data + values_at
    if not is_canonical(view.ranges):
        return False
    p = view.headers
    for i in range(view.count):
        actor, counter = load64(p), load64(p + 8)
        if actor == 0 or counter == 0 or load64(p + EXPIRY_AT) != 0 or p[FLAGS_AT] > FLAG_TOMBSTONE:
            return False
        if p[FLAGS_AT] != 0 and load32(p + LENGTH_AT) != 0:
            return False
        if i > 0 and memcmp(p - VERSION_BYTES, p, VERSION_BYTES) >= 0:
            return False
        if view.kind == KIND_SIBLINGS and not contains(view.ranges, &cursor, actor, counter):
            return False
        value_bytes += load32(p + LENGTH_AT)
        p += VERSION_BYTES
    return values_at + value_bytes == <uint64_t> end


cdef inline void clear(View* view, int kind) noexcept nogil:
    view.kind = kind
    view.ranges.at = NULL
    view.ranges.count = 0
    view.headers = NULL
    view.values = NULL
    view.count = 0


cdef inline int compare_last_write_wins(const uint8_t* a, const uint8_t* b) noexcept nogil:
    # By (time, actor, counter, header); < 0, 0 or > 0.
    cdef int order = memcmp(a + TIME_AT, b + TIME_AT, 8)
    return order if order != 0 else memcmp(a, b, VERSION_BYTES)


cdef inline void start(Walk* walk, const View* a, const View* b, bint keep_all) noexcept nogil:
    walk.a, walk.b = a, b
    walk.a_index = walk.b_index = 0
    walk.a_value, walk.b_value = a.values, b.values
    walk.a_range = walk.b_range = 0
    walk.keep_all = keep_all
    walk.header = walk.value = NULL


cdef inline bint has_dot(const View* view, Py_ssize_t index, const uint8_t* header) noexcept nogil:
    # Whether the view has a version of the same dot, given where this header would stand: equal dots are neighbours.
    if index < view.count and memcmp(view.headers + index * VERSION_BYTES, header, DOT_BYTES) == 0:
        return True
    return index > 0 and memcmp(view.headers + (index - 1) * VERSION_BYTES, header, DOT_BYTES) == 0


cdef inline int step(Walk* walk) noexcept nogil:
    # Go to the next version: IN_A, IN_B or both, and KEPT if it stays in a merge. 0 at the end.
    cdef int order
    cdef bint kept
    if walk.a_index == walk.a.count and walk.b_index == walk.b.count:
        return 0
    if walk.b_index == walk.b.count:
        order = -1
    elif walk.a_index == walk.a.count:
        order = 1
    else:
        order = memcmp(
            walk.a.headers + walk.a_index * VERSION_BYTES, walk.b.headers + walk.b_index * VERSION_BYTES, VERSION_BYTES
        )
    if order <= 0:
        walk.header, walk.value = walk.a.headers + walk.a_index * VERSION_BYTES, walk.a_value
        walk.a_index += 1
        walk.a_value += load32(walk.header + LENGTH_AT)
    else:
        walk.header, walk.value = walk.b.headers + walk.b_index * VERSION_BYTES, walk.b_value
    if order >= 0:
        walk.b_index += 1
        walk.b_value += load32(walk.header + LENGTH_AT)
    if order == 0:
        return IN_A | IN_B | KEPT
    if order < 0:
        kept = walk.keep_all or has_dot(walk.b, walk.b_index, walk.header) or not contains(
            walk.b.ranges, &walk.b_range, load64(walk.header), load64(walk.header + 8)
        )
        return IN_A | KEPT if kept else IN_A
    kept = walk.keep_all or has_dot(walk.a, walk.a_index, walk.header) or not contains(
        walk.a.ranges, &walk.a_range, load64(walk.header), load64(walk.header + 8)
    )
    return IN_B | KEPT if kept else IN_B


cdef inline Tally run(Walk* walk, const View* a, const View* b, bint keep_all) noexcept nogil:
    # Walk to the end and count what is kept; leaves the walk at its beginning.
    cdef Tally kept
    cdef int met
    kept.count = kept.from_a = kept.from_b = kept.value_bytes = 0
    start(walk, a, b, keep_all)
    met = step(walk)
    while met:
        if met & KEPT:
            kept.count += 1
            kept.from_a += (met & IN_A) != 0
            kept.from_b += (met & IN_B) != 0
            kept.value_bytes += load32(walk.header + LENGTH_AT)
        met = step(walk)
    start(walk, a, b, keep_all)
    return kept


cdef inline Tally tally(Walk* walk, const View* a, const View* b) noexcept nogil:
    # What stays of the versions of both, and the walk over it. Never nothing: where causality is broken, all stays.
    cdef Tally kept = run(walk, a, b, False)
    return kept if kept.count else run(walk, a, b, True)
