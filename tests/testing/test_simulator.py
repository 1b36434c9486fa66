"""The simulator finds nothing in many seeds, nothing in all seeds that ever failed, and replays a seed exactly.

DYNAMO_SEEDS and DYNAMO_SEED_BASE choose how many whole runs, and from where; a base of `commit` derives it from the package's contents: fresh
for each commit, and repeatable. DYNAMO_BRIEF_SEEDS chooses how many brief runs of three nodes: 500 of them take about a minute.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

import dynamo
from dynamo.testing import Faults, Report, run, run_many
from dynamo.testing.cluster import child_environment
from dynamo.testing.events import World
from dynamo.testing.history import ACKNOWLEDGED, REFUSED, UNKNOWN
from dynamo.testing.runner import FULL, SHORT, Profile

SEEDS = int(os.environ.get("DYNAMO_SEEDS", "5"))
BRIEF_SEEDS = int(os.environ.get("DYNAMO_BRIEF_SEEDS", "25"))
BRIEF = Profile(operations=100, virtual_s=20.0, storm_s=(2.0, 5.0), calm_s=(2.0, 5.0))
SEEDS_FILE = Path(__file__).parents[1] / "seeds.txt"


def seed_base() -> int:
    """Where the seeds begin."""
    given = os.environ.get("DYNAMO_SEED_BASE", "0")
    if given != "commit":
        return int(given)
    root = Path(dynamo.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return int.from_bytes(digest.digest()[:4], "big") * 1000


def known_seeds() -> Iterator[tuple[int, str]]:
    lines = [line.split() for line in SEEDS_FILE.read_text().splitlines() if line and not line.startswith("#")]
    return iter(sorted({(int(words[0]), words[1]) for words in lines}))


def failures(reports: list[Report]) -> list[str]:
    return [f"seed {report.seed} VIOLATION {violation}" for report in reports for violation in report.violations[:3]]


@pytest.fixture(scope="module")
def reports() -> list[Report]:
    base = seed_base()
    print(f"dynamo simulate --seeds {base}:{base + SEEDS}")
    return list(run_many(range(base, base + SEEDS), jobs=os.cpu_count() or 1))


def brief_run(seed: int) -> Report:
    """Three nodes whose faults leave their disks whole: a write whose W disks are gone before its client hears of it is no violation."""
    faults = replace(Faults.draw(World(seed).stream("faults")), losses_max=0)
    return run(seed, profile=BRIEF, faults=faults, nodes=3)


@pytest.mark.timeout(300)
def test_brief_runs_of_three_nodes_show_no_violation() -> None:
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        brief = list(pool.map(brief_run, range(BRIEF_SEEDS), chunksize=5))
    assert failures(brief) == []
    assert sum(report.writes.get(ACKNOWLEDGED, 0) for report in brief) > 20 * BRIEF_SEEDS


@pytest.mark.timeout(1500)
def test_whole_runs_show_no_violation(reports: list[Report]) -> None:
    assert failures(reports) == []


@pytest.mark.timeout(1500)
def test_the_runs_did_what_they_are_for(reports: list[Report]) -> None:
    """Void unless writes were acknowledged, refused and left in doubt, every kind of fault struck, and last-write-wins did lose concurrent writes."""
    assert all(report.operations >= FULL.operations and report.virtual_s >= FULL.virtual_s for report in reports)
    if len(reports) < 200:  # a handful may happen to refuse hardly anything; CI takes as many
        return
    for outcome in (ACKNOWLEDGED, UNKNOWN, REFUSED):
        assert sum(report.writes.get(outcome, 0) for report in reports) > 10 * SEEDS, outcome
    kinds = {kind for report in reports for kind in report.faults if ": " not in kind}  # of the main history, and not of the worlds beside it
    assert kinds == {"crash", "ambush", "partition", "pause", "clock", "disk", "rot", "clog", "loss", "join", "leave"}
    parted = [report for report in reports if report.faults.get("partition")]
    assert sum(report.last_writes_lost for report in parted) > len(reports) // 2


@pytest.mark.timeout(300)
def test_seeds_that_ever_failed() -> None:
    short = [seed for seed, profile in known_seeds() if profile == "short"]
    full = [seed for seed, profile in known_seeds() if profile == "full"]
    jobs = os.cpu_count() or 1
    assert failures([*run_many(short, jobs=jobs, profile=SHORT), *run_many(full, jobs=jobs)]) == []


def test_same_seed_same_trace_under_any_hash_seed() -> None:
    program = "from dynamo.testing.runner import Profile, run; print(run(3, profile=Profile(150, 30.0, (5.0, 12.0), (3.0, 10.0))).trace_hash)"
    traces = set()
    for hash_seed in ("0", "1", "4711"):
        process = subprocess.run(
            [sys.executable, "-P", "-c", program],
            env={**child_environment(), "PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, timeout=100, check=True,
        )  # fmt: skip
        traces.add(process.stdout)
    assert len(traces) == 1


def test_a_log_does_not_change_the_trace() -> None:
    assert run(5, profile=SHORT).trace_hash == run(5, profile=SHORT, log=True).trace_hash


def test_without_faults_every_operation_succeeds() -> None:
    report = run(1, profile=SHORT, faults=Faults.none(), nodes=5)
    assert report.violations == []
    assert UNKNOWN not in report.writes


def test_fault_points_can_be_forced() -> None:
    calm = run(2, profile=SHORT, faults=Faults.none())
    forced = run(2, profile=SHORT, faults=Faults.none().but(forced={"commit.fail": 0.2}))
    assert calm.writes.get(UNKNOWN, 0) < forced.writes.get(UNKNOWN, 0) and forced.violations == []


class TestCommand:
    @staticmethod
    def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "dynamo", "simulate", *arguments]
        return subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=100, check=False)

    def test_a_clean_range_says_nothing_and_exits_0(self) -> None:
        process = self.simulate("--seeds", "0:2", "--short", "--jobs", "1")
        assert (process.returncode, process.stdout) == (0, "")

    def test_json_has_a_line_a_seed_with_its_trace_hash(self) -> None:
        process = self.simulate("--seeds", "0:2", "--short", "-o", "json")
        lines = [json.loads(line) for line in process.stdout.splitlines()]
        assert [line["seed"] for line in lines] == [0, 1]
        assert lines[1]["trace_hash"] == run(1, profile=SHORT).trace_hash != lines[0]["trace_hash"]

    def test_a_run_that_was_ended_is_resumed_behind_its_last_whole_line(self, tmp_path: Path) -> None:
        whole = self.simulate("--seeds", "0:3", "--short", "--jobs", "2", "-o", "json").stdout
        lines = whole.splitlines(keepends=True)
        ended = tmp_path / "done.json"
        ended.write_text(lines[0] + lines[1][:20])
        assert self.simulate("--seeds", "0:3", "--short", "-o", "json", "--resume", str(ended)).stdout == "".join(lines[1:])
        failed = json.loads(lines[0]) | {"violations": [{"checker": "lost"}]}
        ended.write_text(json.dumps(failed) + "\n" + lines[1] + lines[2])
        process = self.simulate("--seeds", "0:3", "--short", "-o", "json", "--resume", str(ended))
        assert (process.returncode, process.stdout) == (1, "") and "1 of 3 seeds" in process.stderr
        assert "seed 0 shows none any more" in process.stderr and "replay: " in process.stderr
        ended.write_text(lines[0] + lines[1][:20] + lines[1] + lines[2])  # appended to behind a line that was cut off
        assert self.simulate("--seeds", "0:3", "--short", "-o", "json", "--resume", str(ended)).stdout == lines[1]
        ended.write_text("no JSON\n")
        assert self.simulate("--seeds", "0:3", "--resume", str(ended)).returncode == 2

    @pytest.mark.parametrize("seeds", ["5", "x", "3:3", "5:2"])
    def test_ranges(self, seeds: str) -> None:
        assert self.simulate("--seeds", seeds, "--short").returncode == (0 if seeds == "5" else 2)

    def test_a_violation_is_printed_with_its_replay_and_exits_1(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        from dynamo._core import record as records
        from dynamo.cli import main

        # Tokens that claim the whole record lose what nobody was shown.
        monkeypatch.setattr(records, "token_context", lambda record, context, actor, counter: (records.context(record), 0))
        assert main(["simulate", "--seeds", "1000:1001", "--short", "--jobs", "1"]) == 1
        out, err = capfd.readouterr()
        assert out.startswith("seed 1000 ") and " VIOLATION lost " in out
        assert "replay: python -m dynamo.testing 1000" in err and "PUT_REPLY" in err
