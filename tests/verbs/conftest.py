"""One cluster for the whole directory, and every way of using dynamo on it; each test has a bucket of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import dynamo
from dynamo.testing.cluster import ServedCluster

sys.path.insert(0, str(Path(__file__).parent))
from facade import Face, in_asyncio, in_trio

_numbers = count()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedCluster]:
    with ServedCluster(tmp_path_factory.mktemp("verbs"), 3, ["--durability", "relaxed"]) as cluster:
        yield cluster


@pytest.fixture(scope="session", params=["client", "store", "trio", "asyncio", "node"])
def owner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Whoever has the verbs for the bucket `default`. The node is a fourth member of the cluster, and comes last."""
    with ExitStack() as stack:
        if request.param == "store":
            yield stack.enter_context(dynamo.open(tmp_path_factory.mktemp("store") / "data", durability="relaxed"))
            return
        addresses = request.getfixturevalue("cluster").addresses
        if request.param == "client":
            yield stack.enter_context(dynamo.Client(addresses, timeout=20))
            return
        if request.param == "node":
            data = str(tmp_path_factory.mktemp("node") / "n4")
            node = dynamo.Node(dynamo.NodeConfig(data=data, listen="127.0.0.1:0", join=tuple(addresses), durability="relaxed"))
            call = stack.enter_context(in_trio(node))
            call(node.ready)
            yield Face(node, call)
            return
        call = stack.enter_context(in_asyncio() if request.param == "asyncio" else in_trio())
        client = dynamo.AsyncClient(addresses, timeout=20)
        stack.callback(call, client.close)
        yield Face(client, call)


@pytest.fixture
def bucket_name() -> str:
    return f"bucket-{next(_numbers)}"


@pytest.fixture
def kv(owner: Any, bucket_name: str) -> Any:
    """The verbs on a bucket that nobody else uses."""
    return owner.bucket(bucket_name)
