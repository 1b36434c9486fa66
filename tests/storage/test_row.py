"""Rows: the golden bytes, round trips, and no flipped bit that gets through."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.errors import CorruptRecord
from dynamo.model import row as row_module
from dynamo.model.key import full_key, is_hashed, row_key
from dynamo.model.row import FALLBACK, OWNED, QUARANTINE, Row, decode_row, encode_row

GOLDEN = Path(__file__).parents[1] / "golden" / "row_v2.hex"
SECRET = bytes(range(32))
SHORT = row_key(3, b"default", b"alice", SECRET)
LONG = row_key(0xFFFF, b"default", b"k" * 600, SECRET)
U64 = st.integers(0, 2**64 - 1)


@pytest.fixture
def records(core: Any, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The record kernel of each twin in turn, in use by `dynamo.model.row`."""
    kernel: ModuleType = core.record
    monkeypatch.setattr(row_module, "records", kernel)
    return kernel


def examples(records: ModuleType) -> dict[str, tuple[bytes, Row]]:
    record = records.put(b"", b"", 0x00F3, 17, 5, 1 << 12, bytes(range(16)), b"value", False)
    short, long = full_key(b"default", b"alice"), full_key(b"default", b"k" * 600)
    return {
        "owned": (SHORT, Row(OWNED, 0x00F3, 5, records.digest(short, record, 9), b"", record)),
        "fallback": (LONG, Row(FALLBACK, 2**64 - 1, 2**64 - 1, records.digest(long, record, 9), long, record)),
        "quarantine": (SHORT, Row(QUARANTINE, 0, 0, bytes(16), b"", b"")),
    }


def test_golden_bytes(records: ModuleType) -> None:
    golden = dict(line.split() for line in GOLDEN.read_text().splitlines() if line and not line.startswith("#"))
    rows = examples(records)
    assert {name: encode_row(key, row).hex() for name, (key, row) in rows.items()} == golden
    for name, (key, row) in rows.items():
        assert decode_row(key, bytes.fromhex(golden[name])) == row


@pytest.mark.parametrize("name", ["owned", "fallback", "quarantine"])
def test_every_flipped_bit_is_detected(records: ModuleType, name: str) -> None:
    key, row = examples(records)[name]
    data = encode_row(key, row)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptRecord):
            decode_row(key, bytes(damaged))


def test_every_truncation_and_another_key_is_detected(records: ModuleType) -> None:
    key, row = examples(records)["owned"]
    data = encode_row(key, row)
    for size in range(len(data)):
        with pytest.raises(CorruptRecord):
            decode_row(key, data[:size])
    with pytest.raises(CorruptRecord):
        decode_row(key, data + b"\0")
    with pytest.raises(CorruptRecord):
        decode_row(row_key(3, b"default", b"alicf", SECRET), data)


def test_without_verify_only_the_header_is_checked(records: ModuleType) -> None:
    key, row = examples(records)["owned"]
    data = bytearray(encode_row(key, row))
    data[-1] ^= 1
    assert decode_row(key, bytes(data), verify=False).record == bytes(data[-len(row.record) :])
    data[5] ^= 1
    with pytest.raises(CorruptRecord):
        decode_row(key, bytes(data), verify=False)


@pytest.mark.parametrize("form, status", [(3, 0), (1, 0), (0, 0), (2, 3)])
def test_a_row_of_another_kind_is_refused(records: ModuleType, monkeypatch: pytest.MonkeyPatch, form: int, status: int) -> None:
    key, row = examples(records)["owned"]
    monkeypatch.setattr(row_module, "FORMAT", form)
    data = encode_row(key, row._replace(status=status))
    monkeypatch.undo()
    with pytest.raises(CorruptRecord, match=f"format {form}, status {status}"):
        decode_row(key, data)


def test_a_row_that_breaks_the_form_is_not_written(records: ModuleType) -> None:
    key, row = examples(records)["owned"]
    for wrong in (row._replace(record=b""), row._replace(full_key=b"default\0alice"), row._replace(digest=b"short")):
        with pytest.raises(AssertionError):
            encode_row(key, wrong)
    with pytest.raises(AssertionError):
        encode_row(LONG, row)


@given(
    st.integers(0, 65535),
    st.binary(min_size=1, max_size=1024),
    st.sampled_from([OWNED, FALLBACK, QUARANTINE]),
    U64,
    U64,
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=1),
)
def test_round_trip(partition: int, name: bytes, status: int, actor: int, since: int, digest: bytes, record: bytes) -> None:
    key, full = row_key(partition, b"bucket", name, SECRET), full_key(b"bucket", name)
    row = Row(status, actor, since, digest, full if is_hashed(key) else b"", record)
    assert decode_row(key, encode_row(key, row), verify=False) == row


@given(st.binary(), st.binary(max_size=600))
def test_any_bytes_are_a_row_or_corrupt(key: bytes, data: bytes) -> None:
    with pytest.raises(CorruptRecord):
        decode_row(key, data)
