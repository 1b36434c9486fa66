"""What a benchmark is to do, and what was measured of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from dynamo._core import histogram
from dynamo.bench.choosers import DISTRIBUTIONS
from dynamo.bench.protocols import PEERS, PROTOCOLS
from dynamo.bench.workloads import SCAN, WORKLOADS
from dynamo.errors import ConfigError


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

    def __post_init__(self) -> None:
        """Raises ConfigError for what cannot be run."""
        if self.workload not in WORKLOADS or self.distribution not in ("", *DISTRIBUTIONS) or self.protocol not in PROTOCOLS:
            raise ConfigError(f"there is no workload {self.workload!r}, key choice {self.distribution!r} or protocol {self.protocol!r}")
        peer = PEERS.get(self.protocol)
        if peer and SCAN in WORKLOADS[self.workload].shares:
            raise ConfigError(f"workload {self.workload} scans, and {peer.NAME} has no scan that compares")
        if peer and self.pipeline > 1 and not peer.PIPELINED:
            raise ConfigError(f"a connection to {peer.NAME} takes one request at a time, not {self.pipeline}: use more connections instead")
        for name, least in (("connections", 1), ("pipeline", 1), ("keys", 1), ("runs", 1), ("processes", 1), ("value_bytes", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is at least {least}, not {getattr(self, name)}")
        for name, length in (("seconds", self.seconds), ("warm_up_s", self.warm_up_s), ("rate", self.rate)):
            if not 0 <= length < 1e9 or (name == "seconds" and length == 0):
                raise ConfigError(f"{name} is a number above 0 and below a billion, not {length}")


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
    nodes_core: str = ""  # that all nodes said they run on; empty for others than dynamo's

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
