"""What clients did and were shown, as a list of events: the one thing the checkers look at. From a simulation, or from a real cluster.

A history is written as JSON lines, one object an event, in the order in which things happened:

    {"event": "bucket", "bucket": "carts", "kind": "siblings"}                         kind: siblings | last_write_wins; siblings if not said
    {"event": "write", "operation": "17", "client": "c1", "bucket": "carts", "key": "k", "context": 4, "tombstone": false,
     "overwrites": false, "required": 2, "time": 1.5}                                  a client is about to write
    {"event": "written", "operation": "17", "outcome": "acknowledged", "dot": "00c0ffee00c0ffee:5", "gives": 9, "attempts": 1, "time": 1.6}
    {"event": "read", "client": "c1", "bucket": "carts", "key": "k", "gives": 4, "time": 1.4,
     "siblings": [{"operation": "16", "dot": "00c0ffee00c0ffee:4", "time": 123}], "tombstones": [{"dot": "00c0ffee00c0ffee:3", "time": 99}]}
    {"event": "seen", ...}                                                             a version in a node's store or on its way to one
    {"event": "lost_copies", "node": "n1", "operations": ["16"], "time": 3.0}          a disk lost its copies of these; null: of everything
    {"event": "final", "bucket": "carts", "key": "k", "siblings": [...], "tombstones": [...]}     what is there after all has healed

`operation` names a write; whoever records a history must be able to tell from a value read which write it came from, so every write needs a value of its
own. `context` is the number of the context a write was made under: the `gives` of the read or write whose token it passed on, or 0. That is all
the checkers know of tokens: never what their bytes cover. `outcome`: acknowledged, refused (`maybe_applied` False) or unknown. `overwrites`: a blind
`set`, which replaces what its coordinator held. `required`: W. `time` of an event is in seconds of any clock they share; that of a version is its HLC.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

ACKNOWLEDGED, UNKNOWN, REFUSED = "acknowledged", "unknown", "refused"
SIBLINGS, LAST_WRITE_WINS = "siblings", "last_write_wins"

Dot = tuple[int, int]


@dataclass(slots=True)
class Version:
    """A version as someone saw it. `operation` is None for a tombstone of which only the dot was shown."""

    dot: Dot
    operation: str | None = None
    time: int = 0
    tombstone: bool = False


@dataclass(slots=True)
class Write:
    """One client write and what came of it."""

    operation: str
    client: str
    bucket: str
    key: str
    context: int = 0
    tombstone: bool = False
    overwrites: bool = False
    required: int = 1
    began: float = 0.0
    outcome: str = UNKNOWN
    dot: Dot | None = None
    gives: int = 0
    attempts: int = 1
    ended: float = float("inf")


@dataclass(slots=True)
class Read:
    """One client read."""

    client: str
    bucket: str
    key: str
    gives: int
    versions: list[Version]
    time: float = 0.0


@dataclass(slots=True)
class Seen:
    """A version that was seen in a node's store, or in a record on its way to one."""

    bucket: str
    key: str
    version: Version
    time: float = 0.0


@dataclass(slots=True)
class LostCopies:
    """A disk lost its copies of these operations; None: of all it had."""

    node: str
    operations: frozenset[str] | None
    time: float = 0.0


@dataclass(slots=True)
class Final:
    """What a key holds after everything has healed: the join over its owners."""

    bucket: str
    key: str
    versions: list[Version]


Event = Write | Read | Seen | LostCopies | Final


@dataclass(slots=True)
class History:
    """Events in order. A write stands where it began; what came of it is filled in. Threads may add to one history side by side."""

    events: list[Event] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)  # bucket -> kind
    writes: dict[str, Write] = field(default_factory=dict)
    _contexts: Iterator[int] = field(default_factory=lambda: count(1), repr=False, compare=False)  # its steps are atomic

    def new_context(self) -> int:
        """A number for a context that a client is given."""
        return next(self._contexts)

    def begin(self, write: Write) -> Write:
        """A client is about to write."""
        assert write.operation not in self.writes, "operations are named once"
        self.writes[write.operation] = write
        self.events.append(write)
        return write

    def add(self, event: Read | Seen | LostCopies | Final) -> None:
        """Append an event that is complete as it is."""
        self.events.append(event)

    def counts(self) -> dict[str, int]:
        """Writes by outcome."""
        counts: dict[str, int] = {}
        for write in self.writes.values():
            counts[write.outcome] = counts.get(write.outcome, 0) + 1
        return counts

    # --- as JSON lines --------------------------------------------------------------------------------------------------------------

    def to_lines(self) -> Iterator[str]:
        """The history in its written form."""
        for bucket in sorted(self.kinds):
            yield json.dumps({"event": "bucket", "bucket": bucket, "kind": self.kinds[bucket]})
        ends = sorted((w for w in self.writes.values() if w.ended != float("inf") or w.outcome != UNKNOWN), key=lambda w: w.ended)
        upcoming = iter([*ends, None])
        end = next(upcoming)
        for event in self.events:
            time = event.began if isinstance(event, Write) else getattr(event, "time", float("inf"))
            while end is not None and end.ended < time:
                yield json.dumps(_written(end))
                end = next(upcoming)
            yield json.dumps(_document(event))
        while end is not None:
            yield json.dumps(_written(end))
            end = next(upcoming)

    @classmethod
    def from_lines(cls, lines: Iterable[str]) -> History:
        """A history from its written form. Raises ValueError, naming the line, for one that cannot be read."""
        history = cls()
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    history._take(json.loads(line))
                except (KeyError, TypeError, ValueError, AssertionError) as error:
                    raise ValueError(f"line {number} is no event of a history: {error!r}") from error
        return history

    def _take(self, line: dict[str, Any]) -> None:
        kind = line["event"]
        if kind == "bucket":
            self.kinds[line["bucket"]] = line["kind"]
        elif kind == "write":
            names = ("context", "tombstone", "overwrites", "required")
            optional = {name: line[name] for name in names if name in line}
            self.begin(Write(line["operation"], str(line["client"]), line["bucket"], line["key"], began=line.get("time", 0.0), **optional))
        elif kind == "written":
            write = self.writes[line["operation"]]
            write.outcome, write.gives, write.attempts = line["outcome"], line.get("gives", 0), line.get("attempts", 1)
            write.ended = line.get("time", write.began)
            write.dot = _dot(line["dot"]) if line.get("dot") else None
        elif kind == "read":
            self.add(Read(str(line["client"]), line["bucket"], line["key"], line.get("gives", 0), _versions(line), line.get("time", 0.0)))
        elif kind == "seen":
            for version in _versions(line):
                self.add(Seen(line["bucket"], line["key"], version, line.get("time", 0.0)))
        elif kind == "lost_copies":
            operations = line["operations"]
            self.add(LostCopies(line["node"], None if operations is None else frozenset(operations), line.get("time", 0.0)))
        elif kind == "final":
            self.add(Final(line["bucket"], line["key"], _versions(line)))
        else:
            raise ValueError(f"unknown event {kind!r}")


def dot_text(dot: Dot) -> str:
    """`actor:counter`, the actor in hex."""
    return f"{dot[0]:016x}:{dot[1]}"


def _dot(text: str) -> Dot:
    actor, counter = text.split(":")
    return int(actor, 16), int(counter)


def _versions(line: dict[str, Any]) -> list[Version]:
    versions = []
    for name, tombstone in (("siblings", False), ("tombstones", True)):
        for item in line.get(name, ()):
            versions.append(Version(_dot(item["dot"]), item.get("operation"), item.get("time", 0), tombstone))
    return versions


def _listed(versions: list[Version]) -> dict[str, Any]:
    listed: dict[str, Any] = {"siblings": [], "tombstones": []}
    for version in versions:
        item: dict[str, Any] = {"dot": dot_text(version.dot), "time": version.time}
        if version.operation is not None:
            item["operation"] = version.operation
        listed["tombstones" if version.tombstone else "siblings"].append(item)
    return listed


def _written(write: Write) -> dict[str, Any]:
    document = {"event": "written", "operation": write.operation, "outcome": write.outcome, "gives": write.gives, "attempts": write.attempts,
                "dot": dot_text(write.dot) if write.dot else None}  # fmt: skip
    if write.ended != float("inf"):
        document["time"] = write.ended
    return document


def _document(event: Event) -> dict[str, Any]:
    if isinstance(event, Write):
        return {
            "event": "write", "operation": event.operation, "client": event.client, "bucket": event.bucket, "key": event.key,
            "context": event.context, "tombstone": event.tombstone, "overwrites": event.overwrites, "required": event.required,
            "time": event.began,
        }  # fmt: skip
    if isinstance(event, LostCopies):
        operations = None if event.operations is None else sorted(event.operations)
        return {"event": "lost_copies", "node": event.node, "operations": operations, "time": event.time}
    place = {"bucket": event.bucket, "key": event.key}
    if isinstance(event, Read):
        return {"event": "read", "client": event.client, **place, "gives": event.gives, "time": event.time, **_listed(event.versions)}
    if isinstance(event, Seen):
        return {"event": "seen", **place, "time": event.time, **_listed([event.version])}
    return {"event": "final", **place, **_listed(event.versions)}
