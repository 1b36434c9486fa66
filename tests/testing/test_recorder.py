"""A real client's history: callers see their own values, the history sees whose they are, and the judges find what is taken away behind their backs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import dynamo
from dynamo.client.blocking import Client
from dynamo.client.core import Request
from dynamo.errors import ConnectionFailed, DynamoError, Unavailable
from dynamo.model import messages as m
from dynamo.model.group import Group
from dynamo.model.messages import Message
from dynamo.storage.lmdb import LmdbEngine
from dynamo.testing.cluster import ServedCluster
from dynamo.testing.history import ACKNOWLEDGED, REFUSED, UNKNOWN, History, LostCopies, Read, Write
from dynamo.testing.recorder import RecordingClient
from dynamo.testing.stores import judge

Answer = Callable[[Request], Message]


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have each request answered, or failed, in turn instead of sent; an integer before it is how many attempts that takes."""

    def script(*steps: tuple[int, Message | DynamoError]) -> None:
        left = list(steps)

        def call(self: Client, request: Request, deadline: float, asked: set[str]) -> Message:
            attempts, outcome = left.pop(0)
            for number in range(attempts):
                request.message(number, 1)
            if isinstance(outcome, DynamoError):
                raise outcome
            return outcome

        monkeypatch.setattr(Client, "_call", call)

    return script


def put_reply(counter: int) -> Message:
    return (m.PUT_REPLY, 1, 3, 5, b"token-%d" % counter, 7, counter, 0)


def test_outcomes_are_what_the_errors_say(answer: Callable[..., None]) -> None:
    history = History()
    answer((1, put_reply(1)), (0, ConnectionFailed("nobody there")), (2, Unavailable("perhaps", maybe_applied=True)))
    with RecordingClient("h:1", history, "c") as client:
        client.set("k", b"1")
        for error in (ConnectionFailed, Unavailable):
            with pytest.raises(error):
                client.set("k", b"2", w=3)
    writes = list(history.writes.values())
    assert [write.outcome for write in writes] == [ACKNOWLEDGED, REFUSED, UNKNOWN]
    assert [write.attempts for write in writes] == [1, 1, 2]
    assert [write.required for write in writes] == [2, 3, 3] and all(write.overwrites for write in writes)
    assert writes[0].dot == (7, 1)


def test_a_key_of_many_that_was_in_doubt_stays_so(answer: Callable[..., None]) -> None:
    """The first node may have applied it, the second refuses it for good: it may show."""
    history = History()
    doubtful = (m.PUT_MANY_REPLY, 1, (put_reply(1), m.error_message(0, Unavailable.code, "perhaps", True, 2, 1)))
    refused = (m.PUT_MANY_REPLY, 1, (m.error_message(0, Unavailable.code, "no", False, 2, 0),))
    answer((1, doubtful), (1, refused), (0, Unavailable("no other node is left to ask")))
    with RecordingClient("h:1", history, "c") as client:
        outcomes = client.set_many({"a": b"1", "b": b"2"})
    assert isinstance(outcomes[b"a"], dynamo.Context) and isinstance(outcomes[b"b"], dynamo.Unavailable)
    assert [(write.key, write.outcome) for write in history.writes.values()] == [("a", ACKNOWLEDGED), ("b", UNKNOWN)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> ServedCluster:
    return ServedCluster(tmp_path_factory.mktemp("recorder"))


def rob(data: Path, prefix: bytes) -> None:
    engine = LmdbEngine(str(data), synced=False)
    keys = [key for key, _ in engine.scan("objects", b"", None, 1000) if key[2:].startswith(b"default\0" + prefix)]
    assert keys
    engine.commit(Group(1, dict.fromkeys(keys, None), synced=True))
    engine.close()


def test_a_live_cluster_is_recorded_and_judged(cluster: ServedCluster) -> None:
    history = History()
    with cluster, RecordingClient(cluster.addresses, history, "c") as client:
        client.set("set", b"1")
        client.update("updated", lambda values: b"1")
        client.update("updated", lambda values: values[0] + b"2")
        client.put("siblings", b"a", w=3)
        client.put("siblings", b"b", w=3)
        client.delete("deleted", context=client.put("deleted", b"x", w=3), w=3)
        assert client.get("updated", r=3).value == b"12" and client["set"] == b"1" and not client.get("deleted", r=3).found
        many = client.get_many(["set", "siblings"])
        assert isinstance(many[b"siblings"], dynamo.Result) and sorted(many[b"siblings"].values) == [b"a", b"b"]
    directories = [node.data for node in cluster.nodes]
    reads = [event for event in history.events if isinstance(event, Read)]
    assert [version.operation in history.writes for event in reads for version in event.versions if not version.tombstone] == [True] * 6
    first, second = (write for write in history.writes.values() if write.key == "updated")
    assert (first.operation, second.context != 0) == (reads[1].versions[0].operation, True)
    assert judge(History.from_lines(history.to_lines()), directories) == []

    rob(directories[0], b"updated")
    found = judge(History.from_lines(history.to_lines()), directories)
    assert [violation.checker for violation in found] == ["converge"] and "n1" in found[0].text
    for directory in directories[1:]:
        rob(directory, b"updated")
    assert {violation.operation for violation in judge(History.from_lines(history.to_lines()), directories)} == {first.operation, second.operation}
    for node in cluster.nodes:
        history.add(LostCopies(node.name, None, max(write.ended for write in history.writes.values())))
    assert judge(history, directories) == [], "nobody promised to survive that"


def test_a_write_that_nobody_recorded_is_a_phantom(cluster: ServedCluster) -> None:
    history = History()
    history.begin(Write("00", "c", "default", "elsewhere"))
    assert "phantom" in {violation.checker for violation in judge(history, [node.data for node in cluster.nodes])}
