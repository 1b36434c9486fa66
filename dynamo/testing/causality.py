"""The model's causal history: who had been shown what when they wrote. Ground truth for the checkers.

A write's ancestors are the versions **returned to that client** with the context it wrote under (and theirs), plus its own earlier write where it
chained on that one's context. What the bytes of a token cover is never looked at: that is exactly what is under test. Versions are told apart by
dot, because two coordinators that cannot see each other make two versions of one operation, of which a reader may have been shown one.

Sets of ancestors are bit sets in integers, one bit a version (and one an operation) of the key.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from dynamo.testing.history import Dot, Final, History, LostCopies, Read, Seen, Version, Write

Past = tuple[int, int]  # (versions, operations) as bit sets
NOTHING: Past = (0, 0)


@dataclass(slots=True)
class KeyHistory:
    """All that concerns one key."""

    bucket: str
    key: str
    writes: list[Write] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    final: Final | None = None
    dot_bits: dict[Dot, int] = field(default_factory=dict)
    operation_bits: dict[str, int] = field(default_factory=dict)

    def dot_bit(self, dot: Dot) -> int:
        """The version's bit."""
        return self.dot_bits.setdefault(dot, 1 << len(self.dot_bits))

    def operation_bit(self, operation: str) -> int:
        """The operation's bit."""
        return self.operation_bits.setdefault(operation, 1 << len(self.operation_bits))


class Causality:
    """The pasts of all writes of a history."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.keys: dict[tuple[str, str], KeyHistory] = {}
        self.operation_of: dict[Dot, str] = {}  # where one dot came with two operations, the first
        self.times: dict[Dot, int] = {}  # HLC by version
        self.losses: list[LostCopies] = []
        self._pasts: dict[str, Past] = {}
        self._sources: dict[int, Read | Write] = {}  # by the number of the context they gave
        self._given: dict[int, Past] = {}
        self._collect()

    def past(self, operation: str) -> Past:
        """The ancestors of a write."""
        known = self._pasts.get(operation)
        if known is None:
            write = self.history.writes.get(operation)
            known = NOTHING if write is None else self._of_context(write.context)
            self._pasts[operation] = known
        return known

    def past_of(self, key: KeyHistory, versions: Iterable[Version]) -> Past:
        """All ancestors of these versions."""
        dots = operations = 0
        for version in versions:
            operation = self.name(version)
            if operation is not None:
                past = self.past(operation)
                dots |= past[0]
                operations |= past[1]
        return dots, operations

    def name(self, version: Version) -> str | None:
        """The operation that made the version, as far as anybody said."""
        return version.operation if version.operation is not None else self.operation_of.get(version.dot)

    def time_of(self, write: Write) -> int:
        """The HLC of the version a write was acknowledged with; 0 where nobody said."""
        return self.times.get(write.dot, 0) if write.dot is not None else 0

    def _collect(self) -> None:
        for event in self.history.events:
            if isinstance(event, LostCopies):
                self.losses.append(event)
                continue
            key = self.keys.setdefault((event.bucket, event.key), KeyHistory(event.bucket, event.key))
            if isinstance(event, Write):
                key.writes.append(event)
                if event.gives:
                    self._sources[event.gives] = event
                if event.dot is not None:
                    self.operation_of.setdefault(event.dot, event.operation)
                continue
            if isinstance(event, Read):
                key.reads.append(event)
                if event.gives:
                    self._sources[event.gives] = event
            elif isinstance(event, Final):
                key.final = event
            for version in [event.version] if isinstance(event, Seen) else event.versions:
                if version.time:
                    self.times.setdefault(version.dot, version.time)
                if version.operation is not None:
                    self.operation_of.setdefault(version.dot, version.operation)
        for event in self.history.events:  # in order, so that what a past rests on is there already
            if isinstance(event, Write):
                self.past(event.operation)
            elif isinstance(event, Read) and event.gives:
                self._of_context(event.gives)

    def _of_context(self, number: int) -> Past:
        """What a client had been shown with the context: those versions and their ancestors."""
        known = self._given.get(number)
        if known is not None:
            return known
        source = self._sources.get(number)
        if source is None:
            return NOTHING
        self._given[number] = NOTHING  # ends a circle, which only a broken history has
        key = self.keys[source.bucket, source.key]
        if isinstance(source, Write):
            dots, operations = self._of_context(source.context)
            operations |= key.operation_bit(source.operation)
            if source.dot is not None:
                dots |= key.dot_bit(source.dot)
        else:
            dots, operations = self.past_of(key, source.versions)
            for version in source.versions:
                dots |= key.dot_bit(version.dot)
                operation = self.name(version)
                if operation is not None:
                    operations |= key.operation_bit(operation)
        self._given[number] = dots, operations
        return dots, operations
