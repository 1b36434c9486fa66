"""What only a simulation can see: the disks. Holds what nodes say against what they have, at the moment they say it.

durable   a node vouches for (acknowledges, answers a read with) what its disk does not hold; or a client is told that a write is safe, or shown a
          version, while fewer disks than that have ever held it (P8; DESIGN section 4, "before a commit only ..."). Of a node with a write buffer
          that counts as its disk, unless more was asked of it, or something is deleted because the node has it
dots      one actor gave one operation two dots
dropped   a node deletes a row that one of its owners lacks, or a hint whose target lacks the row (DESIGN section 4)

It also tells the history which versions were seen in stores and on the wire, and which copies were lost with a disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamo._core import record as records
from dynamo.errors import CorruptRecord
from dynamo.model import messages as m
from dynamo.model.group import Group
from dynamo.model.key import is_hashed, split_row_key
from dynamo.model.messages import Message, Source
from dynamo.model.row import decode_row
from dynamo.testing.checkers import Violation
from dynamo.testing.disk import Table
from dynamo.testing.history import Dot, LostCopies, Seen, Version, dot_text
from dynamo.testing.quiet import Quiet

if TYPE_CHECKING:
    from dynamo.testing.node import Node
    from dynamo.testing.simulator import SimulatedCluster

_REMEMBERED_MAX = 20_000
_FORGETS_NOTHING = 20_000  # operations that a node remembers: more than there are in a run
WATCHED = frozenset((m.REPLICATE, m.READ, m.REPLICATE_REPLY, m.READ_REPLY, m.GET_REPLY, m.PUT_REPLY, m.GET_MANY_REPLY, m.PUT_MANY_REPLY))
_LOSS_COUNTS_FOR_S = 130.0  # an acknowledgement given before a loss may still be under way, or wait in a paused node, this long


class Observer:
    """One for all nodes of a run."""

    def __init__(self, cluster: SimulatedCluster) -> None:
        self.cluster = cluster
        self._ring_changes = cluster.ring_changes
        self.violations: list[Violation] = []
        self.quiet = Quiet(cluster)
        self.holders: dict[Dot, int] = {}  # which nodes' disks ever held the version, or its successor, as a bit set
        self._asked: dict[tuple[bytes, int], tuple[bytes, bytes, bytes]] = {}  # (asker, request id) -> (bucket, key, record sent or b"")
        self._parsed: dict[bytes, tuple[Dot, ...]] = {}  # record -> the dots of its versions
        self._known: dict[bytes, list[tuple[Dot, str, int]]] = {}  # row key -> (dot, operation, HLC) of all versions seen
        self._minted: dict[tuple[str, int], Dot] = {}  # by operation and actor
        self._dropped: set[tuple[int, bytes]] = set()  # (node, row key) of rows that went to others
        self._lost_at: dict[bytes, float] = {}  # row key -> when some disk last lost it

    def lost_of(self, row_key: bytes) -> bool:
        """Whether some disk ever lost its copy of the row."""
        return row_key in self._lost_at

    # --- what nodes say ---------------------------------------------------------------------------------------------------------------

    def sending(self, node: Node, destination: Source, message: Message) -> None:
        """A node sends a message, of the `WATCHED` kinds."""
        kind = message[0]
        if kind in (m.REPLICATE, m.REPLICATE_REPLY):
            self.quiet.sending(node, destination, message)
        if kind == m.REPLICATE:
            self._ask(node, message[1], message[2], message[3], message[4])
            self._parse(message[2], message[3], message[4])
        elif kind == m.READ:
            self._ask(node, message[1], message[2], message[3], b"")
        elif kind == m.REPLICATE_REPLY and message[2] == 0 and type(destination) is bytes:
            self._vouches(node, destination, message[1], None, on_disk=message[4] > m.DURABILITY_BUFFERED)
        elif kind == m.READ_REPLY and message[2] == 0 and message[5] and type(destination) is bytes:
            self._vouches(node, destination, message[1], message[5], on_disk=False)
        elif type(destination) is int:
            if kind == m.GET_REPLY:
                self._shows(node, destination, message[1], 0, message)
            elif kind == m.PUT_REPLY:
                self._promises(node, destination, message[1], 0, message)
            elif kind == m.GET_MANY_REPLY:
                for slot, reply in enumerate(message[2]):
                    if reply[0] == m.GET_REPLY:
                        self._shows(node, destination, message[1], slot, reply)
            elif kind == m.PUT_MANY_REPLY:
                for slot, reply in enumerate(message[2]):
                    if reply[0] == m.PUT_REPLY:
                        self._promises(node, destination, message[1], slot, reply)

    def _ask(self, node: Node, request_id: int, bucket: bytes, key: bytes, record: bytes) -> None:
        if len(self._asked) >= _REMEMBERED_MAX:
            for old in list(self._asked)[: _REMEMBERED_MAX // 2]:
                del self._asked[old]
        self._asked[node.node_id, request_id] = bucket, key, record

    def _vouches(self, node: Node, asker: bytes, request_id: int, shown: bytes | None, on_disk: bool) -> None:
        """A node says that it holds a record; on its disk, or, if it has a write buffer, at least in that."""
        asked = self._asked.get((asker, request_id))
        if asked is None:
            return
        bucket, key, sent = asked
        record = sent if shown is None else shown
        row_key = self.cluster.row_key(bucket, key)
        if not record or row_key in node.disk.damaged or node.disk.unreadable or self._loss_counts(row_key):
            return
        data = node.disk.objects.get(row_key) if on_disk else node.held(row_key)
        held = b"" if data is None else _record_of(data)
        if not held and (node.number, row_key) in self._dropped:
            return  # it had the record, and in the same group dropped it because all owners have it too
        if held != record and (not held or records.compare(record, held) not in (records.EQUAL, records.BEFORE)):
            verb = "acknowledged" if shown is None else "answered a read with"
            self._violation("durable", f"{node} {verb} a record of {self.cluster.key_text(bucket, key)} that is not on its disk")
        bit = 1 << node.number
        for dot in self._parse(bucket, key, record):
            self.holders[dot] = self.holders.get(dot, 0) | bit

    def _shows(self, node: Node, client: int, request_id: int, slot: int, reply: Message) -> None:
        """A client is shown versions."""
        for actor, counter, time in [version[-3:] for version in (*reply[6], *reply[7])]:
            if not self.holders.get((actor, counter)):
                requested = self.cluster.requests.get((client, request_id))
                if requested is None or not self._replaced(requested[slot][0], requested[slot][1], (actor, counter), time):
                    self._violation("durable", f"{node} shows a client the version {actor:016x}:{counter}, which no disk has ever held")

    def _replaced(self, bucket: bytes, key: bytes, dot: Dot, time: int) -> bool:
        """Whether some disk holds what replaced the version; it was replaced in the very group that was to store it then."""
        row_key = self.cluster.row_key(bucket, key)
        lost = self._loss_counts(row_key)
        return lost or any(self._covers(row_key, node.held(row_key), dot, time) for node in self.cluster.nodes.values())

    def _promises(self, node: Node, client: int, request_id: int, slot: int, reply: Message) -> None:
        """A client is told that its write is safe."""
        requested = self.cluster.requests.get((client, request_id))
        if requested is None:
            return
        bucket, key, required, operation = requested[slot]
        dot = reply[5], reply[6]
        row_key = self.cluster.row_key(bucket, key)
        holders = self.holders.get(dot, 0)
        if holders.bit_count() < required:  # those that had a successor from the start never had the version itself
            for other in self.cluster.nodes.values():
                data = other.held(row_key)
                if data is not None and self._covers(row_key, data, dot, 0):
                    holders |= 1 << other.number
        if holders.bit_count() < required and not self._loss_counts(row_key):
            text = f"{node} acknowledges {operation} with {holders.bit_count()} of the {required} disks that must hold it"
            self._violation("durable", text, operation)
        self.holders[dot] = holders

    # --- what disks do ----------------------------------------------------------------------------------------------------------------

    def applying(self, node: Node, group: Group) -> None:
        """A group is about to become durable."""
        bit = 1 << node.number
        holders = self.holders
        for hint, value in group.hints.items():
            if value is None:
                self._forgives(node, hint)
        for row_key, data in group.objects.items():
            if data is None:
                self._drops(node, row_key)
                continue
            record = _record_of(data)
            dots = self._parsed.get(record)
            if dots is None:
                _, bucket, key = split_row_key(row_key, decode_row(row_key, data).full_key)
                dots = self._parse(bucket, key, record)
            for dot in dots:
                held = holders.get(dot, 0)
                if not held & bit:
                    holders[dot] = held | bit

    def _drops(self, node: Node, row_key: bytes) -> None:
        """A node deletes a row: all its owners must hold what is in it, or, while the ring changes, some node."""
        data = node.held(row_key)
        if data is None or row_key in node.disk.damaged or self._loss_counts(row_key):
            return
        row = decode_row(row_key, data, verify=False)
        _, bucket, _ = split_row_key(row_key, row.full_key)
        holders = {other.node_id for other in self.cluster.nodes.values() if other is not node and self._holds(other, row_key, row.record)}
        owners = self._owners(node, row_key, bucket)
        missing = [] if owners is None else [self.cluster.name_of(owner) for owner in owners if owner not in holders]
        if holders and not missing:
            self._dropped.add((node.number, row_key))
            return
        lacking = f"{' '.join(missing)} does not hold" if missing else "no other node holds"
        self._violation("dropped", f"{node} deletes its row of {row_key!r}, which {lacking}")

    def _forgives(self, node: Node, hint: bytes) -> None:
        """A node deletes a hint: its target must hold the row it was for."""
        target, row_key = self.cluster.nodes.get(hint[:16]), hint[16:]
        data = node.held(row_key)  # as it was sent; what this group changes is newer
        if target is None or data is None or row_key in node.disk.damaged or is_hashed(row_key) or self._loss_counts(row_key):
            return
        row = decode_row(row_key, data, verify=False)
        _, bucket, _ = split_row_key(row_key)
        owners = self._owners(node, row_key, bucket)
        if owners is not None and target.node_id in owners and not self._holds(target, row_key, row.record):
            self._violation("dropped", f"{node} forgets that it owes {target} its row of {row_key!r}, which {target} does not hold")

    def _owners(self, node: Node, row_key: bytes, bucket: bytes) -> tuple[bytes, ...] | None:
        """The row's owners as the node sees them; None where it may have seen another ring when it decided."""
        if node.replica is None or self._ring_changes:
            return None
        return node.replica.core.owners(int.from_bytes(row_key[:2], "big"), self.cluster.definition.bucket(bucket))

    @staticmethod
    def _holds(node: Node, row_key: bytes, record: bytes) -> bool:
        """Whether a disk has the record, or one that came after it; a damaged row once was. A write buffer is no disk."""
        data = node.disk.objects.get(row_key)
        if data is None:
            return False
        try:
            return records.compare(record, decode_row(row_key, data).record) in (records.EQUAL, records.BEFORE)
        except CorruptRecord:
            return True

    def lost(self, node: Node, before: Table, after: Table) -> None:
        """A disk was damaged: tell the history which writes it had and may have no longer."""
        operations = {
            operation
            for row_key in sorted(before)
            if before[row_key] != after.get(row_key)
            for dot, operation, time in self._known.get(row_key, ())
            if self._covers(row_key, before[row_key], dot, time)  # an old copy that has the write may lack what replaced it: it counts too
        }
        for row_key in before:
            if before[row_key] != after.get(row_key):
                self._lost_at[row_key] = self.cluster.world.now
        self.cluster.history.add(LostCopies(node.name, frozenset(operations), self.cluster.world.now))

    def buffer_lost(self, node: Node, before: dict[bytes, bytes | None]) -> None:
        """A node died with rows in its write buffer: tell the history which writes it had and has no longer. What was said of them stands: it was
        said of a buffer."""
        after = node.disk.objects
        operations = {
            operation
            for row_key, data in sorted(before.items())
            for dot, operation, time in self._known.get(row_key, ())
            if self._covers(row_key, data, dot, time) and not self._covers(row_key, after.get(row_key), dot, time)
        }
        self.cluster.history.add(LostCopies(node.name, frozenset(operations), self.cluster.world.now))

    @staticmethod
    def _covers(row_key: bytes, data: bytes | None, dot: Dot, time: int) -> bool:
        """Whether an encoded row holds the version, or what replaced it."""
        if data is None:
            return False
        try:
            record = decode_row(row_key, data).record
        except CorruptRecord:
            return False
        if not record:
            return False
        if record[1] == records.LAST_WRITE_WINS:
            return any((version[2], version[0], version[1]) >= (time, *dot) for version in records.versions(record))
        return records.context_contains(records.context(record), *dot)

    # --- within -----------------------------------------------------------------------------------------------------------------------

    def _parse(self, bucket: bytes, key: bytes, record: bytes) -> tuple[Dot, ...]:
        """The dots of a record; what is new in it goes into the history."""
        dots = self._parsed.get(record)
        if dots is not None:
            return dots
        found = []
        for actor, counter, time, operation, _, _, tombstone, _ in records.versions(record):
            dot = actor, counter
            found.append(dot)
            name = operation.hex()
            if self.cluster.history_names.get(dot) != name:
                self.cluster.history_names[dot] = name
                self._minted_once(bucket, key, dot, name)
                self.cluster.history_times[dot] = time
                self._known.setdefault(self.cluster.row_key(bucket, key), []).append((dot, name, time))
                where = bucket.decode(), self.cluster.key_name(key)
                self.cluster.history.add(Seen(*where, Version(dot, name, time, tombstone), self.cluster.world.now))
        if len(self._parsed) > _REMEMBERED_MAX:
            self._parsed.clear()
        dots = self._parsed[record] = tuple(found)
        return dots

    def _minted_once(self, bucket: bytes, key: bytes, dot: Dot, operation: str) -> None:
        """A retry is the same version: one actor gives an operation one dot, unless its row was lost, or went to its owners, in between."""
        row_key = self.cluster.row_key(bucket, key)
        before = self._minted.setdefault((operation, dot[0]), dot)
        excused = row_key in self.cluster.rotten or self._loss_counts(row_key) or any(dropped == row_key for _, dropped in self._dropped)
        if before != dot and not excused and self.cluster.settings.operations_max >= _FORGETS_NOTHING:
            self._violation("dots", f"{operation} of {self.cluster.key_text(bucket, key)} was given {dot_text(before)} and {dot_text(dot)}", operation)

    def _loss_counts(self, row_key: bytes) -> bool:
        """Whether what was said of the row lately may have been true until a disk lost it."""
        return self.cluster.world.now - self._lost_at.get(row_key, -_LOSS_COUNTS_FOR_S) < _LOSS_COUNTS_FOR_S

    def _violation(self, checker: str, text: str, operation: str = "") -> None:
        self.violations.append(Violation(checker, text, operation, self.cluster.world.now))


def _record_of(data: bytes) -> bytes:
    """The record in an encoded row that is known to be good: what follows the header, the full key, whose length ends the header, and a checksum."""
    return data[44 + int.from_bytes(data[34:36], "big") :]
