"""What all nodes of a cluster agree on, fixed when the first one is created: identity, N and Q, quorums, buckets.

A `Cluster` travels and is stored as a document, a dict with str keys and values msgpack knows (`wire` turns it into
bytes). Keys a node does not know are ignored, so that later versions can add some; missing ones take the default,
except those that cannot be guessed without losing data: id, secret, seed and partitions.

In a bucket's definition 0 for n, r, w, pr or pw means the cluster's setting; in the cluster 0 for r or w is a majority.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from dynamo._core import record
from dynamo.errors import ConfigError, InvalidKey
from dynamo.model.key import check_bucket

N_MAX = 64
PARTITIONS_MAX = 65_536  # a row key holds the partition in two bytes
VALUE_BYTES_MAX = 1984 * 1024  # a record of one value stays below what a put may make of it, and four such below a frame
SIBLINGS_MAX = 10_000
BUCKETS_MAX = 2048  # their definitions travel in one message with all members
KINDS = {"siblings": record.SIBLINGS, "last_write_wins": record.LAST_WRITE_WINS}
_U64_MAX = (1 << 64) - 1
_QUORUMS = ("r", "w", "pr", "pw")


def _integer(name: str, value: Any, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise ConfigError(f"{name}: {value!r} is not an integer within {low}..{high}")


@dataclass(frozen=True)
class BucketDefinition:
    """How one bucket is kept (DESIGN section 2). `kind` and `n` are fixed when it is made. Raises ConfigError."""

    kind: str = "siblings"  # or "last_write_wins"
    n: int = 0
    r: int = 0
    w: int = 0
    pr: int = 0
    pw: int = 0
    value_bytes_max: int = 1024 * 1024
    siblings_max: int = 100
    version: int = 0  # changes of this definition; 0 for buckets that were never defined
    record_kind: int = field(init=False, repr=False, compare=False)  # `kind` as the record kernel numbers it

    def __post_init__(self) -> None:
        if type(self.kind) is not str or self.kind not in KINDS:
            raise ConfigError(f"kind: {self.kind!r} is not one of {', '.join(KINDS)}")
        for name in ("n", *_QUORUMS):
            _integer(name, getattr(self, name), 0, N_MAX)
        _integer("value_bytes_max", self.value_bytes_max, 1, VALUE_BYTES_MAX)
        _integer("siblings_max", self.siblings_max, 1, SIBLINGS_MAX)
        _integer("version", self.version, 0, _U64_MAX)
        object.__setattr__(self, "record_kind", KINDS[self.kind])

    def to_document(self) -> dict[str, Any]:
        """A dict of str, and int or str."""
        return {name: getattr(self, name) for name in _BUCKET_FIELDS}

    @classmethod
    def from_document(cls, document: Any) -> BucketDefinition:
        """Raises ConfigError, naming the key at fault."""
        if not isinstance(document, Mapping):
            raise ConfigError(f"{document!r} is not a bucket definition")
        return cls(**{name: document[name] for name in _BUCKET_FIELDS if name in document})


_BUCKET_FIELDS = tuple(f.name for f in fields(BucketDefinition) if f.init)
_UNDEFINED = BucketDefinition()


@dataclass(frozen=True)
class Cluster:
    """The cluster's document. Raises ConfigError, naming the field, when a value cannot be meant."""

    cluster_id: bytes  # 16 bytes
    secret: bytes = field(repr=False)  # 32 bytes; keys the tokens' MAC and proves membership
    seed: int  # u64, of positions and placement
    partitions: int = 256  # Q of the paper; a power of two
    n: int = 3
    r: int = 0
    w: int = 0
    pr: int = 0
    pw: int = 0
    buckets: Mapping[bytes, BucketDefinition] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name, size in (("cluster_id", 16), ("secret", 32)):
            value = getattr(self, name)
            if type(value) is not bytes or len(value) != size:
                raise ConfigError(f"{name}: not {size} bytes")
        _integer("seed", self.seed, 0, _U64_MAX)
        _integer("partitions", self.partitions, 1, PARTITIONS_MAX)
        if self.partitions & (self.partitions - 1):
            raise ConfigError(f"partitions: {self.partitions} is not a power of two")
        _integer("n", self.n, 1, N_MAX)
        for name in _QUORUMS:
            _integer(name, getattr(self, name), 0, N_MAX)
        _check_quorums("", self, None)
        if not isinstance(self.buckets, Mapping):
            raise ConfigError(f"buckets: {self.buckets!r} is not a table of definitions by name")
        if len(self.buckets) > BUCKETS_MAX:
            raise ConfigError(f"buckets: {len(self.buckets)} are defined, of at most {BUCKETS_MAX}; those of the cluster's own settings need no definition")
        object.__setattr__(self, "buckets", dict(self.buckets))  # our own: nobody changes it behind our back
        for bucket, definition in self.buckets.items():
            _check_name(bucket)
            if not isinstance(definition, BucketDefinition):
                raise ConfigError(f"buckets.{bucket.decode()}: {definition!r} is not a bucket definition")
            _check_quorums(f"buckets.{bucket.decode()}.", self, definition)

    def bucket(self, name: bytes) -> BucketDefinition:
        """The bucket's definition; one that was never defined has the defaults."""
        return self.buckets.get(name, _UNDEFINED)

    def to_document(self) -> dict[str, Any]:
        """A dict of str keys and values msgpack knows; `from_document` is its inverse."""
        document: dict[str, Any] = {name: getattr(self, name) for name in _CLUSTER_FIELDS}
        document["buckets"] = {name.decode(): self.buckets[name].to_document() for name in sorted(self.buckets)}
        return document

    @classmethod
    def from_document(cls, document: Any) -> Cluster:
        """Raises ConfigError for anything that is no cluster's document, naming the key at fault."""
        if not isinstance(document, Mapping):
            raise ConfigError("the cluster's document is not a map")
        for name in ("cluster_id", "secret", "seed", "partitions"):
            if name not in document:
                raise ConfigError(f"{name}: missing in the cluster's document")
        values = {name: document[name] for name in _CLUSTER_FIELDS if name in document}
        buckets = document.get("buckets", {})
        if not isinstance(buckets, Mapping):
            raise ConfigError(f"buckets: {buckets!r} is not a table of definitions by name")
        return cls(**values, buckets=dict(_bucket_item(name, definition) for name, definition in buckets.items()))


_CLUSTER_FIELDS = tuple(f.name for f in fields(Cluster) if f.name != "buckets")


def _bucket_item(name: Any, document: Any) -> tuple[bytes, BucketDefinition]:
    """One bucket of a cluster's document."""
    if type(name) is not str or not name.isascii():
        raise ConfigError(f"buckets: {name!r} is not a bucket name")
    try:
        return name.encode(), BucketDefinition.from_document(document)
    except ConfigError as error:
        raise ConfigError(f"buckets.{name}.{error}") from error


def _check_name(bucket: Any) -> None:
    if type(bucket) is not bytes:
        raise ConfigError(f"buckets: {bucket!r} is not a bucket name in bytes")
    try:
        check_bucket(bucket)
    except InvalidKey as error:
        raise ConfigError(f"buckets: {error}") from error


def _check_quorums(prefix: str, cluster: Cluster, bucket: BucketDefinition | None) -> None:
    """A quorum of more than N nodes could never be met."""
    n = (bucket and bucket.n) or cluster.n
    for name in _QUORUMS:
        needed = (bucket and getattr(bucket, name)) or getattr(cluster, name)
        if needed > n:
            raise ConfigError(f"{prefix}{name}: {needed} is more than n = {n}")
