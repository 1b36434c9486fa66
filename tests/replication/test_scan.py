"""Scans over a network that delays and reorders as it likes, with hedged requests: each live key once, whatever reply comes when."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from dynamo.model import messages as m
from dynamo.model.messages import Message
from dynamo.replication import scan as policy

from .rig import CLIENT, Rig

BUCKET = b"default"


class SlowNetwork(Rig):
    """The messages of scans wait in one pool, and any of them may be the next to arrive; time passes in between."""

    def __init__(self, seed: int, nodes: int) -> None:
        self.rng = Random(seed)
        self.pool: list[tuple[Any, Any, Message]] = []
        super().__init__(nodes)

    def _send(self, node: Any, messages: list[tuple[Any, Message]]) -> None:
        for destination, message in messages:
            if message[0] in (m.SCAN_READ, m.SCAN_READ_REPLY):
                self.pool.append((destination, node.node_id, message))
            else:
                super()._send(node, [(destination, message)])

    def scan(self, node_id: bytes, cursor: bytes, limit: int) -> Message:
        """The answer to one SCAN, however long the network takes."""
        self.replies.clear()
        self.nodes[node_id].inbox.append((CLIENT, (m.SCAN, 1, BUCKET, b"", cursor, limit, 60_000)))
        while not self.replies:
            self.settle()
            if self.pool and self.rng.random() < 0.6:
                destination, source, message = self.pool.pop(self.rng.randrange(len(self.pool)))
                self.nodes[destination].inbox.append((source, message))
            else:
                self.now += 0.03
                for node in self.nodes.values():
                    node.replica.tick(self.now)
        return self.replies.pop()


@pytest.mark.parametrize("nodes", [3, 5])
def test_each_live_key_once_whatever_reply_comes_when(nodes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "PAGE_ROWS", 4)
    for seed in range(40):
        rig = SlowNetwork(seed, nodes)
        for number in range(30):
            assert rig.put(rig.ids[0], b"key-%d" % number, b"v")[0] == m.PUT_REPLY
        found: list[bytes] = []
        cursor, finished = b"", False
        while not finished:
            reply = rig.scan(rig.rng.choice(rig.ids), cursor, rig.rng.choice([0, 1, 7]))
            assert reply[0] == m.SCAN_REPLY, reply
            found += [entry[0] for entry in reply[4]]
            cursor = reply[5]
            finished = not cursor
        assert sorted(found) == sorted(b"key-%d" % number for number in range(30)), f"seed {seed}"
        assert not any(type(fold).__name__ == "PendingScan" for node in rig.nodes.values() for fold in node.replica.core.pending.values())


def test_a_damaged_row_in_the_way_is_named_and_repaired() -> None:
    rig = Rig()
    for number in range(20):
        rig.put(rig.ids[0], b"key-%d" % number, b"v")
    row_key = rig.row_key(b"key-7")
    for node_id in rig.ids[:2]:
        table = rig.nodes[node_id].objects
        table[row_key] = table[row_key][:-1] + bytes([table[row_key][-1] ^ 1])
    message = (m.SCAN, 0, BUCKET, b"", b"", 0, 1000)
    reply = rig.ask(rig.ids[0], message)
    assert reply[0] == m.SCAN_REPLY and len(reply[4]) == 20  # as many as there are: the scan goes on
    assert [entry[:3] for entry in reply[4] if not entry[2]] == [(b"key-7", b"", ())]
    rig.pass_time(3)
    reply = rig.ask(rig.ids[0], message)
    assert reply[0] == m.SCAN_REPLY and len([entry for entry in reply[4] if entry[2]]) == 20
