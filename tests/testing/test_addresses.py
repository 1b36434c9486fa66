"""The simulated world of addresses: today's code is clean in it, and each way to take an address for an identity is found."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from dynamo.testing import moves
from dynamo.testing.faults import Faults
from dynamo.testing.moves import run_addresses
from dynamo.testing.runner import Profile, run

# Bug -> what the checkers call it, seeds it may need.
FOUND = {
    "an_address_is_an_identity": ("fatal", 20),
    "who_answers_is_not_believed": ("apart", 30),
    "asked_once_at_start": ("apart", 30),
    "the_first_answer_decides": ("mixed", 20),
    "in_the_ring_for_having_asked": ("ghost", 20),
    "swapped_nodes_ask_nobody": ("apart", 100),
}


def _load_planted() -> ModuleType:
    spec = spec_from_file_location("planted", Path(__file__).with_name("planted.py"))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_nodes_find_each_other_whatever_becomes_of_their_addresses() -> None:
    done: set[str] = set()
    for seed in range(60):
        found, counts, _ = run_addresses(seed)
        assert not found, (seed, counts, found)
        done |= counts.keys()
    assert done == {*moves._ACTS, "founder returned empty"}


def test_the_same_seed_is_the_same_history_with_or_without_a_trace() -> None:
    found, counts, lines = run_addresses(7, log=True)
    assert run_addresses(7) == (found, counts, []) and run_addresses(7, log=True) == (found, counts, lines) and len(lines) > 5


def test_every_bug_has_a_bound() -> None:
    assert set(_load_planted().ADDRESS_BUGS) == set(FOUND)


@pytest.mark.parametrize("name", FOUND)
def test_a_planted_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checker, seeds = FOUND[name]
    _load_planted().ADDRESS_BUGS[name](monkeypatch)
    assert any(checker in [violation.checker for violation in run_addresses(seed)[0]] for seed in range(seeds))


def test_a_run_looks_at_the_addresses_too_and_prints_how_it_came_to_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    _load_planted().ADDRESS_BUGS["in_the_ring_for_having_asked"](monkeypatch)
    seed = next(seed for seed in range(20) if run_addresses(seed)[0])
    report = run(seed, profile=Profile(operations=1, virtual_s=1.0), log=True)
    ghost = next(violation for violation in report.violations if violation.checker == "ghost")
    assert any("boot s0" in line for line in report.around(ghost)) and any(name.startswith("address: ") for name in report.faults)
    assert not run(seed, profile=Profile(operations=1, virtual_s=1.0), faults=Faults.none()).violations
