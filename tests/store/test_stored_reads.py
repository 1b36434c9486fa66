"""A get that looks at the row alone answers what a request answers, and leaves to one what it cannot answer."""

from __future__ import annotations

import copy
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

import dynamo
from dynamo import CorruptRecord, KeyTooLong, Result
from dynamo.errors import InvalidKey, StorageFailed
from dynamo.store import Store, StoreBucket

KEYS = ("absent", "one", "two", "deleted", "beside a delete", "é", "k" * 490, "k" * 600, b"\xff\x00")


@pytest.fixture(params=["memory", "relaxed"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    with dynamo.open(tmp_path / "data", durability=request.param) as store:
        fill(store)
        fill(store.bucket("other"))
        yield store


def fill(place: Store | StoreBucket) -> None:
    for key in KEYS[1:]:
        place.set(key, b"first")
    place.put("two", b"second")
    place.delete("deleted", blind=True)
    shown = place.get("beside a delete").context
    place.put("beside a delete", b"more")
    place.delete("beside a delete", context=shown)


@pytest.fixture
def requests(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The requests that are made from now on."""
    made: list[Any] = []
    exchange = store._exchange
    monkeypatch.setattr(store, "_exchange", lambda request, deadline: (made.append(request), exchange(request, deadline))[1])
    return made


def by_request(place: Store | StoreBucket, key: str | bytes, **options: Any) -> Result:
    return place.get(key, timeout=5, **options)


@pytest.mark.parametrize("key", KEYS)
def test_the_same_answer(store: Store, requests: list[Any], key: str | bytes) -> None:
    for place in (store, store.bucket("other")):
        looked, asked = place.get(key), by_request(place, key)
        assert looked == asked and hash(looked) == hash(asked) and repr(looked) == repr(asked)
        assert (looked.values, looked.found, looked.cursor, looked.owners_answered) == (asked.values, asked.found, None, 1)
        assert bytes(looked.context) == bytes(asked.context)
    long = len(key) > 485
    assert len(requests) == (4 if long else 2)


def test_siblings_are_resolved_and_decoded_as_ever(store: Store) -> None:
    join = lambda siblings: b"+".join(sibling.value for sibling in siblings)  # noqa: E731
    assert store.get("two", resolver=join).value == store.bucket("default", resolver=join).get("two").value == b"first+second"
    with pytest.raises(dynamo.ConflictError):
        _ = store.get("two").value
    assert store.get("two").context == by_request(store, "two").context

    class Upper:
        def encode(self, value: Any) -> bytes:
            return bytes(value)

        def decode(self, data: bytes) -> Any:
            raise ValueError("of the codec")

    with pytest.raises(ValueError, match="of the codec"):  # by the get, not by whoever looks at its result
        store.bucket("default", codec=Upper()).get("one")
    with pytest.raises(TypeError, match="resolver"):
        store.get("one", resolver=5)  # type: ignore[arg-type]


def test_a_result_keeps_what_it_was(store: Store) -> None:
    before = store.get("one")
    store.set("one", b"new")
    assert before.value == b"first" and store.get("one").value == b"new"
    context = store.get("one").context
    assert store.put("one", b"newer", context=context).unseen_siblings == 0


def test_a_result_is_copied_and_compared(store: Store) -> None:
    assert store.get("deleted").value is None and store.get("beside a delete").value == by_request(store, "beside a delete").value
    for result in (store.get("two"), store.get("absent")):
        assert copy.copy(result) == result == copy.deepcopy(store.get(result.key))
    with pytest.raises(AttributeError):
        store.get("one").key = b"other"  # type: ignore[misc]
    assert store.get("one") != store.get("two") and store.get("one") != 5


def test_wrong_keys_are_refused_alike(store: Store) -> None:
    for get in (store.get, lambda key: by_request(store, key)):
        with pytest.raises(InvalidKey):
            get(b"")
        with pytest.raises(KeyTooLong):
            get("k" * 1025)
        with pytest.raises(TypeError):
            get(5)


def test_what_is_damaged_or_unreadable_is_left_to_a_request(store: Store, requests: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = store._engine
    row = engine.read(store._replica.core.locate(b"default", b"one")[1])
    assert isinstance(row, bytes)

    def looked(outcome: Any) -> int:
        """How many requests a get makes that finds this at its first look."""
        requests.clear()
        with monkeypatch.context() as patch:
            patch.setattr(engine.look, "read", lambda key: outcome)
            assert store.get("one").value == b"first"
        return len(requests)

    assert looked(row) == 0
    for damaged in (row[:-1], row[:9], b"", bytes([row[0] ^ 1]) + row[1:], row[:60] + bytes([row[60] ^ 1]) + row[61:], StorageFailed("broken")):
        assert looked(damaged) == 1  # the replica read it once more, and soundly


def test_a_look_that_fails_is_left_to_a_request(tmp_path: Path) -> None:
    with dynamo.open(tmp_path / "data", durability="relaxed") as store:
        store.set("one", b"first")
        engine = store._engine
        assert store.get("one").value == b"first"
        engine._reader.abort()  # type: ignore[attr-defined]
        with pytest.raises(engine.look_errors):
            engine.look.read(b"at")
        assert store.get("one").value == b"first"
        assert engine.look.read(store._replica.core.locate(b"default", b"one")[1])


def test_a_damaged_row_is_an_error(tmp_path: Path) -> None:
    with dynamo.open(tmp_path / "data", durability="memory") as store:
        store.set("one", b"first")
        row_key = store._replica.core.locate(b"default", b"one")[1]
        rows = store._directory.engine._table("objects").rows  # type: ignore[attr-defined]
        rows[row_key] = rows[row_key][:-1] + b"?"
        for _ in range(2):
            with pytest.raises((CorruptRecord, dynamo.Unavailable)):
                store.get("one")


def test_a_get_beside_a_step_waits_for_it(store: Store) -> None:
    found: list[Any] = []
    with store._driver:
        reader = threading.Thread(target=lambda: found.append(store.get("one").value))
        reader.start()
        reader.join(0.05)
        assert not found
    reader.join(10)
    assert found == [b"first"]


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = dynamo.open(tmp_path / "data", durability="memory")
    store.set("one", b"first")
    before = store.get("one")
    store.close()
    with pytest.raises(RuntimeError, match="closed"):
        store.get("one")
    assert before.value == b"first" and before.context  # what was read is the reader's


class Interrupted(BaseException):
    """What a signal raises here, as Ctrl-C raises KeyboardInterrupt."""


def test_an_interrupted_get_leaves_nothing_locked(store: Store) -> None:
    def interrupt(number: int, frame: Any) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for at in range(200):
            with pytest.raises(Interrupted):
                signal.setitimer(signal.ITIMER_REAL, 0.001 + at * 1e-6)
                while True:
                    store.get("one")
            assert not store._driver.locked()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    store.set("one", b"still")
    assert store.get("one").value == b"still"


def test_a_close_that_was_interrupted_has_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = dynamo.open(tmp_path / "data", durability="buffered")
    store.set("one", b"first")
    assert store._flushes is not None
    stop = store._flushes.stop

    def interrupted() -> None:
        stop()
        raise KeyboardInterrupt

    monkeypatch.setattr(store._flushes, "stop", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.close()
    for call in (store.get, store.delete):
        with pytest.raises(RuntimeError, match="closed"):
            call("one")
    with dynamo.open(tmp_path / "data") as again:
        assert again.get("one").value == b"first"
