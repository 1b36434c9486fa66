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
ROUND = 8  # seeds between two looks at what was found

# Bug -> seeds it may need. Most are found by the first; what needs an accident of three rare things, as a reused actor does, by one in ten or thirty.
SEEDS_MAX = {
    "actor_kept_after_crash": 200,
    "actor_from_an_old_copy": 8,
    "since_one": 240,
    "token_claims_the_record": 8,
    "acknowledges_before_commit": 8,
    "shows_staged_state": 8,
    "rows_dropped_unacknowledged": 24,
    "hints_dropped_for_age": 40,
    "merge_keeps_one_side": 8,
    "merge_by_wall_clock": 8,
    "commit_failed_keeps_the_actor": 64,
    "never_maybe_applied": 16,
    "stores_instead_of_merging": 8,
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
    assert set(_load_planted().BUGS) == set(SEEDS_MAX)


@pytest.mark.skipif(CORE == "pure", reason="the bugs are in what uses the kernels, and the pure ones only cost time")
@pytest.mark.parametrize("name", SEEDS_MAX)
def test_a_planted_bug_is_found(name: str) -> None:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        for first in range(FIRST_SEED, FIRST_SEED + SEEDS_MAX[name], ROUND):
            if any(pool.map(_checkers_of, [name] * ROUND, range(first, first + ROUND))):
                return
    pytest.fail(f"{SEEDS_MAX[name]} seeds did not show {name}")
