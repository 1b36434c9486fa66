"""The simulator finds nothing in many seeds, and replays a seed exactly under any hash seed."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial

from dynamo.testing.events import World
from dynamo.testing.faults import Faults
from dynamo.testing.runner import FULL, Profile, Report, run

BRIEF = Profile(operations=100, virtual_s=20.0, storm_s=(2.0, 5.0), calm_s=(2.0, 5.0))


def run_with_whole_disks(seed: int, profile: Profile, nodes: int | None = None) -> Report:
    """One seed with its own faults, the loss of disks apart: a write whose W disks are gone before its client hears of it is no violation."""
    faults = replace(Faults.draw(World(seed).stream("faults")), losses_max=0)
    return run(seed, profile=profile, faults=faults, nodes=nodes)


def many(seeds: range, profile: Profile, nodes: int | None = None) -> list[Report]:
    with ProcessPoolExecutor(2) as pool:
        return list(pool.map(partial(run_with_whole_disks, profile=profile, nodes=nodes), seeds, chunksize=5))


def test_500_seeds_of_three_nodes_show_no_violation() -> None:
    reports = many(range(500), BRIEF, nodes=3)
    assert [(report.seed, str(violation)) for report in reports for violation in report.violations] == []
    # Void unless the runs did something: writes were acknowledged, and faults made some fail.
    assert sum(report.writes.get("acknowledged", 0) for report in reports) > 10_000
    assert sum(report.writes.get("unknown", 0) for report in reports) > 100


def test_whole_runs_of_larger_clusters_show_no_violation() -> None:
    reports = many(range(12), FULL)
    assert [(report.seed, str(violation)) for report in reports for violation in report.violations] == []


def test_same_seed_same_trace_under_any_hash_seed() -> None:
    hashes = set()
    for hash_seed in ("0", "1", "4711"):
        process = subprocess.run(
            [sys.executable, "-c", "from dynamo.testing.runner import SHORT, run; print([run(s, profile=SHORT).trace_hash for s in (3, 4)])"],
            env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, timeout=100, check=True,
        )  # fmt: skip
        hashes.add(process.stdout)
    assert len(hashes) == 1
