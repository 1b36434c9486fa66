"""The durable engine: three LMDB tables in one file, a group as one write transaction, one read transaction per step.

LMDB is a copy-on-write B+ tree: a commit writes new pages, syncs them, then writes and syncs one of two meta pages. So
a crash leaves the last commit whole, readers keep a snapshot without locks, and a failed commit leaves nothing. Of its
switches only `sync` is used here: never `writemap` (a full disk is a SIGBUS there) and never `metasync=False` (it loses
the last acknowledged commit). With `synced=False` a crash of the process loses nothing, but a power cut may damage the
file: that is what durability `relaxed` means.

LMDB trusts the structure of its file. A file that was cut off is refused, and one that was not left so by a clean stop is
looked through before it is opened (`lmdb_file`); a damaged row is found by the row's checksum; a tree page that was
damaged since may be an error, wrong rows (found likewise), or the end of the process. docs/storage.md says what that leaves.

The map is an address range, not memory or disk: it is made so large that it never has to grow, for growing needs all
transactions stopped.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection
from itertools import islice, takewhile

import lmdb

from dynamo._core import row as row_kernel
from dynamo.errors import ConfigError, DynamoError, StorageFailed, StorageFull
from dynamo.model.group import Group
from dynamo.storage.engine import Table
from dynamo.storage.lmdb_file import missing_bytes

MAP_BYTES = 1 << 40
MAP_BYTES_MIN = 1 << 30
LMDB_LINE = 0  # the 0.9 line of data files; py-lmdb also bundles 1.0, which writes another format

_TABLES = (b"objects", b"hints", b"meta")
_PROBE_BYTES = 1 << 20
_READER_CHECK_COMMITS = 16  # between two looks, of a microsecond or two each
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_MAP_REFUSED = frozenset({errno.ENOMEM, errno.EFBIG, errno.EINVAL, errno.EOVERFLOW})


class LmdbEngine:
    """A StorageEngine on `path/data.mdb`. The directory is there and ours alone: DataDirectory sees to both.

    `synced`: every commit is on disk when it returns; otherwise only those of groups that ask for it. Reads belong to
    one thread and commits to one thread, which may be another. Raises ConfigError where the file cannot be opened or is
    not ours, StorageFull on a full disk. Once the disk has failed a meta page, LMDB refuses everything until reopened.
    """

    look_errors: tuple[type[Exception], ...] = (lmdb.Error,)

    def __init__(self, path: str, synced: bool, map_bytes: int = MAP_BYTES, check: Callable[[], None] = lambda: None) -> None:
        """`check` raises StorageFailed where the file is no longer the one at its path; called around each commit."""
        self.synced = synced
        self._path = os.path.abspath(path)
        self._check = check
        self._commits = 0  # since readers were looked for
        self._environment = _open(path, synced, map_bytes)
        try:
            self._objects, self._hints, self._meta = _open_tables(self._environment, path)
            self._clear_readers()
        except lmdb.Error as error:
            self._environment.close()
            raise _write_error(error, path) from error
        except ConfigError:
            self._environment.close()
            raise
        self._reader: lmdb.Transaction[bytes] | None = None
        self.look = row_kernel.Look(self._look_first)

    # --- reading ------------------------------------------------------------------------------------------------------

    def read(self, row_key: bytes) -> bytes | DynamoError | None:
        try:
            reader = self._reader
            if reader is None:
                reader = self._begin_reading()
            return reader.get(row_key)
        except lmdb.Error as error:
            # A bad page spoils the transaction that met it. The next read gets a new one, and is none the worse for it.
            self.refresh()
            return self._read_error(error)

    def read_meta(self, name: bytes) -> bytes | None:
        try:
            return (self._reader or self._begin_reading()).get(name, db=self._meta)
        except lmdb.Error as error:
            self.refresh()
            raise self._read_error(error) from error

    def scan(self, table: Table, start: bytes, stop: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        rows_of = self._table(table)
        try:
            with (self._reader or self._begin_reading()).cursor(rows_of) as cursor:
                if not cursor.set_range(start):
                    return []
                rows = islice(cursor.iternext(), limit)
                return list(rows if stop is None else takewhile(lambda row: row[0] < stop, rows))
        except lmdb.Error as error:
            self.refresh()
            raise self._read_error(error) from error

    def count(self, table: Table) -> int:
        rows_of = self._table(table)
        try:
            return int((self._reader or self._begin_reading()).stat(rows_of)["entries"])
        except lmdb.Error as error:
            self.refresh()
            raise self._read_error(error) from error

    def count_of(self, table: Table, keys: Collection[bytes]) -> int:
        rows_of = self._table(table)
        try:
            with (self._reader or self._begin_reading()).cursor(rows_of) as cursor:
                return sum(map(cursor.set_key, keys))
        except lmdb.Error as error:
            self.refresh()
            raise self._read_error(error) from error

    def _read_error(self, error: lmdb.Error) -> StorageFailed:
        return StorageFailed(f"{self._path}/data.mdb cannot be read: {error}")

    def _table(self, name: Table) -> lmdb._Database:
        return self._objects if name == "objects" else self._hints if name == "hints" else self._meta

    def refresh(self) -> None:
        # py-lmdb has no reset and renew: a transaction that was aborted and let go of is the spare that begin() takes.
        reader, self._reader = self._reader, None
        self.look.read = self._look_first
        if reader is not None:
            reader.abort()

    def _begin_reading(self) -> lmdb.Transaction[bytes]:
        try:
            self._reader = reader = self._environment.begin(self._objects)
        except lmdb.ReadersFullError:  # perhaps of readers that died
            self._environment.reader_check()
            self._reader = reader = self._environment.begin(self._objects)
        self.look.read = reader.get
        return reader

    def _look_first(self, row_key: bytes) -> bytes | None:
        return self._begin_reading().get(row_key)

    # --- writing ------------------------------------------------------------------------------------------------------

    def commit(self, group: Group, entering: Callable[[], None] | None = None) -> None:
        """As the interface says, but where the sync that a group asks of a relaxed engine fails, the group is visible."""
        self._check()
        self._commits += 1
        transaction: lmdb.Transaction[bytes] | None = None
        try:
            if self._commits >= _READER_CHECK_COMMITS:
                self._clear_readers()
            try:
                transaction = self._environment.begin(write=True)
                _apply(transaction, self._objects, group.objects)
                _apply(transaction, self._hints, group.hints)
                _apply(transaction, self._meta, group.meta)
                if entering is not None:
                    entering()
                transaction.commit()
            except BaseException:
                if transaction is not None:
                    transaction.abort()  # one that is committed is none the worse for it
                raise
            if group.synced and not self.synced:
                self._environment.sync(True)
        except lmdb.Error as error:
            failure = _write_error(error, self._path)
            if isinstance(failure, StorageFull):
                self._commits = _READER_CHECK_COMMITS  # it may be a dead reader's pages that fill it: the next try looks
            raise failure from error
        self._check()  # again, before it is acknowledged

    def _clear_readers(self) -> None:
        """Readers of processes that died keep their pages for ever, and the file grows with every commit. LMDB itself does not look for them."""
        self._commits = 0
        self._environment.reader_check()

    def close(self) -> None:
        self.refresh()
        self._environment.close()


def _apply(transaction: lmdb.Transaction[bytes], table: lmdb._Database, changes: dict[bytes, bytes | None]) -> None:
    """Deletes first, so that the puts find room; both in key order, so that neighbours share the pages they touch."""
    if not changes:
        return
    for key in sorted(key for key, value in changes.items() if value is None):
        transaction.delete(key, db=table)
    puts = sorted((key, value) for key, value in changes.items() if value is not None)
    if puts:
        transaction.cursor(table).putmulti(puts)


# --- errors -----------------------------------------------------------------------------------------------------------


def _write_error(error: lmdb.Error, path: str) -> DynamoError:
    if isinstance(error, lmdb.MapFullError):
        return StorageFull(f"the map of the data file in {path} is full, which is the address space for it and not the disk: {error}; delete data")
    if error.code in _FULL or (error.code == errno.EIO and _has_no_room(path)):
        return StorageFull(f"the disk under {path} is full: {error}; free space there, then write again")
    return StorageFailed(f"the disk failed a commit in {path}: {error}")


def _has_no_room(path: str) -> bool:
    """Whether a file like the data file cannot grow here now, found by trying.

    A disk fills up in the middle of a write, and LMDB calls that short write an I/O error, the same as a broken disk.
    """
    probe_path = os.path.join(path, "probe")
    try:
        end = os.stat(os.path.join(path, "data.mdb")).st_size
        probe = os.open(probe_path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.unlink(probe_path)
            return os.pwrite(probe, bytes(_PROBE_BYTES), end) < _PROBE_BYTES
        finally:
            os.close(probe)
    except OSError as error:
        return error.errno in _FULL


# --- opening ----------------------------------------------------------------------------------------------------------


def _open(path: str, synced: bool, map_bytes: int) -> lmdb.Environment:
    """Open with the largest map up to `map_bytes` that the address space and the file system grant. Raises ConfigError for a file that is none of
    ours, or not whole: LMDB would read behind its end, which ends the process."""
    try:
        missing = missing_bytes(f"{path}/data.mdb")
    except FileNotFoundError:
        missing = 0
    except OSError as error:
        raise ConfigError(f"cannot open {path}/data.mdb: {error.strerror}") from error
    if missing:
        raise ConfigError(f"{path}/data.mdb was cut off: its last {missing} bytes are missing; restore it, or give an empty directory")
    while True:
        try:
            return lmdb.open(
                path,
                map_size=map_bytes,
                create=False,
                sync=synced,
                mode=0o600,
                max_dbs=len(_TABLES),
                max_readers=16,  # one is ours; the others are for tools that look at a running store
                max_spare_txns=1,
                lib_version=LMDB_LINE,
            )
        except lmdb.InvalidError as error:
            raise ConfigError(f"{path}/data.mdb is no data file of this LMDB version; give another directory: {error}") from error
        except lmdb.Error as error:
            if error.code not in _MAP_REFUSED or map_bytes // 4 < MAP_BYTES_MIN:
                if error.code in _FULL:
                    raise _write_error(error, path) from error
                if "already open in this process" in str(error):  # LMDB's locks are a process's own, and a fork does not end what was open
                    raise ConfigError(f"{path} is already open in this process, or was in the one that it was forked from") from error
                raise ConfigError(f"cannot open {path}/data.mdb: {error}") from error
            map_bytes //= 4


def _open_tables(environment: lmdb.Environment, path: str) -> tuple[lmdb._Database, lmdb._Database, lmdb._Database]:
    """The tables, made in one transaction in a new file. Raises ConfigError for another program's, left as it is."""
    if environment.stat()["entries"]:
        try:
            objects, hints, meta = (environment.open_db(name, create=False) for name in _TABLES)
        except (lmdb.NotFoundError, lmdb.IncompatibleError, lmdb.DbsFullError) as error:
            raise ConfigError(f"{path}/data.mdb belongs to another program; give another directory") from error
        return objects, hints, meta
    with environment.begin(write=True) as transaction:
        objects, hints, meta = (environment.open_db(name, txn=transaction) for name in _TABLES)
    return objects, hints, meta
