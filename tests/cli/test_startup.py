"""What it costs to import dynamo and to start its commands: which modules, and how much time.

Times are judged by the fastest of many tries, on a scale set by how long Python alone takes at that moment: a busy machine then slows the
measure as much as what is measured. The limits are those of an ordinary machine, where Python alone takes 10 to 20 ms.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from time import perf_counter

import pytest
from fake_node import FakeNode, get_reply

PYTHON_S = 0.02  # Python alone, on the machine the limits are meant for
IMPORT_S = 0.040
GET_S = 0.250
TRIES = 25

HEAVY = {"asyncio", "cryptography", "dynamo.net", "dynamo.node", "dynamo.replication", "dynamo.storage", "lmdb", "rich", "ssl", "trio"}


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    done = subprocess.run([sys.executable, "-P", *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def modules(code: str) -> set[str]:
    """The modules that `code` loads and Python alone does not."""
    lines = start("-c", f"import sys\nbefore = set(sys.modules)\n{code}\nprint(*sorted(set(sys.modules) - before))").stdout.splitlines()
    return set(lines[-1].split())


def seconds(*arguments: str) -> float:
    began = perf_counter()
    start(*arguments)
    return perf_counter() - began


def fits(limit_s: Callable[[float], float], *arguments: str) -> bool:
    """Whether any try takes no longer than the limit, given how long Python alone takes at best."""
    alone = taken = float("inf")
    for _ in range(TRIES):
        alone = min(alone, seconds("-c", "pass"))
        taken = min(taken, seconds(*arguments))
        if taken <= limit_s(alone):
            return True
    print(f"Python alone took {alone * 1000:.1f} ms, with {arguments} {taken * 1000:.1f} ms")
    return False


@pytest.fixture
def address() -> Iterator[str]:
    with FakeNode(lambda message: get_reply(b"hello")) as node:
        yield node.address


# --- modules --------------------------------------------------------------------------------------------------------------------------


def test_importing_dynamo_imports_itself_alone() -> None:
    assert modules("import dynamo") - {"__future__"} == {"dynamo"}  # an editable installation has imported the other before


def test_the_client_imports_nothing_heavy() -> None:
    loaded = modules("from dynamo import Client, Context, Result, ConflictError")
    assert "dynamo.client" in loaded and not loaded & (HEAVY | {"click"})


def test_a_get_imports_nothing_heavy(address: str) -> None:
    loaded = modules(f"import dynamo_kv\nsys.argv = ['dynamo', 'get', '--at', {address!r}, 'alice']\nassert dynamo_kv.main() == 0")
    assert "dynamo.cli.keys" in loaded and not loaded & (HEAVY | {"importlib.metadata"})


def test_help_imports_no_command_that_serves() -> None:
    loaded = modules("import dynamo_kv\nsys.argv = ['dynamo', 'get', '--help']\nassert dynamo_kv.main() == 0")
    assert not loaded & HEAVY


# --- time -----------------------------------------------------------------------------------------------------------------------------


def test_importing_dynamo_takes_no_time() -> None:
    assert fits(lambda alone: alone + IMPORT_S * max(1.0, alone / PYTHON_S), "-c", "import dynamo")


def test_a_get_is_not_felt(address: str) -> None:
    assert fits(lambda alone: GET_S * max(1.0, alone / PYTHON_S), "-m", "dynamo_kv", "get", "--at", address, "alice")
