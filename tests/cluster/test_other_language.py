"""`examples/client.mjs`, which was written from `docs/wire.md` alone, against a live node: what the document says is enough, and true.

Needs node, npm and npm's registry; without one of them the tests skip and say so, and with "node" in DYNAMO_REQUIRE they fail.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import dynamo
from dynamo.testing.cluster import ServedCluster

CLIENT = Path(__file__).parents[2] / "examples" / "client.mjs"
LINES_MAX = 200
Run = Callable[..., subprocess.CompletedProcess[str]]


def lacking(reason: str) -> None:
    if "node" in os.environ.get("DYNAMO_REQUIRE", ""):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the client and what it imports."""
    directory = tmp_path_factory.mktemp("javascript")
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            lacking(f"{tool} is not installed")
    install = ["npm", "install", "--no-audit", "--no-fund", "--cache", str(directory / "cache"), "@msgpack/msgpack@3"]
    try:
        done = subprocess.run(install, cwd=directory, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        lacking("npm install did not end within a minute")
    if done.returncode:
        lacking(f"npm cannot install @msgpack/msgpack: {done.stderr.strip()[-300:]}")
    shutil.copy(CLIENT, directory)
    return directory


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with ServedCluster(tmp_path_factory.mktemp("cluster"), nodes=1) as cluster:
        yield cluster.addresses[0]


def node(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["node", *arguments], cwd=directory, capture_output=True, text=True, timeout=30, check=False)


@pytest.fixture
def run(directory: Path, address: str) -> Callable[..., Any]:
    """Run the client's command line; its answer."""

    def run(*arguments: str) -> Any:
        done = node(directory, "client.mjs", address, *arguments)
        assert done.returncode == 0, done
        return json.loads(done.stdout)

    return run


def test_the_client_is_short() -> None:
    assert len(CLIENT.read_text().splitlines()) <= LINES_MAX


def test_put_get_siblings_delete(run: Callable[..., Any], directory: Path, address: str) -> None:
    absent = run("get", "alice")
    assert absent["values"] == []
    first = run("put", "alice", "1 book", absent["context"])
    assert run("get", "alice")["values"] == ["1 book"]
    assert run("put", "alice", "1 käse")["unseenSiblings"] == 1  # without a context: beside what is there
    both = run("get", "alice")
    assert sorted(both["values"]) == ["1 book", "1 käse"] and len(both["times"]) == 2
    assert run("put", "alice", "late", first["context"])["unseenSiblings"] == 1  # replaces the first alone
    assert sorted(run("get", "alice")["values"]) == ["1 käse", "late"]
    run("put", "alice", "merged", run("get", "alice")["context"])
    with dynamo.Client(address) as client:  # what one language writes, another reads, tokens included
        result = client.get("alice")
        assert result.values == (b"merged",)
        assert run("get", "alice")["context"] == str(result.context)
        client.put("alice", b"by python", context=run("get", "alice")["context"])
    run("delete", "alice", run("get", "alice")["context"])
    gone = run("get", "alice")
    assert gone["values"] == [] and gone["context"]
    run("set", "alice", "again")
    refused = node(directory, "client.mjs", address, "put", "bob", "x", gone["context"])
    assert refused.returncode == 1 and refused.stderr.startswith("InvalidContext: ")


def test_a_wrong_call_writes_nothing_and_says_so(directory: Path, run: Callable[..., Any], address: str) -> None:
    run("set", "kept", "1")
    for arguments in (("set", "kept"), ("put", "kept"), ("delete", "kept")):  # a value left out must not pass for nil, which deletes
        done = node(directory, "client.mjs", address, *arguments)
        assert done.returncode == 1 and done.stderr.startswith("TypeError: "), done
    done = node(directory, "client.mjs", address, "put", "kept", "2", "")
    assert done.returncode == 1 and done.stderr.startswith("InvalidContext: "), done
    assert run("get", "kept")["values"] == ["1"]
    for arguments in ((), (address,), (address, "get"), (address, "nonsense", "k")):
        done = node(directory, "client.mjs", *arguments)
        assert done.returncode == 1 and "usage: client.mjs HOST:PORT get KEY" in done.stderr, done


def test_a_server_that_says_nothing_is_a_timeout_and_the_end(directory: Path) -> None:
    program = """
    import { Client } from "./client.mjs";
    const error = await Client.connect(process.argv[2], { timeoutMs: 100 }).catch((error) => error);
    console.log(error.name);
    """
    (directory / "silent.mjs").write_text(program)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        done = node(directory, "silent.mjs", f"127.0.0.1:{silent.getsockname()[1]}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Timeout\n", "")


PROGRAM = """
import assert from "node:assert/strict";
import { Client, DynamoError } from "./client.mjs";

const client = await Client.connect(process.argv[2]);
const keys = Array.from({ length: 2000 }, (_, i) => `key-${i}`);
await Promise.all(keys.map((key) => client.set(key, key.repeat(40))));           // more in flight than a node takes, answered in any order
const answers = await Promise.all(keys.map((key) => client.get(key)));
answers.forEach(({ siblings }, i) => assert.equal(Buffer.from(siblings[0].value).toString(), keys[i].repeat(40)));
assert.equal(answers[0].ownersAnswered, 1);

const every = Buffer.from(Array.from({ length: 1 << 20 }, (_, i) => (i * 7) & 255));   // the largest value, over many segments
const written = await client.put(Buffer.from([0, 255, 128]), every, { bucket: "other" });
const read = await client.get(Buffer.from([0, 255, 128]), { bucket: "other" });
assert.ok(every.equals(read.siblings[0].value));
assert.equal(BigInt(read.siblings[0].dot.actor), BigInt(written.dot.actor));
assert.ok(BigInt(written.dot.actor) > 0n && BigInt(written.dot.counter) > 0n);
assert.ok(Math.abs(Date.now() - read.siblings[0].time) < 60_000);

const operation = Buffer.alloc(16, 7);                                            // a repeated write is the same one
const once = await client.put("twice", "x", { operation }), again = await client.put("twice", "x", { operation });
assert.deepEqual([once.dot, (await client.get("twice")).siblings.length], [again.dot, 1]);

const refused = async (promise, name) => {
  const error = await promise.then(() => assert.fail("not refused"), (error) => error);
  assert.ok(error instanceof DynamoError, error);
  assert.deepEqual([error.name, error.maybeApplied], [name, false], error.message);
};
await refused(client.get(""), "InvalidKey");
await refused(client.get("k".repeat(1025)), "KeyTooLong");
await refused(client.put("k", Buffer.alloc((1 << 20) + 1)), "ValueTooLarge");
await refused(client.put("k", "v", { context: Buffer.from("forged") }), "InvalidContext");
await refused(client.get("k", { pr: 2 }), "Unavailable");
await refused(Client.connect(process.argv[2], { clusterId: Buffer.alloc(16, 1) }), "ConfigError");
assert.throws(() => client.delete("k"), TypeError);
for (const nothing of [undefined, null, 5]) {
  assert.throws(() => client.set("k", nothing), TypeError);
  assert.throws(() => client.put("k", nothing), TypeError);
}
assert.equal((await client.get("k")).siblings.length, 0);
client.close();
console.log("passed");
"""


def test_many_requests_large_values_retries_and_errors(directory: Path, address: str) -> None:
    (directory / "program.mjs").write_text(PROGRAM)
    done = node(directory, "program.mjs", address)
    assert (done.returncode, done.stdout) == (0, "passed\n"), done.stderr
