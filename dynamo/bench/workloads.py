"""What a run does: the core workloads of YCSB (Cooper et al., SoCC 2010, table 2), and reads and writes alone.

An update replaces a value, an insertion adds a new key, a read-modify-write reads a key and writes it with the context it was shown; `scan` reads
1 to 100 keys, going on where the connection's last one ended: keys are hashed, so that there is no scan from a chosen key on, as YCSB's E has it.
"""

from __future__ import annotations

from dataclasses import dataclass

READ, UPDATE, INSERT, SCAN, MODIFY = "read", "update", "insert", "scan", "read-modify-write"
SCAN_KEYS_MAX = 100


@dataclass(frozen=True, slots=True)
class Workload:
    """Shares of the operations, and which keys they meet unless asked otherwise."""

    shares: dict[str, float]
    distribution: str
    about: str


WORKLOADS: dict[str, Workload] = {
    "A": Workload({READ: 0.5, UPDATE: 0.5}, "zipfian", "half reads, half updates"),
    "B": Workload({READ: 0.95, UPDATE: 0.05}, "zipfian", "95 % reads, 5 % updates"),
    "C": Workload({READ: 1.0}, "zipfian", "reads"),
    "D": Workload({READ: 0.95, INSERT: 0.05}, "latest", "95 % reads of the newest keys, 5 % insertions"),
    "E": Workload({SCAN: 0.95, INSERT: 0.05}, "zipfian", "95 % scans of up to 100 keys, 5 % insertions"),
    "F": Workload({READ: 0.5, MODIFY: 0.5}, "zipfian", "half reads, half read-modify-writes"),
    "get": Workload({READ: 1.0}, "uniform", "reads, all keys alike"),
    "put": Workload({UPDATE: 1.0}, "uniform", "updates, all keys alike"),
}


def key_of(number: int) -> bytes:
    """The key of that number: 13 bytes."""
    return b"key%010d" % number
