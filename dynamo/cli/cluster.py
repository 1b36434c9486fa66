"""What the cluster looks like from one of its nodes: `cluster status`, `ring preflist`; and the node itself: `stats`."""

from __future__ import annotations

from typing import Any

import click

from dynamo.cli import OK, options
from dynamo.cli.output import key_fields, write_json, write_table

_NODE_FIELDS = ("name", "id", "address", "zone", "capacity", "status", "reachable", "partitions", "recovering")


@click.group("cluster")
def cluster_command() -> None:
    """The nodes of the cluster."""


@click.group("ring")
def ring_command() -> None:
    """Where keys lie."""


@cluster_command.command("status")
@options.output("table", "json")
@options.at
def status(form: str, at: tuple[str, ...], timeout: float) -> int:
    """Print the cluster and its nodes as the asked node sees them."""
    with options.client(at, timeout) as client:
        document = client.cluster_status()
    nodes = [{field: node.get(field, 0) for field in _NODE_FIELDS} for node in document["nodes"]]
    if form == "json":
        write_json({field: document[field] for field in ("cluster", "ring", "n", "r", "w", "partitions")} | {"nodes": nodes})
        return OK
    write_table([[f"{field}={document[field]}" for field in ("cluster", "ring", "n", "r", "w", "partitions", "core") if field in document]])
    write_table([_NODE_FIELDS, *([_cell(node[field]) for field in _NODE_FIELDS] for node in nodes)])
    return OK


@ring_command.command("preflist")
@options.key
@options.bucket
@options.output("table", "json")
@options.at
def preflist(key: bytes, bucket: str, form: str, at: tuple[str, ...], timeout: float) -> int:
    """Print the nodes that own KEY, in the order of preference, then those that stand in for them."""
    with options.client(at, timeout) as client:
        document = client.preference_list(key, bucket=bucket)
    roles = {role: [{"name": node["name"], "address": node["address"]} for node in document[role]] for role in ("owners", "fallbacks")}
    if form == "json":
        write_json(key_fields(key, bucket) | {"position": document["position"], "partition": document["partition"]} | roles)
        return OK
    write_table([[f"position={document['position']}", f"partition={document['partition']}"]])
    rows = [(role.removesuffix("s"), node["name"], node["address"]) for role, nodes in roles.items() for node in nodes]
    write_table([("role", "name", "address"), *rows])
    return OK


@click.command("stats", short_help="Print the counters of a node.")
@options.output("table", "json")
@options.at
def stats_command(form: str, at: tuple[str, ...], timeout: float) -> int:
    """Print what the asked node has counted since its start. Of several nodes in --at, one answers. Names may come and go."""
    with options.client(at, timeout) as client:
        document = client.stats()
    if form == "json":
        write_json(document)
    else:
        told = {name: document.pop(name) for name in ("node", "address", "core") if name in document}
        write_table([(name, str(value)) for name, value in [*told.items(), *sorted(document.items())]])
    return OK


def _cell(value: Any) -> str:
    return "yes" if value is True else "no" if value is False else str(value) or "-"
