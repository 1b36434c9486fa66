"""The small parts of the policy: actor leases, tokens, deadlines, quorum arithmetic, the folds."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo._core import record as records
from dynamo.errors import InvalidContext
from dynamo.model import messages as m
from dynamo.replication import tokens
from dynamo.replication.actor import LEASE_BLOCK, ActorLease
from dynamo.replication.deadlines import Deadlines
from dynamo.replication.get import GetFold
from dynamo.replication.put import PutFold
from dynamo.replication.quorum import FAILED, MET, PENDING, needed

SECRET = b"s" * 32


class TestActor:
    def test_an_unclean_stop_starts_a_new_actor(self) -> None:
        first = ActorLease.load(None, False, random.Random(1))
        second = ActorLease.load(first.encode(), False, random.Random(2))
        assert second.actor != first.actor and second.issued == 0

    def test_a_clean_stop_goes_on_behind_the_lease(self) -> None:
        first = ActorLease.load(None, False, random.Random(1))
        first.issue(first.next_counter())
        second = ActorLease.load(first.encode(), True, random.Random(2))
        assert second.actor == first.actor
        assert second.next_counter() == first.lease_end + 1

    def test_a_damaged_lease_starts_a_new_actor(self) -> None:
        assert ActorLease.load(b"\x01short", True, random.Random(1)).issued == 0

    def test_nothing_is_minted_until_a_new_actor_is_durable(self) -> None:
        lease = ActorLease.load(None, False, random.Random(1))
        old = lease.actor
        lease.issue(1)
        lease.renew(random.Random(2))
        assert not lease.usable
        with pytest.raises(AssertionError):
            lease.next_counter()
        lease.durable(lease.encode())
        assert lease.usable and lease.actor != old and lease.next_counter() == 1

    def test_an_extension_goes_on_under_the_old_lease(self) -> None:
        lease = ActorLease(7, LEASE_BLOCK // 2 + 1, LEASE_BLOCK)
        assert lease.wants_extension
        lease.extend()
        assert lease.usable and not lease.wants_extension
        lease.issued = LEASE_BLOCK
        assert not lease.usable
        lease.durable(lease.encode())
        assert lease.next_counter() == LEASE_BLOCK + 1

    def test_a_commit_of_an_older_lease_changes_nothing(self) -> None:
        lease = ActorLease(7, 0, LEASE_BLOCK)
        lease.extend()
        older = lease.encode()
        lease.renew(random.Random(3))
        lease.durable(older)
        assert not lease.usable

    def test_two_lives_that_went_on_from_one_stop_are_told_apart(self) -> None:
        stopped = ActorLease.load(None, False, random.Random(1)).encode()
        lost, restored = (ActorLease.load(stopped, True, random.Random(seed)) for seed in (2, 3))
        assert restored.kept and restored.actor == lost.actor
        assert restored.contradicted_by(lost.actor, lost.lease_end) and lost.contradicted_by(restored.actor, restored.lease_end)
        restored.extend()
        restored.durable(restored.encode())
        for known in (0, LEASE_BLOCK, restored.lease_end):
            assert not restored.contradicted_by(restored.actor, known)
        restored.renew(random.Random(4))
        restored.durable(restored.encode())
        assert not restored.kept and not restored.contradicted_by(restored.actor, LEASE_BLOCK)

    def test_those_that_minted_in_this_life_are_known_of_many_the_newest(self) -> None:
        lease = ActorLease.load(None, False, random.Random(1))
        actors = [lease.actor]
        for seed in range(2, 22):
            assert lease.of_this_life == tuple(actors[-16:])
            lease.renew(random.Random(seed))
            lease.durable(lease.encode())
            actors.append(lease.actor)

    def test_an_unconfirmed_actor_mints_nothing(self) -> None:
        lease = ActorLease(7, 0, LEASE_BLOCK)
        lease.unconfirmed = True
        assert not lease.usable
        lease.renew(random.Random(1))
        lease.durable(lease.encode())
        assert lease.usable


class TestTokens:
    CONTEXT = records.context_add(b"", 5, 1, 9)

    def test_round_trip(self) -> None:
        token = tokens.seal(SECRET, b"b\0k", 1, 0, self.CONTEXT)
        assert tokens.unseal(SECRET, b"b\0k", 1, token) == (0, self.CONTEXT)

    def test_no_token_is_the_empty_context_and_an_empty_one_is_none(self) -> None:
        assert tokens.unseal(SECRET, b"b\0k", 1, None) == (0, b"")
        with pytest.raises(InvalidContext):
            tokens.unseal(SECRET, b"b\0k", 1, b"")

    @pytest.mark.parametrize(("secret", "key", "kind"), [(b"t" * 32, b"b\0k", 1), (SECRET, b"b\0other", 1), (SECRET, b"b\0k", 2)])
    def test_foreign_other_key_and_other_kind_are_refused(self, secret: bytes, key: bytes, kind: int) -> None:
        token = tokens.seal(SECRET, b"b\0k", 1, 0, self.CONTEXT)
        with pytest.raises(InvalidContext):
            tokens.unseal(secret, key, kind, token)

    def test_every_truncation_and_bit_flip_is_refused(self) -> None:
        token = tokens.seal(SECRET, b"b\0k", 1, 0, self.CONTEXT)
        for length in range(len(token)):
            with pytest.raises(InvalidContext):
                tokens.unseal(SECRET, b"b\0k", 1, token[:length])
        for bit in range(len(token) * 8):
            flipped = bytearray(token)
            flipped[bit // 8] ^= 1 << bit % 8
            with pytest.raises(InvalidContext):
                tokens.unseal(SECRET, b"b\0k", 1, bytes(flipped))

    def test_the_server_never_seals_what_it_would_refuse(self) -> None:
        wide = b"".join(i.to_bytes(8, "big") + (1).to_bytes(8, "big") * 2 for i in range(1, 5000))
        _, context = tokens.unseal(SECRET, b"b\0k", 1, tokens.seal(SECRET, b"b\0k", 1, 0, wide))
        assert len(context) == 4096 * 24

    @given(st.binary(max_size=200))
    def test_garbage_is_refused(self, garbage: bytes) -> None:
        with pytest.raises(InvalidContext):
            tokens.unseal(SECRET, b"b\0k", 1, garbage)


@given(st.lists(st.tuples(st.floats(0, 3), st.sampled_from((0.05, 0.2, 1.0, 1.7, 59.9))), max_size=60))
def test_deadlines_come_once_and_never_early(entries: list[tuple[float, float]]) -> None:
    deadlines, now, expected = Deadlines(), 0.0, {}
    for number, (step, delay) in enumerate(entries):
        now += step
        deadlines.add(now, delay, number)
        expected[number] = now + delay
    end = now
    seen: set[int] = set()
    while (due := deadlines.next(expected.keys() - seen)) is not None:
        now = max(end, due)
        for number in deadlines.due(due):
            assert number not in seen
            assert due >= expected[number] - 1e-9
            assert due <= expected[number] + 0.26 * max(entries[number][1], 0.001)
            seen.add(number)
    assert seen == expected.keys()


@pytest.mark.parametrize(
    ("asked", "bucket", "default", "n", "members", "expected"),
    [(0, 0, 0, 3, 1, 1), (0, 0, 0, 3, 2, 2), (0, 0, 0, 3, 3, 2), (0, 0, 0, 5, 9, 3), (3, 1, 2, 3, 1, 3), (0, 1, 2, 3, 3, 1), (0, 0, 2, 3, 1, 2)],
)
def test_quorum_numbers(asked: int, bucket: int, default: int, n: int, members: int, expected: int) -> None:
    assert needed(asked, bucket, default, n, members) == expected


class TestFolds:
    def test_a_put_is_met_by_distinct_nodes_only(self) -> None:
        fold = PutFold(2, 0, (b"a", b"b", b"c"), m.DURABILITY_SYNCED)
        fold.outstanding = {b"a", b"b", b"c"}
        assert fold.confirm(b"a", m.OWNER, m.DURABILITY_SYNCED) == PENDING
        assert fold.confirm(b"a", m.OWNER, m.DURABILITY_SYNCED) == PENDING
        assert fold.confirm(b"b", m.OWNER, m.DURABILITY_SYNCED) == MET

    def test_weaker_durability_does_not_count(self) -> None:
        fold = PutFold(1, 0, (b"a",), m.DURABILITY_SYNCED)
        fold.outstanding = {b"a"}
        assert fold.confirm(b"a", m.OWNER, m.DURABILITY_RELAXED) == FAILED

    def test_pw_counts_owners(self) -> None:
        fold = PutFold(1, 1, (b"a",), m.DURABILITY_MEMORY)
        fold.outstanding = {b"a", b"x"}
        assert fold.confirm(b"x", m.FALLBACK, m.DURABILITY_SYNCED) == PENDING
        assert fold.confirm(b"a", m.OWNER, m.DURABILITY_SYNCED) == MET

    def test_a_get_repairs_owners_behind_and_no_fallbacks(self) -> None:
        old = records.put(b"", b"", 1, 1, 1, 1, b"o" * 16, b"old", False)
        new = records.put(old, records.context(old), 2, 1, 1, 2, b"p" * 16, b"new", False)
        fold = GetFold(2, 0)
        fold.add(b"a", m.OWNER, old)
        assert fold.add(b"b", m.OWNER, new) == MET
        fold.add(b"f", m.FALLBACK, old)
        merged, behind = fold.final_action()
        assert merged == new and behind == [b"a"]

    def test_a_get_fails_when_nobody_is_left(self) -> None:
        fold = GetFold(2, 0)
        fold.outstanding = {b"a", b"b"}
        assert fold.add(b"a", m.OWNER, b"") == PENDING
        assert fold.fail(b"b", 1) == FAILED

    @given(st.lists(st.tuples(st.sampled_from((b"a", b"b", b"c")), st.sampled_from((m.OWNER, m.FALLBACK)), st.integers(0, 4), st.booleans()), max_size=6))
    def test_a_get_joins_the_last_reply_of_each_node(self, replies: list[tuple[bytes, int, int, bool]]) -> None:
        shown = [b"", *_history()]
        fold, last = GetFold(1, 0), dict[bytes, tuple[int, bytes]]()
        for node, standing, which, very_same in replies:
            record = shown[which] if very_same else bytes(bytearray(shown[which]))  # a digest stands for the very record that was sent out
            fold.add(node, standing, record)
            last[node] = standing, record
            joined = b""
            for _, other in last.values():
                joined = records.merge(joined, other) if joined and other else joined or other
            assert fold.merged() == joined
            assert fold.final_action() == (joined, [at for at, (role, other) in last.items() if role == m.OWNER and other != joined])


def _history() -> list[bytes]:
    """A record, a later one, one beside that, and the join of the last two."""
    first = records.put(b"", b"", 1, 1, 1, 1, b"o" * 16, b"first", False)
    second = records.put(first, records.context(first), 2, 1, 1, 2, b"p" * 16, b"second", False)
    beside = records.put(first, records.context(first), 3, 1, 1, 2, b"q" * 16, b"beside", False)
    return [first, second, beside, records.merge(second, beside)]
