"""The explicit causal-history model, and the checkers that hold a cluster's final state against it.

The model knows what every client was really *shown*: a write's ancestors are the writes whose values its client had been given when it wrote
(and theirs), plus its own earlier write where it chained on that one's token. It never looks at what a token's bytes cover: that is exactly
what is under test. Values are operation ids, so a value names its write.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

ACKNOWLEDGED, UNKNOWN, REFUSED = "acknowledged", "unknown", "refused"


@dataclass(slots=True)
class Write:
    """One client write. `ancestors` is closed: it holds the ancestors of each of its members."""

    operation: bytes
    key: bytes
    tombstone: bool
    ancestors: frozenset[bytes]
    outcome: str = UNKNOWN
    attempts: int = 0  # times it was sent; two coordinators that cannot see each other make two versions of one operation


@dataclass(slots=True)
class History:
    """Every write of a run by operation id, and the violations seen while it ran."""

    writes: dict[bytes, Write] = field(default_factory=dict)
    dots: dict[tuple[bytes, int, int], tuple[bytes, int]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def begin(self, operation: bytes, key: bytes, tombstone: bool, shown: frozenset[bytes]) -> None:
        """A client is about to write, having been shown these writes (closed)."""
        assert operation not in self.writes
        self.writes[operation] = Write(operation, key, tombstone, shown)

    def closure(self, operations: Iterable[bytes]) -> frozenset[bytes]:
        """The writes and all their ancestors."""
        found: set[bytes] = set()
        for operation in operations:
            found.add(operation)
            found |= self.writes[operation].ancestors
        return frozenset(found)

    def check_shown(self, key: bytes, operations: Iterable[bytes]) -> None:
        """A read returned these values: each must be a write of that key that may have happened."""
        for operation in operations:
            write = self.writes.get(operation)
            if write is None or write.key != key:
                self.violations.append(f"phantom: a read of {key!r} returned {operation.hex()[:8]}, which nobody wrote there")
            elif write.outcome == REFUSED:
                self.violations.append(f"truthful: {operation.hex()[:8]} on {key!r} was refused with maybe_applied=False and is visible")

    def check_dot(self, key: bytes, actor: int, counter: int, operation: bytes, value_hash: int) -> None:
        """A version was seen somewhere: its dot may name no other value."""
        bound = self.dots.setdefault((key, actor, counter), (operation, value_hash))
        if bound != (operation, value_hash):
            self.violations.append(f"dots: ({actor:016x}, {counter}) of {key!r} names both {bound[0].hex()[:8]} and {operation.hex()[:8]}")

    def named(self, key: bytes, dots: Iterable[tuple[int, int, int]]) -> list[bytes]:
        """The operations of tombstones, which come without a value, by the dots they were last seen under."""
        return [self.dots[key, actor, counter][0] for actor, counter, _ in dots if (key, actor, counter) in self.dots]

    def check_final(self, key: bytes, final: set[bytes]) -> None:
        """After healing, the key's versions (operation ids, tombstones included) must be exactly the maximal writes.

        Lost: an acknowledged write that is neither there nor an ancestor of one that counts. Resurrected or falsely kept: a version that is
        an ancestor of another.
        """
        self.check_shown(key, sorted(final))
        happened = {o for o, w in self.writes.items() if w.key == key and w.outcome == ACKNOWLEDGED} | (final & self.writes.keys())
        covered: set[bytes] = set()
        for operation in happened:
            covered |= self.writes[operation].ancestors
        for operation in sorted(happened - covered - final):
            self.violations.append(f"lost: acknowledged {operation.hex()[:8]} on {key!r} is neither a sibling nor shown to a later writer")
        for operation in sorted(final & covered):
            write = self.writes[operation]
            if write.attempts == 1:
                self.violations.append(f"kept: {operation.hex()[:8]} on {key!r} survives beside a write whose client had been shown it")

    def counts(self) -> dict[str, int]:
        """Writes by outcome."""
        counts: dict[str, int] = defaultdict(int)
        for write in self.writes.values():
            counts[write.outcome] += 1
        return dict(counts)
