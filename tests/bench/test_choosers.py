"""Keys are drawn as often as their distribution says."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from random import Random

import pytest

from dynamo.bench.choosers import ZIPFIAN_CONSTANT, Zipfian, chooser, mixed, stride, zeta
from dynamo.bench.workloads import WORKLOADS, key_of

DRAWS = 40_000


@pytest.mark.parametrize("count", [1, 2, 3, 10, 1000])
def test_zipfian_ranks_come_as_often_as_they_should(count: int) -> None:
    draw = Zipfian(count, Random(1))
    seen = Counter(draw() for _ in range(DRAWS))
    assert min(seen) == 0 and max(seen) < count
    total = zeta(count)
    for rank in range(min(2, count)):  # by construction exact; the method approximates the others
        assert seen[rank] / DRAWS == pytest.approx((rank + 1) ** -ZIPFIAN_CONSTANT / total, rel=0.06)
    if count >= 1000:
        assert sum(seen[rank] for rank in range(100)) / DRAWS == pytest.approx(zeta(100) / total, rel=0.03)


def test_zeta_of_many_is_what_the_sum_would_be() -> None:
    exact = sum(i**-ZIPFIAN_CONSTANT for i in range(1, 1_200_001))
    assert zeta(1_200_000) == pytest.approx(exact, rel=1e-6)


def test_popular_keys_are_no_neighbours() -> None:
    for count in (1, 2, 3, 10, 610, 987, 10_000):  # neighbours of Fibonacci too, for which the ratio is worst
        places = [rank * stride(count) % count for rank in range(count)]
        assert sorted(places) == list(range(count))
        assert count < 10 or all(abs(a - b) > 1 for a, b in pairwise(places))


def test_uniform_keys_come_alike() -> None:
    draw = chooser("uniform", 10, Random(2), lambda: 0)
    seen = Counter(draw() for _ in range(DRAWS))
    assert set(seen) == set(range(10)) and max(seen.values()) < 1.1 * DRAWS / 10


def test_the_latest_follow_what_is_inserted() -> None:
    newest = 99
    draw = chooser("latest", 100, Random(3), lambda: newest)
    assert Counter(draw() for _ in range(1000)).most_common(1)[0][0] == 99
    newest = 500
    drawn = [draw() for _ in range(1000)]
    assert Counter(drawn).most_common(1)[0][0] == 500 and max(drawn) == 500 and min(drawn) >= 401


def test_an_unknown_distribution_is_refused() -> None:
    with pytest.raises(ValueError, match="no key choice 'normal'"):
        chooser("normal", 10, Random(1), lambda: 0)


@pytest.mark.parametrize("name", WORKLOADS)
def test_operations_come_by_their_shares(name: str) -> None:
    shares = WORKLOADS[name].shares
    draw = mixed(shares, Random(4))
    seen = Counter(draw() for _ in range(10_000))
    assert set(seen) == set(shares)
    for operation, share in shares.items():
        assert seen[operation] / 10_000 == pytest.approx(share, abs=0.02)


def test_keys_have_13_bytes_and_differ() -> None:
    keys = {key_of(number) for number in (0, 1, 99_999, 10**9)}
    assert len(keys) == 4 and {len(key) for key in keys} == {13}
