"""The write buffer: what reads see, what reaches the engine and when, and what happens when the engine fails."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo.errors import DynamoError, StorageFailed, StorageFull
from dynamo.net.commits import BufferedCommits, InlineCommits
from dynamo.storage.buffer import WriteBuffer
from dynamo.storage.engine import Group, Table
from dynamo.storage.flushing import FLUSH_AFTER_S, FLUSH_BYTES, PROMPT_AFTER_S, RETRY_AFTER_S, Flushing
from dynamo.storage.lmdb import LmdbEngine
from dynamo.storage.memory import MemoryEngine


class Recorder(MemoryEngine):
    """An engine that remembers what it was given, and fails on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[Group] = []
        self.error: DynamoError | None = None

    def commit(self, group: Group, entering: Callable[[], None] | None = None) -> None:
        if self.error is not None:
            raise self.error
        super().commit(group, entering)
        self.written.append(group)


def put(number: int, **rows: bytes | None) -> Group:
    return Group(number, objects={key.encode(): value for key, value in rows.items()})


# --- the buffer as an engine ---------------------------------------------------------------------------------------------------


def test_reads_and_scans_see_what_only_the_buffer_holds() -> None:
    engine = Recorder()
    engine.commit(Group(0, objects={b"a": b"old", b"b": b"old", b"c": b"old"}, meta={b"m": b"old"}))
    buffer = WriteBuffer(engine)
    buffer.commit(Group(1, objects={b"b": b"new", b"c": None, b"d": b"new"}, hints={b"h": b""}, meta={b"m": b"new"}))
    assert len(engine.written) == 1 and buffer.dirty
    assert [buffer.read(key) for key in (b"a", b"b", b"c", b"d")] == [b"old", b"new", None, b"new"]
    assert buffer.read_meta(b"m") == b"new" and engine.read_meta(b"m") == b"old"
    assert buffer.scan("objects", b"", None, 9) == [(b"a", b"old"), (b"b", b"new"), (b"d", b"new")]
    assert buffer.scan("hints", b"", None, 9) == [(b"h", b"")]
    assert buffer.count("objects") == 3 and buffer.count("hints") == 1


def test_rows_are_counted_without_a_scan_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = WriteBuffer(Recorder())
    buffer.engine.commit(Group(0, objects={b"a": b"old", b"b": b"old"}))
    buffer.commit(put(1, a=b"new", b=None, c=b"new"))
    buffer.begin_flush()
    buffer.commit(put(2, c=None, d=b"new", e=b"new"))
    monkeypatch.setattr(MemoryEngine, "scan", None)
    assert buffer.count("objects") == 3 and buffer.count("hints") == 0
    assert buffer.count_of("objects", [b"a", b"b", b"c", b"d", b"x"]) == 2


def test_what_is_being_flushed_is_still_seen_under_what_is_newer() -> None:
    buffer = WriteBuffer(Recorder())
    buffer.commit(put(1, a=b"1", b=b"1", c=b"1"))
    buffer.begin_flush()
    buffer.commit(put(2, b=b"2", c=None))
    assert [buffer.read(key) for key in (b"a", b"b", b"c")] == [b"1", b"2", None]
    assert buffer.scan("objects", b"", None, 9) == [(b"a", b"1"), (b"b", b"2")]


def test_a_flush_is_one_group_with_each_row_once_in_its_newest_form() -> None:
    engine = Recorder()
    buffer = WriteBuffer(engine)
    for number in range(1, 101):
        buffer.commit(put(number, same=b"%d" % number, gone=b"x", **{f"own{number:03}": b"v"}))
    buffer.commit(put(101, gone=None))
    buffer.flush()
    (group,) = engine.written
    assert group.synced and group.objects[b"same"] == b"100" and group.objects[b"gone"] is None and len(group.objects) == 102
    assert not buffer.dirty and buffer.size == 0
    buffer.flush()
    assert len(engine.written) == 1  # there was nothing left


def test_a_group_that_asks_to_be_synced_takes_everything_before_it_along() -> None:
    engine = Recorder()
    buffer = WriteBuffer(engine)
    buffer.commit(put(1, a=b"1"))
    buffer.commit(Group(2, objects={b"b": b"2"}, meta={b"actor": b"lease"}, synced=True))
    (group,) = engine.written
    assert group.objects == {b"a": b"1", b"b": b"2"} and group.meta == {b"actor": b"lease"} and group.synced


def test_a_full_buffer_is_flushed_before_it_takes_more() -> None:
    engine = Recorder()
    buffer = WriteBuffer(engine, bytes_max=10_000)
    most = 0
    for number in range(1, 200):
        buffer.commit(put(number, **{f"k{number}": bytes(500)}))
        most = max(most, buffer.size)
    assert engine.written and most < 10_000 + 1_000


def test_rows_written_again_and_again_take_their_room_once() -> None:
    buffer = WriteBuffer(Recorder(), bytes_max=10_000)
    for number in range(1, 1000):
        buffer.commit(put(number, k=bytes(500)))
    assert buffer.size < 1_000


def test_a_failed_flush_refuses_the_group_and_keeps_what_was_taken_before() -> None:
    engine = Recorder()
    buffer = WriteBuffer(engine)
    buffer.commit(put(1, a=b"1"))
    engine.error = StorageFull("full")
    with pytest.raises(StorageFull):
        buffer.commit(Group(2, objects={b"b": b"2"}, synced=True))
    assert buffer.read(b"a") == b"1" and buffer.read(b"b") is None and buffer.failure is not None
    with pytest.raises(StorageFull):  # and it takes nothing in until the disk has taken all that it owes
        buffer.commit(put(3, c=b"3"))
    assert buffer.read(b"c") is None
    engine.error = None
    buffer.commit(put(4, d=b"4"))
    assert engine.read(b"a") == b"1" and engine.read(b"d") == b"4" and engine.read(b"b") is None and buffer.failure is None


def test_what_came_during_a_flush_that_failed_is_newer_than_what_failed() -> None:
    buffer = WriteBuffer(Recorder())
    buffer.commit(put(1, a=b"1", b=b"1"))
    buffer.begin_flush()
    buffer.commit(put(2, b=b"2"))
    buffer.flush_failed(StorageFailed("no"))
    assert [buffer.read(key) for key in (b"a", b"b")] == [b"1", b"2"]
    assert buffer.begin_flush().objects == {b"a": b"1", b"b": b"2"}


def test_close_flushes_what_is_left() -> None:
    engine = Recorder()
    buffer = WriteBuffer(engine)
    buffer.commit(put(1, a=b"1"))
    buffer.close()
    assert [group.objects for group in engine.written] == [{b"a": b"1"}]


KEYS = st.binary(min_size=1, max_size=2)
CHANGES = st.dictionaries(KEYS, st.none() | st.binary(max_size=3), max_size=8)


@settings(deadline=None)
@given(st.lists(st.tuples(CHANGES, st.sampled_from(("put", "put", "begin", "done", "failed"))), max_size=12), KEYS, st.none() | KEYS, st.integers(1, 5))
def test_whatever_is_where_reads_are_those_of_a_plain_engine(
    steps: list[tuple[dict[bytes, bytes | None], str]], start: bytes, stop: bytes | None, limit: int
) -> None:
    engine, plain = MemoryEngine(), MemoryEngine()
    buffer, flying = WriteBuffer(engine), None
    for number, (changes, step) in enumerate(steps, 1):
        if step == "put":
            buffer.commit(Group(number, objects=dict(changes)))
            plain.commit(Group(number, objects=dict(changes)))
        elif step == "begin" and flying is None and buffer.failure is None:
            flying = buffer.begin_flush()
        elif step == "done" and flying is not None:
            engine.commit(flying)
            buffer.flush_done()
            flying = None
        elif step == "failed" and flying is not None:
            buffer.flush_failed(StorageFailed("no"))
            buffer.failure, flying = None, None
        table: Table = "objects"
        assert buffer.scan(table, start, stop, limit) == plain.scan(table, start, stop, limit)
        assert buffer.scan(table, b"", None, 1_000) == plain.scan(table, b"", None, 1_000)
        assert all(buffer.read(key) == plain.read(key) for key in changes)
        assert buffer.count(table) == plain.count(table)


# --- when it is flushed ----------------------------------------------------------------------------------------------------------


class Harness:
    """A buffer and its flushing over a disk that is as slow as the test wants."""

    def __init__(self, bytes_max: int = 1 << 20) -> None:
        self.engine = Recorder()
        self.buffer = WriteBuffer(self.engine, bytes_max)
        self.writing: Group | None = None
        self.flushing = Flushing(self.buffer, self._write)

    def _write(self, group: Group) -> None:
        assert self.writing is None, "one write at a time"
        self.writing = group

    def disk(self, now: float, error: DynamoError | None = None) -> None:
        """What is being written ends."""
        group, self.writing = self.writing, None
        assert group is not None
        if error is None:
            self.engine.commit(group)
        self.flushing.written(error, now)

    def commit(self, group: Group, now: float = 0.0) -> list[tuple[Group, DynamoError | None]]:
        self.flushing.submit(group, now)
        return self.flushing.completed()


def test_a_group_is_done_at_once_and_flushed_when_it_has_aged() -> None:
    harness = Harness()
    group = put(1, a=b"1")
    assert harness.commit(group, 5.0) == [(group, None)]
    assert harness.writing is None and harness.flushing.next_deadline == 5.0 + FLUSH_AFTER_S
    harness.commit(put(2, b=b"2"), 5.0 + FLUSH_AFTER_S / 2)
    harness.flushing.tick(5.0 + FLUSH_AFTER_S * 0.9)
    assert harness.writing is None
    harness.flushing.tick(5.0 + FLUSH_AFTER_S)
    assert harness.writing is not None and harness.writing.objects == {b"a": b"1", b"b": b"2"}
    assert harness.flushing.flushed() == []
    harness.disk(6.0)
    assert harness.flushing.flushed() == [(2, None)] and harness.flushing.next_deadline == float("inf")


def test_a_group_that_somebody_waits_for_is_flushed_sooner() -> None:
    harness = Harness()
    group = put(1, a=b"1")
    group.prompt = True
    harness.commit(group, 1.0)
    assert harness.flushing.next_deadline == 1.0 + PROMPT_AFTER_S < 1.0 + FLUSH_AFTER_S


def test_many_bytes_are_flushed_at_once() -> None:
    harness = Harness(bytes_max=FLUSH_BYTES * 4)
    harness.commit(put(1, a=bytes(FLUSH_BYTES)))
    assert harness.writing is not None


def test_what_comes_during_a_flush_goes_with_the_next_one_which_begins_by_its_own_age() -> None:
    harness = Harness()
    harness.commit(put(1, a=b"1"), 0.0)
    harness.flushing.tick(FLUSH_AFTER_S)
    assert harness.commit(put(2, a=b"2"), 1.0)[0][1] is None
    harness.flushing.tick(1.0 + FLUSH_AFTER_S)
    assert harness.writing is not None and harness.writing.objects == {b"a": b"1"}
    harness.disk(9.0)
    assert harness.writing is not None and harness.writing.objects == {b"a": b"2"}  # it was due long ago
    assert harness.flushing.flushed() == [(1, None)]


def test_no_deadline_is_in_the_past_once_it_was_answered_or_a_driver_would_never_sleep() -> None:
    harness = Harness()
    harness.commit(put(1, a=b"1"), 0.0)
    harness.flushing.tick(FLUSH_AFTER_S)
    harness.commit(put(2, a=b"2"), FLUSH_AFTER_S)
    assert harness.flushing.next_deadline == float("inf")  # whatever is due, it is for when this flush ends
    harness.disk(1.0)
    harness.disk(1.1)
    harness.commit(Group(3, meta={b"m": b"1"}, synced=True), 2.0)
    harness.disk(2.0, StorageFailed("no"))
    assert harness.flushing.next_deadline == 2.0 + RETRY_AFTER_S
    assert len(harness.flushing.completed()) == 1
    harness.flushing.tick(2.0 + RETRY_AFTER_S)  # there is nothing to try again
    assert harness.flushing.next_deadline == float("inf")
    fourth = put(4, a=b"4")
    assert harness.commit(fourth, 3.0) == [(fourth, None)]


def test_a_full_buffer_makes_the_group_wait_for_the_disk() -> None:
    harness = Harness(bytes_max=1_000)
    harness.commit(put(1, a=bytes(1_000)))
    harness.flushing.tick(FLUSH_AFTER_S)
    harness.commit(put(2, b=bytes(1_000)))
    third = put(3, c=bytes(1_000))
    assert harness.commit(third) == []  # two buffers full, and the disk is slow
    harness.disk(2.0)
    assert harness.flushing.completed() == []
    assert harness.writing is not None and set(harness.writing.objects) == {b"b", b"c"}
    harness.disk(3.0)
    assert harness.flushing.completed() == [(third, None)]
    assert harness.flushing.flushed() == [(1, None), (3, None)]


def test_a_synced_group_is_done_when_it_is_on_disk() -> None:
    harness = Harness()
    harness.commit(put(1, a=b"1"))
    group = Group(2, meta={b"actor": b"lease"}, synced=True)
    assert harness.commit(group) == []
    assert harness.buffer.read_meta(b"actor") is None
    harness.disk(1.0)
    assert harness.flushing.completed() == [(group, None)]
    assert harness.buffer.read_meta(b"actor") == b"lease"


def test_after_a_failed_flush_nothing_is_acknowledged_until_the_disk_has_all_of_it() -> None:
    harness = Harness()
    harness.commit(put(1, a=b"1"), 0.0)
    harness.flushing.tick(1.0)
    error = StorageFailed("no")
    harness.disk(2.0, error)
    assert harness.flushing.flushed() == [(1, error)]
    second = put(2, b=b"2")
    assert harness.commit(second, 2.1) == [(second, error)]
    assert harness.writing is None and harness.buffer.read(b"b") is None and harness.buffer.read(b"a") == b"1"
    assert harness.flushing.next_deadline == 2.0 + RETRY_AFTER_S
    harness.flushing.tick(2.0 + RETRY_AFTER_S)
    harness.disk(3.0)
    assert harness.flushing.flushed() == [(1, None)]
    third = put(3, c=b"3")
    assert harness.commit(third, 3.1) == [(third, None)]


def test_a_group_that_went_with_a_flush_that_failed_has_failed_and_the_older_rows_have_not_gone() -> None:
    harness = Harness()
    harness.commit(put(1, a=b"1"))
    group = Group(2, objects={b"b": b"2"}, meta={b"actor": b"x"}, synced=True)
    harness.commit(group)
    error = StorageFull("full")
    harness.disk(1.0, error)
    assert harness.flushing.completed() == [(group, error)]
    assert harness.buffer.read(b"a") == b"1" and harness.buffer.read(b"b") is None


def test_a_group_that_waits_behind_a_flush_that_fails_is_told() -> None:
    harness = Harness(bytes_max=500)
    harness.commit(put(1, a=bytes(600)))
    harness.flushing.tick(1.0)
    harness.commit(put(2, b=bytes(600)))
    waiting = put(3, c=b"3")
    assert harness.commit(waiting) == []
    error = StorageFailed("no")
    harness.disk(2.0, error)
    assert harness.flushing.completed() == [(waiting, error)]


def test_while_the_disk_is_full_what_only_removes_is_written_and_what_takes_room_is_not() -> None:
    harness = Harness()
    harness.engine.commit(Group(0, objects={b"old": b"0"}, hints={b"h": b""}))
    harness.commit(put(1, a=b"1", old=b"1"), 0.0)
    harness.flushing.tick(1.0)
    error = StorageFull("full")
    harness.disk(2.0, error)
    takes_room = [Group(2, {b"old": None, b"b": b"2"}), Group(3, {b"old": None}, {b"h2": b""}), Group(4, {b"old": None}, meta={b"operations": b"x"})]
    assert [harness.commit(group, 2.1) for group in takes_room] == [[(group, error)] for group in takes_room]
    removal = Group(5, {b"old": None}, {b"h": None})
    assert harness.commit(removal, 2.1) == []
    assert harness.writing is not None and harness.writing.synced and harness.writing.objects == {b"old": None}
    assert harness.buffer.read(b"old") == b"1"  # nothing is shown before the disk has it
    harness.disk(2.2)
    assert harness.flushing.completed() == [(removal, None)] and harness.buffer.read(b"old") is None
    assert harness.flushing.flushed() == [(1, error)]  # of what was there before, the disk has no more than it had
    assert harness.writing is None and harness.flushing.next_deadline == 2.0 + RETRY_AFTER_S
    harness.flushing.tick(2.0 + RETRY_AFTER_S)
    assert harness.writing is not None and harness.writing.objects == {b"a": b"1", b"old": None}
    harness.disk(3.0)
    assert harness.flushing.flushed() == [(5, None)] and harness.buffer.read(b"old") is None and harness.buffer.count("hints") == 0
    last = put(6, b=b"2")
    assert harness.commit(last, 3.1) == [(last, None)]


def test_what_only_removes_is_tried_although_a_flush_failed_while_it_waited() -> None:
    harness = Harness()
    harness.engine.commit(Group(0, objects={b"old": b"0"}))
    harness.commit(put(1, a=b"1"), 0.0)
    harness.flushing.tick(1.0)
    harness.disk(2.0, StorageFull("full"))
    harness.flushing.tick(2.0 + RETRY_AFTER_S)
    removal = put(2, old=None)
    assert harness.commit(removal, 2.6) == []
    harness.disk(2.7, StorageFull("full"))
    assert harness.flushing.completed() == [] and harness.writing is not None and harness.writing.objects == {b"old": None}
    again = StorageFull("still full")
    harness.disk(2.8, again)
    assert harness.flushing.completed() == [(removal, again)] and harness.buffer.read(b"old") == b"0"


def test_removing_makes_room_in_a_data_file_that_is_full(tmp_path: Path) -> None:
    engine = LmdbEngine(str(tmp_path), False, map_bytes=1 << 20)
    rows = 0
    with pytest.raises(StorageFull):
        while True:
            engine.commit(Group(0, {b"k%06d" % number: bytes(1_500) for number in range(rows, rows + 50)}))
            rows += 50
    buffer, writing = WriteBuffer(engine), list[Group]()
    flushing = Flushing(buffer, writing.append)

    def disk(now: float) -> None:
        while writing:
            try:
                engine.commit(writing.pop())
            except StorageFull as error:
                flushing.written(error, now)
            else:
                flushing.written(None, now)

    flushing.submit(Group(1, {b"z%06d" % number: bytes(1_500) for number in range(60)}), 0.0)
    flushing.tick(1.0)
    disk(1.0)
    assert flushing.completed()[0][1] is None and flushing.flushed()[0][1] is not None
    for number in range(6):
        now = 2.0 + number
        removal = Group(2 + number, {b"k%06d" % row: None for row in range(20 * number, 20 * number + 20)})
        flushing.submit(removal, now)
        disk(now)
        assert flushing.completed() == [(removal, None)]
        flushing.tick(now + 0.9)
        disk(now + 0.9)
    assert flushing.flushed()[-1] == (7, None) and buffer.failure is None
    assert engine.count("objects") == rows - 120 + 60
    engine.close()


def test_a_disk_that_is_broken_is_not_asked_to_remove_either() -> None:
    harness = Harness()
    harness.commit(put(1, a=b"1"), 0.0)
    harness.flushing.tick(1.0)
    error = StorageFailed("no")
    harness.disk(2.0, error)
    removal = put(2, a=None)
    assert harness.commit(removal, 2.1) == [(removal, error)]


# --- ends that come at a bad moment ----------------------------------------------------------------------------------------------


class Inline:
    """A commit thread that writes at once."""

    def __init__(self, engine: Recorder) -> None:
        self._inline = InlineCommits(engine)
        self.submit, self.completed, self.close = self._inline.submit, self._inline.completed, self._inline.close

    def give_way(self) -> bool:
        return False


def test_a_flush_that_comes_due_while_a_node_stops_is_not_begun_without_a_writer() -> None:
    engine, now = Recorder(), [0.0]
    buffer = WriteBuffer(engine)
    commits = BufferedCommits(partial(Flushing, buffer), Inline(engine), engine, lambda: now[0])
    commits.submit(put(1, a=b"1"))
    assert [error for _, error in commits.completed()] == [None] and engine.read(b"a") is None
    commits.close()
    now[0] += 10 * FLUSH_AFTER_S
    assert commits.completed() == []
    buffer.close()
    assert engine.written[-1].objects == {b"a": b"1"}


def test_an_interrupt_while_a_flush_is_begun_leaves_the_rows_where_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Recorder()
    buffer = WriteBuffer(engine)
    buffer.commit(put(1, a=b"1"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def interrupted(layer: object) -> Group:
            raise KeyboardInterrupt

        patch.setattr("dynamo.storage.buffer._Layer.as_group", interrupted)
        buffer.flush()
    buffer.close()
    assert engine.written[-1].objects == {b"a": b"1"}


def test_a_flush_that_nobody_finished_is_written_at_the_end() -> None:
    engine = Recorder()
    buffer = WriteBuffer(engine)
    buffer.commit(put(1, a=b"1", b=b"1"))
    buffer.begin_flush()
    buffer.commit(put(2, b=b"2"))
    buffer.close()
    assert engine.written[-1].objects == {b"a": b"1", b"b": b"2"}


def test_rows_are_owed_however_they_were_counted() -> None:
    """A Ctrl-C may come between a row and its size."""
    engine = Recorder()
    buffer = WriteBuffer(engine)
    buffer._young.objects.update({b"a": b"1"})
    assert buffer.size == 0 and buffer.dirty
    buffer.close()
    assert engine.written[-1].objects == {b"a": b"1"}
