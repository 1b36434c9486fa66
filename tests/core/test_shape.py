"""Fields of messages: the twins say the same of any values, and name the first field that does not fit."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo._core import CORE, _shape_py

BIG = (1 << 64) - 1


def twins() -> list[ModuleType]:
    return [_shape_py, *([import_module("dynamo._core._shape_c")] if CORE == "compiled" else [])]


def only_ones(value: Any) -> None:
    if any(one != 1 for one in value):
        raise ValueError("not ones")


FIELDS = [((bytes,), 0, BIG, None), ((bytes, type(None)), 0, BIG, None), ((int,), 0, 255, None), ((bool,), 0, BIG, None), ((bytes,), 16, 16, None),
          ((str,), 0, 3, None), ((tuple,), 0, 2, only_ones), ((int,), 0, BIG, None)]  # fmt: skip
GOOD = (7, 8, b"a", None, 255, True, bytes(16), "abc", (1, 1), BIG)


@pytest.mark.parametrize("module", twins(), ids=lambda module: module.__name__[-2:])
class TestEach:
    def test_good_values_fit_and_what_was_appended_is_not_looked_at(self, module: ModuleType) -> None:
        unfit = module.Fields(2, FIELDS).unfit
        assert unfit(GOOD) == unfit((*GOOD, object())) == module.FITS

    @pytest.mark.parametrize(
        ("at", "wrong"),
        [(2, "a"), (2, None), (2, bytearray(b"a")), (3, 0), (4, 256), (4, -1), (4, True), (4, 1 << 70), (4, 1.0), (5, 1), (6, bytes(15)), (6, bytes(17)),
         (7, b"abc"), (7, "abcd"), (8, [1]), (8, (1, 1, 1)), (9, -1), (9, BIG + 1), (9, None)],
    )  # fmt: skip
    def test_a_wrong_field_is_named(self, module: ModuleType, at: int, wrong: Any) -> None:
        assert module.Fields(2, FIELDS).unfit((*GOOD[:at], wrong, *GOOD[at + 1 :])) == at

    def test_heads_and_lengths(self, module: ModuleType) -> None:
        unfit = module.Fields(2, FIELDS).unfit
        assert unfit(GOOD[:-1]) == unfit(()) == module.TOO_SHORT
        assert unfit(("7", *GOOD[1:])) == unfit((7, True, *GOOD[2:])) == module.NO_HEAD
        assert module.Fields(0, FIELDS[:1]).unfit((b"",)) == module.Fields(0, []).unfit(()) == module.FITS

    def test_what_is_nested_is_judged_last(self, module: ModuleType) -> None:
        unfit = module.Fields(2, FIELDS).unfit
        with pytest.raises(ValueError, match="not ones"):
            unfit((*GOOD[:8], (1, 2), BIG))
        assert unfit((*GOOD[:8], (1, 2), -1)) == 9

    def test_the_first_message_that_does_not_fit_is_named(self, module: ModuleType) -> None:
        fields = {7: module.Fields(2, FIELDS), 9: module.Fields(2, [])}
        first_unfit = module.first_unfit
        assert first_unfit([], fields) == first_unfit([GOOD, (9, 1), GOOD], fields) == module.FITS
        assert first_unfit([(9, 1), GOOD[:5], GOOD[:4]], fields) == 1
        assert first_unfit([GOOD, (9, 1), (8, 1)], fields) == 2
        assert first_unfit([GOOD, ()], fields) == 1 and first_unfit([()], {}) == 0
        for no_message in (None, 7, [7, 8], ({}, 1), (True, 1), ((7,), 1)):
            assert first_unfit((GOOD, no_message), fields) == 1
        with pytest.raises(ValueError, match="not ones"):
            first_unfit([(9, 1), (*GOOD[:8], (1, 2), BIG), (8, 1)], fields)

    def test_values_that_are_no_tuple_are_refused(self, module: ModuleType) -> None:
        with pytest.raises(TypeError):
            module.Fields(2, FIELDS).unfit(None)


VALUES = st.one_of(st.integers(-2, 300), st.just(BIG), st.just(BIG + 1), st.binary(max_size=17), st.none(), st.booleans(), st.text(max_size=4),
                   st.lists(st.integers(0, 2), max_size=3).map(tuple), st.floats())  # fmt: skip


@given(st.lists(VALUES, max_size=12).map(tuple), st.integers(0, 10))
def test_twins_agree(values: tuple[Any, ...], at: int) -> None:
    values = (*GOOD[:at], *values)
    said = []
    for module in twins():
        try:
            said.append(module.Fields(2, FIELDS).unfit(values))
        except ValueError as error:
            said.append(str(error))
    assert said.count(said[0]) == len(said)
