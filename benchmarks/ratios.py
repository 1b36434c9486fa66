"""Prints how much faster the compiled kernels are than the pure ones, and than known packages, as a table.

    python benchmarks/ratios.py [--pairs N] [WORD...]        cases whose name has one of the words; all without

The contenders of a case take turns, so that a change of the machine's mood meets all of them. Of each round the ratio
is taken; the table has the median of the ratios and between which two four fifths of them lie. Times are medians, and
of the processor: what other processes take is left out, what they push out of its caches is not.
"""

from __future__ import annotations

import argparse
import gc
import platform
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from time import process_time
from typing import Any

from cases import CASES, TWINS, Case

SAMPLE_S = 0.004  # one sample is as many calls as take so long


def sample(call: Callable[[], Any], repeats: int) -> float:
    """Processor seconds per call."""
    start = process_time()
    for _ in range(repeats):
        call()
    return (process_time() - start) / repeats


def contest(case: Case, pairs: int) -> dict[str, list[float]]:
    """Seconds per call of each contender, round by round."""
    calls: dict[str, Callable[[], Any]] = {}
    for which in (*TWINS, *case.known):
        if case.pure or which != "pure":
            try:
                calls[which] = case.call(which)
            except ImportError:
                continue  # a package that is not installed
    repeats = {which: max(1, round(SAMPLE_S / sample(call, 1))) for which, call in calls.items()}
    times: dict[str, list[float]] = {which: [] for which in calls}
    for _ in range(pairs if case.pure else 3):
        for which, call in calls.items():
            times[which].append(sample(call, repeats[which]))
    return times


def duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def ratio(slower: list[float], faster: list[float]) -> str:
    ratios = [a / b for a, b in zip(slower, faster, strict=True)]
    tenths = quantiles(ratios, n=10) if len(ratios) > 2 else [min(ratios), max(ratios)]
    return f"{median(ratios):.3g} ({tenths[0]:.3g}-{tenths[-1]:.3g})"


def row(case: Case, times: dict[str, list[float]]) -> str:
    compiled = times["compiled"]
    each = f"{duration(median(compiled) / case.items)}" if case.items > 1 else "-"
    against_pure = ratio(times["pure"], compiled) if "pure" in times else "-"
    others = [f"{name} {ratio(times[name], compiled)}" for name in case.known if name in times]
    return f"| {case.name} | {duration(median(compiled))} | {each} | {against_pure} | {', '.join(others) or '-'} |"


def processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description="ratios of the compiled kernels to the pure ones")
    parser.add_argument("--pairs", type=int, default=31, help="rounds a case")
    parser.add_argument("words", nargs="*", help="only cases whose name has one of these")
    chosen = parser.parse_args()
    print(f"{processor()}; {platform.python_implementation()} {platform.python_version()}; {chosen.pairs} rounds\n")
    print("| case | compiled, a call | an item | pure / compiled | package / compiled |")
    print("|---|---|---|---|---|")
    gc.disable()  # a collection would hit whoever happens to be timed
    for case in CASES:
        if not chosen.words or any(word in case.name for word in chosen.words):
            print(row(case, contest(case, chosen.pairs)), flush=True)
            gc.collect()


if __name__ == "__main__":
    main()
