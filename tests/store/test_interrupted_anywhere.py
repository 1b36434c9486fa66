# ruff: noqa: B023  (each function is called in the turn of the loop that makes it)
"""An exception at any line of what a call goes through: the store answers other threads, closes, and its directory opens anew."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dynamo
from dynamo import store as store_module
from dynamo._core import _row_py
from dynamo.client import verbs_blocking
from dynamo.storage import buffer, data_directory, flush_thread, lmdb, memory, owned_lock
from tests.interrupting import interrupted, places

MODULES = [store_module, owned_lock, buffer, memory, data_directory, flush_thread, lmdb, _row_py, verbs_blocking]
PATIENCE_S = 20.0
# What an exception drops is closed by the collector, which says so.
pytestmark = [pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"), pytest.mark.filterwarnings("ignore::ResourceWarning")]


def in_time(call: Callable[[], Any]) -> Any:
    """What the call returns in another thread, which nothing of this one may keep waiting."""
    outcome: list[Any] = []
    thread = threading.Thread(target=lambda: outcome.append(call()), daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert outcome, "another thread waits, or was refused"
    return outcome[0]


def scanned(store: dynamo.Store) -> None:
    list(store.scan())


CALLS: dict[str, Callable[[dynamo.Store], Any]] = {
    "get": lambda store: store.get("a"),
    "asked get": lambda store: store.get("a", r=1),
    "set": lambda store: store.set("a", b"2"),
    "update": lambda store: store.update("a", lambda values: b"2"),
    "put_many": lambda store: store.bucket("b").put_many({"a": b"2", "c": b"1"}),
    "delete": lambda store: store.delete("a", blind=True),
    "scan": scanned,
    "stats": lambda store: store.stats(),
}


@pytest.mark.parametrize("opcodes", [False, True], ids=["lines", "instructions"])
@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_is_interrupted_leaves_nothing_taken(tmp_path: Path, name: str, opcodes: bool) -> None:
    if opcodes and name not in ("get", "set", "update"):
        pytest.skip("the same ways as another")
    call = CALLS[name]
    for durability in ["memory"] if opcodes or name != "set" else ["memory", "buffered"]:
        store = dynamo.open(tmp_path / durability, durability=durability, timeout=PATIENCE_S)
        store.set("a", b"1")
        with_store = lambda: call(store)  # noqa: E731
        ways = places(with_store, MODULES, opcodes=opcodes)
        assert len(ways) > 5
        for number, place in enumerate(ways[:: 11 if opcodes else 5 if durability == "buffered" or name in ("update", "put_many", "delete") else 1]):
            interrupted(with_store, place, MODULES, opcodes=opcodes)
            value = b"%d" % number
            assert in_time(lambda: store.set("a", value)), place
            assert store.update("a", lambda values: value) and store.get("a").value == value, place
            assert not any(lock.held_here() for lock in (store._driver, *store._stripes)), place
        store.close()
        if durability != "memory":
            with dynamo.open(tmp_path / durability) as again:
                assert again.get("a").value == value


@pytest.mark.parametrize("durability", ["synced", "buffered"])
def test_a_close_that_is_interrupted_can_be_done_again_and_the_directory_opens(tmp_path: Path, durability: str) -> None:
    def opened() -> dynamo.Store:
        store = dynamo.open(tmp_path, durability=durability, timeout=PATIENCE_S)
        store.set("a", b"1")
        return store

    for place in places(opened().close, MODULES):
        store = opened()
        interrupted(store.close, place, MODULES)
        in_time(lambda: (store.close(),))
        with dynamo.open(tmp_path) as again:
            assert again.get("a").value == b"1", place


@pytest.mark.parametrize("durability", ["synced", "buffered"])
def test_an_open_that_is_interrupted_keeps_nothing(tmp_path: Path, durability: str) -> None:
    with dynamo.open(tmp_path, durability=durability) as store:
        store.set("a", b"1")
    kept: list[dynamo.Store] = []

    def begin() -> None:
        kept.append(dynamo.open(tmp_path, durability=durability))

    ways = places(begin, MODULES)
    kept.pop().close()
    for place in ways[::3]:
        interrupted(begin, place, MODULES)
        if kept:
            kept.pop().close()
        gc.collect()
        with dynamo.open(tmp_path) as again:
            assert again.get("a").value == b"1", place
    assert threading.active_count() < 20
