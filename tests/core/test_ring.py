"""Placement: what `assign` promises for any members, how little moves, and golden values that pin it for ever."""

from __future__ import annotations

import math
from fractions import Fraction
from random import Random
from types import ModuleType
from typing import Any

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo._core import _ring_py

RingMember = tuple[bytes, int, bytes]


@pytest.fixture(scope="session")
def ring(core: Any) -> ModuleType:
    return core.ring


def plain_members(count: int, seed: int) -> list[RingMember]:
    random = Random(seed)
    return [(random.randbytes(16), 1000, b"") for _ in range(count)]


node_ids = st.binary(min_size=16, max_size=16)
capacities = st.one_of(st.sampled_from([500, 1000, 2000]), st.integers(1, 1_000_000), st.just(1 << 32))
zones = st.sampled_from([b"", b"a", b"b", b"c"])
member_lists = st.lists(st.tuples(node_ids, capacities, zones), max_size=9, unique_by=lambda member: member[0])
partition_counts = st.sampled_from([1, 2, 8, 32, 128])
seeds = st.integers(0, 2**64 - 1)


def fair_shares(members: list[RingMember], partitions: int, n: int) -> list[Fraction]:
    """The definition, by another way: lift the shares until none is above `partitions` and they sum up."""
    shares = [Fraction(0)] * len(members)
    full: set[int] = set()
    while True:
        rest = Fraction(partitions * n - partitions * len(full))
        total = sum(members[i][1] for i in range(len(members)) if i not in full)
        for i in range(len(members)):
            shares[i] = Fraction(partitions) if i in full else rest * members[i][1] / total
        over = {i for i in range(len(members)) if shares[i] > partitions}
        if not over:
            return shares
        full |= over


# --- positions --------------------------------------------------------------------------------------------------------


def test_position_is_the_hash_of_bucket_zero_key(ring: ModuleType) -> None:
    assert ring.position(b"default", b"alice", 7) == xxhash.xxh3_64_intdigest(b"default\0alice", 7)
    assert ring.position(b"default", b"alice", 7) == 0x3256F6ED4F9F69D


@given(position=seeds, bits=st.integers(0, 16))
def test_partition_is_the_top_bits(ring: ModuleType, position: int, bits: int) -> None:
    assert ring.partition_of(position, 1 << bits) == position * (1 << bits) // (1 << 64)


@pytest.mark.parametrize("seed", [0, 1, 0xD1CE, 1 << 63, (1 << 64) - 1])
def test_position_is_the_hash_of_any_length(ring: ModuleType, seed: int) -> None:
    """The compiled twin hashes up to 240 bytes itself; every length has to go right, and those beyond too."""
    text = Random(seed).randbytes(1200)
    for size in [*range(300), 511, 512, 513, 1024]:
        assert ring.position(b"", text[:size], seed) == xxhash.xxh3_64_intdigest(b"\0" + text[:size], seed), size
    for size in (0, 1, 64, 238, 239, 240, 300):
        expected = xxhash.xxh3_64_intdigest(text[:size] + b"\0key", seed)
        assert ring.position(text[:size], b"key", seed) == expected


@given(bucket=st.binary(max_size=70), keys=st.lists(st.binary(max_size=260), max_size=6), seed=seeds, bits=st.integers(0, 64))
def test_many_positions_are_those_of_each(ring: ModuleType, bucket: bytes, keys: list[bytes], seed: int, bits: int) -> None:
    positions = [ring.position(bucket, key, seed) for key in keys]
    assert ring.positions(bucket, keys, seed) == positions
    assert ring.positions(bucket, iter(keys), seed) == positions
    assert ring.partitions_of(bucket, tuple(keys), seed, 1 << bits) == [ring.partition_of(at, 1 << bits) for at in positions]


@pytest.mark.parametrize("bad", ["key", None, 7])
def test_keys_are_bytes(ring: ModuleType, bad: Any) -> None:
    for bucket, key in ((b"b", bad), (bad, b"k")):
        with pytest.raises(TypeError):
            ring.position(bucket, key, 0)
        with pytest.raises(TypeError):
            ring.positions(bucket, [b"k", key], 0)
        with pytest.raises(TypeError):
            ring.partitions_of(bucket, [b"k", key], 0, 8)


def test_more_partitions_than_positions_are_refused(ring: ModuleType) -> None:
    with pytest.raises(ValueError):
        ring.partition_of(5, 1 << 65)
    with pytest.raises(ValueError):
        ring.partitions_of(b"b", [b"k"], 0, 1 << 65)


# --- what assign promises ---------------------------------------------------------------------------------------------


@settings(max_examples=3 * settings.default.max_examples)
@given(members=member_lists, partitions=partition_counts, n=st.integers(1, 6), seed=seeds)
def test_owners_are_distinct_whole_and_within_caps(ring: ModuleType, members: list[RingMember], partitions: int, n: int, seed: int) -> None:
    owners = ring.assign(members, partitions, n, seed)
    assert len(owners) == partitions
    n = min(n, len(members))
    loads = [0] * len(members)
    for row in owners:
        assert type(row) is tuple and len(row) == n == len(set(row))
        for i in row:
            loads[i] += 1
    if members:
        for load, share in zip(loads, fair_shares(members, partitions, n), strict=True):
            assert load <= (math.floor if share >= 100 else math.ceil)(share * 105 / 100)


@given(members=member_lists, partitions=partition_counts, n=st.integers(1, 4), seed=seeds, data=st.data())
def test_result_does_not_depend_on_the_order_of_members(
    ring: ModuleType, members: list[RingMember], partitions: int, n: int, seed: int, data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(members))
    mine = [tuple(members[i][0] for i in row) for row in ring.assign(members, partitions, n, seed)]
    theirs = [tuple(shuffled[i][0] for i in row) for row in ring.assign(shuffled, partitions, n, seed)]
    assert mine == theirs
    by_score = [members[i][0] for i in ring.preference(members, 0, seed)]
    assert by_score == [shuffled[i][0] for i in ring.preference(shuffled, 0, seed)]


@given(members=member_lists, partitions=partition_counts, n=st.integers(1, 4), seed=seeds)
def test_owners_stand_in_the_order_of_preference(ring: ModuleType, members: list[RingMember], partitions: int, n: int, seed: int) -> None:
    for partition, row in enumerate(ring.assign(members, partitions, n, seed)):
        order = ring.preference(members, partition, seed)
        assert sorted(order) == list(range(len(members)))
        assert list(row) == sorted(row, key=order.index)


@pytest.mark.parametrize(("per_zone", "zone_count", "n"), [(1, 3, 3), (2, 3, 3), (5, 4, 3), (3, 5, 2), (4, 3, 5)])
def test_replicas_lie_in_as_many_zones_as_there_are(ring: ModuleType, per_zone: int, zone_count: int, n: int) -> None:
    for seed in range(10):
        plain = plain_members(per_zone * zone_count, seed)
        members = [(id, 1000, b"%d" % (i % zone_count)) for i, (id, _, _) in enumerate(plain)]
        for row in ring.assign(members, 256, n, seed):
            assert len({members[i][2] for i in row}) == min(n, zone_count)


def test_zones_never_break_the_caps(ring: ModuleType) -> None:
    members = [(id, 1000, b"small" if i == 0 else b"large") for i, (id, _, _) in enumerate(plain_members(8, 1))]
    loads = [sum(i in row for row in ring.assign(members, 256, 2, 1)) for i in range(8)]
    assert loads[0] == 68  # all it may: ceil(1.05 * 256 * 2 / 8)
    assert max(loads) <= 68


def test_a_giant_gets_every_partition_and_the_others_share_the_rest(ring: ModuleType) -> None:
    members = [(id, 100_000 if i == 0 else 1000, b"") for i, (id, _, _) in enumerate(plain_members(5, 3))]
    loads = [sum(i in row for row in ring.assign(members, 256, 3, 9)) for i in range(5)]
    assert loads[0] == 256
    assert sum(loads) == 768 and max(loads[1:]) <= 134  # floor(1.05 * 256 * 2 / 4)


def test_load_follows_capacity(ring: ModuleType) -> None:
    """First places, which no cap bends, are proportional to the capacity: within 4 standard deviations."""
    sizes = [250, 1000, 1000, 3000]
    members = [(id, size, b"") for (id, _, _), size in zip(plain_members(4, 5), sizes, strict=True)]
    places = 4000
    wins = [0] * 4
    for partition in range(places):
        wins[ring.preference(members, partition, 77)[0]] += 1
    for win, size in zip(wins, sizes, strict=True):
        chance = size / sum(sizes)
        assert abs(win - places * chance) < 4 * math.sqrt(places * chance * (1 - chance))


@pytest.mark.parametrize(("count", "partitions", "runs", "limit"), [(5, 256, 40, 1.10), (20, 1024, 6, 1.15), (100, 4096, 1, 1.40)])
def test_one_more_node_moves_little_more_than_it_must(ring: ModuleType, count: int, partitions: int, runs: int, limit: float) -> None:
    """Replicas that change place, over the fair share of the new node. Without bounded load the mean would be 1."""
    moved = least = 0.0
    for seed in range(runs):
        members = plain_members(count + 1, seed)
        before = ring.assign(members[:-1], partitions, 3, seed)
        after = ring.assign(members, partitions, 3, seed)
        moved += sum(len(set(b) - set(a)) for a, b in zip(before, after, strict=True))
        least += partitions * 3 / (count + 1)
    assert 0.9 < moved / least < limit


def test_a_new_node_moves_nothing_between_the_others_in_the_order_of_preference(ring: ModuleType) -> None:
    members = plain_members(12, 8)
    for partition in range(64):
        after = ring.preference(members, partition, 3)
        assert ring.preference(members[:-1], partition, 3) == [i for i in after if i != 11]


def test_empty_single_and_fewer_than_n(ring: ModuleType) -> None:
    assert ring.assign([], 4, 3, 0) == [(), (), (), ()]
    assert ring.preference([], 0, 0) == []
    assert ring.assign(plain_members(1, 0), 4, 3, 0) == [(0,)] * 4
    assert all(sorted(row) == [0, 1] for row in ring.assign(plain_members(2, 0), 8, 3, 0))


def test_a_node_id_given_twice_and_a_capacity_out_of_range_are_refused(ring: ModuleType) -> None:
    twice = [(bytes(16), 1000, b""), (b"b" * 16, 1000, b""), (bytes(16), 2000, b"")]
    with pytest.raises(ValueError, match="twice"):
        ring.assign(twice, 4, 1, 0)
    with pytest.raises(ValueError, match="twice"):
        ring.preference(twice, 0, 0)
    for capacity in (0, -1, (1 << 32) + 1):
        with pytest.raises(ValueError, match="capacity"):
            ring.assign([(bytes(16), capacity, b"")], 4, 1, 0)


def test_equal_scores_go_to_the_lower_node_id(ring: ModuleType) -> None:
    """These two were searched for: with seed 0 their scores for partition 0 are equal to the last bit."""
    low, high = ((number.to_bytes(16, "big"), 1000, b"") for number in (7064, 41598))
    keys, weights = _ring_py.streams([low, high], 0)
    assert len(set(_ring_py._costs(0, keys, weights))) == 1
    assert ring.preference([high, low], 0, 0) == [1, 0] and ring.preference([low, high], 0, 0) == [0, 1]
    assert ring.assign([high, low], 1, 1, 0) == [(1,)] and ring.assign([low, high], 1, 1, 0) == [(0,)]
    assert ring.assign([high, low], 1, 2, 0) == [(1, 0)]
    neighbours = [(node_id, 1000, b"zone") for node_id, _, _ in (high, low)]
    assert ring.assign(neighbours, 1, 1, 0) == [(1,)] and ring.assign(neighbours, 1, 2, 0) == [(1, 0)]
    elsewhere = ((1).to_bytes(16, "big"), 1000, b"")
    assert ring.assign([*neighbours, elsewhere], 1, 2, 0) == [(1, 2)]


def test_the_worst_score_there_is_fits_64_bits(ring: ModuleType) -> None:
    """The first of these was searched for: its u is below 2^-32 for partition 0 and seed 0, and so its score is clipped."""
    unlucky, other = (number.to_bytes(16, "big") for number in (797274486, 175))
    keys, weights = _ring_py.streams([(unlucky, 1, b"")], 0)
    assert _ring_py._costs(0, keys, weights) == [(2**32 - 1) * 2**32]
    assert ring.preference([(unlucky, 1, b""), (other, 1, b"")], 0, 0) == [1, 0]
    assert ring.assign([(unlucky, 1, b""), (other, 1, b"")], 1, 1, 0) == [(1,)]


# --- the twins ------------------------------------------------------------------------------------------------------


@given(members=member_lists, partitions=partition_counts, n=st.integers(1, 6), seed=seeds)
def test_twins_agree(cores: Any, members: list[RingMember], partitions: int, n: int, seed: int) -> None:
    compiled, pure = (core.ring for core in cores)
    assert compiled.assign(members, partitions, n, seed) == pure.assign(members, partitions, n, seed)
    for partition in (0, partitions - 1):
        assert compiled.preference(members, partition, seed) == pure.preference(members, partition, seed)
    assert compiled.position(b"b", b"k", seed) == pure.position(b"b", b"k", seed)
    assert compiled.partition_of(seed, partitions) == pure.partition_of(seed, partitions)


@pytest.mark.parametrize(("count", "n"), [(1, 3), (7, 3), (7, 7), (40, 3), (40, 9)])
def test_twins_agree_on_larger_clusters(cores: Any, count: int, n: int) -> None:
    """Also where full members force a choice, and where there are fewer zones than replicas."""
    compiled, pure = (core.ring for core in cores)
    random = Random(count * n)
    for zones in (1, 2, 5, 100):
        sizes = (1000,) if zones == 1 else (1, 500, 1000, 4000, 100_000)
        members = [(random.randbytes(16), random.choice(sizes), b"z%d" % random.randrange(zones)) for _ in range(count)]
        for partitions in (1, 16, 256):
            seed = random.getrandbits(64)
            assert compiled.assign(members, partitions, n, seed) == pure.assign(members, partitions, n, seed)
            assert compiled.preference(members, partitions, seed) == pure.preference(members, partitions, seed)


# --- for ever the same ------------------------------------------------------------------------------------------------


def test_golden_placement(ring: ModuleType) -> None:
    """Placement may never change: nodes of two versions would have two rings."""
    members = [(bytes([i]) * 16, 500 + 250 * i, b"zone%d" % (i % 3) if i % 4 else b"") for i in range(1, 10)]
    owners = ring.assign(members, 256, 3, 0xD1CE)
    assert owners[:4] == [(3, 7, 0), (6, 2, 3), (2, 4, 6), (0, 4, 8)]
    assert xxhash.xxh3_64_hexdigest(b"".join(bytes(row) for row in owners)) == "3e55b0c5d2f62f0a"
    assert ring.preference(members, 77, 0xD1CE) == [6, 7, 8, 5, 4, 1, 3, 2, 0]


def test_table_of_logarithms() -> None:
    for i, entry in enumerate(_ring_py.LOG2_TABLE):
        assert abs(entry - math.log2(1 + i / 256) * 2**27) <= 1.001
    assert len(_ring_py.LOG2_TABLE) == 257


def test_scores_are_the_weighted_logarithm() -> None:
    """Against floating point, for one member and many partitions; u is taken from an independent splitmix64."""

    def splitmix64(state: int) -> int:
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            state = (state ^ (state >> shift)) * factor % 2**64
        return state ^ (state >> 31)

    start, weight = 0x0123_4567_89AB_CDEF, (1 << 32) // 2500
    for partition in range(2000):
        u = splitmix64((start + (partition + 1) * 0x9E3779B97F4A7C15) % 2**64) / 2**64
        exact = -math.log2(u)
        (cost,) = _ring_py._costs(partition, [start], [weight])
        score = cost / weight / 2**27
        assert abs(score - exact) < min(3e-6, 0.002 * exact) + 2**-26
