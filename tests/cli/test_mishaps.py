"""What the surroundings of a command do to it: outputs that are closed or full, directories that cannot be made. One line, and an exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_node import FakeNode, get_reply, put_reply, scan_reply

import dynamo
from dynamo.cli import main
from dynamo.model import messages as m


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
