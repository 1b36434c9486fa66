"""Every Python snippet of the README runs as it stands, on a real cluster where it names an address, and prints what it says it prints."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dynamo
from dynamo.config import load
from dynamo.testing.cluster import ServedCluster

README = Path(__file__).parents[1] / "README.md"
ADDRESS = "127.0.0.1:7379"
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.M | re.S)
PRINTED = re.compile(r"^\s*print\(.*\)\s+# (.*)$", re.M)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedCluster]:
    with ServedCluster(tmp_path_factory.mktemp("readme"), 1) as cluster:
        yield cluster


def test_the_first_snippet_is_the_embedded_store_and_all_ways_are_shown() -> None:
    assert "dynamo.open(" in SNIPPETS[0]
    for name in ("Client", "AsyncClient", "Node"):
        assert any(f"dynamo.{name}(" in snippet for snippet in SNIPPETS)


def test_the_configuration_file_is_one(tmp_path: Path) -> None:
    (text,) = re.findall(r"^```toml\n(.*?)^```", README.read_text(), re.M | re.S)
    (tmp_path / "node.toml").write_text(text)
    config = load(tmp_path / "node.toml", {}, {})
    assert config.join == ("10.0.0.1:7379", "10.0.0.2:7379") and config.buckets["sessions"].kind == "last_write_wins"


@pytest.mark.parametrize("snippet", SNIPPETS, ids=[str(number) for number in range(1, len(SNIPPETS) + 1)])
def test_a_snippet_runs_and_prints_what_it_says(snippet: str, cluster: ServedCluster, tmp_path: Path) -> None:
    program = snippet.replace(ADDRESS, cluster.addresses[0])
    environ = os.environ | {"PYTHONPATH": str(Path(dynamo.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-P", "-Werror", "-c", program], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == PRINTED.findall(snippet) != []
