# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, auto_pickle=False
"""Counters and histograms as C arrays: the compiled twin of `_histogram_py.py`, which has the layout, the rules and the words.

What is done rarely (checks, bytes) is taken from there as it is. Recording makes no object and cannot fail but for its
argument.
"""

from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.stdint cimport int64_t, uint64_t

from dynamo._core import _histogram_py
from dynamo._core._histogram_py import bucket_count, check_merge, checked_names, highest, packed, rank, unpacked

cdef extern from "Python.h":
    long long PyLong_AsLongLongAndOverflow(object number, int* overflow) except? -1

cdef extern from *:
    """
    /* How far a value is shifted: by nothing below 2^kept. */
    static inline int histogram_shift(uint64_t value, int kept) {
        int shift = 0;
    #if defined(__GNUC__) || defined(__clang__)
        shift = 64 - __builtin_clzll(value | 1) - kept;
        return shift > 0 ? shift : 0;
    #else
        while (value >> kept >> shift)
            shift++;
        return shift;
    #endif
    }
    """
    int histogram_shift(uint64_t value, int kept) noexcept nogil

VALUE_MAX = _histogram_py.VALUE_MAX
SIGNIFICANT_BITS = _histogram_py.SIGNIFICANT_BITS
SIGNIFICANT_BITS_MAX = _histogram_py.SIGNIFICANT_BITS_MAX
COUNT_MAX = _histogram_py.COUNT_MAX

cdef uint64_t LARGEST = VALUE_MAX


cdef class Counters:
    """Named counters, each a u64 that wraps around. `add` takes the place of the name in `names`."""

    cdef readonly tuple names
    cdef uint64_t* _values
    cdef Py_ssize_t _size

    def __cinit__(self, names):
        self.names = checked_names(names)
        self._size = len(self.names)
        self._values = <uint64_t*> PyMem_Calloc(self._size + 1, sizeof(uint64_t))
        if self._values == NULL:
            raise MemoryError

    def __dealloc__(self):
        PyMem_Free(self._values)

    def add(self, at, n=1):
        """Count `n` more. Raises IndexError where there is no such counter, ValueError unless n is within u64."""
        cdef int overflow = 0
        cdef int64_t place = PyLong_AsLongLongAndOverflow(at, &overflow)
        cdef int64_t more
        if overflow or place < 0 or place >= self._size:
            raise IndexError(f"there is no counter {at}")
        more = PyLong_AsLongLongAndOverflow(n, &overflow)
        if overflow == 0 and more >= 0:
            self._values[place] += <uint64_t> more
        else:
            self._values[place] += u64(n)

    def values(self):
        """All values, in the order of the names."""
        return tuple([self._values[i] for i in range(self._size)])


cdef uint64_t u64(object number) except? 0:
    try:
        return <uint64_t> number
    except OverflowError:
        raise ValueError(f"{number} is not an unsigned 64-bit integer") from None


cdef class Histogram:
    """Counts of values by size, with a bounded relative error."""

    cdef readonly int significant_bits
    cdef readonly uint64_t count
    cdef readonly uint64_t max
    cdef uint64_t _minimum
    cdef uint64_t _sum_low
    cdef uint64_t _sum_high
    cdef uint64_t* _counts
    cdef Py_ssize_t _size

    def __cinit__(self, significant_bits=SIGNIFICANT_BITS):
        self._size = bucket_count(significant_bits)
        self.significant_bits = significant_bits
        self._minimum = LARGEST
        self._counts = <uint64_t*> PyMem_Calloc(self._size, sizeof(uint64_t))
        if self._counts == NULL:
            raise MemoryError

    def __dealloc__(self):
        PyMem_Free(self._counts)

    @property
    def min(self):
        """The least value, without error; 0 for none."""
        return self._minimum if self.count else 0

    @property
    def sum(self):
        """Of the values, without error."""
        return (<object> self._sum_high << 64) | self._sum_low

    cdef inline int _record(self, object number) except -1:
        cdef int overflow = 0, shift
        cdef int64_t signed = PyLong_AsLongLongAndOverflow(number, &overflow)
        cdef uint64_t value = <uint64_t> signed
        if overflow < 0 or (overflow == 0 and signed < 0):
            raise ValueError(f"{number} is below 0")
        if overflow > 0 or value > LARGEST:
            value = LARGEST
        shift = histogram_shift(value, self.significant_bits + 1)
        self._counts[(<uint64_t> shift << self.significant_bits) + (value >> shift)] += 1
        self.count += 1
        self._sum_low += value
        self._sum_high += self._sum_low < value
        if value > self.max:
            self.max = value
        if value < self._minimum:
            self._minimum = value
        return 0

    def record(self, value):
        """Count one value. Raises ValueError for one below 0."""
        self._record(value)

    def record_many(self, values):
        """Count many. Those before one that raises are counted."""
        for value in values:
            self._record(value)

    def quantile(self, q):
        """The least bound that the share `q` (0..1) of all values does not exceed: 0.5 is the median, 1 the maximum."""
        cdef uint64_t wanted = rank(q, self.count), seen = 0
        cdef Py_ssize_t at
        for at in range(self._size):
            seen += self._counts[at]
            if self._counts[at] and seen >= wanted:
                return min(highest(at, self.significant_bits), self.max)
        return 0

    def merge(self, other):
        """Count all that the other one has. Raises ValueError for other significant bits, OverflowError beyond 2^63."""
        cdef Histogram more
        cdef Py_ssize_t at
        cdef uint64_t low
        if not isinstance(other, Histogram):
            raise TypeError(f"a histogram merges with another one, not with a {type(other).__name__}")
        more = other
        check_merge(self.significant_bits, more.significant_bits, self.count, more.count)
        for at in range(self._size):
            self._counts[at] += more._counts[at]
        self.count += more.count
        low = more._sum_low
        self._sum_high += more._sum_high
        self._sum_low += low
        self._sum_high += self._sum_low < low
        if more.max > self.max:
            self.max = more.max
        if more._minimum < self._minimum:
            self._minimum = more._minimum

    def to_bytes(self):
        """Equal bytes mean the same histogram."""
        entries = [(at, self._counts[at]) for at in range(self._size) if self._counts[at]]
        return packed(self.significant_bits, self.sum, self.min, self.max, entries)

    @classmethod
    def from_bytes(cls, bytes data not None):
        """The histogram of these bytes. Raises ValueError for bytes that no histogram has."""
        cdef Histogram histogram
        cdef Py_ssize_t at
        cdef uint64_t count
        significant_bits, total, minimum, maximum, entries = unpacked(data)
        histogram = cls(significant_bits)
        for at, count in entries:
            histogram._counts[at] = count
            histogram.count += count
        if entries:
            histogram._sum_high, histogram._sum_low = total >> 64, total & 0xFFFFFFFFFFFFFFFF
            histogram.max, histogram._minimum = maximum, minimum
        return histogram
