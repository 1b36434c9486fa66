"""Counters and histograms for metrics, in pure Python; a compiled twin `_histogram_c` returns the same from every input.

A histogram counts integers from 0 to 2^40 in buckets that are linear within each power of two, after HdrHistogram (Gil
Tene, hdrhistogram.org): with b significant bits, values below 2^(b+1) have a bucket each, and every power of two above
is cut into 2^b equal ones. So recording is a shift and an addition, memory is fixed (18 KiB with 6 bits), and what
`quantile` returns is never below the true value and above it by less than 1/2^b of it. Units are the caller's; larger
values count as 2^40, which is 12 days in microseconds. Histograms of equal bits merge without loss.

As bytes, big-endian: u8 format 1, u8 significant bits, u16 0, u32 number of buckets that follow, u128 sum, u64 minimum,
u64 maximum; then of each bucket that is not empty, in order: u32 index, u64 count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil
from operator import index
from struct import Struct

VALUE_MAX = 1 << 40
SIGNIFICANT_BITS = 6
SIGNIFICANT_BITS_MAX = 10
COUNT_MAX = (1 << 63) - 1  # values in one histogram

_MASK = (1 << 64) - 1
_HEAD = Struct(">BBHIQQQQ")
_ENTRY = Struct(">IQ")

Entries = list[tuple[int, int]]  # (index of a bucket, its count), ascending, no count of 0


class Counters:
    """Named counters, each a u64 that wraps around. `add` takes the place of the name in `names`."""

    __slots__ = ("_values", "names")

    def __init__(self, names: Sequence[str]) -> None:
        """Raises ValueError for a name given twice."""
        self.names = checked_names(names)
        self._values = [0] * len(self.names)

    def add(self, at: int, n: int = 1) -> None:
        """Count `n` more. Raises IndexError where there is no such counter, ValueError unless n is within u64."""
        if not 0 <= at < len(self._values):
            raise IndexError(f"there is no counter {at}")
        more = index(n)
        if not 0 <= more <= _MASK:
            raise ValueError(f"{n} is not an unsigned 64-bit integer")
        self._values[at] = (self._values[at] + more) & _MASK

    def values(self) -> tuple[int, ...]:
        """All values, in the order of the names."""
        return tuple(self._values)


class Histogram:
    """Counts of values by size, with a bounded relative error."""

    __slots__ = ("_counts", "_minimum", "count", "max", "significant_bits", "sum")

    def __init__(self, significant_bits: int = SIGNIFICANT_BITS) -> None:
        """Quantiles are off by less than 1 in 2^significant_bits, which is 1 to 10. Raises ValueError for others."""
        self._counts = [0] * bucket_count(significant_bits)
        self._minimum = VALUE_MAX
        self.significant_bits = significant_bits
        self.count = 0
        self.sum = 0  # of the values, without error
        self.max = 0  # without error; 0 for none

    @property
    def min(self) -> int:
        """The least value, without error; 0 for none."""
        return self._minimum if self.count else 0

    def record(self, value: int) -> None:
        """Count one value. Raises ValueError for one below 0."""
        value = index(value)
        if value < 0:
            raise ValueError(f"{value} is below 0")
        if value > VALUE_MAX:
            value = VALUE_MAX
        bits = self.significant_bits
        shift = value.bit_length() - bits - 1
        self._counts[value if shift <= 0 else (shift << bits) + (value >> shift)] += 1
        self.count += 1
        self.sum += value
        if value > self.max:
            self.max = value
        if value < self._minimum:
            self._minimum = value

    def record_many(self, values: Iterable[int]) -> None:
        """Count many. Those before one that raises are counted."""
        for value in values:
            self.record(value)

    def quantile(self, q: float) -> int:
        """The least bound that the share `q` (0..1) of all values does not exceed: 0.5 is the median, 1 the maximum.

        Not below the true value, and less than 1/2^significant_bits of it above. 0 if nothing was recorded.
        """
        wanted = rank(q, self.count)
        for at, count in enumerate(self._counts):
            wanted -= count
            if wanted <= 0 < count:
                return min(highest(at, self.significant_bits), self.max)
        return 0

    def merge(self, other: Histogram) -> None:
        """Count all that the other one has. Raises ValueError for other significant bits, OverflowError beyond 2^63."""
        if not isinstance(other, Histogram):
            raise TypeError(f"a histogram merges with another one, not with a {type(other).__name__}")
        check_merge(self.significant_bits, other.significant_bits, self.count, other.count)
        self._counts = [mine + theirs for mine, theirs in zip(self._counts, other._counts, strict=True)]
        self.count += other.count
        self.sum += other.sum
        self.max = max(self.max, other.max)
        self._minimum = min(self._minimum, other._minimum)

    def to_bytes(self) -> bytes:
        """Equal bytes mean the same histogram."""
        entries = [(at, count) for at, count in enumerate(self._counts) if count]
        return packed(self.significant_bits, self.sum, self.min, self.max, entries)

    @classmethod
    def from_bytes(cls, data: bytes) -> Histogram:
        """The histogram of these bytes. Raises ValueError for bytes that no histogram has."""
        significant_bits, total, minimum, maximum, entries = unpacked(data)
        histogram = cls(significant_bits)
        for at, count in entries:
            histogram._counts[at] = count
            histogram.count += count
        if entries:
            histogram.sum, histogram.max, histogram._minimum = total, maximum, minimum
        return histogram


# --- what both twins use ------------------------------------------------------------------------------------------------


def checked_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names as a tuple. Raises ValueError for one given twice."""
    if len(set(names)) < len(names):
        raise ValueError("a counter is named twice")
    return tuple(names)


def bucket_count(significant_bits: int) -> int:
    """The buckets of a histogram. Raises ValueError for bits out of range."""
    if not 1 <= significant_bits <= SIGNIFICANT_BITS_MAX:
        raise ValueError(f"{significant_bits} significant bits; there are 1 to {SIGNIFICANT_BITS_MAX}")
    return bucket_of(VALUE_MAX, significant_bits) + 1


def bucket_of(value: int, significant_bits: int) -> int:
    """The index of the bucket of a value."""
    shift = max(0, value.bit_length() - significant_bits - 1)
    return (shift << significant_bits) + (value >> shift)


def lowest(at: int, significant_bits: int) -> int:
    """The least value of a bucket."""
    shift = max(0, (at >> significant_bits) - 1)
    return (at - (shift << significant_bits)) << shift


def highest(at: int, significant_bits: int) -> int:
    """The largest value of a bucket."""
    return min(VALUE_MAX, lowest(at + 1, significant_bits) - 1)


def rank(q: float, count: int) -> int:
    """How many values the share `q` is, at least one. Raises ValueError for a share that is none."""
    if not 0 <= q <= 1:
        raise ValueError(f"{q} is not from 0 to 1")
    return min(count, max(1, ceil(q * count)))


def check_merge(significant_bits: int, others: int, count: int, more: int) -> None:
    """Raises ValueError or OverflowError unless two histograms can merge."""
    if significant_bits != others:
        raise ValueError(f"histograms with {significant_bits} and {others} significant bits do not merge")
    if count + more > COUNT_MAX:
        raise OverflowError("more values than a histogram counts")


def packed(significant_bits: int, total: int, minimum: int, maximum: int, entries: Entries) -> bytes:
    """A histogram as bytes."""
    head = _HEAD.pack(1, significant_bits, 0, len(entries), total >> 64, total & _MASK, minimum, maximum)
    return head + b"".join([_ENTRY.pack(at, count) for at, count in entries])


def unpacked(data: bytes) -> tuple[int, int, int, int, Entries]:
    """Significant bits, sum, minimum, maximum and entries. Raises ValueError unless a histogram could have them."""
    if len(data) < _HEAD.size or (len(data) - _HEAD.size) % _ENTRY.size:
        raise ValueError(f"a histogram has not {len(data)} bytes")
    version, bits, reserved, size, high, low, minimum, maximum = _HEAD.unpack_from(data)
    buckets = bucket_count(bits)
    if version != 1 or reserved != 0 or size != (len(data) - _HEAD.size) // _ENTRY.size or size > buckets:
        raise ValueError("a histogram of another format")
    entries: Entries = list(_ENTRY.iter_unpack(data[_HEAD.size :]))
    total, before, count = high << 64 | low, -1, 0
    for at, times in entries:
        if not before < at < buckets or times == 0:
            raise ValueError("the buckets of a histogram are not in order, or one is empty")
        before, count = at, count + times
    if count > COUNT_MAX:
        raise ValueError("more values than a histogram counts")
    if not entries:
        fits = total == minimum == maximum == 0
    else:
        first, last = entries[0][0], entries[-1][0]
        fits = minimum <= maximum and max(minimum, maximum) <= VALUE_MAX and (bucket_of(minimum, bits), bucket_of(maximum, bits)) == (first, last)
        least = sum(lowest(at, bits) * times for at, times in entries)
        most = sum(highest(at, bits) * times for at, times in entries)
        fits = fits and least <= total <= most
    if not fits:
        raise ValueError("the sum, minimum or maximum of a histogram is not that of its values")
    return bits, total, minimum, maximum, entries
