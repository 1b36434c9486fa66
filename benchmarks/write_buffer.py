"""The paper's Fig. 5: what a write buffer does to the slowest puts, and what it costs and brings beside `relaxed`.

    python benchmarks/write_buffer.py [--pairs 5] [--seconds 8] [--rate 500] [--only NAME]...       --quick: in half a minute
    python benchmarks/write_buffer.py -o json                                                       {"rows": [{"name", "ratio", "low", "high"}, ...]}

Three nodes on this machine, N=3 R=W=2, in durability `synced` and three in `buffered`, under puts of the generator of `dynamo bench`, in turns; the
nodes whose turn it is not lie idle. 100,000 keys, all alike, values of 100 bytes, 50 connections.

`put_p999_synced_vs_buffered`: the 99.9th percentile of latency, synced to buffered, at an open rate that both keep up with; latencies count from when a
put was due. More is better; the paper has 5 at its peak load. `put_p50_...`: likewise. `put_buffered_vs_relaxed_x16`, `..._x1`: the ratio
of throughput in a closed loop with so many puts under way on each connection. A ratio is the median of its pairs, `low` and `high` are the least and
the greatest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median

from contests import Row, Section, Side, Size, Wanted, cluster, command_line, contest, measure_all, row_of

from dynamo._core import CORE
from dynamo.bench import Plan, run

QUANTILES = {"put_p999": 0.999, "put_p50": 0.5}
SECONDS = 8.0  # of one turn of the first rows; the others have at most 3


def latencies(addresses: list[str], size: Size, rate: float) -> dict[str, float]:
    """One turn: milliseconds by quantile, of puts at the rate. Raises RuntimeError if any failed, or too few were done in time."""
    plan = Plan(tuple(addresses), "put", keys=size.keys, seconds=size.seconds, warm_up_s=size.seconds / 8, rate=rate, load=False)
    (measured,) = run(plan, nodes_core=CORE)
    if measured.errors:
        raise RuntimeError(f"operations failed: {measured.errors}")
    if measured.throughput < 0.9 * rate:
        raise RuntimeError(f"{measured.throughput:.0f} puts a second is not the rate asked for; ask for less")
    (histogram,) = measured.latencies().values()
    return {name: histogram.quantile(q) / 1e6 for name, q in QUANTILES.items()}


def against_synced(rate: float) -> Section:
    """Fig. 5. Each turn gives all its quantiles, so they are of the same moments."""

    def measure(size: Size, scratch: Path, wanted: Wanted) -> Iterator[Row]:
        if not any(wanted(f"{name}_synced_vs_buffered") for name in QUANTILES):
            return
        with ExitStack() as stack:
            sides = {durability: stack.enter_context(cluster(scratch, durability)).addresses for durability in ("synced", "buffered")}
            turns: list[dict[str, dict[str, float]]] = []
            for at in range(size.pairs):
                order = list(sides) if at % 2 == 0 else list(sides)[::-1]
                turns.append({durability: latencies(sides[durability], size, rate) for durability in order})
            for name in QUANTILES:
                detail = " / ".join(f"{median(turn[durability][name] for turn in turns):.2f}" for durability in sides)
                if wanted(f"{name}_synced_vs_buffered"):
                    yield row_of(f"{name}_synced_vs_buffered", [turn["synced"][name] / turn["buffered"][name] for turn in turns], f"{detail} ms")

    return measure


def against_relaxed(size: Size, scratch: Path, wanted: Wanted) -> Iterator[Row]:
    """The buffer pays with an fsync and a second copy in memory, and saves writes of rows that change often."""
    names = {f"put_buffered_vs_relaxed_x{pipeline}": pipeline for pipeline in (1, 16)}
    names = {name: pipeline for name, pipeline in names.items() if wanted(name)}
    if not names:
        return
    size = replace(size, seconds=min(size.seconds, 3.0))
    with cluster(scratch, "buffered") as buffered, cluster(scratch, "relaxed") as relaxed:
        ours, theirs = Side(buffered.addresses, size), Side(relaxed.addresses, size)
        for name, pipeline in names.items():
            yield contest(name, ours.measure("put", pipeline), theirs.measure("put", pipeline), size.pairs, "operations a second")


def main() -> None:
    options = command_line(__doc__)
    options.set_defaults(seconds=SECONDS)
    options.add_argument("--rate", type=float, default=500.0, help="puts a second, of the first rows")
    asked = options.parse_args()
    measure_all((against_synced(asked.rate), against_relaxed), asked)


if __name__ == "__main__":
    main()
