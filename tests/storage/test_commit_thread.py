"""The commit thread: when `submit` returns, what `completed` tells, and that nobody waits for ever."""

from __future__ import annotations

import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dynamo.errors import StorageFailed, StorageFull
from dynamo.storage.commit_thread import CommitThread, Completed
from dynamo.storage.engine import Group, StorageEngine
from dynamo.storage.lmdb import LmdbEngine
from dynamo.storage.memory import MemoryEngine

PATIENCE_S = 30.0


class Harness:
    """A commit thread and the waiting a reactor would do for it."""

    def __init__(self, engine: StorageEngine) -> None:
        self.notified = threading.Semaphore(0)
        self.thread = CommitThread(engine, self.notified.release)

    def outcome(self) -> Completed:
        """Of the one group in flight."""
        assert self.notified.acquire(timeout=PATIENCE_S)
        [outcome] = self.thread.completed()
        return outcome


@pytest.fixture(params=["memory", "lmdb"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StorageEngine]:
    engine: StorageEngine = MemoryEngine() if request.param == "memory" else LmdbEngine(str(tmp_path), synced=True)
    yield engine
    engine.close()


class StepEngine(MemoryEngine):
    """Runs `before` while it puts and `after` once it has entered the commit."""

    def __init__(self, before: Callable[[Group], None], after: Callable[[Group], None]) -> None:
        super().__init__()
        self.before = before
        self.after = after

    def commit(self, group: Group, entering: Callable[[], None] | None = None) -> None:
        self.before(group)
        assert entering is not None
        entering()
        self.after(group)
        super().commit(group)


def nothing(group: Group) -> None:
    pass


def test_many_groups_are_committed_in_order(engine: StorageEngine) -> None:
    harness = Harness(engine)
    for number in range(1, 201):
        group = Group(number, objects={b"last": b"%d" % number, b"own %d" % number: bytes(number)})
        harness.thread.submit(group)
        engine.read(b"last")  # reads go on beside the commit
        assert harness.outcome() == (group, None)
        engine.refresh()
        assert engine.read(b"last") == b"%d" % number
    harness.thread.close()
    assert len(engine.scan("objects", b"", None, 1000)) == 201


def test_a_failed_group_is_told_of_and_the_next_one_goes_on(engine: StorageEngine) -> None:
    harness = Harness(engine)
    bad = Group(1, objects={b"k": b"1", b"": b"no key"})
    harness.thread.submit(bad)
    group, error = harness.outcome()
    assert group is bad and isinstance(error, StorageFailed)
    good = Group(2, objects={b"l": b"2"})
    harness.thread.submit(good)
    assert harness.outcome() == (good, None)
    harness.thread.close()
    engine.refresh()
    assert engine.scan("objects", b"", None, 9) == [(b"l", b"2")]


def test_close_finishes_the_group_in_flight(engine: StorageEngine) -> None:
    harness = Harness(engine)
    group = Group(1, objects={b"%d" % row: bytes(100) for row in range(500)})
    harness.thread.submit(group)
    harness.thread.close()
    harness.thread.close()
    assert harness.thread.completed() == [(group, None)]
    engine.refresh()
    assert len(engine.scan("objects", b"", None, 1000)) == 500


def test_submit_returns_after_the_puts_and_before_the_commit_ends() -> None:
    committing = threading.Event()
    staged: list[object] = []

    def before(group: Group) -> None:
        staged.extend(object() for _ in range(100_000))

    def after(group: Group) -> None:
        assert committing.wait(PATIENCE_S)

    harness = Harness(StepEngine(before, after))
    group = Group(1, objects={b"k": b"v"})
    harness.thread.submit(group)
    assert len(staged) == 100_000
    assert harness.thread.completed() == []
    committing.set()
    assert harness.outcome() == (group, None)
    harness.thread.close()


def test_give_way_waits_briefly_and_tells_when_the_group_is_finished() -> None:
    committing = threading.Event()

    def after(group: Group) -> None:
        assert committing.wait(PATIENCE_S)

    harness = Harness(StepEngine(nothing, after))
    assert harness.thread.give_way() is False  # nothing in flight
    group = Group(1, objects={b"k": b"v"})
    harness.thread.submit(group)
    for _ in range(100):
        assert harness.thread.give_way() is False
    committing.set()
    while not harness.thread.give_way():
        pass
    assert harness.thread.give_way() is True
    assert harness.outcome() == (group, None)
    assert harness.thread.give_way() is False
    harness.thread.close()


def test_a_busy_caller_that_gives_way_does_not_starve_the_commit(tmp_path: Path) -> None:
    # Rounds of 0.3 ms with a system call between them, as a reactor has. Without give_way a group takes thousands.
    engine = LmdbEngine(str(tmp_path), synced=False)
    harness = Harness(engine)
    poll = select.poll()
    rounds = 0
    for number in range(20):
        harness.thread.submit(Group(number, objects={b"%d" % row: bytes(200) for row in range(64)}))
        while not harness.thread.give_way():
            rounds += 1
            assert rounds < 2000
            until = time.monotonic() + 0.0003
            while time.monotonic() < until:
                pass
            poll.poll(0)
        assert harness.outcome()[1] is None
    harness.thread.close()
    engine.close()


def test_errors_of_the_commit_itself_arrive_too() -> None:
    full = StorageFull("no room")

    def after(group: Group) -> None:
        raise full

    harness = Harness(StepEngine(nothing, after))
    group = Group(1)
    harness.thread.submit(group)
    assert harness.outcome() == (group, full)
    harness.thread.close()


@pytest.mark.parametrize("early", [True, False])
def test_a_defect_fails_the_group_instead_of_the_thread(early: bool) -> None:
    defect = ZeroDivisionError("ours")

    def fail(group: Group) -> None:
        if group.number == 1:
            raise defect

    harness = Harness(StepEngine(fail, nothing) if early else StepEngine(nothing, fail))
    harness.thread.submit(Group(1))
    _, error = harness.outcome()
    assert isinstance(error, StorageFailed) and error.__cause__ is defect
    harness.thread.submit(Group(2))
    assert harness.outcome() == (Group(2), None)
    harness.thread.close()


def test_one_group_at_a_time_and_none_after_close() -> None:
    harness = Harness(MemoryEngine())
    harness.thread.submit(Group(1))
    assert harness.notified.acquire(timeout=PATIENCE_S)
    with pytest.raises(AssertionError, match="in flight"):
        harness.thread.submit(Group(2))
    assert [group.number for group, _ in harness.thread.completed()] == [1]
    harness.thread.close()
    with pytest.raises(AssertionError, match="closed"):
        harness.thread.submit(Group(2))


def test_an_interrupted_wait_does_not_unsettle_the_next_one() -> None:
    interrupted, main_thread = threading.Event(), threading.get_ident()
    staged: list[object] = []

    def on_signal(number: int, frame: object) -> None:
        if not interrupted.is_set():
            interrupted.set()
            raise KeyboardInterrupt

    def before(group: Group) -> None:
        if group.number == 1:
            # A signal that comes just before the wait begins does not end it. So ask until it is heard.
            while not interrupted.wait(0.01):
                signal.pthread_kill(main_thread, signal.SIGINT)
        else:
            staged.extend(object() for _ in range(100_000))

    harness = Harness(StepEngine(before, nothing))
    previous = signal.signal(signal.SIGINT, on_signal)
    try:
        with pytest.raises(KeyboardInterrupt):
            harness.thread.submit(Group(1))
        assert harness.outcome() == (Group(1), None)
        harness.thread.submit(Group(2))
        assert len(staged) == 100_000
        assert harness.outcome() == (Group(2), None)
        harness.thread.close()
    finally:
        signal.signal(signal.SIGINT, previous)
