"""Machines in miniature: network namespaces of this kernel, joined by a bridge in one more, with links that can be cut.

    with Network(("n1", "n2", "clients")) as network:
        with network.inside("clients"):        # this thread, the threads it starts and their sockets
            ...
        network.cut("n1", "n2")                # both ways; one_way=True: what n1 sends to n2 is lost
        network.heal()

Needs root, `ip` and `iptables`. Nothing of the machine's own network is touched, and nothing is left behind.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

_CLONE_NEWNET = 0x40000000
_HUB = "hub"


class Network:
    """Namespaces by a name each, at 10.77.0.1, .2, ... in their order. Raises CalledProcessError or OSError where the machine does not allow it."""

    def __init__(self, names: Sequence[str]) -> None:
        self.addresses = {name: f"10.77.0.{number}" for number, name in enumerate(names, 1)}
        self._made: list[str] = []

    def namespace(self, name: str) -> str:
        """As the machine knows it."""
        return f"dynamo-{os.getpid()}-{name}"

    def prefix(self, name: str) -> list[str]:
        """Words before a command that is to run there."""
        return ["ip", "netns", "exec", self.namespace(name)]

    def __enter__(self) -> Network:
        try:
            for name in (_HUB, *self.addresses):
                _run("ip", "netns", "add", self.namespace(name))
                self._made.append(name)
                self._ip(name, "link", "set", "lo", "up")
            self._ip(_HUB, "link", "add", "bridge", "type", "bridge")
            self._ip(_HUB, "link", "set", "bridge", "up")
            for name, address in self.addresses.items():
                self._ip(_HUB, "link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", self.namespace(name))
                self._ip(_HUB, "link", "set", f"to-{name}", "master", "bridge", "up")
                self._ip(name, "address", "add", f"{address}/24", "dev", "eth0")
                self._ip(name, "link", "set", "eth0", "up")
                self._filter(name, "-F", "INPUT")
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._remove()

    def cut(self, sender: str, receiver: str, *, one_way: bool = False) -> None:
        """Lose what one sends to the other, without a word to either."""
        self._filter(receiver, "-A", "INPUT", "-s", self.addresses[sender], "-j", "DROP")
        if not one_way:
            self.cut(receiver, sender, one_way=True)

    def isolate(self, name: str) -> None:
        """Pull the plug out of the bridge."""
        self._ip(_HUB, "link", "set", f"to-{name}", "down")

    def heal(self) -> None:
        """Undo all cuts."""
        for name in self.addresses:
            self._filter(name, "-F", "INPUT")
            self._ip(_HUB, "link", "set", f"to-{name}", "up")

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """This thread is in that namespace, and so are threads and processes that it starts meanwhile."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            there = os.open(f"/run/netns/{self.namespace(name)}", os.O_RDONLY)
            try:
                _enter(there)
            finally:
                os.close(there)
            try:
                yield
            finally:
                _enter(before)
        finally:
            os.close(before)

    def _ip(self, name: str, *words: str) -> None:
        _run("ip", "-n", self.namespace(name), *words)

    def _filter(self, name: str, *words: str) -> None:
        _run(*self.prefix(name), "iptables", "-w", *words)

    def _remove(self) -> None:
        while self._made:  # an interface goes with either of its ends
            subprocess.run(["ip", "netns", "delete", self.namespace(self._made.pop())], capture_output=True, timeout=10, check=False)


def _run(*words: str) -> None:
    subprocess.run(words, capture_output=True, text=True, timeout=10, check=True)


def _enter(namespace: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "cannot enter the network namespace")
