"""The embedded store: the verbs, durability across restarts, threads, and directories it must refuse."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import dynamo
from dynamo.testing.cluster import child_environment


@pytest.fixture(params=["memory", "buffered", "relaxed", "synced"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> dynamo.Store:
    with dynamo.open(tmp_path / "data", durability=request.param) as store:
        yield store


def test_set_get_delete(store: dynamo.Store) -> None:
    assert not store.get("a").found
    store.set("a", b"1")
    assert store.get(b"a").value == b"1"
    store.delete("a", context=store.get("a").context)
    result = store.get("a")
    assert not result.found and result.values == () and result.value is None and result.context is not None


def test_puts_without_a_context_are_siblings_until_merged(store: dynamo.Store) -> None:
    first = store.put("a", b"1")
    store.put("a", b"2")
    result = store.get("a")
    assert sorted(result.values) == [b"1", b"2"]
    with pytest.raises(dynamo.ConflictError):
        _ = result.value
    store.put("a", b"3", context=first)
    assert sorted(store.get("a").values) == [b"2", b"3"], "a token covers only what its client was shown"
    store.put("a", b"4", context=store.get("a").context)
    assert store.get("a").value == b"4"


def test_bad_tokens_are_refused(store: dynamo.Store) -> None:
    token = store.set("a", b"1")
    for bad in (b"x", bytes(token)[:-1], bytes(store.set("b", b"1"))):
        with pytest.raises(dynamo.InvalidContext) as caught:
            store.put("a", b"2", context=bad)
        assert caught.value.maybe_applied is False
    assert store.get("a").value == b"1"


def test_limits_are_typed_errors(store: dynamo.Store) -> None:
    with pytest.raises(dynamo.KeyTooLong):
        store.set("k" * 1025, b"")
    with pytest.raises(dynamo.InvalidKey):
        store.set("", b"")
    with pytest.raises(dynamo.ValueTooLarge):
        store.set("k", b"v" * (1 << 20) + b"v")
    store.set("k" * 1024, b"v" * (1 << 20))
    assert store.get("k" * 1024).value == b"v" * (1 << 20)
    for number in range(100):
        store.put("many", b"%d" % number)
    with pytest.raises(dynamo.TooManySiblings):
        store.put("many", b"one more")
    store.put("many", b"merged", context=store.get("many").context)
    assert store.get("many").values == (b"merged",)


def test_many_threads_lose_no_update(store: dynamo.Store) -> None:
    def add(_: int) -> None:
        store.update("counter", lambda values: b"%d" % (int(values[0]) + 1), default=b"0")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(200)))
    assert store.get("counter").value == b"200"


def test_no_other_write_of_the_key_comes_into_an_update_not_even_of_its_own_function(store: dynamo.Store) -> None:
    people = store.bucket("people")
    store.set("a", b"1")
    people.set("a", b"1")

    def change(values: list[bytes]) -> bytes:
        for write in (
            lambda: store.set("a", b"2"),
            lambda: store.put(b"a", b"2"),
            lambda: store.bucket("default").put("a", b"2", context=store.get("a").context),
            lambda: store.delete("a", blind=True),
            lambda: store.set_many({"b": b"2", "a": b"2"}),
            lambda: store.update("a", lambda values: b"2"),
        ):
            with pytest.raises(RuntimeError, match="within an update of it"):
                write()
        assert store.get("a").value == b"1"
        for number in range(200):  # other keys, whatever locks they share, and the same key in another bucket
            store.set(f"other-{number}", b"2")
        people.set("a", b"2")
        people.update("a", lambda values: values[0] + b"3")
        return values[0] + b"9"

    store.update("a", change)
    assert store.get("a").values == (b"19",) and people.get("a").values == (b"23",)
    with pytest.raises(ZeroDivisionError):
        store.update("a", lambda values: 1 / 0)
    store.set("a", b"4")  # the update is over
    assert store.get("a").value == b"4"


@pytest.mark.parametrize("durability", ["relaxed", "synced"])
def test_reopening_keeps_everything_and_the_actor(durability: str, tmp_path: Path) -> None:
    with dynamo.open(tmp_path, durability=durability) as store:
        context = store.set("a", b"1")
    with dynamo.open(tmp_path, durability=durability) as store:
        assert store.get("a").value == b"1"
        later = store.put("a", b"2", context=context)
        assert later.dot.actor == context.dot.actor and later.dot.counter > context.dot.counter
        assert store.get("a").value == b"2"


def test_a_copied_directory_starts_a_new_actor(tmp_path: Path) -> None:
    import shutil

    with dynamo.open(tmp_path / "one") as store:
        context = store.set("a", b"1")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    with dynamo.open(tmp_path / "two") as store:
        assert store.set("a", b"2").dot.actor != context.dot.actor


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with dynamo.open(tmp_path), pytest.raises(dynamo.ConfigError, match="in use in this process already; share"):
        dynamo.open(tmp_path)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), "5"])
def test_what_is_no_time_is_refused_before_anything_is_made(tmp_path: Path, timeout: Any) -> None:
    with pytest.raises(ValueError, match="timeout is a number of seconds above 0"):
        dynamo.open(tmp_path / "data", timeout=timeout)
    assert not (tmp_path / "data").exists()


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = dynamo.open(tmp_path)
    results, bucket = store.scan(), store.bucket("b")
    store.close()
    store.close()
    for verb in (
        lambda: store.get("a"),
        lambda: store.update("a", lambda values: b"1"),
        lambda: bucket.update("a", lambda values: b"1"),
        lambda: bucket.set("a", b"1"),
        lambda: next(results),
        store.stats,
        store.__enter__,
    ):
        with pytest.raises(RuntimeError, match="the store is closed"):
            verb()


def test_a_killed_process_lost_nothing_acknowledged(tmp_path: Path) -> None:
    program = (
        "import dynamo, sys\n"
        f"store = dynamo.open({str(tmp_path)!r})\n"
        "for number in range(10_000):\n"
        "    store.set(f'key-{number}', b'%d' % number)\n"
        "    print(number, flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-P", "-c", program], env=child_environment(), stdout=subprocess.PIPE)
    assert child.stdout is not None
    acknowledged = [int(child.stdout.readline()) for _ in range(300)]
    os.kill(child.pid, signal.SIGKILL)
    acknowledged += [int(line) for line in child.stdout.read().split(b"\n")[:-1]]
    child.stdout.close()
    child.wait()
    with dynamo.open(tmp_path) as store:
        for number in acknowledged:
            assert store.get(f"key-{number}").value == b"%d" % number
