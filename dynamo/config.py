"""What a node is told when it starts: one value, checked once, passed down. No globals, no defaults hidden elsewhere.

Two kinds of settings live here and must not be mixed up. *Per-node* ones may differ on every machine and may change at any restart.
*Cluster-wide* ones (`CLUSTER_WIDE`) are written into the cluster's document when its first node is created; a node that joins takes
them from there, and one that asks for something else is refused (`NodeConfig.asked`), because two opinions about N or Q would split the
data.

A setting comes from, strongest first: a flag, a `DYNAMO_*` environment variable, the TOML file, the default. Every complaint names the
place. A leaf of the package: it imports the standard library and `dynamo.errors` only.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynamo.errors import ConfigError

DEFAULT_PORT = 7379
QUORUM = "quorum"
KINDS = ("siblings", "last_write_wins")
DURABILITIES = ("memory", "buffered", "relaxed", "synced")
CLUSTER_WIDE = ("n", "r", "w", "pr", "pw", "partitions", "buckets")
N_MAX = 64
FILE_BYTES_MAX = 1 << 20
PARTITIONS_MAX = 65_536  # a row key holds the partition in two bytes
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")


def split_address(text: str, *, where: str = "address", port_min: int = 1) -> tuple[str, int]:
    """(host, port) of `host:port`, `[v6]:port` or a bare host, which gets the default port 7379. Raises ConfigError."""
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        host, port = text, str(DEFAULT_PORT)
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if not host or (":" in host) != bracketed or any(c.isspace() for c in host):
        raise ConfigError(f"{where}: {text!r} is not of the form HOST:PORT (an IPv6 host goes in brackets)")
    if not (port.isascii() and port.isdecimal()) or not port_min <= int(port) <= 65_535:
        raise ConfigError(f"{where}: the port of {text!r} is not a number from {port_min} to 65535")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 host; the inverse of `split_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True, slots=True)
class BucketConfig:
    """One bucket's definition, as asked for when the cluster is created. `None` takes the cluster's setting."""

    kind: str = "siblings"
    """`siblings` keeps concurrent writes side by side until a client merges them and never loses one. `last_write_wins` keeps the one with
    the higher timestamp: simpler to use, and it silently drops the other of two concurrent writes. Fixed when the bucket is made."""

    n: int | None = None
    """Replicas of each key in this bucket. Fixed when the bucket is made, as it decides where data lies."""

    r: int | str | None = None
    """Nodes that must answer a read; see `NodeConfig.r`."""

    w: int | str | None = None
    """Nodes that must confirm a write; see `NodeConfig.w`."""

    pr: int | None = None
    """Of those that answer a read, how many must be owners; see `NodeConfig.pr`."""

    pw: int | None = None
    """Of those that confirm a write, how many must be owners; see `NodeConfig.pw`."""

    value_bytes_max: int = 1024 * 1024
    """Largest value a client may put. Records travel whole, so large values cost every replica, repair and transfer; a megabyte keeps the
    tail short."""

    siblings_max: int = 100
    """Siblings at which a put that does not reduce them is refused. It bounds what a client that never merges can do to a key; merges
    between replicas are never refused."""


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """Everything a node is told. Raises ConfigError, naming the setting, when a value cannot be meant.

    The order of the settings up to `buckets` is fixed: they may be given by position. Later ones are given by name.
    """

    data: str | os.PathLike[str]
    """Data directory; made when absent, locked while in use. It holds the node's identity: a copy of it is the same node, and only one
    of the two may run. Relative paths start at the working directory."""

    listen: str = "127.0.0.1:7379"
    """Address to listen on, and the one other nodes are told unless `advertise` says another. Port 0 takes a free one (the ready line says which).
    The default is reachable from this machine only: there is no authentication yet, so open it to a network you trust and no further."""

    join: tuple[str, ...] = ()
    """Addresses of nodes of the cluster to join; any one that answers is enough, and two of different clusters are refused. A node that returns asks
    them too, as long as some member cannot be reached. Empty: found a new cluster, or, where the data directory already belongs to one, return to
    it. So give it to all nodes but the first; once the cluster stands also to that one, or it founds a second cluster should it lose its disk."""

    name: str | None = None
    """Name shown in logs and status. None: made from the address. Names help people only; the node's id is in its data directory."""

    zone: str = ""
    """Failure domain (rack, data centre). Told to the others so that placement can keep replicas apart."""

    capacity: float = 1.0
    """Share of the data relative to other nodes, in steps of a thousandth: 2.0 takes twice as many partitions as 1.0, and twice the
    load."""

    durability: str = "synced"
    """What an acknowledgement of this node means. `synced`: on disk and fsynced, the only one that survives power loss of all replicas
    at once. `relaxed`: handed to the kernel; survives a crash of the process, and several times the writes. `buffered`: in a buffer that is
    written and fsynced within about a tenth of a second, and asked of one more replica on disk; lost where all nodes that acknowledged it crash before
    that. `memory`: lost with the process."""

    n: int = 3
    """Replicas of each key (the paper's N). More survive more failures and cost as many writes. Fixed when the cluster is created."""

    r: int | str = QUORUM
    """Nodes that must answer a read. `quorum` is a majority of N (of the members while there are fewer), so that reads overlap with writes;
    1 is fastest and may be stale."""

    w: int | str = QUORUM
    """Nodes that must hold a write before it is acknowledged. `quorum` as for `r`; 1 never refuses a write and may lose it with that
    one disk."""

    pr: int = 0
    """Of the nodes that answer a read, how many must be owners of the key rather than stand-ins. 0 keeps reads available (sloppy quorum);
    a majority here and in `pw` makes a read see every acknowledged write, and refuses what it cannot promise."""

    pw: int = 0
    """Of the nodes that confirm a write, how many must be owners of the key; see `pr`."""

    partitions: int = 256
    """Equal parts of the hash space (the paper's Q), a power of two. Ten or more a node balance well; more cost memory and gossip. It can
    never change, so choose it for the largest cluster you will want."""

    buckets: Mapping[str, BucketConfig] = field(default_factory=dict)
    """Bucket definitions by name; plain dicts are accepted. Buckets not named here have the cluster's settings."""

    join_timeout_s: float = field(default=60.0, kw_only=True)
    """How long an unreachable `join` is retried before the node gives up, in seconds. Long enough to start a whole cluster in any order."""

    advertise: str | None = field(default=None, kw_only=True)
    """Address that other nodes are told, where it is not the one in `listen`: behind a port that is forwarded, or with `listen` on every interface
    (0.0.0.0, ::). Port 0 stands for the one really bound. None: `listen`, or for every interface the address of the default route; where there is
    none, starting fails."""

    explicit: frozenset[str] = field(default=frozenset(), repr=False, compare=False, kw_only=True)
    """Names of settings that were asked for even though they equal the default; `load` fills it in. See `asked`."""

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))
        _check_quorums(_quorums_of(self), str)
        for name in self.buckets:
            _check_quorums(_quorums_of(self.bucket(name)), f"buckets.{name}.{{}}".format)

    def asked(self) -> dict[str, Any]:
        """The cluster-wide settings this configuration insists on. One that differs from the cluster's own must be refused at join."""
        defaults = {f.name: f.default for f in dataclasses.fields(self)} | {"buckets": {}}
        return {name: getattr(self, name) for name in CLUSTER_WIDE if name in self.explicit or getattr(self, name) != defaults[name]}

    def bucket(self, name: str) -> BucketConfig:
        """The definition of a bucket with the cluster's settings filled in."""
        own = self.buckets.get(name, BucketConfig())
        inherited = {key: getattr(self, key) for key in ("n", "r", "w", "pr", "pw") if getattr(own, key) is None}
        return dataclasses.replace(own, **inherited)


def load(file: str | os.PathLike[str] | None, environ: Mapping[str, str], flags: Mapping[str, Any]) -> NodeConfig:
    """The configuration of flags, environment, TOML file and defaults, in falling strength. A flag of None was not given.

    Raises ConfigError naming the flag, variable or `file: [section] key` at fault.
    """
    said: dict[str, tuple[str, Any]] = _read_toml(Path(file)) if file is not None else {}
    for name in _CHECKS:
        variable = f"DYNAMO_{name.upper()}"
        if name != "buckets" and environ.get(variable):
            said[name] = (variable, _typed(name, environ[variable]))
        if flags.get(name) not in (None, ()):
            said[name] = (f"--{name.replace('_', '-')}", _typed(name, flags[name]))
    if "data" not in said:
        raise ConfigError("data: say where the data is kept: --data DIR, DYNAMO_DATA, or data in [node]")
    values = {name: _CHECKS[name](where, value) for name, (where, value) in said.items()}
    _check_quorums(_quorums_of(NodeConfig(values["data"])) | values, lambda name: said[name][0] if name in said else name)
    return NodeConfig(**values, explicit=frozenset(values))


def _read_toml(file: Path) -> dict[str, tuple[str, Any]]:
    """setting -> (where it stands, its value) of a TOML file."""
    import tomllib  # here, because only `serve` reads files and every client command imports this module

    try:
        with file.open("rb") as stream:
            text = stream.read(FILE_BYTES_MAX + 1)
        if len(text) > FILE_BYTES_MAX:
            raise ConfigError(f"{file}: has more than {FILE_BYTES_MAX} bytes, which no configuration has")
        document = tomllib.loads(text.decode("utf-8"))
    except ConfigError:
        raise
    except RecursionError:
        raise ConfigError(f"{file}: nested too deeply") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: {error}") from error
    sections: dict[str, set[str]] = {"node": set(_CHECKS) - set(CLUSTER_WIDE), "cluster": set(CLUSTER_WIDE) - {"buckets"}}
    refuse_unknown(f"{file}: ", document, (*sections, "buckets"))
    said: dict[str, tuple[str, Any]] = {}
    for section, known in sections.items():
        table = document.get(section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{file}: {section} is not a table; write [{section}]")
        refuse_unknown(f"{file}: {section}.", table, known)
        said |= {name: (f"{file}: {section}.{name}", value) for name, value in table.items()}
    if "buckets" in document:
        said["buckets"] = (f"{file}: buckets", document["buckets"])
    return said


def _typed(name: str, value: Any) -> Any:
    """A value given as text, as the type its setting has; what cannot be read stays text, for the check to complain about."""
    kind = float if name in ("capacity", "join_timeout_s") else int if name in ("n", "r", "w", "pr", "pw", "partitions") else None
    if kind is None or not isinstance(value, str):
        return value
    try:
        return kind(value)
    except ValueError:
        return value


# --- checks: (where, value) -> the value in its normal form -------------------------------------------------------------------------

Check = Callable[[str, Any], Any]


def _whole(low: int, high: int) -> Check:
    def check(where: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ConfigError(f"{where}: {value!r} is not a whole number from {low} to {high}")
        return value

    return check


def _positive(high: float, low: float = 0.001) -> Check:
    def check(where: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not low <= value <= high:
            raise ConfigError(f"{where}: {value!r} is not a number from {low} to {high}")
        return float(value)

    return check


def _one_of(*choices: str) -> Check:
    def check(where: str, value: Any) -> str:
        if value not in choices:
            raise ConfigError(f"{where}: {value!r} is none of {', '.join(choices)}")
        return str(value)

    return check


def _quorum(where: str, value: Any) -> int | str:
    return QUORUM if value == QUORUM else int(_whole(1, N_MAX)(f'{where} (or "quorum")', value))


def _optional(check: Check) -> Check:
    return lambda where, value: None if value is None else check(where, value)


def _name(where: str, value: Any) -> str:
    if not isinstance(value, str) or not _NAME.match(value):
        raise ConfigError(f"{where}: {value!r} is not of the form [A-Za-z0-9_.-]{{1,64}}")
    return value


def _data(where: str, value: Any) -> Path:
    if not isinstance(value, str | os.PathLike) or not os.fspath(value) or "\0" in str(value):
        raise ConfigError(f"{where}: {value!r} is not the path of a directory")
    return Path(value)


def _listen(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{where}: {value!r} is not of the form HOST:PORT")
    return join_address(*split_address(value, where=where, port_min=0))


def _advertise(where: str, value: Any) -> str:
    from ipaddress import ip_address  # here, because only a node advertises and every client command imports this module

    text = _listen(where, value)
    host = split_address(text, where=where, port_min=0)[0].partition("%")[0]
    try:
        parsed = ip_address(host)
    except ValueError:
        return text
    if (getattr(parsed, "ipv4_mapped", None) or parsed).is_unspecified:
        raise ConfigError(f"{where}: {value!r} is every address of a machine, which nobody can dial; give one that other nodes reach")
    return text


def _join(where: str, value: Any) -> tuple[str, ...]:
    addresses = value.split(",") if isinstance(value, str) else value
    if not isinstance(addresses, list | tuple) or not all(isinstance(address, str) for address in addresses):
        raise ConfigError(f"{where}: {value!r} is not a list of HOST:PORT")
    return tuple(join_address(*split_address(address.strip(), where=where)) for address in addresses)


def _partitions(where: str, value: Any) -> int:
    count = int(_whole(2, PARTITIONS_MAX)(where, value))
    if count & (count - 1):
        raise ConfigError(f"{where}: {count} is not a power of two; the nearest are {1 << count.bit_length() - 1} and {1 << count.bit_length()}")
    return count


def _buckets(where: str, value: Any) -> dict[str, BucketConfig]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: {value!r} is not a table of buckets by name")
    return {_name(where, name): _bucket(f"{where}.{name}", asked) for name, asked in value.items()}


def _bucket(where: str, value: Any) -> BucketConfig:
    if isinstance(value, BucketConfig):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: {value!r} is not a table of settings")
    refuse_unknown(f"{where}.", value, _BUCKET_CHECKS)
    return BucketConfig(**{name: _BUCKET_CHECKS[name](f"{where}.{name}", asked) for name, asked in value.items()})


def refuse_unknown(prefix: str, given: Iterable[str], known: Collection[str]) -> None:
    """Raises ConfigError naming the path of the first key that is no setting, and what would have been."""
    for name in given:
        if name not in known:
            raise ConfigError(f"{prefix}{name}: no such setting; known are {', '.join(sorted(known))}")


def _quorums_of(settings: NodeConfig | BucketConfig) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in ("n", "r", "w", "pr", "pw")}


def _check_quorums(quorums: Mapping[str, Any], where: Callable[[str], str]) -> None:
    """Quorums larger than N could never be met. `where(name)`: what the setting is called where it was given."""
    for name in ("r", "w", "pr", "pw"):
        if isinstance(quorums[name], int) and quorums[name] > quorums["n"]:
            raise ConfigError(f"{where(name)}: {quorums[name]} is more than n = {quorums['n']}")


_CHECKS: dict[str, Check] = {
    "data": _data,
    "listen": _listen,
    "join": _join,
    "name": _optional(_name),
    "zone": lambda where, value: value if value == "" else _name(where, value),
    "capacity": _positive(1000.0),
    "durability": _one_of(*DURABILITIES),
    "join_timeout_s": _positive(86_400.0),
    "advertise": _optional(_advertise),
    "n": _whole(1, N_MAX),
    "r": _quorum,
    "w": _quorum,
    "pr": _whole(0, N_MAX),
    "pw": _whole(0, N_MAX),
    "partitions": _partitions,
    "buckets": _buckets,
}
_BUCKET_CHECKS: dict[str, Check] = {
    "kind": _one_of(*KINDS),
    **{name: _optional(_CHECKS[name]) for name in ("n", "r", "w", "pr", "pw")},
    "value_bytes_max": _whole(1, 1984 * 1024),
    "siblings_max": _whole(1, 10_000),
}
