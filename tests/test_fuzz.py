"""A short run of every target of `ci/fuzz.py`; long ones are run by hand. Where atheris is not installed only the seeds' neighbours are tried."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from random import Random
from types import ModuleType

import pytest

FILE = Path(__file__).resolve().parent.parent / "ci" / "fuzz.py"
SECONDS = 1
NEIGHBOURS = 400  # of each target


def _load() -> ModuleType:
    specification = importlib.util.spec_from_file_location("dynamo_ci_fuzz", FILE)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


FUZZ = _load()


@pytest.mark.parametrize("target", FUZZ.TARGETS)
def test_sound_inputs_and_those_next_to_them(target: str) -> None:
    twins, random = FUZZ.Twins(), Random(1)
    seeds = list(FUZZ.corpus(target))
    assert seeds and all(len(seed) <= FUZZ.INPUT_BYTES_MAX for seed in seeds)
    for seed in seeds:
        FUZZ.TARGETS[target](twins, seed)
    for _ in range(NEIGHBOURS):
        data = bytearray(random.choice(seeds))
        for _ in range(random.randrange(1, 4)):
            at = random.randrange(len(data) + 1)
            data[at : at + random.randrange(3)] = random.choice((b"", b"\0", b"\xff", random.randbytes(1), random.randbytes(8)))
        FUZZ.TARGETS[target](twins, bytes(data[: FUZZ.INPUT_BYTES_MAX]))


def test_a_fault_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twins that differ in one function are told apart by a seed."""
    from dynamo._core import _record_py

    twins = FUZZ.Twins()
    monkeypatch.setattr(_record_py, "compare", lambda a, b: 9)
    if "record" not in twins.compared:
        pytest.skip("the record kernel has no compiled twin here")
    with pytest.raises(FUZZ.Disagreement, match=r"record\.compare"):
        for seed in FUZZ.corpus("record"):
            FUZZ.record(twins, seed)


@pytest.mark.parametrize("target", FUZZ.TARGETS)
def test_a_few_seconds_of_fuzzing(target: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris is not installed (the extra `fuzz`)", exc_type=ImportError)
    if os.environ.get("DYNAMO_PURE") == "1":
        pytest.skip("it compares both cores in any case")
    command = [sys.executable, str(FILE), target, "--seconds", str(SECONDS), "--seed", "1", "--artifacts", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert list(tmp_path.iterdir()) == []
