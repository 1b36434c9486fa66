"""One member as a value: the tuple on the wire and the bytes on disk, and that nothing malformed gets in."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.errors import CorruptRecord, ProtocolError
from dynamo.model.member import (
    CAPACITY_MAX,
    STATUSES,
    VERSION_MAX,
    Member,
    checked,
    decode_member,
    encode_member,
)

U64_MAX = 2**64 - 1
GOOD = Member(b"n" * 16, "naïve", 3, 1, 2, "host:7379", "zone", 1500, "normal", 77, 88, 1)

texts = st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=64)
versions = st.one_of(st.integers(0, 3), st.integers(0, VERSION_MAX))
u64 = st.integers(0, U64_MAX)
members = st.builds(
    Member, st.binary(min_size=16, max_size=16), texts, versions, versions, versions, texts, texts,
    st.integers(1, CAPACITY_MAX), st.sampled_from(STATUSES), u64, u64, u64,
).map(checked)  # fmt: skip
junk = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.binary(max_size=20), st.text(max_size=70)),
    lambda inner: st.lists(inner, max_size=13).map(tuple),
    max_leaves=15,
)


@given(members)
def test_tuple_and_bytes_there_and_back(member: Member) -> None:
    assert Member.from_tuple(member.to_tuple()) == member
    assert type(member.to_tuple()) is tuple
    data = encode_member(member)
    assert decode_member(b"before" + data + b"behind", 6) == (member, 6 + len(data))


def test_unknown_trailing_fields_are_ignored() -> None:
    assert Member.from_tuple((*GOOD, "of a later version", 7)) == GOOD


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("node_id", b"n" * 15), ("node_id", "n" * 16), ("name", b"name"), ("name", "x" * 65), ("name", "new\nline"),
        ("name", "\ud800"), ("incarnation", -1), ("incarnation", VERSION_MAX + 1), ("revision", 1.0),
        ("admin_version", True), ("admin_version", VERSION_MAX + 1), ("address", None), ("address", "x" * 301),
        ("zone", "z" * 65), ("zone", "\x1b[31m"), ("capacity", 0), ("capacity", CAPACITY_MAX + 1), ("status", "gone"),
        ("status", ["normal"]), ("status", 1), ("actor", -1), ("lease_end", U64_MAX + 1), ("formats", U64_MAX + 1),
    ],
)  # fmt: skip
def test_a_field_out_of_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(ProtocolError, match=name):
        Member.from_tuple(tuple(GOOD._replace(**{name: value})))


@given(junk)
def test_junk_is_a_protocol_error(value: Any) -> None:
    with pytest.raises(ProtocolError):
        Member.from_tuple(value)


@given(st.integers(0, 11), junk)
def test_junk_in_one_field_is_a_protocol_error_or_a_sound_member(index: int, value: Any) -> None:
    values = list(GOOD)
    values[index] = value
    try:
        member = Member.from_tuple(tuple(values))
    except ProtocolError:
        return
    assert decode_member(encode_member(member), 0)[0] == member


def test_a_member_that_left_has_no_place() -> None:
    left = Member.from_tuple(tuple(GOOD._replace(status="left")))
    assert (left.zone, left.capacity) == ("", 1000)


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [(b"\x02", b"\x04", "status"), ("naïve".encode(), b"na\xff\xffve", "utf-8"), (b"host", b"h\nst", "address"),
     ((1500).to_bytes(4, "big"), bytes(4), "capacity"), (b"zone", b"", "cut short")],
)  # fmt: skip
def test_stored_bytes_that_are_no_member(old: bytes, new: bytes, what: str) -> None:
    data = encode_member(GOOD._replace(status="leaving"))
    place = data.rindex(old)
    with pytest.raises(CorruptRecord, match=what):
        decode_member(data[:place] + new + data[place + len(old) :], 0)


@given(members, st.data())
def test_damaged_bytes_are_corrupt_or_another_sound_member(member: Member, data: st.DataObject) -> None:
    whole = bytearray(encode_member(member))
    for _ in range(data.draw(st.integers(0, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    stored = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        decoded, end = decode_member(stored, 0)
    except CorruptRecord:
        return
    assert checked(decoded) == decoded and end <= len(stored)
