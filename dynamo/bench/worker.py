"""A run of the load generator: processes that each drive a share of the connections, started, told what to do, and summed up.

Several processes, because one would be the bottleneck before the servers are. They go through the same phases at the same time: all keys are written
once, then the load runs unmeasured for a while, then as often as asked measured.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from random import Random
from time import monotonic, process_time
from typing import Any

from dynamo import errors
from dynamo._core import histogram
from dynamo.bench.choosers import chooser, mixed
from dynamo.bench.load import Connection, Load
from dynamo.bench.protocols import DynamoTalk, RedisTalk, Talk
from dynamo.bench.workloads import INSERT, WORKLOADS
from dynamo.errors import DynamoError, Timeout

_PROGRESS_S = 0.25
_SILENCE_S_MAX = 60.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run. `connections` in all, spread over the addresses and processes; `pipeline` requests under way on each."""

    addresses: tuple[str, ...]
    workload: str = "C"
    distribution: str = ""  # the workload's own
    protocol: str = "dynamo"
    connections: int = 50
    pipeline: int = 1
    keys: int = 100_000
    value_bytes: int = 100
    r: int = 0
    w: int = 0
    rate: float = 0.0  # operations a second in all; 0: as many as can be
    seconds: float = 10.0
    warm_up_s: float = 3.0
    runs: int = 1
    processes: int = 1
    seed: int = 1
    load: bool = True


@dataclass(slots=True)
class Measured:
    """One measured run, of one process or of all."""

    seconds: float
    operations: int
    cpu_s: float
    reads: int = 0
    siblings: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    histograms: dict[str, bytes] = field(default_factory=dict)  # of latencies in nanoseconds by operation, as `Histogram.to_bytes` makes them

    @property
    def throughput(self) -> float:
        """Operations a second."""
        return self.operations / self.seconds

    def latencies(self) -> dict[str, histogram.Histogram]:
        """Of each operation, in nanoseconds."""
        return {operation: histogram.Histogram.from_bytes(data) for operation, data in sorted(self.histograms.items())}

    def add(self, part: Measured) -> None:
        """Count in what another process measured at the same time."""
        self.seconds = max(self.seconds, part.seconds)
        self.operations += part.operations
        self.cpu_s += part.cpu_s
        self.reads += part.reads
        self.siblings += part.siblings
        for text, count in part.errors.items():
            self.errors[text] = self.errors.get(text, 0) + count
        mine = self.latencies()
        for operation, latencies in part.latencies().items():
            mine.setdefault(operation, histogram.Histogram(latencies.significant_bits)).merge(latencies)
        self.histograms = {operation: latencies.to_bytes() for operation, latencies in mine.items()}


def _work(plan: Plan, number: int, pipe: Pipe) -> None:
    """The life of one process."""
    try:
        generator = Generator(plan, number)
        try:
            for phase in generator.phases(lambda: pipe.send(("progress", generator.load.answered))):
                pipe.send(("phase", phase))
                if pipe.recv() != "go":
                    return
            pipe.send(("end", None))
        finally:
            generator.load.close()
    except DynamoError as error:
        pipe.send(("error", (type(error).__name__, str(error))))
    except KeyboardInterrupt:
        return


class Generator:
    """One process's share of a plan."""

    def __init__(self, plan: Plan, number: int) -> None:
        self._plan = plan
        self._number = number
        random = Random(f"{plan.seed}/{number}")
        self._value = random.randbytes(plan.value_bytes)
        mine = range(number, plan.connections, plan.processes)
        self._talks = [self._talk(plan.addresses[at % len(plan.addresses)]) for at in mine]
        self._connections = [Connection(plan.addresses[at % len(plan.addresses)], talk, plan.pipeline) for at, talk in zip(mine, self._talks, strict=True)]
        self.load = Load(self._connections)
        workload = WORKLOADS[plan.workload]
        self._operation = mixed(workload.shares, random)
        self._choose = chooser(plan.distribution or workload.distribution, plan.keys, random, lambda: self._inserted - 1)
        self._inserted = plan.keys

    def _talk(self, address: str) -> Talk:
        plan = self._plan
        if plan.protocol == "redis":
            return RedisTalk(self._value)
        return DynamoTalk(address, self._value, operation_prefix=os.urandom(8), r=plan.r, w=plan.w)

    def _draw(self) -> tuple[str, int]:
        operation = self._operation()
        if operation == INSERT:
            self._inserted += 1
            return INSERT, self._plan.keys + (self._inserted - self._plan.keys - 1) * self._plan.processes + self._number
        return operation, self._choose()

    def phases(self, progress: Callable[[], None]) -> Iterator[Measured | None]:
        """Go through the phases; yields None after each that is not measured, and what was measured after the others."""
        plan = self._plan
        told = monotonic()

        def now_and_then() -> None:
            nonlocal told
            if monotonic() - told > _PROGRESS_S:
                told = monotonic()
                progress()

        self.load.progress = now_and_then
        yield None
        if plan.load:
            self.load.all_of((INSERT, number) for number in range(self._number, plan.keys, plan.processes))
        yield None
        if plan.warm_up_s:
            self._run(plan.warm_up_s)
        yield None
        for _ in range(plan.runs):
            yield self._measured()

    def _run(self, seconds: float) -> float:
        rate = self._plan.rate / self._plan.processes
        return self.load.open(self._draw, seconds, rate) if rate else self.load.closed(self._draw, seconds)

    def _measured(self) -> Measured:
        for talk in self._talks:
            talk.reads, talk.siblings, talk.errors = 0, 0, {}
        cpu = process_time()
        seconds = self._run(self._plan.seconds)
        measured = Measured(seconds, 0, process_time() - cpu)
        for talk in self._talks:
            measured.reads += talk.reads
            measured.siblings += talk.siblings
            for text, count in talk.errors.items():
                measured.errors[text] = measured.errors.get(text, 0) + count
        measured.operations = sum(latencies.count for latencies in self.load.histograms.values())
        measured.histograms = {operation: latencies.to_bytes() for operation, latencies in self.load.histograms.items()}
        return measured


def run(plan: Plan, progress: Callable[[str, int], None] = lambda phase, answered: None) -> list[Measured]:
    """Run the plan and return what was measured, run by run. `progress` is told the phase and how many operations were answered in all.

    Raises DynamoError where a server cannot be reached, breaks a connection, or is silent for a minute."""
    context = get_context("spawn")
    plan = replace(plan, processes=max(1, min(plan.processes, plan.connections)))
    pipes, children = [], []
    try:
        for number in range(plan.processes):
            ours, theirs = context.Pipe()
            child = context.Process(target=_work, args=(plan, number, theirs), daemon=True)
            child.start()
            theirs.close()
            pipes.append(ours)
            children.append(child)
        return _conduct(plan, pipes, progress)
    finally:
        for pipe in pipes:
            pipe.close()
        for child in children:
            child.terminate()
            child.join()


PHASES = ("connecting", "writing all keys", "warming up")


def _conduct(plan: Plan, pipes: list[Any], progress: Callable[[str, int], None]) -> list[Measured]:
    """Lead all processes from phase to phase."""
    results: list[Measured] = []
    answered = dict.fromkeys(range(len(pipes)), 0)
    names = [*PHASES, *(f"run {at + 1} of {plan.runs}" for at in range(plan.runs))]
    for name in names:
        outcomes: list[Any] = []
        waiting = set(pipes)
        while waiting:
            ready = wait(list(waiting), _SILENCE_S_MAX)
            if not ready:
                raise Timeout(f"{name}: nothing was answered for {_SILENCE_S_MAX:.0f} s")
            for pipe in ready:
                what, value = _received(pipe, name)
                if what == "progress":
                    answered[pipes.index(pipe)] = value
                    progress(name, sum(answered.values()))
                else:
                    waiting.discard(pipe)
                    outcomes.append(value)
        for pipe in pipes:
            pipe.send("go")
        if name not in PHASES:
            total = outcomes[0]
            for part in outcomes[1:]:
                total.add(part)
            results.append(total)
    return results


def _received(pipe: Any, phase: str) -> tuple[str, Any]:
    try:
        what, value = pipe.recv()
    except EOFError:
        raise DynamoError(f"a process of the load generator ended while {phase}") from None
    if what == "error":
        kind, text = value
        raise getattr(errors, kind, DynamoError)(text)
    return what, value
