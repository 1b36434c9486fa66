"""What the surroundings of a command do to it: outputs that are closed or full, directories that cannot be made. One line, and an exit code."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_node import FakeNode, get_reply, put_reply, scan_reply

import dynamo
from dynamo.cli import main
from dynamo.model import messages as m
from dynamo.model.cluster import VALUE_BYTES_MAX


@pytest.fixture
def node() -> Iterator[FakeNode]:
    replies = {m.GET: get_reply(b"1"), m.PUT: put_reply(), m.SCAN: scan_reply((b"a", b"1"))}
    with FakeNode(lambda message: replies[message[0]]) as node:
        yield node


def shell(line: str, at: str = "") -> tuple[int, str, str]:
    """What `dynamo LINE` in a shell does."""
    environ = os.environ | {"PYTHONPATH": str(Path(dynamo.__file__).parent.parent), "DYNAMO_AT": at}
    done = subprocess.run(["bash", "-c", f"{sys.executable} -P -m dynamo {line}"], env=environ, capture_output=True, text=True, timeout=30, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("command", ["get k", "get k -o json", "set k v", "scan", "version"])
@pytest.mark.parametrize(("output", "why"), [(">/dev/full", "No space left on device"), (">&-", "standard output is closed")])
def test_an_output_that_takes_nothing(node: FakeNode, command: str, output: str, why: str) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    code, _, err = shell(f"{command} {output}", node.address)
    assert (code, err) == (1, f"dynamo: {why}\n")


def test_no_input_to_read_a_value_from(node: FakeNode) -> None:
    code, out, err = shell("set k - <&-", node.address)
    assert (code, out, err) == (1, "", "dynamo: standard input is closed\n") and not node.requests


@pytest.mark.parametrize("command", ["set k -", "put k -", "put k - --context dG9rZW4"])
def test_an_input_without_end_is_read_as_far_as_a_value_goes(node: FakeNode, command: str) -> None:
    code, out, err = shell(f"{command} </dev/zero", node.address)
    assert (code, out) == (1, "") and not node.requests
    assert err == f"dynamo: standard input has more than the {VALUE_BYTES_MAX} bytes that a value may have; nothing was written\n"


def test_a_value_as_large_as_any_bucket_takes_is_read_whole(node: FakeNode) -> None:
    code, _, err = shell(f"set k - < <(head -c {VALUE_BYTES_MAX} /dev/zero)", node.address)
    assert (code, err) == (0, "") and len(node.requests[0][4]) == VALUE_BYTES_MAX


def test_a_command_of_update_that_prints_without_end_is_ended(node: FakeNode) -> None:
    code, out, err = shell("update k yes", node.address)
    assert (code, out) == (1, "") and err.startswith("dynamo: what yes prints has more than ") and len(err.splitlines()) == 1
    assert [message[0] for message in node.requests] == [m.GET]


@pytest.mark.parametrize(
    "command", ["serve --data {} -c /dev/zero", "bench compare /dev/zero /dev/zero", "serve --data {} -c {}/deep", "bench compare {}/deep {}/deep"]
)
def test_a_file_without_an_end_or_a_bottom_is_no_configuration(tmp_path: Path, command: str) -> None:
    (tmp_path / "deep").write_text(("a = " if "serve" in command else "") + "[" * 100_000)
    code, out, err = shell(command.format(*[tmp_path] * 3))
    assert (code, out) == (7, "") and len(err.splitlines()) == 1 and err.startswith("dynamo: ")


@pytest.mark.parametrize("command", ["set k v", "put k v", "delete k --blind", "update k cat", "get k", "scan", "stats"])
def test_addresses_of_two_clusters_are_refused_before_anything_is_asked(node: FakeNode, command: str) -> None:
    with FakeNode(node.script) as sister, FakeNode(node.script, cluster_id=b"d" * 16) as other:
        code, out, err = shell(command, f"{node.address},{sister.address},{other.address}")
        assert (code, out) == (7, "") and len(err.splitlines()) == 1
        assert all(part in err for part in (node.address, sister.address, other.address, "63636363-6363", "64646464-6464"))
        assert not (node.requests or sister.requests or other.requests)


def test_a_node_that_is_not_there_or_says_nothing_does_not_keep_a_command_from_the_others(node: FakeNode) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        gone, mute = (f"127.0.0.1:{each.getsockname()[1]}" for each in (nobody, silent))
        began = time.monotonic()
        assert main(["set", "k", "v", "--at", f"{gone},{mute},{node.address}", "--timeout", "4"]) == 0
        assert time.monotonic() - began < 4


def test_a_benchmark_of_two_clusters_is_none(node: FakeNode) -> None:
    with FakeNode(node.script, cluster_id=b"d" * 16) as other:
        code, out, err = shell(f"bench --at {node.address},{other.address} --keys 10 --seconds 1 --processes 2 --connections 2")
        assert (code, out) == (7, "") and "2 clusters" in err and not node.requests and not other.requests


@pytest.mark.parametrize("path", ["file", "file/below", "closed/below", "closed"])
def test_a_demo_that_cannot_keep_its_data(tmp_path: Path, path: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "closed").mkdir(mode=0o500)
    if path.startswith("closed") and os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    assert main(["demo", "--keep", str(tmp_path / path)]) == 7
    out, err = capfd.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and err.startswith(f"dynamo: --keep {tmp_path / path}: ")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_bucket_name_that_is_no_text(node: FakeNode) -> None:
    code, out, err = shell("get k -b $'\\xff'", node.address)
    assert (code, out) == (1, "") and err.startswith("dynamo: ") and len(err.splitlines()) == 1
