"""One directory, one store, one process: lock it, know it again, and say whether it was left in order.

    LOCK        held with flock while in use; says the pid of the holder, or how data.mdb looked after a clean stop. Until
                there is a store, "pid N, opening": from any other word on, an absent or empty data.mdb is a lost one
    data.mdb    the LMDB file, locked likewise (`guard`); `lock.mdb` beside it is LMDB's own
    meta table  `format` = 2, and after a clean stop `clean_stop` = device and inode of data.mdb; while a store is open that
                may go on after a crash, `home` = the same, and device, inode and change time of LOCK

`clean` decides whether the store may go on under its old actor (DESIGN section 2), so it errs on the safe side: the
marker must name this very file, and is gone, synced, before anyone can act on it. A copied directory has another inode.
A backup written over the file in place has the same one; but its change time, which nobody can set, is no longer the
one that the last clean stop left in LOCK. `home` is for stops that are not clean: LOCK is left alone while a store is
open, but for the moment when the store notes in `home` what it leased; so a backup of an earlier life, or from before
that moment, written over the files in place does not match, in whole or in part.

A directory belongs to the process that opened it. A child that was forked has copies of everything and must use none of
them: what LMDB shares through lock.mdb is the parent's, and so is the lock. The child lets go of its copy of that, so
that it does not hold the directory when the parent has ended.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from io import FileIO
from struct import Struct
from weakref import WeakSet

from dynamo.errors import ConfigError, StorageFailed
from dynamo.model.group import Group
from dynamo.storage.buffer import WriteBuffer
from dynamo.storage.engine import StorageEngine
from dynamo.storage.guard import Guard
from dynamo.storage.lmdb import LmdbEngine
from dynamo.storage.lmdb_file import refuse_damaged
from dynamo.storage.memory import MemoryEngine

DURABILITIES = ("synced", "relaxed", "buffered", "memory")
FORMAT = 2  # 1 held rows of format 1
META_FORMAT = b"format"
META_CLEAN_STOP = b"clean_stop"
META_HOME = b"home"

_LOCK, _DATA = "LOCK", "data.mdb"
_OURS = frozenset({_LOCK, _DATA, "lock.mdb"})
_TOLERATED = frozenset({"lost+found"})  # the root of a file system of its own
_IDENTITY = Struct(">QQ")  # st_dev, st_ino
_OPENING = ", opening"
_LOCK_SEEN = Struct(">QQQ")  # of LOCK: st_dev, st_ino, st_ctime_ns
# LOCK of each directory that this process holds. Files and not descriptors: closing them twice does nothing, and one that an exception drops is closed.
_held: WeakSet[FileIO] = WeakSet()


class DataDirectory:
    """An open data directory. `engine`: its storage. `clean`: the last stop was clean, and this is that very directory. `at_home`: the last store in it
    was cut off after `note_home`, and this is that very directory, as it was then.

    durability `synced`, `relaxed` and `buffered` open or create `path`; `memory` has no directory and ignores it. Raises
    ConfigError, saying what to do, where the directory is in use, not writable, not a directory, foreign, or of another
    format; StorageFull, StorageFailed from the disk.
    """

    engine: StorageEngine

    def __init__(self, path: str | os.PathLike[str] | bytes, durability: str = "synced") -> None:
        if durability not in DURABILITIES:
            raise ConfigError(f"durability {durability!r} is not one of {', '.join(DURABILITIES)}")
        self.path = os.fsdecode(path)
        self.durability = durability
        self._pid = os.getpid()
        self.clean = self.at_home = False
        self._lock: FileIO | None = None
        self._guard: Guard | None = None
        if durability == "memory":
            self.engine = MemoryEngine()
            return
        if not self.path or "\0" in self.path:
            raise ConfigError(f"{self.path!r} is not the path of a directory")
        _prepare(self.path)
        self._data_path = os.path.join(os.path.abspath(self.path), _DATA)
        self._lock, stopped_as, lock_as_left = _take_lock(self.path)
        try:
            found = _describe(self._data_path)
            _refuse_lost(self._data_path, stopped_as)
            guard = self._guard = Guard(self._data_path)
            if found != stopped_as:  # it was copied, restored, or not stopped: its end may be missing, or anything within it
                refuse_damaged(self._data_path)
            engine = LmdbEngine(self.path, durability != "relaxed", check=guard.check)
            self.engine = WriteBuffer(engine, check=guard.check) if durability == "buffered" else engine
            try:
                marked, home = self._check_in()
                self.clean = marked and found == stopped_as
                self.at_home = home is not None and home == self._identity() + lock_as_left
                _sync(self.path)
                _write_lock(self._lock, f"pid {self._pid}")  # only now: it is on disk, and must not be gone another time
            except BaseException:
                self.engine.close()
                raise
        except OSError as error:
            self._let_go(self._lock)
            raise StorageFailed(f"cannot open {self.path}: {error}") from error
        except BaseException:
            self._let_go(self._lock)
            raise

    @property
    def closed(self) -> bool:
        """Whether `close` has let go of the directory."""
        return self._lock is None or self._lock.closed

    def _let_go(self, lock: FileIO) -> None:
        if self._guard is not None:
            self._guard.close()
        _unlock(lock)

    def _check_in(self) -> tuple[bool, bytes | None]:
        """Check the format, consume the clean-stop marker and the home; whether the marker named this file, and the home."""
        engine = self.engine
        found = engine.read_meta(META_FORMAT)
        marker, home = engine.read_meta(META_CLEAN_STOP), engine.read_meta(META_HOME)
        group = Group(0, synced=True)
        if found is None:
            if engine.scan("objects", b"", None, 1):
                raise ConfigError(f"{self.path} holds rows but no format number; it is no data directory of dynamo")
            group.meta[META_FORMAT] = b"%d" % FORMAT
        elif found != b"%d" % FORMAT:
            raise ConfigError(
                f"{self.path} has format {found.decode('ascii', 'replace')}, this dynamo reads format {FORMAT}; "
                "start the version that wrote it, or give another directory"
            )
        if marker is not None:
            group.meta[META_CLEAN_STOP] = None
        if home is not None:
            group.meta[META_HOME] = None
        if group.meta:
            engine.commit(group)
            engine.refresh()
        return marker is not None and marker == self._identity(), home

    def home(self) -> dict[bytes, bytes | None]:
        """The row of the meta table that makes this directory the `at_home` of a store which is cut off from now on; to be committed with its lease.
        Nothing where a crash may take back what was acknowledged. Raises StorageFailed."""
        if self.durability != "synced" or self._lock is None:
            return {}
        try:
            self._touch_lock()
            os.fsync(self._lock.fileno())
            return {META_HOME: self._identity() + _lock_seen(self._lock)}
        except OSError as error:
            raise StorageFailed(f"cannot use {self.path}: {error}") from error

    def leave_home(self) -> None:
        """From here on a store that is cut off will not have been `at_home`."""
        if self._lock is not None:
            with suppress(OSError):  # a disk that is gone takes the home along
                self._touch_lock()
                os.fsync(self._lock.fileno())

    def _touch_lock(self) -> None:
        """Give LOCK another change time. That needs no room on the disk, and nobody can set it back."""
        assert self._lock is not None
        os.fchmod(self._lock.fileno(), 0o600)

    def check(self) -> None:
        """Raises StorageFailed where the data file is no longer the one at its path."""
        if self._guard is not None:
            self._guard.check()

    def _identity(self) -> bytes:
        status = os.stat(self._data_path)
        return _IDENTITY.pack(status.st_dev, status.st_ino)

    def close(self, clean: bool) -> None:
        """Close the engine and let go of the directory. `clean`: nothing is unfinished, so leave the clean-stop marker.

        The commit thread is closed before. What a write buffer holds is written, with the marker or without. An error of
        the last commit is raised after everything is closed: the stop is then not clean. So is StorageFailed where the data file is no longer at its
        path. In a child of the process that opened it, nothing happens.
        """
        if os.getpid() != self._pid:
            return
        lock = self._lock
        if lock is None or lock.closed:
            self.engine.close()
            return
        try:
            try:
                self.check()
                if not clean:
                    self.leave_home()
                else:
                    self.engine.commit(Group(0, meta={META_CLEAN_STOP: self._identity()}, synced=True))
            finally:
                self.engine.close()
            if clean:
                # Synced before its change time is noted: one that a power cut takes back would be a false alarm.
                _sync(self._data_path)
                _write_lock(lock, _describe(self._data_path))
                os.fsync(lock.fileno())
        except OSError as error:
            raise StorageFailed(f"cannot leave {self.path} in order: {error}") from error
        finally:
            self.engine.close()  # again, for an exception that came before it was: nobody else may come in while it is open
            self._let_go(lock)


def _describe(data_path: str) -> str:
    """How the data file looks from outside: where it is and when it was last changed. "absent" if it is."""
    try:
        status = os.stat(data_path)
    except FileNotFoundError:
        return "absent"
    return f"stopped {status.st_dev} {status.st_ino} {status.st_ctime_ns}"


def _prepare(path: str) -> None:
    """Make the directory if it is absent. Raises ConfigError if it cannot be one of ours."""
    missing, parents = path, []
    try:
        while not os.path.lexists(missing):
            missing = os.path.dirname(missing.rstrip("/")) or "."
            parents.append(missing)
        os.makedirs(path, mode=0o700, exist_ok=True)
        for parent in parents:
            _sync(parent)
        names = set(os.listdir(path))
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"{path} is not a directory; give a directory for the data") from error
    except OSError as error:
        raise ConfigError(f"cannot use {path} as data directory: {error.strerror}; check its owner and permissions") from error
    foreign = sorted(names - _OURS - _TOLERATED)
    if _DATA not in names and foreign:
        raise ConfigError(f"{path} is not empty ({foreign[0]!r} is there) and holds no data of dynamo; give a new or empty directory")


def _take_lock(path: str) -> tuple[FileIO, str, bytes]:
    """Lock the directory for this process; the lock's file, what LOCK said, and how it looked. Raises ConfigError if in use."""
    lock_path = os.path.join(path, _LOCK)
    try:
        lock = FileIO(lock_path, "r+", opener=_open_lock)
    except OSError as error:
        raise ConfigError(f"cannot write {lock_path}: {error.strerror}; check the owner and permissions of {path}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        said, seen = _read_lock(lock), _lock_seen(lock)
        _write_lock(lock, f"pid {os.getpid()}" if _tells_of_a_store(said) else f"pid {os.getpid()}{_OPENING}")
    except BlockingIOError as error:
        said, here = _read_lock(lock), any(os.path.sameopenfile(lock.fileno(), held.fileno()) for held in list(_held) if not held.closed)
        lock.close()
        if here:  # not by what LOCK says: in another container there is a process with the same id
            raise ConfigError(f"{path} is in use in this process already; share what has it open, or close that first") from error
        holder = f" by {said.removesuffix(_OPENING)}" if said.startswith("pid ") else ""
        raise ConfigError(f"{path} is in use{holder}; stop that process or give another directory") from error
    except OSError as error:
        lock.close()
        raise ConfigError(f"cannot lock {lock_path}: {error.strerror}; the directory needs a file system with locks and free space") from error
    except BaseException:
        lock.close()
        raise
    _held.add(lock)
    return lock, said, seen


def _open_lock(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT, 0o600)


def _lock_seen(lock: FileIO) -> bytes:
    status = os.fstat(lock.fileno())
    return _LOCK_SEEN.pack(status.st_dev, status.st_ino, status.st_ctime_ns)


def _tells_of_a_store(said: str) -> bool:
    """Whether there was one when LOCK was written."""
    return bool(said) and not said.endswith(_OPENING)


def _refuse_lost(data_path: str, said: str) -> None:
    """Raises ConfigError where LOCK tells of a store and the data file is absent or empty: a new one in its place would be another cluster."""
    try:
        lost = not os.stat(data_path).st_size
    except FileNotFoundError:
        lost = True
    if lost and _tells_of_a_store(said):
        directory = os.path.dirname(data_path)
        raise ConfigError(f"{data_path} is absent or empty, and {_LOCK} says that there was a store; restore it, or remove {directory} to begin anew")


def _unlock(lock: FileIO) -> None:
    lock.close()


def _after_fork_in_child() -> None:
    for lock in list(_held):
        lock.close()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _read_lock(lock: FileIO) -> str:
    return os.pread(lock.fileno(), 200, 0).decode("ascii", "replace").strip()


def _write_lock(lock: FileIO, text: str) -> None:
    os.ftruncate(lock.fileno(), 0)
    os.pwrite(lock.fileno(), text.encode() + b"\n", 0)


def _sync(path: str) -> None:
    """Make a file durable, or the names in a directory: a file is only as safe as the entry that leads to it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
