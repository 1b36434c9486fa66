"""A data file whose end is missing is told from one that is sound, before LMDB trusts it; also from one that is soundly shorter than it says."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path

import lmdb
import pytest

from dynamo.storage.lmdb_file import missing_bytes


def claimed(data: Path) -> int:
    """The bytes that the newest meta page speaks of."""
    head = data.read_bytes()[:65_536]
    (page_bytes,) = struct.unpack_from("=I", head, 40)
    return (max(struct.unpack_from("=QQ", head, at + 136)[::-1] for at in (0, page_bytes))[1] + 1) * page_bytes


def fill(environment: lmdb.Environment, seed: int, transactions: int) -> None:
    """Transactions of all kinds."""
    rng = random.Random(seed)
    tables = [environment.open_db(name) for name in (b"a", b"b", b"c")]
    for _ in range(transactions):
        with environment.begin(write=True) as transaction:
            for _ in range(rng.choice([1, 5, 50, 400])):
                key, table = b"%05d" % rng.randrange(500) * rng.choice([1, 1, 40]), rng.choice(tables)
                if rng.random() < rng.choice([0.1, 0.5, 0.9]):
                    transaction.delete(key, db=table)
                else:
                    transaction.put(key, rng.randbytes(rng.choice([10, 500, 1900, 3000, 20_000])), db=table)
            if rng.random() < 0.1:
                transaction.drop(rng.choice(tables), delete=False)


@pytest.mark.parametrize("seed", range(4))
def test_a_sound_file_lacks_nothing_and_a_cut_one_does_wherever_it_was_cut(tmp_path: Path, seed: int) -> None:
    data = tmp_path / "data.mdb"
    environment = lmdb.open(str(tmp_path), map_size=1 << 34, max_dbs=3, sync=False, lib_version=0)
    assert missing_bytes(str(data)) == 0  # new
    for step in range(10):
        fill(environment, seed * 100 + step, 10)
        assert missing_bytes(str(data)) == 0
    environment.close()
    assert missing_bytes(str(data)) == 0
    whole = data.read_bytes()
    page_bytes, rng = 4096, random.Random(seed)
    with lmdb.open(str(tmp_path), max_dbs=3, lib_version=0, readonly=True) as environment:
        used = environment.info()["last_pgno"] + 1
    assert len(whole) >= used * page_bytes
    for pages in (used // 2, used // 10, 3, 2):
        data.write_bytes(whole[: pages * page_bytes + rng.choice([0, 1, 100])])
        assert missing_bytes(str(data)) > 0, pages
    for size in (0, 1, 100, page_bytes, page_bytes + 10):  # not even the meta pages: LMDB says so itself
        data.write_bytes(whole[:size])
        assert missing_bytes(str(data)) == 0


def test_a_file_is_soundly_shorter_than_it_says_where_only_free_pages_are_missing(tmp_path: Path) -> None:
    data = tmp_path / "data.mdb"
    environment = lmdb.open(str(tmp_path), map_size=1 << 34, max_dbs=3, sync=False, lib_version=0)
    tables = [environment.open_db(name) for name in (b"a", b"b")]
    with environment.begin(write=True) as transaction:
        for number in range(2000):
            transaction.put(b"%d" % number, bytes(1000), db=tables[0])
    with environment.begin(write=True) as transaction:  # the list of free pages becomes too large for one leaf
        transaction.drop(tables[0], delete=False)
    with environment.begin(write=True) as transaction:  # made at the end of the file, and freed before they were written
        transaction.put(b"large", bytes(40_000_000), db=tables[1])
        transaction.delete(b"large", db=tables[1])
    assert data.stat().st_size < claimed(data)
    assert missing_bytes(str(data)) == 0
    environment.close()
    os.truncate(data, data.stat().st_size - 8 * 4096)
    assert missing_bytes(str(data)) in (0, claimed(data) - data.stat().st_size)
    os.truncate(data, 4 * 4096)
    assert missing_bytes(str(data)) == claimed(data) - 4 * 4096


@pytest.mark.parametrize("content", [b"", b"x", bytes(100_000), b"\xff" * 100_000, os.urandom(100_000)])
def test_what_is_no_data_file_is_left_to_lmdb(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.mdb").write_bytes(content)
    assert missing_bytes(str(tmp_path / "data.mdb")) == 0
