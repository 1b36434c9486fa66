"""The rows of this node as its policy sees them: the storage engine's, under what is staged and in flight to it.

A write is *staged* until a group takes it, *in flight* until the driver reports the commit, then *committed*. Reads look in that order. Staged
state may be built upon, but it may not be shown or vouched for: answers that rest on it are attached to the group (`held`) and fail with it.
At most one group is in flight; what is staged meanwhile forms the next one (group commit). A failed commit drops the group and everything
staged after it, for that was built upon it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from dynamo._core import record as records
from dynamo.errors import CorruptRecord, DynamoError
from dynamo.model.group import Group
from dynamo.model.key import full_key, is_hashed
from dynamo.model.messages import Message, Source
from dynamo.model.row import Row, decode_row, encode_row
from dynamo.replication.operations import Operations

Read = Callable[[bytes], bytes | DynamoError | None]
KindOf = Callable[[bytes], int]
NO_DIGEST = bytes(16)


@dataclass(slots=True)
class Held:
    """What waits for one commit: messages to send after it, and requests of this node to wake with what they were promised."""

    messages: list[tuple[Source, Message]] = field(default_factory=list)
    wakes: list[tuple[int, bytes | None]] = field(default_factory=list)  # (request id, record it may now show | None: a write)


@dataclass(slots=True)
class Committed:
    """What a commit changed: for each row the digest before (None: unknown, it was damaged) and after (NO_DIGEST: no row)."""

    held: Held
    changes: list[tuple[bytes, bytes | None, bytes]]


class Rows:
    """Staged, in-flight and committed rows and hints, and the answers that wait for a commit."""

    __slots__ = (
        "_before", "_before_flying", "_flying", "_handed", "_held", "_held_flying", "_hints_flying", "_kind_of", "_last", "_read", "_staged", "_staged_hints",
        "_staged_meta", "digest_seed", "groups", "in_flight", "operations",
    )  # fmt: skip

    def __init__(self, read: Read, digest_seed: int, operations: Operations, kind_of: KindOf | None = None) -> None:
        """`kind_of(row key)`: the kind of record that belongs there. None: siblings everywhere, as where no bucket says otherwise."""
        self._read = read
        self._kind_of = kind_of
        self.operations = operations
        self._staged: dict[bytes, Row | None] = {}
        self._staged_meta: dict[bytes, bytes | None] = {}
        self._staged_hints: dict[bytes, bytes | None] = {}
        self._hints_flying: dict[bytes, bytes | None] = {}
        self._before: dict[bytes, bytes | None] = {}  # the digest each staged row had before this group
        self._before_flying: dict[bytes, bytes | None] = {}
        self._last: tuple[bytes, Row | DynamoError | None] = (b"", None)
        self._held = Held()
        self._flying: dict[bytes, Row | None] = {}
        self._held_flying = Held()
        self._handed: list[tuple[Source, Message]] = []
        self.in_flight: Group | None = None
        self.groups = 0
        self.digest_seed = digest_seed

    def load(self, key: bytes) -> Row | DynamoError | None:
        """The newest row, staged ones included; a storage error or CorruptRecord as a value."""
        if key in self._staged:
            return self._staged[key]
        if key in self._flying:
            return self._flying[key]
        data = self._read(key)
        row: Row | DynamoError | None
        if type(data) is bytes:
            try:
                row = self.checked(key, decode_row(key, data))
            except CorruptRecord as error:
                row = error
        else:
            row = data  # type: ignore[assignment]
        self._last = key, row  # whoever stages a row has just loaded it
        return row

    def checked(self, key: bytes, row: Row) -> Row:
        """The row. Raises CorruptRecord where its record is of another kind than its bucket, and so could be merged with none."""
        record, kind_of = row.record, self._kind_of
        if record and (kind_of is not None or record[1] != records.SIBLINGS):
            kind = records.SIBLINGS if kind_of is None else kind_of(key)
            if record[1] != kind:
                raise CorruptRecord(f"a record of kind {record[1]} where kind {kind} belongs")
        return row

    def load_held(self, key: bytes) -> tuple[Row | DynamoError | None, Held | None]:
        """`load` and `held`."""
        return self.load(key), self.held(key) if self._staged or self._flying else None

    def held(self, key: bytes) -> Held | None:
        """Where to attach what rests on the newest version of the row; None if it is committed and may be shown now."""
        if key in self._staged:
            return self._held
        return self._held_flying if key in self._flying else None

    def held_last(self) -> Held | None:
        """Where to attach what waits for all that is written so far; None if all of it is committed."""
        if self._staged or self._staged_hints or self._staged_meta:
            return self._held
        return self._held_flying if self.in_flight is not None else None

    def group_of(self, held: Held | None) -> int:
        """The number of the group that `held` is attached to; of what is committed, that of the newest one."""
        return self.groups + (held is self._held)

    def stage(self, key: bytes, bucket: bytes, name: bytes, record: bytes, status: int, since_actor: int, since: int) -> Row:
        """Stage the row of a key; returns it with its digest."""
        full = full_key(bucket, name)
        digest = records.digest(full, record, self.digest_seed)
        row = Row(status, since_actor, since, digest, full if is_hashed(key) else b"", record)
        self._remember(key)
        self._staged[key] = row
        return row

    def drop(self, key: bytes) -> None:
        """Stage the removal of a row."""
        self._remember(key)
        self._staged[key] = None

    def _remember(self, key: bytes) -> None:
        """Keep the digest the row has before the group being staged: what the commit takes out of the Merkle tree."""
        if key not in self._staged:
            before = self._last[1] if self._last[0] == key and key not in self._flying else self.load(key)
            self._before[key] = None if isinstance(before, DynamoError) else digest_of(before)

    def hint_held(self, key: bytes) -> Held | None:
        """Likewise for a hint: where to attach what rests on it; None if it is committed."""
        if key in self._staged_hints:
            return self._held
        return self._held_flying if key in self._hints_flying else None

    def later(self, one: Held | None, other: Held | None) -> Held | None:
        """Of two commits to wait for the one that comes later; None = nothing to wait for."""
        return self._held if one is self._held or other is self._held else one or other

    def hint(self, key: bytes) -> bytes | None:
        """A staged or in-flight hint; b"" where its removal is staged; None: ask the engine."""
        for hints in (self._staged_hints, self._hints_flying):
            if key in hints:
                return hints[key] or b""
        return None

    def stage_hint(self, key: bytes, value: bytes | None) -> None:
        """Stage a hint, or with None its removal."""
        self._staged_hints[key] = value

    def stage_meta(self, name: bytes, value: bytes) -> None:
        """Stage a row of the meta table. Its group is synced whatever the engine's mode: these rows say who we are."""
        self._staged_meta[name] = value

    def take_group(self) -> tuple[Group, list[tuple[Source, Message]]] | None:
        """The next group and the messages to send after it, if something is staged and no group is in flight."""
        if not (self._staged or self._staged_meta or self._staged_hints) or self.in_flight is not None:
            return None
        self.groups += 1
        objects = {key: None if row is None else encode_row(key, row) for key, row in self._staged.items()}
        group = Group(self.groups, objects, self._staged_hints, self._staged_meta | self.operations.take(), synced=bool(self._staged_meta))
        self._flying, self._staged = self._staged, {}
        self._before_flying, self._before = self._before, {}
        self._hints_flying, self._staged_hints = self._staged_hints, {}
        self._held_flying, self._held = self._held, Held()
        self._staged_meta = {}
        self.in_flight = group
        # The driver holds this list; what is attached from now on (reads of rows in flight) must not slip into it.
        messages, self._held_flying.messages = self._held_flying.messages, []
        self._handed = messages
        return group, messages

    def committed(self, group: Group) -> Committed:
        """The group is durable and the engine's reads show it. Returns what it changed, what was attached while it was in flight, whom to wake."""
        assert group is self.in_flight, "a group was reported that is not in flight"
        changes = [(key, self._before_flying[key], digest_of(row)) for key, row in self._flying.items()]
        held, self._held_flying, self._flying, self._handed = self._held_flying, Held(), {}, []
        self._hints_flying, self._before_flying = {}, {}
        self._last = (b"", None)
        self.operations.committed()
        self.in_flight = None
        return Committed(held, changes)

    def failed(self, group: Group) -> Held:
        """The group was not applied: it and everything staged since is forgotten. Returns all that waited for it, to be told."""
        assert group is self.in_flight, "a group was reported that is not in flight"
        held = Held(
            self._handed + self._held_flying.messages + self._held.messages,
            self._held_flying.wakes + self._held.wakes,
        )
        self._flying, self._staged, self._staged_meta, self._handed = {}, {}, {}, []
        self._hints_flying, self._staged_hints, self._before_flying, self._before = {}, {}, {}, {}
        self._held_flying, self._held = Held(), Held()
        self.operations.failed()
        self.in_flight = None
        return held


def digest_of(row: Row | None) -> bytes:
    """The digest a row vouches for; zeros for an absent one."""
    return NO_DIGEST if row is None else row.digest
