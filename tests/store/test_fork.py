"""A store and fork(): the child has a copy of everything and owns nothing of it, so whatever it does must not reach the parent's store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import dynamo

# The parent has a reader open and, with "busy", another thread in the driver, as it may happen to any fork of a program with threads.
PROGRAM = """if True:
    import os, signal, sys, threading, warnings
    from pathlib import Path
    import dynamo

    warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads, in later versions
    path, deed, busy = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "busy"
    store = dynamo.open(path)
    store.set("a", b"1")
    assert store.get("a").value == b"1"
    bucket, results = store.bucket("b"), store.scan()
    entered, leave = threading.Event(), threading.Event()

    def occupy():
        with store._driver:
            entered.set()
            leave.wait()

    holder = threading.Thread(target=occupy, daemon=True)
    if busy:
        holder.start()
        entered.wait()
    before = (path / "LOCK").read_bytes(), (path / "data.mdb").read_bytes()
    if (child := os.fork()) == 0:
        signal.alarm(10)  # one that hangs must not outlive the test
        if deed == "close":
            store.close()
            store.close()
        elif deed == "leave":
            store.__exit__(None, None, None)
        elif deed == "exit":
            sys.exit(0)
        else:
            for verb in (
                lambda: store.get("a"), lambda: store.set("a", b"2"), lambda: store.update("a", lambda values: b"2"), lambda: bucket.get("a"),
                lambda: bucket.update("a", lambda values: b"2"), lambda: store.get_many(["a"]), lambda: next(results), lambda: store.stats(),
                lambda: "a" in store,
            ):
                try:
                    verb()
                except RuntimeError as error:
                    assert "fork" in str(error), error
                else:
                    raise AssertionError("a verb went through")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert ((path / "LOCK").read_bytes(), (path / "data.mdb").read_bytes()) == before
    if busy:
        leave.set()
        holder.join()
    assert store.get("a").value == b"1"
    actor = store.set("a", b"3").dot.actor
    store.close()
    with dynamo.open(path) as store:  # it was in order, and is
        assert store.get("a").value == b"3" and store.set("a", b"4").dot.actor == actor
    """


@pytest.mark.parametrize("busy", ["idle", "busy"])
@pytest.mark.parametrize("deed", ["close", "leave", "exit", "use"])
def test_nothing_a_child_does_reaches_the_store_of_its_parent(tmp_path: Path, deed: str, busy: str) -> None:
    environ = os.environ | {"PYTHONPATH": str(Path(dynamo.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-P", "-c", PROGRAM, str(tmp_path / "data"), deed, busy], env=environ, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_child_that_lives_on_does_not_keep_the_directory(tmp_path: Path) -> None:
    store = dynamo.open(tmp_path)
    store.set("a", b"1")
    said_read, said_write = os.pipe()
    go_read, go_write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        try:
            for _ in range(2):  # while the parent has it open, and when it has it no more
                try:
                    dynamo.open(tmp_path)
                except dynamo.ConfigError as error:
                    os.write(said_write, str(error).encode())
                os.read(go_read, 1)
        finally:
            os._exit(0)
    assert f"in use by pid {os.getpid()};".encode() in os.read(said_read, 1000)
    store.close()
    with dynamo.open(tmp_path) as store:
        store.set("a", b"2")
    os.write(go_write, b"x")
    assert b"or was in the one that it was forked from" in os.read(said_read, 1000)
    with dynamo.open(tmp_path) as store:
        assert store.get("a").value == b"2"
    os.write(go_write, b"x")
    assert os.waitpid(child, 0)[1] == 0
    for descriptor in (said_read, said_write, go_read, go_write):
        os.close(descriptor)
