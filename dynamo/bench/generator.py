"""One process of the load generator: its share of the connections, and the phases it goes through when its parent says so."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection as Pipe
from random import Random
from time import monotonic, process_time

from dynamo._core import CORE
from dynamo.bench.choosers import chooser, mixed
from dynamo.bench.load import Connection, Load
from dynamo.bench.plan import Measured, Plan
from dynamo.bench.protocols import PEERS, DynamoTalk, Talk
from dynamo.bench.workloads import INSERT, WORKLOADS
from dynamo.errors import ConfigError, DynamoError

_PROGRESS_S = 0.25


def work(plan: Plan, number: int, pipe: Pipe, core: str = CORE, nodes_core: str = "") -> None:
    """The life of the process. Sends ("progress", operations answered so far) now and then, ("phase", what was measured in it) after each phase,
    whereupon it waits for a word, and ("error", (class, text)) when it cannot go on. `core`: the one that is said to generate the load;
    `nodes_core`: the one that all nodes must run on, where that is known."""
    try:
        if core != CORE:
            raise ConfigError(f"a process of the load generator runs on the {CORE} core, and who started it on the {core} one")
        generator = Generator(plan, number, nodes_core)
        try:
            for phase in generator.phases(lambda: pipe.send(("progress", generator.load.answered))):
                pipe.send(("phase", phase))
                pipe.recv()
        finally:
            generator.load.close()
    except DynamoError as error:
        pipe.send(("error", (type(error).__name__, str(error))))
    except (KeyboardInterrupt, EOFError, BrokenPipeError):
        return  # whoever started us has ended


class Generator:
    """One process's share of a plan."""

    def __init__(self, plan: Plan, number: int, nodes_core: str = "") -> None:
        """Connects. Raises what a connection raises, and ConfigError for addresses of two clusters, or for nodes on two cores, or on another one than
        `nodes_core`: no figure would be true of both."""
        self._plan = plan
        self._number = number
        random = Random(f"{plan.seed}/{number}")
        self._value = random.randbytes(plan.value_bytes)
        self.load = Load()
        self._talks: list[Talk] = []
        addresses = [plan.addresses[at % len(plan.addresses)] for at in range(number, plan.connections, plan.processes)]
        for address in addresses:
            talk = self._talk(address)
            self.load.add(Connection(address, talk, plan.pipeline))
            self._talks.append(talk)
        clusters = {talk.cluster_id for talk in self._talks if isinstance(talk, DynamoTalk)}
        if len(clusters) > 1:
            raise ConfigError(f"the addresses {', '.join(plan.addresses)} belong to {len(clusters)} clusters")
        cores = {talk.core: address for address, talk in zip(addresses, self._talks, strict=True) if isinstance(talk, DynamoTalk)}
        if len(cores) > 1 or (nodes_core and cores and nodes_core not in cores):
            told = ", ".join(f"{address} runs on the {core} core" for core, address in sorted(cores.items()))
            raise ConfigError(told + (f", and the {nodes_core} one is to be measured" if nodes_core else ": measure one at a time"))
        self._nodes_core = next(iter(cores), "")
        workload = WORKLOADS[plan.workload]
        self._operation = mixed(workload.shares, random)
        self._choose = chooser(plan.distribution or workload.distribution, plan.keys, random, self._newest)
        self._insertions = 0

    def _talk(self, address: str) -> Talk:
        plan = self._plan
        if plan.protocol in PEERS:
            return PEERS[plan.protocol](address, self._value)
        return DynamoTalk(address, self._value, operation_prefix=os.urandom(8), r=plan.r, w=plan.w)

    def _inserted(self, count: int) -> int:
        """The number of the `count`-th key that this process inserts; the processes' numbers are interleaved."""
        return self._plan.keys + (count - 1) * self._plan.processes + self._number

    def _newest(self) -> int:
        """The key that was last known to be there."""
        return self._inserted(self.load.inserted) if self.load.inserted else self._plan.keys - 1

    def _draw(self) -> tuple[str, int]:
        operation = self._operation()
        if operation == INSERT:
            self._insertions += 1
            return INSERT, self._inserted(self._insertions)
        return operation, self._choose()

    def phases(self, progress: Callable[[], None]) -> Iterator[Measured | None]:
        """Go through the phases; yields None after each that is not measured, and what was measured after the others. Raises DynamoError where
        a key could not be written: what follows would be measured on keys that are not there."""
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
            self.load.inserted = 0
            if errors := self._errors():
                raise DynamoError(f"not all keys could be written: {'; '.join(f'{count} times {text}' for text, count in errors.items())}")
        yield None
        if plan.warm_up_s:
            self._run(plan.warm_up_s)
        yield None
        for _ in range(plan.runs):
            yield self._measured()

    def _errors(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for talk in self._talks:
            for text, count in talk.errors.items():
                found[text] = found.get(text, 0) + count
        if self.load.unsent:
            found["due, and never sent for want of a free slot"] = self.load.unsent
        return found

    def _run(self, seconds: float) -> float:
        rate = self._plan.rate / self._plan.processes
        return self.load.open(self._draw, seconds, rate) if rate else self.load.closed(self._draw, seconds)

    def _measured(self) -> Measured:
        for talk in self._talks:
            talk.reads, talk.siblings, talk.errors = 0, 0, {}
        cpu = process_time()
        seconds = self._run(self._plan.seconds)
        histograms = self.load.histograms
        return Measured(
            seconds,
            sum(latencies.count for latencies in histograms.values()),
            process_time() - cpu,
            sum(talk.reads for talk in self._talks),
            sum(talk.siblings for talk in self._talks),
            self._errors(),
            {operation: latencies.to_bytes() for operation, latencies in histograms.items()},
            self._nodes_core,
        )
