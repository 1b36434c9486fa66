"""The simulator finds nothing in many seeds, replays a seed exactly, and its checkers do find planted violations."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest

from dynamo.testing.events import Faults
from dynamo.testing.history import ACKNOWLEDGED, REFUSED, History
from dynamo.testing.workload import run


def test_500_seeds_show_no_violation() -> None:
    with ProcessPoolExecutor(2) as pool:
        reports = list(pool.map(run, range(500), chunksize=25))
    assert [(r.seed, r.violations) for r in reports if r.violations] == []
    # Void unless the runs did something: writes were acknowledged, and faults made some fail.
    assert sum(r.writes.get(ACKNOWLEDGED, 0) for r in reports) > 10_000
    assert sum(r.writes.get("unknown", 0) for r in reports) > 100


def test_same_seed_same_trace_under_any_hash_seed() -> None:
    hashes = set()
    for hash_seed in ("0", "1", "4711"):
        process = subprocess.run(
            [sys.executable, "-c", "from dynamo.testing.workload import run; print([run(s).trace_hash for s in (3, 4, 5)])"],
            env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, timeout=100, check=True,
        )  # fmt: skip
        hashes.add(process.stdout)
    assert len(hashes) == 1


def test_five_nodes_hand_sloppy_writes_to_their_owners() -> None:
    for seed in range(10):
        report = run(seed, nodes=5, faults=Faults(crash_interval_s=0.7, cut_interval_s=1.0, outage_s=1.0))
        assert report.violations == []


class TestCheckers:
    @staticmethod
    def history() -> History:
        """x, then y by a client that was shown x; z concurrent with both. All acknowledged."""
        history = History()
        history.begin(b"x" * 16, b"k", False, frozenset())
        history.begin(b"y" * 16, b"k", False, history.closure([b"x" * 16]))
        history.begin(b"z" * 16, b"k", False, frozenset())
        for write in history.writes.values():
            write.outcome, write.attempts = ACKNOWLEDGED, 1
        return history

    def test_the_maximal_writes_are_right(self) -> None:
        history = self.history()
        history.check_final(b"k", {b"y" * 16, b"z" * 16})
        assert history.violations == []

    @pytest.mark.parametrize(
        ("final", "checker"),
        [({b"y"}, "lost"), ({b"z"}, "lost"), (set(), "lost"), ({b"x", b"y", b"z"}, "kept"), ({b"y", b"z", b"q"}, "phantom")],
    )
    def test_lost_kept_and_phantom_are_found(self, final: set[bytes], checker: str) -> None:
        history = self.history()
        history.check_final(b"k", {name * 16 for name in final})
        assert any(text.startswith(checker) for text in history.violations)

    def test_a_refused_write_that_shows_up_is_found(self) -> None:
        history = self.history()
        history.writes[b"z" * 16].outcome = REFUSED
        history.check_shown(b"k", [b"z" * 16])
        assert history.violations[0].startswith("truthful")

    def test_a_dot_bound_twice_is_found(self) -> None:
        history = self.history()
        history.check_dot(b"k", 1, 1, b"x" * 16, 1)
        history.check_dot(b"k", 1, 1, b"x" * 16, 1)
        assert history.violations == []
        history.check_dot(b"k", 1, 1, b"y" * 16, 2)
        assert history.violations[0].startswith("dots")
