"""Who makes things go wrong, as `Faults` says. It knows the cluster and nothing of what clients do, but for one thing: it strikes while they are busy.

Each kind of fault has its own clock and its own random stream. What it starts (an outage, a partition, a full disk) may outlast the storm.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from dynamo.model.member import LEAVING, LEFT
from dynamo.testing.disk import Copy
from dynamo.testing.network import Link, split

if TYPE_CHECKING:
    from dynamo.testing.node import Node
    from dynamo.testing.simulator import SimulatedCluster

_OUTAGE_S_MAX = 60.0
_FLAPS_MAX = 6


class Nemesis:
    """The faults of one run."""

    def __init__(self, cluster: SimulatedCluster) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.faults = cluster.faults
        self.counts: dict[str, int] = {}
        self.losses_left = self.faults.losses_max
        self._joins_left = self.faults.late_joiners
        self._leaves_left = self.faults.leavers
        self._backups: dict[bytes, Copy] = {}
        self._lossy: set[bytes] = set()  # nodes that a loss waits for
        self._rng = self.world.stream("nemesis")

    def storm(self, until: float) -> None:
        """Strike until then."""
        kinds: tuple[tuple[str, float, Callable[[Random], None]], ...] = (
            ("crash", self.faults.crash_interval_s, self._crash),
            ("ambush", self.faults.ambush_interval_s, self._ambush),
            ("partition", self.faults.partition_interval_s, self._part),
            ("pause", self.faults.pause_interval_s, self._pause),
            ("clock", self.faults.clock_jump_interval_s, self._jump),
            ("disk", self.faults.disk_interval_s, self._disk),
            ("rot", self.faults.rot_interval_s, self._rot),
            ("clog", self.faults.clog_interval_s, self._clog),
            ("loss", 20.0 if self.losses_left else 0.0, self._lose_store),
            ("join", 20.0 if self._joins_left else 0.0, self._join),
            ("leave", 30.0 if self._leaves_left else 0.0, self._leave),
        )
        for name, interval_s, strike in kinds:
            if interval_s:
                rng = self.world.stream(f"{name}/{self.world.now}")
                self.world.after(rng.expovariate(1 / interval_s), self._strike, name, interval_s, strike, rng, until)
        if self.faults.flapping_s:
            self._flap(self.world.stream(f"flap/{self.world.now}"), until)
        if self.losses_left and self._rng.random() < 0.7:
            node = self._rng.choice(list(self.cluster.nodes.values()))
            self._backups[node.node_id] = node.disk.copy()

    def _strike(self, name: str, interval_s: float, strike: Callable[[Random], None], rng: Random, until: float) -> None:
        if self.world.healed or self.world.now > until:
            return
        self.counts[name] = self.counts.get(name, 0) + 1
        strike(rng)
        self.world.after(rng.expovariate(1 / interval_s), self._strike, name, interval_s, strike, rng, until)

    def _up(self) -> list[Node]:
        return [node for node in self.cluster.nodes.values() if node.replica is not None]

    # --- crashes ----------------------------------------------------------------------------------------------------------------------

    def _crash(self, rng: Random) -> None:
        up = self._up()
        if not up:
            return
        if rng.random() < self.faults.blackout:  # the power fails for all at once: what was acknowledged must be on their disks
            for node in up:
                self.stop(node, False)
        else:
            self.stop(rng.choice(up), self.world.fault_point("stop.clean", self.faults.stop_clean, rng))

    def stop(self, node: Node, clean: bool, boot: int | None = None, soon: float = 0.3) -> None:
        """Stop a node, in order or not, and start it again later; with the probability `soon` at once, as a supervisor would."""
        if node.replica is None or self.world.healed or (boot is not None and boot != node.boots):
            return
        rng = node.rng
        if clean:
            clean = node.stop_cleanly()
        else:
            node.crash(keep_group=self.world.fault_point("group.kept", 0.3, rng))
        self.world.note("stop" if clean else "crash", node)
        if rng.random() < self.faults.row_loss:
            self._lose_rows(node, rng)
        outage_s = 0.02 if rng.random() < soon else self.faults.outage_s
        outage = min(rng.expovariate(1 / outage_s), _OUTAGE_S_MAX)
        self.world.after(outage, self._restart, node, clean)

    def _ambush(self, rng: Random) -> None:
        up = self._up()
        if up:
            rng.choice(up).ambushed = True

    def _restart(self, node: Node, clean: bool) -> None:
        if node.replica is None and node.node_id not in self._lossy:
            node.start(self.cluster.known_members(), clean)

    def _pause(self, rng: Random) -> None:
        up = self._up()
        if up:
            rng.choice(up).pause(0.1 * 600 ** rng.random())

    # --- the network ------------------------------------------------------------------------------------------------------------------

    def _part(self, rng: Random) -> None:
        shape, links = split(rng, list(self.cluster.nodes), list(self.cluster.clients))
        flaps = rng.randint(2, _FLAPS_MAX) if rng.random() < 0.3 else 1
        self.world.note("partition", shape, f"x{flaps}", len(links))
        length = min(rng.expovariate(1 / self.faults.partition_s), _OUTAGE_S_MAX)
        at = 0.0
        for _ in range(flaps):
            self.world.after(at, self._cut, links)
            at += length / flaps
            self.world.after(at, self._mend, links)
            at += length / flaps

    def _cut(self, links: list[Link]) -> None:
        if not self.world.healed:
            self.cluster.network.cut(links)
            self.cluster.links_changed(links)

    def _mend(self, links: list[Link]) -> None:
        if not self.world.healed:
            self.cluster.network.mend(links)
            self.cluster.links_changed(links)

    def _flap(self, rng: Random, until: float) -> None:
        """Cut one node off from the others, again and again. Its clients may still reach it."""
        victim = rng.choice(list(self.cluster.nodes))
        links: list[Link] = [link for other in self.cluster.nodes if other != victim for link in ((victim, other), (other, victim))]
        if rng.random() < 0.5:
            links += [link for client in self.cluster.clients for link in ((victim, client), (client, victim))]
        self.world.note("flapping", self.cluster.nodes[victim])
        at = 0.0
        while self.world.now + at < until:
            self.world.after(at, self._cut, links)
            at += self.faults.flapping_s * rng.uniform(0.5, 1.5)
            self.world.after(at, self._mend, links)
            at += self.faults.flapping_s * rng.uniform(0.5, 2.0)

    def _clog(self, rng: Random) -> None:
        one, other = rng.sample(list(self.cluster.nodes), 2)
        self.cluster.network.clog((one, other), self.world.now + rng.expovariate(1 / self.faults.partition_s))

    # --- clocks and disks -------------------------------------------------------------------------------------------------------------

    def _jump(self, rng: Random) -> None:
        node = rng.choice(list(self.cluster.nodes.values()))
        node.wall_offset_s = rng.choice((-1.0, 1.0)) * 10 ** rng.uniform(-2, 7)
        self.world.note("clock", node, f"{node.wall_offset_s:+.3f}")

    def _disk(self, rng: Random) -> None:
        node = rng.choice(list(self.cluster.nodes.values()))
        kind = rng.choice(("full", "broken", "broken for ever", "slow", "slow", "unreadable"))
        self.world.note("disk", node, kind)
        if kind == "full":
            node.disk.full = True
        elif kind == "slow":
            node.disk.slow = rng.choice((10.0, 100.0, 1000.0))
        elif kind == "unreadable":
            node.disk.unreadable = self.faults.read_failure
        else:
            node.disk.broken = True
        if kind != "broken for ever":  # that ends when all heals: somebody replaces a controller, not the data
            self.world.after(rng.expovariate(1 / self.faults.disk_s), node.disk.repair)

    def _rot(self, rng: Random) -> None:
        node = rng.choice(list(self.cluster.nodes.values()))
        before = dict(node.disk.objects)
        key = node.disk.rot(rng)
        if key is not None:
            self.world.note("rot", node, key)
            self.cluster.rotten.add(key)
            self.cluster.observer.lost(node, {key: before[key]}, {})

    def _lose_rows(self, node: Node, rng: Random) -> None:
        for _ in range(rng.randint(1, 4)):
            before = dict(node.disk.objects)
            key = node.disk.lose_row(rng)
            if key is not None:
                self.world.note("row lost", node, key)
                self.cluster.observer.lost(node, {key: before[key]}, {})

    def _lose_store(self, rng: Random) -> None:
        """A whole store is wiped, set back to an old copy, or replaced by a new node under a new id."""
        if self.losses_left <= 0:
            return
        kind = rng.choice(("wiped", "restored", "replaced"))
        choices = [node for node in self.cluster.nodes.values() if not node.removed and node.node_id not in self._lossy]
        if kind == "restored":
            choices = [node for node in choices if node.node_id in self._backups]
        if not choices:
            return
        self.losses_left -= 1
        node = rng.choice(choices)
        if node.replica is not None:
            node.crash(keep_group=True)
        self._lossy.add(node.node_id)
        before = dict(node.disk.objects)
        if kind == "restored":
            node.disk.restore(self._backups[node.node_id])
        else:
            node.disk.wipe()
        self.world.note("store", kind, node)
        self.cluster.observer.lost(node, before, node.disk.objects)
        self._come_back(node, kind, rng)

    def _come_back(self, node: Node, kind: str, rng: Random) -> None:
        """After a loss: under the old id with a new actor, or as a new node in place of one that an administrator removes."""
        members = self.cluster.known_members()
        if not members or (kind == "replaced" and not self.cluster.administer(node.node_id, LEFT)):
            self.world.after(1.0, self._come_back, node, kind, rng)
            return
        if kind == "replaced":
            node.removed = True
            self.cluster.add_node()
        else:
            self._lossy.discard(node.node_id)
            self.world.after(rng.expovariate(1 / self.faults.outage_s), self._restart, node, False)

    # --- the membership ---------------------------------------------------------------------------------------------------------------

    def _join(self, rng: Random) -> None:
        if self._joins_left and self.cluster.known_members():
            self._joins_left -= 1
            self.cluster.add_node()

    def _leave(self, rng: Random) -> None:
        normal = [node for node in self.cluster.nodes.values() if not node.removed and node.node_id not in self.cluster.leaving]
        if self._leaves_left and len(normal) > max(3, self.cluster.definition.n):
            node = rng.choice(normal)
            if self.cluster.administer(node.node_id, LEAVING):
                self._leaves_left -= 1
                self.cluster.leaving.add(node.node_id)
                self.world.note("leaving", node)

    def heal(self) -> None:
        """End all faults: nodes come back, disks work, whatever was lost comes back as it can."""
        for node in self.cluster.nodes.values():
            node.disk.repair()
            if node.paused:
                node.resume(node.boots)
        self._lossy.clear()
        for node in list(self.cluster.nodes.values()):
            if node.replica is None and not node.removed:
                node.start(self.cluster.known_members(), False)
