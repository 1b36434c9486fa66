"""A store over many lives: cut off, dropped, entered again, used as the process ends."""

from __future__ import annotations

import copy
import gc
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

import dynamo
from dynamo._core import record as records
from dynamo.replication import tokens

CUT_OFF = (
    "import os, sys, dynamo\nstore = dynamo.open(sys.argv[1], durability=sys.argv[2])\nprint(store.set('k', b'v').dot.actor)\nsys.stdout.flush()\nos._exit(9)"
)


def child(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60)


def ranges(store: dynamo.Store, key: bytes = b"k") -> int:
    record = store._replica.core.rows.load(store._replica.core.locate(b"default", key)[1]).record  # type: ignore[union-attr]
    return len(records.context(record)) // 24


@pytest.mark.parametrize("durability", ["synced", "relaxed"])
def test_a_store_that_is_never_closed_does_not_grow_its_keys(tmp_path: Path, durability: str) -> None:
    actors = {child(CUT_OFF, str(tmp_path), durability).stdout for _ in range(4)}
    assert len(actors) == (1 if durability == "synced" else 4)
    with dynamo.open(tmp_path) as store:
        assert ranges(store) == 1
        store.update("k", lambda values: b"2")
        assert ranges(store) == 1 and store.get("k").value == b"2"


def test_a_copy_of_a_store_that_was_cut_off_begins_a_new_actor(tmp_path: Path) -> None:
    actor = child(CUT_OFF, str(tmp_path / "a"), "synced").stdout
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.copytree(tmp_path / "a", tmp_path / "old")
    assert child(CUT_OFF, str(tmp_path / "b"), "synced").stdout != actor
    assert child(CUT_OFF, str(tmp_path / "a"), "synced").stdout == actor
    (tmp_path / "a" / "data.mdb").write_bytes((tmp_path / "old" / "data.mdb").read_bytes())  # in place: the same inode
    assert child(CUT_OFF, str(tmp_path / "a"), "synced").stdout != actor


def test_a_backup_of_before_a_longer_lease_begins_a_new_actor(tmp_path: Path) -> None:
    """Written over the file in place, by whoever was cut off: counters behind the shorter lease were minted already."""
    extending = """if True:
        import os, shutil, sys, dynamo
        store = dynamo.open(sys.argv[1])
        print(store.set("k", b"v").dot.actor, flush=True)
        shutil.copyfile(sys.argv[1] + "/data.mdb", sys.argv[2])
        store._actor.issued = store._actor.lease_end - 1  # as after a million writes
        store.set("k", b"w")
        store.set("k", b"x")
        os._exit(9)
    """
    done = child(extending, str(tmp_path / "a"), str(tmp_path / "old"))
    assert done.returncode == 9, done.stderr
    (tmp_path / "a" / "data.mdb").write_bytes((tmp_path / "old").read_bytes())
    assert child(CUT_OFF, str(tmp_path / "a"), "synced").stdout not in ("", done.stdout)


def test_a_store_that_was_cut_off_after_a_commit_failed_begins_a_new_actor(tmp_path: Path) -> None:
    """What left it before its end may not be on the disk."""
    failing = """if True:
        import os, sys, dynamo
        store = dynamo.open(sys.argv[1])
        print(store.set("k", b"v").dot.actor, flush=True)
        def fail(group):
            raise dynamo.StorageFailed("the disk is gone")
        store._engine.commit = fail
        try:
            store.set("k", b"w", timeout=0.1)
        except dynamo.StorageFailed:
            os._exit(9)
    """
    done = child(failing, str(tmp_path))
    assert done.returncode == 9, done.stderr
    assert child(CUT_OFF, str(tmp_path), "synced").stdout not in ("", done.stdout)


def test_tokens_of_lives_that_are_over_stay_valid_and_siblings_exact(tmp_path: Path) -> None:
    def life() -> dynamo.Store:
        return dynamo.open(tmp_path, durability="relaxed")

    with life() as store:
        store._directory.leave_home()
        old = store.set("k", b"1")
    shutil.copytree(tmp_path, tmp_path.parent / "next")
    path = tmp_path.parent / "next"
    with dynamo.open(path) as store:  # another actor
        seen = store.put("k", b"2", context=old)
        assert ranges(store) == 1
        core = store._replica.core  # what the token tells of the life that is over is replaced, and would grow with each
        assert len(tokens.unseal(core.cluster.secret, b"default\0k", records.SIBLINGS, seen.token)[1]) == 24
        store.put("k", b"3", context=old)  # stale: it has not seen the second
        assert sorted(store.get("k").values) == [b"2", b"3"]
    shutil.copytree(path, tmp_path.parent / "last")
    with dynamo.open(tmp_path.parent / "last") as store:
        assert sorted(store.get("k").values) == [b"2", b"3"]
        store.put("k", b"4", context=seen)
        assert sorted(store.get("k").values) == [b"3", b"4"]
        store.put("k", b"5", context=store.get("k").context)
        assert store.get("k").values == (b"5",) and ranges(store) == 1
        store.put("k", b"6", context=old)
        assert sorted(store.get("k").values) == [b"5", b"6"]


def test_a_store_that_was_dropped_lets_go_of_its_directory_and_says_so(tmp_path: Path) -> None:
    for durability in ("synced", "buffered"):
        store = dynamo.open(tmp_path, durability=durability)
        actor = store.set("k", b"1").dot.actor  # type: ignore[union-attr]
        with pytest.warns(ResourceWarning, match="never closed"):
            del store
        with dynamo.open(tmp_path) as store:
            assert store.get("k").value == b"1" and store.set("k", b"2").dot.actor == actor  # type: ignore[union-attr]
        del store


def test_a_store_in_a_cycle_of_garbage_lets_go_when_its_directory_is_wanted(tmp_path: Path) -> None:
    gc.disable()
    try:
        ring: list[Any] = [dynamo.open(tmp_path)]
        ring.append(ring)
        del ring
        with pytest.warns(ResourceWarning):
            dynamo.open(tmp_path).close()
    finally:
        gc.enable()


def test_a_signal_handler_that_enters_again_is_refused_at_once_or_served(tmp_path: Path) -> None:
    with dynamo.open(tmp_path, timeout=30.0) as store:
        bucket, outcomes = store.bucket("b"), []
        receive = store._replica.receive

        def handle(number: int, frame: Any) -> None:
            for call in (
                lambda: store.get("k"), lambda: store.set("k", b"2"), lambda: bucket.get("k"), lambda: store.get_many(["k"]), store.stats, store.close,
                lambda: next(iter(store.scan())), lambda: store.update("k", lambda values: b"3"), lambda: store.delete("k", blind=True), lambda: "k" in store,
            ):  # fmt: skip
                try:
                    call()
                except RuntimeError as error:
                    outcomes.append(str(error))

        def interrupted(*arguments: Any) -> None:
            store._replica.receive = receive  # type: ignore[method-assign]
            signal.raise_signal(signal.SIGUSR1)
            receive(*arguments)

        store._replica.receive = interrupted  # type: ignore[method-assign]
        before, began = signal.signal(signal.SIGUSR1, handle), monotonic()
        try:
            store.set("k", b"1")
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert monotonic() - began < 10 and len(outcomes) == 10 and all("in the midst" in text for text in outcomes)
        assert store.get("k").value == b"1"


LATE = """if True:
    import atexit, sys, dynamo
    early = []
    def late():
        store = dynamo.open(sys.argv[1], durability="buffered")
        for number in range(20):
            store.set(f"k{number}", b"v")
        early[0].set("late", b"v")
    atexit.register(late)
    early.append(dynamo.open(sys.argv[2], durability="buffered"))
    early[0].set("early", b"v")
    """


def test_what_is_written_as_the_process_ends_is_not_lost(tmp_path: Path) -> None:
    ended = child(LATE, str(tmp_path / "a"), str(tmp_path / "b"))
    assert ended.returncode == 0, ended.stderr
    with dynamo.open(tmp_path / "a") as a, dynamo.open(tmp_path / "b") as b:
        assert len(list(a.scan())) == 20 and b.get("late").found and b.get("early").found


FORKED = """if True:
    import sys, multiprocessing, dynamo
    def work(path):
        store = dynamo.open(path, durability="buffered")
        store.set("k", b"v")
        globals()["kept"] = store
    process = multiprocessing.get_context("fork").Process(target=work, args=(sys.argv[1],))
    process.start(); process.join()
    """


def test_a_child_of_multiprocessing_flushes_too(tmp_path: Path) -> None:
    ended = child(FORKED, str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    with dynamo.open(tmp_path) as store:
        assert store.get("k").found


def test_what_cannot_be_pickled_or_copied_says_what_to_do(tmp_path: Path) -> None:
    with dynamo.open(tmp_path) as store:
        store.set("k", b"v")
        for thing in (store, store.bucket("b"), store.scan()):
            for copied in (pickle.dumps, copy.copy, copy.deepcopy):
                with pytest.raises(TypeError, match="cannot be pickled or copied"):
                    copied(thing)
        assert pickle.loads(pickle.dumps(store.get("k"))) == store.get("k")
