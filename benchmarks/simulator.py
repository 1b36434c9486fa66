"""How fast the simulator is: a busy cluster against real time, and whole seeds.

    python benchmarks/simulator.py [--seeds N] [--runs N]

One processor; times are processor time. The busy cluster is five nodes without faults under about a hundred requests a second, half reads and half
read-modify-writes. A seed is a whole run of `dynamo simulate`; how long one takes differs by ten times from seed to seed.
"""

from __future__ import annotations

import argparse
import gc
from statistics import median
from time import process_time

from dynamo._core import CORE
from dynamo.testing import Faults, run
from dynamo.testing.runner import build
from dynamo.testing.workloads import Mix, Worker

VIRTUAL_S = 60.0


def busy_cluster() -> tuple[float, float, float]:
    """(times real time, requests a virtual second, microseconds a message)."""
    cluster = build(1, faults=Faults.none(), nodes=5)
    mix = Mix(cluster.world.stream("mix"))
    mix.weights, mix.keys, mix.hot, mix.buckets, mix.last_write_wins = {"read": 1.0, "count": 1.0}, 8, 0.0, [b"default"], 0.0
    mix.think_s = 1.5 * len(cluster.clients) / 100
    for client in cluster.clients.values():
        Worker(client, mix).work(10**6)
    gc.collect()
    gc.disable()  # as `run` does
    began = process_time()
    cluster.world.run(VIRTUAL_S)
    took = process_time() - began
    gc.enable()
    return VIRTUAL_S / took, (cluster.reads + cluster.acknowledged) / VIRTUAL_S, took / cluster.world.delivered * 1e6


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, default=20, choices=range(1, 1000), metavar="N")
    options.add_argument("--runs", type=int, default=5, choices=range(1, 1000), metavar="N")
    asked = options.parse_args()
    print(f"{CORE} core")  # all runs in this process
    runs = [busy_cluster() for _ in range(asked.runs)]
    times = sorted(run[0] for run in runs)
    print(f"busy cluster: {median(times):.0f} times as fast as real time ({times[0]:.0f}-{times[-1]:.0f}), {runs[0][1]:.0f} requests a second, "
          f"{median(run[2] for run in runs):.0f} us a message")  # fmt: skip
    seeds = []
    for seed in range(asked.seeds):
        began = process_time()
        report = run(seed)
        if report.violations:
            raise SystemExit(f"seed {seed} shows a violation: {report.violations[0]}")
        seeds.append((process_time() - began, report.virtual_s, report.delivered))
    took, virtual, delivered = (sum(column) for column in zip(*seeds, strict=True))
    print(f"{len(seeds)} seeds: {took / len(seeds):.2f} s each (median {median(seed[0] for seed in seeds):.2f}), "
          f"{virtual / took:.0f} times as fast as real time, {took / delivered * 1e6:.0f} us a message")  # fmt: skip


if __name__ == "__main__":
    main()
