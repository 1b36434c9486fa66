"""Bugs of the kind that stores of this family have had, to be planted into the product: the simulator must find each of them.

Each is a function that patches the product through `pytest.MonkeyPatch`. They are crude on purpose; what matters is that what they break is
something that a promise forbids, not how subtle the code is that breaks it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dynamo._core import record as records
from dynamo.replication import actor, handoff, local, put, replica, rows
from dynamo.replication.actor import ActorLease

Patch = Callable[[pytest.MonkeyPatch], None]
BUGS: dict[str, Patch] = {}


def bug(plant: Patch) -> Patch:
    BUGS[plant.__name__] = plant
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
