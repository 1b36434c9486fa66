"""Result.value in its three cases, values and keys from programs to bytes, and the step of an update."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dynamo.api import DELETE, MISSING, Context, Dot, Result, Sibling
from dynamo.api.codec import bucket_bytes, encode_value, key_bytes
from dynamo.api.result import Resolver, make_siblings, unix_seconds
from dynamo.api.update import changed
from dynamo.errors import ConflictError, InvalidKey, KeyTooLong


def result(*values: Any, resolver: Resolver | None = None) -> Result:
    siblings = tuple(Sibling(value, Dot(1, i), 0.0) for i, value in enumerate(values))
    return Result(b"key", siblings, Context(b"token"), 3, resolver)


class JsonCodec:
    def encode(self, value: Any) -> bytes:
        return json.dumps(value).encode()

    def decode(self, data: bytes) -> Any:
        return json.loads(data)


def test_absent() -> None:
    absent = result()
    assert (absent.found, absent.value, absent.values, absent.siblings) == (False, None, (), ())
    assert absent.context == Context(b"token")


def test_one_value_needs_no_resolver() -> None:
    assert result(b"v", resolver=lambda siblings: pytest.fail("asked")).value == b"v"
    assert result(b"").found and result(b"").value == b""


def test_several_values_raise_with_the_result_or_are_resolved() -> None:
    several = result(b"a", b"b")
    with pytest.raises(ConflictError) as conflict:
        _ = several.value
    assert conflict.value.result is several
    assert result(b"a", b"b", resolver=lambda siblings: b"".join(s.value for s in siblings)).value == b"ab"


def test_time_on_the_wire_is_microseconds_above_twelve_bits() -> None:
    assert unix_seconds((1_700_000_000_250_000 << 12) | 0xFFF) == 1_700_000_000.25


def test_a_codec_decodes_each_sibling() -> None:
    (one, two) = make_siblings([(b"[1]", 7, 1, 0), (b"[2]", 7, 2, 1_000_000 << 12)], JsonCodec())
    assert one == ([1], (7, 1), 0.0) and two == ([2], (7, 2), 1.0)


def test_values_are_bytes_unless_a_codec_says_otherwise() -> None:
    assert encode_value(bytearray(b"v"), None) == encode_value(memoryview(b"v"), None) == b"v"
    assert encode_value([1], JsonCodec()) == b"[1]"
    with pytest.raises(TypeError, match="codec"):
        encode_value("text", None)
    with pytest.raises(TypeError, match="str"):
        encode_value(1, type("Wrong", (), {"encode": lambda self, value: "text"})())


def test_keys_are_utf_8_or_bytes_and_are_checked_before_anything_is_sent() -> None:
    assert key_bytes("é") == "é".encode() and key_bytes(b"\xff") == b"\xff" and bucket_bytes("a.B-1_") == b"a.B-1_"
    with pytest.raises(KeyTooLong):
        key_bytes("é" * 513)
    for wrong in ("", b""):
        with pytest.raises(InvalidKey):
            key_bytes(wrong)
    for name in ("", "a b", "x" * 65, "a\n"):
        with pytest.raises(InvalidKey):
            bucket_bytes(name)
    with pytest.raises(TypeError):
        key_bytes(5)  # type: ignore[arg-type]


def test_an_update_gets_the_live_values_or_the_default() -> None:
    assert changed(result(b"a", b"b"), lambda values: values, default=b"d") == [b"a", b"b"]
    assert changed(result(), lambda values: values, default=b"d") == [b"d"]
    assert changed(result(), lambda values: values) == changed(result(), lambda values: values, default=MISSING) == []
    assert changed(result(), lambda values: values, default=None) == [None]
    assert changed(result(b"a"), lambda values: DELETE) is DELETE
