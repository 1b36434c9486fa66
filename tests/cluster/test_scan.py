"""Scans and verbs for many keys while one of three nodes is down."""

from __future__ import annotations

from pathlib import Path

import dynamo
from dynamo.testing.cluster import ServedCluster


def test_scans_and_many_keys_while_a_node_is_down_and_after_it_came_back(tmp_path: Path) -> None:
    with ServedCluster(tmp_path, 3, ["--durability", "relaxed"]) as cluster, dynamo.Client(cluster.addresses) as client:
        before = {b"before-%d" % i: b"%d" % i for i in range(400)}
        assert all(isinstance(outcome, dynamo.Context) for outcome in client.set_many(before).values())
        victim = cluster.nodes[1]
        victim.kill()
        gone = [b"before-%d" % i for i in range(0, 400, 7)]
        contexts = {key: result.context for key, result in client.get_many(gone).items() if isinstance(result, dynamo.Result)}
        deleted = client.put_many(dict.fromkeys(gone, dynamo.DELETE), contexts=contexts)
        during = {b"during-%d" % i: b"%d" % i for i in range(100)}
        assert all(isinstance(outcome, dynamo.Context) for outcome in (deleted | client.set_many(during)).values())
        live = {key: value for key, value in (before | during).items() if key not in gone}

        results = list(client.scan())
        assert {result.key: result.value for result in results} == live and len(results) == len(live)
        half = list(client.scan("before", limit=170))
        rest = list(client.scan("before", cursor=half[-1].cursor))
        assert sorted(result.key for result in half + rest) == sorted(key for key in live if key.startswith(b"before"))

        victim.start()
        with dynamo.Client(victim.address) as back:  # it lacks what was written meanwhile, and asks another owner too
            assert {result.key: result.value for result in back.scan()} == live
            assert {key: result.value for key, result in back.get_many(live).items() if isinstance(result, dynamo.Result)} == live
