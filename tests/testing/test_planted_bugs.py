"""The simulator finds bugs that are planted into the product, each within a bounded number of seeds. A simulator that finds nothing proves nothing."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from dynamo._core import CORE
from dynamo.testing.runner import SHORT, run

FIRST_SEED = 1000

# Bug -> (the seed that found it when it was planted, seeds it may need once other histories are drawn). Most are found by the first; what needs an
# accident of three rare things, as a reused actor does, by one in ten or thirty.
SEEDS: dict[str, tuple[int, int]] = {
    "actor_kept_after_crash": (1001, 200),
    "actor_from_an_old_copy": (1000, 8),
    "since_one": (1148, 240),
    "token_claims_the_record": (1000, 8),
    "acknowledges_before_commit": (1000, 8),
    "shows_staged_state": (1000, 8),
    "rows_dropped_unacknowledged": (1000, 24),
    "hints_dropped_for_age": (1002, 40),
    "merge_keeps_one_side": (1000, 8),
    "merge_by_wall_clock": (1000, 8),
    "commit_failed_keeps_the_actor": (1000, 64),
    "never_maybe_applied": (1001, 16),
    "stores_instead_of_merging": (1000, 8),
    "one_confirmation_less": (1002, 24),
    "no_anti_entropy": (1005, 40),
    "hints_never_replayed": (1000, 8),
    "hints_promised_and_not_kept": (1002, 24),
    "hints_dropped_by_any_acknowledgement": (1022, 69),
    "rows_dropped_when_one_owner_has_them": (1002, 24),
    "deletes_forgotten": (1000, 8),
    "contexts_ignored": (1000, 8),
    "tokens_leave_deletes_out": (1000, 8),
    "damaged_rows_are_absent": (1041, 120),
    "last_write_loses": (1000, 8),
    "clients_forget_earlier_attempts": (1004, 40),
    "retries_are_new_writes": (1000, 8),
    "commits_that_fail_are_acknowledged": (1002, 24),
    "counts_a_node_twice": (1004, 40),
    "weak_acknowledgements_count": (1008, 27),
    "listings_without_a_bound": (1005, 80),
    "answers_without_a_bound": (1001, 80),
    "tokens_of_a_part_cover_all": (1001, 48),
    "parts_out_of_order": (1001, 16),
    "newcomers_answer_at_once": (1021, 60),
    "recovering_owners_stand_for_themselves": (1021, 60),
    "pulls_that_pull_nothing": (1021, 60),
    "whole_after_the_first_pull": (1035, 160),
    "what_was_acknowledged_is_not_noted": (1000, 8),
}


def _load_planted() -> ModuleType:
    spec = spec_from_file_location("planted", Path(__file__).with_name("planted.py"))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _checkers_of(name: str, seed: int) -> list[str]:
    """What the checkers say of one seed with the bug in place. Runs in a process of its own making."""
    patch = pytest.MonkeyPatch()
    _load_planted().BUGS[name](patch)
    try:
        return [violation.checker for violation in run(seed, profile=SHORT).violations]
    finally:
        patch.undo()


def test_every_bug_has_a_bound() -> None:
    assert set(_load_planted().BUGS) == set(SEEDS)


@pytest.mark.skipif(CORE == "pure", reason="the bugs are in what uses the kernels, and the pure ones only cost time")
@pytest.mark.parametrize("name", SEEDS)
def test_a_planted_bug_is_found(name: str) -> None:
    likely, seeds_max = SEEDS[name]
    pairs = [(seed, seed + 1) for seed in range(FIRST_SEED, FIRST_SEED + seeds_max, 2)]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        for seeds in ((likely,), *pairs):
            if any(pool.map(_checkers_of, [name] * 2, seeds)):
                return
    pytest.fail(f"{seeds_max} seeds did not show {name}")
