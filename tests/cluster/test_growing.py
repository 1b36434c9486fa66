"""One node with data grows to three, of real processes: nobody is told that what was there is not there."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic

import dynamo
from dynamo.testing.cluster import ServedNode

KEYS = {b"key-%d" % number: b"%d" % number for number in range(1_000)}
RECOVERED_S = 60.0


def test_no_read_is_wrong_while_one_node_grows_to_three(tmp_path: Path) -> None:
    nodes = [ServedNode(f"n{number}", tmp_path / f"n{number}", ("--durability", "relaxed")) for number in (1, 2, 3)]
    try:
        nodes[0].start()
        with dynamo.Client(nodes[0].address) as client:
            assert all(isinstance(outcome, dynamo.Context) for outcome in client.set_many(KEYS).values())
        stop, wrong = threading.Event(), list[str]()
        threads = [threading.Thread(target=work, args=(nodes[0].address, stop, wrong)) for work in (gets, scans, updates)]
        for thread in threads:
            thread.start()
        for node in nodes[1:]:
            node.launch([nodes[0].address])
        for node in nodes[1:]:
            node.wait_ready()
        threads += [threading.Thread(target=work, args=(node.address, stop, wrong)) for node in nodes[1:] for work in (gets, scans)]
        for thread in threads[3:]:
            thread.start()
        with dynamo.Client(nodes[1].address) as client:
            until = monotonic() + RECOVERED_S
            while any(node["recovering"] for node in client.cluster_status()["nodes"]) and monotonic() < until and not wrong:
                list(client.scan("key-1"))  # something to do meanwhile
            assert not wrong and [node["recovering"] for node in client.cluster_status()["nodes"]] == [0, 0, 0]
        stop.set()
        for thread in threads:
            thread.join()
        assert not wrong, wrong[:5]
        for node in nodes:
            with dynamo.Client(node.address) as client:
                assert client.get("counter").value == b"%d" % COUNTED[0]
    finally:
        for node in nodes:
            node.kill()


COUNTED = [0]


def _until_stopped(work: Callable[[dynamo.Client], str | None]) -> Callable[[str, threading.Event, list[str]], None]:
    def run(address: str, stop: threading.Event, wrong: list[str]) -> None:
        with dynamo.Client(address, timeout=20) as client:
            while not stop.is_set() and not wrong:
                try:
                    said = work(client)
                except dynamo.Unavailable as error:  # of a node that is just starting: said, and not wrong
                    said = None if not error.maybe_applied else f"{error}"
                if said is not None:
                    wrong.append(said)

    return run


@_until_stopped
def gets(client: dynamo.Client) -> str | None:
    """All keys, a part of them singly."""
    for key in list(KEYS)[:: len(KEYS) // 50]:
        if client.get(key).value != KEYS[key]:
            return f"{key!r} was not found"
    found = client.get_many(list(KEYS)[:200])
    missing = [key for key, result in found.items() if isinstance(result, dynamo.Result) and not result.found]
    return f"{len(missing)} keys were not found by get_many" if missing else None


@_until_stopped
def scans(client: dynamo.Client) -> str | None:
    """A whole scan."""
    found = sum(result.key.startswith(b"key-") for result in client.scan())
    return None if found == len(KEYS) else f"a scan showed {found} keys"


@_until_stopped
def updates(client: dynamo.Client) -> str | None:
    """A counter of one writer: it never begins anew."""
    seen: list[int] = []

    def add(values: list[bytes]) -> bytes:
        seen.append(max((int(value) for value in values), default=0))
        return b"%d" % (seen[-1] + 1)

    client.update("counter", add)
    if seen[-1] < COUNTED[0]:
        return f"the counter was {seen[-1]} after {COUNTED[0]}"
    COUNTED[0] = seen[-1] + 1
    return None
