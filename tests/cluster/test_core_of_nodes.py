"""Which core a node runs on is what it says itself, and a checkout that lies in the working directory is not what is started."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import Pipe
from pathlib import Path

import pytest

import dynamo
from dynamo._core import CORE
from dynamo.bench import Plan, run
from dynamo.bench.generator import work
from dynamo.bench.load import Connection
from dynamo.bench.protocols import DynamoTalk
from dynamo.errors import ConfigError
from dynamo.testing.cluster import ServedCluster, ServedNode, WrongCore, child_environment

OTHER = "pure" if CORE == "compiled" else "compiled"
FLAGS = ("--durability", "memory", "--n", "1")
QUICK = {"workload": "get", "connections": 2, "keys": 10, "seconds": 0.1, "warm_up_s": 0.0}
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: the package's sources without a compiled kernel, as a checkout has them beside an installation."""
    source = Path(dynamo.__file__).parent
    there = tmp_path / "checkout"
    shutil.copytree(source, there / "dynamo", ignore=shutil.ignore_patterns("*.so", "*.pyd", "*.pyx", "__pycache__"))
    shutil.copy(source.parent / "dynamo_kv.py", there)
    monkeypatch.chdir(there)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    return there


@pytest.fixture(scope="module")
def pure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedNode]:
    """A node on the pure core, whichever this process has."""
    node = ServedNode("pure", tmp_path_factory.mktemp("pure") / "data", FLAGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DYNAMO_PURE", "1")
        node.start()
    yield node
    node.stop()


def test_a_node_is_the_package_of_its_parent_whatever_lies_in_the_working_directory(checkout: Path, tmp_path: Path) -> None:
    with ServedCluster(tmp_path / "nodes", 1, FLAGS) as cluster:
        cluster.check_core(CORE)
        with pytest.raises(WrongCore, match=f"runs on the {CORE} core and not on the {OTHER} one"):
            cluster.check_core(OTHER)
        (measured,) = run(Plan(tuple(cluster.addresses), **QUICK), nodes_core=CORE)
        assert measured.nodes_core == CORE and measured.operations


def test_so_is_every_other_child(checkout: Path) -> None:
    show = [sys.executable, "-c", "import dynamo; print(dynamo.__file__)"]
    done = subprocess.run(show, env=child_environment(), capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == dynamo.__file__


@pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the benchmarks are not beside these tests")
def test_so_are_the_nodes_of_a_benchmark(checkout: Path) -> None:
    asked = [sys.executable, str(BENCHMARKS / "peers.py"), "--smoke", "--only", "put_synced_vs_relaxed_x16", "-o", "json"]
    environment = child_environment() | {"PYTHONSAFEPATH": ""}  # the script's own directory is where its modules are
    done = subprocess.run(asked, env=environment, capture_output=True, text=True, check=False, timeout=90)
    assert done.returncode == 0 and f"{CORE} core" in done.stderr, done.stderr


def test_a_node_tells_its_core_in_its_greeting_its_stats_and_its_status(pure: ServedNode) -> None:
    talk = DynamoTalk(pure.address, b"", operation_prefix=bytes(8))
    Connection(pure.address, talk, 1).socket.close()
    assert talk.core == "pure"
    with dynamo.Client(pure.address) as client:
        assert client.stats()["core"] == "pure" and client.cluster_status()["core"] == "pure"


def test_a_run_on_another_core_than_asked_is_refused(pure: ServedNode) -> None:
    assert run(Plan((pure.address,), **QUICK))[0].nodes_core == "pure"
    with pytest.raises(ConfigError, match=r"runs on the pure core, and the compiled one is to be measured"):
        run(Plan((pure.address,), **QUICK), nodes_core="compiled")


@pytest.mark.skipif(CORE == "pure", reason="there are not two cores here")
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_over_nodes_on_two_cores_is_refused(pure: ServedNode, tmp_path: Path, processes: int) -> None:
    with ServedCluster(tmp_path, 1, ("--durability", "memory")) as cluster, pytest.raises(ConfigError):
        run(Plan((pure.address, *cluster.addresses), load=False, processes=processes, **QUICK))


def test_a_generator_on_another_core_than_its_parent_is_refused(pure: ServedNode) -> None:
    ours, theirs = Pipe()
    work(Plan((pure.address,), **QUICK), 0, theirs, core=OTHER)
    what, (kind, text) = ours.recv()
    assert (what, kind) == ("error", "ConfigError") and f"runs on the {CORE} core" in text
