"""`dynamo simulate`: many simulated clusters under faults, each from a seed; exit code 1 if a promise was broken in one."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click

from dynamo.cli import FAILED, OK, options
from dynamo.cli.output import talk, write_json


def _seed_range(context: click.Context, parameter: click.Parameter, text: str) -> range:
    """`A:B`, half open, or a single seed."""
    first, colon, end = text.partition(":")
    try:
        seeds = range(int(first), int(end)) if colon else range(int(first), int(first) + 1)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not of the form A:B, as in 0:200") from None
    if not seeds:
        raise click.BadParameter(f"{text!r} holds no seed; B is behind the last one")
    return seeds


def _done(path: Path) -> dict[int, bool]:
    """The seeds in a file of JSON lines, and whether each showed a violation. A line that was cut off when a run was ended counts for nothing."""
    found: dict[int, bool] = {}
    lines = path.read_bytes().splitlines()
    for line in lines:
        try:
            report = json.loads(line)
            found[report["seed"]] = bool(report["violations"])
        except (ValueError, TypeError, KeyError):
            continue
    if lines and not found:
        raise click.UsageError(f"{path} holds no line of `dynamo simulate -o json`")
    return found


@click.command("simulate", short_help="Search simulated clusters for broken promises.")
@click.option("--seeds", metavar="A:B", callback=_seed_range, required=True, help="Seeds to run, from A up to B - 1.")
@click.option("--jobs", type=click.IntRange(1), help="Processes to use; by default one for each processor.")
@click.option("--short", is_flag=True, help="Runs of a quarter of the length.")
@click.option("--buffered", is_flag=True, help="Nodes of durability `buffered`, whose crashes take their write buffers along.")
@click.option(
    "--resume", type=click.Path(exists=True, dir_okay=False), metavar="FILE", help="Leave out the seeds in FILE, which `-o json` wrote for the same options."
)
@options.output("table", "json", "text")
def simulate_command(seeds: range, jobs: int | None, short: bool, buffered: bool, resume: str | None, form: str) -> int:
    """Run whole clusters in virtual time under crashes, partitions, lost messages, failing disks and worse, and hold what clients were told
    against what they promise. Prints a line for each violation; a seed with one is replayed by `python -m dynamo.testing SEED`."""
    from dynamo.testing.__main__ import print_violations, trace_of
    from dynamo.testing.runner import FULL, SHORT, run, run_many

    profile = SHORT if short else FULL
    done = {} if resume is None else _done(Path(resume))
    failed = [seed for seed in seeds if done.get(seed)]
    left = [seed for seed in seeds if seed not in done]
    reports = run_many(left, jobs=jobs or os.cpu_count() or 1, profile=profile, buffered=buffered)
    bar = click.progressbar(reports, length=len(left), label="seeds", file=sys.stderr, item_show_func=lambda _: f"{len(failed)} failed")
    with bar:
        for report in bar:
            if report.violations:
                failed.append(report.seed)
            if form == "json":
                write_json(report.summary())
            else:
                print_violations(report)
                sys.stdout.flush()
    if failed:
        talk(f"{len(failed)} of {len(seeds)} seeds show a violation. The trace that leads to the first one:")
        first = run(failed[0], profile=profile, log=True, buffered=buffered)
        lines = trace_of(first) if first.violations else [f"seed {first.seed} shows none any more: it was found by other code, or with other options"]
        talk("\n".join(line[:240] for line in lines))
        for seed in failed[:10]:
            talk(f"replay: python -m dynamo.testing {seed}{' --short' if short else ''}{' --buffered' if buffered else ''}")
    return FAILED if failed else OK
