"""Which key comes next: uniform, zipfian or latest, after YCSB (Cooper et al., SoCC 2010, section 5.2).

A chooser draws the number of a key. Zipfian numbers come from the rejection-free method of Gray et al. ("Quickly generating billion-record synthetic
databases", SIGMOD 1994) with YCSB's constant 0.99, and are laid out over the key space so that the popular keys are not neighbours.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from math import gcd
from random import Random

ZIPFIAN_CONSTANT = 0.99
_EXACT_MAX = 1_000_000  # terms of zeta that are summed; the rest is an integral, which is off by less than one part in a million

Chooser = Callable[[], int]


def zeta(count: int, theta: float = ZIPFIAN_CONSTANT) -> float:
    """The sum of 1 / i^theta for i from 1 to `count`."""
    exact = min(count, _EXACT_MAX)
    total: float = sum(i**-theta for i in range(1, exact + 1))
    if count > exact:  # midpoint rule
        total += ((count + 0.5) ** (1 - theta) - (exact + 0.5) ** (1 - theta)) / (1 - theta)
    return total


class Zipfian:
    """Ranks from 0, the most popular, to `count` - 1."""

    __slots__ = ("_alpha", "_count", "_eta", "_random", "_second", "_theta", "_zeta")

    def __init__(self, count: int, random: Random, theta: float = ZIPFIAN_CONSTANT) -> None:
        self._count = count
        self._random = random
        self._theta = theta
        self._zeta = zeta(count, theta)
        self._alpha = 1.0 / (1.0 - theta)
        self._second = 1.0 + 0.5**theta
        self._eta = (1.0 - (2.0 / count) ** (1.0 - theta)) / (1.0 - zeta(2, theta) / self._zeta) if count > 2 else 1.0

    def __call__(self) -> int:
        """The next rank."""
        u = self._random.random()
        at = u * self._zeta
        if at < 1.0:
            return 0
        if at < self._second:
            return min(1, self._count - 1)
        return min(self._count - 1, int(self._count * (self._eta * u - self._eta + 1.0) ** self._alpha))


def stride(count: int) -> int:
    """How far apart popular keys are laid: by the golden ratio, and coprime with `count`, so that each rank has a key of its own."""
    step = max(1, int(count * 0.6180339887498949))
    while gcd(step, count) != 1:
        step += 1
    return step


def chooser(name: str, count: int, random: Random, newest: Callable[[], int]) -> Chooser:
    """The chooser of that name over keys 0 to `count` - 1; `newest` tells the number of the key that was inserted last.

    Raises ValueError for a name that is none of `DISTRIBUTIONS`."""
    if name == "uniform":
        draw = random.random
        return lambda: int(draw() * count)
    if name == "zipfian":
        rank, step = Zipfian(count, random), stride(count)
        return lambda: rank() * step % count
    if name == "latest":
        back = Zipfian(count, random)
        return lambda: max(0, newest() - back())
    raise ValueError(f"there is no key choice {name!r}: choose {', '.join(DISTRIBUTIONS)}")


DISTRIBUTIONS = ("uniform", "zipfian", "latest")


def mixed(shares: dict[str, float], random: Random) -> Callable[[], str]:
    """Draws names, each as often as its share of the total."""
    names, total = list(shares), sum(shares.values())
    bounds: list[float] = []
    for share in shares.values():
        bounds.append((bounds[-1] if bounds else 0.0) + share / total)
    if len(names) == 1:
        (only,) = names
        return lambda: only
    draw, last = random.random, len(names) - 1
    return lambda: names[min(last, bisect_left(bounds, draw()))]
