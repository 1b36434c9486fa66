"""Simulated nodes with write buffers: no promise is broken, what a crash takes is what it may take, and planted bugs are found."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import pytest

from dynamo.model import messages as m
from dynamo.net.commits import BufferedCommits
from dynamo.replication import local, put
from dynamo.replication.actor import ActorLease
from dynamo.replication.core import Core
from dynamo.storage.buffer import WriteBuffer
from dynamo.testing import Faults, Report, run
from dynamo.testing.causality import Causality
from dynamo.testing.checkers import disks_lost
from dynamo.testing.events import World
from dynamo.testing.history import ACKNOWLEDGED
from dynamo.testing.runner import SHORT, Profile, run_history

SEEDS = int(os.environ.get("DYNAMO_BRIEF_SEEDS", "25"))
BRIEF = Profile(operations=100, virtual_s=20.0, storm_s=(2.0, 5.0), calm_s=(2.0, 5.0))


def brief(seed: int) -> Report:
    faults = replace(Faults.draw(World(seed).stream("faults")), losses_max=0)
    return run(seed, profile=BRIEF, faults=faults, nodes=3, buffered=True)


@pytest.mark.timeout(300)
def test_brief_runs_show_no_violation() -> None:
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        reports = list(pool.map(brief, range(SEEDS), chunksize=5))
    assert [f"seed {report.seed} VIOLATION {violation}" for report in reports for violation in report.violations[:3]] == []
    assert sum(report.writes.get(ACKNOWLEDGED, 0) for report in reports) > 15 * SEEDS


@pytest.mark.timeout(300)
def test_a_whole_run_shows_no_violation_and_is_replayed_exactly() -> None:
    first, second = (run(3, profile=SHORT, buffered=True) for _ in range(2))
    assert first.violations == [] and first.trace_hash == second.trace_hash != run(3, profile=SHORT).trace_hash


def test_crashes_of_all_at_once_lose_acknowledged_writes_and_those_of_one_node_do_not() -> None:
    """The first says that the simulation is of a buffer at all."""
    lost = {}
    for blackout in (0.0, 1.0):
        faults = Faults.none().but(crash_interval_s=1.0, outage_s=0.05, blackout=blackout, stop_clean=0.0, commit_s=0.02)
        lost[blackout] = 0
        for seed in range(4):
            report, history = run_history(seed, profile=BRIEF, faults=faults, nodes=3, buffered=True)
            assert report.violations == []
            causality = Causality(history)
            for key in causality.keys.values():
                if key.final is not None and history.kinds.get(key.bucket) != "last_write_wins":
                    there = {causality.name(version) for version in key.final.versions}
                    past = causality.past_of(key, key.final.versions)[1]
                    gone = [w for w in key.writes if w.outcome == ACKNOWLEDGED and w.operation not in there and not past & key.operation_bit(w.operation)]
                    lost[blackout] += sum(w.required > 1 and disks_lost(causality, w) > 1 for w in gone)
    assert lost[1.0] > 0 and lost[0.0] <= lost[1.0] // 4


# --- bugs ------------------------------------------------------------------------------------------------------------------------


def synced_means_buffered(patch: pytest.MonkeyPatch) -> None:
    """The replica that was asked for a synced write gives it from its buffer."""
    patch.setattr(local, "_acknowledge_flushed", lambda core, source, group, reply: core.send(source, reply))


def hints_are_dropped_for_a_buffer(patch: pytest.MonkeyPatch) -> None:
    """A copy is dropped when others have it in their buffers."""
    patch.setattr(Core, "durability_to_drop", property(lambda self: m.DURABILITY_BUFFERED, lambda self, value: None), raising=False)


def the_actor_survives_the_crash(patch: pytest.MonkeyPatch) -> None:
    """A node that lost its buffer goes on under the actor whose dots were in it."""
    load = ActorLease.load.__func__  # type: ignore[attr-defined]

    def again(cls: type[ActorLease], meta: bytes | None, clean: bool, random: object) -> ActorLease:
        lease = load(cls, meta, True, random)
        return cls(lease.actor, max(0, lease.issued - 40), lease.lease_end)

    patch.setattr(ActorLease, "load", classmethod(again))


def one_confirmation_less(patch: pytest.MonkeyPatch) -> None:
    """W is counted wrongly."""
    patch.setattr(put, "needed", lambda *arguments: 1)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("plant", [synced_means_buffered, hints_are_dropped_for_a_buffer, the_actor_survives_the_crash, one_confirmation_less])
def test_a_planted_bug_is_found(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    for seed in range(60):
        if brief(seed).violations:
            return
    pytest.fail("nothing was found in 60 brief runs")


# --- stops ----------------------------------------------------------------------------------------------------------------------


def the_buffer_is_not_flushed(patch: pytest.MonkeyPatch) -> None:
    """Whoever closes the engine forgets what is in memory only."""
    patch.setattr(WriteBuffer, "flush", lambda buffer: None)


def a_flush_under_way_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    """It is neither waited for nor written again."""
    patch.setattr(BufferedCommits, "close", lambda commits: None)
    patch.setattr(WriteBuffer, "_take_back", lambda buffer, error: None)


@pytest.mark.parametrize("plant", [None, the_buffer_is_not_flushed, a_flush_under_way_is_forgotten])
def test_a_stop_in_order_is_that_of_the_product_and_loses_nothing(plant: Callable[[pytest.MonkeyPatch], None] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lone node, so that nobody else has what a stop forgets."""
    if plant is not None:
        plant(monkeypatch)
    faults = Faults.none().but(crash_interval_s=0.5, outage_s=0.05, stop_clean=1.0, commit_s=0.05)
    violations = [violation for seed in range(4) for violation in run(seed, profile=BRIEF, faults=faults, nodes=1, buffered=True).violations]
    assert bool(violations) == (plant is not None)
