"""What docs/wire.md says of the corners of a PUT, and README of its limits."""

from __future__ import annotations

import pytest

from dynamo.errors import InvalidContext, ValueTooLarge
from dynamo.model import messages as m

from .rig import Rig

MEBIBYTE = 1 << 20


@pytest.mark.parametrize("at", range(3))
def test_a_repetition_with_another_value_changes_nothing_and_is_answered_like_the_first(at: int) -> None:
    rig = Rig()
    owners = rig.owners(b"k")
    operation = b"o" * 16
    first = rig.put(owners[0], b"k", b"1", operation=operation)
    again = rig.put(owners[at], b"k", b"2", operation=operation)
    assert again[0] == m.PUT_REPLY and again[5:7] == first[5:7]
    assert rig.values(rig.get(owners[1], b"k")) == [b"1"]
    rig.pass_time(1)
    before = rig.record(owners[0], b"k")
    assert before is not None and [rig.record(owner, b"k") for owner in owners] == [before] * 3


def test_a_set_without_a_value_is_a_blind_delete_and_writes_also_where_nothing_is() -> None:
    rig = Rig()
    a = rig.owners(b"k")[0]
    rig.put(a, b"k", b"1")
    rig.put(a, b"k", b"2")
    for key in (b"k", b"never"):
        assert rig.put(a, key, None, mode=m.MODE_SET)[0] == m.PUT_REPLY
        reply = rig.get(a, key)
        assert rig.values(reply) == [] and len(reply[7]) == 1


def test_the_token_of_a_set_is_checked_and_covers_what_it_covers_too() -> None:
    rig = Rig()
    a = rig.owners(b"k")[0]
    token = rig.put(a, b"k", b"1")[4]
    refused = rig.put(a, b"k", b"2", token[:-1] + bytes([token[-1] ^ 1]), mode=m.MODE_SET)
    assert refused[:3:2] == (m.ERROR, InvalidContext.code)
    rig.put(a, b"k", b"2", token, mode=m.MODE_SET)
    assert rig.values(rig.get(a, b"k")) == [b"2"]


def test_two_values_of_the_largest_size_do_not_fit_beside_each_other_unless_nodes_could_not_see_each_other() -> None:
    rig = Rig()
    a, b, c = rig.owners(b"k")
    first = rig.put(a, b"k", bytes(MEBIBYTE))
    refused = rig.put(a, b"k", b"\1" * MEBIBYTE)
    assert (refused[0], refused[2], refused[4]) == (m.ERROR, ValueTooLarge.code, False) and b"merge" in refused[3].encode()
    assert rig.put(a, b"k", b"\1" * MEBIBYTE, first[4])[0] == m.PUT_REPLY
    rig.down(b)
    rig.down(c)
    rig.put(a, b"other", bytes(MEBIBYTE), w=1)
    rig.down(a)
    rig.back(b)
    rig.put(b, b"other", b"\1" * MEBIBYTE, w=1)
    rig.back(a)
    rig.back(c)
    rig.pass_time(30)
    assert len(rig.values(rig.get(a, b"other"))) == 2
