"""The cluster's document: there and back, tolerant of newer keys, and errors that name the field."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo import config
from dynamo._core import record
from dynamo.errors import ConfigError
from dynamo.model import cluster as model
from dynamo.model.cluster import BucketDefinition, Cluster

PLAIN = Cluster(b"c" * 16, b"s" * 32, 5)

counts = st.integers(0, 3)
definitions = st.builds(
    BucketDefinition, st.sampled_from(["siblings", "last_write_wins"]), st.integers(3, 64), counts, counts, counts,
    counts, st.integers(1, 1984 * 1024), st.integers(1, 10_000), st.integers(0, 2**64 - 1),
)  # fmt: skip
clusters = st.builds(
    Cluster, st.binary(min_size=16, max_size=16), st.binary(min_size=32, max_size=32), st.integers(0, 2**64 - 1),
    st.integers(0, 16).map(lambda bits: 1 << bits), st.integers(3, 64), counts, counts, counts, counts,
    st.dictionaries(st.from_regex(rb"[A-Za-z0-9_.-]{1,64}", fullmatch=True), definitions, max_size=4),
)  # fmt: skip


def plain_value(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and plain_value(inner) for key, inner in value.items())
    return type(value) in (bytes, int, str)


@given(clusters)
def test_document_there_and_back(cluster: Cluster) -> None:
    document = cluster.to_document()
    assert type(document) is dict and plain_value(document)
    assert Cluster.from_document(document) == cluster


@given(clusters)
def test_unknown_keys_are_ignored(cluster: Cluster) -> None:
    document = cluster.to_document()
    document["of_a_later_version"] = [1, 2]
    for bucket in document["buckets"].values():
        bucket["of_a_later_version"] = None
    assert Cluster.from_document(document) == cluster


def test_defaults() -> None:
    assert (PLAIN.partitions, PLAIN.n, PLAIN.r, PLAIN.w, PLAIN.pr, PLAIN.pw, PLAIN.buckets) == (256, 3, 0, 0, 0, 0, {})
    assert Cluster.from_document({"cluster_id": b"c" * 16, "secret": b"s" * 32, "seed": 5, "partitions": 256}) == PLAIN
    definition = PLAIN.bucket(b"any")
    assert definition == BucketDefinition("siblings", 0, 0, 0, 0, 0, 1 << 20, 100, 0)


def test_bucket_looks_up_the_definition() -> None:
    fast = BucketDefinition("last_write_wins", n=1)
    given = {b"fast": fast}
    cluster = Cluster(b"c" * 16, b"s" * 32, 5, buckets=given)
    given.clear()
    assert cluster.bucket(b"fast") == fast
    assert cluster.bucket(b"fast").record_kind == record.LAST_WRITE_WINS
    assert cluster.bucket(b"other").record_kind == record.SIBLINGS


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cluster_id", b"short"), ("cluster_id", "c" * 16), ("secret", b"s" * 31), ("seed", -1), ("seed", 2**64),
        ("seed", 1.0), ("partitions", 0), ("partitions", 3), ("partitions", 131_072), ("partitions", True), ("n", 0),
        ("n", 65), ("n", "3"), ("r", 4), ("w", -1), ("w", "quorum"), ("pr", 4), ("pw", None), ("buckets", []),
        ("buckets", {b"b": BucketDefinition()}), ("buckets", {"a b": {}}), ("buckets", {"größe": {}}),
        ("buckets", {"b": 1}), ("buckets", None), ("buckets", {"\ud800": {}}),
    ],
)  # fmt: skip
def test_a_wrong_field_of_the_cluster_is_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        Cluster.from_document({**PLAIN.to_document(), name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", "counter"), ("kind", []), ("n", 65), ("n", -1), ("r", 4), ("w", "quorum"), ("pr", True), ("pw", 65),
        ("value_bytes_max", 0), ("value_bytes_max", 1984 * 1024 + 1), ("siblings_max", 0), ("siblings_max", 10_001),
        ("version", -1),
    ],
)  # fmt: skip
def test_a_wrong_field_of_a_bucket_is_named_with_its_bucket(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"buckets\.fast\.{name}"):
        Cluster.from_document({**PLAIN.to_document(), "buckets": {"fast": {name: value}}})


@pytest.mark.parametrize("name", ["cluster_id", "secret", "seed", "partitions"])
def test_what_cannot_be_guessed_must_be_there(name: str) -> None:
    document = PLAIN.to_document()
    del document[name]
    with pytest.raises(ConfigError, match=name):
        Cluster.from_document(document)


scalars = st.one_of(st.none(), st.integers(), st.text(max_size=3), st.binary(max_size=3))


@given(st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner), max_leaves=5))
def test_junk_is_a_config_error(document: Any) -> None:
    with pytest.raises(ConfigError):
        Cluster.from_document(document)


def test_a_quorum_the_bucket_inherits_must_fit_its_n() -> None:
    with pytest.raises(ConfigError, match=r"buckets\.small\.w: 3 is more than n = 2"):
        Cluster(b"c" * 16, b"s" * 32, 5, w=3, buckets={b"small": BucketDefinition(n=2)})
    Cluster(b"c" * 16, b"s" * 32, 5, w=3, buckets={b"small": BucketDefinition(n=2, w=1)})


def test_the_secret_is_not_shown() -> None:
    assert b"s" * 32 not in repr(PLAIN).encode()


def test_limits_are_those_of_the_configuration() -> None:
    assert (model.N_MAX, model.PARTITIONS_MAX) == (config.N_MAX, config.PARTITIONS_MAX)
    assert tuple(model.KINDS) == config.KINDS
