"""Starts that must not be: each ends with exit code 7 and one line that names what to change, and the node that was there goes on, its data whole."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import dynamo
from dynamo.testing.cluster import ServedCluster, ServedNode

BAD_CONFIGURATION = 7
ENVIRON = os.environ | {"PYTHONPATH": str(Path(dynamo.__file__).parent.parent)}
# root may write anywhere, unless it gives up the capability to
AS_ANYBODY = ("setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override") if os.geteuid() == 0 else ()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedNode]:
    with ServedCluster(tmp_path_factory.mktemp("node"), nodes=1) as cluster:
        with dynamo.Client(cluster.addresses) as client:
            client.set("canary", b"alive")
        yield cluster.nodes[0]


@pytest.fixture(autouse=True)
def goes_on(served: ServedNode) -> Iterator[None]:
    pid = served.pid
    yield
    assert served.running and served.pid == pid
    with dynamo.Client(served.address) as client:
        assert client.get("canary").value == b"alive"


def refused(*arguments: str, through: tuple[str, ...] = ()) -> str:
    """What a start that is refused says."""
    command = [*through, sys.executable, "-P", "-m", "dynamo", "serve", *arguments]
    done = subprocess.run(command, env=ENVIRON, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (BAD_CONFIGURATION, ""), done
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def test_a_port_in_use(served: ServedNode, tmp_path: Path) -> None:
    said = refused("--data", str(tmp_path / "d"), "--listen", served.address)
    assert served.address in said and "in use" in said and "another port" in said


def test_a_directory_in_use(served: ServedNode) -> None:
    said = refused("--data", str(served.data), "--listen", "127.0.0.1:0")
    assert str(served.data) in said and f"in use by pid {served.pid}" in said


@pytest.mark.parametrize("kind", ["new", "of a node"])
def test_a_directory_that_cannot_be_written(served: ServedNode, tmp_path: Path, kind: str) -> None:
    if AS_ANYBODY and shutil.which(AS_ANYBODY[0]) is None:
        pytest.skip("root may write anywhere, and setpriv is not here to change that")
    data = tmp_path / "parent" / "d"
    data.parent.mkdir()
    if kind == "of a node":
        shutil.copytree(served.data, data)
        for file in data.iterdir():
            file.chmod(0o400)
        data.chmod(0o500)
    data.parent.chmod(0o500)
    try:
        said = refused("--data", str(data), "--listen", "127.0.0.1:0", through=AS_ANYBODY)
        assert str(data) in said and "ermission" in said
    finally:
        data.parent.chmod(0o700)
        if data.exists():
            data.chmod(0o700)


def test_a_file_in_place_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("mine")
    for path in (tmp_path / "f", tmp_path / "f" / "d"):
        assert str(path) in refused("--data", str(path), "--listen", "127.0.0.1:0")
    assert (tmp_path / "f").read_text() == "mine"


def test_a_directory_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert "thesis.txt" in refused("--data", str(tmp_path), "--listen", "127.0.0.1:0")
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_a_copied_directory_beside_its_original(served: ServedNode, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(served.data, copy)
    said = refused("--data", str(copy), "--listen", "127.0.0.1:0", "--join", served.address)
    assert "a copied data directory is the same node" in said


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: data.write_bytes(data.read_bytes()[:4096]), id="one page"),
        pytest.param(lambda data: data.write_bytes(b"\xff" * 65_536), id="noise"),
        pytest.param(lambda data: data.write_bytes(data.read_bytes()[:12_288]), id="cut off"),
        pytest.param(lambda data: data.write_bytes(data.read_bytes()[:-8192]), id="end cut off"),
        pytest.param(lambda data: data.write_bytes(data.read_bytes()[:16_384] + bytes(len(data.read_bytes()) - 16_384)), id="zeros"),
        pytest.param(lambda data: data.write_bytes(b""), id="empty"),
        pytest.param(lambda data: data.unlink(), id="absent"),
    ],
)
def test_a_damaged_data_file_is_an_error_not_a_crash(served: ServedNode, tmp_path: Path, damage: Callable[[Path], object]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(served.data, copy)
    damage(copy / "data.mdb")
    command = [sys.executable, "-P", "-m", "dynamo", "serve", "--data", str(copy), "--listen", "127.0.0.1:0", "--join", served.address]
    done = subprocess.run(command, env=ENVIRON, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode in (1, BAD_CONFIGURATION) and done.stdout == "" and "Traceback" not in done.stderr, done
    assert str(copy) in done.stderr


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[node]\ncolour = 1\n", "node.colour"),
        ("[cluster]\nreplicas = 3\n", "cluster.replicas"),
        ("[buckets.carts]\nttl_s = 60\n", "buckets.carts.ttl_s"),
        ("[buckets.carts]\nkind = 'counter'\n", "buckets.carts.kind"),
        ("[buckets.'a b']\nn = 1\n", "a b"),
        ("[node]\nlisten = 7379\n", "node.listen"),
        ("[node\n", "line 1"),
    ],
)
def test_a_configuration_that_cannot_be_meant(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "node.toml"
    file.write_text(text)
    said = refused("-c", str(file), "--data", str(tmp_path / "d"))
    assert str(file) in said and named in said
    assert not (tmp_path / "d").exists()


def test_settings_that_the_cluster_was_not_created_with(served: ServedNode, tmp_path: Path) -> None:
    for number, flags in enumerate((("--n", "2"), ("--partitions", "64"), ("--w", "3"))):
        said = refused("--data", str(tmp_path / str(number)), "--listen", "127.0.0.1:0", "--join", served.address, *flags)
        assert flags[0].strip("-") + ":" in said and flags[1] in said
    with dynamo.Client(served.address) as client:
        assert client.get("canary").owners_answered == 1  # none of them became a member
