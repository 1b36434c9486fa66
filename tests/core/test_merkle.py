"""The Merkle tree kernel: order does not matter, differences are found exactly, and both twins agree."""

from __future__ import annotations

import random
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

digests = st.binary(min_size=16, max_size=16)
items = st.lists(st.tuples(st.integers(0, 1023), digests), max_size=40)


@pytest.fixture(scope="session")
def merkle(core: Any) -> ModuleType:
    return core.merkle


def build(merkle: ModuleType, rows: list[tuple[int, bytes]]) -> Any:
    tree = merkle.Tree()
    for leaf, digest in rows:
        tree.update(leaf, b"", digest)
    return tree


def everything(tree: Any) -> tuple[Any, ...]:
    return tree.root(), tree.nodes(), [tree.leaves_of(node) for node in range(32)]


@given(rows=items, seed=st.integers(0, 1 << 30))
def test_the_order_of_updates_does_not_matter(merkle: ModuleType, rows: list[tuple[int, bytes]], seed: int) -> None:
    other = list(rows)
    random.Random(seed).shuffle(other)
    assert everything(build(merkle, rows)) == everything(build(merkle, other))


@given(rows=items, leaf=st.integers(0, 1023), digest=digests)
def test_taking_out_what_was_put_in_leads_back(merkle: ModuleType, rows: list[tuple[int, bytes]], leaf: int, digest: bytes) -> None:
    tree = build(merkle, rows)
    before = everything(tree)
    tree.update(leaf, b"", digest)
    assert everything(tree) != before or digest == bytes(16)
    tree.update(leaf, digest, b"")
    assert everything(tree) == before


@given(rows=items, changes=st.lists(st.tuples(st.integers(-2, 1026), st.binary(max_size=17), st.binary(max_size=17)), max_size=20))
def test_the_twins_agree(cores: Any, rows: list[tuple[int, bytes]], changes: list[tuple[int, bytes, bytes]]) -> None:
    trees = [build(core.merkle, rows) for core in cores]
    for leaf, old, new in changes:
        outcomes = []
        for tree in trees:
            try:
                outcomes.append(tree.update(leaf, old, new))
                outcomes[-1] = tree.set_leaf(leaf, [old, new])
            except ValueError as error:
                outcomes.append(str(error))
        assert outcomes[: len(outcomes) // 2] == outcomes[len(outcomes) // 2 :]
        assert everything(trees[0]) == everything(trees[1])


@given(a=st.binary(max_size=80), b=st.binary(max_size=80), flips=st.lists(st.integers(0, 79), max_size=3))
def test_the_twins_find_the_same_differences(cores: Any, a: bytes, b: bytes, flips: list[int]) -> None:
    changed = bytearray(a)
    for at in flips:
        if at < len(changed):
            changed[at] ^= 1
    for other in (b, bytes(changed)):
        found = []
        for core in cores:
            try:
                found.append(core.merkle.differing(a, other))
            except ValueError:
                found.append("refused")
        assert found[0] == found[1]


def test_a_difference_is_found_by_descending(merkle: ModuleType) -> None:
    rng = random.Random(5)
    rows = [(rng.randrange(1024), rng.randbytes(16)) for _ in range(5000)]
    one, other = build(merkle, rows), build(merkle, rows)
    other.update(777, b"", rng.randbytes(16))
    assert one.root() != other.root()
    assert merkle.differing(one.nodes(), other.nodes()) == [777 // 32]
    assert merkle.differing(one.leaves_of(777 // 32), other.leaves_of(777 // 32)) == [777 % 32]
    assert merkle.differing(one.leaves_of(3), other.leaves_of(3)) == []


def test_a_leaf_can_be_made_what_its_rows_say(merkle: ModuleType) -> None:
    tree = build(merkle, [(5, b"a" * 16), (5, b"b" * 16)])
    assert not tree.set_leaf(5, [b"b" * 16, b"a" * 16])
    assert tree.set_leaf(5, [b"a" * 16])
    assert everything(tree) == everything(build(merkle, [(5, b"a" * 16)]))


@pytest.mark.parametrize("leaf", [-1, 1024])
def test_there_is_no_such_leaf(merkle: ModuleType, leaf: int) -> None:
    with pytest.raises(ValueError, match="no leaf"):
        merkle.Tree().update(leaf, b"", b"a" * 16)


def test_digests_and_rows_of_hashes_have_their_sizes(merkle: ModuleType) -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        merkle.Tree().update(0, b"", b"short")
    with pytest.raises(ValueError, match="lengths"):
        merkle.differing(b"a" * 8, b"a" * 16)


@given(position=st.integers(0, (1 << 64) - 1), bits=st.integers(0, 16))
def test_a_leaf_is_the_ten_bits_behind_the_partition(merkle: ModuleType, position: int, bits: int) -> None:
    assert merkle.leaf_of(position, 1 << bits) == (position << bits & (1 << 64) - 1) >> 54


@given(many=st.lists(items, max_size=4))
def test_the_roots_of_many_trees_are_theirs_cut_to_eight_bytes(merkle: ModuleType, many: list[list[tuple[int, bytes]]]) -> None:
    trees = [build(merkle, rows) for rows in many]
    assert merkle.roots(trees) == b"".join(tree.root()[: merkle.HASH_BYTES] for tree in trees)
    assert merkle.roots(trees) == b"".join(tree.root()[: merkle.HASH_BYTES] for tree in trees), "and when they are known"


def test_an_empty_tree_is_what_one_is_that_lost_all_its_rows(merkle: ModuleType) -> None:
    emptied = merkle.Tree()
    for leaf in range(0, 1024, 32):
        emptied.update(leaf, b"", b"\x07" * 16)
        emptied.update(leaf, b"\x07" * 16, b"")
    assert everything(merkle.Tree()) == everything(emptied)
