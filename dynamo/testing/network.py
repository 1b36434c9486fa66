"""The simulated network: links that lose, double, delay, reorder, clog and part. It carries; it does not know what it carries.

A link is a pair (from, to), so it can be cut in one direction only. Ends are node ids (bytes) or client numbers (int). What the network may do to
a message differs: between nodes it may come twice (two nodes may have two connections, and a lost one is dialled again), to and from
clients it may not (their connection is one stream), but it may be lost with its connection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log
from random import Random
from typing import Any

from dynamo.testing.events import World
from dynamo.testing.faults import Faults
from dynamo.testing.wire_bounds import Wire

End = bytes | int
Link = tuple[End, End]


class Network:
    """All links of a run."""

    __slots__ = ("_clogged", "_cuts", "_delay_mean_s", "_drop", "_duplicate", "_last", "_random", "_reorder", "_slow", "faults", "wire", "world")

    def __init__(self, world: World, faults: Faults) -> None:
        self.world = world
        self.faults = faults
        self.wire: Wire | None = None  # what receivers take; None: anything
        self._random = world.stream("network").random
        self._delay_mean_s = faults.delay_mean_s
        self._reorder = faults.reorder
        # Asked for with each message: what `World.fault_point` would look up each time.
        self._drop = world.forced.get("message.drop", faults.drop)
        self._duplicate = world.forced.get("message.duplicate", faults.duplicate)
        self._slow = world.forced.get("message.slow", faults.slow)
        self._cuts: dict[Link, int] = {}  # link -> how many partitions cut it
        self._clogged: dict[Link, float] = {}  # link -> until when it holds back
        self._last: dict[Link, float] = {}  # link -> arrival of its last message, where messages keep their order

    def passes(self, source: End, destination: End) -> bool:
        """Whether the link is not cut."""
        return (source, destination) not in self._cuts

    def cut(self, links: Sequence[Link]) -> None:
        """Cut links, each in its one direction."""
        for link in links:
            self._cuts[link] = self._cuts.get(link, 0) + 1

    def mend(self, links: Sequence[Link]) -> None:
        """Undo one `cut` of these links."""
        for link in links:
            count = self._cuts.get(link, 0)
            if count > 1:
                self._cuts[link] = count - 1
            elif count:
                del self._cuts[link]

    def mend_all(self) -> None:
        """Undo every cut and clog."""
        self._cuts.clear()
        self._clogged.clear()

    def clog(self, link: Link, until: float) -> None:
        """What is sent over the link arrives no earlier than that."""
        self._clogged[link] = until

    def carry(self, source: End, destination: End, once: bool, deliver: Callable[..., None], *arguments: Any) -> None:
        """Carry a message, the last of the arguments, as far as link and receiver let it. `once`: it must not come twice."""
        if self.wire is not None and not self.wire.passes(source, destination, arguments[-1]):
            return
        world, random = self.world, self._random
        delay = -log(1.0 - random()) * self._delay_mean_s
        if world.healed:
            world.push(world.now + delay, deliver, arguments)
            return
        link = (source, destination)
        if link in self._cuts or (self._drop and random() < self._drop):
            return
        if self._duplicate and not once and random() < self._duplicate:
            world.push(world.now + (delay + random() * 50 * self._delay_mean_s), deliver, arguments)
        if self._slow and random() < self._slow:
            delay *= 1.0 / max(random(), 1e-3)  # heavy-tailed
            delay *= 10.0
        arrival = world.now + delay
        if self._clogged and (held_back := self._clogged.get(link, 0.0)) > arrival:
            arrival = held_back
        if not self._reorder:
            last = self._last.get(link, 0.0)
            if last > arrival:
                arrival = last
            self._last[link] = arrival
        world.push(arrival, deliver, arguments)


def split(rng: Random, nodes: Sequence[bytes], clients: Sequence[int]) -> tuple[str, list[Link]]:
    """(shape, links to cut) of a random partition: in two halves, one way only, one node alone, one link, or a ring in which each node reaches
    only its neighbours. Some clients end up on either side."""
    order = list(nodes)
    rng.shuffle(order)
    shape = rng.choice(("halves", "halves", "one-way", "alone", "link", "ring"))
    if shape == "ring" and len(order) > 3:
        count = len(order)
        near = {(order[i], order[(i + step) % count]) for i in range(count) for step in (1, -1)}
        return shape, [(a, b) for a in order for b in order if a != b and (a, b) not in near]
    if shape == "link" and len(order) > 1:
        return shape, [(order[0], order[1]), (order[1], order[0])]
    where = 1 if shape == "alone" else rng.randint(1, max(1, len(order) - 1))
    one: list[End] = [*order[:where]]
    other: list[End] = [*order[where:]]
    for client in clients:
        side = rng.choice((one, other, None))
        if side is not None:
            side.append(client)
    links: list[Link] = [(a, b) for a in one for b in other]
    if shape != "one-way":
        links += [(b, a) for a in one for b in other]
    return shape, links
