"""One run, from seed to verdict: `run(seed)` -> Report; and many of them on several cores: `run_many`.

First safety: storms of operations and faults, with calm between them in which only what is slow goes on. Then everything heals, and within three
exchange periods, without any client reading, the cluster must have converged: owners byte-identical, no hints, one view of the membership. At
last the checkers judge the history.
"""

from __future__ import annotations

import gc
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

from dynamo._core import CORE
from dynamo.client.core import RetryPolicy
from dynamo.replication import actor
from dynamo.testing.addresses import TRACE
from dynamo.testing.checkers import Violation, check, last_writes_lost
from dynamo.testing.events import World
from dynamo.testing.faults import Faults
from dynamo.testing.growth import grow
from dynamo.testing.history import History
from dynamo.testing.moves import run_addresses
from dynamo.testing.node import COMMIT_S_MAX
from dynamo.testing.scanning import Scanner
from dynamo.testing.simulator import SimulatedCluster, draw_cluster, draw_settings
from dynamo.testing.wire_bounds import Wire, WireBounds
from dynamo.testing.workloads import Mix, Worker, read_everywhere

EXCHANGE_PERIODS = 3
_ATTEMPTS_END_S = 8.0  # the longest a verb of a workload may still be under way when a storm is over
_REPORTED_MAX = 20
_GROWS = 0.3  # share of seeds with a growing world
_AHEAD = 8  # seeds for each core
_GARBAGE_MAX = 200_000  # containers that a worker process has not given back before it looks for cycles: some tens of megabytes
_TRACE_BEFORE_S, _TRACE_LINES_MAX = 5.0, 400


@dataclass(frozen=True, slots=True)
class Profile:
    """How much one run does."""

    operations: int = 1_000
    virtual_s: float = 600.0
    storm_s: tuple[float, float] = (5.0, 15.0)
    calm_s: tuple[float, float] = (15.0, 60.0)


FULL = Profile()
SHORT = Profile(operations=600, virtual_s=90.0, storm_s=(5.0, 12.0), calm_s=(3.0, 10.0))


@dataclass(slots=True)
class Report:
    """The outcome of one seed."""

    seed: int
    violations: list[Violation]
    trace_hash: str
    operations: int
    writes: dict[str, int]
    reads: int
    virtual_s: float
    delivered: int
    last_writes_lost: int
    faults: dict[str, int]
    configuration: str
    log: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """For `-o json`."""
        return {
            "seed": self.seed,
            "trace_hash": self.trace_hash,
            "violations": [{"checker": v.checker, "text": v.text, "operation": v.operation, "time": round(v.time, 6)} for v in self.violations],
            "operations": self.operations,
            "writes": self.writes,
            "reads": self.reads,
            "virtual_s": round(self.virtual_s, 3),
            "messages": self.delivered,
            "last_writes_lost": self.last_writes_lost,
            "faults": self.faults,
        }

    def around(self, violation: Violation) -> list[str]:
        """The part of the trace that leads to a violation: all that names its operation, and the last seconds before it."""
        name = violation.operation[:8]
        found = []
        for line in self.log:
            time = float(line[:11])
            if (name and name in line) or violation.time - _TRACE_BEFORE_S <= time <= violation.time + 0.1:
                found.append(line)
        return found[-_TRACE_LINES_MAX:]


def build(seed: int, *, faults: Faults | None = None, nodes: int | None = None, log: bool = False, buffered: bool = False) -> SimulatedCluster:
    """The cluster of a seed, with everything drawn that is not given."""
    drawn = Faults.draw(World(seed).stream("faults")) if faults is None else faults
    world = World(seed, log=log, forced=drawn.forced)
    rng = world.stream("configuration")
    count = rng.randint(3, 7)
    count = nodes or count
    retry = RetryPolicy(attempts_max=rng.choice((1, 4, 8, 8)), attempt_timeout_s=rng.choice((0.15, 0.5, 1.0)), down_s=rng.choice((0.02, 0.1, 0.5)))
    definition, settings, clients = draw_cluster(rng, count), draw_settings(rng), rng.randint(3, 8)
    bounds = WireBounds.draw(world.stream("wire"))
    settings = replace(settings, **bounds.settings())
    pinned = rng.choice((0.0, 0.5, 1.0))
    world.note("seed", seed, "faults:", drawn)
    world.note("cluster", f"nodes={count} n={definition.n} r={definition.r} w={definition.w} q={definition.partitions} clients={clients}", settings, bounds)
    cluster = SimulatedCluster(
        world, drawn, nodes=count, definition=definition, settings=settings, retry=retry, clients=clients, pinned=pinned, buffered=buffered,
    )  # fmt: skip
    cluster.network.wire = Wire(bounds)
    return cluster


def run(seed: int, *, profile: Profile = FULL, faults: Faults | None = None, nodes: int | None = None, log: bool = False, buffered: bool = False) -> Report:
    """Run one seed: work under faults, heal, converge, judge. `buffered`: with nodes of that durability, whose crashes take their write buffers along;
    what is drawn is the same, what happens is another history."""
    return run_history(seed, profile=profile, faults=faults, nodes=nodes, log=log, buffered=buffered)[0]


def run_history(
    seed: int, *, profile: Profile = FULL, faults: Faults | None = None, nodes: int | None = None, log: bool = False, buffered: bool = False
) -> tuple[Report, History]:
    """The same, with the whole history."""
    block, collects = actor.LEASE_BLOCK, gc.isenabled()
    try:
        gc.disable()  # a run is short and makes few cycles; looking for them takes a tenth of its time
        # A lease of the usual million counters would never end here, and what happens at its end never be seen.
        actor.LEASE_BLOCK = World(seed).stream("lease").choice((4, 50, block))
        cluster = build(seed, faults=faults, nodes=nodes, log=log, buffered=buffered)
        mix = Mix(cluster.world.stream("mix"))
        workers = [Worker(client, mix) for client in cluster.clients.values()]
        Scanner(cluster, RetryPolicy())
        crashed: list[Violation] = []
        try:
            work(cluster, workers, profile)
            converge(cluster)
        except Exception as error:  # whatever the product raises into its driver would end a real node
            crashed.append(Violation("crash", _where(error), time=cluster.world.now))
            cluster.world.note("crash", error)
        report, history = judge(cluster, sum(worker.done for worker in workers), crashed), cluster.history
        cluster.dismantle()
        if faults is None:
            _other_worlds(report, log)
        return report, history
    finally:
        actor.LEASE_BLOCK = block
        if collects:
            gc.enable()


def _other_worlds(report: Report, log: bool) -> None:
    """The seed's other worlds: one in which addresses change hands and no data is kept, and for some one that does nothing but grow."""
    found, counts, lines = run_addresses(report.seed, log=log)
    report.violations = [*report.violations, *found][:_REPORTED_MAX]
    report.faults |= {f"{TRACE}: {name}": count for name, count in counts.items()}
    report.log += lines
    if World(report.seed).stream("grows").random() < _GROWS:
        grown = grow(report.seed, log)
        report.violations = [*report.violations, *grown.violations][:_REPORTED_MAX]
        report.faults["growth: joins"] = grown.joins
        report.log += list(grown.world.log or ())


def _where(error: Exception) -> str:
    """An exception and the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    at = f"{frames[-1].filename.rpartition('dynamo/')[2]}:{frames[-1].lineno}" if frames else "?"
    return f"{type(error).__name__} at {at}: {error}"


def work(cluster: SimulatedCluster, workers: list[Worker], profile: Profile) -> None:
    """Storms and calms until enough was done."""
    world = cluster.world
    rng = world.stream("storms")
    rounds = max(1, round(profile.virtual_s / (sum(profile.storm_s) + sum(profile.calm_s)) * 2))
    share = -(-profile.operations // (rounds * len(workers)))
    while world.now < profile.virtual_s or sum(worker.done for worker in workers) < profile.operations:
        length = rng.uniform(*profile.storm_s)
        cluster.storm = True
        cluster.nemesis.storm(world.now + length)
        for worker in workers:
            worker.work(share)
        world.run(world.now + length)
        cluster.storm = False
        for worker in workers:
            worker.left = 0
        world.run(world.now + rng.uniform(*profile.calm_s))


def converge(cluster: SimulatedCluster) -> None:
    """Heal, and give the cluster three exchange periods."""
    world = cluster.world
    world.run(world.now + _ATTEMPTS_END_S)
    cluster.heal()
    settings = cluster.settings
    # Time for the slowest commits to end, for drivers and detectors to notice that all are back, and for nodes to start.
    world.run(world.now + COMMIT_S_MAX + 2.0 + 5 * cluster.faults.notice_s)
    if cluster.rotten:  # what rotted where it lay is found by whoever reads it
        read_everywhere(cluster, [cluster.places[key] for key in sorted(cluster.rotten)])
    # A period is drawn anew each time, a quarter longer at most; an exchange itself takes a moment.
    for _ in range(EXCHANGE_PERIODS):
        world.run(world.now + settings.exchange_interval_s * 1.25 + 1.0)
        if not cluster.differences():
            break


def judge(cluster: SimulatedCluster, operations: int, crashed: list[Violation]) -> Report:
    """The verdict. Of a run that crashed the history is judged as far as it goes."""
    differences: list[Violation] = []
    if not crashed:
        differences = cluster.differences()
        cluster.record_final()
    refused = [Violation("wire", text) for text in cluster.network.wire.refusals.values()] if cluster.network.wire is not None else []
    found = [*crashed, *refused, *cluster.observer.violations, *check(cluster.history), *differences]
    world = cluster.world
    configuration = f"nodes={len(cluster.nodes)} n={cluster.definition.n} faults: {cluster.faults}"
    return Report(cluster.world.seed, found[:_REPORTED_MAX], world.trace_hash, operations, cluster.history.counts(), cluster.reads, world.now,
                  world.delivered, last_writes_lost(cluster.history), cluster.nemesis.counts, configuration, list(world.log or ()))  # fmt: skip


def run_many(seeds: Iterable[int], *, jobs: int = 1, profile: Profile = FULL, buffered: bool = False) -> Iterator[Report]:
    """Reports in the order of the seeds, made on so many cores."""
    one = partial(run, profile=profile, buffered=buffered)
    if jobs <= 1:
        yield from map(one, seeds)
        return
    pool = ProcessPoolExecutor(jobs, initializer=_prepare, initargs=(CORE,))
    try:
        # The core that is free takes the next seed, so all end together. Some ahead, so that a long one holds up nobody; not all, so that whoever
        # stops early has not to wait for them.
        left = iter(seeds)
        under_way = deque(pool.submit(_run_one, one, seed) for seed in islice(left, _AHEAD * jobs))
        while under_way:
            yield under_way.popleft().result()
            under_way.extend(pool.submit(_run_one, one, seed) for seed in islice(left, 1))
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare(core: str) -> None:
    """A worker runs on the core of its parent, which says what was run. What it has from its parent is no garbage and is not looked through again; what
    a run leaves is, when there is enough of it."""
    assert core == CORE, f"a worker process runs on the {CORE} core, its parent on the {core} one"
    gc.collect()
    gc.freeze()
    gc.disable()


def _run_one(one: Callable[[int], Report], seed: int) -> Report:
    report = one(seed)
    if gc.get_count()[0] > _GARBAGE_MAX:
        gc.collect()
    return report
