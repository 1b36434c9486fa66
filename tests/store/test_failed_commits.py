"""A commit that fails, or is interrupted: every caller gets its own answer, in its time, and the store goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

import dynamo
from dynamo.errors import StorageFull, ValueTooLarge


class Failing:
    """Makes the store's next commits raise what is in `errors`."""

    def __init__(self, store: dynamo.Store) -> None:
        self.errors: list[BaseException] = []
        engine = store._directory.engine
        commit = engine.commit

        def failing(*arguments: Any) -> None:
            if self.errors:
                raise self.errors.pop(0)
            commit(*arguments)

        engine.commit = failing  # type: ignore[method-assign]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[dynamo.Store]:
    with dynamo.open(tmp_path / "data", timeout=10.0) as store:
        yield store


def threads(count: int, work: Callable[[int], None]) -> list[threading.Thread]:
    started = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in started:
        thread.start()
    return started


def test_the_store_goes_on_after_a_failed_commit(store: dynamo.Store) -> None:
    store.set("a", b"1")
    failing = Failing(store)
    failing.errors = [StorageFull("no room")]
    with pytest.raises(dynamo.StorageFull) as caught:
        store.set("a", b"2")
    assert caught.value.maybe_applied
    assert store.get("a").value == b"1"
    store.set("a", b"3")
    assert store.get("a").value == b"3"


def test_a_disk_that_stays_full_ends_in_typed_errors_within_the_time_and_reads_go_on(store: dynamo.Store) -> None:
    store.set("a", b"1")
    failing = Failing(store)
    failing.errors = [StorageFull("no room") for _ in range(1000)]
    for _ in range(3):
        began = monotonic()
        with pytest.raises((dynamo.StorageFull, dynamo.Timeout)):
            store.set("a", b"2", timeout=0.3)
        assert monotonic() - began < 5
        assert store.get("a").value == b"1"
    failing.errors = []
    store.set("a", b"3")
    assert store.get("a").value == b"3"


def test_every_thread_gets_its_own_answer(store: dynamo.Store) -> None:
    """A put that waits for a new actor is answered in a later step, which other threads' calls are in."""
    store.set("a", b"1")
    failing = Failing(store)
    failing.errors = [StorageFull("no room")]
    with pytest.raises(dynamo.StorageFull):
        store.set("a", b"2")
    done, wrong = threading.Event(), []

    def write(_: int) -> None:
        store.set("a", b"3")
        done.set()

    def refused(number: int) -> None:
        while not done.is_set():
            try:
                store.put(f"b{number}", bytes((1 << 20) + 1))
            except ValueTooLarge:
                continue
            except BaseException as error:
                wrong.append(error)
            else:
                wrong.append(AssertionError("a value that is too large was acknowledged"))
            return

    for thread in threads(1, write) + threads(4, refused):
        thread.join(30)
        assert not thread.is_alive()
    assert wrong == [] and store.get("a").value == b"3"


def test_an_interrupted_commit_is_a_failed_one(store: dynamo.Store) -> None:
    store.set("a", b"1")
    failing = Failing(store)
    failing.errors = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        store.set("a", b"2")
    store.set("a", b"3")
    assert store.get("a").value == b"3"


def test_an_interrupted_step_is_forgotten_and_the_store_goes_on_under_a_new_actor(tmp_path: Path) -> None:
    store = dynamo.open(tmp_path / "data")
    store.set("a", b"1")
    actor = store._actor.actor
    receive = store._replica.receive

    def interrupted(*arguments: Any) -> None:
        store._replica.receive = receive  # type: ignore[method-assign]
        raise KeyboardInterrupt

    store._replica.receive = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        store.set("a", b"2")
    assert store.get("a").value == b"1"
    dot = store.set("a", b"3").dot
    assert dot is not None and dot.actor != actor
    store.close()
    with dynamo.open(tmp_path / "data") as again:
        assert again.get("a").value == b"3" and again._actor.actor == dot.actor


def test_those_who_waited_for_an_interrupted_step_hear_so_at_once(store: dynamo.Store) -> None:
    """The step had taken the calls of others along."""
    store.set("a", b"1")
    receive, entered, queued = store._replica.receive, threading.Event(), threading.Event()
    outcomes: list[BaseException] = []

    def interrupted(batch: Any, now: float) -> None:
        store._replica.receive = receive  # type: ignore[method-assign]
        raise KeyboardInterrupt

    def first(_: int) -> None:
        try:
            store.get("a", r=1)
        except BaseException as error:
            outcomes.append(error)

    def hold() -> None:
        entered.set()
        queued.wait(10)

    began = monotonic()
    holder = threading.Thread(target=store._driver.run, args=(hold,))
    holder.start()
    entered.wait(10)
    waiting = threads(3, first)
    while len(store._calls) < 3:
        assert monotonic() - began < 20
    store._replica.receive = interrupted  # type: ignore[method-assign]
    queued.set()
    for thread in (holder, *waiting):
        thread.join(10)
        assert not thread.is_alive()
    kinds = sorted(type(error).__name__ for error in outcomes)
    assert kinds == ["KeyboardInterrupt", "StorageFailed", "StorageFailed"]
    assert not any(error.maybe_applied for error in outcomes if isinstance(error, dynamo.StorageFailed))
    store.set("b", b"2")
    assert store.get("b").value == b"2"
