"""A cluster of real processes on this machine: `dynamo serve` children that can be killed, stopped and restarted.

For demonstrations and for tests that mean it: real sockets, real disks, real SIGKILL. No child outlives its parent, however that ends,
because each watches a pipe from it (`serve --stop-on-eof`). For many histories a second without sockets there is the simulator beside
this module.

    with ServedCluster(directory, nodes=3) as cluster:
        client = dynamo.Client(cluster.addresses)
        cluster.nodes[1].kill()
        cluster.nodes[1].start()      # the same data directory and address, no --join
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from types import TracebackType

import dynamo
from dynamo.errors import DynamoError

_Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)
READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0

PYTHON = (sys.executable, "-P")  # without -P, `-m` would look in the working directory first, and a checkout lies there more often than not


def child_environment() -> dict[str, str]:
    """The environment of a child that is to run this very package: the one that this process has imported, wherever either was started."""
    package_root = str(Path(dynamo.__file__).absolute().parent.parent)
    search_path = os.pathsep.join(filter(None, (package_root, *os.environ.get("PYTHONPATH", "").split(os.pathsep))))
    return os.environ | {"PYTHONPATH": search_path, "PYTHONSAFEPATH": "1"}


class NodeDied(DynamoError):
    """A child ended, or was not ready in time. The text has the end of its log."""


class WrongCore(DynamoError):
    """A child runs on another core than what is measured or tried with it is about."""


class ServedNode:
    """One child. `data` and, after the first start, `address` stay the same over restarts; what it says goes to a log beside the data. `address`: where
    it listens, port 0 for a free one; `prefix`: words before its command, such as ip netns exec NAME, of a program that becomes what it runs."""

    def __init__(self, name: str, data: Path, flags: Sequence[str] = (), *, address: str = "127.0.0.1:0", prefix: Sequence[str] = ()) -> None:
        self.name = name
        self.data = data
        self.address = address
        self.cluster_id = ""
        self.ready_line = ""
        self._flags = tuple(flags)
        self._prefix = tuple(prefix)
        self._log = data.with_name(f"{data.name}.log")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The child's process id. It must have been started."""
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, join: Sequence[str] = ()) -> None:
        """Start the child and wait until it is ready. Raises NodeDied."""
        try:
            self.launch(join)
            self.wait_ready()
        except BaseException:
            self.kill()
            raise

    def launch(self, join: Sequence[str] = ()) -> None:
        """Start the child; `wait_ready` waits for it."""
        assert not self.running, f"{self.name} is running"
        command = [*self._prefix, *PYTHON, "-m", "dynamo", "serve", "--data", str(self.data), "--name", self.name, "--listen", self.address]
        command += [word for address in join for word in ("--join", address)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--stop-on-eof", *self._flags],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=child_environment(),
                start_new_session=True,  # Ctrl-C at a terminal is for the parent, which ends the children in order
            )

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait for the child's ready line. Raises NodeDied when it ends first or takes longer."""
        assert self._process is not None and self._process.stdout is not None
        line, deadline, out = b"", monotonic() + timeout_s, self._process.stdout.fileno()
        while not line.endswith(b"\n"):
            with _Selector() as selector:  # select(2) takes no descriptor above 1,023
                selector.register(out, selectors.EVENT_READ)
                readable = selector.select(max(0.0, deadline - monotonic()))
            piece = os.read(out, 4096) if readable else b""
            if not piece:
                self.kill()
                raise NodeDied(f"node {self.name} did not become ready; the end of {self._log}:\n{self.log_tail()}")
            line += piece
        self.ready_line = line.decode().rstrip()
        said = dict(word.split("=", 1) for word in self.ready_line.split()[1:])
        self.address, self.cluster_id = said["address"], said["cluster"]

    def check_core(self, core: str) -> None:
        """Raises WrongCore unless the node says that it runs on that core, `compiled` or `pure`."""
        with dynamo.Client(self.address) as client:
            says = client.stats().get("core")
        if says != core:
            raise WrongCore(f"node {self.name} at {self.address} runs on the {says} core and not on the {core} one: {sys.executable}, {dynamo.__file__}")

    def signal(self, number: int) -> None:
        """Send the child a signal: SIGSTOP makes it a node that is reachable and silent, SIGCONT ends that."""
        if self.running:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, as a crash does it, and wait for the end."""
        self.signal(signal.SIGKILL)
        self._reap(None)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """SIGTERM, wait for the orderly end, SIGKILL after the time; returns the exit code (0 when orderly)."""
        try:
            self.signal(signal.SIGTERM)
            return self._reap(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL
        except BaseException:  # interrupted: nobody will wait for it any more
            self.kill()
            raise

    def log_tail(self, bytes_max: int = 2000) -> str:
        """The end of what the child said on stderr."""
        return self._log.read_bytes()[-bytes_max:].decode(errors="replace") if self._log.exists() else ""

    def _reap(self, timeout_s: float | None) -> int:
        if self._process is None:
            return 0
        code = self._process.wait(timeout_s)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        return code


class ServedCluster:
    """Several nodes, the first one founding the cluster and the others joining it. Node `i` is named n<i+1> and keeps its data in a
    directory of that name."""

    def __init__(self, directory: str | os.PathLike[str], nodes: int = 3, flags: Sequence[str] = ()) -> None:
        assert nodes >= 1
        self.directory = Path(directory)
        self.nodes = [ServedNode(f"n{i}", self.directory / f"n{i}", flags) for i in range(1, nodes + 1)]

    @property
    def addresses(self) -> list[str]:
        return [node.address for node in self.nodes]

    def check_core(self, core: str) -> None:
        """Raises WrongCore unless every node that runs says that it runs on that core, `compiled` or `pure`."""
        for node in self.nodes:
            if node.running:
                node.check_core(core)

    def start(self) -> None:
        """Start all nodes, but the first only if it does not run yet, and wait until they are ready. Raises NodeDied."""
        first, *others = self.nodes
        self.directory.mkdir(parents=True, exist_ok=True)
        if not first.running:
            first.start()
        for node in others:
            node.launch(join=[first.address])
        deadline = monotonic() + READY_TIMEOUT_S
        for node in others:
            node.wait_ready(deadline - monotonic())

    def stop(self) -> None:
        """End all nodes: all are asked first, so that they drain side by side, and have the time of one. Interrupted, it kills them."""
        try:
            for node in self.nodes:
                node.signal(signal.SIGCONT)
                node.signal(signal.SIGTERM)
            deadline = monotonic() + STOP_TIMEOUT_S
            for node in self.nodes:
                node.stop(max(0.0, deadline - monotonic()))
        except BaseException:
            for node in self.nodes:
                node.kill()
            raise

    def __enter__(self) -> ServedCluster:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()
