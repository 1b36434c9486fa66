"""`python -m dynamo.testing SEED` runs one seed with its trace; `python -m dynamo.testing A:B` runs many on all cores, a line for each failure."""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor

from dynamo.testing.workload import Report, run


def main(arguments: list[str]) -> int:
    """Exit 0 if no seed shows a violation, 1 if one does, 2 for bad usage."""
    try:
        first, colon, last = arguments[0].partition(":")
        seeds = range(int(first), int(last)) if colon else range(int(first), int(first) + 1)
    except (IndexError, ValueError):
        print("usage: python -m dynamo.testing SEED | FIRST:END", file=sys.stderr)
        return 2
    if len(seeds) == 1:
        report = run(seeds[0], log=True)
        print("\n".join(report.log))
        _print(report)
        return 1 if report.violations else 0
    failed = 0
    with ProcessPoolExecutor() as pool:
        for report in pool.map(run, seeds, chunksize=10):
            if report.violations:
                failed += 1
                _print(report)
    print(f"{len(seeds)} seeds, {failed} with a violation", file=sys.stderr)
    return 1 if failed else 0


def _print(report: Report) -> None:
    for text in report.violations:
        checker, _, rest = text.partition(": ")
        print(f"seed {report.seed} VIOLATION {checker} {rest}")
    print(f"seed {report.seed} trace={report.trace_hash} writes={report.writes} reads={report.reads} virtual_s={report.virtual_s:.1f}",
          file=sys.stderr)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
