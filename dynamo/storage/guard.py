"""The data file by what it is, not by its name: locked as long as it is open, and looked for at its path before a write is acknowledged.

A path is no promise. Somebody may delete the directory, rename it, put a copy in its place or turn the link that leads there, and a program that has
the file open would go on writing into what nobody can find again. So each commit looks whether device and inode at the path are still those of the file
that is open (`check`, about a microsecond), once before it writes and once before it is acknowledged.

And a name is no lock. LOCK may be removed and made anew, and a data file may have a second name in another directory. So the file itself is locked, with
flock on a descriptor of its own: LMDB locks nothing but lock.mdb, and no other descriptor's end lets go of this lock. A child that was forked has a copy
of the descriptor, and closes it, so that it does not hold the file when its parent has ended.
"""

from __future__ import annotations

import fcntl
import os
from io import FileIO
from weakref import WeakSet

from dynamo.errors import ConfigError, StorageFailed

# Files and not descriptors: one that an exception drops is closed.
_held: WeakSet[FileIO] = WeakSet()


class Guard:
    """Of the data file at `path`, which is made, empty, if it is absent. `path` is absolute, or `check` would follow the working directory.

    Raises ConfigError where another process, or this one under another name, has it open, and where it cannot be written.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._file = file = FileIO(path, "r+", opener=_open)
        except OSError as error:
            raise ConfigError(f"cannot open {path}: {error.strerror}; check its owner and permissions") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(file.fileno())
        except BlockingIOError as error:
            here = any(os.path.sameopenfile(file.fileno(), held.fileno()) for held in list(_held) if not held.closed)
            file.close()
            who = "in this process already, by this name or another" if here else "by another process, which may know it by another name"
            raise ConfigError(f"{path} is in use {who}; stop that, or give another directory") from error
        except OSError as error:
            file.close()
            raise ConfigError(f"cannot lock {path}: {error.strerror}; the directory needs a file system with locks") from error
        except BaseException:
            file.close()
            raise
        _held.add(file)
        self._device, self._inode, self._size = status.st_dev, status.st_ino, status.st_size

    def check(self) -> None:
        """Raises StorageFailed unless the file that is open is still the one at its path, and no shorter than it was."""
        size = self._size  # before the look: another thread may make the file larger, and note that, during it
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            raise StorageFailed(f"{self.path} was removed or renamed while it was open: nothing more is written; {self._advice()}") from None
        except OSError as error:
            raise StorageFailed(f"{self.path} cannot be seen any more: {error.strerror}; nothing more is written until it can") from None
        if status.st_ino != self._inode or status.st_dev != self._device:
            raise StorageFailed(f"{self.path} is another file now than the one that is open: nothing more is written; {self._advice()}")
        if status.st_size < size:
            raise StorageFailed(f"{self.path} was cut off while it was open: nothing more is written; stop, and restore it")
        self._size = status.st_size

    def _advice(self) -> str:
        """What is left to be done, by whether the file still has a name."""
        if not self._file.closed and os.fstat(self._file.fileno()).st_nlink:
            return "put it back where it was, and writes go on"
        return "what was written to it is lost when this process ends; read out what is needed, and stop"

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT, 0o600)


def _after_fork_in_child() -> None:
    for file in list(_held):
        file.close()
    _held.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
