"""The merge functions of users: a good one passes, bad ones are told apart. The example of docs/testing.md is the first of these."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import pytest

from dynamo.testing import SimulationFailed, simulate


def merge(values: list[Any]) -> Any:
    """A set of words that only grows, as a sorted list."""
    return sorted({word for value in values for word in value})


def add_a_word(random: Random) -> Any:
    word = f"w{random.randrange(10**6)}"

    def edit(words: list[str] | None) -> list[str]:
        return sorted({*(words or ()), word})

    edit.word = word  # type: ignore[attr-defined]
    return edit


def all_words_are_there(words: Any, acknowledged: Sequence[Any]) -> None:
    missing = {edit.word for edit in acknowledged} - set(words or ())
    assert not missing, f"lost {sorted(missing)}"


def test_a_good_merge_passes() -> None:
    outcomes = simulate(merge=merge, workload=add_a_word, check=all_words_are_there, seeds=range(12))
    assert sum(len(outcome.acknowledged) for outcome in outcomes) > 300
    assert sum(outcome.merges for outcome in outcomes) > 20, "void unless siblings were met"


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (lambda values: values[0], "depends on their order"),
        (lambda values: max(values, key=len), "."),
        (lambda values: sorted(word for value in values for word in value), "changes it"),
    ],
)
def test_a_bad_merge_is_found(bad: Any, words: str) -> None:
    with pytest.raises(SimulationFailed, match=words) as raised:
        simulate(merge=bad, workload=add_a_word, check=all_words_are_there, seeds=range(50))
    seed = raised.value.outcome.seed
    with pytest.raises(SimulationFailed) as again:
        simulate(merge=bad, workload=add_a_word, check=all_words_are_there, seeds=[seed])
    assert str(again.value) == str(raised.value)
