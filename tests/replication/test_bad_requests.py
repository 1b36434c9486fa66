"""What no node takes is refused by the first that sees it: nothing of it is passed on, however large it is and however often it comes at once."""

from __future__ import annotations

from typing import Any

import pytest

from dynamo.errors import InvalidKey, KeyTooLong
from dynamo.model import messages as m
from dynamo.model.messages import ERROR_TEXT_MAX, Message

from .rig import Rig

LONG = b"\xff" * 300_000
PUT = (b"v", None, bytes(16))
BAD: dict[str, tuple[Message, type[Exception]]] = {
    "put, bucket": ((m.PUT, 0, LONG, b"k", b"v", None, 0, 0, 0, 5000, bytes(16)), InvalidKey),
    "put, key": ((m.PUT, 0, b"default", LONG, b"v", None, 0, 0, 0, 5000, bytes(16)), KeyTooLong),
    "put, no key": ((m.PUT, 0, b"default", b"", b"v", None, 0, 0, 0, 5000, bytes(16)), InvalidKey),
    "get, bucket": ((m.GET, 0, LONG, b"k", 0, 0, 5000), InvalidKey),
    "get, key": ((m.GET, 0, b"default", LONG, 0, 0, 5000), KeyTooLong),
    "scan, bucket": ((m.SCAN, 0, LONG, b"", b"", 0, 5000), InvalidKey),
    "scan, prefix": ((m.SCAN, 0, b"default", LONG, b"", 0, 5000), KeyTooLong),
    "get many, bucket": ((m.GET_MANY, 0, LONG, tuple(b"%d" % i for i in range(50)), 0, 0, 5000), InvalidKey),
    "put many, bucket": ((m.PUT_MANY, 0, LONG, tuple((b"%d" % i, *PUT) for i in range(50)), 0, 0, 0, 5000), InvalidKey),
    "put many, keys": ((m.PUT_MANY, 0, b"default", ((LONG, *PUT),) * 50, 0, 0, 0, 5000), KeyTooLong),
}


@pytest.mark.parametrize("name", BAD)
def test_it_is_refused_at_once_and_costs_the_others_nothing(name: str) -> None:
    request, error = BAD[name]
    rig = Rig(5)
    for node_id in rig.ids:  # owners of the key and others alike
        before = rig.bytes_between
        reply: Any = rig.ask(node_id, request)
        for each in [reply] if reply[0] == m.ERROR else reply[2]:
            assert (each[0], each[2], each[4]) == (m.ERROR, error.code, False)  # type: ignore[attr-defined]
            assert len(each[3]) <= ERROR_TEXT_MAX
        assert rig.bytes_between == before
    assert not any(node.objects for node in rig.nodes.values())
