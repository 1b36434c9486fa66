"""Records and contexts as bytes: put, merge, compare and read them. The pure twin of `_record_c.pyx`.

A record is the sibling versions of one key plus one context, the dots (actor, counter) in its past (Dynamo, section
4.4, but with ranges where a vector clock has "the highest counter seen"). Layout, all integers big-endian:

    0   u8 format = 1 | u8 kind | u8 flags = 0 (must understand) | u8 reserved = 0 | u32 ranges | u32 versions
    12  ranges, 24 bytes each: u64 actor, first, last; canonical, see `_ranges_py.py`
        versions, 61 bytes each: u64 actor, counter, time | 16 bytes operation | u64 expiry = 0 | u64 value hash
            | u8 flags | u32 length of the value
        values in the order of the versions | u64 xxh3-64 of everything before

Versions: at least one, sorted as bytes, unique; actor and counter > 0; the dot is in a range; a tombstone has no value.
A last-write-wins record has no ranges and exactly one version. So there is one byte form: equal contexts and versions
<=> equal bytes. Every function checks all of this form except hashes before it uses a record, so that neither twin acts
on garbage; `check` adds the checksum and `verify` the hash of each value. `b""` is the absent record and the empty
context. Integers are u64.

Errors: ValueError for arguments that are neither record nor context, then CorruptRecord, then InvalidContext.
"""

from __future__ import annotations

from bisect import bisect_right
from struct import Struct
from typing import NamedTuple

from xxhash import xxh3_64_digest, xxh3_64_intdigest, xxh3_128_digest

from dynamo._core._ranges_py import (
    RANGE,
    U64_MAX,
    Range,
    check_range,
    check_u64,
    contains,
    context_add,
    context_contains,
    context_covers,
    context_gap,
    context_highest,
    context_keep,
    context_union,
    context_verify,
    covers,
    is_canonical,
    open_context,
    pack,
    union,
)
from dynamo.errors import CorruptRecord

__all__ = [
    "AFTER", "BEFORE", "CONCURRENT", "EQUAL", "FORMAT", "LAST_WRITE_WINS", "SIBLINGS", "TOMBSTONE", "Version",
    "check", "compare", "context", "context_add", "context_contains", "context_covers", "context_gap",
    "context_highest", "context_keep", "context_union", "context_verify", "digest", "duplicate_dots", "find_operation", "forget", "merge", "put",
    "put_last_write_wins", "single_value", "token_context", "verify", "version_count", "versions", "visible",
]  # fmt: skip

FORMAT = 1
SIBLINGS, LAST_WRITE_WINS = 1, 2
TOMBSTONE = 1
EQUAL, BEFORE, AFTER, CONCURRENT = 0, 1, 2, 3

Version = tuple[int, int, int, bytes, int, int, bool, bytes]

_HEAD = Struct(">BBBBII")
_VERSION = Struct(">QQQ16sQQBI")
_DOT = Struct(">QQ")
_DOT_BYTES, _CHECKSUM_BYTES = 16, 8
_LENGTH_MAX = (1 << 32) - 1
_NO_DIGEST = bytes(16)


class _Record(NamedTuple):
    kind: int
    ranges: list[Range]
    versions: dict[bytes, bytes]  # header (61 bytes) -> value, in the order of the headers
    values_at: int  # offset of the first value in the record


# --- the form ---------------------------------------------------------------------------------------------------------


def _check_operation(operation: bytes) -> None:
    if len(operation) != 16:
        raise ValueError(f"an operation id has 16 bytes, not {len(operation)}")


def _open(record: bytes) -> _Record:
    """The parts of a record that is not empty. Raises CorruptRecord unless it has the one form; looks at no hash."""
    end = len(record) - _CHECKSUM_BYTES
    if end < _HEAD.size:
        raise CorruptRecord(f"a record of {len(record)} bytes is too short")
    layout, kind, flags, reserved, range_count, count = _HEAD.unpack_from(record)
    if layout != FORMAT or kind not in (SIBLINGS, LAST_WRITE_WINS) or flags or reserved:
        raise CorruptRecord(f"a record of format {layout}, kind {kind}, flags {flags} is not understood")
    headers_at = _HEAD.size + RANGE.size * range_count
    values_at = headers_at + _VERSION.size * count
    if values_at > end:
        raise CorruptRecord(f"{range_count} ranges and {count} versions do not fit into {len(record)} bytes")
    if not count or (kind == LAST_WRITE_WINS and (count != 1 or range_count)):
        raise CorruptRecord(f"a record of kind {kind} does not have {range_count} ranges and {count} versions")
    ranges = list(RANGE.iter_unpack(record[_HEAD.size : headers_at]))
    if not is_canonical(ranges):
        raise CorruptRecord("the ranges of a record are not canonical")
    versions: dict[bytes, bytes] = {}
    before, value_at = b"", values_at
    for at in range(headers_at, values_at, _VERSION.size):
        header = record[at : at + _VERSION.size]
        actor, counter, _, _, expiry, _, version_flags, length = _VERSION.unpack(header)
        if header <= before or not (actor and counter) or expiry:
            raise CorruptRecord("the versions of a record are not canonical")
        if version_flags & ~TOMBSTONE or (version_flags and length):
            raise CorruptRecord(f"a version with flags {version_flags} and {length} bytes is not understood")
        if kind == SIBLINGS and not contains(ranges, actor, counter):
            raise CorruptRecord("a version of a record is not in its context")
        versions[header] = record[value_at : value_at + length]
        before, value_at = header, value_at + length
        if value_at > end:
            break
    if value_at != end:
        raise CorruptRecord("the sizes of a record do not add up")
    return _Record(kind, ranges, versions, values_at)


def _open_kind(record: bytes, kind: int) -> _Record:
    """Like `_open`, with nothing in it for `b""`. Raises CorruptRecord also for a record of another kind."""
    if not record:
        return _Record(kind, [], {}, 0)
    opened = _open(record)
    if opened.kind != kind:
        raise CorruptRecord(f"a record of kind {opened.kind} where kind {kind} belongs")
    return opened


# --- records as values ------------------------------------------------------------------------------------------------


def _build(kind: int, ranges: list[Range], versions: dict[bytes, bytes]) -> bytes:
    headers = sorted(versions)
    values = [versions[header] for header in headers]
    body = b"".join([_HEAD.pack(FORMAT, kind, 0, 0, len(ranges), len(headers)), pack(ranges), *headers, *values])
    return body + xxh3_64_digest(body)


def _new_header(actor: int, counter: int, time: int, operation: bytes, value: bytes, tombstone: bool) -> bytes:
    check_range(actor, counter, counter)
    check_u64(time)
    _check_operation(operation)
    if len(value) > _LENGTH_MAX or (tombstone and value):
        raise ValueError(f"a value of {len(value)} bytes does not fit, or comes with a tombstone")
    flags = TOMBSTONE if tombstone else 0
    return _VERSION.pack(actor, counter, time, operation, 0, xxh3_64_intdigest(value), flags, len(value))


def _survivors(a: _Record, b: _Record) -> set[bytes]:
    """Headers of the versions that stay when two sibling records merge.

    Never none: where each side claims to have replaced all the other has, causality is broken, and all stay.
    """
    a_dots = {header[:_DOT_BYTES] for header in a.versions}
    b_dots = {header[:_DOT_BYTES] for header in b.versions}
    kept = {h for h in a.versions if h[:_DOT_BYTES] in b_dots or not contains(b.ranges, *_DOT.unpack_from(h))}
    kept.update(h for h in b.versions if h[:_DOT_BYTES] in a_dots or not contains(a.ranges, *_DOT.unpack_from(h)))
    return kept or {*a.versions, *b.versions}


def _last_write_wins_rank(header: bytes) -> tuple[bytes, bytes]:
    """Orders versions by (time, actor, counter, rest of the header); a header begins with its dot."""
    return header[16:24], header


# --- records ----------------------------------------------------------------------------------------------------------


def put(
    record: bytes,
    context: bytes,
    actor: int,
    counter: int,
    since: int,
    time: int,
    operation: bytes,
    value: bytes,
    tombstone: bool,
) -> bytes:
    """Write one version under the new dot (actor, counter), in the place of the versions that `context` contains.

    `since` <= `counter` is the first counter this actor minted on this row: the new record claims (actor, since,
    counter). A version that has the new dot already (a breach) stays. A tombstone has the value b"".
    """
    check_range(actor, since, counter)
    header = _new_header(actor, counter, time, operation, value, tombstone)
    opened = _open_kind(record, SIBLINGS)
    seen = open_context(context)
    versions = {header: value}
    for present, old_value in opened.versions.items():
        if present[:_DOT_BYTES] == header[:_DOT_BYTES] or not contains(seen, *_DOT.unpack_from(present)):
            versions[present] = old_value
    return _build(SIBLINGS, union(union(opened.ranges, seen), [(actor, since, counter)]), versions)


def put_last_write_wins(record: bytes, actor: int, counter: int, time: int, operation: bytes, value: bytes, tombstone: bool) -> bytes:
    """The record with the larger version, by (time, actor, counter, header), of the one there and the new one."""
    header = _new_header(actor, counter, time, operation, value, tombstone)
    for present in _open_kind(record, LAST_WRITE_WINS).versions:
        if _last_write_wins_rank(present) >= _last_write_wins_rank(header):
            return record
    return _build(LAST_WRITE_WINS, [], {header: value})


def forget(record: bytes, actors: tuple[int, ...]) -> bytes:
    """The record without the ranges of other actors than these, except those in which one of its versions lies; `record` itself where that is all.

    Only for a store whose versions nobody else has: elsewhere a forgotten version would come back with the next merge.
    """
    check_u64(*actors)
    if not record:
        return record
    opened = _open(record)
    needed = {bisect_right(opened.ranges, (*_DOT.unpack_from(header), U64_MAX)) - 1 for header in opened.versions}
    ranges = [entry for at, entry in enumerate(opened.ranges) if entry[0] in actors or at in needed]
    return record if len(ranges) == len(opened.ranges) else _build(opened.kind, ranges, opened.versions)


def merge(a: bytes, b: bytes) -> bytes:
    """The join of two records: a version stays if the other side has its dot too, or has it not in its context.

    Returns `a` or `b` itself where that is the result. Both versions of one dot (a breach) stay. Raises CorruptRecord
    for different kinds. Checks no hash: what comes from a disk or a peer is checked before it gets here.
    """
    if a == b:
        return a
    if not a or not b:
        _open(a or b)
        return a or b
    x = _open(a)
    y = _open_kind(b, x.kind)
    if x.kind == LAST_WRITE_WINS:
        return a if _last_write_wins_rank(*x.versions) >= _last_write_wins_rank(*y.versions) else b
    kept = _survivors(x, y)
    ranges = union(x.ranges, y.ranges)
    if ranges == x.ranges and kept == x.versions.keys():
        return a
    if ranges == y.ranges and kept == y.versions.keys():
        return b
    versions = {**y.versions, **x.versions}
    return _build(SIBLINGS, ranges, {header: versions[header] for header in kept})


def compare(a: bytes, b: bytes) -> int:
    """EQUAL, BEFORE (merging `a` into `b` changes nothing), AFTER or CONCURRENT.

    Raises CorruptRecord for different kinds.
    """
    if a == b:
        return EQUAL
    if not a or not b:
        _open(a or b)
        return AFTER if a else BEFORE
    x = _open(a)
    y = _open_kind(b, x.kind)
    if x.kind == LAST_WRITE_WINS:
        x_rank, y_rank = _last_write_wins_rank(*x.versions), _last_write_wins_rank(*y.versions)
        return EQUAL if x_rank == y_rank else BEFORE if x_rank < y_rank else AFTER
    kept = _survivors(x, y)
    before = kept == y.versions.keys() and covers(y.ranges, x.ranges)
    after = kept == x.versions.keys() and covers(x.ranges, y.ranges)
    return (EQUAL if after else BEFORE) if before else (AFTER if after else CONCURRENT)


def versions(record: bytes) -> list[Version]:
    """(actor, counter, time, operation, expiry, value hash, tombstone, value) of each version, sorted by dot."""
    found: list[Version] = []
    for header, value in _open(record).versions.items() if record else ():
        actor, counter, time, operation, expiry, value_hash, flags, _ = _VERSION.unpack(header)
        found.append((actor, counter, time, operation, expiry, value_hash, bool(flags & TOMBSTONE), value))
    return found


def visible(record: bytes) -> tuple[tuple[tuple[bytes, int, int, int], ...], tuple[tuple[int, int, int], ...], int]:
    """What a reader is shown, sorted by dot: the live versions as (value, actor, counter, time), the tombstones as (actor, counter, time), and the newest
    time of all. Two versions of one operation, made by coordinators that could not see each other, are shown once."""
    live: list[tuple[bytes, int, int, int]] = []
    tombstones: list[tuple[int, int, int]] = []
    newest = 0
    shown: set[bytes] = set()
    for actor, counter, time, operation, _, _, tombstone, value in versions(record):
        newest = max(newest, time)
        if tombstone:
            tombstones.append((actor, counter, time))
        elif operation not in shown:
            shown.add(operation)
            live.append((value, actor, counter, time))
    return tuple(live), tuple(tombstones), newest


def single_value(record: bytes) -> bytes | None:
    """The value of a record that has one version, and a live one; None for any other."""
    found = versions(record)
    return found[0][7] if len(found) == 1 and not found[0][6] else None


def version_count(record: bytes) -> int:
    """How many versions the record has, tombstones included."""
    return len(_open(record).versions) if record else 0


def context(record: bytes) -> bytes:
    """The record's context, packed. Shown with all its siblings it is the token of a read."""
    return pack(_open(record).ranges) if record else b""


def find_operation(record: bytes, operation: bytes) -> tuple[int, int, int] | None:
    """(actor, counter, time) of the first version that this operation wrote, or None."""
    _check_operation(operation)
    for header in _open(record).versions if record else ():
        actor, counter, time, written_by, *_ = _VERSION.unpack(header)
        if written_by == operation:
            return actor, counter, time
    return None


def duplicate_dots(record: bytes) -> int:
    """How many versions share the dot of the one before them. Anything but 0 is a breach: a dot was used twice."""
    dots = [header[:_DOT_BYTES] for header in _open(record).versions] if record else []
    return len(dots) - len(set(dots))


def check(record: bytes) -> None:
    """Raises CorruptRecord unless the form and the checksum are right. What reads from the disk use."""
    if record:
        _open(record)
        if xxh3_64_digest(record[:-_CHECKSUM_BYTES]) != record[-_CHECKSUM_BYTES:]:
            raise CorruptRecord("the checksum of a record is wrong")


def verify(record: bytes) -> None:
    """Raises CorruptRecord unless the form, the checksum and the hash of each value are right. What the wire uses."""
    check(record)
    for _, _, _, _, _, value_hash, _, value in versions(record):
        if xxh3_64_intdigest(value) != value_hash:
            raise CorruptRecord("the hash of a value is wrong")


def digest(key: bytes, record: bytes, seed: int) -> bytes:
    """16 bytes that name the key, the context and the versions; zeros for the absent record.

    `key` is the bucket, a zero byte and the key. Values are named by their hashes. `seed` is the cluster's secret.
    """
    check_u64(seed)
    return xxh3_128_digest(key + record[: _open(record).values_at], seed) if record else _NO_DIGEST


def token_context(record: bytes, context: bytes, actor: int, counter: int) -> tuple[bytes, int]:
    """The context for a client that put (actor, counter) under `context`, and how many siblings it has not seen.

    `record` is the record after the put. The result is the client's context and the new dot, widened by each range of
    the record without a sibling other than the new one: such a range claims nothing the client could lose by writing
    again under this token. Without the widening each put of a chain would add a range.
    """
    check_range(actor, counter, counter)
    opened = _open(record) if record else _Record(SIBLINGS, [], {}, 0)
    seen = union(open_context(context), [(actor, counter, counter)])
    dots = [_DOT.unpack_from(header) for header in opened.versions]
    unseen = [dot for dot in dots if dot != (actor, counter)]
    hidden = {bisect_right(opened.ranges, (*dot, U64_MAX)) - 1 for dot in unseen}
    open_ranges = [entry for at, entry in enumerate(opened.ranges) if at not in hidden]
    return pack(union(seen, open_ranges)), len(unseen)
