"""The embedded store over a write buffer: what a crash takes with it, and what it does not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep

import pytest

import dynamo
from dynamo.errors import DynamoError, StorageFailed
from dynamo.model.group import Group
from dynamo.storage import flush_thread
from dynamo.storage.buffer import WriteBuffer
from dynamo.testing.cluster import child_environment

PATIENCE_S = 30.0


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is flushed for its age."""
    monkeypatch.setattr(flush_thread.FlushThread, "note", lambda self: None)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[dynamo.Store]:
    with dynamo.open(tmp_path / "data", durability="buffered", timeout=10.0) as store:
        yield store


def buffer_of(store: dynamo.Store) -> WriteBuffer:
    engine = store._directory.engine
    assert isinstance(engine, WriteBuffer)
    return engine


def until(condition: Callable[[], bool]) -> None:
    deadline = monotonic() + PATIENCE_S
    while not condition():
        assert monotonic() < deadline, "nothing happened"
        sleep(0.005)


def on_disk(store: dynamo.Store) -> int:
    """Rows, while no flush is under way."""
    with store._driver:
        return buffer_of(store).engine.count("objects")


def child(script: str, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-P", "-c", script, str(path)], env=child_environment(), capture_output=True, text=True, timeout=PATIENCE_S)


def test_reads_and_scans_see_what_is_only_in_the_buffer(store: dynamo.Store, never: None) -> None:
    store.set("a", b"1")
    store.set("b", b"1")
    assert buffer_of(store).dirty and buffer_of(store).engine.count("objects") == 0
    assert store.get("a").value == b"1" and [result.key for result in store.scan()] in ([b"a", b"b"], [b"b", b"a"])
    store.delete("a", context=store.get("a").context)
    assert not store.get("a").found and [result.key for result in store.scan()] == [b"b"]


def test_what_has_aged_is_flushed_though_nobody_calls(store: dynamo.Store) -> None:
    store.set("a", b"1")
    until(lambda: on_disk(store) == 1)
    assert not buffer_of(store).dirty and store.get("a").value == b"1"


def test_a_clean_stop_flushes_and_keeps_the_actor(tmp_path: Path, never: None) -> None:
    with dynamo.open(tmp_path / "data", durability="buffered") as store:
        first = store.set("a", b"1").dot
        assert buffer_of(store).dirty
    with dynamo.open(tmp_path / "data") as store:
        assert store.get("a").value == b"1"
        second = store.set("a", b"2").dot
    assert first is not None and second is not None and second.actor == first.actor and second.counter > first.counter


CRASH = """
import os, sys, dynamo
from dynamo.storage import flush_thread
store = dynamo.open(sys.argv[1], durability="buffered")
print(store.set("kept", b"1").dot.actor)
store._directory.engine.flush()
flush_thread.FlushThread.note = lambda self: None
while store._flushes._dirty.is_set():
    pass
store.set("kept", b"2")
store.set("lost", b"1")
os._exit(9)
"""


def test_a_crash_loses_what_was_not_flushed_and_nothing_else_and_the_actor(tmp_path: Path) -> None:
    crashed = child(CRASH, tmp_path / "data")
    assert crashed.returncode == 9, crashed.stderr
    with dynamo.open(tmp_path / "data") as store:
        assert store.get("kept").value == b"1" and not store.get("lost").found
        dot = store.set("lost", b"2").dot
        assert dot is not None and dot.actor != int(crashed.stdout)


def test_a_program_that_ends_without_closing_has_not_crashed(tmp_path: Path) -> None:
    ended = child('import sys, dynamo\nstore = dynamo.open(sys.argv[1], durability="buffered")\nstore.set("a", b"1")\n1 / 0', tmp_path / "data")
    assert "ZeroDivisionError" in ended.stderr
    with dynamo.open(tmp_path / "data") as store:
        assert store.get("a").value == b"1"


def test_the_buffer_has_a_bound(store: dynamo.Store, never: None) -> None:
    buffer = buffer_of(store)
    buffer.bytes_max = 100_000
    most = 0
    for number in range(300):
        store.set(f"k{number}", bytes(1000))
        most = max(most, buffer.size)
    assert most < 105_000 and buffer.engine.count("objects") > 150
    assert all(store.get(f"k{number}").found for number in range(300))


def test_a_flush_that_fails_is_told_to_whoever_comes_next_and_loses_nothing(store: dynamo.Store, never: None, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = buffer_of(store)
    store.set("a", b"1")
    fine = buffer.engine.commit
    errors: list[DynamoError] = [StorageFailed("the disk")] * 2

    def failing(group: Group, entering: Callable[[], None] | None = None) -> None:
        if errors:
            raise errors.pop()
        fine(group, entering)

    monkeypatch.setattr(buffer.engine, "commit", failing)
    with pytest.raises(StorageFailed):
        buffer.flush()
    with pytest.raises(StorageFailed):
        store.set("a", b"2")
    assert store.get("a").value == b"1"
    store.set("a", b"3")
    assert store.get("a").value == b"3" and buffer.failure is None and buffer.engine.count("objects") == 1


def test_an_aged_buffer_is_tried_again_after_a_failed_flush(store: dynamo.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flush_thread, "RETRY_AFTER_S", 0.01)
    buffer, fine, tried = buffer_of(store), buffer_of(store).engine.commit, []

    def failing(group: Group, entering: Callable[[], None] | None = None) -> None:
        tried.append(group)
        if len(tried) < 3:
            raise StorageFailed("the disk")
        fine(group, entering)

    monkeypatch.setattr(buffer.engine, "commit", failing)
    store.set("a", b"1")
    until(lambda: on_disk(store) == 1)
    assert len(tried) == 3 and buffer.failure is None and store.get("a").value == b"1"
