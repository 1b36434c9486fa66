"""The kernels one by one, for pytest-benchmark: `pytest benchmarks/ --benchmark-only`. Ratios: `python benchmarks/ratios.py`."""

from __future__ import annotations

from typing import Any

import pytest
from cases import CASES, TWINS, Case

RUNS = [(case, which) for case in CASES for which in (*TWINS, *case.known) if case.pure or which != "pure"]


@pytest.mark.parametrize(("case", "which"), RUNS, ids=lambda part: part.name if isinstance(part, Case) else part)
def test_kernel(benchmark: Any, case: Case, which: str) -> None:
    try:
        call = case.call(which)
    except ImportError as error:
        pytest.skip(str(error))
    benchmark.group = case.name
    benchmark.extra_info.update(core=which, items=case.items)
    if case.pure:
        benchmark(call)
    else:
        benchmark.pedantic(call, rounds=3)
