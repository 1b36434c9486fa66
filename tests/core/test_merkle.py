"""The Merkle tree kernel: order does not matter, differences are found exactly, and both twins agree."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo._core import _merkle_py

TWINS = [pytest.param(_merkle_py, id="py")]

digests = st.binary(min_size=16, max_size=16)
items = st.lists(st.tuples(st.integers(0, 1023), digests), max_size=40)


@pytest.fixture(params=TWINS)
def merkle(request: pytest.FixtureRequest):
    return request.param


def build(merkle, rows):
    tree = merkle.Tree()
    for leaf, digest in rows:
        tree.update(leaf, b"", digest)
    return tree


@given(rows=items, seed=st.integers(0, 1 << 30))
def test_the_order_of_updates_does_not_matter(rows, seed) -> None:
    for merkle in (_merkle_py,):
        other = list(rows)
        random.Random(seed).shuffle(other)
        assert build(merkle, rows).root() == build(merkle, other).root()


@given(rows=items, extra=st.tuples(st.integers(0, 1023), digests))
def test_taking_out_what_was_put_in_leads_back(rows, extra) -> None:
    for merkle in (_merkle_py,):
        tree = build(merkle, rows)
        before = tree.root(), tree.nodes()
        tree.update(extra[0], b"", extra[1])
        tree.update(extra[0], extra[1], b"")
        assert (tree.root(), tree.nodes()) == before


def test_a_difference_is_found_by_descending(merkle) -> None:
    rng = random.Random(5)
    rows = [(rng.randrange(1024), rng.randbytes(16)) for _ in range(5000)]
    one, other = build(merkle, rows), build(merkle, rows)
    other.update(777, b"", rng.randbytes(16))
    assert one.root() != other.root()
    assert merkle.differing(one.nodes(), other.nodes()) == [777 // 32]
    assert merkle.differing(one.leaves_of(777 // 32), other.leaves_of(777 // 32)) == [777 % 32]
    assert merkle.differing(one.leaves_of(3), other.leaves_of(3)) == []


def test_a_leaf_can_be_made_what_its_rows_say(merkle) -> None:
    tree = build(merkle, [(5, b"a" * 16), (5, b"b" * 16)])
    assert not tree.set_leaf(5, [b"b" * 16, b"a" * 16])
    assert tree.set_leaf(5, [b"a" * 16])
    assert tree.root() == build(merkle, [(5, b"a" * 16)]).root()


@pytest.mark.parametrize("leaf", [-1, 1024])
def test_there_is_no_such_leaf(merkle, leaf) -> None:
    with pytest.raises(ValueError, match="no leaf"):
        merkle.Tree().update(leaf, b"", b"a" * 16)


def test_digests_and_rows_of_hashes_have_their_sizes(merkle) -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        merkle.Tree().update(0, b"", b"short")
    with pytest.raises(ValueError, match="lengths"):
        merkle.differing(b"a" * 8, b"a" * 16)


@given(st.integers(0, (1 << 64) - 1), st.integers(0, 16))
def test_a_leaf_is_the_ten_bits_behind_the_partition(position, bits) -> None:
    assert _merkle_py.leaf_of(position, 1 << bits) == (position << bits & (1 << 64) - 1) >> 54
