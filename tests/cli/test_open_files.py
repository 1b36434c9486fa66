"""How many files a node may have open: `dynamo serve` asks for as many as it takes connections, a program with a node in it is left as it is."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

import dynamo
from dynamo.net.limits import Limits

ENVIRON = os.environ | {"PYTHONPATH": str(Path(dynamo.__file__).parent.parent)}
HARD = resource.getrlimit(resource.RLIMIT_NOFILE)[1]


@contextmanager
def serving(data: Path, soft: int, hard: int) -> Iterator[tuple[int, int]]:
    """A node started with these limits: those it has when it is ready."""
    limits = f"ulimit -Sn {soft}; ulimit -Hn {hard}; exec "
    command = f"{sys.executable} -P -m dynamo serve --data {data} --listen 127.0.0.1:0 --stop-on-eof"
    with subprocess.Popen(["sh", "-c", limits + command], env=ENVIRON, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith(b"ready ")
        try:
            yield resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        finally:
            process.stdin.close()
            (data / "said").write_bytes(process.stderr.read())


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux tells of another process's limits")
@pytest.mark.skipif(2 * Limits().connections_max > HARD, reason="the hard limit here is too low")
def test_serve_asks_for_as_many_open_files_as_it_takes_connections(tmp_path: Path) -> None:
    with serving(tmp_path / "n", 256, HARD) as (soft, hard):
        assert Limits().connections_max < soft < Limits().connections_max + 1_000 and hard == HARD
    assert b"open files" not in (tmp_path / "n" / "said").read_bytes()


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux tells of another process's limits")
def test_serve_takes_what_there_is_and_says_so_in_a_line(tmp_path: Path) -> None:
    with serving(tmp_path / "n", 256, 512) as limits:
        assert limits == (512, 512)
    (said,) = [line for line in (tmp_path / "n" / "said").read_text().splitlines() if "open files" in line]
    assert "512" in said and f"{Limits().connections_max:,}" in said and "LimitNOFILE" in said


def test_a_limit_that_is_high_enough_is_left_and_so_is_that_of_a_program_with_a_node_in_it(tmp_path: Path) -> None:
    from dynamo.cli import open_files

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert open_files.provide_for(before[0] - 1_000) is None
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
    low = 512

    async def embedded() -> None:
        async with dynamo.Node(dynamo.NodeConfig(data=str(tmp_path / "n"), listen="127.0.0.1:0")) as node:
            await node.ready()
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (low, before[1])

    resource.setrlimit(resource.RLIMIT_NOFILE, (low, before[1]))
    try:
        trio.run(embedded)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
