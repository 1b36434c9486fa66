"""How this store compares with what its users would pick instead, and with itself: ratios, taken in pairs that alternate.

    python benchmarks/peers.py [--pairs 5] [--seconds 3] [--only NAME]...       --quick: in about a minute; --smoke: only whether it runs
    python benchmarks/peers.py -o json                                          {"rows": [{"name", "ratio", "low", "high"}, ...]}

Against Redis, memcached and etcd: one server of theirs and three nodes with N=3 R=W=2, `relaxed`; 50 connections, 13-byte keys out of 100,000, values of
100 bytes; the load generator of `dynamo bench` drives both, in turns, and the servers whose turn it is not lie idle. Ratios of throughput: more is better
for us. Redis has no persistence; memcached has its default of four threads, and more memory than the keys take; etcd is one node on a disk that it does
not wait for (`--unsafe-no-fsync`, as `relaxed` does not), asked at its JSON gateway, where h11 and JSON are much of what the generator does. It has no
rows with 16 requests in flight: HTTP would have to answer them in turn.
`embedded_get_vs_lmdb` (the value of a get, to a transaction for each get of py-lmdb) and `set_many_vs_putmulti` are ratios of time to py-lmdb
without anything around it: less is better. A ratio is the median of
its pairs, `low` and `high` are the least and the greatest. What is not installed is left out, and said. `--quick` leaves memcached and etcd out, too,
which would double its time; `--quick --only get_x1_vs_etcd` has the rows it names.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from random import Random
from time import monotonic, perf_counter, sleep

from contests import Row, Section, Side, Size, Wanted, cluster, command_line, contest, measure_all, skipped
from embedded import VALUE, beside_lmdb, row_bytes

import dynamo
from dynamo._core import CORE
from dynamo.bench.workloads import key_of

SERVER_START_S = 10.0
BATCH = 1000  # keys that are set at once


@dataclass(frozen=True)
class Peer:
    """A server that others use. `command`: what starts it on a port of 127.0.0.1, with a directory for its data."""

    name: str
    package: str  # of Debian
    command: Callable[[str, str], Sequence[str]]
    pipelines: tuple[int, ...] = (1, 16)  # requests in flight on a connection
    needs: tuple[str, ...] = ()  # modules that the generator needs to talk to it

    @property
    def protocol(self) -> str:
        """Its name, as the generator and rows have it."""
        return self.name.lower()

    def missing(self) -> str:
        """What is not installed; empty if it can run."""
        program = self.command("", "")[0]
        if shutil.which(program) is None:
            return f"{program} is not installed; Debian has it in {self.package}"
        return "".join(f"{module} is not installed" for module in self.needs if find_spec(module) is None)


def _redis(port: str, directory: str) -> Sequence[str]:
    return ("redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", directory)


def _memcached(port: str, directory: str) -> Sequence[str]:
    return ("memcached", "-l", "127.0.0.1", "-p", port, "-U", "0", "-m", "1024", "-u", "root")  # -u: heeded only where root starts it


def _etcd(port: str, directory: str) -> Sequence[str]:
    clients, peers = f"http://127.0.0.1:{port}", "http://127.0.0.1:0"  # of peers it has none
    return (
        "etcd", "--data-dir", directory, "--unsafe-no-fsync", "--logger", "zap", "--log-level", "error",
        "--listen-client-urls", clients, "--advertise-client-urls", clients,
        "--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers, "--initial-cluster", f"default={peers}",
    )  # fmt: skip


PEERS = (
    Peer("Redis", "redis-server", _redis),
    Peer("memcached", "memcached", _memcached),
    Peer("etcd", "etcd-server", _etcd, pipelines=(1,), needs=("h11",)),
)


@contextmanager
def serving(peer: Peer, scratch: Path) -> Iterator[str]:
    """The server on a free port, which ends with the block. Yields its address. Raises RuntimeError where it does not start."""
    directory = scratch / peer.protocol
    directory.mkdir(mode=0o700)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = scratch / f"{peer.protocol}.log"
    with log.open("wb") as said:
        server = subprocess.Popen(peer.command(str(port), str(directory)), stdin=subprocess.DEVNULL, stdout=said, stderr=said)
    try:
        deadline = monotonic() + SERVER_START_S
        while not _answers(port):
            if monotonic() > deadline or server.poll() is not None:
                raise RuntimeError(f"{peer.name} does not start: {log.read_text(errors='replace')[-2000:]}")
            sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def against(peers: Sequence[Peer]) -> Section:
    """The hot path, through sockets: the same three nodes, beside one peer after the other."""

    def measure(size: Size, scratch: Path, wanted: Wanted) -> Iterator[Row]:
        rows = {peer: names for peer in peers if (names := _rows(peer, wanted))}
        for peer in [peer for peer in rows if peer.missing()]:
            skipped(f"against {peer.name}", peer.missing())
            del rows[peer]
        if not rows:
            return
        with cluster(scratch, "relaxed") as nodes:
            ours = Side(nodes.addresses, size)
            for peer, names in rows.items():
                with serving(peer, scratch) as address:
                    theirs = Side((address,), size, peer.protocol)
                    for name, what in names.items():
                        row = contest(name, ours.measure(*what), theirs.measure(*what), size.pairs, "operations a second")
                        took = f"generator at most {ours.generator_cpu:.2f} and {theirs.generator_cpu:.2f} of a processor each"
                        yield replace(row, detail=f"{row.detail}; {took}")
                        ours.generator_cpu = theirs.generator_cpu = 0.0

    return measure


def _rows(peer: Peer, wanted: Wanted) -> dict[str, tuple[str, int]]:
    """Workload and requests in flight of each row that is wanted."""
    names = {f"{verb}_x{pipeline}_vs_{peer.protocol}": (verb, pipeline) for verb in ("get", "put") for pipeline in peer.pipelines}
    return {name: what for name, what in names.items() if wanted(name)}


def against_itself(size: Size, scratch: Path, wanted: Wanted) -> Iterator[Row]:
    """What durability costs, and what the compiled core is worth."""
    if wanted("put_synced_vs_relaxed_x16"):
        with cluster(scratch, "synced") as synced, cluster(scratch, "relaxed") as relaxed:
            ours, theirs = Side(synced.addresses, size).measure("put", 16), Side(relaxed.addresses, size).measure("put", 16)
            yield contest("put_synced_vs_relaxed_x16", ours, theirs, size.pairs, "operations a second")
    if wanted("compiled_vs_pure_x16") and CORE != "compiled":
        skipped("compiled_vs_pure_x16", "this installation has no compiled kernels, or DYNAMO_PURE is set")
    elif wanted("compiled_vs_pure_x16"):
        with cluster(scratch, "memory") as compiled, cluster(scratch, "memory", pure=True) as pure:
            ours, theirs = Side(compiled.addresses, size).measure("A", 16), Side(pure.addresses, size, core="pure").measure("A", 16)
            yield contest("compiled_vs_pure_x16", ours, theirs, size.pairs, "operations a second")


def embedded(size: Size, scratch: Path, wanted: Wanted) -> Iterator[Row]:
    """The embedded store beside bare py-lmdb on the same keys."""
    if not (wanted("embedded_get_vs_lmdb") or wanted("set_many_vs_putmulti")):
        return
    row = bytes(row_bytes(scratch / "one"))
    with beside_lmdb(scratch, size.keys) as both:
        if wanted("embedded_get_vs_lmdb"):
            yield contest("embedded_get_vs_lmdb", lambda: both.store_gets(size.calls), lambda: both.bare_gets(size.calls), size.pairs, "us a get")
        random = Random(1)
        batches = [sorted(map(key_of, random.sample(range(size.keys), BATCH))) for _ in range(size.calls // BATCH)]

        def store_sets() -> float:
            began = perf_counter()
            for batch in batches:
                assert all(isinstance(outcome, dynamo.Context) for outcome in both.store.set_many(dict.fromkeys(batch, VALUE)).values())
            return (perf_counter() - began) / len(batches) * 1e6

        def bare_sets() -> float:
            began = perf_counter()
            for batch in batches:
                with both.bare.begin(write=True, db=both.table) as writing:
                    writing.cursor().putmulti([(key, row) for key in batch])
            return (perf_counter() - began) / len(batches) * 1e6

        if wanted("set_many_vs_putmulti"):
            yield contest("set_many_vs_putmulti", store_sets, bare_sets, size.pairs, "us for 1,000")


def main() -> None:
    asked = command_line(__doc__).parse_args()
    peers = PEERS[:1] if asked.quick and not asked.only else PEERS
    measure_all((against(peers), against_itself, embedded), asked)


if __name__ == "__main__":
    main()
