"""`python -m dynamo.testing SEED` runs one seed with its trace; `python -m dynamo.testing A:B` many on all cores, a line for each violation."""

from __future__ import annotations

import os
import sys

from dynamo.testing.runner import FULL, SHORT, Report, run, run_many

USAGE = "usage: python -m dynamo.testing SEED|FIRST:END [--short] [--buffered] [--whole]    --whole: the whole trace, not only what leads to a violation"


def main(arguments: list[str]) -> int:
    """Exit 0 if no seed shows a violation, 1 if one does, 2 for bad usage."""
    profile, buffered = SHORT if "--short" in arguments else FULL, "--buffered" in arguments
    names = [argument for argument in arguments if not argument.startswith("--")]
    try:
        first, colon, last = names[0].partition(":")
        seeds = range(int(first), int(last)) if colon else range(int(first), int(first) + 1)
    except (IndexError, ValueError):
        print(USAGE, file=sys.stderr)
        return 2
    if not colon:
        report = run(seeds[0], profile=profile, log=True, buffered=buffered)
        for line in report.log if "--whole" in arguments or not report.violations else trace_of(report):
            print(line)
        print_violations(report)
        print(summary_line(report), file=sys.stderr)
        return 1 if report.violations else 0
    failed = 0
    for report in run_many(seeds, jobs=os.cpu_count() or 1, profile=profile, buffered=buffered):
        failed += bool(report.violations)
        print_violations(report)
    print(f"{len(seeds)} seeds, {failed} with a violation", file=sys.stderr)
    return 1 if failed else 0


def trace_of(report: Report) -> list[str]:
    """The readable trace around the first violation, behind the lines that say what the run was."""
    first = next((violation for violation in report.violations if violation.checker != "converge"), report.violations[0])
    head = report.log[: max(2, next((i for i, line in enumerate(report.log) if float(line[:11]) > 0), 0))]
    return [*head[:40], "...", *report.around(first)]


def print_violations(report: Report) -> None:
    """One line each, as `dynamo simulate` prints them."""
    for violation in report.violations:
        print(f"seed {report.seed} VIOLATION {violation}")


def summary_line(report: Report) -> str:
    """What the run was, in a line."""
    return (
        f"seed {report.seed} trace={report.trace_hash} operations={report.operations} writes={report.writes} reads={report.reads} "
        f"virtual_s={report.virtual_s:.1f} {report.configuration}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
