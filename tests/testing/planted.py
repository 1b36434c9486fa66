"""Bugs of the kind that stores of this family have had, to be planted into the product: the simulator must find each of them.

Each is a function that patches the product through `pytest.MonkeyPatch`. They are crude on purpose; what matters is that what they break is
something that a promise forbids, not how subtle the code is that breaks it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dynamo._core import record as records
from dynamo.errors import ConfigError, CorruptRecord
from dynamo.membership import joining
from dynamo.model import messages as m
from dynamo.net import admin, handshake, startup
from dynamo.replication import actor, fitting, get, handoff, local, put, replica, rows, scan, standings, trees
from dynamo.replication.actor import ActorLease
from dynamo.testing import addresses, wire_bounds
from dynamo.wire import parts

Patch = Callable[[pytest.MonkeyPatch], None]
BUGS: dict[str, Patch] = {}


ADDRESS_BUGS: dict[str, Patch] = {}  # of who is behind an address: found by the world of addresses


def bug(plant: Patch) -> Patch:
    BUGS[plant.__name__] = plant
    return plant


def address_bug(plant: Patch) -> Patch:
    ADDRESS_BUGS[plant.__name__] = plant
    return plant


@bug
def actor_kept_after_crash(patch: pytest.MonkeyPatch) -> None:
    """A crashed node goes on under its old actor, behind its old lease: it forgot what it had sent ahead, and claims it all the same."""
    load = ActorLease.load.__func__
    patch.setattr(ActorLease, "load", classmethod(lambda cls, meta, clean, random: load(cls, meta, True, random)))


@bug
def actor_from_an_old_copy(patch: pytest.MonkeyPatch) -> None:
    """A store that lost its memory issues the same counters again."""
    load = ActorLease.load.__func__

    def again(cls: type[ActorLease], meta: bytes | None, clean: bool, random: Any) -> ActorLease:
        if meta is None:
            return load(cls, meta, clean, random)
        _, number, end = actor._FORM.unpack(meta)
        return cls(number, max(0, end - actor.LEASE_BLOCK), end)

    patch.setattr(ActorLease, "load", classmethod(again))


@bug
def since_one(patch: pytest.MonkeyPatch) -> None:
    """A context claims all counters of its actor, also those of a row that was dropped meanwhile: a version vector."""
    good = records.put
    patch.setattr(records, "put", lambda record, context, number, counter, since, *rest: good(record, context, number, counter, 1, *rest))


@bug
def token_claims_the_record(patch: pytest.MonkeyPatch) -> None:
    """The token of a put covers siblings that its client was never shown."""
    patch.setattr(records, "token_context", lambda record, context, number, counter: (records.context(record), 0))


@bug
def acknowledges_before_commit(patch: pytest.MonkeyPatch) -> None:
    """A replica acknowledges what it has only staged."""
    _staged_counts_within(patch, local, "receive_replicate", replica)


@bug
def shows_staged_state(patch: pytest.MonkeyPatch) -> None:
    """A replica answers reads with what it has only staged."""
    _staged_counts_within(patch, local, "receive_read", replica)


@bug
def rows_dropped_unacknowledged(patch: pytest.MonkeyPatch) -> None:
    """A stand-in drops a row as soon as it has sent it."""
    good = handoff.Handoff._send

    def send(self: Any, core: Any, row_key: bytes, data: bytes) -> None:
        before = len(core.outbox)
        good(self, core, row_key, data)
        if len(core.outbox) > before:
            core.rows.drop(row_key)

    patch.setattr(handoff.Handoff, "_send", send)


@bug
def hints_dropped_for_age(patch: pytest.MonkeyPatch) -> None:
    """A hint that is not acknowledged in time is given up, and the row with it."""
    from dynamo.replication import hinted_handoff

    def give_up(self: Any, core: Any) -> bool:
        core.hints.drop(core, self.target, self.row_key)
        if core.rows.load(self.row_key) is not None:
            core.rows.drop(self.row_key)
        core.hints.landed(core, self.target, self.row_key, more=False)
        return True

    patch.setattr(hinted_handoff.PendingHint, "on_timer", give_up)


@bug
def merge_keeps_one_side(patch: pytest.MonkeyPatch) -> None:
    """Of two concurrent records one survives."""
    good = records.merge

    def merge(a: bytes, b: bytes) -> bytes:
        return max(a, b) if a and b and a[1] == records.SIBLINGS and records.compare(a, b) == records.CONCURRENT else good(a, b)

    patch.setattr(records, "merge", merge)


@bug
def merge_by_wall_clock(patch: pytest.MonkeyPatch) -> None:
    """Of two concurrent records the one written later, by somebody's clock, survives."""
    good = records.merge

    def newest(record: bytes) -> int:
        return max(version[2] for version in records.versions(record))

    def merge(a: bytes, b: bytes) -> bytes:
        if a and b and a[1] == records.SIBLINGS and records.compare(a, b) == records.CONCURRENT:
            return max(a, b, key=lambda record: (newest(record), record))
        return good(a, b)

    patch.setattr(records, "merge", merge)


@bug
def commit_failed_keeps_the_actor(patch: pytest.MonkeyPatch) -> None:
    """After a failed commit the actor goes on, although what it minted was forgotten here and is known elsewhere."""
    good, renew, inside = replica.Replica.commit_failed, ActorLease.renew, [False]

    def commit_failed(self: Any, *arguments: Any) -> None:
        inside[0] = True
        try:
            good(self, *arguments)
        finally:
            inside[0] = False

    patch.setattr(replica.Replica, "commit_failed", commit_failed)
    patch.setattr(ActorLease, "renew", lambda self, random: None if inside[0] else renew(self, random))


@bug
def never_maybe_applied(patch: pytest.MonkeyPatch) -> None:
    """A put that failed after its record had left says that nothing was applied."""
    good = put.PendingPut._give_up

    def give_up(self: Any, core: Any, error: Any) -> None:
        message_sent = core.outbox[:]
        good(self, core, error)
        for at in range(len(message_sent), len(core.outbox)):
            destination, message = core.outbox[at]
            if message[0] == 29:
                core.outbox[at] = destination, (*message[:4], False, *message[5:])

    patch.setattr(put.PendingPut, "_give_up", give_up)


@bug
def stores_instead_of_merging(patch: pytest.MonkeyPatch) -> None:
    """A replica stores what it is sent instead of merging it."""
    patch.setattr(local, "merge_in", _overwrite(local.merge_in))


def _overwrite(good: Any) -> Any:
    def merge_in(core: Any, *arguments: Any) -> Any:
        merge = records.merge
        records.merge = lambda mine, theirs: theirs
        try:
            return good(core, *arguments)
        finally:
            records.merge = merge

    return merge_in


def _staged_counts_within(patch: pytest.MonkeyPatch, module: Any, name: str, user: Any) -> None:
    good, held, inside = getattr(module, name), rows.Rows.held, [False]

    def careless(*arguments: Any) -> None:
        inside[0] = True
        try:
            good(*arguments)
        finally:
            inside[0] = False

    patch.setattr(user, name, careless)
    patch.setattr(rows.Rows, "held", lambda self, key: None if inside[0] else held(self, key))


@bug
def one_confirmation_less(patch: pytest.MonkeyPatch) -> None:
    """A put is acknowledged when one node less than W holds it."""
    good = put.needed
    patch.setattr(put, "needed", lambda *arguments: max(1, good(*arguments) - 1))


@bug
def no_anti_entropy(patch: pytest.MonkeyPatch) -> None:
    """Owners never compare their trees."""
    from dynamo.replication.anti_entropy import AntiEntropy

    patch.setattr(AntiEntropy, "step", lambda self, core: setattr(self, "next_at", None))


@bug
def hints_never_replayed(patch: pytest.MonkeyPatch) -> None:
    """What is owed to a node that was down stays where it is."""
    from dynamo.replication.hinted_handoff import Hints

    patch.setattr(Hints, "step", lambda self, core: setattr(self, "next_at", None))


@bug
def hints_promised_and_not_kept(patch: pytest.MonkeyPatch) -> None:
    """A stand-in says that it will remember for whom it keeps a row, and does not."""
    from dynamo.replication.hinted_handoff import Hints

    patch.setattr(Hints, "add", lambda self, core, target, row_key, record_bytes: True)
    patch.setattr(handoff.Handoff, "changed", lambda self, core, changes: None)  # which sees to rows that nobody hints at


@bug
def hints_dropped_by_any_acknowledgement(patch: pytest.MonkeyPatch) -> None:
    """A hint goes when its target has some version of the row, though the row has changed since it was sent."""
    from dynamo.replication import hinted_handoff

    good = hinted_handoff.PendingHint.on_reply

    def on_reply(self: Any, core: Any, source: bytes, message: Any) -> bool:
        row = core.rows.load(self.row_key)
        self.digest = getattr(row, "digest", self.digest)
        return good(self, core, source, message)

    patch.setattr(hinted_handoff.PendingHint, "on_reply", on_reply)


@bug
def rows_dropped_when_one_owner_has_them(patch: pytest.MonkeyPatch) -> None:
    """A foreign row goes with the first owner's acknowledgement."""
    patch.setattr(handoff.Handoff, "_drop_if_all_have", lambda self, core, row_key, row: core.rows.drop(row_key))


@bug
def deletes_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A row of which only tombstones are left is dropped at once, and with it what it knew to be deleted."""
    good = rows.Rows.stage

    def stage(self: Any, key: bytes, bucket: bytes, name: bytes, record: bytes, *rest: Any) -> Any:
        row = good(self, key, bucket, name, record, *rest)
        if all(version[6] for version in records.versions(record)):
            self.drop(key)
        return row

    patch.setattr(rows.Rows, "stage", stage)


@bug
def contexts_ignored(patch: pytest.MonkeyPatch) -> None:
    """A put with a context stands beside what its client was shown."""
    good = records.put
    patch.setattr(records, "put", lambda record, context, *rest: good(record, b"", *rest))


@bug
def tokens_leave_deletes_out(patch: pytest.MonkeyPatch) -> None:
    """The context of a read covers the values shown, but not the tombstones."""
    from dynamo.replication import get

    good = records.context

    def context(record: bytes) -> bytes:
        versions = records.versions(record)
        gone = {version[:2] for version in versions if version[6]}
        return b"".join(part for part in _ranges(good(record)) if not any(_holds(part, dot) for dot in gone))

    seal = get.sealed_token

    def sealed_token(*arguments: Any) -> bytes:
        records.context = context
        try:
            return seal(*arguments)
        finally:
            records.context = good

    patch.setattr(get, "sealed_token", sealed_token)


def _ranges(context: bytes) -> list[bytes]:
    return [context[at : at + 24] for at in range(0, len(context), 24)]


def _holds(part: bytes, dot: tuple[int, int]) -> bool:
    actor, first, last = (int.from_bytes(part[at : at + 8], "big") for at in (0, 8, 16))
    return actor == dot[0] and first <= dot[1] <= last


@bug
def damaged_rows_are_absent(patch: pytest.MonkeyPatch) -> None:
    """A row that fails its checksum is taken for one that is not there."""
    good = rows.Rows.load

    def load(self: Any, key: bytes) -> Any:
        row = good(self, key)
        return None if isinstance(row, CorruptRecord) else row

    patch.setattr(rows.Rows, "load", load)


@bug
def last_write_loses(patch: pytest.MonkeyPatch) -> None:
    """In a last-write-wins bucket what comes first stays."""
    good = records.merge

    def merge(a: bytes, b: bytes) -> bytes:
        if a and b and a[1] == records.LAST_WRITE_WINS:
            return min(a, b, key=lambda record: records.versions(record)[0][2])
        return good(a, b)

    patch.setattr(records, "merge", merge)


@bug
def clients_forget_earlier_attempts(patch: pytest.MonkeyPatch) -> None:
    """`maybe_applied` is what the last attempt said, not the OR over all."""
    from dynamo.client.core import Attempts

    def note(self: Any, address: str, error: Any, *, by_node: bool) -> None:
        self._errors.append((address, error, by_node))
        self._maybe_applied = self._request.writes and error.maybe_applied

    patch.setattr(Attempts, "_note", note)


@bug
def retries_are_new_writes(patch: pytest.MonkeyPatch) -> None:
    """A coordinator that meets an operation again mints another dot for it."""
    from dynamo.replication.operations import Operations

    patch.setattr(Operations, "get", lambda self, operation: None)
    patch.setattr(records, "find_operation", lambda record, operation: None)


@bug
def commits_that_fail_are_acknowledged(patch: pytest.MonkeyPatch) -> None:
    """What waited for a commit goes out although it failed."""
    patch.setattr(replica, "as_failed", lambda core, message, error: message)


@bug
def counts_a_node_twice(patch: pytest.MonkeyPatch) -> None:
    """A repeated acknowledgement counts again toward W."""

    class Always(set[bytes]):
        def __contains__(self, item: object) -> bool:
            return False

        def __init__(self) -> None:
            self.times = 0

        def add(self, node: bytes) -> None:
            self.times += 1
            super().add(node)

        def __len__(self) -> int:
            return self.times

    init = put.PutFold.__init__

    def start(self: Any, *arguments: Any) -> None:
        init(self, *arguments)
        self.confirmed = Always()

    patch.setattr(put.PutFold, "__init__", start)


@bug
def weak_acknowledgements_count(patch: pytest.MonkeyPatch) -> None:
    """A refusal of a replica counts as its acknowledgement."""
    good = put.PendingPut.on_reply
    patch.setattr(put.PendingPut, "on_reply", lambda self, core, source, message: good(self, core, source, (*message[:2], 0, *message[3:])))


# --- a ring that grows ----------------------------------------------------------------------------------------------------------------


@bug
def newcomers_answer_at_once(patch: pytest.MonkeyPatch) -> None:
    """Who becomes an owner answers for the partition from then on, whatever it has of it."""
    patch.setattr(standings.Standings, "follow", lambda self, *arguments: None)


@bug
def recovering_owners_stand_for_themselves(patch: pytest.MonkeyPatch) -> None:
    """A coordinator counts an owner that says whom it needs as if it needed nobody."""
    patch.setattr(get, "satisfied", lambda replied, recovering: set(replied))
    patch.setattr(scan, "satisfied", lambda replied, recovering: set(replied))


@bug
def whole_after_the_first_pull(patch: pytest.MonkeyPatch) -> None:
    """An owner that needs two others is whole when it has pulled from one."""

    def pulled(self: Any, place: Any, nodes: Any, node_id: bytes) -> None:
        self.version += self.needs.pop(place, None) is not None

    patch.setattr(standings.Standings, "pulled", pulled)


@bug
def pulls_that_pull_nothing(patch: pytest.MonkeyPatch) -> None:
    """An owner that has asked what others need is whole, and has their rows from nobody."""
    from dynamo.replication import recovery

    good = recovery.PendingPull.on_reply

    def on_reply(self: Any, core: Any, source: bytes, message: Any) -> bool:
        if message[0] == m.RECOVER_REPLY and source == self.peer and not message[2]:
            return self._end(core, agreed=True)
        return good(self, core, source, message)

    patch.setattr(recovery.PendingPull, "on_reply", on_reply)


@bug
def what_was_acknowledged_is_not_noted(patch: pytest.MonkeyPatch) -> None:
    """An owner's acknowledgement of a row that was kept for it is heard and forgotten."""
    from dynamo.replication.acknowledged import Acknowledged

    patch.setattr(Acknowledged, "has", lambda self, partition, owner, row_key: None)


# --- who is behind an address ---------------------------------------------------------------------------------------------------------


@address_bug
def an_address_is_an_identity(patch: pytest.MonkeyPatch) -> None:
    """Whoever answers at another's address is refused, and a node that is refused ends."""
    _only_the_expected(patch)
    patch.setattr(startup, "is_fatal", lambda refusal: isinstance(refusal, ConfigError))


@address_bug
def who_answers_is_not_believed(patch: pytest.MonkeyPatch) -> None:
    """Whoever answers at another's address is refused, though nobody ends for it. (Where a node asks at its former address too, that alone is made good.)"""
    _only_the_expected(patch)
    swapped_nodes_ask_nobody(patch)


def _only_the_expected(patch: pytest.MonkeyPatch) -> None:
    good = handshake.Handshake.accept_reply

    def strict(self: handshake.Handshake, message: Any, expected: bytes) -> handshake.Greeted:
        greeted = good(self, message, expected)
        if expected not in (b"", greeted.node_id):
            raise ConfigError("another node answers at this address")
        return greeted

    patch.setattr(handshake.Handshake, "accept_reply", strict)


@address_bug
def asked_once_at_start(patch: pytest.MonkeyPatch) -> None:
    """The addresses of `join` are asked when a node starts, and never again."""
    good = joining.Seeking.look

    def once(self: joining.Seeking, *arguments: Any) -> joining.Look:
        first = self.next_deadline == 0.0
        look = good(self, *arguments)
        return look if first else joining.Look()

    patch.setattr(joining.Seeking, "look", once)


@address_bug
def the_first_answer_decides(patch: pytest.MonkeyPatch) -> None:
    """A newcomer takes the first cluster that answers, whatever the others say."""
    good = joining.Entry.verdict

    def verdict(self: joining.Entry, waited_s: float) -> Any:
        for address in list(self._clusters)[1:]:
            del self._clusters[address]
        return good(self, waited_s)

    patch.setattr(joining.Entry, "verdict", verdict)


@address_bug
def in_the_ring_for_having_asked(patch: pytest.MonkeyPatch) -> None:
    """A node is a member as soon as it asked to become one."""
    good = admin.Desk._join

    def join(self: admin.Desk, node_id: bytes, address: str) -> Any:
        self._membership.admit(node_id, "asked", address)
        return good(self, node_id, address)

    patch.setattr(admin.Desk, "_join", join)


@address_bug
def swapped_nodes_ask_nobody(patch: pytest.MonkeyPatch) -> None:
    """A node forgets where it was before."""
    patch.setattr(addresses, "hints", lambda join, membership: list(join))


@bug
def listings_without_a_bound(patch: pytest.MonkeyPatch) -> None:
    """An exchange lists all keys of the leaves that differ in one message, however many they are."""
    good = trees.Trees.listed
    patch.setattr(
        trees.Trees, "listed", lambda self, core, place, leaves, after=b"", until=b"", limit=0: good(self, core, place, leaves, after, until, 1 << 30)
    )


@bug
def answers_without_a_bound(patch: pytest.MonkeyPatch) -> None:
    """A read shows all siblings, whether or not the client takes so many."""
    good = fitting.shown
    patch.setattr(fitting, "shown", lambda record, bytes_max: good(record, 1 << 40))


@bug
def tokens_of_a_part_cover_all(patch: pytest.MonkeyPatch) -> None:
    """A read that shows a part of the siblings gives a token for all of them: the next write drops what nobody has seen."""
    patch.setattr(fitting, "without", lambda context, dots: context)


@bug
def parts_out_of_order(patch: pytest.MonkeyPatch) -> None:
    """Parts of a message arrive out of their order."""
    patch.setattr(wire_bounds, "split", lambda frame, size: parts.split(frame, size)[::-1])
