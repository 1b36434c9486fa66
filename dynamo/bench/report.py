"""What runs of the load generator become: a document for `-o json`, tables for people, the comparison of two documents, a plot of several.

A document has a format number, the machine, the plan, and of each run the throughput and the latencies in microseconds. Figures of a shared machine swing,
so that two documents are compared as ratios, with the spread of all pairs of runs beside the median.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from statistics import median
from typing import Any

import dynamo
from dynamo._core import CORE
from dynamo.bench.plan import Measured, Plan
from dynamo.errors import ConfigError

FORMAT = 1
_RUN = {"throughput", "seconds", "errors", "siblings_mean", "generator_cpu", "latency_us"}
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}


def document(plan: Plan, runs: Sequence[Measured], cluster: dict[str, Any] | None = None) -> dict[str, Any]:
    """All of a benchmark, ready for JSON. `cluster`: what the nodes were started with, where that is known."""
    return {
        "format": FORMAT,
        "dynamo": dynamo.__version__,
        "core": CORE,  # of the load generator
        "nodes_core": runs[0].nodes_core if runs else "",
        "machine": {"system": platform.platform(), "processors": os.cpu_count(), "python": platform.python_version()},
        "plan": asdict(plan),
        "cluster": cluster,
        "runs": [_run(measured) for measured in runs],
    }


def _run(measured: Measured) -> dict[str, Any]:
    return {
        "throughput": round(measured.throughput, 1),
        "operations": measured.operations,
        "seconds": round(measured.seconds, 3),
        "errors": measured.errors,
        "siblings_mean": round(measured.siblings / measured.reads, 4) if measured.reads else None,
        "generator_cpu": round(measured.cpu_s / measured.seconds, 3),
        "latency_us": {
            operation: {"count": latencies.count, "mean": round(latencies.sum / latencies.count / 1000, 1)}
            | {name: round(latencies.quantile(q) / 1000, 1) for name, q in QUANTILES.items()}
            for operation, latencies in measured.latencies().items()
        },
    }


def checked(found: Any, name: str) -> dict[str, Any]:
    """A document that was read from a file. Raises ConfigError for what is none."""
    runs = found.get("runs") if isinstance(found, dict) and found.get("format") == FORMAT and isinstance(found.get("plan"), dict) else None
    if not isinstance(runs, list) or not runs or not all(isinstance(run, dict) and set(run) >= _RUN for run in runs):
        raise ConfigError(f"{name} is no document of `dynamo bench -o json` of format {FORMAT}")
    try:
        _ = found["core"], found["machine"], rows(found), comparison(found, found)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(f"{name} is no whole document of `dynamo bench -o json`: {type(error).__name__}: {error}") from None
    return dict(found)


def rows(found: dict[str, Any]) -> list[list[str]]:
    """The table of a document: a row for each run and operation."""
    table = [["run", "operation", "ops/s", "mean", *QUANTILES, "errors", "siblings", "generator"]]
    for number, run in enumerate(found["runs"], 1):
        errors = sum(run["errors"].values())
        siblings = "-" if run["siblings_mean"] is None else f"{run['siblings_mean']:.2f}"
        for operation, latency in run["latency_us"].items():
            rate = latency["count"] / run["seconds"]
            cells = [f"{latency[name]:,.0f} us" for name in ("mean", *QUANTILES)]
            table.append([str(number), operation, f"{rate:,.0f}", *cells, str(errors), siblings, f"{run['generator_cpu']:.2f} CPU"])
    return table


def comparison(first: dict[str, Any], second: dict[str, Any]) -> list[dict[str, Any]]:
    """How the second compares with the first: by figure, the median of each, the median of the ratios of all pairs of runs, and their range."""
    a, b = _figures(first), _figures(second)
    compared = []
    for name in a:
        if name not in b:
            continue
        ratios = sorted(y / x for x, y in product(a[name], b[name]) if x > 0)
        if ratios:
            compared.append({
                "name": name, "first": median(a[name]), "second": median(b[name]),
                "ratio": round(median(ratios), 3), "low": round(ratios[0], 3), "high": round(ratios[-1], 3),
            })  # fmt: skip
    return compared


def _figures(found: dict[str, Any]) -> dict[str, list[float]]:
    figures: dict[str, list[float]] = {"throughput": [run["throughput"] for run in found["runs"]]}
    for run in found["runs"]:
        for operation, latency in run["latency_us"].items():
            for name in ("mean", *QUANTILES):
                figures.setdefault(f"{operation} {name} us", []).append(latency[name])
    return figures


def comparison_rows(compared: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The table of a comparison."""
    table = [["figure", "first", "second", "second / first", "range"]]
    for row in compared:
        table.append([row["name"], f"{row['first']:,.0f}", f"{row['second']:,.0f}", f"{row['ratio']:.2f}", f"{row['low']:.2f}-{row['high']:.2f}"])
    return table


def plot(documents: Sequence[dict[str, Any]], path: str) -> None:
    """Latency against throughput, a line for each operation, a point for each document; SVG or PNG by the ending of `path`.

    Raises ConfigError where matplotlib is not installed, or for another ending."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("plots are drawn by matplotlib, which is not installed: pip install 'dynamo-kv[plot]'") from None
    if not path.endswith((".svg", ".png")):
        raise ConfigError(f"{path}: a plot ends in .svg or .png")
    lines: dict[str, list[tuple[float, float]]] = {}
    for found in documents:
        throughput = median(run["throughput"] for run in found["runs"])
        for operation in found["runs"][0]["latency_us"]:
            for name in ("p50", "p99", "p99.9"):
                value = median(run["latency_us"][operation][name] for run in found["runs"] if operation in run["latency_us"])
                lines.setdefault(f"{operation} {name}", []).append((throughput, value / 1000))
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for label, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=label)
    axes.set(xlabel="operations a second", ylabel="latency, ms", yscale="log", title=f"{documents[0]['plan']['protocol']}: latency against throughput")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path)
