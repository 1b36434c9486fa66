"""Counters and histograms: the error of a quantile, sums without one, merging, bytes, and the same from both twins."""

from __future__ import annotations

import math
import struct
from random import Random
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

MAX = 1 << 40
GOLDEN = (
    "01060000" "00000006" "0000000000000000" "000001000000f485" "0000000000000000" "0000010000000000"
    "00000000" "0000000000000001" "00000001" "0000000000000002" "0000007f" "0000000000000001" "00000080" "0000000000000001"
    "000002b9" "0000000000000001" "000008c0" "0000000000000001"
)  # fmt: skip


@pytest.fixture(scope="session")
def module(core: Any) -> ModuleType:
    return core.histogram


values = st.integers(0, 300) | st.integers(0, MAX) | st.builds(lambda bits, more: (1 << bits) + more, st.integers(1, 39), st.integers(-1, 1))
bits = st.integers(1, 10)
shares = st.floats(0, 1) | st.sampled_from([0, 1, 0.5, 0.99, 0.999])


def of(module: ModuleType, recorded: list[int], significant_bits: int = 6) -> Any:
    histogram = module.Histogram(significant_bits)
    histogram.record_many(recorded)
    return histogram


def facts(histogram: Any) -> tuple[Any, ...]:
    quantiles = [histogram.quantile(q) for q in (0, 0.1, 0.5, 0.9, 0.99, 0.999, 1)]
    return (histogram.significant_bits, histogram.count, histogram.sum, histogram.min, histogram.max, quantiles, histogram.to_bytes())


# --- counters -----------------------------------------------------------------------------------------------------------


def test_counters(module: ModuleType) -> None:
    counters = module.Counters(["reads", "writes"])
    assert counters.names == ("reads", "writes") and counters.values() == (0, 0)
    counters.add(1)
    counters.add(0, 5)
    counters.add(1, n=2**64 - 1)
    counters.add(0, 2**63)
    assert counters.values() == (5 + 2**63, 0)  # a u64 wraps around
    assert module.Counters([]).values() == ()


def test_what_counters_refuse(module: ModuleType) -> None:
    counters = module.Counters(("a", "b"))
    for at in (2, -1, 2**70, -(2**70)):
        with pytest.raises(IndexError):
            counters.add(at)
    for n in (-1, 2**64, -(2**70)):
        with pytest.raises(ValueError):
            counters.add(0, n)
    for at, n in (("a", 1), (0, "a"), (0, 1.5), (0.0, 1), (None, 1), (0, None)):
        with pytest.raises(TypeError):
            counters.add(at, n)
    with pytest.raises(ValueError):
        module.Counters(["a", "b", "a"])
    assert counters.values() == (0, 0)


@given(added=st.lists(st.tuples(st.integers(-1, 4), st.integers(-1, 2**64))))
def test_twins_count_the_same(cores: Any, added: list[tuple[int, int]]) -> None:
    both = [core.histogram.Counters("abcd") for core in cores]
    for at, n in added:
        errors = []
        for counters in both:
            try:
                counters.add(at, n)
            except (IndexError, ValueError) as error:
                errors.append(type(error))
        assert len(errors) != 1 and len(set(errors)) < 2
    assert both[0].values() == both[1].values()


# --- histograms ---------------------------------------------------------------------------------------------------------


def test_an_empty_histogram(module: ModuleType) -> None:
    histogram = module.Histogram()
    assert facts(histogram)[:6] == (6, 0, 0, 0, 0, [0] * 7)
    assert facts(module.Histogram.from_bytes(histogram.to_bytes())) == facts(histogram)


@given(recorded=st.lists(values, min_size=1, max_size=60), significant_bits=bits, q=shares)
def test_a_quantile_is_at_most_a_little_above_the_true_value(module: ModuleType, recorded: list[int], significant_bits: int, q: float) -> None:
    histogram = of(module, recorded, significant_bits)
    true = sorted(recorded)[max(1, math.ceil(q * len(recorded))) - 1]
    assert true <= histogram.quantile(q) <= true + true / 2**significant_bits
    if true < 2 ** (significant_bits + 1):
        assert histogram.quantile(q) == true
    assert (histogram.count, histogram.sum, histogram.min, histogram.max) == (len(recorded), sum(recorded), min(recorded), max(recorded))
    assert histogram.quantile(1) == max(recorded)


def test_the_error_is_bounded_at_every_size(module: ModuleType) -> None:
    for bit in range(41):
        for value in {max(0, (1 << bit) + more) for more in (-1, 0, 1, (1 << bit) // 3, (1 << bit) // 65)}:
            histogram = of(module, [min(value, MAX), MAX])
            assert 0 <= histogram.quantile(0.5) - min(value, MAX) <= value / 64


def test_values_out_of_range(module: ModuleType) -> None:
    histogram = of(module, [MAX + 1, 2**64, 2**70])
    assert (histogram.min, histogram.max, histogram.sum, histogram.quantile(0)) == (MAX, MAX, 3 * MAX, MAX)
    before = facts(histogram)
    for low in (-1, -(2**63), -(2**70)):
        with pytest.raises(ValueError):
            histogram.record(low)
    for bad in (1.5, "1", None, b"1"):
        with pytest.raises(TypeError):
            histogram.record(bad)
    assert facts(histogram) == before
    with pytest.raises(ValueError):
        histogram.record_many([5, -1, 7])
    assert histogram.count == 4 and histogram.min == 5
    for q in (-0.001, 1.001, math.nan, math.inf):
        with pytest.raises(ValueError):
            histogram.quantile(q)
    for significant_bits in (0, -1, 11, 64):
        with pytest.raises(ValueError):
            module.Histogram(significant_bits)


def test_sums_beyond_64_bits(module: ModuleType) -> None:
    histogram = of(module, [MAX])
    for _ in range(40):
        histogram.merge(histogram)
    assert (histogram.count, histogram.sum) == (2**40, 2**80)
    histogram.record(7)
    assert histogram.sum == 2**80 + 7
    assert facts(module.Histogram.from_bytes(histogram.to_bytes())) == facts(histogram)
    for _ in range(22):
        histogram.merge(histogram)
    with pytest.raises(OverflowError):
        histogram.merge(histogram)
    assert histogram.count == 2**62 + 2**22
    histogram = of(module, [MAX - 1])
    for _ in range(24):
        histogram.merge(histogram)
    histogram.record(MAX)
    assert histogram.sum == 2**24 * (MAX - 1) + MAX > 2**64


@given(first=st.lists(values, max_size=30), second=st.lists(values, max_size=30), significant_bits=bits)
def test_merged_is_as_if_recorded_together(module: ModuleType, first: list[int], second: list[int], significant_bits: int) -> None:
    merged = of(module, first, significant_bits)
    merged.merge(of(module, second, significant_bits))
    assert facts(merged) == facts(of(module, first + second, significant_bits))


def test_what_does_not_merge(module: ModuleType, cores: Any) -> None:
    histogram = module.Histogram(6)
    with pytest.raises(ValueError):
        histogram.merge(module.Histogram(7))
    for other in (None, 5, b"", module.Counters([])):
        with pytest.raises(TypeError):
            histogram.merge(other)


# --- bytes --------------------------------------------------------------------------------------------------------------


def test_golden_bytes(module: ModuleType) -> None:
    histogram = of(module, [0, 1, 1, 127, 129, 62339, MAX])
    assert histogram.to_bytes().hex() == GOLDEN
    assert facts(module.Histogram.from_bytes(bytes.fromhex(GOLDEN))) == facts(histogram)


@given(recorded=st.lists(values, max_size=40), significant_bits=bits)
def test_bytes_lead_back(module: ModuleType, recorded: list[int], significant_bits: int) -> None:
    histogram = of(module, recorded, significant_bits)
    assert facts(module.Histogram.from_bytes(histogram.to_bytes())) == facts(histogram)


def encoded(entries: list[tuple[int, int]], total: int, low: int, high: int, head: tuple[int, int, int] = (1, 6, 0), size: int | None = None) -> bytes:
    start = struct.pack(">BBHIQQQQ", *head, len(entries) if size is None else size, total >> 64, total & (2**64 - 1), low, high)
    return start + b"".join(struct.pack(">IQ", *entry) for entry in entries)


MALFORMED = {
    "nothing": b"",
    "cut short": encoded([], 0, 0, 0)[:-1],
    "a byte more": encoded([], 0, 0, 0) + b"\0",
    "format 2": encoded([], 0, 0, 0, (2, 6, 0)),
    "0 bits": encoded([], 0, 0, 0, (1, 0, 0)),
    "11 bits": encoded([], 0, 0, 0, (1, 11, 0)),
    "reserved": encoded([], 0, 0, 0, (1, 6, 1)),
    "fewer buckets than said": encoded([(5, 1)], 5, 5, 5, size=2),
    "more buckets than said": encoded([(5, 1), (6, 1)], 11, 5, 6, size=1),
    "2^32 - 1 buckets": encoded([], 0, 0, 0, size=2**32 - 1),
    "an empty bucket": encoded([(5, 1), (6, 0)], 5, 5, 6),
    "out of order": encoded([(6, 1), (5, 1)], 11, 5, 6),
    "a bucket twice": encoded([(5, 1), (5, 1)], 10, 5, 5),
    "a bucket too many": encoded([(2241, 1)], MAX, MAX, MAX),
    "a bucket far away": encoded([(2**32 - 1, 1)], MAX, MAX, MAX),
    "a sum of nothing": encoded([], 1, 0, 0),
    "a minimum of nothing": encoded([], 0, 1, 0),
    "a maximum of nothing": encoded([], 0, 0, 1),
    "the sum too low": encoded([(200, 2)], 575, 288, 291),
    "the sum too high": encoded([(200, 2)], 583, 288, 291),
    "the minimum elsewhere": encoded([(5, 1), (7, 1)], 12, 6, 7),
    "the maximum elsewhere": encoded([(5, 1), (7, 1)], 12, 5, 6),
    "minimum above maximum": encoded([(200, 2)], 578, 290, 288),
    "beyond the largest": encoded([(2240, 1)], MAX, MAX, MAX + 1),
    "too many values": encoded([(0, 2**63)], 0, 0, 0),
    "too many values together": encoded([(0, 2**62), (1, 2**62)], 2**62, 0, 1),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_bytes_that_no_histogram_has(module: ModuleType, name: str) -> None:
    with pytest.raises(ValueError):
        module.Histogram.from_bytes(MALFORMED[name])


def test_these_are_at_the_edge_and_right(module: ModuleType) -> None:
    """The neighbours of some of the malformed ones, so that those fail for what their names say."""
    edges = [([(200, 2)], 576, 288, 291), ([(200, 2)], 582, 288, 291), ([(2240, 1)], MAX, MAX, MAX), ([(0, 2**63 - 1)], 0, 0, 0)]
    for entries, total, low, high in [*edges, ([(5, 1), (7, 1)], 12, 5, 7)]:
        data = encoded(entries, total, low, high)
        assert module.Histogram.from_bytes(data).to_bytes() == data


# --- the twins ----------------------------------------------------------------------------------------------------------


@given(recorded=st.lists(values | st.integers(-5, 2**66), max_size=60), significant_bits=bits, q=shares)
def test_twins_agree(cores: Any, recorded: list[int], significant_bits: int, q: float) -> None:
    both = [core.histogram.Histogram(significant_bits) for core in cores]
    for value in recorded:
        for histogram in both:
            if value < 0:
                with pytest.raises(ValueError):
                    histogram.record(value)
            else:
                histogram.record(value)
    assert facts(both[0]) == facts(both[1])
    assert both[0].quantile(q) == both[1].quantile(q)


@pytest.mark.parametrize("seed", range(3))
def test_twins_agree_on_damaged_bytes(cores: Any, seed: int) -> None:
    random = Random(seed)
    for _ in range(2000):
        recorded = [random.getrandbits(random.randrange(41)) for _ in range(random.randrange(4))]
        data = bytearray(of(cores[0].histogram, recorded, random.randrange(1, 11)).to_bytes())
        for _ in range(random.randrange(1, 3)):
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        outcomes = []
        for core in cores:
            try:
                outcomes.append(core.histogram.Histogram.from_bytes(bytes(data)).to_bytes())
            except ValueError:
                outcomes.append(b"")
        assert outcomes[0] == outcomes[1] and outcomes[0] in (b"", bytes(data))
