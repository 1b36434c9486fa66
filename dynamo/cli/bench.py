"""`dynamo bench`: throughput and latency, of a cluster it starts or of nodes that run; and how two such measurements compare."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from dynamo._core import CORE
from dynamo.bench import report
from dynamo.bench.choosers import DISTRIBUTIONS
from dynamo.bench.plan import Plan
from dynamo.bench.processes import run
from dynamo.bench.protocols import PROTOCOLS
from dynamo.bench.workloads import WORKLOADS
from dynamo.cli import OK, installation
from dynamo.cli.output import talk, write_json, write_table
from dynamo.client.addresses import parse_addresses
from dynamo.client.meeting import MEETING_S_MAX, one_cluster
from dynamo.errors import ConfigError
from dynamo.testing.cluster import ServedCluster

_ABOUT = "; ".join(f"{name}: {workload.about}" for name, workload in WORKLOADS.items())


_DOCUMENT_BYTES_MAX = 64 << 20


class _Group(click.Group):
    """Runs a benchmark unless a command is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        named = args and (args[0] in self.commands or args[0] in ("-h", "--help"))
        return super().parse_args(ctx, args if named else ["run", *args])


@click.group("bench", cls=_Group, short_help="Measure throughput and latency.")
def bench_command() -> None:
    """Measure throughput and latency. `dynamo bench [OPTIONS]` is short for `dynamo bench run [OPTIONS]`."""


@bench_command.command("run", short_help="Run a load and report it.", help=f"Run a load and report it. Workloads: {_ABOUT}.")
@click.option("--workload", type=click.Choice(list(WORKLOADS)), default="B", show_default=True, help="What is done, after YCSB.")
@click.option("--distribution", type=click.Choice(DISTRIBUTIONS), help="Which keys are met; by default as the workload has it.")
@click.option("--at", "addresses", metavar="H:P,...", help="Running nodes. Without it a cluster is started for the run.")
@click.option("--protocol", type=click.Choice(PROTOCOLS), default="dynamo", show_default=True, help="What the servers at --at speak.")
@click.option("--nodes", type=click.IntRange(1, 16), default=3, show_default=True, help="Of the cluster that is started.")
@click.option("--n", type=click.IntRange(1, 16), default=3, show_default=True, help="Replicas, of the cluster that is started.")
@click.option("--durability", type=click.Choice(("synced", "relaxed", "buffered", "memory")), default="synced", show_default=True, help="Likewise.")
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), help="Where the cluster that is started keeps its data.")
@click.option("--r", type=click.IntRange(0, 16), default=0, help="Replicas a read asks; 0, the default: the bucket's own.")
@click.option("--w", type=click.IntRange(0, 16), default=0, help="Replicas a write waits for; 0, the default: the bucket's own.")
@click.option("--connections", type=click.IntRange(1, 100_000), default=50, show_default=True, help="In all.")
@click.option("--pipeline", type=click.IntRange(1, 10_000), default=1, show_default=True, help="Requests under way on each connection.")
@click.option("--processes", type=click.IntRange(1, 64), default=1, show_default=True, help="Of the load generator.")
@click.option("--keys", type=click.IntRange(1, 10**9), default=100_000, show_default=True, help="How many there are; each is written once before.")
@click.option("--value-bytes", type=click.IntRange(0, 1 << 20), default=100, show_default=True, help="Size of a value.")
@click.option("--rate", type=click.FloatRange(0), default=0.0, help="Operations a second (an open loop); 0, the default: as many as can be (a closed one).")
@click.option("--seconds", type=click.FloatRange(0.1), default=10.0, show_default=True, help="Length of a run.")
@click.option("--warm-up", "warm_up_s", type=click.FloatRange(0), default=3.0, show_default=True, help="Seconds before, unmeasured.")
@click.option("--runs", type=click.IntRange(1, 1000), default=3, show_default=True, help="How many.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of operations and keys.")
@click.option("--no-load", "load", flag_value=False, default=True, help="The keys are there already.")
@click.option("-o", "--output", "form", type=click.Choice(("table", "json")), default="table", show_default=True, help="Format of the output.")
def run_command(
    addresses: str | None, nodes: int, n: int, durability: str, data: Path | None, distribution: str | None, form: str, protocol: str, **chosen: Any
) -> int:
    """Run a load and report it."""
    if protocol != "dynamo" and not addresses:
        raise click.UsageError(f"--protocol {protocol} needs --at: only clusters of dynamo are started here")
    started = [name for name in ("nodes", "n", "durability", "data") if click.get_current_context().get_parameter_source(name) == ParameterSource.COMMANDLINE]
    if addresses and started:
        raise click.UsageError(f"--{started[0]} is for a cluster that is started here; --at names one that runs")
    installation.warn()
    with ExitStack() as stack:
        cluster = None
        if addresses:
            where = [*parse_addresses(addresses)]
            if protocol == "dynamo":
                one_cluster(where, 4 * MEETING_S_MAX)
        else:
            directory = data or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dynamo-bench-")))
            flags = ("--n", str(n), "--durability", durability)
            served = stack.enter_context(ServedCluster(directory, nodes, flags))
            served.check_core(CORE)
            where = served.addresses
            cluster = {"nodes": nodes, "n": n, "durability": durability}
        plan = Plan(tuple(where), distribution=distribution or "", protocol=protocol, **chosen)
        progress = stack.enter_context(_Progress(plan))
        measured = run(plan, progress, nodes_core=CORE if cluster else "")
    found = report.document(plan, measured, cluster)
    if form == "json":
        write_json(found)
    else:
        _explain(found)
        write_table(report.rows(found))
    return OK


@bench_command.command("compare", short_help="Compare two measurements.")
@click.argument("first", type=click.Path(exists=True, dir_okay=False))
@click.argument("second", type=click.Path(exists=True, dir_okay=False))
@click.option("-o", "--output", "form", type=click.Choice(("table", "json")), default="table", show_default=True, help="Format of the output.")
def compare_command(first: str, second: str, form: str) -> int:
    """Compare two documents of `dynamo bench -o json`: ratios of the second to the first, with the range over all pairs of runs."""
    one, other = _read(first), _read(second)
    different = [name for name, value in one["plan"].items() if name not in ("addresses", "seed") and other["plan"].get(name) != value]
    if any(one.get(name) != other.get(name) for name in ("core", "nodes_core")) or one["machine"] != other["machine"]:
        talk("the two were not measured with the same core on the same machine")
    if different:
        talk(f"the two differ in more than the servers: {', '.join(different)}")
    compared = report.comparison(one, other)
    if form == "json":
        write_json({"rows": compared})
    else:
        write_table(report.comparison_rows(compared))
    return OK


@bench_command.command("plot", short_help="Draw latency against throughput.")
@click.argument("documents", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--to", "target", required=True, metavar="FILE", help="FILE.svg or FILE.png.")
def plot_command(documents: tuple[str, ...], target: str) -> int:
    """Draw latency against throughput, a point for each document of `dynamo bench -o json`, of runs at different rates (--rate), say."""
    report.plot([_read(name) for name in documents], target)
    talk(f"written to {target}")
    return OK


def _read(name: str) -> dict[str, Any]:
    try:
        with open(name, "rb") as file:
            text = file.read(_DOCUMENT_BYTES_MAX + 1)
        if len(text) > _DOCUMENT_BYTES_MAX:
            raise ConfigError(f"{name} has more than {_DOCUMENT_BYTES_MAX} bytes, which no measurement has")
        return report.checked(json.loads(text), name)
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name} is not JSON: {error}") from None


def _explain(found: dict[str, Any]) -> None:
    plan, cluster = found["plan"], found["cluster"]
    where = f"{cluster['nodes']} nodes, n={cluster['n']}, {cluster['durability']}" if cluster else f"{plan['protocol']} at {','.join(plan['addresses'])}"
    of_nodes = f", {found['nodes_core']} core of the nodes" if found["nodes_core"] not in ("", found["core"]) else ""
    loop = f"{plan['rate']:,.0f} operations a second" if plan["rate"] else "closed loop"
    talk(
        f"workload {plan['workload']}, {where}; {plan['connections']} connections x {plan['pipeline']}, {loop}; {plan['keys']:,} keys, "
        f"{plan['value_bytes']} bytes; {found['core']} core{of_nodes}, {os.cpu_count()} processors"
    )
    for run_found in found["runs"]:
        for text, count in run_found["errors"].items():
            talk(f"{count} times: {text}")


class _Progress:
    """One line on a terminal's stderr, written over and over."""

    def __init__(self, plan: Plan) -> None:
        self._shown = sys.stderr.isatty()
        self._keys = plan.keys

    def __call__(self, phase: str, answered: int) -> None:
        if self._shown:
            of = f" of {self._keys:,}" if phase == "writing all keys" else ""
            click.echo(f"\r\033[K{phase}: {answered:,}{of}", nl=False, err=True)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._shown:
            click.echo("\r\033[K", nl=False, err=True)
