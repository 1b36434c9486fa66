"""The judges of a history. Each is a function of the history alone and knows nothing of workloads, faults or the simulator.

    violations = check(History.from_lines(open("history.jsonl")))

lost         an acknowledged write is neither among a key's final versions nor an ancestor of one, and fewer than W disks that had it, or what
             replaced it, were lost
kept         a version stands beside a write whose client had been shown it: a false conflict
resurrected  the same, where that write was a delete
phantom      a version that nobody wrote to that key
truthful     a write refused with `maybe_applied` False was seen
dots         one dot names two values, or a counter of one actor was issued twice
last-write   a last-write-wins key does not hold the highest (time, dot), or a write is not later than one its client had been shown
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass

from dynamo.testing.causality import Causality, KeyHistory
from dynamo.testing.history import ACKNOWLEDGED, LAST_WRITE_WINS, REFUSED, Dot, Final, History, LostCopies, Read, Seen, Version, Write, dot_text


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken promise: which checker says so, what it says, and which operation (and when) to look for in the trace."""

    checker: str
    text: str
    operation: str = ""
    time: float = 0.0

    def __str__(self) -> str:
        return f"{self.checker} {self.text}"


def check(history: History) -> list[Violation]:
    """All violations in the history, each checker's in the order in which they happened."""
    causality = Causality(history)
    return [violation for checker in CHECKERS for violation in checker(causality)]


def check_lost(causality: Causality) -> Iterator[Violation]:
    """P1: no acknowledged write is lost."""
    for key in _of_kind(causality, last_write_wins=False):
        if key.final is None:
            continue
        final = {causality.name(version) for version in key.final.versions}
        covered = causality.past_of(key, key.final.versions)[1]
        overwriters = [write for write in key.writes if write.overwrites and write.outcome != REFUSED]
        for write in key.writes:
            if write.outcome != ACKNOWLEDGED or write.operation in final or covered & key.operation_bit(write.operation):
                continue
            if any(other is not write and not _before(other, write) for other in overwriters) or disks_lost(causality, write) >= write.required:
                continue
            if any(causality.past(other.operation)[1] & key.operation_bit(write.operation) and _may_be_gone(causality, other) for other in key.writes):
                continue
            yield Violation("lost", f"{_name(write)}, acknowledged at {write.ended:.3f}, is neither there nor was it shown to a later writer",
                            write.operation, write.ended)  # fmt: skip


def check_kept(causality: Causality) -> Iterator[Violation]:
    """P4, P5: what is shown side by side, in a read or at the end, is concurrent."""
    for key in _of_kind(causality, last_write_wins=False):
        for event in (*key.reads, *([key.final] if key.final is not None else ())):
            if len(event.versions) < 2:
                continue
            pasts = [(version, operation, causality.past(operation)[0]) for version in event.versions if (operation := causality.name(version))]
            for version in event.versions:
                bit = key.dot_bits.get(version.dot, 0)
                newer = next((operation for other, operation, past in pasts if past & bit and other.dot != version.dot), None) if bit else None
                if newer is not None:
                    write = causality.history.writes[newer]
                    where = "at the end" if isinstance(event, Final) else f"in a read at {event.time:.3f}"
                    yield Violation("resurrected" if write.tombstone else "kept",
                                    f"{causality.name(version)} ({dot_text(version.dot)}) stands {where} beside {_name(write)}, whose client had been shown it",
                                    newer, write.ended if isinstance(event, Final) else event.time)  # fmt: skip


def check_phantom(causality: Causality) -> Iterator[Violation]:
    """Every version shown was written, to that key."""
    for key, version, time in _sightings(causality):
        if version.operation is None:
            continue
        write = causality.history.writes.get(version.operation)
        if write is None or (write.bucket, write.key) != (key.bucket, key.key):
            yield Violation("phantom", f"{version.operation} is in {place_text(key.bucket, key.key)}, where nobody wrote it", version.operation, time)


def check_truthful(causality: Causality) -> Iterator[Violation]:
    """P10: a write refused with `maybe_applied` False is never visible."""
    reported: set[str] = set()
    for _, version, time in _sightings(causality):
        operation = causality.name(version)
        write = causality.history.writes.get(operation) if operation is not None else None
        if write is not None and write.outcome == REFUSED and write.operation not in reported:
            reported.add(write.operation)
            yield Violation("truthful", f"{_name(write)} was refused with maybe_applied=False and was seen", write.operation, time)


def check_dots(causality: Causality) -> Iterator[Violation]:
    """A dot names one value of one key, for ever."""
    bound: dict[Dot, tuple[str, str, str]] = {}
    for event in causality.history.events:
        if isinstance(event, LostCopies):
            continue
        found = [(event.dot, event.operation)] if isinstance(event, Write) else [(v.dot, v.operation) for v in _versions(event)]
        for dot, operation in found:
            if dot is None or operation is None:
                continue
            name = bound.setdefault(dot, (event.bucket, event.key, operation))
            if name != (event.bucket, event.key, operation):
                time = event.ended if isinstance(event, Write) else getattr(event, "time", 0.0)
                yield Violation("dots", f"{dot_text(dot)} names {name[2]} of {place_text(*name[:2])} and {operation} of {place_text(event.bucket, event.key)}",
                                operation, time)  # fmt: skip


def check_last_write(causality: Causality) -> Iterator[Violation]:
    """Last-write-wins keys: one version, the highest; and who wrote under a context wrote later than all it had shown."""
    for key in _of_kind(causality, last_write_wins=True):
        for write in key.writes:
            mine, shown = causality.time_of(write), causality.past(write.operation)[0]
            for other in key.writes if mine and shown else ():
                if other.dot is not None and shown & key.dot_bits.get(other.dot, 0) and causality.time_of(other) >= mine:
                    yield Violation("last-write", f"{_name(write)} is not later than {other.operation}, which its client had been shown",
                                    write.operation, write.ended)  # fmt: skip
        if key.final is None:
            continue
        if len(key.final.versions) > 1:
            yield Violation("last-write", f"{place_text(key.bucket, key.key)} holds {len(key.final.versions)} versions")
        best = max(((version.time, *version.dot) for version in key.final.versions), default=(0, 0, 0))
        for write in key.writes:
            time = causality.time_of(write)
            if write.outcome != ACKNOWLEDGED or write.dot is None or not time or (time, *write.dot) <= best:
                continue
            if disks_lost(causality, write, _later(causality, key, write)) < write.required:
                yield Violation("last-write", f"{_name(write)} is later than what is there", write.operation, write.ended)


def last_writes_lost(history: History) -> int:
    """Acknowledged writes to last-write-wins keys that vanished though nobody who wrote later had been shown them. A run with partitions and
    none of these proves nothing about the kind: it is void."""
    causality = Causality(history)
    lost = 0
    for key in _of_kind(causality, last_write_wins=True):
        if key.final is not None:
            final = {causality.name(version) for version in key.final.versions}
            covered = causality.past_of(key, key.final.versions)[1]
            lost += sum(w.outcome == ACKNOWLEDGED and w.operation not in final and not covered & key.operation_bit(w.operation) for w in key.writes)
    return lost


def disks_lost(causality: Causality, write: Write, later: Set[str] = frozenset()) -> int:
    """How many disks lost their copy of the write, or of one of the `later` that stood in its place, after it was acknowledged."""
    copies = {write.operation} | later
    nodes = {
        loss.node
        for loss in causality.losses
        if (loss.operations is None and loss.time >= write.ended) or (loss.operations is not None and not copies.isdisjoint(loss.operations))
    }
    return len(nodes)


CHECKERS: tuple[Callable[[Causality], Iterator[Violation]], ...] = (
    check_lost, check_kept, check_phantom, check_truthful, check_dots, check_last_write,
)  # fmt: skip


def _of_kind(causality: Causality, *, last_write_wins: bool) -> Iterator[KeyHistory]:
    kinds = causality.history.kinds
    return (key for key in causality.keys.values() if (kinds.get(key.bucket) == LAST_WRITE_WINS) == last_write_wins)


def _later(causality: Causality, key: KeyHistory, write: Write) -> set[str]:
    """The operations that win over this write. Where one comes within the same group the disk never holds the write by itself."""
    mine, operations = (causality.time_of(write), write.dot), {other.operation for other in key.writes}
    return {operation for dot, operation in causality.operation_of.items() if operation in operations and (causality.times.get(dot, 0), dot) > mine}


def _may_be_gone(causality: Causality, write: Write) -> bool:
    """Whether enough disks, or write buffers, lost their copy of the write: one that nobody was told is safe need not have had more. What it had replaced
    is gone with it, where a token or another record rests on that."""
    return disks_lost(causality, write) >= (write.required if write.outcome == ACKNOWLEDGED else 1)


def _before(one: Write, other: Write) -> bool:
    """Whether a write was certainly done when the other began, so that it cannot have replaced it."""
    return one.outcome == ACKNOWLEDGED and one.attempts == 1 and one.ended <= other.began


def _sightings(causality: Causality) -> Iterator[tuple[KeyHistory, Version, float]]:
    for event in causality.history.events:
        if isinstance(event, Read | Seen | Final):
            key = causality.keys[event.bucket, event.key]
            for version in _versions(event):
                yield key, version, getattr(event, "time", 0.0)


def _versions(event: Read | Seen | Final) -> list[Version]:
    return [event.version] if isinstance(event, Seen) else event.versions


def place_text(bucket: str, key: str) -> str:
    """Bucket and key for people; of a long key its beginning and end."""
    return f"{bucket}/{key}" if len(key) <= 40 else f"{bucket}/{key[:4]}..({len(key)})..{key[-4:]}"


def _name(write: Write) -> str:
    return f"{'delete' if write.tombstone else 'write'} {write.operation} of {place_text(write.bucket, write.key)} by client {write.client}"
