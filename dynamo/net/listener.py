"""Accepting connections: last in a step, many at a time, and with a pause when the process runs out of descriptors."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable

from dynamo.net.polling import READ, Poller
from dynamo.net.timers import Timers

ACCEPTS_PER_STEP = 64
PAUSE_S = 0.1
_EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


class Listener:
    """A listening socket in the reactor's poll set."""

    def __init__(self, sock: socket.socket, poll_set: Poller, timers: Timers) -> None:
        self.sock = sock
        self.descriptor = sock.fileno()
        self.pauses = 0
        self._poll_set = poll_set
        self._timers = timers
        self._closed = False
        self._paused = False
        poll_set.register(self.descriptor, READ)

    def accept(self, now: float) -> Iterable[socket.socket]:
        """The sockets of those who called. Without a free descriptor the caller waits in the kernel, and we do not spin on it."""
        for _ in range(ACCEPTS_PER_STEP):
            try:
                sock, _ = self.sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    continue  # that one caller has given up meanwhile
                self.pauses += 1
                self._paused = True
                self._poll_set.unregister(self.descriptor)
                self._timers.at(now + PAUSE_S, self._resume)
                return
            yield sock

    def _resume(self, now: float) -> None:
        if not self._closed:
            self._paused = False
            self._poll_set.register(self.descriptor, READ)

    def close(self) -> None:
        """Stop listening. Callers are refused from now on."""
        if not self._closed:
            self._closed = True
            if not self._paused:
                self._poll_set.unregister(self.descriptor)
            self.sock.close()
