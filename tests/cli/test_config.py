"""NodeConfig: what it refuses and how it names it, where a setting may come from and who wins, and what it insists on at join."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dynamo.config import BucketConfig, NodeConfig, join_address, load, split_address
from dynamo.errors import ConfigError


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"data": ""}, "data"),
        ({"listen": "nowhere"}, None),  # a bare host gets the default port
        ({"listen": "h:65536"}, "listen"),
        ({"listen": "::1:7379"}, "listen"),
        ({"join": ("h:0",)}, "join"),
        ({"join": 5}, "join"),
        ({"name": "a b"}, "name"),
        ({"zone": "a\nb"}, "zone"),
        ({"capacity": 0}, "capacity"),
        ({"capacity": float("nan")}, "capacity"),
        ({"capacity": True}, "capacity"),
        ({"durability": "always"}, "durability"),
        ({"n": 0}, "n"),
        ({"n": "3"}, "n"),
        ({"r": 4}, "r"),
        ({"w": "most"}, "w"),
        ({"pw": -1}, "pw"),
        ({"partitions": 100}, "partitions"),
        ({"partitions": 131072}, "partitions"),
        ({"buckets": {"a b": {}}}, "buckets"),
        ({"buckets": {"a": {"colour": 1}}}, "buckets.a.colour"),
        ({"buckets": {"a": {"kind": "none"}}}, "buckets.a.kind"),
        ({"buckets": {"a": {"n": 1, "w": 2}}}, "buckets.a.w"),
        ({"buckets": {"a": BucketConfig(siblings_max=0)}}, "buckets.a.siblings_max"),
    ],
)
def test_a_value_that_cannot_be_meant_is_named(wrong: dict[str, Any], named: str | None) -> None:
    if named is None:
        NodeConfig(**{"data": "d", **wrong})
        return
    with pytest.raises(ConfigError, match=rf"^{named}\b"):
        NodeConfig(**{"data": "d", **wrong})


def test_values_come_to_one_form() -> None:
    config = NodeConfig("d", listen="[::1]", join="a:1, b", buckets={"cache": {"kind": "last_write_wins", "n": 1}})  # type: ignore[arg-type]
    assert (config.data, config.listen, config.join) == (Path("d"), "[::1]:7379", ("a:1", "b:7379"))
    assert config.buckets["cache"] == BucketConfig(kind="last_write_wins", n=1)


def test_a_bucket_takes_the_clusters_settings_where_it_has_none() -> None:
    config = NodeConfig("d", n=5, w=4, buckets={"own": {"n": 3, "w": 1}})
    assert (config.bucket("own").n, config.bucket("own").w, config.bucket("own").r) == (3, 1, "quorum")
    assert (config.bucket("other").n, config.bucket("other").w) == (5, 4)


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('[node]\ndata = "f"\nzone = "f"\ncapacity = 2\n[cluster]\nn = 5\nw = 2\n[buckets.b]\nsiblings_max = 7\n')
    environ = {"DYNAMO_ZONE": "e", "DYNAMO_N": "4", "DYNAMO_JOIN": "a:1,b:2", "DYNAMO_PURE": "1", "DYNAMO_NAME": ""}
    config = load(file, environ, {"n": 2, "r": "1", "join": (), "zone": None})
    assert (config.n, config.r, config.w) == (2, 1, 2)
    assert (config.data, config.zone, config.capacity, config.join) == (Path("f"), "e", 2.0, ("a:1", "b:2"))
    assert config.partitions == 256 and config.name is None and config.buckets["b"].siblings_max == 7


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[node]\ncolour = 1", "node.colour"),
        ("[node]\nn = 3", "node.n"),
        ("[cluster]\ndata = 'd'", "cluster.data"),
        ("[nodes]", "nodes"),
        ("node = 1", "node"),
        ("[node]\nlisten = 7379", "node.listen"),
        ("[buckets.b]\nttl = 1", "buckets.b.ttl"),
        ("[cluster]\nn = \n", "line 2"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_the_file_and_its_path(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "node.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load(file, {}, {"data": "d"})
    assert str(file) in str(raised.value) and named in str(raised.value)


def test_a_mistake_elsewhere_is_named_by_its_flag_or_variable() -> None:
    with pytest.raises(ConfigError, match=r"^DYNAMO_PARTITIONS: 'many'"):
        load(None, {"DYNAMO_PARTITIONS": "many"}, {"data": "d"})
    with pytest.raises(ConfigError, match=r"^--join-timeout-s"):
        load(None, {}, {"data": "d", "join_timeout_s": -1.0})
    with pytest.raises(ConfigError, match=r"^--w: 4 is more than n = 3"):
        load(None, {}, {"data": "d", "w": "4"})
    with pytest.raises(ConfigError, match=r"^DYNAMO_R: 3 is more than n = 2"):
        load(None, {"DYNAMO_R": "3"}, {"data": "d", "n": 2})
    with pytest.raises(ConfigError, match=r"--data"):
        load(None, {}, {})
    with pytest.raises(ConfigError, match=r"absent\.toml"):
        load("absent.toml", {}, {"data": "d"})


def test_what_others_are_told_comes_from_flag_variable_or_file(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('[node]\nadvertise = "db1:1"\n')
    assert load(None, {}, {"data": "d"}).advertise is None
    assert load(file, {}, {"data": "d"}).advertise == "db1:1"
    assert load(file, {"DYNAMO_ADVERTISE": "[fd00::1]:2"}, {"data": "d"}).advertise == "[fd00::1]:2"
    assert load(file, {"DYNAMO_ADVERTISE": "db1:2"}, {"data": "d", "advertise": "db1"}).advertise == "db1:7379"
    with pytest.raises(ConfigError, match=r"^--advertise: '0\.0\.0\.0:1' is every address"):
        load(None, {}, {"data": "d", "advertise": "0.0.0.0:1"})


def test_a_joining_node_insists_on_what_it_was_told_even_if_that_is_the_default() -> None:
    assert NodeConfig("d").asked() == {}
    assert NodeConfig("d", n=5, zone="z").asked() == {"n": 5}
    assert load(None, {"DYNAMO_PARTITIONS": "256"}, {"data": "d", "n": 3}).asked() == {"n": 3, "partitions": 256}


def test_addresses_come_back() -> None:
    for text in ("h:1", "[::1]:65535", "127.0.0.1:7379"):
        assert join_address(*split_address(text)) == text
    assert split_address("[::1]") == ("::1", 7379)


def test_the_order_of_the_settings_is_fixed() -> None:
    given = ("d", "h:1", ("h:2",), "n1", "z", 2.0, "relaxed", 5, 2, 3, 1, 2, 64, {"b": {}})
    config = NodeConfig(*given)
    names = ("data", "listen", "join", "name", "zone", "capacity", "durability", "n", "r", "w", "pr", "pw", "partitions", "buckets")
    assert {name: getattr(config, name) for name in names} == dict(zip(names, (Path("d"), *given[1:-1], {"b": BucketConfig()}), strict=True))
    with pytest.raises(TypeError):
        NodeConfig(*given, 60.0)  # type: ignore[misc]
