"""Tries the dynamo that is installed for this Python, from an empty directory: it is the one expected, its kernels pass their tests, and what
is put through one node of `dynamo demo` is got from another.

    python ci/try_wheel.py compiled|pure        run by ci/wheels.py and by cibuildwheel, with its `test-requires` installed
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

PROJECT = Path(__file__).resolve().parent.parent
DYNAMO = f"{sysconfig.get_path('scripts')}/dynamo"
START_S = 60.0


def main(core: str) -> None:
    """Raises AssertionError, or CalledProcessError, for a wheel that is not right."""
    spec = find_spec("dynamo")
    assert spec is not None and spec.origin is not None, "dynamo is not installed"
    assert PROJECT not in Path(spec.origin).parents or "site-packages" in spec.origin, f"{spec.origin} is the checkout, not a wheel"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DYNAMO_", "PYTHONPATH"))}
    if core == "compiled":
        environment["DYNAMO_REQUIRE"] = "compiled"
    with TemporaryDirectory() as empty:
        os.chdir(empty)
        try_version(core, environment)
        try_cluster(environment)
        try_kernels(core, environment)
        os.chdir(PROJECT)


def try_kernels(core: str, environment: dict[str, str]) -> None:
    """The kernels this wheel was built for pass their tests by example (of the pure wheel, those of its smaller ones), and the compiled ones agree
    with their pure twins. It is the same code that ci/test.sh tries at length, so what can go wrong here is the build."""
    pytest = [sys.executable, "-m", "pytest", "-c", f"{PROJECT}/pyproject.toml", "--rootdir", f"{PROJECT}", "-p", "no:cacheprovider", "-q"]
    selection = {
        "compiled": "hypothesis and agree or not hypothesis and not [py and not test_build and not hostile and not model",
        "pure": "not hypothesis and (test_row or test_merkle) and not [c and not agree",
    }[core]
    subprocess.run([*pytest, f"{PROJECT}/tests/core", "-k", selection], env=environment | {"DYNAMO_EXAMPLES": "5"}, check=True)


def try_version(core: str, environment: dict[str, str]) -> None:
    """The command says which core it runs on, and whoever got the slow one is told."""
    done = subprocess.run([DYNAMO, "version"], env=environment, capture_output=True, text=True, check=True)
    print(done.stdout, end="", flush=True)
    assert f" core={core} " in done.stdout, f"expected the {core} core: {done.stdout}"
    assert ("pure-Python core" in done.stderr) == (core == "pure"), done.stderr


def try_cluster(environment: dict[str, str]) -> None:
    """Three processes; a put to each is got from the next, and all end in order."""
    demo = subprocess.Popen([DYNAMO, "demo"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert demo.stdout is not None
    try:
        ready = [demo.stdout.readline() for _ in range(3)]  # it gives up by itself when a node does not start
        nodes = [line.split("address=")[1].split()[0] for line in ready]
        for i, node in enumerate(nodes):
            subprocess.run([DYNAMO, "put", "--at", node, f"key{i}", f"value {i}"], env=environment, check=True, stdout=subprocess.DEVNULL)
            asked = [DYNAMO, "get", "--at", nodes[i - 1], f"key{i}"]
            got = subprocess.run(asked, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
            assert got == f"value {i}\n", got
        demo.send_signal(signal.SIGTERM)
        assert demo.wait(START_S) == 0, demo.returncode
    finally:
        demo.kill()
        demo.wait()
        demo.stdout.close()
    print("3 nodes: put, got and ended", flush=True)


if __name__ == "__main__":
    if sys.argv[1:] not in (["compiled"], ["pure"]):
        sys.exit(__doc__)
    main(sys.argv[1])
