"""Shopping carts, the paper's own example, with real purchases: nothing that was acknowledged may be missing in the end.

    python examples/cart.py                       # three nodes, 32 clients, one node killed half-way and restarted

It starts a cluster on this machine and replays the 69,659 purchases of CDNOW's customers. Each is added to its customer's cart by whichever client
comes next, so purchases of one customer meet: two clients read the same cart, both add to it, both writes succeed, and the cart has two values,
*siblings*. The next one to read it sees both and writes their union. Half-way one node gets SIGKILL and comes back with the same data. In the end
every cart is read through every node and compared with the file.

stdout gets one line of figures; exit code 0 means that every purchase was found through every node, and nothing else was.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import dynamo
from dynamo.testing.cluster import ServedCluster

PURCHASES = Path(__file__).parent / "data" / "CDNOW_master.txt"
Cart = list[list[Any]]  # [id, date, number of CDs, dollars] of each purchase, sorted by id


class Purchase(NamedTuple):
    """One line of the file; its id is the line's number."""

    id: int
    customer: str
    date: str
    cds: int
    dollars: float


class CartCodec:
    """A cart as stored: the store keeps bytes, and this is all it takes to keep something else in it."""

    def encode(self, cart: Cart) -> bytes:
        return json.dumps(cart, separators=(",", ":")).encode()

    def decode(self, data: bytes) -> Cart:
        return json.loads(data)


def union(carts: list[Cart]) -> Cart:
    """The cart that holds whatever any of the carts holds. "Add to cart" is never forgotten (the paper, section 2.3)."""
    return [line for _, line in sorted({line[0]: line for cart in carts for line in cart}.items())]


def add(carts: dynamo.client.Bucket, purchase: Purchase, tally: Tally) -> None:
    """Add one purchase to its customer's cart, however often it takes. Adding twice is the same as adding once: the id tells."""
    line = [purchase.id, purchase.date, purchase.cds, purchase.dollars]
    seen = 1

    def with_purchase(siblings: list[Cart]) -> Cart:
        nonlocal seen
        seen = len(siblings)
        return union([*siblings, [line]])

    while True:
        try:
            carts.update(purchase.customer, with_purchase)
        except dynamo.DynamoError:
            tally.add(failed=1)
            time.sleep(0.05)
        else:
            tally.add(added=1, siblings=max(0, seen - 1), merged=int(seen > 1))
            return


def read(carts: dynamo.client.Bucket, customer: str) -> Cart:
    """The customer's cart, however often it takes."""
    while True:
        try:
            return union(list(carts.get(customer).values))
        except dynamo.DynamoError:
            time.sleep(0.05)


# --- clients: processes of a few threads each, which share one dynamo.Client ----------------------------------------------------------


class Tally:
    """Counts that all processes add to."""

    NAMES = ("added", "failed", "siblings", "merged")

    def __init__(self, context: Any) -> None:
        self._counts = context.Array("q", len(self.NAMES))

    def add(self, **counts: int) -> None:
        with self._counts.get_lock():
            for name, count in counts.items():
                self._counts[self.NAMES.index(name)] += count

    def __getitem__(self, name: str) -> int:
        return int(self._counts[self.NAMES.index(name)])


_tally: Tally  # of this process's workers; a shared array can only be handed over when the process starts


def _start_worker(tally: Tally) -> None:
    global _tally
    _tally = tally


class Share(NamedTuple):
    """What one process does: the clients whose numbers are `first`, `first` + `step`, ... below `clients`."""

    addresses: list[str]
    file: Path
    limit: int | None
    first: int
    step: int
    clients: int

    @property
    def numbers(self) -> range:
        return range(self.first, self.clients, self.step)


def shop(share: Share) -> None:
    """Add a share of the purchases. Client c of C adds lines c, c+C, c+2C, ...: so neighbours, often of one customer, go to different clients."""
    purchases = read_purchases(share.file, share.limit)
    with dynamo.Client(share.addresses) as client, ThreadPoolExecutor(len(share.numbers)) as pool:
        carts = client.bucket("carts", codec=CartCodec())

        def replay(number: int) -> None:
            for purchase in purchases[number :: share.clients]:
                add(carts, purchase, _tally)

        list(pool.map(replay, share.numbers))


def check(share: Share) -> tuple[int, int]:
    """Read a share of the carts through every node. Returns (purchases found through each of them, purchases found that nobody made)."""
    expected: dict[str, set[int]] = defaultdict(set)
    for purchase in read_purchases(share.file, share.limit):
        expected[purchase.customer].add(purchase.id)
    customers = sorted(expected)[share.first :: share.step]
    found_everywhere = {customer: set(expected[customer]) for customer in customers}
    unknown = 0
    for address in share.addresses:
        with dynamo.Client(address) as client, ThreadPoolExecutor(len(share.numbers)) as pool:
            carts = client.bucket("carts", codec=CartCodec())
            for customer, cart in zip(customers, pool.map(partial(read, carts), customers), strict=True):
                found = {line[0] for line in cart}
                found_everywhere[customer] &= found
                unknown += len(found - expected[customer])
    return sum(map(len, found_everywhere.values())), unknown


# --- the run --------------------------------------------------------------------------------------------------------------------------


def read_purchases(file: Path, limit: int | None) -> list[Purchase]:
    """The purchases of the file, which has a line of headings."""
    purchases = []
    for number, line in enumerate(file.read_text("ascii").splitlines()[1:], 2):
        customer, date, cds, dollars = line.split()
        purchases.append(Purchase(number, customer, date, int(cds), float(dollars)))
    return purchases[:limit]


def kill_and_restart(cluster: ServedCluster, added: Callable[[], int], expected: int, done: Callable[[], bool]) -> None:
    """SIGKILL the last node when half of the purchases are in, and start it again when a twentieth more is, or after five seconds."""
    victim = cluster.nodes[-1]
    _wait(lambda: added() >= expected / 2 or done())
    victim.kill()
    say(f"{added():,} purchases added: node {victim.name} killed")
    deadline = time.monotonic() + 5
    _wait(lambda: added() >= expected * 0.55 or time.monotonic() > deadline)
    victim.start()
    say(f"{added():,} purchases added: node {victim.name} is back")


def main() -> int:
    options = parse_options()
    purchases = read_purchases(options.data, options.limit)
    processes = min(options.clients, 4)  # the threads of one process share a core
    spawn = multiprocessing.get_context("spawn")
    tally = Tally(spawn)
    with (
        tempfile.TemporaryDirectory(prefix="dynamo-cart-") as directory,
        ServedCluster(directory, options.nodes, ["--durability", options.durability]) as cluster,
        ProcessPoolExecutor(processes, spawn, _start_worker, (tally,)) as pool,
        progress(lambda: tally["added"], len(purchases)),
    ):
        say(f"{len(purchases):,} purchases, {options.nodes} nodes, {options.clients} clients")
        began = time.monotonic()
        shares = [Share(cluster.addresses, options.data, options.limit, i, processes, options.clients) for i in range(processes)]
        shopping = [pool.submit(shop, share) for share in shares]
        if options.kill == "sigkill":
            kill_and_restart(cluster, lambda: tally["added"], len(purchases), lambda: any(map(Future.done, shopping)))
        for each in shopping:
            each.result()
        took_s = time.monotonic() - began
        say(f"all added in {took_s:.1f} s; reading every cart through every node")
        checked = [each.result() for each in [pool.submit(check, share) for share in shares]]
    found, unknown = sum(found for found, _ in checked), sum(unknown for _, unknown in checked)
    figures = {
        "carts": len({purchase.customer for purchase in purchases}),
        "expected": len(purchases),
        "found": found,
        "unknown": unknown,
        "siblings": tally["siblings"],
        "merged": tally["merged"],
        "failed": tally["failed"],
        "per_second": round(len(purchases) / took_s),
    }
    print(*(f"{name}={figure}" for name, figure in figures.items()))
    return 0 if found == len(purchases) and unknown == 0 else 1


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Replay purchases as shopping carts, kill a node, and count what is there in the end.")
    parser.add_argument("--data", type=Path, default=PURCHASES, help="file of purchases (default: %(default)s)")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--kill", choices=("sigkill", "none"), default="sigkill", help="what happens to one node half-way")
    parser.add_argument("--limit", type=int, help="replay the first so many purchases only")
    parser.add_argument("--clients", type=int, default=32, help="concurrent clients")
    parser.add_argument("--durability", choices=("synced", "relaxed"), default="synced", help="what an acknowledgement means")
    return parser.parse_args()


@contextmanager
def progress(added: Callable[[], int], expected: int) -> Iterator[None]:
    """Say every few seconds how far it is."""
    over = threading.Event()

    def report() -> None:
        while not over.wait(5):
            if added() < expected:
                say(f"{added():,} of {expected:,}")

    thread = threading.Thread(target=report)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _wait(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
