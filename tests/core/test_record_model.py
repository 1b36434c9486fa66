"""Histories of several stores and clients against the truth: what each client was really shown.

A history puts under tokens of reads and of puts, chained and blind, replicates, repairs pairwise, and has the faults that
lose causal history in other stores: a coordinator dies after its peers stored the record and before its own commit, and
comes back as a new actor; a row is handed over and dropped, and later received again or made anew (riak_kv#679). In the
end every store merges with every other. What is left must be exactly the writes that no later writer had been shown:
nothing lost that was shown to nobody, nothing kept that was replaced (promises P1 and P4).
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

STORES, KEYS = 4, 2
Step = tuple[int, int, int, int, int]  # dice 0..99, key, store, other store, choice: any non-negative integers


class Store:
    def __init__(self, actor: int) -> None:
        self.actor, self.counter = actor, 0
        self.rows: dict[int, bytes] = {}
        self.since: dict[int, tuple[int, int]] = {}  # key -> (actor, first counter minted on this row); local


class World:
    """Stores that run the rule of DESIGN section 2 over one twin, and beside them the truth, which knows no dots.

    `rule` other than "ranges" breaks the stores on purpose: "highest" claims every counter below the new one, "same actor"
    goes on after a crash with the old actor and counter, "whole record" answers a put with all that the record covers.
    """

    def __init__(self, record: ModuleType, rule: str = "ranges") -> None:
        self.record, self.rule = record, rule
        self.actors = 0
        self.stores = [Store(self.new_actor()) for _ in range(STORES)]
        self.shown_before: list[frozenset[int]] = []  # by operation: the operations its client had been shown
        self.key_of: list[int] = []
        # What clients hold: a token, and the operations they were shown with it. Everyone may begin with nothing.
        self.tokens: dict[int, list[tuple[bytes, frozenset[int]]]] = {key: [(b"", frozenset())] for key in range(KEYS)}
        self.ever: dict[int, list[bytes]] = {key: [b""] for key in range(KEYS)}  # every record there ever was

    def new_actor(self) -> int:
        self.actors += 1
        return self.actors * 0x9E3779B97F4A7C15 % 2**64  # spread, so that the order of actors is not that of events

    def step(self, step: Step) -> None:
        dice, key, store, other, choice = step
        key, here, there = key % KEYS, self.stores[store % STORES], self.stores[(store + 1 + other % (STORES - 1)) % STORES]
        if dice < 36:
            self.put(key, here, choice, crash=dice < 6)
        elif dice < 56:
            self.read(key, (here, there) if choice % 2 else (here,))
        elif dice < 80:
            self.receive(key, there, here.rows.get(key, b""))
        elif dice < 90 and key in here.rows:
            self.receive(key, there, here.rows.pop(key))  # hand over, then drop
            here.since.pop(key, None)
        elif dice < 93:
            here.actor, here.counter = self.new_actor(), 0  # stopped without the marker, nothing lost

    def put(self, key: int, here: Store, choice: int, crash: bool) -> None:
        token, shown = self.tokens[key][-1 - choice % min(4, len(self.tokens[key]))]
        before, since = here.rows.get(key, b""), here.since.get(key)
        if choice % 7 == 0:
            token, shown = b"", frozenset()
        elif choice % 7 == 1:  # `set`: replaces what the coordinator has, whoever was shown it
            token, shown = self.record.context(before), self.past(before)
        known = since is not None and since[0] == here.actor
        if self.rule == "ranges":
            # The alarms that make a store change its actor (DESIGN section 2) never ring in a history without breaches.
            assert self.record.context_highest(token, here.actor) <= here.counter
            if since is not None and known:
                assert not self.record.context_gap(self.record.context(before), token, here.actor, since[1])
        here.counter += 1
        first = since[1] if since is not None and known else here.counter
        operation = len(self.shown_before)
        self.shown_before.append(shown)
        self.key_of.append(key)
        tombstone = choice % 5 == 0
        value = b"" if tombstone else b"value %d" % operation
        record = self.record.put(
            before, token, here.actor, here.counter, 1 if self.rule == "highest" else first, operation,
            operation.to_bytes(16, "big"), value, tombstone,
        )  # fmt: skip
        self.ever[key].append(record)
        peers = [store for store in self.stores if store is not here]
        for peer in peers[: 2 if crash else choice % 3]:
            self.receive(key, peer, record)
        if crash:
            if self.rule == "same actor":
                here.counter -= 1
            else:
                here.actor, here.counter = self.new_actor(), 0
            return
        here.rows[key] = record
        if not known:
            here.since[key] = (here.actor, here.counter)
        answer, unseen = self.record.token_context(record, token, here.actor, here.counter)
        if self.rule == "whole record":
            answer = self.record.context(record)
        assert unseen == self.record.version_count(record) - 1
        assert self.record.context_contains(answer, here.actor, here.counter)
        assert self.record.context_covers(answer, token)
        self.tokens[key].append((answer, shown | {operation}))

    def read(self, key: int, stores: Iterable[Store]) -> None:
        record = b""
        for store in stores:
            record = self.record.merge(record, store.rows.get(key, b""))
        self.ever[key].append(record)
        self.tokens[key].append((self.record.context(record), self.past(record)))

    def receive(self, key: int, store: Store, record: bytes) -> None:
        merged = self.record.merge(store.rows.get(key, b""), record)
        if merged:
            store.rows[key] = merged  # a row that is received has no `since`; one that is merged into keeps it
            self.ever[key].append(merged)

    def operations(self, record: bytes) -> set[int]:
        return {int.from_bytes(version[3], "big") for version in self.record.versions(record)}

    def past(self, record: bytes) -> frozenset[int]:
        """What one who is shown the record is shown: its versions, and with them all that their writers had been shown."""
        operations = self.operations(record)
        return frozenset(operations).union(*(self.shown_before[operation] for operation in operations))

    def truth(self, key: int) -> set[int]:
        """The maximal writes: those of which no writer had been shown."""
        written = {operation for operation, where in enumerate(self.key_of) if where == key}
        return written.difference(*(self.shown_before[operation] for operation in written))

    def merged(self, key: int, order: Iterable[int]) -> bytes:
        record = b""
        for index in order:
            record = self.record.merge(record, self.stores[index].rows.get(key, b""))
        return record

    def check(self, dice: random.Random) -> None:
        for key in range(KEYS):
            final = self.merged(key, range(STORES))
            assert self.operations(final) == self.truth(key)
            assert self.record.duplicate_dots(final) == 0
            self.record.verify(final)
            for _ in range(4):
                assert self.merged(key, dice.sample(range(STORES), STORES)) == final, "the order of merges matters"
            for row in (store.rows.get(key, b"") for store in self.stores):
                assert self.record.merge(final, row) == final and self.record.compare(row, final) <= self.record.BEFORE
            self.check_join(dice, self.ever[key])
            if final:
                actor = self.new_actor()
                after = self.record.put(final, self.record.context(final), actor, 1, 1, 1, bytes(16), b"", False)
                assert self.record.version_count(after) == 1, "a read shows and covers all"

    def check_join(self, dice: random.Random, ever: list[bytes]) -> None:
        """Merge is a join over all records of the history, and compare its order."""
        merge, record = self.record.merge, self.record
        for _ in range(12):
            a, b, c = (dice.choice(ever) for _ in range(3))
            ab = merge(a, b)
            record.verify(ab)
            assert ab == merge(b, a), "not commutative"
            assert merge(ab, c) == merge(a, merge(b, c)), "not associative"
            assert merge(ab, a) == ab == merge(ab, b) and merge(a, a) == a, "not idempotent"
            order = record.compare(a, b)
            assert (a == b) == (order == record.EQUAL)
            assert (ab == b) == (order in (record.EQUAL, record.BEFORE))
            assert (ab == a) == (order in (record.EQUAL, record.AFTER))


def run(record: ModuleType, steps: Iterable[Step], rule: str = "ranges") -> World:
    world = World(record, rule)
    for step in steps:
        world.step(step)
    world.check(random.Random(len(world.key_of)))
    return world


def random_steps(seed: int, count: int = 60) -> list[Step]:
    dice = random.Random(seed)
    return [(dice.randrange(100), *(dice.randrange(1000) for _ in range(4))) for _ in range(count)]  # type: ignore[misc]


@pytest.fixture(scope="session")
def record(core: Any) -> ModuleType:
    return core.record


small = st.integers(0, 11)
dices = st.integers(0, 99).map(lambda dice: 99 - dice)  # shrinks to the step that does nothing


@given(st.lists(st.tuples(dices, small, small, small, st.integers(0, 104)), min_size=20, max_size=60))
@settings(max_examples=200)
def test_histories(record: ModuleType, steps: list[Step]) -> None:
    """Found and shrunk by Hypothesis."""
    run(record, steps)


def test_long_random_histories(record: ModuleType) -> None:
    """Longer ones than Hypothesis makes. A seed that fails is named in the traceback."""
    for seed in range(400):
        run(record, random_steps(seed))


def test_histories_do_what_they_are_for(record: ModuleType) -> None:
    """The checks above are worth something only if conflicts, chains and re-made rows do happen."""
    worlds = [run(record, random_steps(seed)) for seed in range(40)]
    finals = [world.merged(key, range(STORES)) for world in worlds for key in range(KEYS)]
    assert sum(record.version_count(final) > 1 for final in finals) > len(finals) // 4
    assert max(len(record.context(final)) // 24 for final in finals) > STORES
    assert any(version[6] for final in finals for version in record.versions(final))


@pytest.mark.parametrize("rule", ["highest", "same actor", "whole record"])
def test_the_model_finds_a_broken_rule(record: ModuleType, rule: str) -> None:
    """A store that breaks one rule loses a version in some history: the checks can fail."""
    failed = 0
    for seed in range(100):
        try:
            run(record, random_steps(seed), rule)
        except AssertionError:
            failed += 1
    assert failed > 5


def test_a_chain_of_puts_needs_one_range(record: ModuleType) -> None:
    """The token of a put is widened, so that writing on under it does not add a range each time, also beside a sibling."""
    data = record.put(b"", b"", 7, 1, 1, 1, bytes(16), b"unseen", False)
    token = b""
    for counter in range(2, 50):
        data = record.put(data, token, 9, counter, 2, counter, counter.to_bytes(16, "big"), b"v", False)
        token, unseen = record.token_context(data, token, 9, counter)
        assert unseen == 1 and len(token) == 24
    assert record.version_count(data) == 2 and len(record.context(data)) == 48
