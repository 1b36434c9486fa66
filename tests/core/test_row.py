"""Rows: the golden bytes, round trips, and no flipped bit that gets through."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_digest

from dynamo._core import _ring_py
from dynamo.errors import CorruptRecord
from dynamo.model import row as row_module
from dynamo.model.key import ROW_KEY_BYTES_MAX, full_key, is_hashed, row_key
from dynamo.model.row import FALLBACK, OWNED, QUARANTINE, Row, decode_row

GOLDEN = Path(__file__).parents[1] / "golden" / "row_v2.hex"
SECRET = bytes(range(32))
SHORT = row_key(3, b"default", b"alice", SECRET)
LONG = row_key(0xFFFF, b"default", b"k" * 600, SECRET)
U64 = st.integers(0, 2**64 - 1)


@pytest.fixture
def records(core: Any, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The record kernel of each twin in turn, with that twin's row kernel in use by `dynamo.model.row`."""
    monkeypatch.setattr(row_module, "kernel", core.row)
    kernel: ModuleType = core.record
    return kernel


@pytest.fixture(scope="module")
def row_kernel(core: Any) -> ModuleType:
    kernel: ModuleType = core.row
    return kernel


def encode_row(key: bytes, row: Row) -> bytes:
    return row_module.kernel.encode(key, row)


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


@pytest.mark.parametrize("form, status", [(3, 0), (1, 0), (0, 0), (2, 3), (2, 255)])
def test_a_row_of_another_kind_is_refused(records: ModuleType, form: int, status: int) -> None:
    key, row = examples(records)["owned"]
    head = bytes([form, status]) + encode_row(key, row)[2:36]
    with pytest.raises(CorruptRecord, match=f"format {form}, status {status}"):
        decode_row(key, head + xxh3_64_digest(key + head) + row.record)


def test_a_row_that_breaks_the_form_is_not_written(records: ModuleType) -> None:
    key, row = examples(records)["owned"]
    for wrong in (row._replace(record=b""), row._replace(full_key=b"default\0alice"), row._replace(digest=b"short")):
        with pytest.raises(AssertionError):
            encode_row(key, wrong)
    with pytest.raises(AssertionError):
        encode_row(LONG, row)


ROWS = st.tuples(
    st.integers(0, 65535),
    st.one_of(st.binary(min_size=1, max_size=300), st.binary(min_size=450, max_size=1024)),
    st.sampled_from([OWNED, FALLBACK, QUARANTINE]),
    U64,
    U64,
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=1),
)


def keyed(fields: tuple[int, bytes, int, int, int, bytes, bytes]) -> tuple[bytes, Row]:
    partition, name, status, actor, since, digest, record = fields
    key, full = row_key(partition, b"bucket", name, SECRET), full_key(b"bucket", name)
    return key, Row(status, actor, since, digest, full if is_hashed(key) else b"", record)


@given(ROWS)
def test_round_trip(row_kernel: ModuleType, fields: tuple[int, bytes, int, int, int, bytes, bytes]) -> None:
    key, row = keyed(fields)
    assert row_kernel.decode(key, row_kernel.encode(key, row), False) == row


def outcome(kernel: ModuleType, key: bytes, data: bytes, verify: bool) -> tuple[str, Any]:
    try:
        return "ok", kernel.decode(key, data, verify)
    except CorruptRecord:
        return "corrupt", None


@given(ROWS, st.data())
def test_the_twins_agree(cores: tuple[Any, Any], fields: tuple[int, bytes, int, int, int, bytes, bytes], data: st.DataObject) -> None:
    """On rows, on rows whose record is one, and on rows that something happened to; also where the checksum was made anew."""
    compiled, pure = cores
    key, row = keyed(fields)
    if data.draw(st.booleans()):
        row = row._replace(record=pure.record.put(b"", b"", 7, 3, 3, 1, bytes(16), row.record, False))
    stored = pure.row.encode(key, row)
    assert compiled.row.encode(key, row) == stored
    stored = bytearray(stored)
    for _ in range(data.draw(st.integers(0, 2))):
        stored[data.draw(st.integers(0, len(stored) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    if data.draw(st.booleans()):
        head_end = 36 + int.from_bytes(stored[34:36], "big")
        stored[head_end : head_end + 8] = xxh3_64_digest(key + bytes(stored[:head_end]))
    cut = bytes(stored[: data.draw(st.integers(0, len(stored)))]) if data.draw(st.booleans()) else bytes(stored)
    for verify in (True, False):
        assert outcome(compiled.row, key, cut, verify) == outcome(pure.row, key, cut, verify)


@given(st.binary(max_size=ROW_KEY_BYTES_MAX), st.binary(max_size=600))
def test_any_bytes_are_a_row_or_corrupt(row_kernel: ModuleType, key: bytes, data: bytes) -> None:
    with pytest.raises(CorruptRecord):
        row_kernel.decode(key, data, True)


@given(ROWS, st.data())
def test_reading_a_record(cores: tuple[Any, Any], fields: tuple[int, bytes, int, int, int, bytes, bytes], data: st.DataObject) -> None:
    """Both twins return the record of a sound row, b"" where there is none, and None for anything that has to be looked into."""
    compiled, pure = cores
    _, name, status, *rest, value = fields
    key = pure.row.inline_key(b"bucket", name, 9, 16)
    record = pure.record.put(b"", b"", 7, 3, 3, 1, bytes(16), value, False)
    stored: Any = None
    if key is not None:
        kept = b"" if status == QUARANTINE and data.draw(st.booleans()) else record
        row = bytearray(pure.row.encode(key, Row(status, *rest, b"", kept)))  # type: ignore[arg-type]
        for _ in range(data.draw(st.integers(0, 1))):
            row[data.draw(st.integers(0, len(row) - 1))] ^= 1
        stored = data.draw(st.sampled_from([bytes(row), bytes(row), None, ValueError()]))
    found = [reader(twin.row, lambda at: stored if at == key else b"another").record(name) for twin in cores]
    assert found[0] == found[1] and found[0] in (record, b"", None)
    assert found[0] != b"" or stored is None
    assert reader(compiled.row, lambda at: stored).record(b"") is reader(pure.row, lambda at: stored).record(b"") is None


def reader(row_kernel: Any, read: Any, lock: Any = None) -> Any:
    """One of a look that is open."""
    look = row_kernel.Look(read)
    assert look.open is False
    look.open = True
    return row_kernel.Reader(look, lock or Lock(), 9, 16, b"bucket")


def test_a_reader_reads_while_the_look_is_open_and_nobody_has_the_lock(row_kernel: ModuleType, records: ModuleType) -> None:
    lock = Lock()
    stored: dict[bytes, bytes] = {}
    held: list[bool] = []
    row_key = row_kernel.inline_key(b"bucket", b"key", 9, 16)
    kept = records.put(b"", b"", 7, 3, 3, 1, bytes(16), b"value", False)
    stored[row_key] = row_kernel.encode(row_key, (0, 0, 0, bytes(16), b"", kept))

    def read(at: bytes) -> Any:
        held.append(lock.locked())
        return stored[at]

    look = row_kernel.Look(read)
    reads = row_kernel.Reader(look, lock, 9, 16, b"bucket")
    assert reads.record(b"key") is None
    look.open = True
    assert reads.record(b"key") == kept and held == [True] and not lock.locked()
    with lock:
        assert reads.record(b"key") is None
    stored.clear()
    with pytest.raises(KeyError):
        reads.record(b"key")
    assert not lock.locked()
    look.read = lambda at: None
    assert reads.record(b"key") == b""
    look.open = False
    assert reads.record(b"key") is None and held == [True, True]


@given(
    bucket=st.binary(max_size=64),
    key=st.one_of(st.binary(max_size=240), st.binary(min_size=400, max_size=500)),
    seed=U64,
    bits=st.integers(0, 16),
)
def test_inline_keys(row_kernel: ModuleType, bucket: bytes, key: bytes, seed: int, bits: int) -> None:
    """They are the row keys that `model.key` makes; a key that is hashed there has none."""
    made = row_kernel.inline_key(bucket, key, seed, 1 << bits)
    partition = _ring_py.partition_of(_ring_py.position(bucket, key, seed), 1 << bits)
    known = row_key(partition, bucket, key, SECRET)
    assert made == (None if is_hashed(known) else known)
